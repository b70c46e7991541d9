package packager_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"hash/crc32"
	"io"
	"sync"
	"time"

	"github.com/downlink-go/downlink/server/internal/download"
)

var modified = time.Date(2026, 4, 1, 0, 0, 0, 0, time.UTC)

// store is a store of objects in memory, with faults.
type store struct {
	mu      sync.Mutex
	objects map[string]content
	opens   []opening
	// onOpen is called before an object is opened, and may fail or stand in.
	onOpen func(ctx context.Context, o download.Object, off, n int64) (io.ReadCloser, error)
}

type content struct {
	object download.Object
	data   []byte
}

type opening struct {
	key    string
	off, n int64
}

func newStore() *store { return &store{objects: map[string]content{}} }

// put stores the data under the key, in a new version.
func (s *store) put(key string, data []byte) download.Object {
	s.mu.Lock()
	defer s.mu.Unlock()
	o := download.Object{Key: key, Version: fmt.Sprintf("%08x-%d", crc32.ChecksumIEEE(data), len(data)), Size: int64(len(data)), Modified: modified}
	s.objects[key] = content{o, data}
	return o
}

func (s *store) remove(key string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.objects, key)
}

// opened returns what has been opened since the last call.
func (s *store) opened() []opening {
	s.mu.Lock()
	defer s.mu.Unlock()
	opens := s.opens
	s.opens = nil
	return opens
}

func (s *store) Stat(_ context.Context, key string) (download.Object, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c, ok := s.objects[key]
	if !ok {
		return download.Object{}, download.ErrObjectNotFound
	}
	return c.object, nil
}

func (s *store) Open(ctx context.Context, o download.Object, off, n int64) (io.ReadCloser, error) {
	s.mu.Lock()
	s.opens = append(s.opens, opening{o.Key, off, n})
	c, ok := s.objects[o.Key]
	onOpen := s.onOpen
	s.mu.Unlock()
	if onOpen != nil {
		if r, err := onOpen(ctx, o, off, n); r != nil || err != nil {
			return r, err
		}
	}
	switch {
	case !ok:
		return nil, download.ErrObjectNotFound
	case c.object.Version != o.Version:
		return nil, download.ErrObjectChanged
	}
	return io.NopCloser(bytes.NewReader(c.data[off : off+n])), nil
}

// job stores n small objects and returns a plan of them.
func (s *store) job(id string, n int) *download.Plan {
	assets := make([]download.Asset, n)
	for i := range assets {
		path := fmt.Sprintf("%05d.tif", i)
		assets[i] = download.Asset{Role: download.Output, Path: path,
			Object: s.put("W1/"+id+"/outputs/"+path, fmt.Appendf(nil, "content of %d in %s", i, id))}
	}
	return download.NewPlan("W1", id, assets)
}

// want returns the checksum of the object.
func (s *store) want(key string, sha bool) download.Checksum {
	s.mu.Lock()
	defer s.mu.Unlock()
	data := s.objects[key].data
	sum := download.Checksum{CRC32: crc32.ChecksumIEEE(data)}
	if sha {
		h := sha256.Sum256(data)
		sum.SHA256 = h[:]
	}
	return sum
}

// blocked is a reader that gives no bytes until its context ends.
type blocked struct{ ctx context.Context }

func (b blocked) Read([]byte) (int, error) { <-b.ctx.Done(); return 0, b.ctx.Err() }
func (blocked) Close() error               { return nil }

// knowing is a store that knows checksums.
type knowing struct{ *store }

func (k knowing) Checksum(_ context.Context, o download.Object) (*download.Checksum, error) {
	sum := k.want(o.Key, false)
	return &sum, nil
}

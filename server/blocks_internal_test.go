package server

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/downlink-go/downlink/server/internal/download"
)

// tiles is a store whose objects have their keys for content, many times over.
type tiles struct {
	opened atomic.Int64
	fail   atomic.Bool
}

func tile(i int) string { return strings.Repeat(fmt.Sprintf("tile %06d ", i), 20) }

func (s *tiles) Stat(context.Context, string) (Object, error) {
	return Object{}, download.ErrObjectNotFound
}

func (s *tiles) Open(_ context.Context, o Object, off, n int64) (io.ReadCloser, error) {
	if s.fail.Load() {
		return nil, download.ErrObjectChanged
	}
	s.opened.Add(1)
	var i int
	if _, err := fmt.Sscan(o.Key, &i); err != nil {
		return nil, err
	}
	return io.NopCloser(strings.NewReader(tile(i)[off : off+n])), nil
}

// tilesPackage is a package of n tiles, and what it should read as.
func tilesPackage(t *testing.T, s *tiles, n int) (*download.Content, []byte) {
	t.Helper()
	assets := make([]Asset, n)
	for i := range assets {
		assets[i] = Asset{
			Role: Output, Path: fmt.Sprintf("%06d.tif", i),
			Object:   Object{Key: fmt.Sprint(i), Version: "1", Size: int64(len(tile(i)))},
			Checksum: &Checksum{CRC32: crc32.ChecksumIEEE([]byte(tile(i)))},
		}
	}
	content, err := download.NewContent(download.NewPlan("W", "J", assets), s)
	if err != nil {
		t.Fatal(err)
	}
	var whole bytes.Buffer
	r := content.Layout.NewReader(t.Context(), content)
	defer r.Close()
	if _, err := r.CopyN(&whole, content.Layout.Size()); err != nil {
		t.Fatal(err)
	}
	s.opened.Store(0)
	return content, whole.Bytes()
}

func (b *blocks) copyRange(ctx context.Context, c *download.Content, off, n int64) ([]byte, error) {
	r := &blockReader{Reader: c.Layout.NewReader(ctx, c), ctx: ctx, blocks: b, content: c, source: c}
	defer r.Close()
	if _, err := r.Seek(off, io.SeekStart); err != nil {
		return nil, err
	}
	var p bytes.Buffer
	written, err := r.CopyN(&p, n)
	if written != int64(p.Len()) {
		err = errors.Join(err, fmt.Errorf("%d bytes written, %d returned", p.Len(), written))
	}
	return p.Bytes(), err
}

func TestBlocksAreTheBytesOfThePackage(t *testing.T) {
	t.Parallel()
	s := &tiles{}
	content, whole := tilesPackage(t, s, 10_000)
	b := newBlocks(4 * blockSize) // some have to go again
	size := int64(len(whole))
	var wg sync.WaitGroup
	for worker := range 4 {
		wg.Go(func() {
			random := rand.New(rand.NewPCG(uint64(worker), 2))
			for range 200 {
				off := random.Int64N(size)
				n := random.Int64N(2 << 20)
				got, err := b.copyRange(t.Context(), content, off, n)
				if n > size-off {
					if n = size - off; !errors.Is(err, io.EOF) {
						t.Errorf("%d bytes from %d, beyond the end: %v", n, off, err)
					}
				} else if err != nil {
					t.Error(err)
				}
				if !bytes.Equal(got, whole[off:off+n]) {
					t.Errorf("%d bytes from %d are not those of the package", n, off)
				}
			}
		})
	}
	wg.Wait()
	if b.cache.CleanUp(); b.bytes() > 4*blockSize || b.bytes() == 0 {
		t.Errorf("%d bytes are kept, want %d at most", b.bytes(), 4*blockSize)
	}
}

// TestBlocksAreKept counts how often tiles are opened.
func TestBlocksAreKept(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := &tiles{}
		content, whole := tilesPackage(t, s, 10_000)
		b := newBlocks(64 << 20)
		read := func(what string, off, n int64, opens bool) {
			t.Helper()
			before := s.opened.Load()
			got, err := b.copyRange(t.Context(), content, off, n)
			if err != nil || !bytes.Equal(got, whole[off:off+n]) {
				t.Fatalf("%s: %d bytes, %v", what, len(got), err)
			}
			if opened := s.opened.Load() - before; opened > 0 != opens {
				t.Errorf("%s: %d tiles were opened", what, opened)
			}
		}
		block, _, _ := content.Layout.Content(5000)
		block -= block % blockSize
		read("part of a block", block+100, blockSize/2, true)
		read("the same", block+100, blockSize/2, true)
		read("a block", block, blockSize, true)
		read("the same block", block, blockSize, false)
		read("part of it", block+100, blockSize/2, false)
		read("more than there are blocks for", 0, blockRange+1, true)
		time.Sleep(blockTime)
		read("a block after its time", block, blockSize, true)
		read("the same block again", block, blockSize, false)

		s.fail.Store(true)
		read("what is kept of tiles that have changed", block, blockSize, false)
		time.Sleep(blockTime)
		if got, err := b.copyRange(t.Context(), content, block, blockSize); !errors.Is(err, download.ErrObjectChanged) || len(got) > 0 {
			t.Errorf("after its time: %d bytes, %v, want %v", len(got), err, download.ErrObjectChanged)
		}
	})
}

func TestLargeContentIsInNoBlock(t *testing.T) {
	t.Parallel()
	content, whole := tilesPackage(t, &tiles{}, 1)
	b := newBlocks(64 << 20)
	if got, err := b.copyRange(t.Context(), content, 0, int64(len(whole))); err != nil || !bytes.Equal(got, whole) {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
	if b.bytes() > 0 {
		t.Errorf("%d bytes are kept of a package of one tile", b.bytes())
	}
}

// Package assemble puts packages together inside the store that has their
// assets, as multipart uploads: headers and small assets are uploaded, and the
// store copies the bulk from the assets' own objects. The object has the very
// bytes that a virtual package streams.
//
// [Plan] cuts a package into parts by the rules of the store; [Run] has them made
// and can take up an upload that an earlier process left behind.
package assemble

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"

	"github.com/downlink-go/downlink/server/internal/download"
	"github.com/downlink-go/downlink/server/internal/vzip"
)

// Stored is a part that the store has.
type Stored struct {
	Number int // from 1
	Size   int64
	Tag    string // what the store knows it by
	CRC32  *uint32
}

// ErrNoUpload is what a [Store] returns for an upload that is no more. It was
// completed or aborted.
var ErrNoUpload = errors.New("no such upload")

// Store makes objects of parts. It is safe for concurrent use.
type Store interface {
	// Begin begins an upload of the object, which is to be a file of this name
	// and to have this digest.
	Begin(ctx context.Context, key, filename, digest string) (upload string, err error)
	// Upload makes a part of data.
	Upload(ctx context.Context, key, upload string, number int, data []byte, sum uint32) (Stored, error)
	// Copy makes a part of n bytes from off on of another object, or fails with
	// download.ErrObjectNotFound or ErrObjectChanged.
	Copy(ctx context.Context, key, upload string, number int, from download.Object, off, n int64) (Stored, error)
	// Parts lists what the upload has, or fails with ErrNoUpload.
	Parts(ctx context.Context, key, upload string) ([]Stored, error)
	// Complete makes the object of these parts.
	Complete(ctx context.Context, key, upload string, parts []Stored) error
	// Abort ends all uploads of the object.
	Abort(ctx context.Context, key string) error
	// Find returns the size and the digest of the object, or
	// download.ErrObjectNotFound.
	Find(ctx context.Context, key string) (size int64, digest string, err error)
	// Delete deletes the object, if it is there.
	Delete(ctx context.Context, key string) error
}

// Job is a package to assemble.
type Job struct {
	Store Store
	// Key is that of the object, Filename what it is downloaded as, and Digest
	// that of the package in hex.
	Key, Filename, Digest string
	Content               *download.Content
	// Source has the same content, the way it is read best. Defaults to Content.
	Source vzip.Source
	// Memory bounds the bytes of all parts that are uploaded at a time. It lets
	// the largest part through.
	Memory *semaphore.Weighted
	// Upload is that of an earlier process, empty if there was none.
	Upload string
	// Begun is called with each new upload before anything is sent to it.
	Begun func(ctx context.Context, upload string) error
	// Done is called with the number of bytes of each part that is there.
	Done func(bytes int64)
}

// Result tells how a package was assembled.
type Result struct {
	Parts                    int
	Uploaded, Copied, Reused int64 // bytes
}

// concurrency is how many parts of a package are made at once. Copies cost this
// process nothing.
const concurrency = 8

// Run assembles the package. If it fails the upload is left as it is, for the
// next attempt. Errors are those of [Plan], of the store and the source, and
// ErrContent.
func (j Job) Run(ctx context.Context) (Result, error) {
	if j.Source == nil {
		j.Source = j.Content
	}
	var r Result
	parts, err := Plan(j.Content.Layout.Size(), extents(j.Content.Layout), S3)
	if err != nil {
		return r, err
	}
	r.Parts = len(parts)
	stored, err := j.resume(ctx, parts)
	if errors.Is(err, errComplete) {
		r.Reused = j.Content.Layout.Size()
		return r, nil
	}
	if err != nil {
		return r, err
	}
	var uploaded, copied atomic.Int64
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(concurrency)
	for i, p := range parts {
		if stored[i].Number != 0 {
			r.Reused += p.N
			j.Done(p.N)
			continue
		}
		g.Go(func() error {
			made, counter := j.upload, &uploaded
			if p.Copied {
				made, counter = j.copy, &copied
			}
			var err error
			if stored[i], err = made(gctx, p, i+1); err != nil {
				return err
			}
			counter.Add(p.N)
			j.Done(p.N)
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return r, err
	}
	r.Uploaded, r.Copied = uploaded.Load(), copied.Load()
	if err := j.verify(parts, stored); err != nil {
		return r, err
	}
	if err := j.Store.Complete(ctx, j.Key, j.Upload, stored); err != nil {
		return r, fmt.Errorf("complete upload: %w", err)
	}
	if !j.complete(ctx) {
		return r, errors.New("the object is not there after its upload was completed")
	}
	return r, nil
}

// extents returns what can be copied.
func extents(l *vzip.Layout) []Extent {
	var all []Extent
	for i := range l.Len() {
		if off, n, ok := l.Content(i); ok {
			all = append(all, Extent{Entry: i, Off: off, N: n})
		}
	}
	return all
}

var errComplete = errors.New("complete")

// resume finds the upload to go on with, or begins one, and returns what it has
// of the parts. It fails with errComplete if the object is there already: a
// process may end right after it has completed an upload.
func (j *Job) resume(ctx context.Context, parts []Part) ([]Stored, error) {
	stored := make([]Stored, len(parts))
	if j.Upload != "" {
		have, err := j.Store.Parts(ctx, j.Key, j.Upload)
		if err == nil {
			for _, s := range have {
				if i := s.Number - 1; i >= 0 && i < len(parts) && s.Size == parts[i].N {
					stored[i] = s
				}
			}
			return stored, nil
		}
		if !errors.Is(err, ErrNoUpload) {
			return nil, fmt.Errorf("list parts: %w", err)
		}
		if j.complete(ctx) {
			return nil, errComplete
		}
	}
	// There may be an upload that nobody has noted.
	if err := j.Store.Abort(ctx, j.Key); err != nil {
		return nil, fmt.Errorf("abort uploads: %w", err)
	}
	var err error
	if j.Upload, err = j.Store.Begin(ctx, j.Key, j.Filename, j.Digest); err != nil {
		return nil, fmt.Errorf("begin upload: %w", err)
	}
	if err := j.Begun(ctx, j.Upload); err != nil {
		// Whoever has the right to go on begins another one.
		return nil, errors.Join(err, j.Store.Abort(context.WithoutCancel(ctx), j.Key))
	}
	return stored, nil
}

// complete reports whether the object is there.
func (j *Job) complete(ctx context.Context) bool {
	size, digest, err := j.Store.Find(ctx, j.Key)
	return err == nil && size == j.Content.Layout.Size() && digest == j.Digest
}

// copy has the store copy a part.
func (j *Job) copy(ctx context.Context, p Part, number int) (Stored, error) {
	object := j.Content.Plan.Entries[p.Entry-1].Object // entry 0 is the manifest
	s, err := j.Store.Copy(ctx, j.Key, j.Upload, number, object, p.From, p.N)
	if err != nil {
		return Stored{}, fmt.Errorf("copy %s: %w", object.Key, err)
	}
	return s, nil
}

var buffers = sync.Pool{New: func() any { return new(bytes.Buffer) }}

// upload makes a part in memory and uploads it.
func (j *Job) upload(ctx context.Context, p Part, number int) (Stored, error) {
	if err := j.Memory.Acquire(ctx, p.N); err != nil {
		return Stored{}, err
	}
	defer j.Memory.Release(p.N)
	b := buffers.Get().(*bytes.Buffer)
	defer buffers.Put(b)
	b.Reset()
	b.Grow(int(p.N))
	reader := j.Content.Layout.NewReader(ctx, j.Source)
	defer reader.Close()
	if _, err := reader.Seek(p.Off, 0); err != nil {
		return Stored{}, err
	}
	if _, err := reader.CopyN(b, p.N); err != nil {
		return Stored{}, err
	}
	sum := crc32.ChecksumIEEE(b.Bytes())
	s, err := j.Store.Upload(ctx, j.Key, j.Upload, number, b.Bytes(), sum)
	if err != nil {
		return Stored{}, fmt.Errorf("upload part %d: %w", number, err)
	}
	s.CRC32 = &sum
	return s, nil
}

// ErrContent says that what the assets contain is not what their checksums say.
var ErrContent = errors.New("the assets do not have the checksums that are known of them")

// verify combines the checksums of the parts, which the store computed of what it
// copied, to that of the package. A store that tells none is taken on trust.
func (j *Job) verify(parts []Part, stored []Stored) error {
	var sum uint32
	for i, p := range parts {
		told := stored[i].CRC32
		if told == nil || p.Copied && j.ofWhole(p, *told) {
			return nil
		}
		sum = vzip.CombineCRC32(sum, *told, p.N)
	}
	if want := j.Content.Layout.CRC32(); sum != want {
		return fmt.Errorf("%w: the package has CRC-32 %08x, want %08x", ErrContent, sum, want)
	}
	return nil
}

// ofWhole reports whether what the store tells of a part is the checksum of the
// whole object that a range of was copied, as versitygw 1.8 has it.
func (j *Job) ofWhole(p Part, told uint32) bool {
	e := &j.Content.Plan.Entries[p.Entry-1]
	return p.N < e.Object.Size && told == e.Checksum.CRC32
}

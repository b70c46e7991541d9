package vzip_test

import (
	"bytes"
	"context"
	"hash/crc32"
	"io"
	"sync/atomic"
	"testing"
	"time"

	"github.com/downlink-go/downlink/server/internal/vzip"
)

var modified = time.Date(2026, time.November, 24, 13, 37, 42, 0, time.UTC)

// sourceFunc is a Source with a function for Open.
type sourceFunc func(ctx context.Context, i int, off, n int64) (io.ReadCloser, error)

func (f sourceFunc) Open(ctx context.Context, i int, off, n int64) (io.ReadCloser, error) {
	return f(ctx, i, off, n)
}

// opening is a call of Open.
type opening struct {
	entry  int
	off, n int64
}

// memory is a Source of contents in memory that notes each opening. Its readers
// go on to the end of the content, so that reading too much is noticed.
type memory struct {
	contents [][]byte
	openings []opening
	open     atomic.Int64
}

// newMemory returns a source that must have nothing open at the end of the test.
func newMemory(t testing.TB, contents ...[]byte) *memory {
	t.Helper()
	m := &memory{contents: contents}
	t.Cleanup(func() {
		if n := m.open.Load(); n != 0 {
			t.Errorf("%d readers are still open", n)
		}
	})
	return m
}

func (m *memory) Open(_ context.Context, i int, off, n int64) (io.ReadCloser, error) {
	m.openings = append(m.openings, opening{i, off, n})
	m.open.Add(1)
	return &memoryReader{Reader: bytes.NewReader(m.contents[i][off:]), open: &m.open}, nil
}

type memoryReader struct {
	*bytes.Reader
	open *atomic.Int64
}

func (r *memoryReader) Close() error {
	r.open.Add(-1)
	return nil
}

// file returns an entry for content that the source has.
func file(name string, content []byte) vzip.Entry {
	return vzip.Entry{Name: name, Size: int64(len(content)), CRC32: crc32.ChecksumIEEE(content), Modified: modified}
}

func mustNew(t testing.TB, entries ...vzip.Entry) *vzip.Layout {
	t.Helper()
	l, err := vzip.New(entries)
	if err != nil {
		t.Fatalf("New: %v", err)
	}
	return l
}

// newReader returns a reader that is closed at the end of the test.
func newReader(t testing.TB, l *vzip.Layout, src vzip.Source) *vzip.Reader {
	t.Helper()
	r := l.NewReader(t.Context(), src)
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return r
}

// whole returns the bytes of the archive.
func whole(t testing.TB, l *vzip.Layout, src vzip.Source) []byte {
	t.Helper()
	var b bytes.Buffer
	if n, err := newReader(t, l, src).CopyN(&b, l.Size()); err != nil || n != l.Size() {
		t.Fatalf("CopyN = %d, %v, want %d, nil", n, err, l.Size())
	}
	if int64(b.Len()) != l.Size() {
		t.Fatalf("CopyN wrote %d bytes, want %d", b.Len(), l.Size())
	}
	return b.Bytes()
}

// readerAt reads an archive by CopyN, for archive/zip.
type readerAt struct {
	t      testing.TB
	layout *vzip.Layout
	source vzip.Source
}

func (a readerAt) ReadAt(p []byte, off int64) (int, error) {
	r := a.layout.NewReader(a.t.Context(), a.source)
	defer r.Close()
	if _, err := r.Seek(off, io.SeekStart); err != nil {
		return 0, err
	}
	w := bytes.NewBuffer(p[:0])
	n, err := r.CopyN(w, int64(len(p)))
	return int(n), err
}

// zeros is a Source of entries whose bytes are all zero.
type zeros struct{}

func (zeros) Open(_ context.Context, _ int, _, n int64) (io.ReadCloser, error) {
	return &zeroReader{n: n}, nil
}

type zeroReader struct{ n int64 }

func (r *zeroReader) Read(p []byte) (int, error) {
	if r.n == 0 {
		return 0, io.EOF
	}
	n := int(min(r.n, int64(len(p))))
	clear(p[:n])
	r.n -= int64(n)
	return n, nil
}

func (r *zeroReader) Close() error { return nil }

// zeroFile returns an entry of size zero bytes.
func zeroFile(name string, size int64) vzip.Entry {
	return vzip.Entry{Name: name, Size: size, CRC32: zeroCRC(size), Modified: modified}
}

// zeroCRC returns the CRC-32 of n zero bytes, in logarithmic time: a zero bit
// changes the register by a linear map, which is squared for 2, 4, 8 ... bits.
func zeroCRC(n int64) uint32 {
	var step [32]uint32 // the images of the register's bits
	step[0] = crc32.IEEE
	for i := 1; i < 32; i++ {
		step[i] = 1 << (i - 1)
	}
	apply := func(m *[32]uint32, v uint32) uint32 {
		var sum uint32
		for i := 0; v != 0; i, v = i+1, v>>1 {
			if v&1 != 0 {
				sum ^= m[i]
			}
		}
		return sum
	}
	register := ^uint32(0)
	for bits := n * 8; bits > 0; bits >>= 1 {
		if bits&1 != 0 {
			register = apply(&step, register)
		}
		var square [32]uint32
		for i := range square {
			square[i] = apply(&step, step[i])
		}
		step = square
	}
	return ^register
}

func TestZeroCRC(t *testing.T) {
	t.Parallel()
	for _, n := range []int64{0, 1, 2, 3, 1000, 65_537} {
		if got, want := zeroCRC(n), crc32.ChecksumIEEE(make([]byte, n)); got != want {
			t.Errorf("zeroCRC(%d) = %08x, want %08x", n, got, want)
		}
	}
}

package vzip_test

import (
	"bytes"
	"context"
	"io"
	"math/rand/v2"
	"testing"

	"github.com/downlink-go/downlink/server/internal/vzip"
)

const many = 100_000

func BenchmarkNew(b *testing.B) {
	entries := manyEntries(many, 20_000)
	b.ReportAllocs()
	var l *vzip.Layout
	for b.Loop() {
		l = mustNew(b, entries...)
	}
	b.ReportMetric(float64(l.MemoryBytes())/many, "B/entry")
}

// ram is a source of entries that all start with the same bytes.
type ram []byte

func (s ram) Open(_ context.Context, _ int, off, n int64) (io.ReadCloser, error) {
	return io.NopCloser(bytes.NewReader(s[off : off+n])), nil
}

// discard is like the writer of a response: it has a ReadFrom.
type discard struct{ buf []byte }

func (discard) Write(p []byte) (int, error) { return len(p), nil }

func (w discard) ReadFrom(r io.Reader) (int64, error) {
	return io.CopyBuffer(struct{ io.Writer }{io.Discard}, r, w.buf)
}

func BenchmarkCopyN(b *testing.B) {
	for _, bb := range []struct {
		name string
		n    int
		size int64
	}{
		{"small=20000x20KB", 20_000, 20_000},
		{"large=4x64MiB", 4, 64 << 20},
		{"headers=100000x0B", many, 0},
	} {
		b.Run(bb.name, func(b *testing.B) {
			l := mustNew(b, manyEntries(bb.n, bb.size)...)
			src := ram(noise(1, int(bb.size)))
			w := discard{buf: make([]byte, 32<<10)}
			b.SetBytes(l.Size())
			b.ReportAllocs()
			for b.Loop() {
				r := l.NewReader(b.Context(), src)
				if _, err := r.CopyN(w, l.Size()); err != nil {
					b.Fatal(err)
				}
				if err := r.Close(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkRandomRange(b *testing.B) {
	const size, length = 20_000, 1 << 20
	l := mustNew(b, manyEntries(many, size)...)
	src := ram(noise(1, size))
	w := discard{buf: make([]byte, 32<<10)}
	headers := mustNew(b, manyEntries(many, 0)...)
	directory := l.Size() - (headers.Size() - many*(30+int64(len("outputs/scene-000000/band.tif"))))
	for _, bb := range []struct {
		name     string
		from, to int64
	}{
		{"entries", 0, directory - length},
		{"directory", directory, l.Size() - length},
	} {
		b.Run(bb.name, func(b *testing.B) {
			r := l.NewReader(b.Context(), src)
			defer r.Close()
			b.SetBytes(length)
			b.ReportAllocs()
			offsets := make([]int64, 1024)
			random := rand.New(rand.NewPCG(1, 2))
			for i := range offsets {
				offsets[i] = bb.from + random.Int64N(bb.to-bb.from)
			}
			for i := 0; b.Loop(); i++ {
				if _, err := r.Seek(offsets[i%len(offsets)], io.SeekStart); err != nil {
					b.Fatal(err)
				}
				if _, err := r.CopyN(w, length); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

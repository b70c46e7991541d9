package vzip_test

import (
	"archive/zip"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"github.com/downlink-go/downlink/server/internal/vzip"
)

const (
	small = 64<<10 - 1 // the largest content that is gathered
	large = 64 << 10   // the smallest that is not
)

// noise returns n bytes that are the same for the same seed.
func noise(seed uint64, n int) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)}).Read(b) // never fails
	return b
}

func mustReadAll(t testing.TB, f *zip.File) []byte {
	t.Helper()
	rc, err := f.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer rc.Close()
	b, err := io.ReadAll(rc)
	if err != nil {
		t.Fatalf("read %s: %v", f.Name, err)
	}
	return b
}

// recorder notes the lengths of what is written to it.
type recorder struct {
	bytes.Buffer
	writes []int
}

func (w *recorder) Write(p []byte) (int, error) {
	w.writes = append(w.writes, len(p))
	return w.Buffer.Write(p)
}

// ReadFrom is only there to hide that of the buffer.
func (w *recorder) ReadFrom(r io.Reader) (int64, error) {
	return io.Copy(struct{ io.Writer }{w}, r)
}

// archiveOf returns a layout of the contents, named by their index, and a source.
func archiveOf(t testing.TB, contents ...[]byte) (*vzip.Layout, *memory) {
	t.Helper()
	entries := make([]vzip.Entry, len(contents))
	for i, content := range contents {
		entries[i] = file(fmt.Sprintf("outputs/%d", i), content)
	}
	return mustNew(t, entries...), newMemory(t, contents...)
}

func TestCopyNOpensEachRangeOnce(t *testing.T) {
	t.Parallel()
	contents := [][]byte{noise(1, 3*large), noise(2, 10), {}, noise(3, small), noise(4, large), noise(5, 1)}
	l, src := archiveOf(t, contents...)
	want := whole(t, l, src)
	if wantOpenings := []opening{{0, 0, 3 * large}, {1, 0, 10}, {3, 0, small}, {4, 0, large}, {5, 0, 1}}; !slices.Equal(src.openings, wantOpenings) {
		t.Errorf("openings %v, want %v", src.openings, wantOpenings)
	}

	// From within entry 0 to within entry 4.
	from, to := int64(1000), bytes.Index(want, contents[4])+large/2
	src.openings = nil
	r := newReader(t, l, src)
	if _, err := r.Seek(from, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	var got bytes.Buffer
	n, err := r.CopyN(&got, int64(to)-from)
	if err != nil || n != int64(to)-from || !bytes.Equal(got.Bytes(), want[from:to]) {
		t.Fatalf("CopyN = %d, %v; bytes equal: %t", n, err, bytes.Equal(got.Bytes(), want[from:to]))
	}
	skipped := from - int64(30+len("outputs/0"))
	if wantOpenings := []opening{{0, skipped, 3*large - skipped}, {1, 0, 10}, {3, 0, small}, {4, 0, large / 2}}; !slices.Equal(src.openings, wantOpenings) {
		t.Errorf("openings %v, want %v", src.openings, wantOpenings)
	}
	if at, err := r.Seek(0, io.SeekCurrent); err != nil || at != int64(to) {
		t.Errorf("offset %d, %v, want %d", at, err, to)
	}
}

func TestCopyNGathersSmallContent(t *testing.T) {
	t.Parallel()
	const (
		content = 50_000
		trial   = 16 << 20 // how much a client has to take to show how fast it is
	)
	contents := make([][]byte, 1400)
	for i := range contents {
		contents[i] = noise(uint64(i), content)
	}
	for name, client := range map[string]struct {
		rate  func(written int) int  // bytes a second
		large func(written int) bool // whether writes should be of up to 1 MiB
	}{
		"slow": {
			func(int) int { return 200e6 },
			func(int) bool { return false },
		},
		"fast": {
			func(int) int { return 300e6 },
			func(written int) bool { return written > trial },
		},
		"fast at first": {
			func(written int) int { return map[bool]int{true: 10e9, false: 100e6}[written < 10e6] },
			func(int) bool { return false },
		},
		"fast once": {
			func(written int) int { return map[bool]int{true: 10e9, false: 100e6}[written < 20e6] },
			func(written int) bool { return written > trial && written < 2*trial },
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				l, src := archiveOf(t, contents...)
				w := slowRecorder{rate: client.rate}
				if _, err := newReader(t, l, src).CopyN(&w, l.Size()); err != nil {
					t.Fatal(err)
				}
				written := 0
				for i, n := range w.writes[:len(w.writes)-1] {
					buffer := 256 << 10
					if client.large(written) {
						buffer = 1 << 20
					}
					if n > buffer || n < buffer-2*64<<10 {
						t.Errorf("write %d, after %d bytes, is of %d", i, written, n)
					}
					written += n
				}
				if n := len(src.openings); n != len(contents) {
					t.Errorf("%d openings, want %d", n, len(contents))
				}
				if !bytes.Equal(w.Bytes(), whole(t, l, src)) {
					t.Error("the bytes are not the archive's")
				}
			})
		})
	}
}

// slowRecorder takes so many bytes a second.
type slowRecorder struct {
	recorder

	rate func(written int) int
}

func (w *slowRecorder) Write(p []byte) (int, error) {
	time.Sleep(time.Duration(len(p)) * time.Second / time.Duration(w.rate(w.Len())))
	return w.recorder.Write(p)
}

// TestCopyNWritesHeldContentInPieces keeps large held content from going out in
// one write, during which a caller could not extend a deadline.
func TestCopyNWritesHeldContentInPieces(t *testing.T) {
	t.Parallel()
	data := noise(1, 3<<20)
	l := mustNew(t, vzip.Entry{Name: "manifest.json", Data: data})
	var w recorder
	if _, err := newReader(t, l, nil).CopyN(&w, l.Size()); err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(w.Bytes(), data) {
		t.Error("the content is not in the archive")
	}
	if longest := slices.Max(w.writes); longest > 1<<20 {
		t.Errorf("a write of %d bytes", longest)
	}
}

// readFromWriter notes what its ReadFrom is given.
type readFromWriter struct {
	bytes.Buffer
	given []io.Reader
}

func (w *readFromWriter) ReadFrom(r io.Reader) (int64, error) {
	w.given = append(w.given, r)
	return w.Buffer.ReadFrom(r)
}

// TestCopyNHandsOverTheSourcesReader is what sendfile(2) depends on.
func TestCopyNHandsOverTheSourcesReader(t *testing.T) {
	t.Parallel()
	content := noise(1, large)
	path := filepath.Join(t.TempDir(), "content")
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	var opened *os.File
	src := sourceFunc(func(_ context.Context, _ int, off, _ int64) (io.ReadCloser, error) {
		f, err := os.Open(path)
		if err != nil {
			return nil, err
		}
		opened = f
		_, err = f.Seek(off, io.SeekStart)
		return f, err
	})
	l := mustNew(t, file("small", content[:small]), file("large", content))
	var w readFromWriter
	if _, err := newReader(t, l, src).CopyN(&w, l.Size()); err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(w.Bytes(), content) {
		t.Error("the content is not in the archive")
	}
	if len(w.given) != 1 {
		t.Fatalf("ReadFrom was called %d times, want once, for the large entry", len(w.given))
	}
	if limited, ok := w.given[0].(*io.LimitedReader); !ok || limited.R != io.Reader(opened) {
		t.Errorf("ReadFrom got %T, want an *io.LimitedReader of the *os.File", w.given[0])
	}
	if _, err := opened.Read(make([]byte, 1)); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("the file is not closed: %v", err)
	}
}

var errSource = errors.New("source is broken")

// faults are the ways in which a source fails. Each gives the first k bytes.
var faults = []struct {
	name string
	open func(content []byte, k int64) (io.Reader, error)
	want error
}{
	{"open", func([]byte, int64) (io.Reader, error) { return nil, errSource }, errSource},
	{"read", func(c []byte, k int64) (io.Reader, error) {
		return io.MultiReader(bytes.NewReader(c[:k]), iotest.ErrReader(errSource)), nil
	}, errSource},
	{"short", func(c []byte, k int64) (io.Reader, error) { return bytes.NewReader(c[:k]), nil }, io.ErrUnexpectedEOF},
}

func TestCopyNSourceFails(t *testing.T) {
	t.Parallel()
	for _, size := range []int{1, 1000, small, large, 5 * large} {
		for _, fault := range faults {
			t.Run(fmt.Sprintf("%s of %d", fault.name, size), func(t *testing.T) {
				t.Parallel()
				content := noise(1, size)
				l := mustNew(t, vzip.Entry{Name: "held", Data: []byte("held")}, file("outputs/a", content), file("b", content))
				given := int64(0)
				src := sourceFunc(func(_ context.Context, i int, off, _ int64) (io.ReadCloser, error) {
					if i != 1 {
						t.Errorf("entry %d opened", i)
					}
					r, err := fault.open(content[off:], given)
					return io.NopCloser(r), err
				})

				var w recorder
				r := newReader(t, l, src)
				n, err := r.CopyN(&w, l.Size())
				checkSourceError(t, err, fault.want, "outputs/a")
				if n != int64(w.Len()) {
					t.Errorf("CopyN = %d, but wrote %d bytes", n, w.Len())
				}
				// Large content is sent as it comes, so that only its opening
				// can fail before the first write.
				if (size < large || fault.name == "open") && w.Len() > 0 {
					t.Errorf("%d bytes written", w.Len())
				}
				if at, err := r.Seek(0, io.SeekCurrent); err != nil || at != n {
					t.Errorf("offset %d, %v, want %d", at, err, n)
				}

				// The same after half of the content.
				if given = int64(size / 2); given == 0 || fault.name == "open" {
					return
				}
				w = recorder{}
				n, err = newReader(t, l, src).CopyN(&w, l.Size())
				checkSourceError(t, err, fault.want, "outputs/a")
				if n != int64(w.Len()) {
					t.Errorf("CopyN = %d, but wrote %d bytes", n, w.Len())
				}
				if size < large && w.Len() > 0 {
					t.Errorf("%d bytes written", w.Len())
				}
			})
		}
	}
}

func checkSourceError(t *testing.T, err, want error, name string) {
	t.Helper()
	var source *vzip.SourceError
	if !errors.As(err, &source) || source.Name != name || !errors.Is(err, want) {
		t.Errorf("error is %v (%T), want a SourceError of %s with %v", err, err, name, want)
	}
}

// TestCopyNSmallFailsAfterHeaders fails behind content that was already read.
func TestCopyNSmallFailsAfterHeaders(t *testing.T) {
	t.Parallel()
	contents := [][]byte{noise(1, 10), noise(2, 10), noise(3, 10)}
	l, ok := archiveOf(t, contents...)
	src := sourceFunc(func(ctx context.Context, i int, off, n int64) (io.ReadCloser, error) {
		if i == 2 {
			return nil, errSource
		}
		return ok.Open(ctx, i, off, n)
	})
	var w recorder
	n, err := newReader(t, l, src).CopyN(&w, l.Size())
	checkSourceError(t, err, errSource, "outputs/2")
	if n != 0 || len(w.writes) != 0 {
		t.Errorf("%d bytes written", n)
	}
}

// brokenWriter fails after n bytes. With readFrom it reads the source itself.
type brokenWriter struct{ n int }

var errWrite = errors.New("client is gone")

func (w *brokenWriter) Write(p []byte) (int, error) {
	n := min(w.n, len(p))
	w.n -= n
	if n < len(p) {
		return n, errWrite
	}
	return n, nil
}

type brokenReaderFrom struct{ *brokenWriter }

func (w brokenReaderFrom) ReadFrom(r io.Reader) (int64, error) { return io.Copy(w.brokenWriter, r) }

func TestCopyNWriterFails(t *testing.T) {
	t.Parallel()
	l, src := archiveOf(t, noise(1, 10), noise(2, 5*large), noise(3, 10))
	for _, accepted := range []int{0, 10, 100, large, 3 * large, int(l.Size()) - 1} {
		for _, readFrom := range []bool{false, true} {
			var w io.Writer = &brokenWriter{accepted}
			if readFrom {
				w = brokenReaderFrom{&brokenWriter{accepted}}
			}
			r := newReader(t, l, src)
			n, err := r.CopyN(w, l.Size())
			var source *vzip.SourceError
			if n != int64(accepted) || !errors.Is(err, errWrite) || errors.As(err, &source) {
				t.Errorf("CopyN to a writer of %d bytes = %d, %v, want %v alone", accepted, n, err, errWrite)
			}
			if at, err := r.Seek(0, io.SeekCurrent); err != nil || at != n {
				t.Errorf("offset %d, %v, want %d", at, err, n)
			}
		}
	}
}

func TestCopyNShortWrite(t *testing.T) {
	t.Parallel()
	l, src := archiveOf(t, noise(1, 10))
	n, err := newReader(t, l, src).CopyN(iotest.TruncateWriter(io.Discard, 5), l.Size())
	if err != nil || n != l.Size() {
		t.Fatalf("CopyN = %d, %v", n, err)
	}
	n, err = newReader(t, l, src).CopyN(writerFunc(func(p []byte) (int, error) { return len(p) - 1, nil }), l.Size())
	if !errors.Is(err, io.ErrShortWrite) || n != l.Size()-1 {
		t.Errorf("CopyN = %d, %v, want %v", n, err, io.ErrShortWrite)
	}
}

type writerFunc func(p []byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

func TestCopyNBounds(t *testing.T) {
	t.Parallel()
	l, src := archiveOf(t, noise(1, 100))
	want := whole(t, l, src)
	size := int64(len(want))
	for _, tt := range []struct {
		from, n, copied int64
		err             error
	}{
		{0, 0, 0, nil},
		{0, -1, 0, nil},
		{0, size, size, nil},
		{0, size + 1, size, io.EOF},
		{10, 1<<63 - 1, size - 10, io.EOF},
		{size - 1, 1, 1, nil},
		{size, 0, 0, nil},
		{size, 1, 0, io.EOF},
		{size + 5, 1, 0, io.EOF},
	} {
		r := newReader(t, l, src)
		if _, err := r.Seek(tt.from, io.SeekStart); err != nil {
			t.Fatal(err)
		}
		var b bytes.Buffer
		n, err := r.CopyN(&b, tt.n)
		if n != tt.copied || !errors.Is(err, tt.err) || int64(b.Len()) != n {
			t.Errorf("CopyN(%d) at %d = %d, %v, want %d, %v", tt.n, tt.from, n, err, tt.copied, tt.err)
		}
	}
}

func TestCancellation(t *testing.T) {
	t.Parallel()
	contents := [][]byte{noise(1, 10), noise(2, 2*large), noise(3, 10)}
	l, _ := archiveOf(t, contents...)
	for last := range contents {
		for _, mode := range []string{"open", "read", "then"} {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			src := newMemory(t, contents...)
			cancelling := sourceFunc(func(ctx context.Context, i int, off, n int64) (io.ReadCloser, error) {
				rc, _ := src.Open(ctx, i, off, n) // never fails
				if i != last {
					return rc, nil
				}
				cancel()
				switch mode {
				case "open":
					_ = rc.Close() // does nothing but count
					return nil, fmt.Errorf("dial: %w", ctx.Err())
				case "read":
					return struct {
						io.Reader
						io.Closer
					}{iotest.ErrReader(errSource), rc}, nil
				}
				return rc, nil
			})
			r := l.NewReader(ctx, cancelling)
			if n, err := r.CopyN(io.Discard, l.Size()); !errors.Is(err, context.Canceled) || n == l.Size() {
				t.Errorf("CopyN cancelled at entry %d, %s: %d, %v, want %v", last, mode, n, err, context.Canceled)
			}
			if n := len(src.openings); n != last+1 {
				t.Errorf("%d openings, want %d", n, last+1)
			}
			if _, err := r.Seek(0, io.SeekStart); err != nil {
				t.Fatal(err)
			}
			if n, err := r.Read(make([]byte, 10)); n != 0 || !errors.Is(err, context.Canceled) {
				t.Errorf("Read = %d, %v, want %v", n, err, context.Canceled)
			}
			_ = r.Close() // never fails
		}
	}
}

func TestReadKeepsContentOpen(t *testing.T) {
	t.Parallel()
	l, src := archiveOf(t, noise(1, 200_000), noise(2, 100_000))
	want := whole(t, l, src)
	src.openings = nil
	r := newReader(t, l, src)
	const start = 30 + 9 // of the content of entry 0
	seek := func(offset int64, whence int) {
		t.Helper()
		if _, err := r.Seek(offset, whence); err != nil {
			t.Fatal(err)
		}
	}
	var at int64
	read := func(n, open int64) {
		t.Helper()
		p := make([]byte, n)
		if got, err := r.Read(p); int64(got) != n || err != nil {
			t.Fatalf("Read at %d = %d, %v, want %d, nil", at, got, err, n)
		}
		if !bytes.Equal(p, want[at:at+n]) {
			t.Fatalf("Read at %d: wrong bytes", at)
		}
		at += n
		if got := src.open.Load(); got != open {
			t.Fatalf("%d open after reading to %d, want %d", got, at, open)
		}
	}

	read(32<<10, 1)
	read(32<<10, 1)
	seek(0, io.SeekCurrent)
	seek(at, io.SeekStart)
	seek(at-l.Size(), io.SeekEnd)
	read(start+200_000-at, 0) // to the end of the entry
	read(32<<10, 1)
	if want := []opening{{0, 0, 200_000}, {1, 0, 100_000}}; !slices.Equal(src.openings, want) {
		t.Errorf("openings %v, want %v", src.openings, want)
	}

	seek(1000, io.SeekStart)
	if n := src.open.Load(); n != 0 {
		t.Errorf("%d open after Seek", n)
	}
	at = 1000
	read(10, 1)
	if last := src.openings[len(src.openings)-1]; last != (opening{0, 1000 - start, 200_000 - (1000 - start)}) {
		t.Errorf("opened %v", last)
	}
	if _, err := r.CopyN(io.Discard, 10); err != nil {
		t.Fatal(err)
	}
	if n := src.open.Load(); n != 0 {
		t.Errorf("%d open after CopyN", n)
	}
	at += 10
	read(10, 1)
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	if n := src.open.Load(); n != 0 {
		t.Errorf("%d open after Close", n)
	}
}

// TestReadIsEfficient reads all of many small entries with a 32 KiB buffer: each
// is opened once, and reads are full.
func TestReadIsEfficient(t *testing.T) {
	t.Parallel()
	contents := make([][]byte, 100)
	for i := range contents {
		contents[i] = noise(uint64(i), 3000)
	}
	l, src := archiveOf(t, contents...)
	r := newReader(t, l, src)
	p := make([]byte, 32<<10)
	var total int64
	for {
		n, err := r.Read(p)
		total += int64(n)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if n < len(p) && total < l.Size() {
			t.Errorf("Read = %d", n)
		}
	}
	if total != l.Size() || len(src.openings) != 100 {
		t.Errorf("%d bytes and %d openings, want %d and 100", total, len(src.openings), l.Size())
	}
}

func TestReadSourceFails(t *testing.T) {
	t.Parallel()
	content := noise(1, 1000)
	for _, fault := range faults {
		t.Run(fault.name, func(t *testing.T) {
			t.Parallel()
			l := mustNew(t, file("a", content), file("b", content))
			broken := true
			var open atomic.Int64
			src := sourceFunc(func(_ context.Context, _ int, off, _ int64) (io.ReadCloser, error) {
				if !broken {
					open.Add(1)
					return &memoryReader{Reader: bytes.NewReader(content[off:]), open: &open}, nil
				}
				r, err := fault.open(content[off:], 500-off)
				if err != nil {
					return nil, err
				}
				open.Add(1)
				return struct {
					io.Reader
					io.Closer
				}{r, &memoryReader{open: &open}}, nil
			})
			r := newReader(t, l, src)
			got, err := io.ReadAll(r)
			checkSourceError(t, err, fault.want, "a")
			want := 31 + 500
			if fault.name == "open" {
				want = 31
			}
			if len(got) != want || !bytes.Equal(got[31:], content[:want-31]) {
				t.Errorf("%d bytes before the error, want %d", len(got), want)
			}
			if n := open.Load(); n != 0 {
				t.Errorf("%d open after the error", n)
			}
			if n, err := r.Read(make([]byte, 10)); n != 0 || err == nil || errors.Is(err, io.EOF) {
				t.Errorf("Read again = %d, %v, want an error", n, err)
			}

			broken = false // for a moment only
			got, err = io.ReadAll(io.LimitReader(r, int64(31+1000-want)))
			if err != nil || !bytes.Equal(got, content[want-31:]) {
				t.Errorf("%d bytes and %v after the error, want the other %d", len(got), err, 31+1000-want)
			}
		})
	}
}

func TestSeek(t *testing.T) {
	t.Parallel()
	l, src := archiveOf(t, noise(1, 100))
	r := newReader(t, l, src)
	for _, tt := range []struct {
		offset int64
		whence int
		want   int64
		fails  bool
	}{
		{5, io.SeekStart, 5, false},
		{2, io.SeekCurrent, 7, false},
		{-7, io.SeekCurrent, 0, false},
		{-1, io.SeekCurrent, 0, true},
		{-1, io.SeekStart, 0, true},
		{-3, io.SeekEnd, l.Size() - 3, false},
		{-l.Size() - 1, io.SeekEnd, 0, true},
		{9, io.SeekStart, 9, false},
		{1<<63 - 1, io.SeekCurrent, 0, true}, // overflows
		{0, 3, 0, true},
		{0, io.SeekCurrent, 9, false}, // errors move nothing
		{10, io.SeekEnd, l.Size() + 10, false},
	} {
		got, err := r.Seek(tt.offset, tt.whence)
		if got != tt.want || (err != nil) != tt.fails {
			t.Errorf("Seek(%d, %d) = %d, %v, want %d, error %t", tt.offset, tt.whence, got, err, tt.want, tt.fails)
		}
	}
	if n, err := r.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
		t.Errorf("Read beyond the end = %d, %v, want EOF", n, err)
	}
	if n, err := r.Read(nil); n != 0 || err != nil {
		t.Errorf("Read of nothing = %d, %v", n, err)
	}
}

func TestReaderByIotest(t *testing.T) {
	t.Parallel()
	l, src := archiveOf(t, noise(1, 3000), nil, noise(2, 1))
	if err := iotest.TestReader(newReader(t, l, src), whole(t, l, src)); err != nil {
		t.Error(err)
	}
}

func TestClosed(t *testing.T) {
	t.Parallel()
	l, src := archiveOf(t, noise(1, 10))
	r := l.NewReader(t.Context(), src)
	for range 2 {
		if err := r.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	}
	if _, err := r.Read(make([]byte, 1)); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("Read: %v", err)
	}
	if _, err := r.CopyN(io.Discard, 1); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("CopyN: %v", err)
	}
	if _, err := r.Seek(0, io.SeekStart); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("Seek: %v", err)
	}
}

func TestSourceErrorText(t *testing.T) {
	t.Parallel()
	err := &vzip.SourceError{Name: strings.Repeat("n", 1000), Err: errSource}
	if want := `read "` + strings.Repeat("n", 256) + `...": source is broken`; err.Error() != want {
		t.Errorf("Error = %q, want %q", err, want)
	}
}

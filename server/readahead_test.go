package server

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"slices"
	"sync"
	"testing"

	"golang.org/x/sync/semaphore"
	"pgregory.net/rapid"

	"github.com/downlink-go/downlink/server/internal/vzip"
)

// remote is a source that notes what is opened.
type remote struct {
	contents [][]byte
	fail     int // the entry that cannot be opened, if it is one

	mu     sync.Mutex
	opened []vzip.Range
	open   int // now
	most   int // ever
}

var errRemote = errors.New("not to be had")

func (r *remote) Open(_ context.Context, i int, off, n int64) (io.ReadCloser, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.opened = append(r.opened, vzip.Range{Entry: i, Off: off, N: n})
	if i == r.fail {
		return nil, errRemote
	}
	r.open++
	r.most = max(r.most, r.open)
	return &remoteReader{Reader: bytes.NewReader(r.contents[i][off : off+n]), remote: r}, nil
}

type remoteReader struct {
	io.Reader
	remote *remote
}

func (r *remoteReader) Close() error {
	r.remote.mu.Lock()
	defer r.remote.mu.Unlock()
	r.remote.open--
	return nil
}

// TestReadAhead: any range of any archive is the same with and without, each
// asset in it is opened once and no other one, everything is closed again, and
// the memory is given back, however little there is. An asset that cannot be had
// is told when it is its turn.
func TestReadAhead(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		var (
			src     = &remote{fail: -1}
			entries []vzip.Entry
			sizes   = rapid.OneOf(rapid.IntRange(0, 100), rapid.IntRange(0, 100<<10), rapid.SampledFrom([]int{aheadSize, aheadSize + 1, 2 * aheadSize}))
		)
		for i := range rapid.IntRange(0, 60).Draw(t, "entries") {
			content := bytes.Repeat([]byte{byte(i)}, sizes.Draw(t, "size"))
			src.contents = append(src.contents, content)
			entries = append(entries, vzip.Entry{Name: fmt.Sprint(i), Size: int64(len(content)), CRC32: crc32.ChecksumIEEE(content)})
		}
		layout, err := vzip.New(entries)
		if err != nil {
			t.Fatal(err)
		}
		from := rapid.Int64Range(0, layout.Size()-1).Draw(t, "from")
		n := rapid.Int64Range(0, layout.Size()-from).Draw(t, "n")
		read := func(source vzip.Source) ([]byte, error) {
			r := layout.NewReader(t.Context(), source)
			defer r.Close()
			if _, err := r.Seek(from, io.SeekStart); err != nil {
				t.Fatal(err)
			}
			var w bytes.Buffer
			_, err := r.CopyN(&w, n)
			return w.Bytes(), err
		}
		want, err := read(src)
		if err != nil {
			t.Fatal(err)
		}
		ranges := src.opened
		src.opened, src.most = nil, 0
		if len(ranges) > 0 && rapid.Bool().Draw(t, "fails") {
			src.fail = ranges[rapid.IntRange(0, len(ranges)-1).Draw(t, "which")].Entry
		}
		total := rapid.SampledFrom([]int64{0, 1 << 10, 3 * aheadSize / 2, aheadTotal}).Draw(t, "memory")
		memory := semaphore.NewWeighted(total)
		got, err := read(&readAhead{Source: src, memory: memory})

		if e, ok := errors.AsType[*vzip.SourceError](err); src.fail >= 0 {
			if !ok || e.Name != fmt.Sprint(src.fail) || !errors.Is(err, errRemote) || !bytes.HasPrefix(want, got) {
				t.Fatalf("entry %d fails: %d bytes, %v", src.fail, len(got), err)
			}
		} else if err != nil || !bytes.Equal(got, want) {
			t.Fatalf("%d bytes that are not the %d wanted: %v", len(got), len(want), err)
		}
		slices.SortFunc(src.opened, func(a, b vzip.Range) int { return a.Entry - b.Entry })
		if opened := src.opened; len(opened) > len(ranges) || src.fail < 0 && !slices.Equal(opened, ranges) {
			t.Fatalf("opened %v, want %v", opened, ranges)
		}
		if src.open != 0 || src.most > aheadOpens+1 || !memory.TryAcquire(total) {
			t.Fatalf("%d are open, %d were at once, or memory is not given back", src.open, src.most)
		}
	})
}

// TestReadAheadEnds: a download whose client goes ends what was begun ahead.
func TestReadAheadEnds(t *testing.T) {
	t.Parallel()
	src := &endless{began: make(chan struct{}, 2*aheadOpens)}
	var entries []vzip.Entry
	for i := range 2 * aheadOpens {
		entries = append(entries, vzip.Entry{Name: fmt.Sprint(i), Size: 1000})
	}
	layout, err := vzip.New(entries)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	memory := semaphore.NewWeighted(aheadTotal)
	var held aheadHeld
	r := layout.NewReader(ctx, &readAhead{Source: src, memory: memory, held: &held})
	defer r.Close()
	done := make(chan error, 1)
	go func() {
		_, err := r.CopyN(io.Discard, layout.Size())
		done <- err
	}()
	for range aheadOpens {
		<-src.began
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("it ends with %v", err)
	}
	if b, n := held.bytes.Load(), held.assets.Load(); b != 0 || n != 0 {
		t.Errorf("%d bytes and %d assets count as held", b, n)
	}
	if len(src.began) > 0 || !memory.TryAcquire(aheadTotal) {
		t.Errorf("%d more were begun, or memory is not given back", len(src.began))
	}
}

// endless is a source that gives nothing until its context ends.
type endless struct{ began chan struct{} }

func (e *endless) Open(ctx context.Context, _ int, _, _ int64) (io.ReadCloser, error) {
	e.began <- struct{}{}
	<-ctx.Done()
	return nil, ctx.Err()
}

package transfer_test

import (
	"path/filepath"
	"runtime"
	"testing"
	"time"

	fault "github.com/downlink-go/downlink/client/internal/faultserver"
	"github.com/downlink-go/downlink/client/internal/transfer"
)

// TestSlowConnectionLosesItsWork has one connection of four crawl: the others
// take over what it has left.
func TestSlowConnectionLosesItsWork(t *testing.T) {
	t.Parallel()
	s := fault.Start(t, first, afterProbe(fault.Times(1, fault.Slow(4<<10, 20*time.Millisecond))))
	path := filepath.Join(t.TempDir(), "file")
	if err := save(t.Context(), config(s), s, path); err != nil {
		t.Fatal(err)
	}
	isFile(t, path, first)
	requests := s.Requests()
	if len(requests) < 6 {
		t.Errorf("%d requests, want more than one for each connection", len(requests))
	}
	if crawled := requests[1].Sent; crawled > size/8 {
		t.Errorf("the slow connection had to send %d bytes of %d", crawled, size)
	}
}

func TestRedirectToAnotherHost(t *testing.T) {
	t.Parallel()
	other := fault.Start(t, first)
	s := fault.Start(t, second, fault.Redirect(other.URL))
	path := filepath.Join(t.TempDir(), "file")
	if err := save(t.Context(), config(s), s, path); err != nil {
		t.Fatal(err)
	}
	isFile(t, path, first)
	for _, r := range other.Requests() {
		// It has the path of a signed URL in it.
		if referer := r.Header.Get("Referer"); referer != "" {
			t.Errorf("a Referer after a redirect: %s", referer)
		}
	}
}

func TestSmallFiles(t *testing.T) {
	t.Parallel()
	for _, n := range []int{1, transfer.TailSize - 1, transfer.TailSize, transfer.TailSize + 1, 2 << 20} {
		for name, faults := range map[string][]fault.Fault{"ranges": nil, "no ranges": {fault.NoRanges()}} {
			s := fault.Start(t, first[:n], faults...)
			path := filepath.Join(t.TempDir(), "file")
			if err := save(t.Context(), config(s), s, path); err != nil {
				t.Errorf("%d bytes, %s: %v", n, name, err)
				continue
			}
			isFile(t, path, first[:n])
			got, err := stream(t.Context(), config(s), s)
			if err != nil || len(got) != n {
				t.Errorf("%d bytes, %s: a stream of %d, %v", n, name, len(got), err)
			}
		}
	}
}

func TestProgress(t *testing.T) {
	t.Parallel()
	s := fault.Start(t, first)
	r, err := transfer.Open(t.Context(), config(s), location(s))
	if err != nil {
		t.Fatal(err)
	}
	p, err := transfer.OpenPartial(filepath.Join(t.TempDir(), "file"), fault.ID, r.Version())
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	var last transfer.Progress
	err = r.Fetch(t.Context(), p, transfer.FetchOptions{Connections: 2, Observe: func(now transfer.Progress) {
		if now.Done < last.Done {
			t.Errorf("progress went back from %d to %d", last.Done, now.Done)
		}
		last = now
	}})
	if err != nil {
		t.Fatal(err)
	}
	var fetched int64
	for _, n := range last.Connections {
		fetched += n
	}
	if last.Done != size || last.Total != size || len(last.Connections) != 2 || fetched != size-transfer.TailSize {
		t.Errorf("at the end %+v", last)
	}
}

// TestMemory is not parallel: it counts what the process allocates, the server
// included.
func TestMemory(t *testing.T) {
	file := make([]byte, 128<<20)
	s := fault.Start(t, file)
	path := filepath.Join(t.TempDir(), "file")
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	if err := save(t.Context(), config(s), s, path); err != nil {
		t.Fatal(err)
	}
	runtime.ReadMemStats(&after)
	if allocated := after.TotalAlloc - before.TotalAlloc; allocated > 8<<20 {
		t.Errorf("%d bytes allocated for a file of %d", allocated, len(file))
	}
}

func BenchmarkFetch(b *testing.B) {
	file := make([]byte, 256<<20)
	s := fault.Start(b, file)
	b.SetBytes(int64(len(file)))
	b.ReportAllocs()
	for b.Loop() {
		if err := save(b.Context(), config(s), s, filepath.Join(b.TempDir(), "file")); err != nil {
			b.Fatal(err)
		}
	}
}

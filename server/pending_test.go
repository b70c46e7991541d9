package server_test

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/downlink-go/downlink/gen/apitypes"
	"github.com/downlink-go/downlink/server"
)

// sparse makes an asset of a size that takes a while to read and no room.
func (d *deployment) sparse(key string, size int64) {
	d.t.Helper()
	d.Write(map[string]string{key: ""})
	if err := os.Truncate(filepath.Join(d.Bucket, filepath.FromSlash(key)), size); err != nil {
		d.t.Fatal(err)
	}
}

// TestPendingThenReady: a package that takes a while is pending, says how far it
// is, and becomes ready without anybody asking.
func TestPendingThenReady(t *testing.T) {
	t.Parallel()
	d := deploy(t, func(c *server.Config) { c.ReadyWait = -1 })
	d.sparse("W1/J1/inputs/large.tif", 2<<30)
	first := d.put("W1", "J1")
	id := first.download(t).ID
	if got := first.download(t); got.Status != apitypes.DownloadStatusPending || got.SignedURL != "" {
		t.Fatalf("at first %s, want pending without a URL", got.Status)
	}
	for h, want := range map[string]string{"Downlink-Pending-Reason": "checksumming", "Downlink-Progress": "0"} {
		if got := first.Header.Get(h); got != want {
			t.Errorf("%s %q, want %q", h, got, want)
		}
	}
	if seconds, err := strconv.Atoi(first.Header.Get("Retry-After")); err != nil || seconds < 1 || seconds > 60 {
		t.Errorf("Retry-After %q, want some seconds", first.Header.Get("Retry-After"))
	}
	last := 0.0
	eventually(t, "the package is ready", func() bool {
		a := d.put("W1", "J1")
		got := a.download(t)
		if got.ID != id {
			t.Fatalf("the id has changed to %s", got.ID)
		}
		if got.Status == apitypes.DownloadStatusReady {
			return true
		}
		progress, err := strconv.ParseFloat(a.Header.Get("Downlink-Progress"), 64)
		if err != nil || progress < last || progress > 1 {
			t.Errorf("Downlink-Progress %q after %v", a.Header.Get("Downlink-Progress"), last)
		}
		last = progress
		return false
	})
}

// TestWaitingIsWoken: a call that waits is answered when the package is ready,
// not when the time is over.
func TestWaitingIsWoken(t *testing.T) {
	t.Parallel()
	d := deploy(t, func(c *server.Config) { c.ReadyWait = -1 })
	d.sparse("W1/J1/inputs/large.tif", 256<<20)
	start := time.Now()
	a := d.do(http.MethodPut, apiPath("W1", "J1"), http.Header{"Authorization": {d.Key}, "Prefer": {"wait=60"}})
	if got := a.download(t); got.Status != apitypes.DownloadStatusReady {
		t.Errorf("%s after %s, want ready", got.Status, time.Since(start))
	}
	if took := time.Since(start); took > 50*time.Second {
		t.Errorf("it took %s: nobody woke the call", took)
	}
}

// TestManyCallsOnePackage: however many ask at once, one package is made.
func TestManyCallsOnePackage(t *testing.T) {
	t.Parallel()
	d := deploy(t)
	d.Write(smallJob)
	ids := make([]string, 200)
	var wg sync.WaitGroup
	for i := range ids {
		wg.Go(func() { ids[i] = d.put("W1", "J1").download(t).ID })
	}
	wg.Wait()
	for _, id := range ids {
		if id != ids[0] {
			t.Fatalf("ids %s and %s", id, ids[0])
		}
	}
}

// TestRestartWhilePending: the next server goes on where this one stopped.
func TestRestartWhilePending(t *testing.T) {
	t.Parallel()
	d := deploy(t, func(c *server.Config) { c.ReadyWait = -1 })
	for i := range 8 {
		d.sparse(fmt.Sprintf("W1/J1/inputs/%d.tif", i), 512<<20)
	}
	id := d.put("W1", "J1").download(t).ID
	d.Restart()
	d.Restart()
	path := ""
	eventually(t, "the package is ready", func() bool {
		got := d.put("W1", "J1").download(t)
		if got.ID != id {
			t.Fatalf("the id has changed to %s", got.ID)
		}
		path = got.SignedURL
		return got.Status == apitypes.DownloadStatusReady
	})
	if path == "" {
		t.Error("no URL")
	}
}

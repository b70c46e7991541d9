package client

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"strings"
	"testing"

	"github.com/downlink-go/downlink/client/internal/faultserver"
)

func testClient(t testing.TB, s *faultserver.Server) *Client {
	t.Helper()
	c, err := New(s.APIURL(), WithAPIKey("key"), WithHTTPClient(s.Client()))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// dataRequests returns how many requests the data host got.
func dataRequests(s *faultserver.Server) (n int) {
	for _, r := range s.Requests() {
		if !r.API {
			n++
		}
	}
	return n
}

func TestOpenOverHTTP(t *testing.T) {
	t.Parallel()
	s := faultserver.Start(t, storedZip(t, withManifest(t, nil, tree()...)...))
	p, err := testClient(t, s).Open(t.Context(), "W1", "J1")
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if n := dataRequests(s); n != 1 {
		t.Errorf("%d requests, want 1", n)
	}
	for _, f := range tree() {
		got, err := fs.ReadFile(p, f.name)
		if err != nil || !bytes.Equal(got, f.data) {
			t.Errorf("%s: %v", f.name, err)
		}
	}
	if p.ID() != faultserver.ID {
		t.Errorf("got the ID %s", p.ID())
	}
}

func TestReadsGoOnAfterFaults(t *testing.T) {
	t.Parallel()
	content := strings.Repeat("0123456789", 100_000)
	data := storedZip(t, text("a", content), text("b", strings.Repeat("x", 100<<10)))
	s := faultserver.Start(t, data, faultserver.Truncate(200_000))
	c := testClient(t, s)
	p, err := c.Open(t.Context(), "W1", "J1")
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	got, err := p.ReadFile("a")
	if err != nil || string(got) != content {
		t.Errorf("got %d bytes, %v", len(got), err)
	}
	dir := t.TempDir()
	if _, err := c.Extract(t.Context(), "W1", "J1", dir); err != nil {
		t.Fatal(err)
	}
	wantFiles(t, dir, text("a", content), text("b", strings.Repeat("x", 100<<10)))
}

func TestOpenNeedsRanges(t *testing.T) {
	t.Parallel()
	s := faultserver.Start(t, storedZip(t, tree()...), faultserver.NoLength(), faultserver.NoRanges())
	_, err := testClient(t, s).Open(t.Context(), "W1", "J1")
	if err == nil || strings.Contains(err.Error(), faultserver.Secret) {
		t.Errorf("got %v, want an error without the URL", err)
	}
}

// A package that is replaced in the middle is never mixed with the new one.
func TestExtractStartsOverWhenThePackageChanges(t *testing.T) {
	t.Parallel()
	padding := strings.Repeat("x", 4*partBytes)
	before := storedZip(t, text("large", padding+"before"), text("small", "before"))
	after := storedZip(t, text("large", padding+"after"), text("small", "after"))
	s := faultserver.Start(t, before)
	s.OnSent(partBytes, func() { s.Replace(after) })
	dir := t.TempDir()
	if _, err := testClient(t, s).Extract(t.Context(), "W1", "J1", dir, WithConnections(1)); err != nil {
		t.Fatal(err)
	}
	got := filesIn(t, dir)
	if got["small"] != "after" || !strings.HasSuffix(got["large"], "xafter") || len(got) != 2 {
		t.Errorf("small is %q, of %d files", got["small"], len(got))
	}
}

// What has arrived, in a buffer or with the directory, must not be read on.
func TestOpenFileEndsWithTheContext(t *testing.T) {
	t.Parallel()
	for name, size := range map[string]int{"large": 8 << 20, "within the end of the package": 10} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := faultserver.Start(t, storedZip(t, text("a", strings.Repeat("x", size))))
			ctx, cancel := context.WithCancel(t.Context())
			p, err := testClient(t, s).Open(ctx, "W1", "J1")
			if err != nil {
				t.Fatal(err)
			}
			defer p.Close()
			f, err := p.Open("a")
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if _, err := f.Read(make([]byte, 1)); err != nil {
				t.Fatal(err)
			}
			cancel()
			if n, err := io.Copy(io.Discard, f); n > 0 || !errors.Is(err, context.Canceled) {
				t.Errorf("read %d bytes, %v, want %v", n, err, context.Canceled)
			}
			if n, err := f.(io.ReaderAt).ReadAt(make([]byte, 1), 0); n > 0 || !errors.Is(err, context.Canceled) {
				t.Errorf("read %d bytes at the start, %v, want %v", n, err, context.Canceled)
			}
		})
	}
}

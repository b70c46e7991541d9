package server_test

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/downlink-go/downlink/server"
)

// BenchmarkServe downloads whole packages over loopback. The large one shows
// whether files still go out by sendfile(2): copied through a buffer they take
// twice the CPU time.
func BenchmarkServe(b *testing.B) {
	for _, bm := range []struct {
		name    string
		entries int
		size    int64
	}{
		{"4x64MiB", 4, 64 << 20},
		{"5000x20KiB", 5000, 20 << 10},
	} {
		b.Run(bm.name, func(b *testing.B) {
			d := deploy(b, func(c *server.Config) { c.Log = nil })
			dir := filepath.Join(d.Bucket, "W1", "J1", "outputs")
			if err := os.MkdirAll(dir, 0o755); err != nil {
				b.Fatal(err)
			}
			content := strings.Repeat("0123456789abcdef", int(bm.size/16))
			for i := range bm.entries {
				if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("%05d.tif", i)), []byte(content), 0o644); err != nil {
					b.Fatal(err)
				}
			}
			path, _ := d.ready("W1", "J1")
			client := &http.Client{Transport: &http.Transport{}}
			defer client.CloseIdleConnections()
			b.SetBytes(int64(bm.entries) * bm.size)
			for b.Loop() {
				r, err := http.NewRequestWithContext(b.Context(), http.MethodGet, d.URL+path, nil)
				if err != nil {
					b.Fatal(err)
				}
				response, err := client.Do(r)
				if err != nil {
					b.Fatal(redacted(err))
				}
				if n, err := io.Copy(io.Discard, response.Body); err != nil || n != response.ContentLength {
					b.Fatalf("%d bytes: %v", n, err)
				}
				response.Body.Close()
			}
		})
	}
}

// BenchmarkPut calls the API for a package that is ready.
func BenchmarkPut(b *testing.B) {
	d := deploy(b, func(c *server.Config) { c.Log = nil })
	d.Write(smallJob)
	d.ready("W1", "J1")
	client := &http.Client{Transport: &http.Transport{}}
	defer client.CloseIdleConnections()
	for b.Loop() {
		r, err := http.NewRequestWithContext(b.Context(), http.MethodPut, d.URL+apiPath("W1", "J1"), nil)
		if err != nil {
			b.Fatal(err)
		}
		r.Header.Set("Authorization", d.Key)
		response, err := client.Do(r)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, response.Body); err != nil || response.StatusCode != http.StatusOK {
			b.Fatalf("status %d: %v", response.StatusCode, err)
		}
		response.Body.Close()
	}
}

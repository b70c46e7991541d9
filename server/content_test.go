package server_test

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/downlink-go/downlink/server"
)

// mixedJob has small and large assets, an empty one, and one of the size at
// which content is sent by itself.
func mixedJob(t testing.TB) map[string]string {
	t.Helper()
	random := func(n int) string {
		b := make([]byte, n)
		_, _ = rand.Read(b)
		return string(b)
	}
	return map[string]string{
		"W1/J1/inputs/scene.tif":        random(3<<20 + 17),
		"W1/J1/inputs/small.json":       random(100),
		"W1/J1/outputs/a/edge.bin":      random(64 << 10),
		"W1/J1/outputs/a/less.bin":      random(64<<10 - 1),
		"W1/J1/outputs/empty.log":       "",
		"W1/J1/outputs/Übersicht.txt":   random(1000),
		"W1/J1/outputs/z/large.tif":     random(2 << 20),
		"W1/J1/outputs/z/tail/last.txt": random(10),
	}
}

func TestPackageHoldsTheAssets(t *testing.T) {
	t.Parallel()
	d := deploy(t)
	job := mixedJob(t)
	d.Write(job)
	path, _ := d.ready("W1", "J1")
	a := d.get(path)
	if a.StatusCode != http.StatusOK || int64(len(a.body)) != a.ContentLength {
		t.Fatalf("status %d, %d bytes of %d", a.StatusCode, len(a.body), a.ContentLength)
	}
	for _, f := range openZIP(t, a.body).File {
		r, err := f.Open()
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(r) // checks the CRC-32
		if err != nil {
			t.Errorf("%s: %v", f.Name, err)
		}
		if f.Name == "manifest.json" {
			continue
		}
		want, ok := job["W1/J1/"+f.Name]
		if !ok || string(content) != want {
			t.Errorf("%s: not the asset's content", f.Name)
		}
		delete(job, "W1/J1/"+f.Name)
	}
	if len(job) > 0 {
		t.Errorf("left out: %d assets", len(job))
	}
}

func TestContentHeaders(t *testing.T) {
	t.Parallel()
	d := deploy(t)
	d.Write(mixedJob(t))
	path, _ := d.ready("W1", "J1")
	get := d.get(path)
	head := d.do(http.MethodHead, path, nil)
	again, _ := d.ready("W1", "J1")
	for name, a := range map[string]answer{"GET": get, "HEAD": head, "GET of another URL": d.get(again)} {
		if a.StatusCode != http.StatusOK {
			t.Errorf("%s: status %d", name, a.StatusCode)
		}
		for _, h := range []string{"Content-Length", "ETag", "Last-Modified", "Content-Type", "Content-Disposition", "Accept-Ranges"} {
			if got, want := a.Header.Get(h), get.Header.Get(h); got != want || got == "" {
				t.Errorf("%s: %s %q, want %q", name, h, got, want)
			}
		}
	}
	if len(head.body) != 0 {
		t.Errorf("HEAD has a body of %d bytes", len(head.body))
	}
	if etag := get.Header.Get("ETag"); len(etag) != 66 || etag[0] != '"' {
		t.Errorf("ETag %s, want a strong one of 64 digits", etag)
	}
	_, params, err := mime.ParseMediaType(get.Header.Get("Content-Disposition"))
	if err != nil || params["filename"] != "W1_J1.zip" {
		t.Errorf("Content-Disposition %q, want W1_J1.zip", get.Header.Get("Content-Disposition"))
	}
	if get.Header.Get("Content-Type") != "application/zip" || get.Header.Get("Accept-Ranges") != "bytes" {
		t.Errorf("Content-Type %q, Accept-Ranges %q", get.Header.Get("Content-Type"), get.Header.Get("Accept-Ranges"))
	}
}

func TestRanges(t *testing.T) {
	t.Parallel()
	d := deploy(t)
	d.Write(mixedJob(t))
	path, _ := d.ready("W1", "J1")
	whole := d.get(path)
	size := len(whole.body)
	etag := whole.Header.Get("ETag")

	for _, tt := range []struct {
		header     string
		start, end int // of the part, or 0, 0 for all of it
	}{
		{"bytes=0-0", 0, 1},
		{"bytes=0-99", 0, 100},
		{"bytes=100-", 100, size},
		{"bytes=-1", size - 1, size},
		{"bytes=-5000", size - 5000, size},
		{fmt.Sprintf("bytes=%d-", size-1), size - 1, size},
		{fmt.Sprintf("bytes=1000-%d", size+1000), 1000, size},
		{fmt.Sprintf("bytes=1000-%d", size/2), 1000, size/2 + 1},
		{"bytes=1-2000000", 1, 2000001},
		{fmt.Sprintf("bytes=-%d", size+1), 0, size},
		// What is not understood is ignored (RFC 9110, section 14.2).
		{"chunks=0-1", 0, 0},
	} {
		a := d.get(path, "Range", tt.header)
		want, status := whole.body[tt.start:tt.end], http.StatusPartialContent
		if tt.end == 0 {
			want, status = whole.body, http.StatusRequestedRangeNotSatisfiable
		}
		if a.StatusCode != status {
			t.Errorf("%s: status %d, want %d", tt.header, a.StatusCode, status)
			continue
		}
		if status == http.StatusPartialContent {
			if !bytes.Equal(a.body, want) {
				t.Errorf("%s: not those bytes", tt.header)
			}
			if got, want := a.Header.Get("Content-Range"), fmt.Sprintf("bytes %d-%d/%d", tt.start, tt.end-1, size); got != want {
				t.Errorf("%s: Content-Range %q, want %q", tt.header, got, want)
			}
		}
	}
	for _, header := range []string{fmt.Sprintf("bytes=%d-", size), "bytes=5-4", "bytes=a-b", "bytes=-0"} {
		a := d.get(path, "Range", header)
		if a.StatusCode == http.StatusPartialContent && len(a.body) == 0 {
			continue // bytes=-0: net/http answers with an empty part
		}
		a.wantError(t, 416, "range_not_satisfiable")
	}
	if a := d.get(path, "Range", fmt.Sprintf("bytes=%d-", size)); a.Header.Get("Content-Range") != fmt.Sprintf("bytes */%d", size) {
		t.Errorf("416 with Content-Range %q", a.Header.Get("Content-Range"))
	}

	// If-Range (RFC 9110, section 13.1.5) and conditions.
	if a := d.get(path, "Range", "bytes=5-9", "If-Range", etag); a.StatusCode != 206 || !bytes.Equal(a.body, whole.body[5:10]) {
		t.Errorf("If-Range with the entity tag: status %d, %d bytes", a.StatusCode, len(a.body))
	}
	for _, other := range []string{`"other"`, "W/" + etag, "Mon, 02 Jan 2006 15:04:05 GMT"} {
		if a := d.get(path, "Range", "bytes=5-9", "If-Range", other); a.StatusCode != 200 || !bytes.Equal(a.body, whole.body) {
			t.Errorf("If-Range %s: status %d, %d bytes, want all of it", other, a.StatusCode, len(a.body))
		}
	}
	if a := d.get(path, "If-None-Match", etag); a.StatusCode != 304 || len(a.body) != 0 {
		t.Errorf("If-None-Match: status %d, %d bytes", a.StatusCode, len(a.body))
	}
	d.get(path, "If-Match", `"other"`).wantError(t, 412, "precondition_failed")

	// Several ranges.
	a := d.get(path, "Range", "bytes=0-9,70000-3200000,-10")
	_, params, err := mime.ParseMediaType(a.Header.Get("Content-Type"))
	if err != nil || a.StatusCode != 206 {
		t.Fatalf("several ranges: status %d, %v", a.StatusCode, err)
	}
	parts := multipart.NewReader(bytes.NewReader(a.body), params["boundary"])
	for _, want := range [][]byte{whole.body[:10], whole.body[70000:3200001], whole.body[size-10:]} {
		part, err := parts.NextPart()
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(part); err != nil || !bytes.Equal(got, want) {
			t.Errorf("part %s: %d bytes, %v", part.Header.Get("Content-Range"), len(got), err)
		}
	}

	// As many as there may be, and more, which are refused before anything is read.
	many := func(n int) answer {
		return d.get(path, "Range", "bytes="+strings.Repeat("5-5,", n-1)+"5-5")
	}
	if a := many(100); a.StatusCode != http.StatusPartialContent || bytes.Count(a.body, []byte("Content-Range: bytes 5-5/")) != 100 {
		t.Errorf("100 ranges: status %d, %d bytes", a.StatusCode, len(a.body))
	}
	for _, n := range []int{101, 3500} {
		a := many(n)
		a.wantError(t, 416, "range_not_satisfiable")
		if got, want := a.Header.Get("Content-Range"), fmt.Sprintf("bytes */%d", size); got != want {
			t.Errorf("%d ranges: Content-Range %q, want %q", n, got, want)
		}
	}
}

func TestSignedURLErrors(t *testing.T) {
	t.Parallel()
	d := deploy(t)
	d.Write(smallJob)
	d.Write(map[string]string{"W1/J2/inputs/a": "x"})
	path, _ := d.ready("W1", "J1")
	other, _ := d.ready("W1", "J2")
	token, otherToken := strings.Split(path, "/")[2], strings.Split(other, "/")[2]
	foreign := deploy(t)
	foreign.Write(smallJob)
	foreignPath, _ := foreign.ready("W1", "J1")

	for name, path := range map[string]string{
		"truncated":            "/packages/" + token[:len(token)-1] + "/W1_J1.zip",
		"changed":              "/packages/B" + token[1:] + "/W1_J1.zip",
		"of another package":   "/packages/" + otherToken + "/W1_J1.zip",
		"another name":         "/packages/" + token + "/W1_J2.zip",
		"of another server":    foreignPath,
		"nonsense":             "/packages/%F0%9F%98%80/W1_J1.zip",
		"encoded line feed":    "/packages/" + token + "%0A/W1_J1.zip",
		"empty":                "/packages//W1_J1.zip",
		"very long":            "/packages/" + strings.Repeat("A", 8000) + "/W1_J1.zip",
		"encoded slash inside": "/packages/" + token + "/x%2FW1_J1.zip",
	} {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, d.URL, nil)
		if err != nil {
			t.Fatal(err)
		}
		a := d.send(r, path, nil)
		a.wantError(t, 403, "signed_url_invalid")
		if t.Failed() {
			t.Fatalf("%s", name)
		}
		r, err = http.NewRequestWithContext(t.Context(), http.MethodHead, d.URL, nil)
		if err != nil {
			t.Fatal(err)
		}
		if a := d.send(r, path, nil); a.StatusCode != 403 || len(a.body) != 0 {
			t.Errorf("%s: HEAD answers %d", name, a.StatusCode)
		}
	}
}

func TestSignedURLExpires(t *testing.T) {
	t.Parallel()
	d := deploy(t, func(c *server.Config) { c.LinkLifetime = time.Second })
	d.Write(smallJob)
	path, _ := d.ready("W1", "J1")
	eventually(t, "the URL has expired", func() bool { return d.get(path).StatusCode != 200 })
	d.get(path).wantError(t, 410, "signed_url_expired")
	fresh, _ := d.ready("W1", "J1")
	if a := d.get(fresh); a.StatusCode != 200 {
		t.Errorf("a fresh URL: status %d", a.StatusCode)
	}
}

func TestSignedURLSurvivesRestartAndRotation(t *testing.T) {
	t.Parallel()
	d := deploy(t)
	d.Write(smallJob)
	path, _ := d.ready("W1", "J1")
	want := d.get(path)
	d.Restart()
	if a := d.get(path); a.StatusCode != 200 || !bytes.Equal(a.body, want.body) {
		t.Fatalf("after a restart: status %d", a.StatusCode)
	}
	if _, err := server.RotateSigningKey(d.Config.DataDir); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the running server signs with the new key", func() bool {
		fresh, _ := d.ready("W1", "J1")
		return fresh[:20] != path[:20] // up to the key's id
	})
	if a := d.get(path); a.StatusCode != 200 {
		t.Errorf("a URL of the old key: status %d", a.StatusCode)
	}
	info, err := os.Stat(filepath.Join(d.Config.DataDir, "signing-keys"))
	if err != nil {
		t.Fatal(err)
	}
	if runtime.GOOS != "windows" && info.Mode().Perm() != 0o600 {
		t.Errorf("the signing keys have mode %v, want 0600", info.Mode().Perm())
	}
}

// TestAssetChanges: a package whose asset is not what it was is never served,
// and the next call makes another.
func TestAssetChanges(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(path string) error{
		"rewritten": func(path string) error { return os.WriteFile(path, []byte("ALPHA"), 0o644) },
		"grown":     func(path string) error { return os.WriteFile(path, []byte("alphabet"), 0o644) },
		"touched":   func(path string) error { return os.Chtimes(path, time.Time{}, time.Now().Add(time.Hour)) },
		"removed":   os.Remove,
		"a folder":  func(path string) error { return errors.Join(os.Remove(path), os.Mkdir(path, 0o755)) },
		"a link":    func(path string) error { return errors.Join(os.Remove(path), os.Symlink("/etc/passwd", path)) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := deploy(t)
			d.Write(smallJob)
			path, before := d.ready("W1", "J1")
			if err := change(filepath.Join(d.Bucket, "W1/J1/inputs/a.txt")); err != nil {
				t.Fatal(err)
			}
			a := d.get(path)
			a.wantError(t, 410, "package_outdated")
			for _, h := range []string{"ETag", "Content-Range", "Content-Disposition", "Last-Modified"} {
				if a.Header.Get(h) != "" {
					t.Errorf("the error has %s", h)
				}
			}
			// The part without that asset is still what it was.
			if a := d.get(path, "Range", "bytes=0-9"); a.StatusCode != 206 {
				t.Errorf("a range of the manifest: status %d", a.StatusCode)
			}
			if name == "a link" {
				d.put("W1", "J1").wantError(t, 400, "asset_missing")
				return
			}
			if _, after := d.ready("W1", "J1"); after.ID == before.ID {
				t.Error("the next call gives the same package")
			}
		})
	}
}

// TestAssetChangesMidway: the connection is cut, so that nobody takes what came
// for a whole package.
func TestAssetChangesMidway(t *testing.T) {
	t.Parallel()
	d := deploy(t)
	// The change must come while the first asset is on its way: that one is
	// larger than what the sockets hold.
	first := filepath.Join(d.Bucket, "W1/J1/inputs/a.bin")
	d.Write(map[string]string{"W1/J1/inputs/a.bin": "", "W1/J1/outputs/b.bin": strings.Repeat("b", 1<<20)})
	if err := os.Truncate(first, 64<<20); err != nil {
		t.Fatal(err)
	}
	path, _ := d.ready("W1", "J1")
	for name, change := range map[string]func() error{
		"the asset on its way is cut":     func() error { return os.Truncate(first, 32<<20) },
		"the asset on its way is written": func() error { return os.Chtimes(first, time.Time{}, time.Now().Add(time.Minute)) },
		"an asset that follows is written": func() error {
			return os.Chtimes(filepath.Join(d.Bucket, "W1/J1/outputs/b.bin"), time.Time{}, time.Now())
		},
	} {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, d.URL+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		response, err := d.Client.Do(r)
		if err != nil {
			t.Fatal(redacted(err))
		}
		if _, err := io.CopyN(io.Discard, response.Body, 1<<20); err != nil {
			t.Fatal(err)
		}
		if err := change(); err != nil {
			t.Fatal(err)
		}
		n, err := io.Copy(io.Discard, response.Body)
		response.Body.Close()
		if err == nil {
			t.Errorf("%s: %d bytes of %d came as if all were well", name, n+1<<20, response.ContentLength)
		}
		path, _ = d.ready("W1", "J1")
	}
}

// TestStalledClient: a client that takes nothing loses its connection, and what
// it held is released.
func TestStalledClient(t *testing.T) {
	t.Parallel()
	d := deploy(t, func(c *server.Config) { c.StallTimeout = 200 * time.Millisecond })
	d.Write(map[string]string{"W1/J1/inputs/a.bin": ""})
	if err := os.Truncate(filepath.Join(d.Bucket, "W1/J1/inputs/a.bin"), 256<<20); err != nil {
		t.Fatal(err)
	}
	path, _ := d.ready("W1", "J1")
	conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", strings.TrimPrefix(d.URL, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: x\r\n\r\n", path); err != nil {
		t.Fatal(err)
	}
	// The server gives up by itself: it would not stop before the timeout of the
	// shutdown otherwise, and the access log has the request.
	eventually(t, "the download has ended", func() bool {
		return strings.Count(d.Log.String(), "route=/packages/") == 1
	})
	if err := conn.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	n, _ := io.Copy(io.Discard, conn)
	if n >= 256<<20 {
		t.Errorf("%d bytes came", n)
	}
}

// TestKeepAliveAfterDownload: the write deadline of a download does not outlive
// it on the connection.
func TestKeepAliveAfterDownload(t *testing.T) {
	t.Parallel()
	d := deploy(t, func(c *server.Config) { c.StallTimeout = 50 * time.Millisecond })
	d.Write(smallJob)
	path, _ := d.ready("W1", "J1")
	conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", strings.TrimPrefix(d.URL, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	reader := bufio.NewReader(conn)
	start := time.Now()
	for i := range 3 {
		eventually(t, "the stall timeout is over", func() bool { return time.Since(start) > time.Duration(i)*100*time.Millisecond })
		if _, err := fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: x\r\n\r\n", path); err != nil {
			t.Fatal(err)
		}
		response, err := http.ReadResponse(reader, nil)
		if err != nil {
			t.Fatalf("request %d on the connection: %v", i+1, err)
		}
		if _, err := io.Copy(io.Discard, response.Body); err != nil {
			t.Fatal(err)
		}
		response.Body.Close()
	}
}

// TestGracefulStop: a running download ends well, and nothing new begins.
func TestGracefulStop(t *testing.T) {
	t.Parallel()
	d := deploy(t)
	d.Write(map[string]string{"W1/J1/inputs/a.bin": ""})
	if err := os.Truncate(filepath.Join(d.Bucket, "W1/J1/inputs/a.bin"), 64<<20); err != nil {
		t.Fatal(err)
	}
	path, _ := d.ready("W1", "J1")
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, d.URL+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	response, err := d.Client.Do(r)
	if err != nil {
		t.Fatal(redacted(err))
	}
	defer response.Body.Close()
	d.stop()
	eventually(t, "the server does not accept any more", func() bool {
		conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", strings.TrimPrefix(d.URL, "http://"))
		if err == nil {
			conn.Close()
		}
		return err != nil
	})
	if n, err := io.Copy(io.Discard, response.Body); err != nil || n != response.ContentLength {
		t.Errorf("the running download got %d of %d bytes: %v", n, response.ContentLength, err)
	}
	if err := d.Stop(); err != nil {
		t.Errorf("stop: %v", err)
	}
}

// TestStopCutsWhatTakesTooLong.
func TestStopCutsWhatTakesTooLong(t *testing.T) {
	t.Parallel()
	d := deploy(t, func(c *server.Config) { c.ShutdownTimeout = 100 * time.Millisecond })
	d.Write(map[string]string{"W1/J1/inputs/a.bin": ""})
	if err := os.Truncate(filepath.Join(d.Bucket, "W1/J1/inputs/a.bin"), 256<<20); err != nil {
		t.Fatal(err)
	}
	path, _ := d.ready("W1", "J1")
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, d.URL+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	response, err := d.Client.Do(r)
	if err != nil {
		t.Fatal(redacted(err))
	}
	defer response.Body.Close()
	if err := d.Stop(); err != nil {
		t.Errorf("stop: %v", err)
	}
	if _, err := io.Copy(io.Discard, response.Body); err == nil {
		t.Error("a download that was cut ended as if all were well")
	}
}

package server_test

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/downlink-go/downlink/client"
	"github.com/downlink-go/downlink/server"
)

// newClient returns the real client for the deployment, whose API calls are
// checked against the contract.
func (d *deployment) newClient(key string) *client.Client {
	d.t.Helper()
	c, err := client.New(d.URL, client.WithAPIKey(key), client.WithHTTPClient(d.Client))
	if err != nil {
		d.t.Fatal(err)
	}
	return c
}

// wantFiles checks that the folder has the job's assets.
func wantFiles(t *testing.T, dir string, job map[string]string) {
	t.Helper()
	for key, want := range job {
		name := strings.TrimPrefix(key, "W1/J1/")
		got, err := os.ReadFile(filepath.Join(dir, filepath.FromSlash(name)))
		if err != nil || string(got) != want {
			t.Errorf("%s: %d bytes, %v, want %d", name, len(got), err, len(want))
		}
	}
}

func TestClientSaves(t *testing.T) {
	t.Parallel()
	d := deploy(t)
	job := mixedJob(t)
	d.Write(job)
	c := d.newClient(d.Key)
	path := filepath.Join(t.TempDir(), "job.zip")
	r, err := c.Save(t.Context(), "W1", "J1", path)
	if err != nil || !r.Verified || r.Kept {
		t.Fatalf("save: %+v, %v", r, err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	served, _ := d.ready("W1", "J1")
	if !bytes.Equal(data, d.get(served).body) {
		t.Error("the file is not what the server serves")
	}
	if left, _ := filepath.Glob(path + ".*"); len(left) > 0 {
		t.Errorf("left beside it: %v", left)
	}
	if r, err = c.Save(t.Context(), "W1", "J1", path); err != nil || !r.Kept {
		t.Errorf("a second time: %+v, %v, want it kept", r, err)
	}

	// Another version of the job is another package.
	d.Write(map[string]string{"W1/J1/inputs/small.json": "changed"})
	if _, err := c.Save(t.Context(), "W1", "J1", path); !errors.Is(err, fs.ErrExist) {
		t.Errorf("over another version: %v, want a refusal", err)
	}
	if r, err := c.Save(t.Context(), "W1", "J1", path, client.WithOverwrite()); err != nil || r.Kept {
		t.Errorf("over another version on purpose: %+v, %v", r, err)
	}
	if r, err := client.VerifyFile(t.Context(), path); err != nil || r.Files != len(job)+1 {
		t.Errorf("verify: %+v, %v", r, err)
	}
}

func TestClientExtracts(t *testing.T) {
	t.Parallel()
	d := deploy(t)
	job := mixedJob(t)
	d.Write(job)
	c := d.newClient(d.Key)
	dir := t.TempDir()
	r, err := c.Extract(t.Context(), "W1", "J1", dir)
	if err != nil || r.Written != len(job)+1 {
		t.Fatalf("extract: %+v, %v", r, err)
	}
	wantFiles(t, dir, job)
	info, err := os.Stat(filepath.Join(dir, "inputs", "scene.tif"))
	if err != nil {
		t.Fatal(err)
	}
	original, err := os.Stat(filepath.Join(d.Bucket, "W1", "J1", "inputs", "scene.tif"))
	if err != nil {
		t.Fatal(err)
	}
	if got, want := info.ModTime(), original.ModTime(); got.Sub(want).Abs() > 2*time.Second {
		t.Errorf("modified %s, want %s", got, want)
	}

	// What was damaged or lost is fetched again, and nothing else.
	if err := os.Remove(filepath.Join(dir, "inputs", "small.json")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "outputs", "a", "less.bin"), []byte("damaged"), 0o644); err != nil {
		t.Fatal(err)
	}
	if r, err = c.Extract(t.Context(), "W1", "J1", dir); err != nil || r.Written != 2 || r.Kept != len(job)-1 {
		t.Errorf("again: %+v, %v, want 2 written", r, err)
	}
	wantFiles(t, dir, job)
	if _, err := client.VerifyDir(t.Context(), dir); err != nil {
		t.Errorf("verify: %v", err)
	}
}

func TestClientReadsInPlace(t *testing.T) {
	t.Parallel()
	d := deploy(t)
	job := mixedJob(t)
	d.Write(job)
	c := d.newClient(d.Key)
	p, err := c.Open(t.Context(), "W1", "J1")
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	for key, want := range job {
		name := strings.TrimPrefix(key, "W1/J1/")
		if got, err := fs.ReadFile(p, name); err != nil || string(got) != want {
			t.Errorf("%s: %d bytes, %v", name, len(got), err)
		}
	}

	// The test of io/fs reads each byte by a request of its own.
	d.Write(map[string]string{"W1/J2/inputs/a.txt": "alpha", "W1/J2/outputs/deep/b.txt": "beta"})
	small, err := c.Open(t.Context(), "W1", "J2")
	if err != nil {
		t.Fatal(err)
	}
	defer small.Close()
	if err := fstest.TestFS(small, "manifest.json", "inputs/a.txt", "outputs/deep/b.txt"); err != nil {
		t.Error(err)
	}
}

// TestClientWaits: for a package that has to be read first.
func TestClientWaits(t *testing.T) {
	t.Parallel()
	d := deploy(t, func(c *server.Config) { c.ReadyWait = -1 })
	d.sparse("W1/J1/inputs/large.tif", 512<<20)
	got, err := d.newClient(d.Key).WaitUntilReady(t.Context(), "W1", "J1")
	if err != nil || !got.Ready() || got.Size < 512<<20 || got.Expires.Before(time.Now()) {
		t.Errorf("got %+v, %v", got, err)
	}
}

// TestClientRenews: URLs that live shorter than the download takes are renewed.
func TestClientRenews(t *testing.T) {
	t.Parallel()
	d := deploy(t, func(c *server.Config) { c.LinkLifetime = time.Second })
	job := mixedJob(t)
	d.Write(job)
	c := d.newClient(d.Key)
	p, err := c.Open(t.Context(), "W1", "J1")
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	opened := time.Now()
	eventually(t, "the URL has expired", func() bool { return time.Since(opened) > 2*time.Second })
	if got, err := fs.ReadFile(p, "inputs/scene.tif"); err != nil || string(got) != job["W1/J1/inputs/scene.tif"] {
		t.Errorf("after the URL has expired: %d bytes, %v", len(got), err)
	}
}

func TestClientErrors(t *testing.T) {
	t.Parallel()
	d := deploy(t)
	d.Write(map[string]string{"W1/J1/job.json": `{"status": "failed"}`})
	for name, tt := range map[string]struct {
		key, job string
		status   int
		code     string
	}{
		"no key":        {"", "J1", 401, "unauthenticated"},
		"wrong key":     {"dl_x_y", "J1", 401, "unauthenticated"},
		"no job":        {d.Key, "J2", 403, "permission_denied"},
		"failed job":    {d.Key, "J1", 400, "job_failed"},
		"malformed job": {d.Key, "a b", 400, "invalid_parameter"},
	} {
		path := filepath.Join(t.TempDir(), "job.zip")
		_, err := d.newClient(tt.key).Save(t.Context(), "W1", tt.job, path)
		e, ok := errors.AsType[*client.APIError](err)
		if !ok || e.StatusCode != tt.status || e.Code != tt.code || e.RequestID == "" || e.Message == "" {
			t.Errorf("%s: %v", name, err)
		}
		if left, _ := filepath.Glob(path + "*"); len(left) > 0 {
			t.Errorf("%s: left behind: %v", name, left)
		}
	}
}

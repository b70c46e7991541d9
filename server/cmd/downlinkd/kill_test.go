package main

import (
	"archive/zip"
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/downlink-go/downlink/gen/apitypes"
	"github.com/downlink-go/downlink/server"
	"github.com/downlink-go/downlink/server/internal/catalog"
	"github.com/downlink-go/downlink/server/internal/catalog/catalogtest"
	"github.com/downlink-go/downlink/server/internal/download"
)

var kills = flag.Int("kills", 30, "how often TestKill kills the server")

// asCommand makes the test binary stand for the command, so that a test can run
// it as a process of its own.
const asCommand = "DOWNLINKD_TEST_AS_COMMAND"

func TestMain(m *testing.M) {
	if os.Getenv(asCommand) != "" {
		main()
		return
	}
	flag.Parse()
	os.Exit(m.Run())
}

// process is a running server.
type process struct {
	cmd *exec.Cmd
	url string
	out *bufio.Reader // what it prints after its address
	log *bytes.Buffer // to be read when it has ended
}

func startServer(t *testing.T, args ...string) *process {
	t.Helper()
	cmd := exec.Command(os.Args[0], append([]string{"serve", "--listen", "127.0.0.1:0"}, args...)...)
	cmd.Env = append(os.Environ(), asCommand+"=1")
	var log bytes.Buffer
	cmd.Stderr = &log
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewReader(out)
	line, err := lines.ReadString('\n')
	if err != nil {
		_ = cmd.Wait()
		t.Fatalf("the server did not start: %s", &log)
	}
	p := &process{cmd: cmd, url: strings.TrimSpace(strings.TrimPrefix(line, "listening on ")), out: lines, log: &log}
	t.Cleanup(p.kill)
	return p
}

// kill ends the process as the power would.
func (p *process) kill() {
	_ = p.cmd.Process.Kill() // it may be gone
	_ = p.cmd.Wait()
}

// put calls the API, and reports false if the server went away meanwhile.
func (p *process) put(ctx context.Context, key, job, prefer string) (apitypes.Download, bool) {
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	r, err := http.NewRequestWithContext(ctx, http.MethodPut, p.url+"/v0/workflows/W1/jobs/"+job+"/download", nil)
	if err != nil {
		return apitypes.Download{}, false
	}
	r.Header.Set("Authorization", key)
	r.Header.Set("Prefer", prefer)
	response, err := client.Do(r)
	if err != nil {
		return apitypes.Download{}, false
	}
	defer response.Body.Close()
	var d apitypes.Download
	if err := json.NewDecoder(response.Body).Decode(&d); err != nil || response.StatusCode != http.StatusOK {
		return apitypes.Download{}, false
	}
	return d, true
}

// TestKill kills a real server at random points of its work, again and again.
// Nothing is lost and nothing is done twice: in the end every job is ready with
// the right bytes, each has one package, and nothing is left in the queue.
func TestKill(t *testing.T) {
	catalogtest.Each(t, func(t *testing.T, database string) {
		testKill(t, []string{"--data-dir", filepath.Join(t.TempDir(), "state"), "--database", database})
	})
}

func testKill(t *testing.T, state []string) {
	const jobs = 4
	bucket := t.TempDir()
	content := map[string][]byte{}
	for j := range jobs {
		for i := range 6 {
			// Some large enough to be killed in the middle of, some small.
			data := bytes.Repeat([]byte(fmt.Sprintf("job %d asset %d ", j, i)), 1+(i%3)*(4<<20)/15)
			name := fmt.Sprintf("outputs/%d.bin", i)
			path := filepath.Join(bucket, "W1", fmt.Sprintf("J%d", j), name)
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, data, 0o644); err != nil {
				t.Fatal(err)
			}
			content[fmt.Sprintf("J%d/%s", j, name)] = data
		}
	}
	mustRun(t, append([]string{"org", "create", "acme"}, state...)...)
	mustRun(t, append([]string{"grant", "acme", "W1"}, state...)...)
	key := strings.TrimSpace(mustRun(t, append([]string{"key", "create", "--org", "acme"}, state...)...))
	args := append([]string{"--bucket", "file://" + bucket, "--ready-wait", "0"}, state...)

	ids := map[string]string{}
	for k := range *kills {
		p := startServer(t, args...)
		ctx, cancel := context.WithCancel(t.Context())
		asked := make(chan struct{})
		go func() {
			defer close(asked)
			for j := range jobs {
				p.put(ctx, key, fmt.Sprintf("J%d", j), "wait=0")
			}
		}()
		// The random point: anywhere from before the first call to after the
		// last package is ready.
		timer := time.NewTimer(rand.N(120 * time.Millisecond))
		<-timer.C
		p.kill()
		cancel()
		<-asked
		if k%5 == 4 {
			touch(t, bucket) // new versions make new packages: there is work again
		}
	}

	p := startServer(t, args...)
	deadline, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	for j := range jobs {
		job := fmt.Sprintf("J%d", j)
		var d apitypes.Download
		for d.Status != apitypes.DownloadStatusReady {
			var ok bool
			if d, ok = p.put(deadline, key, job, "wait=10"); !ok {
				t.Fatalf("%s: the call failed", job)
			}
		}
		ids[job] = d.ID
		checkPackage(t, deadline, d.SignedURL, job, content)
	}
	p.kill()

	db := openState(t, state)
	packages, err := db.Packages(t.Context(), catalog.PackageFilter{Limit: 1000})
	if err != nil {
		t.Fatal(err)
	}
	current := map[string]int{}
	for _, p := range packages {
		if p.ID.String() == ids[p.JobID] {
			current[p.JobID]++
		}
		// Only a version of the assets that is gone may have failed.
		if p.State == download.Failed && p.Failure.Code != download.AssetMissing {
			t.Errorf("package %s of %s has failed: %v", p.ID, p.JobID, p.Failure)
		}
	}
	for job := range ids {
		if current[job] != 1 {
			t.Errorf("%s has %d rows of its package, want 1", job, current[job])
		}
	}
	// Packages of versions that are gone may be pending: nobody asks for them
	// again. They end as failed, not as stuck.
	p = startServer(t, args...)
	for {
		pending, err := db.Packages(t.Context(), catalog.PackageFilter{State: download.Pending, Limit: 1000})
		if err != nil {
			t.Fatal(err)
		}
		if len(pending) == 0 {
			break
		}
		select {
		case <-deadline.Done():
			t.Fatalf("%d packages are stuck", len(pending))
		case <-time.After(20 * time.Millisecond):
		}
	}
	// Asked to stop, it does so and well.
	if err := p.cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Wait(); err != nil {
		t.Errorf("stop: %v", err)
	}
}

// touch gives some assets another modified time.
func touch(t *testing.T, bucket string) {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(bucket, "W1", "*", "outputs", "*.bin"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range paths {
		if now := time.Now(); rand.N(2) == 0 {
			if err := os.Chtimes(path, now, now); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func checkPackage(t *testing.T, ctx context.Context, url, job string, content map[string][]byte) {
	t.Helper()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		t.Fatal("the signed URL is not one")
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	response, err := client.Do(r)
	if err != nil {
		t.Fatalf("%s: the download failed", job)
	}
	defer response.Body.Close()
	data, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	z, err := zip.NewReader(bytes.NewReader(data), int64(len(data)))
	if err != nil {
		t.Fatal(err)
	}
	files := 0
	for _, f := range z.File {
		r, err := f.Open()
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(r)
		if err != nil {
			t.Errorf("%s: %s: %v", job, f.Name, err)
		}
		if f.Name == "manifest.json" {
			continue
		}
		files++
		if !bytes.Equal(got, content[job+"/"+f.Name]) {
			t.Errorf("%s: %s is not the asset", job, f.Name)
		}
	}
	if files != 6 {
		t.Errorf("%s: %d files, want 6", job, files)
	}
}

func openState(t *testing.T, state []string) *catalog.DB {
	t.Helper()
	db, err := server.OpenDatabase(t.Context(), state[1], state[3])
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db
}

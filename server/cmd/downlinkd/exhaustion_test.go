//go:build linux

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/downlink-go/downlink/gen/apitypes"
)

// limit sets a limit of the running server's process.
func (p *process) limit(t *testing.T, option string) {
	t.Helper()
	prlimit, err := exec.LookPath("prlimit")
	if err != nil {
		t.Skip("prlimit of util-linux is not installed")
	}
	if out, err := exec.Command(prlimit, "--pid", strconv.Itoa(p.cmd.Process.Pid), option).CombinedOutput(); err != nil {
		t.Fatalf("prlimit %s: %v: %s", option, err, out)
	}
}

// descriptors returns how many the running server has.
func (p *process) descriptors(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", p.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// mostMemory returns how much memory the running server has had at most since the
// last call, in bytes.
func (p *process) mostMemory(t *testing.T) int {
	t.Helper()
	proc := fmt.Sprintf("/proc/%d/", p.cmd.Process.Pid)
	status, err := os.ReadFile(proc + "status")
	if err != nil {
		t.Fatal(err)
	}
	_, text, _ := strings.Cut(string(status), "VmHWM:")
	text, _, _ = strings.Cut(text, "kB")
	kb, err := strconv.Atoi(strings.TrimSpace(text))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(proc+"clear_refs", []byte("5"), 0); err != nil { // the mark, that is
		t.Fatal(err)
	}
	return kb << 10
}

// call is one call of the API on a connection of its own.
func (p *process) call(t *testing.T, key, job string) (status int, d apitypes.Download, retryAfter string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodPut, p.url+"/v0/workflows/W1/jobs/"+job+"/download", nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Authorization", key)
	response, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	if response.StatusCode == http.StatusOK {
		if err := json.NewDecoder(response.Body).Decode(&d); err != nil {
			t.Fatal(err)
		}
	}
	return response.StatusCode, d, response.Header.Get("Retry-After")
}

// newState makes a bucket with jobs of one small asset each and a state with a
// key for them.
func newState(t *testing.T, jobs ...string) (key string, flags []string) {
	t.Helper()
	bucket := t.TempDir()
	for _, job := range jobs {
		dir := filepath.Join(bucket, "W1", job, "inputs")
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "a.tif"), []byte("asset of "+job), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	state := filepath.Join(t.TempDir(), "state")
	mustRun(t, "org", "create", "acme", "--data-dir", state)
	mustRun(t, "grant", "acme", "W1", "--data-dir", state)
	key = strings.TrimSpace(mustRun(t, "key", "create", "--org", "acme", "--data-dir", state))
	return key, []string{"--bucket", "file://" + bucket, "--data-dir", state}
}

// read gets a signed URL and returns its content.
func read(t *testing.T, url string) (int, string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	response, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	data, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, string(data)
}

// TestDiskFull: a server whose files cannot grow, as on a full disk, still
// answers for what is there; what is new is 503, and works when there is room
// again.
func TestDiskFull(t *testing.T) {
	key, flags := newState(t, "J1", "J2")
	p := startServer(t, flags...)
	status, before, _ := p.call(t, key, "J1")
	if status != http.StatusOK || before.Status != apitypes.DownloadStatusReady {
		t.Fatalf("status %d, %s", status, before.Status)
	}
	p.limit(t, "--fsize=1:unlimited")
	if status, _, retry := p.call(t, key, "J2"); status != http.StatusServiceUnavailable || retry == "" {
		t.Errorf("a new package: status %d, Retry-After %q, want 503", status, retry)
	}
	if status, d, _ := p.call(t, key, "J1"); status != http.StatusOK || d.ID != before.ID {
		t.Errorf("a package that is there: status %d", status)
	}
	if status, data := read(t, before.SignedURL); status != http.StatusOK || !strings.Contains(data, "asset of J1") {
		t.Errorf("its content: status %d, %d bytes", status, len(data))
	}
	p.limit(t, "--fsize=unlimited")
	var d apitypes.Download
	for deadline := time.Now().Add(30 * time.Second); d.Status != apitypes.DownloadStatusReady; {
		status, d, _ = p.call(t, key, "J2")
		if status != http.StatusOK || time.Now().After(deadline) {
			t.Fatalf("with room again: status %d, %s", status, d.Status)
		}
	}
	if _, data := read(t, d.SignedURL); !strings.Contains(data, "asset of J2") {
		t.Error("with room again: not the content")
	}
}

// TestReadOnlyFile: a server does not start on a database that it may not write,
// and says so.
func TestReadOnlyFile(t *testing.T) {
	if os.Getuid() == 0 {
		t.Skip("root may write every file: run the tests as another user")
	}
	_, flags := newState(t, "J1")
	if err := os.Chmod(filepath.Join(flags[3], "downlink.db"), 0o400); err != nil {
		t.Fatal(err)
	}
	if _, stderr, code := command(t, append([]string{"serve", "--listen", "127.0.0.1:0"}, flags...)...); code != exitFailure || !strings.Contains(stderr, "downlink.db") {
		t.Errorf("exit code %d: %s", code, stderr)
	}
}

// TestOutOfDescriptors: a server that cannot open anything more refuses politely
// on the connections that it has, lets the others wait, and recovers.
func TestOutOfDescriptors(t *testing.T) {
	key, flags := newState(t, "J1", "J2")
	p := startServer(t, append(flags, "--max-connections", "0", "--idle-timeout", "24h")...)
	status, before, _ := p.call(t, key, "J1")
	if status != http.StatusOK {
		t.Fatalf("status %d", status)
	}
	// A client with a connection, before there are no more to be had.
	client := &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: 1}}
	defer client.CloseIdleConnections()
	ask := func(method, url string) (int, string) {
		r, err := http.NewRequestWithContext(t.Context(), method, url, nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Authorization", key)
		response, err := client.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		data, err := io.ReadAll(response.Body)
		if err != nil {
			t.Fatal(err)
		}
		return response.StatusCode, string(data)
	}
	if status, _ := ask(http.MethodGet, before.SignedURL); status != http.StatusOK {
		t.Fatalf("status %d", status)
	}
	p.limit(t, fmt.Sprintf("--nofile=%d:", p.descriptors(t)+3))
	var flood []net.Conn
	for range 20 { // more than there is room for
		conn, err := net.Dial("tcp", strings.TrimPrefix(p.url, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		flood = append(flood, conn)
	}
	refused := false
	for deadline := time.Now().Add(20 * time.Second); !refused && time.Now().Before(deadline); {
		status, data := ask(http.MethodGet, before.SignedURL)
		switch {
		case status == http.StatusServiceUnavailable && strings.Contains(data, `"unavailable"`):
			refused = true
		case status != http.StatusOK || !strings.Contains(data, "asset of J1"):
			t.Fatalf("status %d with %q", status, data)
		}
	}
	if !refused {
		t.Error("the server never ran out of descriptors")
	}
	if status, data := ask(http.MethodPut, p.url+"/v0/workflows/W1/jobs/J2/download"); status != http.StatusServiceUnavailable || !strings.Contains(data, `"unavailable"`) {
		t.Errorf("a call: status %d with %q, want 503", status, data)
	}
	for _, conn := range flood {
		conn.Close()
	}
	for deadline := time.Now().Add(20 * time.Second); ; {
		status, data := ask(http.MethodGet, before.SignedURL)
		if status == http.StatusOK && strings.Contains(data, "asset of J1") {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the flood is over: status %d", status)
		}
	}
	// The limit is still low: there may be a moment more without a descriptor.
	for deadline := time.Now().Add(20 * time.Second); ; {
		status, d, _ := p.call(t, key, "J2")
		if status == http.StatusOK && d.Status == apitypes.DownloadStatusReady {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("a new connection and package: status %d, %s", status, d.Status)
		}
	}
}

// TestFloods measures what clients that mean harm can make a server take: no more
// descriptors than connections and open assets, and little memory. Others are served
// again as soon as they are gone.
func TestFloods(t *testing.T) {
	const connections, downloads, flood = 200, 50, 500
	key, flags := newState(t, "J1")
	large := filepath.Join(strings.TrimPrefix(flags[1], "file://"), "W1", "J1", "inputs", "large.bin")
	if err := os.WriteFile(large, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(large, 64<<20); err != nil {
		t.Fatal(err)
	}
	p := startServer(t, append(flags, "--ready-wait", "30s", "--header-timeout", "1h", "--max-connections", strconv.Itoa(connections),
		"--max-downloads", strconv.Itoa(downloads))...)
	status, before, _ := p.call(t, key, "J1")
	if status != http.StatusOK || before.Status != apitypes.DownloadStatusReady {
		t.Fatalf("status %d, %s", status, before.Status)
	}
	path := strings.TrimPrefix(before.SignedURL, p.url)
	descriptors := p.descriptors(t)
	get := "GET " + path + " HTTP/1.1\r\nHost: x\r\n"
	for _, tt := range []struct {
		name, send string
	}{
		{"connections", ""},
		{"slow headers", get + "X: " + strings.Repeat("x", 60<<10)},
		{"slow readers", get + "\r\n"},
		{"as many ranges as there may be", strings.Repeat(get+"Range: bytes=1000-99999"+strings.Repeat(",5-9", 99)+"\r\n\r\n", 10)},
		{"thousands of ranges", get + "Range: bytes=5-9" + strings.Repeat(",5-9", 3500) + "\r\n\r\n"},
	} {
		p.mostMemory(t)
		memory := p.mostMemory(t)
		var conns []net.Conn
		for range flood {
			conn, err := net.Dial("tcp", strings.TrimPrefix(p.url, "http://"))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			conns = append(conns, conn)
			// What the server does not take is not waited for.
			if err := conn.SetWriteDeadline(time.Now().Add(10 * time.Millisecond)); err != nil {
				t.Fatal(err)
			}
			_, _ = io.WriteString(conn, tt.send)
		}
		most := 0
		for deadline := time.Now().Add(30 * time.Second); most < descriptors+connections-5; most = max(most, p.descriptors(t)) {
			if time.Now().After(deadline) {
				t.Fatalf("%s: the server has %d descriptors more, want those of %d connections", tt.name, most-descriptors, connections)
			}
		}
		for start := time.Now(); time.Since(start) < time.Second; { // for what else there might be
			most = max(most, p.descriptors(t))
		}
		more, moreMemory := most-descriptors, p.mostMemory(t)-memory
		t.Logf("%s: %d descriptors and %d MiB more", tt.name, more, moreMemory>>20)
		if more > connections+2*downloads || moreMemory > 256<<20 {
			t.Errorf("%s: that is too much", tt.name)
		}
		for _, conn := range conns {
			conn.Close()
		}
		if status, d, _ := p.call(t, key, "J1"); status != http.StatusOK || d.ID != before.ID {
			t.Errorf("%s, afterwards: status %d", tt.name, status)
		}
		for deadline := time.Now().Add(30 * time.Second); p.descriptors(t) > descriptors+5; {
			if time.Now().After(deadline) {
				t.Fatalf("%s, afterwards: the server has still %d descriptors more", tt.name, p.descriptors(t)-descriptors)
			}
		}
	}
}

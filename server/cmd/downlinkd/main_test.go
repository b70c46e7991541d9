package main

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// command runs one command line and returns what it wrote and its exit code.
func command(t *testing.T, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	var out, errs bytes.Buffer
	code = run(t.Context(), args, &out, &errs)
	return out.String(), errs.String(), code
}

// mustRun is for commands that have to succeed.
func mustRun(t *testing.T, args ...string) string {
	t.Helper()
	stdout, stderr, code := command(t, args...)
	if code != exitOK || stderr != "" {
		t.Fatalf("downlinkd %s: exit code %d: %s", strings.Join(args, " "), code, stderr)
	}
	return stdout
}

func TestAdministration(t *testing.T) {
	t.Setenv("DOWNLINK_DATA_DIR", filepath.Join(t.TempDir(), "state"))
	mustRun(t, "org", "create", "acme")
	key := strings.TrimSpace(mustRun(t, "key", "create", "--org", "acme", "--label", "laptop", "--expires", "720h"))
	if !strings.HasPrefix(key, "dl_") || strings.ContainsAny(key, " \n") {
		t.Errorf("the output is not a key alone")
	}
	mustRun(t, "grant", "acme", "W1")
	mustRun(t, "grant", "acme", "*")
	if got := mustRun(t, "org", "list"); !strings.Contains(got, "acme") {
		t.Errorf("org list:\n%s", got)
	}
	keys := mustRun(t, "key", "list", "--org", "acme")
	if !strings.Contains(keys, "laptop") || strings.Contains(keys, key) {
		t.Errorf("key list:\n%s", keys)
	}
	if got := mustRun(t, "key", "list", "--org", "other"); strings.Contains(got, "laptop") {
		t.Errorf("key list of another organization:\n%s", got)
	}
	if got := mustRun(t, "grants"); !strings.Contains(got, "W1") || !strings.Contains(got, "*") {
		t.Errorf("grants:\n%s", got)
	}
	mustRun(t, "revoke-grant", "acme", "W1")
	mustRun(t, "key", "revoke", strings.Split(key, "_")[1])
	if got := mustRun(t, "signing-key", "rotate"); !strings.Contains(got, "1 verify") {
		t.Errorf("signing-key rotate: %s", got)
	}
	if got := mustRun(t, "version"); !strings.HasPrefix(got, "downlinkd ") {
		t.Errorf("version: %s", got)
	}
}

func TestExitCodes(t *testing.T) {
	t.Setenv("DOWNLINK_DATA_DIR", filepath.Join(t.TempDir(), "state"))
	mustRun(t, "org", "create", "acme")
	tests := []struct {
		args string
		code int
		want string
	}{
		{"--help", exitOK, ""},
		{"serve --help", exitOK, ""},
		{"bogus", exitUsage, "bogus"},
		{"serve --bogus", exitUsage, "bogus"},
		{"serve extra", exitUsage, "extra"},
		{"org", exitUsage, "create, list"},
		{"org create", exitUsage, "1 arg"},
		{"key create", exitUsage, "org"},
		{"key create --org acme --expires soon", exitUsage, "expires"},
		{"key create --org acme --expires -1h", exitFailure, "negative"},
		{"key create --org nobody", exitFailure, "nobody"},
		{"key revoke nokey", exitFailure, "not found"},
		{"org create acme", exitFailure, "already exists"},
		{"org create ..", exitFailure, "malformed"},
		{"grant nobody W1", exitFailure, "nobody"},
		{"grant acme a/b", exitFailure, "malformed"},
		{"revoke-grant acme W1", exitFailure, "not found"},
		{"serve", exitFailure, "bucket: missing"},
		{"serve --max-downloads -1", exitUsage, "max-downloads"},
		{"serve --bucket file:/// --trusted-proxies here", exitFailure, "trusted proxy"},
		{"serve --bucket file:/// --tls-cert x", exitFailure, "give both or neither"},
		{"serve --bucket file:///does/not/exist", exitFailure, "make the folder"},
		{"serve --bucket file:/// --listen 256.0.0.1:0", exitFailure, "--listen"},
	}
	for _, tt := range tests {
		_, stderr, code := command(t, strings.Fields(tt.args)...)
		if code != tt.code || !strings.Contains(stderr, tt.want) {
			t.Errorf("downlinkd %s: exit code %d, want %d, and %q in:\n%s", tt.args, code, tt.code, tt.want, stderr)
		}
	}
}

func TestEnvironment(t *testing.T) {
	t.Setenv("DOWNLINK_DATA_DIR", filepath.Join(t.TempDir(), "state"))
	t.Setenv("DOWNLINK_BUCKET", "ftp://from-environment")
	t.Setenv("DOWNLINK_MAX_ENTRIES", "many")
	if _, stderr, code := command(t, "serve"); code != exitUsage || !strings.Contains(stderr, "DOWNLINK_MAX_ENTRIES") {
		t.Errorf("a malformed variable: exit code %d: %s", code, stderr)
	}
	t.Setenv("DOWNLINK_MAX_ENTRIES", "5")
	if _, stderr, _ := command(t, "serve"); !strings.Contains(stderr, "from-environment") {
		t.Errorf("the variable is not used: %s", stderr)
	}
	if _, stderr, _ := command(t, "serve", "--bucket", "ftp://from-flag"); !strings.Contains(stderr, "from-flag") {
		t.Errorf("the flag does not win: %s", stderr)
	}
}

// TestServe starts a server on a free port, calls it and stops it.
func TestServe(t *testing.T) {
	state := filepath.Join(t.TempDir(), "state")
	t.Setenv("DOWNLINK_DATA_DIR", state)
	bucket := t.TempDir()
	if err := os.MkdirAll(filepath.Join(bucket, "W1/J1/inputs"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(bucket, "W1/J1/inputs/a"), []byte("a"), 0o644); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	out, in := io.Pipe()
	var log bytes.Buffer
	code := make(chan int)
	go func() {
		code <- run(ctx, []string{"serve", "--bucket", "file://" + bucket, "--listen", "127.0.0.1:0", "--log-json", "--admin-listen", "127.0.0.1:0"}, in, &log)
	}()
	line := make([]byte, 100)
	n, err := out.Read(line)
	if err != nil {
		t.Fatal(err)
	}
	url := strings.TrimSpace(strings.TrimPrefix(string(line[:n]), "listening on "))
	if n, err = out.Read(line); err != nil {
		t.Fatal(err)
	}
	operators := strings.TrimSpace(strings.TrimPrefix(string(line[:n]), "for operators on "))

	mustRun(t, "org", "create", "acme")
	mustRun(t, "grant", "acme", "W1")
	key := strings.TrimSpace(mustRun(t, "key", "create", "--org", "acme"))
	client := &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	r, err := http.NewRequestWithContext(ctx, http.MethodPut, url+"/v0/workflows/W1/jobs/J1/download", nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Authorization", key)
	response, err := client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	response.Body.Close()
	if response.StatusCode != http.StatusOK {
		t.Errorf("status %d", response.StatusCode)
	}
	r, err = http.NewRequestWithContext(ctx, http.MethodGet, operators+"/readyz", nil)
	if err != nil {
		t.Fatal(err)
	}
	if response, err = client.Do(r); err != nil {
		t.Fatal(err)
	}
	response.Body.Close()
	if response.StatusCode != http.StatusOK {
		t.Errorf("readyz: status %d", response.StatusCode)
	}
	stop()
	if c := <-code; c != exitOK {
		t.Errorf("exit code %d: %s", c, &log)
	}
	if !strings.Contains(log.String(), `"msg":"request"`) || strings.Contains(log.String(), key) {
		t.Errorf("the log, in JSON and without the key:\n%s", &log)
	}
	for _, name := range []string{"downlink.db", "signing-keys"} {
		info, err := os.Stat(filepath.Join(state, name))
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s can be read by others: %v", name, info.Mode())
		}
	}
}

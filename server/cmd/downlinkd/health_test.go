package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestHealth asks a real server, by each of its addresses, and none.
func TestHealth(t *testing.T) {
	bucket := t.TempDir()
	p := startServer(t, "--bucket", "file://"+bucket, "--data-dir", filepath.Join(t.TempDir(), "state"),
		"--admin-listen", "127.0.0.1:0")
	listen := strings.TrimPrefix(p.url, "http://")
	line, err := p.out.ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	admin := strings.TrimPrefix(strings.TrimSpace(line), "for operators on http://")
	health := func(want int, args ...string) string {
		t.Helper()
		_, stderr, code := command(t, append([]string{"health"}, args...)...)
		if code != want {
			t.Errorf("health %v: exit code %d, want %d: %s", args, code, want, stderr)
		}
		return stderr
	}
	health(exitOK, "--listen", listen)
	health(exitOK, "--admin-listen", admin)
	health(exitOK, "--admin-listen", admin, "--ready")
	health(exitUsage, "--listen", listen, "--ready")
	if err := os.Remove(bucket); err != nil {
		t.Fatal(err)
	}
	health(exitOK, "--admin-listen", admin)
	if why := health(exitFailure, "--admin-listen", admin, "--ready"); !strings.Contains(why, "bucket") {
		t.Errorf("not ready, and it does not tell why: %s", why)
	}
	p.kill()
	health(exitFailure, "--listen", listen)
	health(exitFailure, "--admin-listen", admin)
}

// TestMan: there is a page for each command, with nothing of this machine.
func TestMan(t *testing.T) {
	t.Setenv("SOURCE_DATE_EPOCH", "1700000000")
	dir := t.TempDir()
	mustRun(t, "man", dir)
	for _, command := range []string{"downlinkd", "downlinkd-serve", "downlinkd-key-create", "downlinkd-health"} {
		page, err := os.ReadFile(filepath.Join(dir, command+".1"))
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(page), `"Nov 2023"`) || !strings.Contains(string(page), ".SH SYNOPSIS") {
			t.Errorf("%s: %.200s", command, page)
		}
	}
	page, err := os.ReadFile(filepath.Join(dir, "downlinkd.1"))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"/data/<workflow>/<job>/", "\n.EX\ndownlinkd serve --bucket file:///data\ndownlinkd org create acme\n"} {
		if !strings.Contains(string(page), want) {
			t.Errorf("%q is not in:\n%s", want, page)
		}
	}
}

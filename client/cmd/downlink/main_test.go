package main

import (
	"archive/zip"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	fault "github.com/downlink-go/downlink/client/internal/faultserver"
)

// asCommand makes the test binary the command itself, to be killed.
const asCommand = "DOWNLINK_TEST_AS_COMMAND"

func TestMain(m *testing.M) {
	if os.Getenv(asCommand) != "" {
		main()
	}
	goleak.VerifyTestMain(m)
}

const testKey = "dl_testkey_secretsecretsecret"

// file is one of a package.
type file struct{ name, content string }

// files are those of the tests' package: large enough for several connections.
func files(seed byte) []file {
	noise := func(seed byte) string {
		b := make([]byte, 2<<20)
		_, _ = rand.NewChaCha8([32]byte{seed}).Read(b)
		return string(b)
	}
	return []file{
		{"inputs/a.tif", noise(seed)}, {"outputs/b.tif", noise(seed + 1)}, {"outputs/deep/é.txt", "hello\n"},
	}
}

// pack returns a package as downlinkd lays it out.
func pack(t testing.TB, files []file) []byte {
	t.Helper()
	type entry map[string]any
	manifest := map[string]any{"package_id": fault.ID}
	var entries []entry
	for _, f := range files {
		entries = append(entries, entry{
			"path": f.name, "size": len(f.content), "crc32": fmt.Sprintf("%08x", crc32.ChecksumIEEE([]byte(f.content))),
		})
	}
	manifest["entries"] = entries
	encoded, err := json.Marshal(manifest)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	for _, f := range append([]file{{"manifest.json", string(encoded)}}, files...) {
		w, err := z.CreateRaw(&zip.FileHeader{
			Name: f.name, CRC32: crc32.ChecksumIEEE([]byte(f.content)), ModifiedDate: 0x5c64, ModifiedTime: 0x28c0, //nolint:staticcheck // CreateRaw looks at no other
			UncompressedSize64: uint64(len(f.content)), CompressedSize64: uint64(len(f.content)),
		})
		if err == nil {
			_, err = w.Write([]byte(f.content))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// cli runs command lines against a server, in a folder of their own.
type cli struct {
	t      testing.TB
	s      *fault.Server
	dir    string
	common []string
}

func newCLI(t testing.TB, s *fault.Server) *cli {
	t.Helper()
	dir := t.TempDir()
	keyFile := filepath.Join(dir, "key")
	if err := os.WriteFile(keyFile, []byte(testKey+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return &cli{t: t, s: s, dir: filepath.Join(dir, "work"), common: []string{
		"--url", s.APIURL(), "--api-key-file", keyFile, "--stall", "2s", "--retry-for", "3s", "--wait", "20s",
	}}
}

func (c *cli) path(name string) string { return filepath.Join(c.dir, name) }

// run runs a command of the API. No output of it has a secret.
func (c *cli) run(args ...string) (code int, stdout, stderr string) {
	c.t.Helper()
	return c.runWith(c.t.Context(), args...)
}

func (c *cli) runWith(ctx context.Context, args ...string) (code int, stdout, stderr string) {
	c.t.Helper()
	if err := os.MkdirAll(c.dir, 0o700); err != nil {
		c.t.Fatal(err)
	}
	code, stdout, stderr = runPlain(ctx, append(args, c.common...)...)
	shown := stderr
	if args[0] != "url" {
		shown += stdout
	}
	if strings.Contains(shown, fault.Secret) || strings.Contains(shown, "secretsecret") {
		c.t.Errorf("%s shows a secret: %s", args[0], shown)
	}
	return code, stdout, stderr
}

func runPlain(ctx context.Context, args ...string) (code int, stdout, stderr string) {
	var out, err bytes.Buffer
	code = run(ctx, args, &out, &err)
	return code, out.String(), err.String()
}

func (c *cli) wantFile(name string, want []byte) {
	c.t.Helper()
	got, err := os.ReadFile(c.path(name))
	if err != nil || !bytes.Equal(got, want) {
		c.t.Errorf("%s has %d bytes that are not the %d of the package: %v", name, len(got), len(want), err)
	}
}

func TestGet(t *testing.T) {
	t.Parallel()
	data := pack(t, files(1))
	c := newCLI(t, fault.Start(t, data))
	for _, round := range []string{"fetched", "kept"} {
		code, stdout, stderr := c.run("get", "W1", "J1", "-o", c.path("p.zip"))
		if code != exitOK || stdout != c.path("p.zip")+"\n" {
			t.Errorf("%s: exit %d, %q, %q", round, code, stdout, stderr)
		}
		if strings.Contains(stderr, "there already") != (round == "kept") {
			t.Errorf("%s: %q", round, stderr)
		}
		c.wantFile("p.zip", data)
	}
	if code, stdout, _ := c.run("get", "W1", "J1", "-o", c.dir, "-q"); code != exitOK || stdout != c.path("W1_J1.zip")+"\n" {
		t.Errorf("into a folder: exit %d, %q", code, stdout)
	}
	if code, stdout, _ := c.run("get", "W1", "J1", "-o", "-"); code != exitOK || stdout != string(data) {
		t.Errorf("to standard output: exit %d, %d bytes", code, len(stdout))
	}
	for _, r := range c.s.Requests() {
		if got := r.Header.Get("Authorization"); (got == testKey) != r.API || !r.API && got != "" {
			t.Errorf("a request to %s has the Authorization %q", r.Path, got)
		}
		if !r.API && r.Header.Get("Referer") != "" {
			t.Error("a request has a Referer")
		}
	}
}

func TestGetOverwrites(t *testing.T) {
	t.Parallel()
	data := pack(t, files(1))
	c := newCLI(t, fault.Start(t, data))
	c.run("version")
	if err := os.WriteFile(c.path("p.zip"), []byte("notes"), 0o600); err != nil {
		t.Fatal(err)
	}
	code, _, stderr := c.run("get", "W1", "J1", "-o", c.path("p.zip"))
	if code != exitFailure || !strings.Contains(stderr, "--force") {
		t.Errorf("exit %d, %q", code, stderr)
	}
	c.wantFile("p.zip", []byte("notes"))
	if code, _, stderr = c.run("get", "W1", "J1", "-o", c.path("p.zip"), "--force"); code != exitOK {
		t.Errorf("with --force: exit %d, %q", code, stderr)
	}
	c.wantFile("p.zip", data)
}

func TestGetExtract(t *testing.T) {
	t.Parallel()
	c := newCLI(t, fault.Start(t, pack(t, files(1))))
	args := []string{"get", "W1", "J1", "--extract", c.path("out"), "--include", "outputs/**", "--exclude", "**/b.tif"}
	for _, want := range []string{"2 files written, 0 kept", "0 files written, 2 kept"} {
		code, stdout, stderr := c.run(args...)
		if code != exitOK || stdout != c.path("out")+"\n" || !strings.Contains(stderr, want) {
			t.Errorf("exit %d, %q, %q, want %q", code, stdout, stderr, want)
		}
	}
	c.wantFile("out/outputs/deep/é.txt", []byte("hello\n"))
	if _, err := os.Stat(c.path("out/outputs/b.tif")); err == nil {
		t.Error("an excluded file was written")
	}
	verify := []string{"verify", c.path("out")}
	if code, _, stderr := runPlain(t.Context(), verify...); code != exitVerification || !strings.Contains(stderr, "missing") {
		t.Errorf("verify: exit %d, %q", code, stderr)
	}
	verify = append(verify, "--include", "outputs/**", "--exclude", "**/b.tif")
	if code, stdout, stderr := runPlain(t.Context(), verify...); code != exitOK || !strings.Contains(stdout, "right, with 1 file") {
		t.Errorf("verify with the filter: exit %d, %q, %q", code, stdout, stderr)
	}
}

func TestLookingInside(t *testing.T) {
	t.Parallel()
	c := newCLI(t, fault.Start(t, pack(t, files(1))))
	for name, test := range map[string]struct {
		args []string
		want []string
	}{
		"ls":         {[]string{"ls", "W1", "J1"}, []string{"inputs/a.tif\n", "manifest.json\n", "outputs/deep/é.txt\n"}},
		"ls folder":  {[]string{"ls", "W1", "J1", "outputs/"}, []string{"outputs/b.tif\noutputs/deep/é.txt\n"}},
		"ls --long":  {[]string{"ls", "-l", "W1", "J1", "outputs"}, []string{"2097152", "2026-03-04T05:06:00Z", "outputs/b.tif\n", "2097158", "2 files\n"}},
		"ls --tree":  {[]string{"ls", "-t", "W1", "J1"}, []string{"4 files  ./\n", "2 files    outputs/\n", "1 file      deep/\n"}},
		"ls --json":  {[]string{"ls", "--json", "W1", "J1", "outputs/deep"}, []string{`"path":"outputs/deep/é.txt"`, `"size":6`, `"crc32":"363a3020"`}},
		"ls -t json": {[]string{"ls", "-t", "--json", "W1", "J1", "outputs"}, []string{`{"files":1,"path":"outputs/deep","size":6}`}},
		"cat":        {[]string{"cat", "W1", "J1", "outputs/deep/é.txt", "/outputs/deep/é.txt"}, []string{"hello\nhello\n"}},
		"url":        {[]string{"url", "W1", "J1"}, []string{"http://127.0.0.1:", "/W1_J1.zip\n"}},
		"url --gdal": {[]string{"url", "--gdal", "W1", "J1", "outputs/b.tif"}, []string{"/vsizip//vsicurl/http://127.0.0.1:", "/W1_J1.zip/outputs/b.tif\n"}},
		"url --json": {[]string{"url", "--json", "W1", "J1"}, []string{`"expires":"`, `"id":"` + fault.ID}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			code, stdout, stderr := c.run(test.args...)
			if code != exitOK || stderr != "" {
				t.Errorf("exit %d, %q", code, stderr)
			}
			for _, want := range test.want {
				if !strings.Contains(stdout, want) {
					t.Errorf("%q is not in %q", want, stdout)
				}
			}
		})
	}
	for _, args := range [][]string{{"ls", "W1", "J1", "none"}, {"ls", "-t", "W1", "J1", "none"}, {"cat", "W1", "J1", "none"}} {
		if code, _, stderr := c.run(args...); code != exitFailure || !strings.Contains(stderr, "none") {
			t.Errorf("%s: exit %d, %q", args, code, stderr)
		}
	}
}

// TestURLForGDAL: the URL of an object store has a query.
func TestURLForGDAL(t *testing.T) {
	t.Parallel()
	s := fault.Start(t, pack(t, files(1)))
	s.Answers(download("signed_url", "https://s3.example/p.zip?X-Amz-Signature=0"))
	c := newCLI(t, s)
	const want = "/vsizip/{/vsicurl/https://s3.example/p.zip?X-Amz-Signature=0}/outputs/b.tif\n"
	if code, stdout, stderr := c.run("url", "--gdal", "W1", "J1", "outputs/b.tif"); code != exitOK || stdout != want {
		t.Errorf("exit %d, %q, %q", code, stdout, stderr)
	}
}

func TestVerify(t *testing.T) {
	t.Parallel()
	data := pack(t, files(1))
	path := filepath.Join(t.TempDir(), "p.zip")
	wrong := bytes.Replace(data, []byte("hello\n"), []byte("HELLO\n"), 1)
	for name, test := range map[string]struct {
		data []byte
		code int
		want string
	}{
		"right":  {data, exitOK, "right, with 4 files"},
		"wrong":  {wrong, exitVerification, `"outputs/deep/é.txt" has the CRC-32`},
		"cut":    {data[:len(data)-30], exitVerification, "its end is missing"},
		"no ZIP": {[]byte("notes"), exitVerification, "not a ZIP"},
	} {
		if err := os.WriteFile(path, test.data, 0o600); err != nil {
			t.Fatal(err)
		}
		code, stdout, stderr := runPlain(t.Context(), "verify", path)
		if code != test.code || !strings.Contains(stdout+stderr, test.want) {
			t.Errorf("%s: exit %d, %q, %q", name, code, stdout, stderr)
		}
	}
	if code, _, _ := runPlain(t.Context(), "verify", filepath.Join(t.TempDir(), "none")); code != exitFailure {
		t.Errorf("no file: exit %d", code)
	}
}

func TestExitCodes(t *testing.T) {
	t.Parallel()
	fail := func(status int, code string) func(*fault.Server) {
		return func(s *fault.Server) { s.Answers(fault.Fail(status, fault.Envelope(code, "no"))) }
	}
	for name, test := range map[string]struct {
		args  []string
		setup func(*fault.Server)
		code  int
		want  string
	}{
		"no command line":       {args: []string{"get"}, code: exitUsage, want: "accepts 2 arg"},
		"unknown flag":          {args: []string{"get", "W1", "J1", "--key", "x"}, code: exitUsage, want: "unknown flag"},
		"no ID":                 {args: []string{"get", "..", "J1"}, code: exitFailure, want: "is not the ID of a workflow"},
		"flags that exclude":    {args: []string{"get", "W1", "J1", "--extract", "x", "--force"}, code: exitUsage, want: "--extract"},
		"include alone":         {args: []string{"get", "W1", "J1", "--include", "x"}, code: exitUsage, want: "--include"},
		"malformed pattern":     {args: []string{"get", "W1", "J1", "--extract", "x", "--include", "["}, code: exitUsage, want: "malformed"},
		"too many connections":  {args: []string{"get", "W1", "J1", "-c", "99"}, code: exitUsage, want: "99 connections"},
		"no time to wait":       {args: []string{"ls", "W1", "J1", "--wait", "-1s"}, code: exitUsage, want: "not positive"},
		"path without GDAL":     {args: []string{"url", "W1", "J1", "x"}, code: exitUsage, want: "--gdal"},
		"unauthenticated":       {setup: fail(401, "unauthenticated"), code: exitAuth, want: "DOWNLINK_API_KEY"},
		"no permission":         {setup: fail(403, "permission_denied"), code: exitPermission, want: "permission_denied"},
		"job failed":            {setup: fail(400, "job_failed"), code: exitFailure, want: "job_failed"},
		"server fails":          {setup: fail(500, "internal"), code: exitNetwork, want: "request fault-1"},
		"never ready":           {args: []string{"get", "W1", "J1", "--wait", "50ms"}, setup: func(s *fault.Server) { s.Answers(fault.Pending("5")) }, code: exitNotReady, want: "not ready in time"},
		"host down":             {setup: func(s *fault.Server) { s.Down() }, code: exitNetwork, want: "connection refused"},
		"no such API":           {args: []string{"get", "W1", "J1", "--url", "nonsense"}, code: exitUsage, want: "https://host"},
		"no file with the key":  {args: []string{"get", "W1", "J1", "--api-key-file", "/none"}, code: exitUsage, want: "/none"},
		"no room for the file":  {args: []string{"get", "W1", "J1", "-o", "/none/p.zip"}, code: exitFailure, want: "/none"},
		"key that cannot be":    {args: []string{"get", "W1", "J1", "--api-key-file", "main_test.go"}, code: exitUsage, want: "API key"},
		"unknown command":       {args: []string{"fetch"}, code: exitUsage, want: "unknown command"},
		"verify without a file": {args: []string{"verify"}, code: exitUsage, want: "accepts 1 arg"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := fault.Start(t, pack(t, files(1)))
			if test.setup != nil {
				test.setup(s)
			}
			c := newCLI(t, s)
			args := test.args
			if args == nil {
				args = []string{"get", "W1", "J1", "-o", c.path("p.zip")}
			}
			var code int
			var stdout, stderr string
			if args[0] == "verify" || args[0] == "fetch" || len(args) == 1 {
				code, stdout, stderr = runPlain(t.Context(), args...)
			} else {
				c.common = append(c.common[:len(c.common):len(c.common)], args[1:]...) // the last flag wins
				code, stdout, stderr = c.run(args[0])
			}
			if code != test.code || !strings.Contains(stderr, test.want) || stdout != "" {
				t.Errorf("exit %d, want %d; %q, %q", code, test.code, stdout, stderr)
			}
		})
	}
}

func TestInterrupted(t *testing.T) {
	t.Parallel()
	data := pack(t, files(1))
	s := fault.Start(t, data)
	ctx, cancel := context.WithCancel(t.Context())
	s.OnSent(int64(len(data))/2, cancel)
	c := newCLI(t, s)
	code, stdout, stderr := c.runWith(ctx, "get", "W1", "J1", "-o", c.path("p.zip"))
	if code != exitInterrupted || stdout != "" || !strings.Contains(stderr, "again to go on") {
		t.Errorf("exit %d, %q, %q", code, stdout, stderr)
	}
	if code, _, stderr := c.run("get", "W1", "J1", "-o", c.path("p.zip")); code != exitOK || !strings.Contains(stderr, "going on") {
		t.Errorf("exit %d, %q", code, stderr)
	}
	c.wantFile("p.zip", data)
}

func TestJSON(t *testing.T) {
	t.Parallel()
	data := pack(t, files(1))
	c := newCLI(t, fault.Start(t, data, fault.Times(1, fault.Slow(64<<10, 10*time.Millisecond))))
	code, stdout, stderr := c.run("get", "--json", "W1", "J1", "-o", c.path("p.zip"))
	var result struct {
		Path     string
		ID       string
		Size     int64
		Kept     bool
		Verified bool
	}
	if err := json.Unmarshal([]byte(stdout), &result); err != nil || code != exitOK {
		t.Fatalf("exit %d, %q: %v", code, stdout, err)
	}
	if result.Path != c.path("p.zip") || result.ID != fault.ID || result.Size != int64(len(data)) || result.Kept || !result.Verified {
		t.Errorf("got %+v", result)
	}
	stages := map[string]bool{}
	for line := range strings.Lines(stderr) {
		var event struct {
			Event, Stage string
			Done, Total  int64
		}
		if err := json.Unmarshal([]byte(line), &event); err != nil || event.Event != "progress" || event.Done > event.Total {
			t.Errorf("%q: %v", line, err)
		}
		stages[event.Stage] = true
	}
	if !stages["downloading"] || !stages["verifying"] {
		t.Errorf("told of %v", stages)
	}
	c.s.Answers(fault.Fail(403, fault.Envelope("permission_denied", "no")))
	_, _, stderr = c.run("get", "--json", "W1", "J1")
	var failure struct {
		Event, Error string
		ExitCode     int `json:"exit_code"`
	}
	if err := json.Unmarshal([]byte(stderr), &failure); err != nil || failure.Event != "error" || failure.ExitCode != exitPermission {
		t.Errorf("%q: %v", stderr, err)
	}
}

func TestQuiet(t *testing.T) {
	t.Parallel()
	c := newCLI(t, fault.Start(t, pack(t, files(1))))
	for range 2 {
		if code, _, stderr := c.run("get", "-q", "W1", "J1", "-o", c.path("p.zip")); code != exitOK || stderr != "" {
			t.Errorf("exit %d, %q", code, stderr)
		}
	}
}

func TestNoVerifyWarns(t *testing.T) {
	t.Parallel()
	c := newCLI(t, fault.Start(t, pack(t, files(1))))
	code, _, stderr := c.run("get", "--no-verify", "W1", "J1", "-o", c.path("p.zip"))
	if code != exitOK || !strings.Contains(stderr, "warning") {
		t.Errorf("exit %d, %q", code, stderr)
	}
}

// It changes the environment, so it is not parallel.
func TestEnvironment(t *testing.T) {
	s := fault.Start(t, pack(t, files(1)))
	keyFile := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(keyFile, []byte("from-file"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		key, file string
		args      []string
		want      string
	}{
		{key: "from-env", want: "from-env"},
		{file: keyFile, want: "from-file"},
		{key: "from-env", file: keyFile, want: "from-env"},
		{key: "from-env", args: []string{"--api-key-file", keyFile}, want: "from-file"},
		{want: ""},
	} {
		t.Setenv("DOWNLINK_URL", s.APIURL())
		t.Setenv("DOWNLINK_API_KEY", test.key)
		t.Setenv("DOWNLINK_API_KEY_FILE", test.file)
		if code, _, stderr := runPlain(t.Context(), append([]string{"url", "W1", "J1"}, test.args...)...); code != exitOK {
			t.Errorf("%+v: exit %d, %q", test, code, stderr)
		}
		requests := s.Requests()
		if got := requests[len(requests)-1].Header.Get("Authorization"); got != test.want {
			t.Errorf("%+v: the key was %q", test, got)
		}
	}
}

func TestWarnsOfAKeyInTheClear(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	keyFile := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(keyFile, []byte(testKey), 0o600); err != nil {
		t.Fatal(err)
	}
	_, _, stderr := runPlain(ctx, "url", "--url", "http://api.invalid", "--api-key-file", keyFile, "W1", "J1")
	if !strings.Contains(stderr, "unencrypted") {
		t.Errorf("got %q", stderr)
	}
}

func TestHelp(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{{}, {"--help"}} {
		code, stdout, _ := runPlain(t.Context(), args...)
		if code != exitOK {
			t.Errorf("exit %d", code)
		}
		for _, want := range []string{"Exit codes:", "  130  interrupted", "    6  verification failed", "DOWNLINK_API_KEY_FILE", "completion"} {
			if !strings.Contains(stdout, want) {
				t.Errorf("%q is not in the help", want)
			}
		}
	}
	for _, args := range [][]string{{"completion", "bash"}, {"version"}, {"version", "--json"}} {
		if code, stdout, stderr := runPlain(t.Context(), args...); code != exitOK || stdout == "" || stderr != "" {
			t.Errorf("%s: exit %d, %q", args, code, stderr)
		}
	}
}

package server_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/downlink-go/downlink/server"
)

// TestBadConfiguration: a server does not start with it, and says what to change.
func TestBadConfiguration(t *testing.T) {
	t.Parallel()
	bucket := "file://" + t.TempDir()
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		change func(*server.Config)
		want   string
	}{
		"no bucket":         {func(c *server.Config) { c.Bucket = "" }, "bucket: missing; name the folder"},
		"bucket no URL":     {func(c *server.Config) { c.Bucket = "/data" }, "want a URL such as file:///data"},
		"unknown scheme":    {func(c *server.Config) { c.Bucket = "ftp://user:secret@host/x" }, `unknown scheme "ftp"`},
		"two slashes":       {func(c *server.Config) { c.Bucket = "file://data/x" }, "file:///data/x"},
		"no such folder":    {func(c *server.Config) { c.Bucket = "file:///does/not/exist" }, "make the folder or name another one"},
		"bucket is a file":  {func(c *server.Config) { c.Bucket = "file://" + file }, "make the folder or name another one"},
		"data dir a file":   {func(c *server.Config) { c.DataDir = file }, "data directory"},
		"public URL":        {func(c *server.Config) { c.PublicURL = "downloads.example.com" }, "public URL"},
		"public URL, query": {func(c *server.Config) { c.PublicURL = "https://h/?x=1" }, "public URL"},
		"public URL, user":  {func(c *server.Config) { c.PublicURL = "https://u:secret@h?x" }, "public URL"},
		"database, pairs":   {func(c *server.Config) { c.Database = "host=h password=secret" }, "postgres://"},
		"database, scheme":  {func(c *server.Config) { c.Database = "mysql://u:secret@h/db" }, "postgres://"},
		"link lifetime":     {func(c *server.Config) { c.LinkLifetime = 8 * 24 * time.Hour }, "link lifetime"},
		"negative":          {func(c *server.Config) { c.StallTimeout = -1 }, "stall timeout"},
		"half of TLS":       {func(c *server.Config) { c.TLSCert = file }, "give both or neither"},
		"TLS not PEM":       {func(c *server.Config) { c.TLSCert, c.TLSKey = file, file }, "failed to find any PEM data"},
		"TLS missing":       {func(c *server.Config) { c.TLSCert, c.TLSKey = "/does/not/exist", file }, "/does/not/exist"},
		"CORS origin":       {func(c *server.Config) { c.CORSOrigins = []string{"maps.example.com"} }, "CORS origin"},
		"CORS origin, path": {func(c *server.Config) { c.CORSOrigins = []string{"*", "https://h/"} }, "CORS origin"},
		"trusted proxy":     {func(c *server.Config) { c.TrustedProxies = []string{"proxy.internal"} }, "trusted proxy"},
		"header size":       {func(c *server.Config) { c.Limits.HeaderBytes = 10 }, "header size"},
		"header timeout":    {func(c *server.Config) { c.Limits.HeaderTimeout = -1 }, "header timeout"},
		"ready wait":        {func(c *server.Config) { c.ReadyWait = time.Hour }, "ready wait"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := server.Config{Bucket: bucket, DataDir: filepath.Join(t.TempDir(), "state")}
			tt.change(&c)
			s, err := server.New(t.Context(), c)
			if err == nil {
				s.Close(t.Context())
				t.Fatal("the server was made")
			}
			if !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "secret") {
				t.Errorf("%v, want something with %q", err, tt.want)
			}
		})
	}
}

func TestSecondServerIsRefused(t *testing.T) {
	t.Parallel()
	d := deploy(t)
	_, err := server.New(t.Context(), d.Config)
	if err == nil || !strings.Contains(err.Error(), "in use by another downlinkd") {
		t.Fatalf("a second server on the data directory: %v", err)
	}
	d.Restart() // and one after the other is fine
	d.Write(smallJob)
	d.ready("W1", "J1")
}

func TestSigningKeyFileIsChecked(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		content string
		mode    os.FileMode
		want    string
	}{
		"readable by others": {"", 0o644, "chmod 600"},
		"empty":              {"", 0o600, "has no key"},
		"not base64":         {"?? 2026-01-01T00:00:00Z\n", 0o600, "line 1"},
		"short key":          {"c2hvcnQ= 2026-01-01T00:00:00Z\n", 0o600, "line 1"},
		"no time":            {"\n" + strings.Repeat("A", 44) + "\n", 0o600, "line 2"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			if err := os.WriteFile(filepath.Join(dir, "signing-keys"), []byte(tt.content), tt.mode); err != nil {
				t.Fatal(err)
			}
			s, err := server.New(t.Context(), server.Config{Bucket: "file://" + t.TempDir(), DataDir: dir})
			if err == nil {
				s.Close(t.Context())
				t.Fatal("the server was made")
			}
			if !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v, want something with %q", err, tt.want)
			}
		})
	}
}

// TestRotationDropsOldKeys: a key is kept as long as a link may need it.
func TestRotationDropsOldKeys(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	key := func(letter string) string { return strings.Repeat(letter, 43) + "=" }
	line := func(letter string, age time.Duration) string {
		return key(letter) + " " + time.Now().Add(-age).UTC().Format(time.RFC3339) + "\n"
	}
	const day = 24 * time.Hour
	file := filepath.Join(dir, "signing-keys")
	// I stopped signing 6 days ago, when M was made; E stopped 8 days ago.
	if err := os.WriteFile(file, []byte(line("M", 6*day)+line("I", 8*day)+line("E", 30*day)), 0o600); err != nil {
		t.Fatal(err)
	}
	n, err := server.RotateSigningKey(dir)
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	got := string(data)
	if n != 3 || !strings.Contains(got, key("M")) || !strings.Contains(got, key("I")) || strings.Contains(got, key("E")) {
		t.Errorf("%d keys are left, want the new one and two others", n)
	}
	if strings.HasPrefix(got, key("M")) {
		t.Error("the new key is not the first")
	}
}

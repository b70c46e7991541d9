package server_test

import (
	"crypto/rand"
	"encoding/base64"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/downlink-go/downlink/server"
)

// TestSharedSigningKeys: a URL that one server signed is good on every other one
// with the same keys and state, whichever way they were given.
func TestSharedSigningKeys(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if _, err := server.RotateSigningKey(dir); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "signing-keys")
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	key := strings.Fields(string(text))[0]
	d := deploy(t, func(c *server.Config) { c.SigningKeysFile = file })
	d.Write(smallJob)
	path, _ := d.ready("W1", "J1")

	extra := make([]byte, 32)
	_, _ = rand.Read(extra)
	keys, err := server.ParseSigningKeys(base64.StdEncoding.EncodeToString(extra) + ", " + key + "\n")
	if err != nil || len(keys) != 2 {
		t.Fatalf("%d keys: %v", len(keys), err)
	}
	d.Config.SigningKeysFile, d.Config.SigningKeys = "", keys
	d.Restart()
	if a := d.get(path); a.StatusCode != http.StatusOK {
		t.Errorf("with the keys themselves: status %d, want 200", a.StatusCode)
	}
	d.Config.SigningKeys = keys[:1]
	d.Restart()
	d.get(path).wantError(t, http.StatusForbidden, "signed_url_invalid")
	if _, err := os.Stat(filepath.Join(d.Config.DataDir, "signing-keys")); err == nil {
		t.Error("the server has made keys that it does not need")
	}
}

func TestSigningKeyMistakes(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]server.Config{
		"missing":    {SigningKeysFile: filepath.Join(t.TempDir(), "missing")},
		"both":       {SigningKeysFile: "x", SigningKeys: []server.SigningKey{make([]byte, 32)}},
		"short keys": {SigningKeys: []server.SigningKey{make([]byte, 31)}},
	} {
		c.Bucket, c.DataDir = "file://"+filepath.ToSlash(t.TempDir()), t.TempDir()
		if _, err := server.New(t.Context(), c); err == nil || !strings.Contains(err.Error(), "signing keys") {
			t.Errorf("%s: %v, want an error about the signing keys", name, err)
		}
	}
	for _, bad := range []string{"hidden!", base64.StdEncoding.EncodeToString([]byte("hidden"))} {
		if _, err := server.ParseSigningKeys(bad); err == nil || strings.Contains(err.Error(), bad) {
			t.Errorf("%q: %v, want an error that does not tell it", bad, err)
		}
	}
	if keys, err := server.ParseSigningKeys(" \n"); err != nil || len(keys) != 0 {
		t.Errorf("no keys: %v, %v", keys, err)
	}
}

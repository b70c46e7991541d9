package server_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/downlink-go/downlink/client"
	"github.com/downlink-go/downlink/server"
)

// secrets are known keys and tokens, to look for where they must not be. Every
// deployment looks through its log for them when it ends, and through every
// error that it answers.
type secrets struct {
	mu   sync.Mutex
	list map[string]bool
}

func (s *secrets) add(secret string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.list == nil {
		s.list = map[string]bool{}
	}
	// The end of it alone is as good: the start of a key is its public ID, that
	// of a token is the package.
	s.list[secret[len(secret)-30:]] = true
}

var tokenPattern = regexp.MustCompile(`/packages/([A-Za-z0-9_-]{60,})/|X-Amz-Signature=([0-9a-f]{64})`)

// addTokens adds those of the signed URLs in an answer, ours or the store's.
func (s *secrets) addTokens(body []byte) {
	for _, m := range tokenPattern.FindAllSubmatch(body, -1) {
		s.add(string(m[1]) + string(m[2]))
	}
}

// check fails the test if the text has one of them. It does not show it.
func (s *secrets) check(t testing.TB, what, text string) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	for secret := range s.list {
		if before, _, found := strings.Cut(text, secret); found {
			t.Errorf("%s has a secret, after %q", what, before[max(0, len(before)-200):])
		}
	}
}

// TestSecretsShowNowhere drives everything that carries secrets, good and bad,
// with known ones, and looks for them in the log at its finest level, in every
// error answered, in every error of the client, in the spans, and in what operators
// are shown.
func TestSecretsShowNowhere(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if _, err := server.RotateSigningKey(dir); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "signing-keys")
	d := deploy(t, func(c *server.Config) {
		c.SigningKeysFile = file
		c.StallTimeout = time.Second
		c.Limits.FailuresPerMinute = 20
		c.Limits.DownloadsPerKey = 4
	})
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	signing := strings.Fields(string(data))[0]
	d.Secrets.add(signing)
	raw, err := base64.StdEncoding.DecodeString(signing)
	if err != nil {
		t.Fatal(err)
	}
	d.Secrets.add(fmt.Sprintf("%x", raw))
	d.Secrets.add(fmt.Sprintf("%d", raw))
	d.Write(mixedJob(t))
	d.sparse("W1/J2/inputs/a.bin", 32<<20)

	// The whole way of the client.
	clientError := func(what string, err error) {
		t.Helper()
		if err == nil {
			t.Errorf("%s: no error", what)
			return
		}
		for e := err; e != nil; e = errors.Unwrap(e) {
			d.Secrets.check(t, what, fmt.Sprintf("%v %+v %#v", e, e, e))
		}
	}
	c := d.newClient(d.Key)
	if _, err := c.Save(t.Context(), "W1", "J1", filepath.Join(t.TempDir(), "j.zip")); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Extract(t.Context(), "W1", "J1", t.TempDir()); err != nil {
		t.Fatal(err)
	}
	p, err := c.Open(t.Context(), "W1", "J1")
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if _, err := p.Open("inputs/none"); err == nil {
		t.Error("a file that is not there was opened")
	}
	bad := d.Key[:len(d.Key)-1] + "?"
	d.Secrets.add(bad)
	_, err = d.newClient(bad).Save(t.Context(), "W1", "J1", filepath.Join(t.TempDir(), "j.zip"))
	clientError("a bad key", err)

	// Everything that is wrong with a URL or a key.
	path, download := d.ready("W1", "J1")
	large, _ := d.ready("W1", "J2")
	token := strings.Split(path, "/")[2]
	other := newInvalidKey()
	d.Secrets.add(other)
	d.get(path, "Range", "bytes=0-9")
	d.get(path, "Range", "bytes=99999999-")
	d.get(path, "Range", "bytes="+token)
	d.get(path, "If-Match", `"x"`)
	d.get("/packages/" + token)
	d.get("/packages/" + token + "/other.zip")
	d.get("/v0/" + token + "/W1_J1.zip")
	d.get(path + "?key=" + d.Key)
	d.do(http.MethodPost, path, nil)
	d.do(http.MethodOptions, path, nil)
	d.do(http.MethodPut, apiPath("W1", d.Key), http.Header{"Authorization": {d.Key + "x"}})
	d.do(http.MethodPut, apiPath("W1", d.Key), http.Header{"Authorization": {d.Key}})
	d.do(http.MethodPut, apiPath(token, "J1"), http.Header{"Authorization": {d.Key}})
	d.do(http.MethodPut, apiPath("W1", "J1"), http.Header{"Authorization": {d.Key, d.Key}})
	d.do(http.MethodPut, apiPath("W1", "J1"), http.Header{"Authorization": {d.Key}, "X-Large": {strings.Repeat(d.Key, 300)}})
	d.do(http.MethodGet, "/?"+url.Values{"key": {d.Key}}.Encode(), nil)
	for range 25 {
		d.do(http.MethodPut, apiPath("W1", "J1"), http.Header{"Authorization": {other}}) // throttled in the end
	}
	var running []*http.Response
	for range 4 {
		running = append(running, d.begin(large))
	}
	d.get(large).wantError(t, 429, "rate_limited")
	for _, text := range []string{
		"GET " + path + " HTTP/1.1\r\nHost: x\r\nX y: z\r\n\r\n",
		"GET " + path + " HTTP/3.1\r\nHost: x\r\n\r\n",
		"GET " + path + " HTTP/1.1\r\n\r\n",
		"PUT " + apiPath("W1", "J1") + " HTTP/1.1\r\nHost: x\r\nAuthorization: " + d.Key + "\x00\r\n\r\n",
	} {
		got, err := d.raw(text)
		if err != nil {
			t.Fatal(err)
		}
		d.Secrets.check(t, "the answer to a malformed request", got)
	}

	// Downloads that are cut, for the server's reasons.
	for _, r := range running[1:] {
		r.Body.Close()
	}
	if err := os.Truncate(filepath.Join(d.Bucket, "W1/J2/inputs/a.bin"), 1<<20); err != nil {
		t.Fatal(err)
	}
	_, err = bytes.NewBuffer(nil).ReadFrom(running[0].Body)
	clientError("a download that was cut", err)
	running[0].Body.Close()
	d.get(large).wantError(t, 410, "package_outdated")

	for _, page := range []string{"/metrics", "/healthz", "/readyz", "/debug/pprof/goroutine?debug=2"} {
		_, text := d.admin(page)
		d.Secrets.check(t, page, text)
	}

	// A server that is gone.
	if err := d.Stop(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	_, err = c.Save(ctx, "W1", "J1", filepath.Join(t.TempDir(), "j.zip"))
	clientError("a server that is gone", err)
	_, err = client.New("http://user:" + d.Key + "@localhost")
	if err != nil {
		d.Secrets.check(t, "a client's error", err.Error())
	}
	if !strings.Contains(d.Log.String(), "/packages/:token/:filename") || download.SignedURL == "" {
		t.Error("downloads are not in the log")
	}
}

// TestSecretFilesArePrivate: whatever the server writes is for its owner alone.
func TestSecretFilesArePrivate(t *testing.T) {
	t.Parallel()
	if runtime.GOOS == "windows" {
		t.Skip("no modes")
	}
	d := deploy(t)
	d.Write(smallJob)
	d.ready("W1", "J1")
	if _, err := server.RotateSigningKey(d.Config.DataDir); err != nil {
		t.Fatal(err)
	}
	files := 0
	err := filepath.WalkDir(d.Config.DataDir, func(_ string, e os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		want := os.FileMode(0o600)
		if e.IsDir() {
			want = 0o700
		} else {
			files++
		}
		if got := info.Mode().Perm(); got != want {
			t.Errorf("%s has mode %v, want %v", e.Name(), got, want)
		}
		return nil
	})
	if err != nil || files < 3 {
		t.Errorf("%d files, %v", files, err)
	}
}

package server_test

import (
	"crypto/rand"
	"database/sql"
	"encoding/base32"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/downlink-go/downlink/server"
	"github.com/downlink-go/downlink/server/internal/catalog/catalogtest"
)

// wantRetryAfter checks the error and that it says when to come back.
func (a answer) wantRetryAfter(t testing.TB, status int, code string, least, most int) {
	t.Helper()
	a.wantError(t, status, code)
	if s, err := strconv.Atoi(a.Header.Get("Retry-After")); err != nil || s < least || s > most {
		t.Errorf("Retry-After %q, want %d to %d", a.Header.Get("Retry-After"), least, most)
	}
}

// TestRequestsPerKey: a key has so many calls and gets more as time goes by;
// other keys have theirs.
func TestRequestsPerKey(t *testing.T) {
	t.Parallel()
	const limit = 30
	d := deploy(t, func(c *server.Config) { c.Limits.RequestsPerMinute = limit })
	d.Write(smallJob)
	other := d.NewOrganization("other", "W1")
	remaining := regexp.MustCompile(`^"default";r=(\d+);t=(\d+)$`)
	refused := 0
	for i := range limit + 5 {
		a := d.put("W1", "J1")
		if got, want := a.Header.Get("RateLimit-Policy"), fmt.Sprintf(`"default";q=%d;w=60`, limit); got != want {
			t.Fatalf("RateLimit-Policy %q, want %q", got, want)
		}
		m := remaining.FindStringSubmatch(a.Header.Get("RateLimit"))
		if m == nil {
			t.Fatalf("RateLimit %q", a.Header.Get("RateLimit"))
		}
		left, _ := strconv.Atoi(m[1])
		if least := limit - 1 - i; left < least || left > limit {
			t.Errorf("call %d: %d left, want %d or more", i, left, least)
		}
		if reset, _ := strconv.Atoi(m[2]); reset < 1 || reset > 60 {
			t.Errorf("call %d: all there again after %d s", i, reset)
		}
		if a.StatusCode == http.StatusTooManyRequests {
			refused++
			a.wantRetryAfter(t, 429, "rate_limited", 1, 2)
			if left != 0 {
				t.Errorf("refused with %d left", left)
			}
		} else {
			a.download(t)
		}
	}
	if refused == 0 {
		t.Error("no call was refused")
	}
	d.do(http.MethodPut, apiPath("W1", "J1"), http.Header{"Authorization": {other}}).download(t)
	eventually(t, "the key may call again", func() bool { return d.put("W1", "J1").StatusCode == http.StatusOK })
	if a := d.do(http.MethodPut, apiPath("W1", "J1"), nil); a.Header.Get("RateLimit") != "" {
		t.Error("a stranger is told about limits")
	}
}

// newInvalidKey has the form of an API key.
func newInvalidKey() string {
	b := make([]byte, 40)
	_, _ = rand.Read(b)
	s := strings.ToLower(base32.StdEncoding.EncodeToString(b))
	return "dl_" + s[:12] + "_" + s[12:64]
}

// TestFailedKeys: an address from which too many invalid keys come is throttled;
// a key that was valid goes on working there, and so do other addresses.
func TestFailedKeys(t *testing.T) {
	t.Parallel()
	const limit = 10
	d := deploy(t, func(c *server.Config) {
		c.Limits.FailuresPerMinute = limit
		c.TrustedProxies = []string{"127.0.0.1"}
	})
	d.Write(smallJob)
	call := func(key, address string) answer {
		return d.do(http.MethodPut, apiPath("W1", "J1"), http.Header{"Authorization": {key}, "X-Forwarded-For": {address}})
	}
	call(d.Key, "2001:db8::1").download(t)
	guess := func(address string) (throttled int) {
		for range limit + 5 {
			switch a := call(newInvalidKey(), address); a.StatusCode {
			case http.StatusUnauthorized:
			case http.StatusTooManyRequests:
				a.wantRetryAfter(t, 429, "rate_limited", 1, 6)
				throttled++
			default:
				t.Errorf("status %d", a.StatusCode)
			}
		}
		return throttled
	}
	if n := guess("2001:db8::1"); n < 3 || n > 5 {
		t.Errorf("%d of %d were throttled", n, limit+5)
	}
	call(newInvalidKey(), "2001:db8::ffff").wantError(t, 429, "rate_limited")     // the same network
	call(newInvalidKey(), "2001:db8:0:1::1").wantError(t, 401, "unauthenticated") // another one
	call(newInvalidKey(), "192.0.2.1").wantError(t, 401, "unauthenticated")
	call(d.Key, "2001:db8::1").download(t) // was seen
	fresh := d.NewOrganization("fresh", "W1")
	call(fresh, "2001:db8::1").wantError(t, 429, "rate_limited")
	call(fresh, "192.0.2.1").download(t)
	call(fresh, "2001:db8::1").download(t) // now it was seen
	// No key at all costs nothing and counts for nothing.
	for range limit + 5 {
		call("", "198.51.100.7").wantError(t, 401, "unauthenticated")
	}
	call(newInvalidKey(), "198.51.100.7").wantError(t, 401, "unauthenticated")
}

// TestDownloadsAtATime: of all clients and of one key. Those that end make room.
func TestDownloadsAtATime(t *testing.T) {
	t.Parallel()
	d := deploy(t, func(c *server.Config) { c.Limits.Downloads, c.Limits.DownloadsPerKey = 5, 3 })
	d.sparse("W1/J1/inputs/a.bin", 64<<20)
	path, _ := d.ready("W1", "J1")
	other := d.NewOrganization("other", "W1")
	d.Key = other
	otherPath, _ := d.ready("W1", "J1")

	var running []*http.Response
	for _, p := range []string{path, path, path} {
		running = append(running, d.begin(p))
	}
	a := d.get(path, "Range", "bytes=0-9")
	a.wantRetryAfter(t, 429, "rate_limited", 1, 60)
	for _, h := range []string{"ETag", "Content-Range", "Content-Disposition"} {
		if a.Header.Get(h) != "" {
			t.Errorf("the refusal has %s", h)
		}
	}
	for _, p := range []string{otherPath, otherPath} {
		running = append(running, d.begin(p))
	}
	d.get(otherPath, "Range", "bytes=0-9").wantRetryAfter(t, 503, "unavailable", 1, 60)
	d.put("W1", "J1").download(t) // which is no download
	for _, r := range running {
		r.Body.Close()
	}
	for _, p := range []string{path, otherPath} {
		eventually(t, "there is room again", func() bool { return d.get(p, "Range", "bytes=0-9").StatusCode == http.StatusPartialContent })
	}
}

// TestDownloadsAreCountedWhatever: however a request for a package ends, it gives
// its place back.
func TestDownloadsAreCountedWhatever(t *testing.T) {
	t.Parallel()
	d := deploy(t, func(c *server.Config) { c.Limits.Downloads = 1 })
	d.Write(smallJob)
	path, _ := d.ready("W1", "J1")
	for range 3 {
		d.get(path)
		d.do(http.MethodHead, path, nil)
		d.get(path, "Range", "bytes=99999999-").wantError(t, 416, "range_not_satisfiable")
		d.get(path, "If-Match", `"x"`).wantError(t, 412, "precondition_failed")
		d.get(path+"x").wantError(t, 403, "signed_url_invalid")
	}
	if err := os.Remove(filepath.Join(d.Bucket, "W1/J1/inputs/a.txt")); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		d.get(path).wantError(t, 410, "package_outdated")
	}
}

func TestTrustedProxies(t *testing.T) {
	t.Parallel()
	trusting := deploy(t, func(c *server.Config) { c.TrustedProxies = []string{"127.0.0.0/8", "10.0.0.1"} })
	wary := deploy(t, func(c *server.Config) { c.TrustedProxies = []string{"10.0.0.0/8"} })
	for _, tt := range []struct {
		name           string
		d              *deployment
		header         http.Header
		origin, remote string // "" for what the connection has
	}{
		{"direct", trusting, nil, "", ""},
		{"forwarded", trusting, http.Header{"X-Forwarded-For": {"192.0.2.7"}, "X-Forwarded-Proto": {"https"},
			"X-Forwarded-Host": {"dl.example.com:8443"}}, "https://dl.example.com:8443", "192.0.2.7"},
		{"two proxies", trusting, http.Header{"X-Forwarded-For": {"198.51.100.1, 192.0.2.7", "10.0.0.1"}}, "", "192.0.2.7"},
		{"made up in front", trusting, http.Header{"X-Forwarded-For": {"127.0.0.1, 192.0.2.7"}}, "", "192.0.2.7"},
		{"proxies only", trusting, http.Header{"X-Forwarded-For": {"127.0.0.2, 10.0.0.1"}}, "", "127.0.0.2"},
		{"with a port", trusting, http.Header{"X-Forwarded-For": {"192.0.2.7:51234"}}, "", "192.0.2.7"},
		{"IPv6", trusting, http.Header{"X-Forwarded-For": {"2001:db8::7"}}, "", "2001:db8::7"},
		{"IPv6 with a port", trusting, http.Header{"X-Forwarded-For": {"[2001:db8::7]:443, 127.0.0.2:80"}}, "", "2001:db8::7"},
		{"nonsense", trusting, http.Header{"X-Forwarded-For": {"unknown"}, "X-Forwarded-Proto": {"javascript"},
			"X-Forwarded-Host": {"a/b?c@d"}}, "", ""},
		{"not trusted", wary, http.Header{"X-Forwarded-For": {"192.0.2.7"}, "X-Forwarded-Proto": {"https"},
			"X-Forwarded-Host": {"evil.example"}}, "", ""},
	} {
		tt.d.Write(smallJob)
		h := tt.header.Clone()
		if h == nil {
			h = http.Header{}
		}
		h.Set("Authorization", tt.d.Key)
		a := tt.d.do(http.MethodPut, apiPath("W1", "J1"), h)
		origin, _, _ := strings.Cut(a.download(t).SignedURL, "/packages/")
		if tt.origin == "" {
			tt.origin = tt.d.URL
		}
		if origin != tt.origin {
			t.Errorf("%s: the signed URL starts with %s, want %s", tt.name, origin, tt.origin)
		}
		id := a.Header.Get("X-Request-Id")
		var remote string
		eventually(t, "the call is logged", func() bool {
			for line := range strings.Lines(tt.d.Log.String()) {
				if _, rest, ok := strings.Cut(line, " remote="); ok && strings.Contains(line, id) {
					remote, _, _ = strings.Cut(strings.TrimSpace(rest), " ")
				}
			}
			return remote != ""
		})
		if tt.remote == "" {
			if p, err := netip.ParseAddrPort(remote); err != nil || !p.Addr().IsLoopback() {
				t.Errorf("%s: remote %s, want that of the connection", tt.name, remote)
			}
		} else if remote != tt.remote {
			t.Errorf("%s: remote %s, want %s", tt.name, remote, tt.remote)
		}
	}
}

// TestHostIsNotNamed: HTTP/1.0 has no Host. Signed URLs start with the address that
// was reached then.
func TestHostIsNotNamed(t *testing.T) {
	t.Parallel()
	d := deploy(t)
	d.Write(smallJob)
	call := "PUT " + apiPath("W1", "J1") + " HTTP/%s\r\nConnection: close\r\nAuthorization: " + d.Key + "\r\n%s\r\n"
	for _, request := range []string{fmt.Sprintf(call, "1.0", ""), fmt.Sprintf(call, "1.1", "Host:\r\n")} {
		got, err := d.raw(request)
		if err != nil {
			t.Fatal(err)
		}
		d.Secrets.addTokens([]byte(got))
		if !strings.Contains(got, `"signed_url":"`+d.URL+`/packages/`) {
			t.Error("the signed URL does not start with the address of the server")
		}
	}
}

// TestDownloadsAreLoggedWithTheirKey: the ID of the API key that a URL was signed
// for, which is no secret, is in the access log.
func TestDownloadsAreLoggedWithTheirKey(t *testing.T) {
	t.Parallel()
	d := deploy(t)
	d.Write(smallJob)
	path, _ := d.ready("W1", "J1")
	id := d.get(path).Header.Get("X-Request-Id")
	eventually(t, "the download is logged with its key", func() bool {
		for line := range strings.Lines(d.Log.String()) {
			if strings.Contains(line, id) {
				return strings.Contains(line, "key_id="+strings.Split(d.Key, "_")[1])
			}
		}
		return false
	})
}

// TestLoggedText: of what clients make up the log has a part, without what a
// terminal takes for a command.
func TestLoggedText(t *testing.T) {
	t.Parallel()
	log := &logBuffer{}
	d := deploy(t, func(c *server.Config) { c.Log = slog.New(slog.NewJSONHandler(log, nil)) })
	long := strings.Repeat("X", 10<<10)
	id := d.do(http.MethodGet, "/", http.Header{"User-Agent": {"\u009b31mred\xff " + long}}).Header.Get("X-Request-Id")
	longID := d.do(long, "/", nil).Header.Get("X-Request-Id")
	for _, id := range []string{id, longID} {
		eventually(t, "the request is logged", func() bool { return strings.Contains(log.String(), id) })
	}
	for line := range strings.Lines(log.String()) {
		switch {
		case strings.Contains(line, "\u009b"):
			t.Error("a command for terminals is in the log")
		case len(line) > 1000:
			t.Errorf("a line of %d bytes", len(line))
		case strings.Contains(line, id) && !strings.Contains(line, `"user_agent":"?31mred`):
			t.Errorf("logged as %s", line)
		}
	}
}

// TestConnectionsAtATime: more than so many wait, and are served when others end.
func TestConnectionsAtATime(t *testing.T) {
	t.Parallel()
	const limit = 4
	d := deploy(t, func(c *server.Config) {
		c.Limits.Connections = limit
		c.Limits.IdleTimeout = 200 * time.Millisecond
	})
	d.Write(smallJob)
	path, _ := d.ready("W1", "J1")
	d.Client.CloseIdleConnections()
	var done atomic.Int32
	var wg sync.WaitGroup
	for range 5 * limit {
		wg.Go(func() {
			client := &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{}} // a connection of its own, left idle
			r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, d.URL+path, nil)
			if err != nil {
				t.Error(err)
				return
			}
			response, err := client.Do(r)
			if err != nil {
				t.Error(redacted(err))
				return
			}
			response.Body.Close()
			if response.StatusCode == http.StatusOK {
				done.Add(1)
			}
		})
	}
	wg.Wait()
	if n := done.Load(); n != 5*limit {
		t.Errorf("%d of %d were served", n, 5*limit)
	}
}

// TestHeaderLimits: too large is an error of the contract, far too large and too
// slow end the connection.
func TestHeaderLimits(t *testing.T) {
	t.Parallel()
	d := deploy(t, func(c *server.Config) {
		c.Limits.HeaderBytes = 2 << 10
		c.Limits.HeaderTimeout = 300 * time.Millisecond
	})
	d.Write(smallJob)
	with := func(n int) answer {
		return d.do(http.MethodPut, apiPath("W1", "J1"), http.Header{"Authorization": {d.Key}, "X-Large": {strings.Repeat("x", n)}})
	}
	with(1 << 10).download(t)
	if e := with(3<<10).wantError(t, 400, "invalid_parameter"); len(e.Details) != 1 || e.Details[0].Limit != 2<<10 {
		t.Errorf("details %v, want the limit", e.Details)
	}
	d.get("/packages/"+strings.Repeat("x", 3<<10)).wantError(t, 400, "invalid_parameter")
	for name, text := range map[string]string{
		"a huge header":  "PUT / HTTP/1.1\r\nHost: x\r\nX-Large: " + strings.Repeat("x", 20<<10) + "\r\n\r\n",
		"a slow header":  "PUT / HTTP/1.1\r\nHost:",
		"no header":      "",
		"a body to come": "PUT " + apiPath("W1", "J1") + " HTTP/1.1\r\nHost: x\r\nAuthorization: " + d.Key + "\r\nContent-Length: 100000\r\n\r\nx",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, err := d.raw(text)
			if err != nil {
				t.Fatal(err)
			}
			if name == "a body to come" && !strings.HasPrefix(got, "HTTP/1.1 200") {
				t.Errorf("answered %.40q, want 200", got)
			}
			if name == "a huge header" && !strings.HasPrefix(got, "HTTP/1.1 431") {
				t.Errorf("answered %.40q, want 431", got)
			}
		})
	}
}

// raw sends text on a connection of its own and returns what comes until the
// server closes it.
func (d *deployment) raw(text string) (string, error) {
	conn, err := (&net.Dialer{}).DialContext(d.t.Context(), "tcp", strings.TrimPrefix(d.URL, "http://"))
	if err != nil {
		return "", err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		return "", err
	}
	if _, err := io.WriteString(conn, text); err != nil {
		return "", err
	}
	got, err := io.ReadAll(conn)
	if errors.Is(err, syscall.ECONNRESET) {
		err = nil // closed with something unread
	}
	return string(got), err
}

// TestFailedKeysAtATime: keys that are sent all at once are not all looked up,
// however long the database takes.
func TestFailedKeysAtATime(t *testing.T) {
	t.Parallel()
	const limit, guesses = 5, 40
	database := catalogtest.Postgres(t)
	d := deploy(t, func(c *server.Config) { c.Database, c.Limits.FailuresPerMinute = database, limit })
	d.Write(smallJob)
	db, err := sql.Open("pgx", database)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	tx, err := db.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback() }() // if it is not over
	if _, err := tx.ExecContext(t.Context(), "LOCK TABLE api_keys IN ACCESS EXCLUSIVE MODE"); err != nil {
		t.Fatal(err)
	}
	statuses := make(chan int, guesses)
	for range guesses {
		go func() {
			r, err := http.NewRequestWithContext(t.Context(), http.MethodPut, d.URL+apiPath("W1", "J1"), nil)
			if err != nil {
				statuses <- 0
				return
			}
			r.Header.Set("Authorization", newInvalidKey())
			response, err := d.Client.Do(r)
			if err != nil {
				statuses <- 0
				return
			}
			response.Body.Close()
			statuses <- response.StatusCode
		}()
	}
	active := fmt.Sprintf(`downlink_http_active_requests{route="/v0/workflows/:workflow_id/jobs/:job_id/download"} %d`, guesses)
	eventually(t, "all of them are waiting", func() bool {
		_, page := d.admin("/metrics")
		return strings.Contains(page, active)
	})
	if err := tx.Rollback(); err != nil {
		t.Fatal(err)
	}
	count := map[int]int{}
	for range guesses {
		count[<-statuses]++
	}
	// One more may be had every twelve seconds.
	if n := count[http.StatusUnauthorized]; n < limit || n > limit+2 || n+count[http.StatusTooManyRequests] != guesses {
		t.Errorf("answers %v, want some %d of status 401 and else 429", count, limit)
	}
}

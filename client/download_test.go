package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

const testKey = "dl_testkey_secretsecretsecret"

// roundTripper answers without a network, so that time can be made up.
type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func response(status int, body string, header ...string) *http.Response {
	h := http.Header{"Content-Type": {"application/json"}}
	for i := 0; i < len(header); i += 2 {
		h.Set(header[i], header[i+1])
	}
	return &http.Response{StatusCode: status, Header: h, Body: io.NopCloser(strings.NewReader(body))}
}

func newTestClient(t *testing.T, f roundTripper, opts ...Option) *Client {
	t.Helper()
	c, err := New("https://api.test", append([]Option{WithAPIKey(testKey), WithHTTPClient(&http.Client{Transport: f})}, opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

const readyAnswer = `{"id": "i", "status": "ready", "signed_url": "https://data.test/p.zip?sig=hush", "workflowId": "W1"}`
const pendingAnswer = `{"id": "i", "status": "pending", "workflowId": "W1"}`

func TestNewRefuses(t *testing.T) {
	t.Parallel()
	for name, base := range map[string]string{
		"no scheme": "api.test", "no host": "https://", "another scheme": "ftp://api.test",
		"user": "https://user:secret@api.test", "query": "https://api.test?key=secret", "nonsense": "https://[",
	} {
		if _, err := New(base); err == nil || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, opt := range map[string]Option{
		"line break in the key": WithAPIKey("se\ncret"), "key not ASCII": WithAPIKey("secrét"),
		"no HTTP client": WithHTTPClient(nil), "no logger": WithLogger(nil), "no time": WithReadyTimeout(0),
	} {
		if _, err := New("", opt); err == nil || strings.Contains(err.Error(), "secr") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestDownloadJob(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name   string
		answer *http.Response
		ready  bool
		check  func(*Download) bool
	}{
		{"ready", response(200, readyAnswer, "Downlink-Expires", "2026-01-02T03:04:05Z", "Downlink-Package-Size", "123"), true, func(d *Download) bool {
			return d.ID == "i" && d.Size == 123 && d.Expires.Equal(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)) && d.Progress == -1
		}},
		{"status in another case", response(200, strings.Replace(readyAnswer, "ready", "READY", 1)), true, nil},
		{"unknown status with a URL", response(200, strings.Replace(readyAnswer, "ready", "COMPLETED", 1)), true, nil},
		{"unknown status without", response(200, strings.Replace(pendingAnswer, "pending", "QUEUED", 1)), false, nil},
		{"pending", response(200, pendingAnswer, "Retry-After", "7", "Downlink-Progress", "0.42", "Downlink-Pending-Reason", "checksumming"), false, func(d *Download) bool {
			return d.RetryAfter == 7*time.Second && d.Progress == 0.42 && d.PendingReason == "checksumming"
		}},
		{"pending with a URL", response(200, strings.Replace(readyAnswer, "ready", "Pending", 1)), false, nil},
		{"ready without a URL", response(200, strings.Replace(pendingAnswer, "pending", "ready", 1)), false, nil},
		{"signed_url null", response(200, `{"id": "i", "status": "pending", "signed_url": null, "workflowId": "W1"}`), false, nil},
		{"signed_url empty", response(200, `{"id": "i", "status": "pending", "signed_url": "", "workflowId": "W1"}`), false, nil},
		{"more members", response(200, `{"id": "i", "status": "pending", "workflowId": "W1", "more": {}}`), false, nil},
		{"nonsense in headers", response(200, readyAnswer, "Downlink-Expires", "soon", "Downlink-Package-Size", "big", "Retry-After", "-5", "Downlink-Progress", "NaN"), true, func(d *Download) bool {
			return d.Expires.IsZero() && d.Size == 0 && d.RetryAfter == 0 && d.Progress == -1
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			c := newTestClient(t, func(r *http.Request) (*http.Response, error) {
				if r.Method != http.MethodPut || r.URL.Path != "/v0/workflows/W1/jobs/J1/download" {
					t.Errorf("%s %s", r.Method, r.URL)
				}
				if got := r.Header.Get("Authorization"); got != testKey {
					t.Error("the key is not sent as it is")
				}
				return tt.answer, nil
			})
			d, err := c.DownloadJob(t.Context(), "W1", "J1")
			if err != nil {
				t.Fatal(err)
			}
			if d.Ready() != tt.ready || tt.check != nil && !tt.check(d) {
				t.Errorf("ready %t: %+v", d.Ready(), d)
			}
		})
	}
}

func TestDownloadJobErrors(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name   string
		answer *http.Response
		want   APIError
		text   string
	}{
		{"downlinkd", response(400, `{"error": {"code": "asset_missing", "message": "1 asset is missing", "details": [{"asset": "outputs/a", "message": "not found"}]}}`, "X-Request-Id", "r1"),
			APIError{StatusCode: 400, Code: "asset_missing", Message: "1 asset is missing", RequestID: "r1"}, "outputs/a: not found"},
		{"code is a number", response(403, `{"error": {"code": 7, "message": "denied", "details": {}}}`),
			APIError{StatusCode: 403, Code: "7", Message: "denied"}, "403 7: denied"},
		{"details of another form", response(400, `{"error": {"code": "x", "message": "m", "details": [{"@type": "a"}, 5]}}`),
			APIError{StatusCode: 400, Code: "x", Message: "m"}, "400 x: m"},
		{"no envelope", response(502, `<html>Bad Gateway</html>`, "Retry-After", "3"),
			APIError{StatusCode: 502, RetryAfter: 3 * time.Second}, "502 Bad Gateway"},
		{"empty", response(401, ``), APIError{StatusCode: 401}, "401 Unauthorized"},
		{"error is a string", response(500, `{"error": "no"}`), APIError{StatusCode: 500}, "500"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			c := newTestClient(t, func(*http.Request) (*http.Response, error) { return tt.answer, nil })
			_, err := c.DownloadJob(t.Context(), "W1", "J1")
			got, ok := errors.AsType[*APIError](err)
			if !ok {
				t.Fatalf("%v is not an APIError", err)
			}
			if got.StatusCode != tt.want.StatusCode || got.Code != tt.want.Code || got.Message != tt.want.Message ||
				got.RequestID != tt.want.RequestID || got.RetryAfter != tt.want.RetryAfter {
				t.Errorf("got %+v, want %+v", got, tt.want)
			}
			if !strings.Contains(got.Error(), tt.text) {
				t.Errorf("%q does not say %q", got.Error(), tt.text)
			}
		})
	}
	for name, body := range map[string]string{
		"not JSON": "hello", "another type": `{"id": 5}`, "a URL that is none": `{"id": "i", "status": "ready", "signed_url": "file:///secret"}`,
		"endless": `{"id": "` + strings.Repeat("x", 2*maxAnswer),
	} {
		c := newTestClient(t, func(*http.Request) (*http.Response, error) { return response(200, body), nil })
		if _, err := c.DownloadJob(t.Context(), "W1", "J1"); err == nil || strings.Contains(err.Error(), "secret") || len(err.Error()) > 200 {
			t.Errorf("%s: %v", name, err)
		}
	}
	c := newTestClient(t, func(*http.Request) (*http.Response, error) { return nil, errors.New("unreachable") })
	for _, ids := range [][2]string{{"", "J"}, {"W", ""}, {"..", "J"}, {"W", "."}} {
		if _, err := c.DownloadJob(t.Context(), ids[0], ids[1]); err == nil || strings.Contains(err.Error(), "unreachable") {
			t.Errorf("%q: %v", ids, err)
		}
	}
}

// TestKeyStaysHome: a redirect to another host, port or scheme gets no key.
func TestKeyStaysHome(t *testing.T) {
	t.Parallel()
	var got []string
	other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got = append(got, r.Header.Get("Authorization"))
		_, _ = io.WriteString(w, pendingAnswer)
	}))
	defer other.Close()
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != testKey {
			t.Error("no key for the API")
		}
		http.Redirect(w, r, other.URL, http.StatusTemporaryRedirect)
	}))
	defer api.Close()
	c, err := New(api.URL, WithAPIKey(testKey))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.DownloadJob(t.Context(), "W1", "J1"); err != nil {
		t.Fatal(err)
	}
	if len(got) != 1 || got[0] != "" {
		t.Errorf("the other host got %d requests, with a key: %t", len(got), len(got) > 0 && got[0] != "")
	}
}

// TestSecretsAreNotPrinted: whatever happens, no error, log or value shows a key
// or a signed URL.
func TestSecretsAreNotPrinted(t *testing.T) {
	t.Parallel()
	var log bytes.Buffer
	answers := []func() (*http.Response, error){
		func() (*http.Response, error) { return response(200, readyAnswer), nil },
		func() (*http.Response, error) { return nil, errors.New("connection reset") },
		func() (*http.Response, error) { return response(500, ""), nil },
	}
	var printed strings.Builder
	for _, answer := range answers {
		c := newTestClient(t, func(*http.Request) (*http.Response, error) { return answer() },
			WithLogger(slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))))
		d, err := c.DownloadJob(t.Context(), "W1", "J1")
		for _, format := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
			fmt.Fprintf(&printed, format+format, d, err)
			if d != nil {
				fmt.Fprintf(&printed, format+format, d.SignedURL, *d)
			}
			fmt.Fprintf(&printed, format, APIKey(testKey))
		}
		slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "d", d, "key", APIKey(testKey))
	}
	for _, secret := range []string{"hush", "secretsecret"} {
		if strings.Contains(printed.String(), secret) {
			t.Errorf("printed: %s", &printed)
		}
	}
	for _, secret := range []string{"hush", "secretsecret"} {
		if strings.Contains(log.String(), secret) {
			t.Errorf("logged: %s", &log)
		}
	}
}

func TestWaitUntilReady(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		answers := []func() (*http.Response, error){
			func() (*http.Response, error) { return response(200, pendingAnswer, "Retry-After", "10"), nil },
			func() (*http.Response, error) { return response(503, "", "Retry-After", "20"), nil },
			func() (*http.Response, error) { return nil, errors.New("connection refused") },
			func() (*http.Response, error) {
				return response(200, strings.Replace(pendingAnswer, "pending", "Queued", 1),
					"Retry-After", time.Now().Add(15*time.Second).UTC().Format(http.TimeFormat)), nil
			},
			func() (*http.Response, error) { return response(200, pendingAnswer, "Retry-After", "86400"), nil },
			func() (*http.Response, error) { return response(200, pendingAnswer), nil },
			func() (*http.Response, error) { return response(200, readyAnswer), nil },
		}
		// At least what the server asks for, at most a tenth more.
		pauses := []time.Duration{10 * time.Second, 20 * time.Second, time.Second, 14 * time.Second, time.Minute, time.Second}
		var at []time.Duration
		c := newTestClient(t, func(r *http.Request) (*http.Response, error) {
			if got := r.Header.Get("Prefer"); got != "wait=30" {
				t.Errorf("Prefer %q, want wait=30", got)
			}
			at = append(at, time.Since(start))
			return answers[len(at)-1]()
		})
		if _, err := c.WaitUntilReady(t.Context(), "W1", "J1"); err != nil {
			t.Fatal(err)
		}
		for i, want := range pauses {
			got := at[i+1] - at[i]
			if got < want || got > want+want/10+time.Second {
				t.Errorf("pause %d was %s, want about %s", i+1, got, want)
			}
		}
	})
}

func TestWaitUntilReadyEnds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		pending := func(*http.Request) (*http.Response, error) {
			return response(200, pendingAnswer, "Retry-After", "7", "Downlink-Progress", "0.42"), nil
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		start := time.Now()
		_, err := newTestClient(t, pending).WaitUntilReady(ctx, "W1", "J1")
		notReady, ok := errors.AsType[*NotReadyError](err)
		if !ok || !errors.Is(err, context.DeadlineExceeded) || notReady.Last == nil || !strings.Contains(err.Error(), "42 %") {
			t.Errorf("at the deadline: %v", err)
		}
		if took := time.Since(start); took != time.Minute {
			t.Errorf("it ended after %s", took)
		}

		start = time.Now()
		_, err = newTestClient(t, pending, WithReadyTimeout(20*time.Second)).WaitUntilReady(t.Context(), "W1", "J1")
		if _, ok := errors.AsType[*NotReadyError](err); !ok || time.Since(start) != 20*time.Second {
			t.Errorf("with a timeout of 20 s, after %s: %v", time.Since(start), err)
		}

		for _, status := range []int{400, 401, 403, 404, 500} {
			calls := 0
			_, err := newTestClient(t, func(*http.Request) (*http.Response, error) {
				calls++
				return response(status, ""), nil
			}).WaitUntilReady(t.Context(), "W1", "J1")
			if e, ok := errors.AsType[*APIError](err); !ok || e.StatusCode != status || calls != 1 {
				t.Errorf("status %d: %d calls, %v", status, calls, err)
			}
		}

		calls := 0
		_, err = newTestClient(t, func(*http.Request) (*http.Response, error) {
			calls++
			return nil, errors.New("connection refused")
		}).WaitUntilReady(t.Context(), "W1", "J1")
		if calls != maxFailed || err == nil || !strings.Contains(err.Error(), "connection refused") {
			t.Errorf("no connection: %d calls, %v", calls, err)
		}
	})
}

func TestAPIErrorDetailsAreJSON(t *testing.T) {
	t.Parallel()
	c := newTestClient(t, func(*http.Request) (*http.Response, error) {
		return response(400, `{"error": {"code": "x", "message": "m", "details": [1, 2]}}`), nil
	})
	_, err := c.DownloadJob(t.Context(), "W1", "J1")
	e, _ := errors.AsType[*APIError](err)
	var details []int
	if err := json.Unmarshal(e.Details, &details); err != nil || len(details) != 2 {
		t.Errorf("details %s: %v", e.Details, err)
	}
}

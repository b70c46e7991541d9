package faultserver_test

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/downlink-go/downlink/client/internal/faultserver"
)

func content(n int) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{1})
	_, _ = r.Read(b)
	return b
}

// get requests a range, or all if it is empty.
func get(t *testing.T, s *faultserver.Server, url, bytesRange string) (*http.Response, []byte, error) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Accept-Encoding", "identity")
	if bytesRange != "" {
		request.Header.Set("Range", "bytes="+bytesRange)
	}
	response, err := s.Client().Do(request)
	if err != nil {
		return nil, nil, err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	return response, body, err
}

// TestFaults says of each fault what a client sees of it when it asks for the
// bytes 100 to 199 of 1000.
func TestFaults(t *testing.T) {
	t.Parallel()
	file := content(1000)
	part := file[100:200]
	tests := []struct {
		name   string
		fault  faultserver.Fault
		status int
		body   []byte // that must come, if it is not nil
		cause  error  // of the body, or of the response if status is 0
		field  string // "Name: value"
	}{
		{name: "none", fault: faultserver.Times(0, faultserver.Drop()), status: 206, body: part, field: "Content-Range: bytes 100-199/1000"},
		{name: "status", fault: faultserver.Status(503, "busy", "Retry-After", "7"), status: 503, body: []byte("busy"), field: "Retry-After: 7"},
		{name: "no ranges", fault: faultserver.NoRanges(), status: 200, body: file, field: "Accept-Ranges: "},
		{name: "other range", fault: faultserver.OtherRange("bytes=101-199"), status: 206, body: file[101:200], field: "Content-Range: bytes 101-199/1000"},
		{name: "a field", fault: faultserver.Fields("Content-Range", "bytes 0-99/1000"), status: 206, body: part, field: "Content-Range: bytes 0-99/1000"},
		{name: "a field less", fault: faultserver.Fields("ETag", ""), status: 206, body: part, field: "ETag: "},
		{name: "no length", fault: faultserver.NoLength(), status: 206, body: part, field: "Content-Length: "},
		{name: "gzip", fault: faultserver.Gzip(), status: 206, field: "Content-Encoding: gzip"},
		{name: "multipart", fault: faultserver.Multipart(), status: 206, field: "Content-Range: "},
		{name: "truncate", fault: faultserver.Truncate(30), status: 206, body: part[:30], cause: io.ErrUnexpectedEOF},
		{name: "reset", fault: faultserver.Reset(30), status: 206, cause: syscall.ECONNRESET},
		{name: "drop", fault: faultserver.Drop(), cause: syscall.ECONNRESET},
		{name: "slow", fault: faultserver.Slow(50, time.Millisecond), status: 206, body: part},
		{name: "delay", fault: faultserver.Delay(time.Millisecond), status: 206, body: part},
		{name: "too much", fault: faultserver.TooMuch(3), status: 206, body: append(bytes.Clone(part), "xxx"...)},
		{name: "too little", fault: faultserver.TooLittle(3), status: 206, body: part[:97], field: "Content-Range: bytes 100-199/1000"},
		{name: "end of connection", fault: faultserver.CloseDelimited(500), status: 200, body: file[:500]},
		{name: "second request", fault: faultserver.After(1, faultserver.Drop()), status: 206, body: part},
		{name: "second URL", fault: faultserver.OnURL(2, faultserver.Drop()), status: 206, body: part},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			s := faultserver.Start(t, file, test.fault)
			response, body, err := get(t, s, s.URL(), "100-199")
			if !errors.Is(err, test.cause) {
				t.Fatalf("error %v, want %v", err, test.cause)
			}
			if test.status == 0 {
				return
			}
			if response == nil || response.StatusCode != test.status {
				t.Fatalf("response %v, want status %d", response, test.status)
			}
			if test.body != nil && !bytes.Equal(body, test.body) {
				t.Errorf("body of %d bytes, want %d others", len(body), len(test.body))
			}
			name, value, _ := strings.Cut(test.field, ": ")
			if got := response.Header.Get(name); got != value {
				t.Errorf("%s: %q, want %q", name, got, value)
			}
		})
	}
}

func TestGarbageHasTheRightLength(t *testing.T) {
	t.Parallel()
	file := content(1000)
	s := faultserver.Start(t, file, faultserver.Garbage())
	_, body, err := get(t, s, s.URL(), "")
	if err != nil || len(body) != len(file) || bytes.Equal(body, file) {
		t.Errorf("got %d bytes, %v, want %d others", len(body), err, len(file))
	}
}

func TestStallEndsWithTheClient(t *testing.T) {
	t.Parallel()
	for name, start := range map[string]func(testing.TB, []byte, ...faultserver.Fault) *faultserver.Server{
		"HTTP/1.1": faultserver.Start, "HTTP/2.0": faultserver.StartTLS,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := start(t, content(1000), faultserver.Stall(10))
			client := s.Client()
			client.Timeout = 50 * time.Millisecond
			response, err := client.Get(s.URL())
			if err != nil {
				t.Fatal(err)
			}
			defer response.Body.Close()
			if response.Proto != name {
				t.Errorf("protocol %s, want %s", response.Proto, name)
			}
			body, err := io.ReadAll(response.Body)
			if len(body) != 10 || err == nil {
				t.Errorf("got %d bytes, %v, want 10 and an error", len(body), err)
			}
		})
	}
}

func TestDownAndUp(t *testing.T) {
	t.Parallel()
	file := content(1000)
	s := faultserver.Start(t, file)
	url := s.URL()
	s.Down()
	if _, _, err := get(t, s, url, ""); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("down: %v, want a refused connection", err)
	}
	s.Up()
	if _, body, err := get(t, s, url, ""); err != nil || !bytes.Equal(body, file) {
		t.Errorf("up: %d bytes, %v", len(body), err)
	}
}

func TestReplaceWhenSent(t *testing.T) {
	t.Parallel()
	first, second := content(1000), content(2000)
	s := faultserver.Start(t, first)
	before := s.ETag()
	s.OnSent(1, func() { s.Replace(second) })
	url := s.URL()
	_, a, _ := get(t, s, url, "")
	_, b, _ := get(t, s, url, "")
	if !bytes.Equal(a, first) || !bytes.Equal(b, second) || s.ETag() == before {
		t.Errorf("got %d and %d bytes, want %d and %d", len(a), len(b), len(first), len(second))
	}
	if s.Sent() != 3000 {
		t.Errorf("sent %d, want 3000", s.Sent())
	}
}

func TestReplaceBeforeARequest(t *testing.T) {
	t.Parallel()
	first, second := content(1000), content(2000)
	s := faultserver.Start(t, first)
	s.OnRequest(2, func() { s.Replace(second) })
	for i, want := range [][]byte{first, second, second} {
		if _, got, err := get(t, s, s.URL(), ""); err != nil || !bytes.Equal(got, want) {
			t.Errorf("request %d: %d bytes, %v, want %d", i+1, len(got), err, len(want))
		}
	}
}

func TestAPI(t *testing.T) {
	t.Parallel()
	s := faultserver.Start(t, content(10))
	s.Answers(
		faultserver.Pending("3"),
		faultserver.Fail(429, faultserver.Envelope("rate_limited", "slow down"), "Retry-After", "9"),
		faultserver.Download(map[string]any{"status": "Ready", "signed_url": nil}),
		faultserver.Download(map[string]any{"signed_url": faultserver.Omit}),
		faultserver.Ready,
	)
	put := func() (*http.Response, string) {
		request, err := http.NewRequestWithContext(t.Context(), http.MethodPut, s.APIURL()+"/v0/workflows/W1/jobs/J1/download", nil)
		if err != nil {
			t.Fatal(err)
		}
		request.Header.Set("Authorization", "dl_key")
		response, err := s.Client().Do(request)
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		body, err := io.ReadAll(response.Body)
		if err != nil {
			t.Fatal(err)
		}
		return response, string(body)
	}
	for i, want := range []struct {
		status     int
		retryAfter string
		has, lacks string
	}{
		{200, "3", `"status":"pending"`, "signed_url"},
		{429, "9", `"code":"rate_limited"`, "status"},
		{200, "", `"signed_url":null`, "pending"},
		{200, "", `"status":"ready"`, "signed_url"},
		{200, "", faultserver.Secret, "pending"},
		{200, "", faultserver.Secret, "pending"},
	} {
		response, body := put()
		if response.StatusCode != want.status || response.Header.Get("Retry-After") != want.retryAfter ||
			!strings.Contains(body, want.has) || strings.Contains(body, want.lacks) {
			t.Errorf("answer %d: %d %v %s, want %+v", i+1, response.StatusCode, response.Header, body, want)
		}
	}
	for _, r := range s.Requests() {
		if !r.API || r.Method != http.MethodPut || r.Header.Get("Authorization") != "dl_key" {
			t.Errorf("logged %+v", r)
		}
	}
}

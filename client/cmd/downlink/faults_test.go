package main

import (
	"bytes"
	"errors"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	fault "github.com/downlink-go/downlink/client/internal/faultserver"
)

// faultTest is a server that misbehaves, and how "downlink get" ends with it.
type faultTest struct {
	name   string
	faults []fault.Fault
	setup  func(*fault.Server)
	code   int    // exitOK if the file must be right
	want   string // in what is told
}

// afterProbe leaves alone the first request to the data host.
func afterProbe(f fault.Fault) fault.Fault { return fault.After(1, f) }

func one(f fault.Fault) []fault.Fault { return []fault.Fault{f} }

func answers(a ...fault.Answer) func(*fault.Server) {
	return func(s *fault.Server) { s.Answers(a...) }
}

func download(pairs ...any) fault.Answer {
	members := map[string]any{}
	for i := 0; i < len(pairs); i += 2 {
		members[pairs[i].(string)] = pairs[i+1]
	}
	return fault.Download(members)
}

func faultTests(before, after []byte) []faultTest {
	half := int64(len(before)) / 2
	replaced := func(s *fault.Server) { s.OnSent(half, func() { s.Replace(after) }) }
	return []faultTest{
		// Of connections.
		{name: "truncated with progress", faults: one(fault.Truncate(300_000))},
		{name: "truncated to nothing, always", faults: one(afterProbe(fault.Truncate(0))), code: exitNetwork, want: "tried"},
		{name: "reset with progress", faults: one(fault.Reset(300_000))},
		{name: "reset before the header", faults: one(fault.Times(3, fault.Drop()))},
		{name: "reset for ever", faults: one(fault.Drop()), code: exitNetwork},
		{name: "stall", faults: one(afterProbe(fault.Times(1, fault.Stall(100_000)))), want: "will be repeated|"},
		{name: "hang", faults: one(fault.Times(1, fault.Hang()))},
		{name: "slow start", faults: one(fault.Delay(100 * time.Millisecond))},
		{name: "one slow connection", faults: one(afterProbe(fault.Times(1, fault.Slow(16<<10, 50*time.Millisecond))))},

		// Of ranges.
		{name: "ranges ignored", faults: one(fault.NoRanges())},
		{name: "ranges ignored, cut twice", faults: []fault.Fault{fault.NoRanges(), fault.Times(2, fault.Truncate(half))}},
		{name: "200 instead of 206, twice", faults: one(afterProbe(fault.Times(2, fault.NoRanges())))},
		{name: "200 instead of 206, always", faults: one(afterProbe(fault.NoRanges())), code: exitNetwork, want: "whole package"},
		{name: "no length", faults: []fault.Fault{fault.NoLength(), fault.NoRanges()}},
		{name: "no length, cut", faults: one(fault.CloseDelimited(1 << 20)), code: exitVerification},
		{name: "wrong Content-Range", faults: one(afterProbe(fault.Fields("Content-Range", "bytes 0-9/10"))), code: exitNetwork},
		{name: "another range", faults: one(afterProbe(fault.OtherRange("bytes=5-1000000"))), code: exitNetwork},
		{name: "no Content-Range", faults: one(afterProbe(fault.Fields("Content-Range", ""))), code: exitNetwork},
		{name: "several parts", faults: one(afterProbe(fault.Multipart())), code: exitNetwork},
		{name: "too many bytes", faults: one(fault.TooMuch(7))},
		{name: "too few bytes", faults: one(afterProbe(fault.Times(2, fault.TooLittle(7))))},
		{name: "416 once", faults: one(afterProbe(fault.Times(1, fault.Status(416, ""))))},
		{name: "416 always", faults: one(fault.Status(416, "")), code: exitNetwork},
		{name: "compressed", faults: one(fault.Gzip()), code: exitNetwork, want: "compressed"},

		// Of versions.
		{name: "weak ETag", faults: one(fault.WeakETag())},
		{name: "no ETag", faults: one(fault.Fields("ETag", "", "Last-Modified", ""))},
		{name: "another ETag once", faults: one(afterProbe(fault.Times(1, fault.Fields("ETag", `"other"`)))), want: "starting over"},
		{name: "replaced", faults: one(fault.Truncate(300_000)), setup: replaced, want: "starting over"},
		{name: "replaced, If-Range ignored", faults: []fault.Fault{fault.NoIfRange(), fault.Truncate(300_000)}, setup: replaced, want: "starting over"},
		{name: "replaced, no validator", faults: []fault.Fault{fault.Fields("ETag", "", "Last-Modified", ""), fault.Truncate(300_000)}, setup: replaced,
			code: exitNetwork, want: "cannot go on"},

		// Of bytes.
		{name: "garbage in the middle", faults: one(afterProbe(fault.Times(1, fault.Garbage()))), want: "damaged"},
		{name: "garbage from the start", faults: one(fault.Times(1, fault.Garbage())), want: "damaged"},
		{name: "garbage always", faults: one(fault.Garbage()), code: exitVerification},
		{name: "garbage in content, always", faults: one(fault.Where(func(r *http.Request) bool { return !strings.HasPrefix(r.Header.Get("Range"), "bytes=-") }, fault.Garbage())),
			code: exitVerification, want: `verification failed: "`},

		// Of the server.
		{name: "5xx burst", faults: one(fault.Times(3, fault.Status(503, "", "Retry-After", "0")))},
		{name: "5xx for ever", faults: one(fault.Status(500, "")), code: exitNetwork, want: "500"},
		{name: "429", faults: one(afterProbe(fault.Times(2, fault.Status(429, "", "Retry-After", "1"))))},
		{name: "400", faults: one(fault.Status(400, `{"error":{"code":7}}`)), code: exitNetwork, want: "400 Bad Request: 7"},
		{name: "expired in the middle", faults: one(fault.OnURL(1, fault.After(2, fault.Status(403, fault.ExpiredXML))))},
		{name: "expired, gone", faults: one(fault.OnURL(1, fault.After(1, fault.Status(410, fault.Envelope("signed_url_expired", "expired")))))},
		{name: "every URL refused", faults: one(fault.Status(403, fault.ExpiredXML)), code: exitNetwork, want: "AccessDenied"},
		{name: "expires soon", setup: answers(fault.Expiring(time.Second), fault.Ready)},
		{name: "renewed with another package", faults: one(fault.OnURL(1, fault.After(2, fault.Status(410, "")))),
			setup: answers(fault.Ready, download("id", "other"), fault.Ready), want: "starting over"},
		{name: "renewal refused", faults: one(fault.OnURL(1, fault.After(2, fault.Status(403, "")))),
			setup: answers(fault.Ready, fault.Fail(403, fault.Envelope("permission_denied", "revoked"))), code: exitPermission, want: "revoked"},

		// Of the original API and of object stores.
		{name: "status in capitals", setup: answers(download("status", "READY"))},
		{name: "status unknown, with a URL", setup: answers(download("status", "Completed"))},
		{name: "URL null at first", setup: answers(download("status", "pending", "signed_url", nil), fault.Ready)},
		{name: "URL empty at first", setup: answers(download("status", "running", "signed_url", ""), fault.Ready)},
		{name: "URL absent at first", setup: answers(download("status", "PENDING", "signed_url", fault.Omit), fault.Ready)},
		{name: "no headers of ours", setup: answers(download())},
		{name: "HEAD refused", faults: one(fault.NoHEAD()), setup: answers(download())},
		{name: "ranges not advertised", faults: one(fault.Fields("Accept-Ranges", ""))},
		{name: "503 of the API at first", setup: answers(fault.Fail(503, "<html>", "Retry-After", "1"), fault.Ready)},
		{name: "error of another form", setup: answers(fault.Fail(400, `{"error":{"code":12,"message":"no such job","details":{"a":1}}}`)),
			code: exitFailure, want: "400 12: no such job"},
		{name: "answer is no JSON", setup: answers(fault.Fail(200, "<html>")), code: exitFailure, want: "base URL"},
		{name: "signed URL is none", setup: answers(download("signed_url", "file:///"+fault.Secret)), code: exitFailure, want: "not one"},
	}
}

// TestFaults runs "downlink get" against every fault. Whatever happens, it ends
// with the right file or without one, an error and another exit code than 0.
func TestFaults(t *testing.T) {
	t.Parallel()
	before, after := pack(t, files(1)), pack(t, files(5))
	for _, test := range faultTests(before, after) {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			s := fault.Start(t, before, test.faults...)
			if test.setup != nil {
				test.setup(s)
			}
			c := newCLI(t, s)
			path := c.path("p.zip")
			code, stdout, stderr := c.run("get", "W1", "J1", "-o", path)
			if want, _, always := strings.Cut(test.want, "|"); code != test.code || !always && !strings.Contains(stderr, want) {
				t.Errorf("exit %d, want %d; %q", code, test.code, stderr)
			}
			got, err := os.ReadFile(path)
			if code != exitOK {
				if !errors.Is(err, fs.ErrNotExist) || stdout != "" || !strings.Contains(stderr, "downlink: ") {
					t.Errorf("after exit %d: %v, %q, %q", code, err, stdout, stderr)
				}
				return
			}
			if !bytes.Equal(got, before) && !bytes.Equal(got, after) {
				t.Errorf("a wrong file of %d bytes: %v", len(got), err)
			}
		})
	}
}

// TestRedirects: the data host may redirect, and the host that it redirects to
// learns neither the key nor the signed URL.
func TestRedirects(t *testing.T) {
	t.Parallel()
	data := pack(t, files(1))
	store := fault.Start(t, data)
	var leaked []string
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		leaked = append(leaked, r.Header.Get("Authorization"), r.Header.Get("Referer"))
		http.Redirect(w, r, store.URL(), http.StatusFound)
	}))
	defer front.Close()
	s := fault.Start(t, data, fault.Redirect(func() string { return front.URL }))
	c := newCLI(t, s)
	code, _, stderr := c.run("get", "W1", "J1", "-c", "1", "-o", c.path("p.zip"))
	if code != exitOK {
		t.Errorf("exit %d, %q", code, stderr)
	}
	c.wantFile("p.zip", data)
	for _, r := range store.Requests() {
		leaked = append(leaked, r.Header.Get("Authorization"), r.Header.Get("Referer"))
	}
	if all := strings.Join(leaked, ""); all != "" || len(leaked) == 0 {
		t.Errorf("other hosts got %q", all)
	}
}

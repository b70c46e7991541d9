package transfer_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	fault "github.com/downlink-go/downlink/client/internal/faultserver"
	"github.com/downlink-go/downlink/client/internal/transfer"
)

// size is enough for four connections, and odd.
const size = 4<<20 + 123

// content returns n bytes that are another for each seed.
func content(seed byte, n int) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{seed}).Read(b)
	return b
}

// The versions that servers have.
var (
	first  = content(1, size)
	second = content(2, size)
	third  = content(3, 1000)
)

// config is one for tests: between requests it waits for next to nothing. The
// rest is generous, for machines that have much else to do.
func config(s *fault.Server) transfer.Config {
	return transfer.Config{
		HTTP:   s.Client(),
		Renew:  func(context.Context) (transfer.Location, error) { return location(s), nil },
		Stall:  10 * time.Second,
		Budget: time.Minute,
		Pause:  time.Millisecond,
	}
}

func location(s *fault.Server) transfer.Location {
	return transfer.Location{URL: s.URL(), ID: fault.ID}
}

// save fetches the file to the path, from the start if it changes meanwhile.
func save(ctx context.Context, cfg transfer.Config, s *fault.Server, path string) error {
	for restarts := 0; ; restarts++ {
		err := saveOnce(ctx, cfg, s, path)
		if !errors.Is(err, transfer.ErrChanged) || restarts == 3 {
			return err
		}
	}
}

func saveOnce(ctx context.Context, cfg transfer.Config, s *fault.Server, path string) error {
	r, err := transfer.Open(ctx, cfg, location(s))
	if err != nil {
		return err
	}
	p, err := transfer.OpenPartial(path, fault.ID, r.Version())
	if err != nil {
		return err
	}
	defer p.Close()
	if err := r.Fetch(ctx, p, transfer.FetchOptions{}); err != nil {
		return err
	}
	return p.Commit()
}

// stream reads the file in order.
func stream(ctx context.Context, cfg transfer.Config, s *fault.Server) ([]byte, error) {
	r, err := transfer.Open(ctx, cfg, location(s))
	if err != nil {
		return nil, err
	}
	body := r.ReadAll(ctx)
	defer body.Close()
	return io.ReadAll(body)
}

// logBuffer is a log that several write.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

// noSecret fails the test if the secret of the URL is in a text.
func noSecret(t *testing.T, where, text string) {
	t.Helper()
	if strings.Contains(text, fault.Secret) || strings.Contains(text, "/packages/") {
		t.Errorf("the URL is in the %s: %s", where, text)
	}
}

// inPieces answers with at most n bytes of the range that is asked for.
func inPieces(n int64) fault.Fault {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			var from, to int64
			if _, err := fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-%d", &from, &to); err == nil {
				r = r.Clone(r.Context())
				r.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", from, min(to, from+n-1)))
			}
			next.ServeHTTP(w, r)
		})
	}
}

// eachOtherETag sends another strong ETag with each response.
func eachOtherETag() fault.Fault {
	var n atomic.Int64
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			r = r.Clone(r.Context())
			r.Header.Del("If-Range")
			fault.Fields("ETag", fmt.Sprintf(`"%d"`, n.Add(1)))(next).ServeHTTP(w, r)
		})
	}
}

// afterProbe leaves alone the request that learns the version.
func afterProbe(f fault.Fault) fault.Fault { return fault.After(1, f) }

// replaceMidway puts a file of as many bytes in place of the one that is being sent.
func replaceMidway(s *fault.Server) { s.OnSent(size/3, func() { s.Replace(second) }) }

// errNone stands for no error where another one would be the default.
var errNone = errors.New("none")

// faultTest says how transfers end that meet faults.
type faultTest struct {
	name   string
	faults []fault.Fault
	setup  func(*fault.Server)
	// fetch is the error of a transfer to a file, nil if the file must be right.
	// stream is that of one in order, if it is another: it cannot start over, and
	// asks for everything at once.
	fetch, stream error
	http1         bool // the fault needs it
	stalls        bool
	most          int // requests to the data host, if it matters
}

func faultTests() []faultTest {
	refusal := func(status int, body string) []fault.Fault {
		return []fault.Fault{fault.OnURL(1, fault.After(2, fault.Status(status, body)))}
	}
	fields := func(pairs ...string) []fault.Fault { return []fault.Fault{afterProbe(fault.Fields(pairs...))} }
	failed, changed := transfer.ErrFailed, transfer.ErrChanged
	return []faultTest{
		{name: "none"},
		{name: "connections end early, with progress", faults: []fault.Fault{fault.Truncate(300_000)}},
		{name: "connections end early, three times", faults: []fault.Fault{fault.Times(3, fault.Truncate(1000))}},
		{name: "connections end early, always", faults: []fault.Fault{afterProbe(fault.Truncate(10))}, fetch: failed},
		{name: "resets midway, with progress", faults: []fault.Fault{fault.Reset(300_000)}},
		{name: "resets before the body", faults: []fault.Fault{fault.Times(3, fault.Reset(0))}},
		{name: "no answer, three times", faults: []fault.Fault{fault.Times(3, fault.Drop())}},
		{name: "no answer, ever", faults: []fault.Fault{fault.Drop()}, fetch: failed},
		{name: "stalls midway", faults: []fault.Fault{afterProbe(fault.Times(2, fault.Stall(100_000)))}, stalls: true},
		{name: "stalls before the header", faults: []fault.Fault{fault.Times(2, fault.Hang())}, stalls: true},
		{name: "stalls always", faults: []fault.Fault{afterProbe(fault.Stall(10))}, fetch: failed, stalls: true},
		{name: "slow start", faults: []fault.Fault{fault.Delay(50 * time.Millisecond)}},
		{name: "host down for a while", setup: func(s *fault.Server) {
			s.OnSent(size/3, func() {
				go func() {
					s.Down()
					s.Up()
				}()
			})
		}},

		{name: "ranges are ignored", faults: []fault.Fault{fault.NoRanges()}},
		{name: "ranges are ignored, resets", faults: []fault.Fault{fault.NoRanges(), fault.Times(3, fault.Reset(size/2))}},
		{name: "ranges are ignored for a while", faults: []fault.Fault{afterProbe(fault.Times(2, fault.NoRanges()))}},
		{name: "ranges are ignored from then on", faults: []fault.Fault{afterProbe(fault.NoRanges())}, fetch: failed, stream: errNone},
		{name: "ranges are not advertised", faults: []fault.Fault{fault.Fields("Accept-Ranges", "")}},
		{name: "ranges shorter than asked for", faults: []fault.Fault{inPieces(100_000)}},
		{name: "no length", faults: []fault.Fault{fault.NoLength()}},
		{name: "no length, no ranges", faults: []fault.Fault{fault.NoLength(), fault.NoRanges()}},
		{name: "no length, no ranges, ends early", faults: []fault.Fault{fault.NoLength(), fault.NoRanges(), fault.Times(3, fault.Truncate(size/2))}},
		{name: "end of connection is the end", faults: []fault.Fault{fault.CloseDelimited(-1)}, http1: true},
		{name: "HEAD is refused", faults: []fault.Fault{fault.NoHEAD()}},

		{name: "other Content-Range", faults: fields("Content-Range", fmt.Sprintf("bytes 0-99/%d", size)), fetch: failed},
		{name: "other total", faults: fields("Content-Range", fmt.Sprintf("bytes 0-99/%d", size+1)), fetch: failed},
		{name: "other total, once", faults: []fault.Fault{afterProbe(fault.Times(1, fault.Fields("Content-Range", fmt.Sprintf("bytes 0-99/%d", size+1))))}},
		{name: "no total", faults: fields("Content-Range", "bytes 0-99/*"), fetch: failed},
		{name: "no Content-Range", faults: fields("Content-Range", ""), fetch: failed},
		{name: "malformed Content-Range", faults: fields("Content-Range", "bytes 9-1/x"), fetch: failed},
		{name: "other range, truly", faults: []fault.Fault{afterProbe(fault.OtherRange("bytes=7-4194304"))}, fetch: failed},
		{name: "several parts", faults: []fault.Fault{afterProbe(fault.Multipart())}, fetch: failed},
		{name: "several parts, from the start", faults: []fault.Fault{fault.Multipart()}, fetch: failed},
		{name: "compressed", faults: []fault.Fault{fault.Gzip()}, fetch: failed},
		{name: "too many bytes", faults: []fault.Fault{fault.TooMuch(3)}},
		{name: "too few bytes, twice", faults: []fault.Fault{afterProbe(fault.Times(2, fault.TooLittle(3)))}},
		{name: "too few bytes, always", faults: []fault.Fault{afterProbe(fault.TooLittle(3))}, fetch: failed},

		{name: "weak ETag", faults: []fault.Fault{fault.WeakETag()}},
		{name: "no ETag", faults: []fault.Fault{fault.Fields("ETag", "")}},
		{name: "no validator", faults: []fault.Fault{fault.Fields("ETag", "", "Last-Modified", "")}},
		{name: "ETag is left out at times", faults: []fault.Fault{afterProbe(fault.Times(2, fault.Fields("ETag", "")))}},
		{name: "another ETag once", faults: []fault.Fault{afterProbe(fault.Times(1, fault.Fields("ETag", `"other"`)))}, stream: changed},
		{name: "another ETag each time", faults: []fault.Fault{eachOtherETag()}, fetch: changed},
		{name: "replaced", setup: replaceMidway, faults: []fault.Fault{fault.Truncate(300_000)}, stream: changed},
		{name: "replaced, If-Range ignored", setup: replaceMidway, faults: []fault.Fault{fault.NoIfRange(), fault.Truncate(300_000)}, stream: changed},
		{name: "replaced, weak ETag", setup: replaceMidway, faults: []fault.Fault{fault.WeakETag(), fault.Truncate(300_000)}, stream: changed},
		{name: "replaced, no ETag", setup: replaceMidway, faults: []fault.Fault{fault.Fields("ETag", ""), fault.Truncate(300_000)}, stream: changed},
		{name: "replaced, no validator", setup: func(s *fault.Server) {
			s.OnRequest(4, func() { s.Replace(second) })
		}, faults: []fault.Fault{fault.Fields("ETag", "", "Last-Modified", ""), afterProbe(fault.Times(2, fault.Truncate(size/2)))}, stream: changed},
		{name: "replaced, no ranges", setup: func(s *fault.Server) {
			s.OnRequest(4, func() { s.Replace(second) })
		}, faults: []fault.Fault{fault.NoRanges(), fault.Times(3, fault.Truncate(size/2))}, stream: changed},
		{name: "replaced by a shorter file", setup: func(s *fault.Server) {
			s.OnSent(size/3, func() { s.Replace(third) })
		}, faults: []fault.Fault{fault.Truncate(300_000)}, stream: changed},

		{name: "416 once", faults: []fault.Fault{afterProbe(fault.Times(1, fault.Status(416, "")))}},
		{name: "416 always", faults: []fault.Fault{afterProbe(fault.Status(416, ""))}, fetch: failed},
		{name: "416 of another size", faults: []fault.Fault{afterProbe(fault.Times(1, fault.Status(416, "", "Content-Range", "bytes */7")))}, stream: changed},
		{name: "412", faults: []fault.Fault{afterProbe(fault.Status(412, ""))}, fetch: failed},
		{name: "5xx burst", faults: []fault.Fault{fault.Times(4, fault.Status(503, "", "Retry-After", "0"))}},
		{name: "5xx for ever", faults: []fault.Fault{afterProbe(fault.Status(500, ""))}, fetch: failed},
		{name: "429 with Retry-After", faults: []fault.Fault{afterProbe(fault.Times(1, fault.Status(429, "", "Retry-After", "1")))}},
		{name: "429 with a Retry-After beyond the budget", faults: []fault.Fault{afterProbe(fault.Status(429, "", "Retry-After", "100000"))}, fetch: failed},
		{name: "400", faults: []fault.Fault{fault.Status(400, "")}, fetch: failed, most: 1},
		{name: "401 of a URL", faults: refusal(401, "")},
		{name: "403 of a URL, as XML", faults: refusal(403, fault.ExpiredXML)},
		{name: "404 of a URL", faults: refusal(404, fault.Envelope("not_found", fault.Secret))},
		{name: "410 of a URL", faults: refusal(410, "")},
		{name: "403 of every URL", faults: []fault.Fault{fault.Status(403, fault.ExpiredXML)}, fetch: failed, most: 6},
		{name: "redirects in a circle", faults: []fault.Fault{fault.Redirect(func() string { return "/packages/1/" + fault.Secret })}, fetch: failed},
		{name: "redirect to no URL", faults: []fault.Fault{fault.Redirect(func() string { return "http://[/" + fault.Secret })}, fetch: failed},
	}
}

func TestFaults(t *testing.T) {
	t.Parallel()
	for _, test := range faultTests() {
		for _, proto := range []string{"HTTP/1.1", "HTTP/2.0"} {
			if test.http1 && proto != "HTTP/1.1" {
				continue
			}
			start := func(t *testing.T) (*fault.Server, transfer.Config, *logBuffer) {
				// The faults count, so each server needs its own.
				faults := test.faults
				for _, again := range faultTests() {
					if again.name == test.name {
						faults = again.faults
					}
				}
				start := fault.Start
				if proto == "HTTP/2.0" {
					start = fault.StartTLS
				}
				s := start(t, first, faults...)
				if test.setup != nil {
					test.setup(s)
				}
				logged := &logBuffer{}
				cfg := config(s)
				if test.stalls {
					cfg.Stall = 300 * time.Millisecond
				}
				if errors.Is(test.fetch, transfer.ErrFailed) {
					cfg.Budget = 400 * time.Millisecond // which may be used up
				}
				cfg.Log = slog.New(slog.NewTextHandler(logged, nil))
				return s, cfg, logged
			}
			t.Run(test.name+"/fetch/"+proto, func(t *testing.T) {
				t.Parallel()
				s, cfg, logged := start(t)
				path := filepath.Join(t.TempDir(), "file")
				err := save(t.Context(), cfg, s, path)
				checkEnd(t, s, logged, err, test.fetch, test.most)
				got, readErr := os.ReadFile(path)
				if err != nil {
					if !errors.Is(readErr, fs.ErrNotExist) {
						t.Errorf("there is a file after the error %v", err)
					}
					return
				}
				checkContent(t, got)
			})
			if proto != "HTTP/1.1" {
				continue
			}
			t.Run(test.name+"/stream", func(t *testing.T) {
				t.Parallel()
				s, cfg, logged := start(t)
				got, err := stream(t.Context(), cfg, s)
				want := test.stream
				switch {
				case want == nil:
					want = test.fetch
				case errors.Is(want, errNone):
					want = nil
				}
				checkEnd(t, s, logged, err, want, test.most)
				if err == nil {
					checkContent(t, got)
				}
			})
		}
	}
}

func checkEnd(t *testing.T, s *fault.Server, logged *logBuffer, err, want error, most int) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("error %v, want %v", err, want)
	}
	if err != nil {
		noSecret(t, "error", err.Error())
	}
	noSecret(t, "log", logged.b.String())
	requests := s.Requests()
	if most > 0 && len(requests) > most {
		t.Errorf("%d requests, want %d at most", len(requests), most)
	}
	for _, r := range requests {
		if got := r.Header.Get("Accept-Encoding"); got != "identity" {
			t.Errorf("a request with Accept-Encoding %q", got)
		}
		if _, ok := r.Header["Authorization"]; ok {
			t.Error("a request with Authorization")
		}
		if r.Method != http.MethodGet {
			t.Errorf("a request by %s", r.Method)
		}
	}
}

// checkContent fails the test unless it is one of the versions, and whole.
func checkContent(t *testing.T, got []byte) {
	t.Helper()
	for _, want := range [][]byte{first, second, third} {
		if bytes.Equal(got, want) {
			return
		}
	}
	t.Errorf("a wrong file of %d bytes", len(got))
}

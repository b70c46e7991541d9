package transfer_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	fault "github.com/downlink-go/downlink/client/internal/faultserver"
	"github.com/downlink-go/downlink/client/internal/transfer"
)

// refuseTogether refuses the first URL as soon as n requests wait for an answer.
func refuseTogether(n int) fault.Fault {
	var together sync.WaitGroup
	together.Add(n)
	var seen atomic.Int64
	return afterProbe(fault.OnURL(1, func(http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			if seen.Add(1) <= int64(n) {
				together.Done()
			}
			together.Wait()
			w.WriteHeader(http.StatusForbidden)
		})
	}))
}

func TestRenewOnceForAllConnections(t *testing.T) {
	t.Parallel()
	const connections = 8
	file := content(5, 16<<20)
	s := fault.Start(t, file, refuseTogether(connections))
	cfg := config(s)
	var calls, atATime atomic.Int64
	cfg.Renew = func(context.Context) (transfer.Location, error) {
		calls.Add(1)
		if atATime.Add(1) > 1 {
			t.Error("two renewals at a time")
		}
		defer atATime.Add(-1)
		return location(s), nil
	}
	r, err := transfer.Open(t.Context(), cfg, location(s))
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "file")
	p, err := transfer.OpenPartial(path, fault.ID, r.Version())
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if err := r.Fetch(t.Context(), p, transfer.FetchOptions{Connections: connections}); err != nil {
		t.Fatal(err)
	}
	if err := p.Commit(); err != nil {
		t.Fatal(err)
	}
	isFile(t, path, file)
	if calls.Load() != 1 {
		t.Errorf("%d renewals, want 1", calls.Load())
	}
}

func TestRenewalFails(t *testing.T) {
	t.Parallel()
	denied := errors.New("no permission any more")
	tests := []struct {
		name  string
		renew func(*fault.Server) (transfer.Location, error)
		want  error
	}{
		{"with an error", func(*fault.Server) (transfer.Location, error) { return transfer.Location{}, denied }, denied},
		{"with another file", func(s *fault.Server) (transfer.Location, error) {
			return transfer.Location{URL: s.URL(), ID: "another"}, nil
		}, transfer.ErrChanged},
		{"with another version", func(s *fault.Server) (transfer.Location, error) {
			s.Replace(second)
			return location(s), nil
		}, transfer.ErrChanged},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			s := fault.Start(t, first, fault.OnURL(1, afterProbe(fault.Status(http.StatusGone, ""))))
			cfg := config(s)
			cfg.Renew = func(context.Context) (transfer.Location, error) { return test.renew(s) }
			if _, err := stream(t.Context(), cfg, s); !errors.Is(err, test.want) {
				t.Errorf("error %v, want %v", err, test.want)
			}
		})
	}
}

func TestNoRenewal(t *testing.T) {
	t.Parallel()
	s := fault.Start(t, first, fault.Status(http.StatusForbidden, fault.ExpiredXML))
	cfg := config(s)
	cfg.Renew = nil
	l := location(s)
	l.Expires = time.Now().Add(-time.Hour)
	_, err := transfer.Open(t.Context(), cfg, l)
	status, ok := errors.AsType[*transfer.StatusError](err)
	if !ok || status.StatusCode != http.StatusForbidden || status.Code != "AccessDenied" {
		t.Errorf("error %v, want 403 AccessDenied", err)
	}
	if n := len(s.Requests()); n != 1 {
		t.Errorf("%d requests, want 1", n)
	}
}

// inMemory answers without a network, so that time can be that of a bubble.
type inMemory struct{ http.Handler }

func (m inMemory) RoundTrip(r *http.Request) (*http.Response, error) {
	w := httptest.NewRecorder()
	m.ServeHTTP(w, r)
	response := w.Result()
	response.Request = r
	return response, nil
}

func serveFirst(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("ETag", `"1"`)
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(first))
}

// read reads some bytes of the start of the file.
func read(ctx context.Context, r *transfer.Remote) error {
	body, err := r.ReadRange(ctx, 0, 100)
	if err != nil {
		return err
	}
	defer body.Close()
	_, err = io.Copy(io.Discard, body)
	return err
}

func TestRenewAheadOfTime(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		renewals := 0
		fresh := func() transfer.Location {
			return transfer.Location{URL: "http://host/file", Expires: time.Now().Add(time.Hour)}
		}
		r, err := transfer.Open(t.Context(), transfer.Config{
			HTTP: &http.Client{Transport: inMemory{http.HandlerFunc(serveFirst)}},
			Renew: func(context.Context) (transfer.Location, error) {
				renewals++
				return fresh(), nil
			},
		}, fresh())
		if err != nil {
			t.Fatal(err)
		}
		for _, step := range []struct {
			wait time.Duration
			want int
		}{{59 * time.Minute, 0}, {50 * time.Second, 1}, {time.Second, 1}, {time.Hour, 2}} {
			time.Sleep(step.wait)
			if err := read(t.Context(), r); err != nil {
				t.Fatal(err)
			}
			if renewals != step.want {
				t.Errorf("after %v: %d renewals, want %d", step.wait, renewals, step.want)
			}
		}
	})
}

// TestPatience measures how long the defaults go on without getting on.
func TestPatience(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name        string
		bad         http.HandlerFunc
		least, most time.Duration
	}{
		{"server fails", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadGateway) }, 4 * time.Minute, 5 * time.Minute},
		{"server asks for an hour", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Retry-After", "3600")
			w.WriteHeader(http.StatusServiceUnavailable)
		}, 4 * time.Minute, 5 * time.Minute},
		{"server sends nothing", func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, 4 * time.Minute, 6 * time.Minute},
		{"server refuses the request", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadRequest) }, 0, 0},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				requests := 0
				r, err := transfer.Open(t.Context(), transfer.Config{
					HTTP: &http.Client{Transport: inMemory{http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
						if requests++; requests == 1 {
							serveFirst(w, r)
							return
						}
						test.bad(w, r)
					})}},
				}, transfer.Location{URL: "http://host/file"})
				if err != nil {
					t.Fatal(err)
				}
				began := time.Now()
				err = read(t.Context(), r)
				if !errors.Is(err, transfer.ErrFailed) {
					t.Errorf("error %v, want ErrFailed", err)
				}
				if took := time.Since(began); took < test.least || took > test.most {
					t.Errorf("gave up after %v and %d requests, want between %v and %v", took, requests, test.least, test.most)
				}
			})
		})
	}
}

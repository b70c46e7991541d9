package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/pprof"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/downlink-go/downlink/server/internal/catalog"
	"github.com/downlink-go/downlink/server/internal/packager"
)

// AdminHandler returns the interface for operators. It asks for no key: serve it
// where only they get, such as on the loopback address.
//
//	/healthz      200 while the process runs
//	/readyz       200 while it can do its work, otherwise 503 with what it lacks
//	/metrics      for Prometheus
//	/debug/pprof  profiles, as net/http/pprof has them, but for the command
//	              line, which may hold the password of the database
func (s *Server) AdminHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { writeHealth(w, http.StatusOK, health{Status: "ok"}) })
	mux.HandleFunc("GET /readyz", s.serveReadiness)
	// What can be told is told when something cannot.
	mux.Handle("GET /metrics", promhttp.HandlerFor(s.metrics.registry, promhttp.HandlerOpts{ErrorHandling: promhttp.ContinueOnError}))
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/cmdline", http.NotFound)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	return mux
}

// health is the answer to a check.
type health struct {
	Status string            `json:"status"` // ok or unavailable
	Checks map[string]string `json:"checks,omitempty"`
}

func writeHealth(w http.ResponseWriter, status int, h health) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(h) // who asked may be gone
}

// checkTimeout is how long one thing may take to prove that it works.
const checkTimeout = 5 * time.Second

// serveReadiness checks everything that the server needs, side by side. From the
// moment that it is told to stop it is not ready, so that balancers send no more.
func (s *Server) serveReadiness(w http.ResponseWriter, r *http.Request) {
	if s.stopping.Load() {
		writeHealth(w, http.StatusServiceUnavailable, health{Status: "unavailable", Checks: map[string]string{"server": "stopping"}})
		return
	}
	checks := map[string]func(context.Context) error{
		"database": s.db.Ping,
		"migrations": func(ctx context.Context) error {
			m, err := packager.Migrator(s.db)
			if err != nil {
				return err
			}
			// While a new release is rolled out, the servers of the old one have
			// to go on.
			if err := s.db.CheckMigrated(ctx, m); !errors.Is(err, catalog.ErrNewerSchema) {
				return err
			}
			return nil
		},
		"bucket": s.bucket.Check,
	}
	ctx, cancel := context.WithTimeout(r.Context(), checkTimeout)
	defer cancel()
	h := health{Status: "ok", Checks: map[string]string{}}
	var mu sync.Mutex
	var running sync.WaitGroup
	for name, check := range checks {
		running.Go(func() {
			err := within(ctx, check)
			mu.Lock()
			defer mu.Unlock()
			h.Checks[name] = "ok"
			if err != nil {
				h.Status, h.Checks[name] = "unavailable", err.Error()
			}
		})
	}
	running.Wait()
	status := http.StatusOK
	if h.Status != "ok" {
		status = http.StatusServiceUnavailable
	}
	writeHealth(w, status, h)
}

// within calls f and does not wait for it once the context is over, also where f
// heeds no context, as a file system that hangs.
func within(ctx context.Context, f func(context.Context) error) error {
	done := make(chan error, 1)
	go func() { done <- f(ctx) }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return fmt.Errorf("no answer within %s", checkTimeout)
	}
}

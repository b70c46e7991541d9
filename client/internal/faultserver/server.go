// Package faultserver is the Download Job API and a data host that misbehave as
// they are told to, for tests of clients.
//
//	s := faultserver.Start(t, body, faultserver.Times(2, faultserver.Truncate(1000)))
//	location := s.URL() // or a PUT to s.APIURL()
//
// Without faults the data host is a good one: it has a strong ETag, ranges,
// If-Range and HEAD, all by [http.ServeContent]. A [Fault] wraps that, so faults
// combine; [Times], [After], [OnURL], [Ranges] and [Where] choose the requests
// that they hit.
package faultserver

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// Server is an API and a data host, each with a port of its own. It is safe for
// concurrent use.
type Server struct {
	t      testing.TB
	tls    bool
	faults []Fault
	api    *httptest.Server

	mu       sync.Mutex
	data     *httptest.Server
	address  string // of data, also while it is down
	file     []byte
	etag     string
	modified time.Time
	urls     int // how many were handed out
	answers  []Answer
	requests []*Request
	sent     int64
	arrived  int64
	onSent   hooks
	onArrive hooks
}

// hooks are called once, when what they wait for has reached a number.
type hooks []hook

type hook struct {
	at int64
	do func()
}

// due takes out those whose time has come.
func (h *hooks) due(n int64) (all []func()) {
	*h = slices.DeleteFunc(*h, func(one hook) bool {
		if n >= one.at {
			all = append(all, one.do)
		}
		return n >= one.at
	})
	return all
}

// Request is one that the server was sent.
type Request struct {
	// API is true for the API, false for the data host.
	API    bool
	Method string
	Path   string
	Header http.Header
	Proto  string
	// Status is that of the response, 0 if there was none, and Sent how many
	// bytes of its body were written.
	Status int
	Sent   int64
}

// Start starts a server of the file and closes it when the test ends. The first
// fault is the outermost.
func Start(t testing.TB, file []byte, faults ...Fault) *Server {
	t.Helper()
	return start(t, false, file, faults)
}

// StartTLS is [Start] with TLS, and so with HTTP/2 for clients that know it.
func StartTLS(t testing.TB, file []byte, faults ...Fault) *Server {
	t.Helper()
	return start(t, true, file, faults)
}

func start(t testing.TB, tls bool, file []byte, faults []Fault) *Server {
	s := &Server{t: t, tls: tls, faults: faults, answers: []Answer{Ready}}
	s.Replace(file)
	s.api = s.listen(http.HandlerFunc(s.serveAPI), "127.0.0.1:0")
	s.Up()
	t.Cleanup(func() {
		shut(s.api)
		s.Down()
	})
	return s
}

func (s *Server) listen(h http.Handler, address string) *httptest.Server {
	var config net.ListenConfig
	listener, err := config.Listen(s.t.Context(), "tcp", address)
	if err != nil {
		s.t.Errorf("listen: %v", err)
		return nil
	}
	server := httptest.NewUnstartedServer(h)
	server.Listener.Close()
	server.Listener = listener
	server.EnableHTTP2 = s.tls
	if s.tls {
		server.StartTLS()
	} else {
		server.Start()
	}
	return server
}

func shut(server *httptest.Server) {
	server.CloseClientConnections()
	server.Close()
}

// Down makes the data host refuse connections and breaks those that it has.
func (s *Server) Down() {
	s.mu.Lock()
	server := s.data
	s.data = nil
	s.mu.Unlock()
	if server != nil {
		shut(server)
	}
}

// Up ends what [Server.Down] began, on the same port.
func (s *Server) Up() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.data != nil {
		return
	}
	if s.address == "" {
		s.address = "127.0.0.1:0"
	}
	s.data = s.listen(s.dataHandler(), s.address)
	if s.data != nil {
		s.address = s.data.Listener.Addr().String()
	}
}

// Client returns a client that trusts the server. The test ends its connections.
func (s *Server) Client() *http.Client {
	transport := s.api.Client().Transport.(*http.Transport).Clone()
	transport.ForceAttemptHTTP2 = s.tls
	s.t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

// APIURL returns the base URL of the API.
func (s *Server) APIURL() string { return s.api.URL }

// URL hands out another signed URL of the file. All of them work, unless a fault
// has it that they do not.
func (s *Server) URL() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.urls++
	scheme := "http"
	if s.tls {
		scheme = "https"
	}
	return fmt.Sprintf("%s://%s/packages/%d/%s/W1_J1.zip", scheme, s.address, s.urls, Secret)
}

// Secret is in the path of every signed URL: it must not show up anywhere else.
const Secret = "c2VjcmV0LXNpZ25hdHVyZQ"

// URLs returns how many signed URLs were handed out.
func (s *Server) URLs() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.urls
}

// Replace puts another version in place of the file.
func (s *Server) Replace(file []byte) {
	sum := sha256.Sum256(file)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.file = file
	s.etag = `"` + hex.EncodeToString(sum[:8]) + `"`
	s.modified = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC).Add(time.Duration(sum[0]) * time.Hour)
}

// ETag returns that of the present version.
func (s *Server) ETag() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.etag
}

// OnSent has f called once, as soon as the data host has sent n bytes of bodies
// in all.
func (s *Server) OnSent(n int64, f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.onSent = append(s.onSent, hook{n, f})
}

// OnRequest has f called once, before the data host answers its n-th request,
// from 1.
func (s *Server) OnRequest(n int64, f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.onArrive = append(s.onArrive, hook{n, f})
}

// Sent returns how many bytes of bodies the data host has sent.
func (s *Server) Sent() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sent
}

// Requests returns what the server was sent so far, in the order of arrival.
func (s *Server) Requests() []Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []Request
	for _, r := range s.requests {
		all = append(all, *r)
	}
	return all
}

func (s *Server) record(r *http.Request, api bool) *Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	request := &Request{API: api, Method: r.Method, Path: r.URL.Path, Header: r.Header.Clone(), Proto: r.Proto}
	s.requests = append(s.requests, request)
	return request
}

// dataHandler serves the file, through the faults.
func (s *Server) dataHandler() http.Handler {
	var h http.Handler = http.HandlerFunc(s.serveFile)
	for _, fault := range slices.Backward(s.faults) {
		h = fault(h)
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		request := s.record(r, false)
		s.mu.Lock()
		s.arrived++
		due := s.onArrive.due(s.arrived)
		s.mu.Unlock()
		for _, do := range due {
			do()
		}
		h.ServeHTTP(&recorder{ResponseWriter: w, server: s, request: request}, r)
	})
}

func (s *Server) serveFile(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	file, etag, modified := s.file, s.etag, s.modified
	s.mu.Unlock()
	w.Header().Set("ETag", etag)
	w.Header().Set("Content-Type", "application/zip")
	http.ServeContent(w, r, "", modified, bytes.NewReader(file))
}

// urlNumber returns which of the signed URLs a request was sent to, from 1.
func urlNumber(r *http.Request) int {
	rest, _ := strings.CutPrefix(r.URL.Path, "/packages/")
	number, _, _ := strings.Cut(rest, "/")
	n, _ := strconv.Atoi(number)
	return n
}

// recorder notes what is sent.
type recorder struct {
	http.ResponseWriter
	server  *Server
	request *Request
}

func (w *recorder) WriteHeader(status int) {
	w.server.mu.Lock()
	w.request.Status = status
	w.server.mu.Unlock()
	w.ResponseWriter.WriteHeader(status)
}

func (w *recorder) Write(p []byte) (int, error) {
	n, err := w.ResponseWriter.Write(p)
	s := w.server
	s.mu.Lock()
	if w.request.Status == 0 {
		w.request.Status = http.StatusOK
	}
	w.request.Sent += int64(n)
	s.sent += int64(n)
	due := s.onSent.due(s.sent)
	s.mu.Unlock()
	for _, do := range due {
		do()
	}
	return n, err
}

func (w *recorder) Unwrap() http.ResponseWriter { return w.ResponseWriter }

package faultserver

import (
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"time"
)

// Answer is what the API does with one PUT.
type Answer func(s *Server, w http.ResponseWriter, r *http.Request)

// Answers sets what the API answers, in this order; the last one goes on. The
// default is [Ready].
func (s *Server) Answers(answers ...Answer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answers = answers
}

// ID is that of the package, in answers that do not say otherwise.
const ID = "1b4e28ba-2fa1-51d2-883f-0016d3cca427"

// Ready answers as downlinkd does, with another signed URL each time.
func Ready(s *Server, w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Downlink-Expires", time.Now().Add(time.Hour).UTC().Format(time.RFC3339))
	s.download(w, map[string]any{"id": ID, "status": "ready", "signed_url": s.URL()})
}

// Pending answers that the package is not ready yet, and when to ask again.
func Pending(retryAfter string) Answer {
	return func(s *Server, w http.ResponseWriter, _ *http.Request) {
		if retryAfter != "" {
			w.Header().Set("Retry-After", retryAfter)
		}
		s.download(w, map[string]any{"id": ID, "status": "pending"})
	}
}

// Download answers with the given members over those of [Ready], without the
// headers of downlinkd. The value Omit leaves one out.
func Download(members map[string]any) Answer {
	return func(s *Server, w http.ResponseWriter, _ *http.Request) {
		all := map[string]any{"id": ID, "status": "ready", "signed_url": s.URL()}
		for name, value := range members {
			all[name] = value
			if value == Omit {
				delete(all, name)
			}
		}
		s.download(w, all)
	}
}

// Omit is a value for [Download].
const Omit = omit("")

type omit string

// Expiring answers as Ready does, with a URL that has only so long to go.
func Expiring(in time.Duration) Answer {
	return func(s *Server, w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Downlink-Expires", time.Now().Add(in).UTC().Format(time.RFC3339))
		s.download(w, map[string]any{"id": ID, "status": "ready", "signed_url": s.URL()})
	}
}

// Fail answers with a status and a body of any form, and header fields given as
// pairs of name and value.
func Fail(status int, body string, fields ...string) Answer {
	return func(_ *Server, w http.ResponseWriter, _ *http.Request) {
		setFields(w.Header(), fields)
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	}
}

// Envelope returns the body of an error of downlinkd.
func Envelope(code, message string) string {
	body, _ := json.Marshal(map[string]any{"error": map[string]any{"code": code, "message": message, "details": []any{}}})
	return string(body)
}

func (s *Server) download(w http.ResponseWriter, members map[string]any) {
	if _, ok := members["workflowId"]; !ok {
		members["workflowId"] = "W1"
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(members)
}

// serveAPI knows the one route of the contract.
func (s *Server) serveAPI(w http.ResponseWriter, r *http.Request) {
	record := &recorder{ResponseWriter: w, server: s, request: s.record(r, true)}
	w = record
	record.Header().Set("X-Request-Id", "fault-1")
	switch {
	case !strings.HasPrefix(r.URL.Path, "/v0/workflows/") || !strings.HasSuffix(r.URL.Path, "/download"):
		Fail(http.StatusNotFound, Envelope("not_found", "no such route"))(s, w, r)
	case r.Method != http.MethodPut:
		Fail(http.StatusMethodNotAllowed, Envelope("method_not_allowed", "only PUT"))(s, w, r)
	default:
		s.mu.Lock()
		answer := s.answers[0]
		if len(s.answers) > 1 {
			s.answers = s.answers[1:]
		}
		s.mu.Unlock()
		answer(s, w, r)
	}
}

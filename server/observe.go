package server

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"runtime/debug"
	"strings"
	"time"
	"unicode"

	"github.com/labstack/echo/v4"
	"go.opentelemetry.io/otel/trace"

	"github.com/downlink-go/downlink/server/internal/download"
)

// info is what is known of a request, for the handlers and the access log.
type info struct {
	requestID      string
	origin         string // scheme and host that the client used
	client         netip.Addr
	remote         string // the client's address, for the log
	organizationID string
	keyID          string
	workflowID     string
	jobID          string
	packageID      string
	counted        int64 // bytes of the body that are counted already
}

type infoKey struct{}

// requestInfo returns the request's info, which observe put there.
func requestInfo(ctx context.Context) *info {
	i, ok := ctx.Value(infoKey{}).(*info)
	if !ok {
		return &info{}
	}
	return i
}

// observe names the request, turns errors and panics into answers, and writes
// the access log. The log has the route and never the path, which may be a
// signed URL's.
func (s *Server) observe(next echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) error {
		start := time.Now()
		r := c.Request()
		client, forwarded := s.proxies.client(r)
		i := &info{requestID: newRequestID(), origin: s.proxies.origin(r), client: client, remote: r.RemoteAddr}
		if forwarded {
			i.remote = client.String()
		}
		c.SetRequest(r.WithContext(context.WithValue(r.Context(), infoKey{}, i)))
		c.Response().Header().Set("X-Request-Id", i.requestID)
		end := s.metrics.begin(c.Path(), r.Method)
		defer func() {
			took := time.Since(start)
			end(c.Response().Status, c.Response().Size-i.counted, took)
			s.logAccess(c, i, took)
		}()
		if r.ContentLength != 0 {
			// Nothing reads the body, but net/http waits for the end of it.
			_ = http.NewResponseController(c.Response()).SetReadDeadline(start.Add(s.config.Limits.HeaderTimeout))
		}
		if err := s.protect(c, next); err != nil {
			c.Error(err)
		}
		return nil
	}
}

// protect calls next and returns a panic as an error, but for the one that means
// to cut the connection.
func (s *Server) protect(c echo.Context, next echo.HandlerFunc) (err error) {
	defer func() {
		switch p := recover(); p {
		case nil:
		case http.ErrAbortHandler:
			panic(p)
		default:
			err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
		}
	}()
	if n := s.config.Limits.Connections; n >= 0 && c.Request().ProtoMajor >= 2 && s.streams.Load() > int64(n) {
		return errCrowded
	}
	if limit := s.config.Limits.HeaderBytes; headerSize(c.Request()) > limit {
		return headerTooLarge(limit)
	}
	return next(c)
}

func (s *Server) logAccess(c echo.Context, i *info, took time.Duration) {
	r, w := c.Request(), c.Response()
	attrs := []slog.Attr{
		slog.String("request_id", i.requestID),
		slog.String("method", loggedText(r.Method)),
		slog.String("route", c.Path()),
		slog.Int("status", w.Status),
		slog.Int64("bytes", w.Size),
		slog.Duration("duration", took),
		slog.String("remote", i.remote),
	}
	if span := trace.SpanContextFromContext(r.Context()); span.IsValid() {
		attrs = append(attrs, slog.String("trace_id", span.TraceID().String()))
	}
	for _, a := range []struct{ key, value string }{
		{"organization_id", i.organizationID}, {"key_id", i.keyID},
		{"workflow_id", i.workflowID}, {"job_id", i.jobID}, {"package_id", i.packageID},
		{"range", loggedRange(r.Header.Get("Range"))}, {"user_agent", loggedText(r.UserAgent())},
	} {
		if a.value != "" {
			attrs = append(attrs, slog.String(a.key, a.value))
		}
	}
	s.log.LogAttrs(r.Context(), slog.LevelInfo, "request", attrs...)
}

// loggedRange returns a Range header for the log: only what a range can be, and
// not thousands of them.
func loggedRange(header string) string {
	const most = 100
	if strings.Trim(strings.TrimPrefix(header, "bytes="), "0123456789-, ") != "" {
		return "malformed"
	}
	if len(header) > most {
		return header[:most] + "..."
	}
	return header
}

// loggedText returns what a client has made up for the log: not so much of it that
// it fills a disk, and nothing that a terminal would take for a command.
func loggedText(s string) string {
	const most = 200
	more := ""
	if len(s) > most {
		s, more = s[:most], "..."
	}
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return '?'
	}, s) + more
}

func newRequestID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

// headerTooLarge is the error for a request line and header above the limit.
// Above four times as much net/http itself closes the connection.
func headerTooLarge(limit int) error {
	return &download.Error{
		Code:    download.InvalidParameter,
		Message: "the request header is too large",
		Details: []download.Detail{{
			Field: "header", Limit: int64(limit),
			Message: fmt.Sprintf("at most %d bytes, the URL included", limit),
		}},
	}
}

func headerSize(r *http.Request) int {
	n := len(r.RequestURI)
	for name, values := range r.Header {
		for _, v := range values {
			n += len(name) + len(v) + len(": \r\n")
		}
	}
	return n
}

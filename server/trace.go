package server

import (
	"context"
	"errors"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/labstack/echo/v4"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"github.com/downlink-go/downlink/server/internal/download"
)

// tracerName is the instrumentation scope of all spans.
const tracerName = module + "/server"

const module = "github.com/downlink-go/downlink"

// traceRequest makes a span of every request, as a child of the one that its
// traceparent header names. The span has what the access log has, and as little
// of the path, which may be a signed URL's.
func (s *Server) traceRequest(next echo.HandlerFunc) echo.HandlerFunc {
	if s.tracer == nil {
		return next
	}
	return func(c echo.Context) error {
		r := c.Request()
		method, route := knownMethod(r.Method), c.Path()
		name := method
		if route != "" {
			name += " " + route
		}
		ctx := propagation.TraceContext{}.Extract(r.Context(), propagation.HeaderCarrier(r.Header))
		ctx, span := s.tracer.Start(ctx, name, trace.WithSpanKind(trace.SpanKindServer), trace.WithAttributes(
			attribute.String("http.request.method", method),
			attribute.String("http.route", route),
			attribute.String("url.path", route),
		))
		opened := &opened{}
		c.SetRequest(r.WithContext(context.WithValue(ctx, openedKey{}, opened)))
		cut := true
		defer func() { endRequest(span, c, opened, cut) }()
		err := next(c)
		cut = false
		return err
	}
}

// endRequest ends the span of a request. One that was cut has panicked.
func endRequest(span trace.Span, c echo.Context, opened *opened, cut bool) {
	defer span.End()
	if !span.IsRecording() {
		return
	}
	i, status := requestInfo(c.Request().Context()), c.Response().Status
	span.SetAttributes(
		attribute.Int("http.response.status_code", status),
		attribute.Int64("http.response.body.size", c.Response().Size),
		attribute.String("downlink.request_id", i.requestID),
	)
	for _, a := range []struct{ key, value string }{
		{"downlink.organization_id", i.organizationID}, {"downlink.key_id", i.keyID},
		{"downlink.workflow_id", i.workflowID}, {"downlink.job_id", i.jobID}, {"downlink.package_id", i.packageID},
	} {
		if a.value != "" {
			span.SetAttributes(attribute.String(a.key, a.value))
		}
	}
	if n := opened.number.Load(); n > 0 {
		span.SetAttributes(attribute.Int64("downlink.assets_opened", n),
			attribute.Float64("downlink.assets_open_seconds", time.Duration(opened.took.Load()).Seconds()))
	}
	switch {
	case cut:
		span.SetAttributes(attribute.String("error.type", "cut"))
		span.SetStatus(codes.Error, "the connection was cut")
	case status >= http.StatusInternalServerError:
		span.SetStatus(codes.Error, http.StatusText(status))
	}
}

// traced calls f within a span.
func traced[T any](ctx context.Context, tracer trace.Tracer, name string, f func(context.Context) (T, error), attributes ...attribute.KeyValue) (T, error) {
	ctx, span := tracer.Start(ctx, name, trace.WithAttributes(attributes...))
	defer span.End()
	v, err := f(ctx)
	failSpan(span, err)
	return v, err
}

// failSpan notes an error by its kind. Its text is for the log.
func failSpan(span trace.Span, err error) {
	if err == nil || !span.IsRecording() {
		return
	}
	kind, fault := "internal", true
	e, ok := errors.AsType[*download.Error](err)
	switch {
	case ok:
		kind, fault = string(e.Code), e.Code == download.Unavailable
	case errors.Is(err, download.ErrJobNotFound), errors.Is(err, download.ErrPackageNotFound), errors.Is(err, download.ErrObjectNotFound):
		kind, fault = "not_found", false
	case errors.Is(err, download.ErrObjectChanged):
		kind, fault = "changed", false
	case errors.Is(err, context.Canceled):
		kind, fault = "canceled", false
	}
	span.SetAttributes(attribute.String("error.type", kind))
	if fault {
		span.SetStatus(codes.Error, kind)
	}
}

// opened counts the assets that a request opens, which may be too many for a span
// each, and the time that it took, which adds up where they are opened side by
// side.
type opened struct {
	number, took atomic.Int64
	spans        atomic.Int64
}

type openedKey struct{}

const (
	// slowOpen is from where on opening an asset has a span.
	slowOpen = 100 * time.Millisecond
	// mostOpenSpans bounds those of one request.
	mostOpenSpans = 50
)

// traceOpen notes that an asset was opened.
func traceOpen(ctx context.Context, tracer trace.Tracer, start time.Time, err error) {
	took := time.Since(start)
	o, ok := ctx.Value(openedKey{}).(*opened)
	if ok {
		o.number.Add(1)
		o.took.Add(int64(took))
	}
	if (took < slowOpen && err == nil) || ok && o.spans.Add(1) > mostOpenSpans {
		return
	}
	_, span := tracer.Start(ctx, "bucket open", trace.WithTimestamp(start))
	failSpan(span, err)
	span.End()
}

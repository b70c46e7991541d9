package packager

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"

	"github.com/riverqueue/river"
	"github.com/riverqueue/river/rivertype"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"github.com/downlink-go/downlink/server/internal/catalog"
	"github.com/downlink-go/downlink/server/internal/download"
)

// carrier goes with a job through the queue, in its metadata, and says which
// request asked for it.
type carrier struct {
	TraceParent string `json:"traceparent,omitempty"`
}

const traceParent = "traceparent" // the header, as W3C has it

// jobOptions name the span of ctx in the job, if there is one.
func jobOptions(ctx context.Context) *river.InsertOpts {
	header := propagation.MapCarrier{}
	propagation.TraceContext{}.Inject(ctx, header)
	if header[traceParent] == "" {
		return nil
	}
	metadata, err := json.Marshal(carrier{header[traceParent]})
	if err != nil {
		return nil // which does not happen to a string
	}
	return &river.InsertOpts{Metadata: metadata}
}

// startSpan begins the span of one attempt at a package. It is the root of a
// trace, since the request that asked for the package may be long over, and linked
// to it. The returned logger names the trace.
func (p *Packager) startSpan(ctx context.Context, job *rivertype.JobRow, work *catalog.Work, log *slog.Logger) (context.Context, trace.Span, *slog.Logger) {
	var c carrier
	_ = json.Unmarshal(job.Metadata, &c) // without it there is no link
	asked := trace.SpanContextFromContext(propagation.TraceContext{}.Extract(context.Background(), propagation.MapCarrier{traceParent: c.TraceParent}))
	options := []trace.SpanStartOption{trace.WithNewRoot(), trace.WithSpanKind(trace.SpanKindConsumer), trace.WithAttributes(
		attribute.String("downlink.package_id", work.Package.ID.String()),
		attribute.String("downlink.workflow_id", work.Package.WorkflowID),
		attribute.String("downlink.job_id", work.Package.JobID),
		attribute.Int("downlink.attempt", job.Attempt),
		attribute.Int64("downlink.bytes_left", work.Package.BytesTotal-work.Package.BytesDone),
	)}
	if asked.IsValid() {
		options = append(options, trace.WithLinks(trace.Link{SpanContext: asked}))
	}
	ctx, span := p.Tracer.Start(ctx, "prepare package", options...)
	if id := span.SpanContext().TraceID(); id.IsValid() {
		log = log.With("trace_id", id.String())
	}
	return ctx, span, log
}

// endSpan ends the span of an attempt. It has the kind of the error; its text is
// in the log.
func endSpan(span trace.Span, err error) {
	defer span.End()
	if err == nil {
		return
	}
	kind := "internal"
	if e, ok := errors.AsType[*download.Error](err); ok {
		kind = string(e.Code)
	} else if errors.Is(err, catalog.ErrNotHeld) {
		kind = "not_held"
	} else if errors.Is(err, context.Canceled) {
		kind = "canceled"
	}
	span.SetAttributes(attribute.String("error.type", kind))
	if kind != "canceled" && kind != "not_held" { // which happens to servers that stop, or stall
		span.SetStatus(codes.Error, kind)
	}
}

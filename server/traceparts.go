package server

import (
	"context"
	"io"
	"time"

	"github.com/google/uuid"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"

	"github.com/downlink-go/downlink/server/internal/catalog"
	"github.com/downlink-go/downlink/server/internal/download"
	"github.com/downlink-go/downlink/server/internal/packager"
)

// What takes time in a request, each with a span for what it does. They stand
// around the parts only where spans are wanted.

type tracedKeys struct {
	keys
	tracer trace.Tracer
}

func (t tracedKeys) Authenticate(ctx context.Context, key catalog.APIKey) (catalog.Identity, error) {
	return traced(ctx, t.tracer, "authenticate", func(ctx context.Context) (catalog.Identity, error) {
		return t.keys.Authenticate(ctx, key)
	})
}

type tracedCatalog struct {
	Catalog
	tracer trace.Tracer
}

func (t tracedCatalog) Job(ctx context.Context, workflowID, jobID string) (Job, error) {
	return traced(ctx, t.tracer, "look up job", func(ctx context.Context) (Job, error) {
		job, err := t.Catalog.Job(ctx, workflowID, jobID)
		trace.SpanFromContext(ctx).SetAttributes(attribute.Int("downlink.assets", len(job.Assets)))
		return job, err
	})
}

type tracedGrants struct {
	download.Grants
	tracer trace.Tracer
}

func (t tracedGrants) Granted(ctx context.Context, organizationID, workflowID string) (bool, error) {
	return traced(ctx, t.tracer, "database grant", func(ctx context.Context) (bool, error) {
		return t.Grants.Granted(ctx, organizationID, workflowID)
	})
}

type tracedPackages struct {
	download.Packages
	tracer trace.Tracer
}

func (t tracedPackages) Package(ctx context.Context, id uuid.UUID) (download.Package, error) {
	return traced(ctx, t.tracer, "database package", func(ctx context.Context) (download.Package, error) {
		return t.Packages.Package(ctx, id)
	})
}

func (t tracedPackages) Plan(ctx context.Context, id uuid.UUID) (*download.Plan, error) {
	return traced(ctx, t.tracer, "database plan", func(ctx context.Context) (*download.Plan, error) {
		return t.Packages.Plan(ctx, id)
	})
}

type tracedPackager struct {
	download.Packager
	tracer trace.Tracer
}

func (t tracedPackager) Prepare(ctx context.Context, plan *download.Plan) (download.Package, error) {
	return traced(ctx, t.tracer, "plan package", func(ctx context.Context) (download.Package, error) {
		return t.Packager.Prepare(ctx, plan)
	}, attribute.Int("downlink.assets", len(plan.Entries)))
}

func (t tracedPackager) Wait(ctx context.Context, id uuid.UUID, d time.Duration) (download.Package, error) {
	return traced(ctx, t.tracer, "wait for package", func(ctx context.Context) (download.Package, error) {
		return t.Packager.Wait(ctx, id, d)
	})
}

// tracedBucket has no spans for what is asked once for each asset, but for those
// that are slow to open.
type tracedBucket struct {
	bucket
	tracer trace.Tracer
}

// tracedStore is a tracedBucket that knows checksums.
type tracedStore struct {
	tracedBucket
	packager.Checksummer
}

func traceBucket(b bucket, tracer trace.Tracer) bucket {
	t := tracedBucket{bucket: b, tracer: tracer}
	if store, ok := b.(packager.Checksummer); ok {
		return &tracedStore{t, store}
	}
	return &t
}

func (t *tracedBucket) List(ctx context.Context, prefix string) (objects []Object, findings []download.Detail, err error) {
	_, err = traced(ctx, t.tracer, "bucket list", func(ctx context.Context) (struct{}, error) {
		objects, findings, err = t.bucket.List(ctx, prefix)
		trace.SpanFromContext(ctx).SetAttributes(attribute.Int("downlink.objects", len(objects)))
		return struct{}{}, err
	})
	return objects, findings, err
}

func (t *tracedBucket) Read(ctx context.Context, key string, limit int64) ([]byte, error) {
	return traced(ctx, t.tracer, "bucket read", func(ctx context.Context) ([]byte, error) {
		return t.bucket.Read(ctx, key, limit)
	})
}

func (t *tracedBucket) Open(ctx context.Context, o Object, off, n int64) (io.ReadCloser, error) {
	start := time.Now()
	r, err := t.bucket.Open(ctx, o, off, n)
	traceOpen(ctx, t.tracer, start, err)
	return r, err
}

package server

import (
	"context"
	"errors"
	"io"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/downlink-go/downlink/server/internal/assemble"
	"github.com/downlink-go/downlink/server/internal/download"
	"github.com/downlink-go/downlink/server/internal/packager"
)

// countedBucket counts the operations on a bucket.
type countedBucket struct {
	bucket
	operations *prometheus.CounterVec
	opened     prometheus.Counter // of those, the many
}

// countedStore is a countedBucket that knows checksums.
type countedStore struct {
	countedBucket
	store packager.Checksummer
}

var _ packager.Checksummer = (*countedStore)(nil)

// countBucket returns the bucket with its operations counted.
func countBucket(b bucket, operations *prometheus.CounterVec) bucket {
	counted := countedBucket{b, operations, operations.WithLabelValues("open", "ok")}
	if store, ok := b.(packager.Checksummer); ok {
		return &countedStore{counted, store}
	}
	return &counted
}

func (b *countedBucket) count(operation string, err error) {
	countOperation(b.operations, operation, err)
}

func countOperation(operations *prometheus.CounterVec, operation string, err error) {
	outcome := "ok"
	switch {
	case err == nil:
	case errors.Is(err, download.ErrObjectNotFound):
		outcome = "missing"
	case errors.Is(err, download.ErrObjectChanged):
		outcome = "changed"
	case errors.Is(err, context.Canceled):
		outcome = "canceled"
	default:
		outcome = "error"
	}
	operations.WithLabelValues(operation, outcome).Inc()
}

func (b *countedBucket) List(ctx context.Context, prefix string) ([]Object, []download.Detail, error) {
	objects, findings, err := b.bucket.List(ctx, prefix)
	b.count("list", err)
	return objects, findings, err
}

func (b *countedBucket) Read(ctx context.Context, key string, limit int64) ([]byte, error) {
	data, err := b.bucket.Read(ctx, key, limit)
	b.count("read", err)
	return data, err
}

func (b *countedBucket) Stat(ctx context.Context, key string) (Object, error) {
	o, err := b.bucket.Stat(ctx, key)
	b.count("stat", err)
	return o, err
}

func (b *countedBucket) Open(ctx context.Context, o Object, off, n int64) (io.ReadCloser, error) {
	r, err := b.bucket.Open(ctx, o, off, n)
	if err == nil {
		b.opened.Inc()
	} else {
		b.count("open", err)
	}
	return r, err
}

// Checksum implements packager.Checksummer.
func (b *countedStore) Checksum(ctx context.Context, o Object) (*Checksum, error) {
	c, err := b.store.Checksum(ctx, o)
	b.count("checksum", err)
	return c, err
}

// countedAssembly counts those operations of a store that make packages.
type countedAssembly struct {
	assemble.Store
	operations *prometheus.CounterVec
}

func (a *countedAssembly) Upload(ctx context.Context, key, upload string, number int, data []byte, sum uint32) (assemble.Stored, error) {
	s, err := a.Store.Upload(ctx, key, upload, number, data, sum)
	countOperation(a.operations, "upload", err)
	return s, err
}

func (a *countedAssembly) Copy(ctx context.Context, key, upload string, number int, from Object, off, n int64) (assemble.Stored, error) {
	s, err := a.Store.Copy(ctx, key, upload, number, from, off, n)
	countOperation(a.operations, "copy", err)
	return s, err
}

func (a *countedAssembly) Complete(ctx context.Context, key, upload string, parts []assemble.Stored) error {
	err := a.Store.Complete(ctx, key, upload, parts)
	countOperation(a.operations, "complete", err)
	return err
}

func (a *countedAssembly) Find(ctx context.Context, key string) (int64, string, error) {
	size, digest, err := a.Store.Find(ctx, key)
	countOperation(a.operations, "find", err)
	return size, digest, err
}

func (a *countedAssembly) Delete(ctx context.Context, key string) error {
	err := a.Store.Delete(ctx, key)
	countOperation(a.operations, "delete", err)
	return err
}

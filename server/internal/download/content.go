package download

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/google/uuid"
	"github.com/maypok86/otter/v2"
	"github.com/maypok86/otter/v2/stats"

	"github.com/downlink-go/downlink/server/internal/vzip"
)

// Content is a package that can be read. It is immutable and shared.
type Content struct {
	Plan   *Plan
	Layout *vzip.Layout
	// Modified is that of the plan, which takes a look at every entry.
	Modified time.Time

	objects Objects
}

// NewContent lays out a plan that has all checksums.
func NewContent(plan *Plan, objects Objects) (*Content, error) {
	layout, err := plan.Layout()
	if err != nil {
		return nil, err
	}
	return &Content{Plan: plan, Layout: layout, Modified: plan.Modified(), objects: objects}, nil
}

// Open implements [vzip.Source].
func (c *Content) Open(ctx context.Context, i int, off, n int64) (io.ReadCloser, error) {
	e := &c.Plan.Entries[i-1] // entry 0 is the manifest, which the layout holds
	r, err := c.objects.Open(ctx, e.Object, off, n)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", e.Object.Key, err)
	}
	return r, nil
}

// ReadError returns the error for callers who could not be given a package because
// of err: an [Error] with PackageOutdated if an object is gone or has changed.
func ReadError(err error) error {
	if errors.Is(err, ErrObjectNotFound) || errors.Is(err, ErrObjectChanged) {
		return &Error{Code: PackageOutdated, Message: errOutdated.Message, Err: err}
	}
	return err
}

// memoryBytes estimates what the cache holds on to.
func (c *Content) memoryBytes() int64 {
	const entry = 320 // an Entry, its checksum, and its strings
	return c.Layout.MemoryBytes() + entry*int64(len(c.Plan.Entries))
}

// contentCache keeps the layouts of recently read packages, up to a number of
// bytes. Concurrent requests for one package load it once.
type contentCache struct {
	cache  *otter.Cache[uuid.UUID, *Content]
	loader otter.Loader[uuid.UUID, *Content]
}

func newContentCache(packages Packages, objects Objects, maxBytes int64) *contentCache {
	load := func(ctx context.Context, id uuid.UUID) (*Content, error) {
		// Others wait for it too, whatever becomes of this request.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		plan, err := packages.Plan(ctx, id)
		if err != nil {
			return nil, err
		}
		if n, _ := plan.Missing(); n > 0 {
			return nil, ErrPackageNotFound // links are signed for ready packages alone
		}
		return NewContent(plan, objects)
	}
	return &contentCache{
		cache: otter.Must(&otter.Options[uuid.UUID, *Content]{
			StatsRecorder: stats.NewCounter(),
			MaximumWeight: uint64(maxBytes),
			Weigher: func(_ uuid.UUID, c *Content) uint32 {
				return uint32(min(c.memoryBytes(), 1<<32-1))
			},
		}),
		loader: otter.LoaderFunc[uuid.UUID, *Content](load),
	}
}

// CacheStats tells how the cache of layouts does.
type CacheStats struct {
	Packages     int
	Bytes        int64  // estimated
	Hits, Misses uint64 // since the start
}

// CacheStats returns the figures as they are now.
func (s *Service) CacheStats() CacheStats {
	counted := s.contents.cache.Stats()
	return CacheStats{
		Packages: s.contents.cache.EstimatedSize(), Bytes: int64(s.contents.cache.WeightedSize()),
		Hits: counted.Hits, Misses: counted.Misses,
	}
}

func (c *contentCache) get(ctx context.Context, id uuid.UUID) (*Content, error) {
	return c.cache.Get(ctx, id, c.loader)
}

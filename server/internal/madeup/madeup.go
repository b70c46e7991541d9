// Package madeup has jobs that do not exist: assets of any number and size whose
// bytes are worked out when they are read, and the state of their packages in
// memory. It stands in for a job catalog, a store of objects and a database.
package madeup

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/downlink-go/downlink/server/internal/download"
)

// World is a set of made-up jobs. It is safe for concurrent use.
type World struct {
	jobs map[string]Job // by workflow and job, with a slash between them

	mu       sync.Mutex
	packages map[uuid.UUID]made
}

type made struct {
	plan  *download.Plan
	state download.Package
}

var (
	_ download.Catalog  = (*World)(nil)
	_ download.Objects  = (*World)(nil)
	_ download.Packages = (*World)(nil)
	_ download.Packager = (*World)(nil)
	_ download.Grants   = (*World)(nil)
)

// New returns a world with these jobs; of two with one name the last counts.
func New(jobs ...Job) *World {
	w := &World{jobs: map[string]Job{}, packages: map[uuid.UUID]made{}}
	for _, j := range jobs {
		w.jobs[j.WorkflowID+"/"+j.JobID] = j
	}
	return w
}

// Has reports whether there is such a job.
func (w *World) Has(workflowID, jobID string) bool {
	_, ok := w.jobs[workflowID+"/"+jobID]
	return ok
}

// written is when all assets were: no wall clock gets into the bytes.
var written = time.Date(2026, time.January, 2, 3, 4, 6, 0, time.UTC)

// Job implements [download.Catalog].
func (w *World) Job(_ context.Context, workflowID, jobID string) (download.Job, error) {
	j, ok := w.jobs[workflowID+"/"+jobID]
	if !ok {
		return download.Job{}, download.ErrJobNotFound
	}
	job := download.Job{Status: j.Status}
	n := 0
	for _, g := range j.Groups {
		sum := checksums{size: g.Size}
		for range g.Count {
			seed := seedOf(workflowID, jobID, n)
			a := download.Asset{
				Role: download.Output,
				Path: fmt.Sprintf("%03d/%06d.tif", n/1000, n),
				Object: download.Object{
					Key:      fmt.Sprintf("%s/%s/%d", workflowID, jobID, n),
					Version:  fmt.Sprintf("%x", seed),
					Size:     g.Size,
					Modified: written,
				},
				Checksum: &download.Checksum{CRC32: sum.of(seed)},
			}
			if n == 0 {
				a.Role, a.Path = download.Input, "scene.tif"
			}
			job.Assets = append(job.Assets, a)
			n++
		}
	}
	return job, nil
}

// seedOf says where in the pattern an asset begins, so that no two assets that
// are next to each other have the same bytes.
func seedOf(workflowID, jobID string, n int) int {
	sum := sha256.Sum256(fmt.Appendf(nil, "%s/%s/%d", workflowID, jobID, n))
	return int(binary.BigEndian.Uint32(sum[:])%seeds) * seedStep
}

// Stat implements [download.Objects]. Nothing asks: every asset is pinned.
func (w *World) Stat(context.Context, string) (download.Object, error) {
	return download.Object{}, download.ErrObjectNotFound
}

// Open implements [download.Objects].
func (w *World) Open(_ context.Context, o download.Object, off, n int64) (io.ReadCloser, error) {
	var seed int
	if _, err := fmt.Sscanf(o.Version, "%x", &seed); err != nil || off < 0 || off+n > o.Size {
		return nil, download.ErrObjectNotFound
	}
	return io.NopCloser(&reader{at: (int64(seed) + off) % period, left: n}), nil
}

// Granted implements [download.Grants]: everybody may have everything.
func (w *World) Granted(context.Context, string, string) (bool, error) { return true, nil }

// Package implements [download.Packages].
func (w *World) Package(_ context.Context, id uuid.UUID) (download.Package, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	m, ok := w.packages[id]
	if !ok {
		return download.Package{}, download.ErrPackageNotFound
	}
	return m.state, nil
}

// Plan implements [download.Packages].
func (w *World) Plan(_ context.Context, id uuid.UUID) (*download.Plan, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	m, ok := w.packages[id]
	if !ok {
		return nil, download.ErrPackageNotFound
	}
	return m.plan, nil
}

// Prepare implements [download.Packager]. Every checksum is known, so that the
// package is ready at once.
func (w *World) Prepare(_ context.Context, plan *download.Plan) (download.Package, error) {
	layout, err := plan.Layout()
	if err != nil {
		return download.Package{}, err
	}
	digest := layout.Digest()
	w.mu.Lock()
	defer w.mu.Unlock()
	m := made{plan, download.Package{
		ID: plan.ID, WorkflowID: plan.WorkflowID, JobID: plan.JobID, State: download.Ready,
		Entries: len(plan.Entries), Size: layout.Size(), Digest: digest[:], Created: written,
		Progress: download.Progress{Updated: written},
	}}
	w.packages[plan.ID] = m
	return m.state, nil
}

// Wait implements [download.Packager].
func (w *World) Wait(ctx context.Context, id uuid.UUID, _ time.Duration) (download.Package, error) {
	return w.Package(ctx, id)
}

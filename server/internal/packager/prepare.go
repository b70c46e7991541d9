package packager

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"golang.org/x/sync/errgroup"

	"github.com/downlink-go/downlink/server/internal/catalog"
	"github.com/downlink-go/downlink/server/internal/download"
)

// Checksummer is a store that knows checksums of what it holds.
type Checksummer interface {
	// Checksum returns what is known of the object, nil if that is nothing. It
	// does not read the object.
	Checksum(ctx context.Context, object download.Object) (*download.Checksum, error)
}

// maxConcurrentLookups bounds the requests to the store for one plan.
const maxConcurrentLookups = 32

// Prepare makes the plan's package exist and returns it: ready at once if every
// checksum is known to the plan, the catalog or the store, and pending with the
// work queued if not. A failed package starts again. Any number of concurrent
// calls, in any number of processes, make one package. Prepare takes over the
// plan.
func (p *Packager) Prepare(ctx context.Context, plan *download.Plan) (download.Package, error) {
	return shared(ctx, &p.prepares, plan.ID, func() (download.Package, error) { return p.prepare(ctx, plan) })
}

func (p *Packager) prepare(ctx context.Context, plan *download.Plan) (download.Package, error) {
	if err := p.fillKnown(ctx, plan); err != nil {
		return download.Package{}, err
	}
	missing, bytes := plan.Missing()
	pkg := download.Package{
		ID: plan.ID, WorkflowID: plan.WorkflowID, JobID: plan.JobID,
		State: download.Pending, Entries: len(plan.Entries), Progress: download.Progress{BytesTotal: bytes},
	}
	enqueue := func(tx *sql.Tx, run catalog.Run) error {
		_, err := p.client.InsertTx(ctx, tx, newPackageArgs(run), jobOptions(ctx))
		return err
	}
	if missing == 0 {
		layout, err := plan.Layout()
		if err != nil {
			return download.Package{}, err
		}
		digest := layout.Digest()
		pkg.State, pkg.Size, pkg.Digest = download.Ready, layout.Size(), digest[:]
		enqueue = func(*sql.Tx, catalog.Run) error { return nil }
	}
	return p.DB.AddPackage(ctx, pkg, plan, lease, enqueue)
}

// fillKnown fills in the checksums that can be had without reading an asset.
func (p *Packager) fillKnown(ctx context.Context, plan *download.Plan) error {
	if err := p.fillStored(ctx, plan); err != nil {
		return err
	}
	store, ok := p.Objects.(Checksummer)
	if !ok {
		return nil
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(maxConcurrentLookups)
	for i := range plan.Entries {
		e := &plan.Entries[i]
		if e.Checksum != nil {
			continue
		}
		g.Go(func() error {
			sum, err := store.Checksum(ctx, e.Object)
			// What happened to an object is for the reader to find out.
			if err != nil && !errors.Is(err, download.ErrObjectNotFound) && !errors.Is(err, download.ErrObjectChanged) {
				return fmt.Errorf("look up checksum of %s: %w", e.Object.Key, err)
			}
			e.Checksum = sum
			return nil
		})
	}
	return g.Wait()
}

// fillStored fills in the checksums that the catalog has.
func (p *Packager) fillStored(ctx context.Context, plan *download.Plan) error {
	missing := missingEntries(plan)
	if len(missing) == 0 {
		return nil
	}
	objects := make([]download.Object, len(missing))
	for i, e := range missing {
		objects[i] = e.Object
	}
	sums, err := p.DB.Checksums(ctx, objects)
	if err != nil {
		return err
	}
	for i, e := range missing {
		e.Checksum = sums[i]
	}
	return nil
}

// missingEntries returns the entries that have no checksum.
func missingEntries(plan *download.Plan) []*download.Entry {
	var missing []*download.Entry
	for i := range plan.Entries {
		if e := &plan.Entries[i]; e.Checksum == nil {
			missing = append(missing, e)
		}
	}
	return missing
}

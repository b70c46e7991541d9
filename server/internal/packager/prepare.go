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

const (
	// maxConcurrentLookups bounds the requests to the store for one plan.
	maxConcurrentLookups = 32
	// maxLookups is about how many assets the store is asked while a call waits,
	// each with a request of its own. More are work for the queue.
	maxLookups = 1000
)

// Prepare makes the plan's package exist and returns it: ready at once if every
// checksum is known to the plan, the catalog or the store, and pending with the
// work queued if not, or if the store had to be asked about very many. A failed
// package starts again. Any number of concurrent calls, in any number of
// processes, make one package. Prepare takes over the plan.
func (p *Packager) Prepare(ctx context.Context, plan *download.Plan) (download.Package, error) {
	return shared(ctx, &p.prepares, plan.ID, func() (download.Package, error) { return p.prepare(ctx, plan) })
}

func (p *Packager) prepare(ctx context.Context, plan *download.Plan) (download.Package, error) {
	if err := p.fillStored(ctx, plan); err != nil {
		return download.Package{}, err
	}
	missing, bytes := plan.Missing()
	if missing <= maxLookups {
		if err := p.askStore(ctx, missingAssets(plan), (*asset).fill); err != nil {
			return download.Package{}, err
		}
		missing, bytes = plan.Missing()
	}
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

// askStore asks the store for the checksums of the assets, if it is one that knows
// any, and calls found, concurrently, with each that it has.
func (p *Packager) askStore(ctx context.Context, assets []*asset, found func(*asset, download.Checksum)) error {
	store, ok := p.Objects.(Checksummer)
	if !ok {
		return nil
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(maxConcurrentLookups)
	for _, a := range assets {
		g.Go(func() error {
			sum, err := store.Checksum(ctx, a.Object)
			switch {
			case errors.Is(err, download.ErrObjectNotFound), errors.Is(err, download.ErrObjectChanged):
				// What happened to it is for the reader to find out.
			case err != nil:
				return fmt.Errorf("look up checksum of %s: %w", a.Key, err)
			case sum != nil:
				found(a, *sum)
			}
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

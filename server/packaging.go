package server

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"runtime"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"

	"github.com/downlink-go/downlink/server/internal/catalog"
	"github.com/downlink-go/downlink/server/internal/download"
)

// inlinePackager makes packages while their callers wait.
type inlinePackager struct {
	db      *catalog.DB
	objects download.Objects
}

// Prepare reads the assets whose checksums nobody knows, and remembers them.
func (p *inlinePackager) Prepare(ctx context.Context, plan *download.Plan) (download.Package, error) {
	if err := p.checksum(ctx, plan); err != nil {
		return download.Package{}, err
	}
	layout, err := plan.Layout()
	if err != nil {
		return download.Package{}, err
	}
	digest := layout.Digest()
	return p.db.AddPackage(ctx, download.Package{
		ID: plan.ID, WorkflowID: plan.WorkflowID, JobID: plan.JobID, State: download.Ready,
		Entries: len(plan.Entries), Size: layout.Size(), Digest: digest[:],
	}, plan, 0, func(*sql.Tx, catalog.Run) error { return nil })
}

func (p *inlinePackager) checksum(ctx context.Context, plan *download.Plan) error {
	var missing []*download.Entry
	var objects []download.Object
	for i := range plan.Entries {
		if e := &plan.Entries[i]; e.Checksum == nil {
			missing = append(missing, e)
			objects = append(objects, e.Object)
		}
	}
	known, err := p.db.Checksums(ctx, objects)
	if err != nil {
		return err
	}
	found := make([]catalog.AssetChecksum, len(missing))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(runtime.NumCPU())
	for i, e := range missing {
		if e.Checksum = known[i]; e.Checksum != nil {
			continue
		}
		g.Go(func() error {
			sum, err := p.read(gctx, e.Object)
			if errors.Is(err, download.ErrObjectNotFound) || errors.Is(err, download.ErrObjectChanged) || errors.Is(err, io.ErrUnexpectedEOF) {
				return download.MissingAssets([]download.Detail{{Asset: e.Name, Message: "is gone or changed while it was read"}})
			}
			if err != nil {
				return &download.Error{Code: download.Unavailable, Message: "the assets cannot be read at the moment", Err: err}
			}
			e.Checksum = sum
			found[i] = catalog.AssetChecksum{Object: e.Object, Checksum: *sum}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	var save []catalog.AssetChecksum
	for _, f := range found {
		if f.Object.Key != "" {
			save = append(save, f)
		}
	}
	return p.db.SaveChecksums(ctx, save)
}

func (p *inlinePackager) read(ctx context.Context, o download.Object) (_ *download.Checksum, err error) {
	if o.Size == 0 {
		return &download.Checksum{}, nil
	}
	r, err := p.objects.Open(ctx, o, 0, o.Size)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	h := crc32.NewIEEE()
	if n, err := io.Copy(h, io.LimitReader(r, o.Size)); err != nil || n < o.Size {
		return nil, fmt.Errorf("read %s: %w", o.Key, errors.Join(err, io.ErrUnexpectedEOF))
	}
	return &download.Checksum{CRC32: h.Sum32()}, nil
}

// Wait returns the package: none is ever pending.
func (p *inlinePackager) Wait(ctx context.Context, id uuid.UUID, _ time.Duration) (download.Package, error) {
	return p.db.Package(ctx, id)
}

// TimeLeft is for pending packages, which there are none of.
func (p *inlinePackager) TimeLeft(download.Package) time.Duration { return time.Second }

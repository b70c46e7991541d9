package packager

import (
	"context"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/maypok86/otter/v2"
	"github.com/riverqueue/river"
	"golang.org/x/sync/semaphore"

	"github.com/downlink-go/downlink/server/internal/assemble"
	"github.com/downlink-go/downlink/server/internal/catalog"
	"github.com/downlink-go/downlink/server/internal/download"
	"github.com/downlink-go/downlink/server/internal/vzip"
)

// Assembly is what a [Packager] needs to put packages together in the store.
type Assembly struct {
	// Store makes the objects. Required.
	Store assemble.Store
	// Source returns the way to read small assets. Defaults to the content
	// itself.
	Source func(*download.Content) vzip.Source
	// Memory bounds the bytes that are uploaded at a time. Defaults to 128 MiB,
	// and cannot be less than the largest part.
	Memory int64
}

const (
	// assemblyFolder is where assembled packages are in the bucket. No workflow
	// has a name that starts with a dot.
	assemblyFolder = ".downlink/packages/"
	// assemblyHold is for how long a failed assembly is reported before a call
	// starts it again.
	assemblyHold = 10 * time.Second
	// foundFor is for how long an object is taken to be there once it was seen.
	foundFor = 10 * time.Second
	// assemblyQueue is a queue of its own, for servers that can assemble and so
	// that checksums need not wait for the store. assembliesAtOnce is how many
	// packages one server works on at once.
	assemblyQueue    = "assembly"
	assembliesAtOnce = 4
	// expireInterval is how often expired objects are looked for.
	expireInterval = 5 * time.Minute
)

// assembler is the state of assembling in one process.
type assembler struct {
	Assembly
	memory *semaphore.Weighted
	found  *otter.Cache[uuid.UUID, struct{}] // assemblies whose object was there a moment ago
}

func newAssembler(a *Assembly) *assembler {
	if a == nil {
		return nil
	}
	return &assembler{
		Assembly: *a,
		memory:   semaphore.NewWeighted(max(a.Memory, 2*assemble.S3.MaxUpload)),
		found: otter.Must(&otter.Options[uuid.UUID, struct{}]{
			MaximumSize:      10_000,
			ExpiryCalculator: otter.ExpiryWriting[uuid.UUID, struct{}](foundFor),
		}),
	}
}

var _ download.Assembler = (*Packager)(nil)

// Assemble makes the object of a ready package exist and keeps it until the given
// time at least. It returns the assembly: ready, pending with the work queued, or
// failed if that was just now. Any number of concurrent calls, in any number of
// processes, make one object.
func (p *Packager) Assemble(ctx context.Context, pkg download.Package, filename string, until time.Time) (download.Assembly, error) {
	for {
		a, err := p.DB.Assembly(ctx, pkg.ID)
		if errors.Is(err, catalog.ErrNotFound) {
			return p.addAssembly(ctx, pkg, filename, until)
		}
		if err != nil || a.State == download.Pending {
			return a, err
		}
		if a.State == download.Ready {
			kept, err := p.keep(ctx, a, pkg, until)
			if err != nil || kept {
				return a, err
			}
		} else if time.Since(a.Updated).Abs() < assemblyHold {
			return a, nil
		}
		if err := p.DB.ExpireAssembly(ctx, a.ID); err != nil {
			return download.Assembly{}, err
		}
	}
}

func (p *Packager) addAssembly(ctx context.Context, pkg download.Package, filename string, until time.Time) (download.Assembly, error) {
	id := uuid.New()
	a := download.Assembly{
		ID: id, PackageID: pkg.ID, Key: assemblyFolder + id.String() + "/" + filename,
		Progress: download.Progress{BytesTotal: pkg.Size}, Expires: slack(until),
	}
	return p.DB.AddAssembly(ctx, a, lease, func(tx *sql.Tx) error {
		_, err := p.client.InsertTx(ctx, tx, assembleArgs{id}, nil)
		return err
	})
}

// slack adds half of the time that is left, so that an object in demand is not
// noted as such with each call.
func slack(until time.Time) time.Time { return until.Add(max(time.Until(until)/2, 0)) }

// keep has a ready assembly kept, and reports whether its object is there.
func (p *Packager) keep(ctx context.Context, a download.Assembly, pkg download.Package, until time.Time) (bool, error) {
	if _, ok := p.assembler.found.GetIfPresent(a.ID); !ok {
		size, digest, err := p.assembler.Store.Find(ctx, a.Key)
		if errors.Is(err, download.ErrObjectNotFound) {
			return false, nil
		}
		if err != nil {
			return false, fmt.Errorf("find assembled package %s: %w", pkg.ID, err)
		}
		if size != pkg.Size || digest != hex.EncodeToString(pkg.Digest) {
			return false, nil
		}
		p.assembler.found.Set(a.ID, struct{}{})
	}
	if !a.Expires.Before(until) {
		return true, nil
	}
	return p.DB.KeepAssembly(ctx, a.ID, slack(until))
}

// WaitAssembled returns the assembly as soon as it is not pending any more, or as
// it is after d. It fails with [catalog.ErrNotFound].
func (p *Packager) WaitAssembled(ctx context.Context, id uuid.UUID, d time.Duration) (a download.Assembly, err error) {
	err = p.wait(ctx, id, d, func() (download.State, error) {
		a, err = p.DB.AssemblyByID(ctx, id)
		return a.State, err
	})
	return a, err
}

// assembleArgs asks for an assembly to be worked on.
type assembleArgs struct {
	AssemblyID uuid.UUID `json:"assembly_id"`
}

func (assembleArgs) Kind() string { return "assemble" }

func (assembleArgs) InsertOpts() river.InsertOpts {
	opts := uniqueWork()
	opts.Queue = assemblyQueue
	return opts
}

type assembleWorker struct {
	river.WorkerDefaults[assembleArgs]
	packager *Packager
}

func (w *assembleWorker) NextRetry(job *river.Job[assembleArgs]) time.Time {
	return w.packager.nextRetry(job.JobRow)
}

func (w *assembleWorker) Work(ctx context.Context, job *river.Job[assembleArgs]) error {
	p := w.packager
	work, err := p.DB.ClaimAssembly(ctx, job.Args.AssemblyID, lease)
	if errors.Is(err, catalog.ErrNotHeld) {
		return nil // it is finished, gone, or in other hands
	}
	if err != nil {
		return err
	}
	log := p.Logger.With("package_id", work.Assembly.PackageID, "assembly_id", work.Assembly.ID)
	start := time.Now()
	result, err := p.assemble(ctx, work)
	if err == nil {
		log.InfoContext(ctx, "package assembled", "parts", result.Parts, "bytes_uploaded", result.Uploaded,
			"bytes_copied", result.Copied, "bytes_reused", result.Reused, "duration", time.Since(start))
	}
	return p.settle(ctx, log, "assembly", work.Assembly.ID, work, job.JobRow, err)
}

// assemble makes the object of a claimed assembly.
func (p *Packager) assemble(ctx context.Context, work *catalog.AssemblyWork) (assemble.Result, error) {
	a := work.Assembly
	pkg, err := p.DB.Package(ctx, a.PackageID)
	if errors.Is(err, download.ErrPackageNotFound) {
		// It was deleted. So will be what there is of this.
		return assemble.Result{}, &download.Error{Code: download.PackageOutdated, Message: "the package was deleted", Err: err}
	}
	if err != nil {
		return assemble.Result{}, err
	}
	plan, err := p.DB.Plan(ctx, a.PackageID)
	if err != nil {
		return assemble.Result{}, err
	}
	content, err := download.NewContent(plan, p.Objects)
	if err != nil {
		return assemble.Result{}, err
	}
	var done atomic.Int64
	job := assemble.Job{
		Store: p.assembler.Store, Key: a.Key, Filename: download.Filename(pkg.WorkflowID, pkg.JobID),
		Digest: hex.EncodeToString(pkg.Digest), Content: content, Memory: p.assembler.memory,
		Upload: a.Upload, Begun: work.Begun, Done: func(n int64) { done.Add(n) },
	}
	if p.assembler.Source != nil {
		job.Source = p.assembler.Source(content)
	}
	workCtx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var reporter sync.WaitGroup
	reporter.Go(func() {
		if err := regularly(workCtx, func() error { return work.Progress(workCtx, done.Load(), lease) }); err != nil {
			cancel(err)
		}
	})
	result, err := job.Run(workCtx)
	if errors.Is(err, download.ErrObjectChanged) || errors.Is(err, download.ErrObjectNotFound) {
		err = p.explain(workCtx, plan, err)
	}
	if cause := context.Cause(workCtx); cause != nil && err != nil {
		err = cause
	}
	cancel(nil)
	reporter.Wait()
	switch {
	case errors.Is(err, assemble.ErrTooLarge), errors.Is(err, assemble.ErrTooManyParts):
		return result, &download.Error{Code: download.PackageTooLarge, Err: err,
			Message: "the package is too large, or has too many small assets, to be put together in the store"}
	case errors.Is(err, assemble.ErrContent):
		return result, &download.Error{Code: download.AssetMissing, Err: err,
			Message: "the assets of the job do not have the checksums that were declared for them"}
	case err != nil:
		return result, err
	}
	return result, work.Ready(ctx)
}

// expireArgs asks for the objects of assemblies to be deleted that are not wanted
// any more.
type expireArgs struct{}

func (expireArgs) Kind() string { return "expire" }

func (expireArgs) InsertOpts() river.InsertOpts { return river.InsertOpts{Queue: assemblyQueue} }

type expireWorker struct {
	river.WorkerDefaults[expireArgs]
	packager *Packager
}

// Work deletes first the object and then what is known of it, so that nothing is
// left in the store of which nobody knows.
func (w *expireWorker) Work(ctx context.Context, _ *river.Job[expireArgs]) error {
	p := w.packager
	const atOnce = 100
	for {
		expired, err := p.DB.ExpiredAssemblies(ctx, atOnce)
		if err != nil {
			return err
		}
		for _, a := range expired {
			if err := p.assembler.Store.Abort(ctx, a.Key); err != nil {
				return fmt.Errorf("abort upload of %s: %w", a.Key, err)
			}
			if err := p.assembler.Store.Delete(ctx, a.Key); err != nil {
				return fmt.Errorf("delete %s: %w", a.Key, err)
			}
			if err := p.DB.DeleteAssembly(ctx, a.ID); err != nil {
				return err
			}
		}
		if len(expired) > 0 {
			p.Logger.InfoContext(ctx, "assembled packages deleted", "packages", len(expired))
		}
		if len(expired) < atOnce {
			return nil
		}
	}
}

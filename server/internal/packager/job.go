package packager

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/google/uuid"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/rivertype"
	"golang.org/x/sync/errgroup"

	"github.com/downlink-go/downlink/server/internal/catalog"
	"github.com/downlink-go/downlink/server/internal/download"
)

// maxAttempts is how often a package is tried before it fails.
const maxAttempts = 4

// packageArgs asks for one run of a package to be worked on.
type packageArgs struct {
	PackageID uuid.UUID `json:"package_id"`
	Run       int64     `json:"run"`
}

func newPackageArgs(run catalog.Run) packageArgs {
	return packageArgs{PackageID: run.PackageID, Run: run.Number}
}

func (packageArgs) Kind() string { return "package" }

func (packageArgs) InsertOpts() river.InsertOpts { return uniqueWork() }

// uniqueWork makes a job unique while there is one that is not over.
func uniqueWork() river.InsertOpts {
	return river.InsertOpts{MaxAttempts: maxAttempts, UniqueOpts: river.UniqueOpts{
		ByArgs: true,
		ByState: []rivertype.JobState{rivertype.JobStateAvailable, rivertype.JobStatePending,
			rivertype.JobStateRetryable, rivertype.JobStateRunning, rivertype.JobStateScheduled},
	}}
}

type packageWorker struct {
	river.WorkerDefaults[packageArgs]
	packager *Packager
}

func (w *packageWorker) NextRetry(job *river.Job[packageArgs]) time.Time {
	return w.packager.nextRetry(job.JobRow)
}

// nextRetry waits 2, 8 and 32 seconds.
func (p *Packager) nextRetry(job *rivertype.JobRow) time.Time {
	return time.Now().Add(p.backoff << (2 * min(len(job.Errors), maxAttempts)))
}

func (w *packageWorker) Work(ctx context.Context, job *river.Job[packageArgs]) error {
	p, id := w.packager, job.Args.PackageID
	work, err := p.DB.Claim(ctx, id, lease)
	if errors.Is(err, catalog.ErrNotHeld) || errors.Is(err, download.ErrPackageNotFound) {
		return nil // it is finished, gone, or in other hands
	}
	if err != nil {
		return err
	}
	log := p.Logger.With("package_id", id, "workflow_id", work.Package.WorkflowID, "job_id", work.Package.JobID)
	ctx, span, log := p.startSpan(ctx, job.JobRow, work, log)
	start := time.Now()
	err = p.complete(ctx, work)
	endSpan(span, err)
	if err == nil {
		log.InfoContext(ctx, "package ready", "bytes", work.Package.BytesTotal-work.Package.BytesDone, "duration", time.Since(start))
	}
	return p.settle(ctx, log, "package", id, work, job.JobRow, err)
}

// held is work that was claimed.
type held interface {
	Release(ctx context.Context) error
	Fail(ctx context.Context, failure *download.Error) error
}

// settle stores how a turn of work has ended, tells those who wait, and returns
// what the queue has to know.
func (p *Packager) settle(ctx context.Context, log *slog.Logger, what string, id uuid.UUID, work held, job *rivertype.JobRow, err error) error {
	// What follows says what has happened, which is so whatever becomes of ctx.
	settle, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	failure, permanent := errors.AsType[*download.Error](err)
	permanent = permanent && failure.Code != download.Unavailable
	switch {
	case err == nil:
		p.finished.tell(id)
		return nil
	case errors.Is(err, catalog.ErrNotHeld):
		log.WarnContext(ctx, what+" taken over by another server or deleted")
		return nil
	case ctx.Err() != nil:
		log.InfoContext(settle, what+" put back in the queue")
		return errors.Join(work.Release(settle), river.JobSnooze(0))
	case !permanent && job.Attempt < job.MaxAttempts:
		log.WarnContext(ctx, what+" will be tried again", "attempt", job.Attempt, "error", err)
		return errors.Join(err, work.Release(settle))
	case !permanent:
		failure = &download.Error{Code: download.Unavailable, Message: "the assets cannot be read at the moment", Err: err}
	}
	log.ErrorContext(ctx, what+" failed", "attempt", job.Attempt, "error", failure)
	if err := work.Fail(settle, failure); err != nil && !errors.Is(err, catalog.ErrNotHeld) {
		return err
	}
	p.finished.tell(id)
	return nil
}

// complete finds out the missing checksums of a claimed package and makes it
// ready.
func (p *Packager) complete(ctx context.Context, work *catalog.Work) error {
	plan, err := p.DB.Plan(ctx, work.Package.ID)
	if err != nil {
		return err
	}
	// As in Prepare, which has left it to be done here or has done it.
	missing, _ := plan.Missing()
	ask := missing > maxLookups
	// What an earlier attempt or another package has found out is not read again.
	if err := p.fillStored(ctx, plan); err != nil {
		return err
	}
	if err := p.checksum(ctx, plan, ask, func(ctx context.Context, missing int64) error {
		return work.Progress(ctx, work.Package.BytesTotal-missing, lease)
	}); err != nil {
		return err
	}
	layout, err := plan.Layout()
	if err != nil {
		return err
	}
	digest := layout.Digest()
	return work.Ready(ctx, plan, layout.Size(), digest[:])
}

// explain finds out which assets of the plan are gone or changed, after one was.
// If all are as they should be now, that was but a fault of the store.
func (p *Packager) explain(ctx context.Context, plan *download.Plan, cause error) error {
	findings := make([]string, len(plan.Entries))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(maxConcurrentLookups)
	for i := range plan.Entries {
		o := plan.Entries[i].Object
		g.Go(func() error {
			found, err := p.Objects.Stat(gctx, o.Key)
			switch {
			case errors.Is(err, download.ErrObjectNotFound):
				findings[i] = "not found"
			case err != nil:
				return fmt.Errorf("stat %s: %w", o.Key, err)
			case found.Version != o.Version || found.Size != o.Size:
				findings[i] = "changed while the package was prepared"
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	var details []download.Detail
	for i, finding := range findings {
		if finding != "" {
			details = append(details, download.Detail{Asset: plan.Entries[i].Name, Message: finding})
		}
	}
	if details == nil {
		return fmt.Errorf("the assets are as planned, and yet: %w", cause)
	}
	failure := download.MissingAssets(details)
	failure.Err = cause
	return failure
}

// pruneArgs asks for packages that nobody wants any more to be removed.
type pruneArgs struct{}

func (pruneArgs) Kind() string { return "prune" }

type pruneWorker struct {
	river.WorkerDefaults[pruneArgs]
	packager *Packager
}

func (w *pruneWorker) Work(ctx context.Context, _ *river.Job[pruneArgs]) error {
	p := w.packager
	n, err := p.DB.Prune(ctx, time.Now().Add(-p.KeepFor))
	if err == nil && n > 0 {
		p.Logger.InfoContext(ctx, "packages removed that nobody asked for", slog.Int64("packages", n), "kept_for", p.KeepFor)
	}
	return err
}

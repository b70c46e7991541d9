package packager

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver"
	"github.com/riverqueue/river/rivertype"
)

// sweep puts the packages and assemblies back in the queue that are pending while
// nobody works on them. Those that just wait in the queue are left there.
func (p *Packager) sweep(ctx context.Context) error {
	const atOnce = 100
	runs, err := p.DB.Unattended(ctx, lease, atOnce)
	if err != nil {
		return err
	}
	for _, run := range runs {
		if err := p.requeueWork(ctx, newPackageArgs(run), run.PackageID); err != nil {
			return err
		}
	}
	if p.assembler == nil {
		return nil
	}
	ids, err := p.DB.UnattendedAssemblies(ctx, lease, atOnce)
	if err != nil {
		return err
	}
	for _, id := range ids {
		if err := p.requeueWork(ctx, assembleArgs{id}, id); err != nil {
			return err
		}
	}
	return nil
}

// requeueWork makes sure that there is a job for what nobody works on.
func (p *Packager) requeueWork(ctx context.Context, args river.JobArgs, id uuid.UUID) error {
	// There is a job already, unless it was lost in a way that should not
	// happen. If it is running, its worker is gone.
	r, err := p.client.Insert(ctx, args, nil)
	if err != nil {
		return fmt.Errorf("queue %s %s: %w", args.Kind(), id, err)
	}
	if !r.UniqueSkippedAsDuplicate || r.Job.State != rivertype.JobStateRunning {
		return nil
	}
	if err := p.requeue(ctx, []*rivertype.JobRow{r.Job}, time.Now().Add(-lease)); err != nil {
		return err
	}
	p.Logger.WarnContext(ctx, "work left behind by a server is queued again", "kind", args.Kind(), "id", id)
	return nil
}

// takeOver makes the running jobs of a database that has no other server
// available: whoever ran them is gone.
func (p *Packager) takeOver(ctx context.Context) error {
	if err := p.DB.ReleaseAll(ctx); err != nil {
		return err
	}
	const atOnce = 1000
	stuck := riverdriver.JobGetStuckParams{Max: atOnce, StuckHorizon: time.Now()}
	for {
		jobs, err := p.driver.GetExecutor().JobGetStuck(ctx, &stuck)
		if err != nil {
			return fmt.Errorf("find running jobs: %w", err)
		}
		if err := p.requeue(ctx, jobs, stuck.StuckHorizon); err != nil {
			return err
		}
		if len(jobs) < atOnce {
			return nil
		}
		stuck.AfterID = jobs[len(jobs)-1].ID
	}
}

// requeue makes running jobs available that were begun before the given time.
func (p *Packager) requeue(ctx context.Context, jobs []*rivertype.JobRow, begun time.Time) error {
	if len(jobs) == 0 {
		return nil
	}
	params := &riverdriver.JobRescueManyParams{StuckHorizon: begun}
	now := time.Now().UTC()
	for _, job := range jobs {
		attempt, err := json.Marshal(rivertype.AttemptError{At: now, Attempt: job.Attempt, Error: "the server is gone"})
		if err != nil {
			return err
		}
		params.ID = append(params.ID, job.ID)
		params.Error = append(params.Error, attempt)
		params.FinalizedAt = append(params.FinalizedAt, nil)
		params.ScheduledAt = append(params.ScheduledAt, now)
		params.State = append(params.State, string(rivertype.JobStateAvailable))
	}
	if _, err := p.driver.GetExecutor().JobRescueMany(ctx, params); err != nil {
		return fmt.Errorf("queue jobs again: %w", err)
	}
	return nil
}

func (p *Packager) sweepRegularly(ctx context.Context) {
	tick := time.NewTicker(sweepInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if err := p.sweep(ctx); err != nil && ctx.Err() == nil {
				p.Logger.ErrorContext(ctx, "cannot look for packages left behind", "error", err)
			}
		}
	}
}

package server

import (
	"context"
	"errors"
	"fmt"

	"github.com/downlink-go/downlink/server/internal/download"
	"github.com/downlink-go/downlink/server/internal/packager"
)

// WarmProgress tells how far [Warm] is.
type WarmProgress struct {
	// Job is the number of the job at work, from 1, of Jobs in all.
	Job, Jobs         int
	WorkflowID, JobID string
	// Done and Total are the bytes of this job that had to be read.
	Done, Total int64
	// Finished is true when the job is done with, and Err why it has no package,
	// if it has none.
	Finished bool
	Err      error
}

// Warm finds out the checksums of all assets of the jobs in the bucket, or of one
// workflow's, and remembers them, so that the packages of these jobs are ready
// at once when they are asked for. It may run beside a server, and again: it
// reads nothing twice. Jobs that are running or have no package are passed over
// and reported. Of the configuration it needs the bucket and the state.
func Warm(ctx context.Context, config Config, workflowID string, progress func(WarmProgress)) (err error) {
	config, err = config.withDefaults()
	if err != nil {
		return err
	}
	b, err := openBucket(ctx, config.Bucket)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.Close()) }()
	db, err := OpenDatabase(ctx, config.DataDir, config.Database)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	p, err := packager.New(ctx, packager.Config{DB: db, Objects: b, Logger: config.Log, SkipSHA256: config.SkipSHA256})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.Stop(ctx)) }()
	service := download.NewService(download.Config{
		Catalog: &bucketCatalog{bucket: b},
		Objects: b,
		Limits:  download.Limits{Entries: config.MaxEntries, Bytes: config.MaxBytes},
	})

	jobs, err := jobsOf(ctx, b, workflowID)
	if err != nil {
		return err
	}
	for i, now := range jobs {
		now.Job, now.Jobs = i+1, len(jobs)
		now.Err = warm(ctx, service, p, &now, progress)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		now.Finished = true
		progress(now)
	}
	return nil
}

func warm(ctx context.Context, service *download.Service, p *packager.Packager, now *WarmProgress, progress func(WarmProgress)) error {
	plan, running, err := service.Plan(ctx, now.WorkflowID, now.JobID)
	if err != nil {
		return err
	}
	if running {
		return errors.New("the job is still running")
	}
	return p.Warm(ctx, plan, func(done, total int64) {
		now.Done, now.Total = done, total
		progress(*now)
	})
}

// jobsOf lists the jobs in the bucket: its folders of two levels whose names are
// identifiers.
func jobsOf(ctx context.Context, b bucket, workflowID string) ([]WarmProgress, error) {
	workflows := []string{workflowID}
	if workflowID == "" {
		var err error
		if workflows, err = b.Folders(ctx, ""); err != nil {
			return nil, fmt.Errorf("list workflows: %w", err)
		}
	} else if !download.IsIdentifier(workflowID) {
		return nil, download.InvalidIdentifier("workflow")
	}
	var jobs []WarmProgress
	for _, w := range workflows {
		if !download.IsIdentifier(w) {
			continue
		}
		names, err := b.Folders(ctx, w+"/")
		if err != nil {
			return nil, fmt.Errorf("list jobs of %s: %w", w, err)
		}
		for _, j := range names {
			if download.IsIdentifier(j) {
				jobs = append(jobs, WarmProgress{WorkflowID: w, JobID: j})
			}
		}
	}
	return jobs, nil
}

// Package packager makes packages ready: it finds out the checksums that a plan
// lacks, by reading the assets if it must, as durable work that survives the end
// of the process at any point.
//
// # Who works on what
//
// The row of a package in the catalog is the truth, and the lease in it the one
// right to work on it. The job in River's queue is what makes somebody try: it is
// added in the transaction that adds the row, claims the lease, and does nothing
// if it cannot have it. A server that dies leaves a row whose lease ends; each
// server looks for such rows when it starts and every few seconds, and puts their
// jobs back in the queue. A server that owns its database alone (SQLite) need not
// wait for the lease when it starts.
//
// So River's own rescue of stuck jobs, which goes by the age of a job, is left
// for what is long over: the reading of a large package may take hours.
package packager

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver"
	"github.com/riverqueue/river/riverdriver/riverdatabasesql"
	"github.com/riverqueue/river/riverdriver/riversqlite"
	"github.com/riverqueue/river/rivertype"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"
	"golang.org/x/sync/singleflight"

	"github.com/downlink-go/downlink/server/internal/catalog"
	"github.com/downlink-go/downlink/server/internal/download"
)

// Config is what a [Packager] needs.
type Config struct {
	// DB is migrated, also with [Migrator]. Required.
	DB *catalog.DB
	// Objects are read where a checksum is not known. If they implement
	// [Checksummer] they are asked first. Required.
	Objects download.Objects
	// Logger gets what happens to packages. Defaults to nothing.
	Logger *slog.Logger
	// SkipSHA256 leaves out SHA-256, which costs most of the time.
	SkipSHA256 bool
	// Concurrency is how many assets of one package, or parts of them, are read
	// at once. Each takes up to 4 MiB of memory. Defaults to the number of CPUs.
	Concurrency int
	// Packages is how many packages are worked on at once. They share the CPUs,
	// so that a small one need not wait for a large one. Defaults to 8.
	Packages int
	// KeepFor is how long a package is kept that nobody asks for. Defaults to 0,
	// which is for ever.
	KeepFor time.Duration
	// Assembly has packages put together in the store, where somebody asks for
	// that. Defaults to nil, which is for stores that cannot.
	Assembly *Assembly
	// StopTimeout is how long Stop lets packages finish before it puts them back
	// in the queue. Defaults to 10 seconds.
	StopTimeout time.Duration
	// Tracer makes spans of the work. Defaults to none.
	Tracer trace.Tracer
}

// lease is how long a package is left alone after its worker was last heard of,
// which is every flushInterval, and sweepInterval how often servers look.
const (
	lease         = 45 * time.Second
	sweepInterval = 15 * time.Second
)

// Packager makes packages ready. It is safe for concurrent use.
type Packager struct {
	Config
	assembler *assembler // nil where nothing is assembled
	driver    riverdriver.Driver[*sql.Tx]
	listener  *pgxpool.Pool // nil with SQLite
	client    *river.Client[*sql.Tx]
	prepares  singleflight.Group
	reads     singleflight.Group
	finished  events
	backoff   time.Duration // before the second attempt
	poll      time.Duration // how often Wait looks for what another process has finished
	running   sync.WaitGroup
	cancel    context.CancelFunc // ends the goroutines in running; nil before Start
}

var _ download.Packager = (*Packager)(nil)

// New returns a packager, which works on packages once it is started. Stop must
// be called in any case.
func New(ctx context.Context, c Config) (*Packager, error) {
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Tracer == nil {
		c.Tracer = noop.Tracer{}
	}
	c.Concurrency = cmp.Or(c.Concurrency, runtime.NumCPU())
	c.Packages = cmp.Or(c.Packages, 8)
	c.StopTimeout = cmp.Or(c.StopTimeout, 10*time.Second)
	if c.Concurrency < 0 || c.Packages < 0 || c.KeepFor < 0 || c.StopTimeout < 0 {
		return nil, errors.New("concurrency, packages, time to keep and time to stop cannot be negative")
	}
	p := &Packager{Config: c, assembler: newAssembler(c.Assembly), backoff: 2 * time.Second, poll: time.Second}
	if c.DB.Dialect() == catalog.Postgres {
		pool, err := c.DB.NewListenerPool(ctx)
		if err != nil {
			return nil, err
		}
		p.listener = pool
		p.driver = riverdatabasesql.NewWithPgxListener(c.DB.SQL(), pool)
	} else {
		p.driver = riversqlite.New(c.DB.SQL())
	}
	var err error
	p.client, err = river.NewClient(p.driver, p.riverConfig())
	if err != nil {
		p.close()
		return nil, fmt.Errorf("configure queue: %w", err)
	}
	return p, nil
}

func (p *Packager) riverConfig() *river.Config {
	workers := river.NewWorkers()
	river.AddWorker(workers, &packageWorker{packager: p})
	river.AddWorker(workers, &pruneWorker{packager: p})
	c := &river.Config{
		Logger:  slog.New(quietHandler{p.Logger.Handler()}),
		Workers: workers,
		Queues:  map[string]river.QueueConfig{river.QueueDefault: {MaxWorkers: p.Packages}},
		// Small packages take a few milliseconds: do not make them wait longer
		// than that for the next look into the queue.
		FetchCooldown: 10 * time.Millisecond,
		// The work goes on after that, in a new attempt.
		JobTimeout:           24 * time.Hour,
		RescueStuckJobsAfter: 25 * time.Hour,
		SoftStopTimeout:      p.StopTimeout,
	}
	if p.KeepFor > 0 {
		c.PeriodicJobs = append(c.PeriodicJobs, periodic(time.Hour, pruneArgs{}))
	}
	if p.assembler != nil {
		river.AddWorker(workers, &assembleWorker{packager: p})
		river.AddWorker(workers, &expireWorker{packager: p})
		c.Queues[assemblyQueue] = river.QueueConfig{MaxWorkers: assembliesAtOnce}
		c.PeriodicJobs = append(c.PeriodicJobs, periodic(expireInterval, expireArgs{}))
	}
	return c
}

// periodic has a job done when the servers start, and then once an interval.
func periodic(interval time.Duration, args river.JobArgs) *river.PeriodicJob {
	return river.NewPeriodicJob(river.PeriodicInterval(interval),
		func() (river.JobArgs, *river.InsertOpts) { return args, nil }, &river.PeriodicJobOpts{RunOnStart: true})
}

// Start begins to work on packages, first of all on those that a server left
// behind. It returns at once. The work goes on until Stop, also when ctx is over.
func (p *Packager) Start(ctx context.Context) error {
	if p.DB.Dialect() == catalog.SQLite {
		if err := p.takeOver(ctx); err != nil {
			return err
		}
	}
	if err := p.sweep(ctx); err != nil {
		return err
	}
	ctx = context.WithoutCancel(ctx) // the caller's deadline is for starting
	if err := p.client.Start(ctx); err != nil {
		return fmt.Errorf("start queue: %w", err)
	}
	ctx, p.cancel = context.WithCancel(ctx)
	p.running.Go(func() { p.sweepRegularly(ctx) })
	return nil
}

// Stop ends the work: it takes no more packages, lets those at work finish for
// StopTimeout or until ctx is over, and puts the rest back in the queue. What
// has been read of them is not read again.
func (p *Packager) Stop(ctx context.Context) error {
	defer p.close()
	if p.cancel == nil {
		p.running.Wait()
		return nil
	}
	p.cancel()
	err := p.client.Stop(ctx)
	if ctx.Err() != nil {
		// It takes but a moment, and the packages would be left to their leases.
		err = p.client.StopAndCancel(context.WithoutCancel(ctx))
	}
	p.running.Wait()
	if err != nil {
		return fmt.Errorf("stop queue: %w", err)
	}
	return nil
}

// JobCounts returns the number of jobs in the queue by River's states, but for
// those that are over.
func (p *Packager) JobCounts(ctx context.Context) (map[string]int, error) {
	all, err := p.driver.GetExecutor().JobCountByAllStates(ctx, &riverdriver.JobCountByAllStatesParams{})
	if err != nil {
		return nil, fmt.Errorf("count jobs: %w", err)
	}
	counts := map[string]int{}
	for _, state := range []rivertype.JobState{rivertype.JobStateAvailable, rivertype.JobStateRunning,
		rivertype.JobStateRetryable, rivertype.JobStateScheduled} {
		counts[string(state)] = all[state]
	}
	return counts, nil
}

func (p *Packager) close() {
	if p.listener != nil {
		p.listener.Close()
	}
}

// quietHandler takes River's reports of what is going well for debug messages.
type quietHandler struct{ slog.Handler }

func quieter(l slog.Level) slog.Level {
	if l == slog.LevelInfo {
		return slog.LevelDebug
	}
	return l
}

func (h quietHandler) Enabled(ctx context.Context, l slog.Level) bool {
	return h.Handler.Enabled(ctx, quieter(l))
}

func (h quietHandler) Handle(ctx context.Context, r slog.Record) error {
	r.Level = quieter(r.Level)
	return h.Handler.Handle(ctx, r)
}

func (h quietHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return quietHandler{h.Handler.WithAttrs(attrs)}
}

func (h quietHandler) WithGroup(name string) slog.Handler {
	return quietHandler{h.Handler.WithGroup(name)}
}

package packager

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/downlink-go/downlink/server/internal/catalog"
	"github.com/downlink-go/downlink/server/internal/download"
)

// flushInterval is how often what was read is stored, and with it how much work
// is done twice after the end of the process.
const flushInterval = time.Second / 2

// Warm finds out the checksums that the plan lacks, by reading if need be, fills
// them in and stores them, so that every package with these assets can be ready
// at once. It is no work of the queue: it ends with ctx, and what it had found
// out by then is not lost. It calls progress about twice a second, with the bytes
// that are done and those of all assets whose checksum was not known. Errors are
// those of a package that fails.
func (p *Packager) Warm(ctx context.Context, plan *download.Plan, progress func(done, total int64)) error {
	if err := p.fillStored(ctx, plan); err != nil {
		return err
	}
	_, total := plan.Missing()
	return p.checksum(ctx, plan, true, func(_ context.Context, missing int64) error {
		progress(total-missing, total)
		return nil
	})
}

// checksum finds out the checksums that the plan lacks, from the store if it is to
// be asked, or else by reading. What it finds is stored as it goes. It calls report
// after that, with the bytes that are still missing, and ends if report fails.
func (p *Packager) checksum(ctx context.Context, plan *download.Plan, ask bool, report func(ctx context.Context, missing int64) error) error {
	l := &ledger{db: p.DB, report: report, cursors: make(map[*asset][]byte)}
	_, missing := plan.Missing()
	l.missing.Store(missing)

	workCtx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var flusher sync.WaitGroup
	flusher.Go(func() {
		if err := regularly(workCtx, func() error { return l.flush(workCtx) }); err != nil {
			cancel(err)
		}
	})
	g, readCtx := errgroup.WithContext(workCtx)
	tasks := make(chan task, 64) // so that nobody waits for the next one
	g.Go(func() error {
		defer close(tasks)
		if ask {
			if err := p.askStore(readCtx, missingAssets(plan), func(a *asset, sum download.Checksum) {
				l.count(a, a.Size)
				l.finish(a, sum)
			}); err != nil {
				return err
			}
		}
		for _, a := range missingAssets(plan) {
			if err := p.read(readCtx, l, a, tasks); err != nil {
				return err
			}
		}
		return nil
	})
	for range p.Concurrency {
		g.Go(func() error {
			for t := range tasks {
				if err := t(readCtx); err != nil {
					return err
				}
			}
			return nil
		})
	}
	err := g.Wait()
	if errors.Is(err, errChanged) {
		err = p.explain(workCtx, plan, err) // which takes a while: the flusher still reports
	}
	if cause := context.Cause(workCtx); cause != nil {
		err = cause // which is why reading ended
	}
	cancel(nil)
	flusher.Wait()
	if err != nil {
		// Keep what has been read, also if ctx is over.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		_ = l.flush(ctx) // err says more
	} else {
		err = l.flush(ctx)
	}
	return err
}

// task is a part of the reading that one goroutine does.
type task func(ctx context.Context) error

// asset is an object to read, and the entries of the plan that it is for.
type asset struct {
	download.Object
	entries []*download.Entry
}

// fill fills in the checksum of the asset.
func (a *asset) fill(sum download.Checksum) {
	for _, e := range a.entries {
		e.Checksum = &sum
	}
}

// missingAssets returns each object without a checksum once, in the order of the
// plan.
func missingAssets(plan *download.Plan) []*asset {
	type name struct {
		key, version string
		size         int64
	}
	var assets []*asset
	byName := make(map[name]*asset)
	for _, e := range missingEntries(plan) {
		n := name{e.Object.Key, e.Object.Version, e.Object.Size}
		a, ok := byName[n]
		if !ok {
			a = &asset{Object: e.Object}
			byName[n] = a
			assets = append(assets, a)
		}
		a.entries = append(a.entries, e)
	}
	return assets
}

// ledger gathers what is found out, and stores it now and then. All its methods
// but those that flush may be called concurrently.
type ledger struct {
	db      *catalog.DB
	report  func(ctx context.Context, missing int64) error
	missing atomic.Int64

	mu       sync.Mutex
	finished []catalog.AssetChecksum
	cursors  map[*asset][]byte
}

// count notes that n more bytes of the asset have been read.
func (l *ledger) count(a *asset, n int64) { l.missing.Add(-n * int64(len(a.entries))) }

// note keeps how far the reading of the asset has come.
func (l *ledger) note(a *asset, cursor []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cursors[a] = cursor
}

// finish fills in the checksum of the asset.
func (l *ledger) finish(a *asset, sum download.Checksum) {
	l.mu.Lock()
	defer l.mu.Unlock()
	a.fill(sum)
	l.finished = append(l.finished, catalog.AssetChecksum{Object: a.Object, Checksum: sum})
	delete(l.cursors, a)
}

// regularly calls f, which stores how far work has come, until ctx is over. It
// puts up with a database that cannot be reached for half as long as the lease
// lasts.
func regularly(ctx context.Context, f func() error) error {
	tick := time.NewTicker(flushInterval)
	defer tick.Stop()
	succeeded := time.Now()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		err := f()
		if err == nil {
			succeeded = time.Now()
			continue
		}
		e, ok := errors.AsType[*download.Error](err)
		if ctx.Err() == nil && (!ok || e.Code != download.Unavailable || time.Since(succeeded) > lease/2) {
			return err
		}
	}
}

// flush stores what has been gathered, or keeps it if that fails.
func (l *ledger) flush(ctx context.Context) error {
	l.mu.Lock()
	finished, cursors := l.finished, l.cursors
	l.finished, l.cursors = nil, make(map[*asset][]byte)
	l.mu.Unlock()
	err := l.store(ctx, finished, cursors)
	if err != nil {
		l.mu.Lock()
		l.finished = append(finished, l.finished...)
		l.mu.Unlock()
		return err
	}
	return l.report(ctx, l.missing.Load())
}

func (l *ledger) store(ctx context.Context, finished []catalog.AssetChecksum, cursors map[*asset][]byte) error {
	if err := l.db.SaveChecksums(ctx, finished); err != nil {
		return err
	}
	for a, cursor := range cursors {
		if err := l.db.SaveCursor(ctx, a.Object, cursor); err != nil {
			return err
		}
	}
	return nil
}

// errChanged says that an object is not what was planned.
var errChanged = errors.New("gone or changed")

func changed(o download.Object, cause error) error {
	return fmt.Errorf("asset %s is %w: %w", o.Key, errChanged, cause)
}

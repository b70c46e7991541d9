package packager

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sync/singleflight"

	"github.com/downlink-go/downlink/server/internal/download"
)

// Wait returns the package as soon as it is not pending any more, or as it is
// after d. It fails with [download.ErrPackageNotFound].
func (p *Packager) Wait(ctx context.Context, id uuid.UUID, d time.Duration) (pkg download.Package, err error) {
	err = p.wait(ctx, id, d, func() (download.State, error) {
		pkg, err = shared(ctx, &p.reads, id, func() (download.Package, error) { return p.DB.Package(ctx, id) })
		return pkg.State, err
	})
	return pkg, err
}

// wait reads the state of what has this identifier until it is not pending any
// more, but not for longer than d.
func (p *Packager) wait(ctx context.Context, id uuid.UUID, d time.Duration, read func() (download.State, error)) error {
	deadline := time.NewTimer(d)
	defer deadline.Stop()
	last := false
	for {
		finished, leave := p.finished.join(id) // before the read, so as to miss nothing
		state, err := read()
		if err != nil || state != download.Pending || last {
			leave()
			return err
		}
		poll := time.NewTimer(p.poll/2 + rand.N(p.poll))
		select {
		case <-ctx.Done():
			err = ctx.Err()
		case <-deadline.C:
			last = true
		case <-finished:
		case <-poll.C:
		}
		poll.Stop()
		leave()
		if err != nil {
			return err
		}
	}
}

// events tells those who wait in this process that a package or an assembly is finished.
type events struct {
	mu      sync.Mutex
	waiting map[uuid.UUID]*event
}

type event struct {
	happened chan struct{}
	waiters  int
}

// join returns a channel that is closed when it is finished, and what
// must be called after waiting for it.
func (e *events) join(id uuid.UUID) (happened <-chan struct{}, leave func()) {
	e.mu.Lock()
	defer e.mu.Unlock()
	ev, ok := e.waiting[id]
	if !ok {
		if e.waiting == nil {
			e.waiting = make(map[uuid.UUID]*event)
		}
		ev = &event{happened: make(chan struct{})}
		e.waiting[id] = ev
	}
	ev.waiters++
	return ev.happened, func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		if ev.waiters--; ev.waiters == 0 && e.waiting[id] == ev {
			delete(e.waiting, id)
		}
	}
}

func (e *events) tell(id uuid.UUID) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if ev, ok := e.waiting[id]; ok {
		close(ev.happened)
		delete(e.waiting, id)
	}
}

// shared makes one call of f for all who ask for the same package at the same
// time, on behalf of the first. If that one goes away the next takes over.
func shared(ctx context.Context, g *singleflight.Group, id uuid.UUID, f func() (download.Package, error)) (download.Package, error) {
	for {
		mine := false
		v, err, _ := g.Do(string(id[:]), func() (any, error) {
			mine = true
			return f()
		})
		if ctx.Err() != nil {
			return download.Package{}, ctx.Err()
		}
		if !mine && (errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)) {
			continue
		}
		return v.(download.Package), err
	}
}

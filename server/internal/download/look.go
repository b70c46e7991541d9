package download

import (
	"context"
	"fmt"
	"runtime"
	"runtime/debug"
	"sync"
)

// looks lets calls for one job share the work of looking at it. A look answers
// the calls that came in before it began, never one that came in after: what
// that has to see may have happened in between. So one look at a job is under
// way at a time, and all calls that come in meanwhile share the next.
type looks struct {
	at func(ctx context.Context, job jobName) (sighting, error)

	mu sync.Mutex
	// jobs has those that are looked at, and the look that is next, if any.
	jobs map[jobName]*look
}

type jobName struct{ workflowID, jobID string }

// look is one look at a job.
type look struct {
	ctx     context.Context // done once nobody waits any more
	cancel  context.CancelFunc
	waiting int
	done    chan struct{} // closed when the rest is set
	found   sighting
	err     error
}

// sighting is what was seen of a job: the state of its package, of which only
// the identifier is known while the job is running.
type sighting struct {
	Package

	running bool
}

// do returns what is found in a look at the job that begins after the call of do.
// It returns early if ctx is done. A look is cancelled if nobody waits for it any
// more.
func (l *looks) do(ctx context.Context, job jobName) (sighting, error) {
	mine := l.join(ctx, job)
	select {
	case <-mine.done:
		return mine.found, mine.err
	case <-ctx.Done():
		l.leave(mine)
		return sighting{}, ctx.Err()
	}
}

// join adds the call to the next look at the job.
func (l *looks) join(ctx context.Context, job jobName) *look {
	l.mu.Lock()
	defer l.mu.Unlock()
	if next, busy := l.jobs[job]; !busy {
		if l.jobs == nil {
			l.jobs = map[jobName]*look{}
		}
		go l.work(job)
	} else if next != nil && next.waiting > 0 {
		next.waiting++
		return next
	}
	mine := &look{waiting: 1, done: make(chan struct{})}
	mine.ctx, mine.cancel = context.WithCancel(context.WithoutCancel(ctx))
	l.jobs[job] = mine
	return mine
}

// gathering is how often others get the CPU before a look begins, so that calls
// that are about to come in share it.
const gathering = 4

// work looks at the job until nobody waits.
func (l *looks) work(job jobName) {
	for {
		for range gathering {
			runtime.Gosched()
		}
		next := l.begin(job)
		if next == nil {
			return
		}
		l.run(job, next)
	}
}

// begin returns the next look at a job, or nil if there is none to be.
func (l *looks) begin(job jobName) *look {
	l.mu.Lock()
	defer l.mu.Unlock()
	next := l.jobs[job]
	if next == nil || next.waiting == 0 {
		delete(l.jobs, job)
		return nil
	}
	l.jobs[job] = nil
	return next
}

func (l *looks) leave(mine *look) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if mine.waiting--; mine.waiting == 0 {
		mine.cancel()
	}
}

// run looks at the job. A panic of a catalog is an error of the calls, which would
// have recovered from it themselves.
func (l *looks) run(job jobName, now *look) {
	defer close(now.done)
	defer now.cancel()
	defer func() {
		if p := recover(); p != nil {
			now.err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
		}
	}()
	now.found, now.err = l.at(now.ctx, job)
}

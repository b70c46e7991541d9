package client

import (
	"context"
	"sync"
	"sync/atomic"
	"time"
)

// inParallel calls f for 0 to n-1, in this order, from as many goroutines as
// there are workers. The first error ends it, and the context of the others. All
// calls have ended when it returns.
func inParallel(ctx context.Context, workers, n int, f func(ctx context.Context, i int) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var next atomic.Int64
	var wg sync.WaitGroup
	for range min(workers, n) {
		wg.Go(func() {
			for ctx.Err() == nil {
				i := int(next.Add(1)) - 1
				if i >= n {
					return
				}
				if err := f(ctx, i); err != nil {
					cancel(err)
				}
			}
		})
	}
	wg.Wait()
	return context.Cause(ctx)
}

// buffers are for copies of files, which are fast in large steps alone.
var buffers = sync.Pool{New: func() any {
	b := make([]byte, 1<<20)
	return &b
}}

// meter adds up bytes and tells of them a few times a second.
type meter struct {
	tell func(Progress)

	mu   sync.Mutex
	now  Progress
	told time.Time
}

func (m *meter) add(n int64) {
	if m.tell == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.now.Done += n
	if time.Since(m.told) >= 200*time.Millisecond || m.now.Done == m.now.Total {
		m.told = time.Now()
		m.tell(m.now)
	}
}

// Write counts what is written.
func (m *meter) Write(p []byte) (int, error) {
	m.add(int64(len(p)))
	return len(p), nil
}

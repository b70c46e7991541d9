package transfer

import (
	"context"
	"sync"
)

// Hosts bounds how many connections there are to each host at a time. It is safe
// for concurrent use.
type Hosts struct {
	limit int

	mu    sync.Mutex
	slots map[string]chan struct{}
}

// NewHosts returns one that allows as many connections to each host.
func NewHosts(limit int) *Hosts {
	return &Hosts{limit: limit, slots: map[string]chan struct{}{}}
}

// Acquire waits until there may be one more connection to the host. It must be
// released.
func (h *Hosts) Acquire(ctx context.Context, host string) (release func(), err error) {
	if h == nil {
		return func() {}, nil
	}
	h.mu.Lock()
	slots, ok := h.slots[host]
	if !ok {
		slots = make(chan struct{}, h.limit)
		h.slots[host] = slots
	}
	h.mu.Unlock()
	select {
	case slots <- struct{}{}:
		return func() { <-slots }, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

package transfer

import (
	"context"
	"errors"
	"io"
	"time"
)

// errStalled is why a connection that sends nothing is closed.
var errStalled = errors.New("the connection stalled")

// stallGuard ends the context of a request while which nothing comes for too
// long. Time that passes between reads does not count: then it is the reader who
// has no room.
type stallGuard struct {
	ctx    context.Context // of the one request
	cancel context.CancelCauseFunc
	limit  time.Duration
	timer  *time.Timer
}

// newStallGuard returns the context for the request. The time runs until the
// first call of pause.
func newStallGuard(ctx context.Context, limit time.Duration) (context.Context, *stallGuard) {
	ctx, cancel := context.WithCancelCause(ctx)
	return ctx, &stallGuard{
		ctx: ctx, cancel: cancel, limit: limit,
		timer: time.AfterFunc(limit, func() { cancel(errStalled) }),
	}
}

func (g *stallGuard) pause()  { g.timer.Stop() }
func (g *stallGuard) resume() { g.timer.Reset(g.limit) }

// end releases the request. Its body must not be read any more.
func (g *stallGuard) end() {
	g.timer.Stop()
	g.cancel(nil)
}

// cause returns errStalled for the errors that come of it.
func (g *stallGuard) cause(err error) error {
	if errors.Is(context.Cause(g.ctx), errStalled) {
		return errStalled
	}
	return err
}

// reader guards each read of the body.
func (g *stallGuard) reader(body io.Reader) io.Reader { return guardedReader{g, body} }

type guardedReader struct {
	guard *stallGuard
	body  io.Reader
}

func (r guardedReader) Read(p []byte) (int, error) {
	r.guard.resume()
	n, err := r.body.Read(p)
	r.guard.pause()
	return n, err
}

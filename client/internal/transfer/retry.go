package transfer

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"time"
)

// How much is tried again, beside the budget of time.
const (
	// maxFaults is how many responses in a row may break the rules or refuse the
	// request, and how often a server may fail that has never answered.
	maxFaults = 5
	// maxDoublings bounds the pauses to 64 times the first.
	maxDoublings = 6
	// maxRetryAfter is the longest that a server can ask to wait for.
	maxRetryAfter = time.Minute
	// enough is how many bytes have to come for the count to begin again.
	enough = 64 << 10
)

// finalError is one that is not tried again and that the server of the file is
// not to blame for.
type finalError struct{ error }

func (e finalError) Unwrap() error { return e.error }

// retrier decides whether and when what failed is done again.
type retrier struct {
	remote *Remote
	// generation is that of the location that was used last, refused the one that
	// no longer works.
	generation, refused int
	// yield is asked when the server has too much to do. If it says so the caller
	// ends with errYield.
	yield func() bool

	since    time.Time // of the first failure in a row
	failures int
	faults   int
	bytes    int64 // since the last failure
}

// errYield ends a connection that the server has no room for.
var errYield = errors.New("fewer connections")

// progress says that bytes have come.
func (r *retrier) progress(n int) {
	if r.bytes += int64(n); r.bytes >= enough {
		r.failures, r.faults = 0, 0
	}
}

// pause waits until what failed can be done again, or returns the error that it
// ends with.
func (r *retrier) pause(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if r.failures == 0 {
		r.since = time.Now()
	}
	r.failures++
	r.bytes = 0
	wait := r.remote.cfg.Pause << min(r.failures-1, maxDoublings)
	wait = wait/2 + rand.N(wait/2+1)
	status, isStatus := errors.AsType[*StatusError](err)
	_, isFault := errors.AsType[fault](err)
	_, isFinal := errors.AsType[finalError](err)
	_, isUntrusted := errors.AsType[*tls.CertificateVerificationError](err)
	switch {
	case errors.Is(err, ErrChanged), isFinal:
		return err
	case isUntrusted, isStatus && !status.temporary() && (!status.refused() || r.remote.cfg.Renew == nil):
		return r.giveUp(err)
	case isStatus && status.refused():
		r.faults++
		if r.refused != r.generation && r.faults == 1 {
			wait = 0 // a new location, then at once
		}
		r.refused = r.generation
	case isStatus:
		if status.throttled() && r.yield != nil && r.yield() {
			return errYield
		}
		wait = max(wait, min(status.retryAfter, maxRetryAfter))
	case isFault, r.remote.version == Version{}:
		r.faults++
	}
	if r.faults >= maxFaults || time.Since(r.since)+wait > r.remote.cfg.Budget {
		return r.giveUp(err)
	}
	r.remote.cfg.Log.WarnContext(ctx, "a request for the package will be repeated",
		slog.Any("error", err), slog.Duration("pause", wait))
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (r *retrier) giveUp(err error) error {
	if r.failures > 1 {
		return fmt.Errorf("%w, tried %d times: %w", ErrFailed, r.failures, err)
	}
	return fmt.Errorf("%w: %w", ErrFailed, err)
}

package packager

import (
	"context"
	"crypto/sha256"
	"time"
)

// SetBackoff sets how long the first retry waits. It must come before Start.
func (p *Packager) SetBackoff(d time.Duration) { p.backoff = d }

// SetPoll sets how often Wait looks into the database.
func (p *Packager) SetPoll(d time.Duration) { p.poll = d }

// Sweep does what happens regularly.
func (p *Packager) Sweep(ctx context.Context) error { return p.sweep(ctx) }

// Cursor returns a stored cursor.
func Cursor(offset int64, sha bool) []byte {
	c := newCursor(sha)
	c.offset = offset
	return c.encode()
}

// Resume returns where reading goes on with the stored cursor.
func Resume(data []byte, size int64, sha bool) int64 { return newCursor(sha).resume(data, size).offset }

func newCursor(sha bool) cursor {
	if sha {
		return cursor{sha256: sha256.New()}
	}
	return cursor{}
}

package packager

import (
	"context"
	"time"
)

// SetBackoff sets how long the first retry waits. It must come before Start.
func (p *Packager) SetBackoff(d time.Duration) { p.backoff = d }

// SetPoll sets how often Wait looks into the database.
func (p *Packager) SetPoll(d time.Duration) { p.poll = d }

// Sweep does what happens regularly.
func (p *Packager) Sweep(ctx context.Context) error { return p.sweep(ctx) }

var CombineCRC32 = combineCRC32

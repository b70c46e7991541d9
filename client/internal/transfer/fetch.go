package transfer

import (
	"cmp"
	"context"
	"errors"
	"io"
	"slices"
	"sync"
	"time"
)

// Progress is how far [Remote.Fetch] is.
type Progress struct {
	// Done is how many bytes of Total are there; Total is -1 if it is unknown.
	Done, Total int64
	// Connections has how many bytes each connection has fetched.
	Connections []int64
}

// FetchOptions are those of [Remote.Fetch].
type FetchOptions struct {
	// Connections is how many ranges are fetched at a time, at most. There are
	// fewer if there is little to fetch, if the server says that it has too much to
	// do, and one without ranges. Defaults to 4.
	Connections int
	// Observe is told of the progress a few times a second, by one goroutine at a
	// time. Defaults to nobody.
	Observe func(Progress)
}

// How Fetch works.
const (
	bufferSize = 256 << 10 // of each connection
	// minPart is the least that a connection of its own is worth, unless the one
	// it would be taken from is slow.
	minPart     = 1 << 20
	minSlowPart = 64 << 10
	slow        = time.Second

	observeEvery    = 200 * time.Millisecond
	checkpointEvery = time.Second
	// checkpointShare bounds the time that goes into checkpoints.
	checkpointShare = 10
)

// Fetch fetches what is missing of the partial, which must be of the version that
// the remote is. It returns when all is there, or at the first error, with a
// journal of what is. The errors are those of [Remote.ReadRange] and of writing.
func (r *Remote) Fetch(ctx context.Context, p *Partial, o FetchOptions) error {
	f := &fetch{remote: r, partial: p}
	connections := cmp.Or(o.Connections, 4)
	if r.ranges {
		if err := p.writeTail(r.tail); err != nil {
			return err
		}
		f.waiting = p.missing()
	} else {
		if err := p.Reset(); err != nil {
			return err
		}
		f.waiting = []Range{r.whole()}
		connections = 1
	}
	f.split(connections)
	f.workers = min(connections, len(f.waiting))
	f.connections = make([]int64, f.workers)

	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var helpers, workers sync.WaitGroup
	stop := make(chan struct{})
	if o.Observe != nil {
		helpers.Go(func() { f.observe(stop, o.Observe) })
	}
	helpers.Go(func() {
		if err := f.keepJournal(stop); err != nil {
			cancel(err)
		}
	})
	for connection := range f.workers {
		workers.Go(func() {
			if err := f.work(ctx, connection); err != nil {
				cancel(err)
			}
		})
	}
	workers.Wait()
	close(stop)
	helpers.Wait()
	err := context.Cause(ctx)
	if err == nil {
		return nil
	}
	if failed := p.checkpoint(); failed != nil {
		return errors.Join(err, failed)
	}
	return err
}

// fetch is one call of Fetch: ranges that nobody has begun, and those that a
// connection is at. A connection that has no range of its own any more takes half
// of another's, so that all end at about the same time.
type fetch struct {
	remote  *Remote
	partial *Partial

	mu          sync.Mutex
	waiting     []Range
	active      []*segment
	connections []int64 // bytes of each
	workers     int     // that have not ended
}

// segment is a range that a connection is at.
type segment struct {
	Range   // what is left of it
	since   time.Time
	fetched int64
}

// splittable reports whether the segment is worth another connection.
func (s *segment) splittable() bool {
	if s.Len() >= 2*minPart {
		return true
	}
	// Slow means that what is left takes long at the rate so far.
	return s.Len() >= 2*minSlowPart &&
		time.Since(s.since).Seconds()*float64(s.Len()) > slow.Seconds()*float64(s.fetched)
}

// split divides what is waiting until there is a range for each connection.
func (f *fetch) split(n int) {
	for len(f.waiting) > 0 && len(f.waiting) < n {
		i := largest(f.waiting, Range.Len)
		r := f.waiting[i]
		if r.Len() < 2*minPart {
			return
		}
		mid := r.Start + r.Len()/2
		f.waiting[i].End = mid
		f.waiting = slices.Insert(f.waiting, i+1, Range{mid, r.End})
	}
}

// next returns a range to fetch. If there is none it returns nil and counts the
// connection out.
func (f *fetch) next() *segment {
	f.mu.Lock()
	defer f.mu.Unlock()
	r, ok := f.take()
	if !ok {
		f.workers--
		return nil
	}
	s := &segment{Range: r, since: time.Now()}
	f.active = append(f.active, s)
	return s
}

// take takes what is waiting, or half of what another connection is at.
func (f *fetch) take() (Range, bool) {
	if len(f.waiting) > 0 {
		r := f.waiting[0]
		f.waiting = f.waiting[1:]
		return r, true
	}
	if len(f.active) == 0 {
		return Range{}, false
	}
	victim := f.active[largest(f.active, (*segment).Len)]
	if !victim.splittable() {
		return Range{}, false
	}
	r := Range{victim.Start + victim.Len()/2, victim.End}
	victim.End = r.Start
	return r, true
}

// largest returns the index of the element with the most of something.
func largest[E any](s []E, size func(E) int64) int {
	best := 0
	for i := range s {
		if size(s[i]) > size(s[best]) {
			best = i
		}
	}
	return best
}

// work fetches ranges until there are none.
func (f *fetch) work(ctx context.Context, connection int) error {
	host, err := f.remote.host(ctx)
	if err != nil {
		return err
	}
	release, err := f.remote.cfg.Hosts.Acquire(ctx, host)
	if err != nil {
		return err
	}
	defer release()
	buf := make([]byte, bufferSize)
	for s := f.next(); s != nil; s = f.next() {
		if err := f.fetchSegment(ctx, s, connection, buf); errors.Is(err, errYield) {
			return nil
		} else if err != nil {
			return err
		}
	}
	return nil
}

// fetchSegment fetches what is left of the segment, which others may shorten
// meanwhile.
func (f *fetch) fetchSegment(ctx context.Context, s *segment, connection int, buf []byte) error {
	f.mu.Lock()
	at := s.Range
	f.mu.Unlock()
	body := f.remote.reader(ctx, at)
	body.retry.yield = func() bool { return f.yield(s) }
	defer body.Close()
	for at.Len() > 0 {
		n, err := body.Read(buf[:min(at.Len(), bufferSize)])
		if errors.Is(err, io.EOF) && f.remote.version.Size < 0 {
			if err := f.partial.setSize(at.Start); err != nil {
				return err
			}
			break
		}
		if err != nil {
			return noEOF(err)
		}
		if err := f.partial.writeAt(buf[:n], at.Start); err != nil {
			return err
		}
		f.mu.Lock()
		s.Start += int64(n)
		s.fetched += int64(n)
		f.connections[connection] += int64(n)
		at = s.Range
		f.mu.Unlock()
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.end(s)
	return nil
}

func (f *fetch) end(s *segment) {
	f.active = slices.DeleteFunc(f.active, func(a *segment) bool { return a == s })
}

// yield reports whether the connection that is at the segment can end because
// others go on. Then they have the rest of it, and the connection is counted out.
func (f *fetch) yield(s *segment) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.workers == 1 {
		return false
	}
	f.workers--
	f.end(s)
	f.waiting = append(f.waiting, s.Range)
	return true
}

// observe tells of the progress until it is stopped, and once more then.
func (f *fetch) observe(stop <-chan struct{}, tell func(Progress)) {
	ticker := time.NewTicker(observeEvery)
	defer ticker.Stop()
	for stopped := false; !stopped; {
		select {
		case <-ticker.C:
		case <-stop:
			stopped = true
		}
		done := f.partial.Done()
		f.mu.Lock()
		now := Progress{Done: done, Total: f.remote.version.Size, Connections: slices.Clone(f.connections)}
		f.mu.Unlock()
		tell(now)
	}
}

// keepJournal writes checkpoints until it is stopped, at a rate that leaves the
// disk to the content.
func (f *fetch) keepJournal(stop <-chan struct{}) error {
	if !f.remote.ranges {
		return nil // nothing can be resumed
	}
	pause := checkpointEvery
	for {
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-stop:
			timer.Stop()
			return nil
		}
		began := time.Now()
		if err := f.partial.checkpoint(); err != nil {
			return err
		}
		pause = max(checkpointEvery, checkpointShare*time.Since(began))
	}
}

package server

import (
	"bytes"
	"context"
	"io"
	"iter"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/semaphore"

	"github.com/downlink-go/downlink/server/internal/vzip"
)

// What one download has in flight beside the asset that it sends.
const (
	// aheadSize is up to where an asset is read ahead as a whole. Larger ones are
	// opened ahead, and their first bytes wait in the socket.
	aheadSize = 1 << 20
	// aheadBytes is the memory for assets that are read ahead.
	aheadBytes = 8 << 20
	// aheadOpens is how many assets are opened or read at once, and aheadStreams
	// how many of them are larger than aheadSize.
	aheadOpens   = 32
	aheadStreams = 2
)

// aheadTotal is the memory that all downloads may take to read ahead. Where it
// is used up, they open one asset after the other.
const aheadTotal = 256 << 20

// readAhead is a package's source in front of a store where it takes a while to
// open an object: while one is sent, the next are opened and read.
type readAhead struct {
	vzip.Source
	memory *semaphore.Weighted // of all downloads
	held   *aheadHeld          // by all downloads; may be nil
}

// aheadHeld is what is held by reading ahead: bytes in memory, and assets that are
// opened or read and whose turn has not come.
type aheadHeld struct{ bytes, assets atomic.Int64 }

func (h *aheadHeld) add(bytes, assets int64) {
	if h != nil {
		h.bytes.Add(bytes)
		h.assets.Add(assets)
	}
}

var _ vzip.Announced = (*readAhead)(nil)

// Announce implements vzip.Announced.
func (r *readAhead) Announce(ctx context.Context, ranges iter.Seq[vzip.Range]) vzip.SourceCloser {
	a := &ahead{source: r.Source, memory: r.memory, held: r.held}
	a.ctx, a.cancel = context.WithCancel(ctx)
	a.next, a.stop = iter.Pull(ranges)
	a.coming, a.more = a.next()
	return a
}

// ahead is the source for one range of a package. It is used by one goroutine.
type ahead struct {
	ctx    context.Context // of the one request that it is for
	cancel context.CancelFunc
	source vzip.Source
	memory *semaphore.Weighted
	held   *aheadHeld

	next   func() (vzip.Range, bool)
	stop   func()
	coming vzip.Range // the first that is not in the queue, if there is more
	more   bool

	queue   []*opening // in the order in which they will be asked for
	bytes   int64      // held by the queue and by the reader that was handed out
	streams int        // in the queue
	running sync.WaitGroup
}

// opening is a range that is being opened.
type opening struct {
	vzip.Range
	done chan struct{} // closed when the rest is set
	data []byte        // the range as a whole, or
	body io.ReadCloser // the open range, or
	err  error
}

// small reports whether the range is read as a whole.
func (o *opening) small() bool { return o.N <= aheadSize }

// Open implements vzip.Source.
func (a *ahead) Open(ctx context.Context, i int, off, n int64) (io.ReadCloser, error) {
	a.fill()
	if len(a.queue) == 0 || a.queue[0].Range != (vzip.Range{Entry: i, Off: off, N: n}) {
		// There is no memory to read ahead.
		if a.more && a.coming == (vzip.Range{Entry: i, Off: off, N: n}) {
			a.coming, a.more = a.next()
		}
		return a.source.Open(ctx, i, off, n)
	}
	o := a.queue[0]
	a.queue = a.queue[1:]
	a.held.add(0, -1)
	if !o.small() {
		a.streams--
		a.fill()
	}
	<-o.done
	switch {
	case o.err != nil:
		a.release(o)
		return nil, o.err
	case o.small():
		return &readerOf{Reader: bytes.NewReader(o.data), close: func() { a.release(o) }}, nil
	}
	return o.body, nil
}

// readerOf is a range that was read.
type readerOf struct {
	*bytes.Reader
	close func()
}

func (r *readerOf) Close() error {
	r.close()
	return nil
}

// fill opens as much of what is coming as there is room for.
func (a *ahead) fill() {
	for a.more && len(a.queue) < aheadOpens {
		o := &opening{Range: a.coming, done: make(chan struct{})}
		switch {
		case !o.small() && a.streams == aheadStreams,
			o.small() && (a.bytes+o.N > aheadBytes || !a.memory.TryAcquire(o.N)):
			return
		case o.small():
			a.bytes += o.N
			a.held.add(o.N, 0)
		default:
			a.streams++
		}
		a.queue = append(a.queue, o)
		a.held.add(0, 1)
		a.coming, a.more = a.next()
		a.running.Go(func() {
			defer close(o.done)
			if o.body, o.err = a.source.Open(a.ctx, o.Entry, o.Off, o.N); o.err == nil && o.small() {
				o.data, o.err = readWhole(o.body, o.N)
			}
		})
	}
}

// readWhole reads and closes a range.
func readWhole(r io.ReadCloser, n int64) ([]byte, error) {
	data := make([]byte, n)
	_, err := io.ReadFull(r, data)
	if closeErr := r.Close(); err == nil {
		err = closeErr
	}
	return data, err
}

// release gives back the memory of a range.
func (a *ahead) release(o *opening) {
	if o.small() {
		o.data = nil
		a.bytes -= o.N
		a.memory.Release(o.N)
		a.held.add(-o.N, 0)
	}
}

// Close ends what is under way, and returns when it has ended.
func (a *ahead) Close() error {
	a.cancel()
	a.stop()
	a.running.Wait()
	for _, o := range a.queue {
		if !o.small() && o.err == nil {
			_ = o.body.Close() // nothing was read
		}
		a.release(o)
	}
	a.held.add(0, -int64(len(a.queue)))
	a.queue = nil
	return nil
}

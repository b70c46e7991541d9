package packager

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/downlink-go/downlink/server/internal/download"
	"github.com/downlink-go/downlink/server/internal/vzip"
)

const (
	// smallSize is up to where an asset is read at once and hashed by one
	// goroutine. SHA-256 cannot be split, so that larger ones are read ahead
	// with the CRC-32 on one core, while the SHA-256 is on another.
	smallSize = 1 << 20
	// pieceSize is what is read and hashed at a time: it stays in a core's cache.
	pieceSize = 128 << 10
	// readAhead is how many buffers of smallSize one asset takes.
	readAhead = 4
	// partSize is what is read by one goroutine without SHA-256: CRC-32s can be
	// combined.
	partSize = 64 << 20
	// cursorSize is after how many bytes it is noted how far reading has come.
	cursorSize = 64 << 20
	// stallTimeout ends the reading of an asset that gives no bytes.
	stallTimeout = time.Minute
)

var buffers = sync.Pool{New: func() any { return new([smallSize]byte) }}

// read hands out the reading of the asset.
func (p *Packager) read(ctx context.Context, l *ledger, a *asset, tasks chan<- task) error {
	if a.Size <= smallSize {
		return give(ctx, tasks, func(ctx context.Context) error { return p.readSmall(ctx, l, a) })
	}
	start := cursor{sha256: sha256.New()}
	if p.SkipSHA256 {
		start.sha256 = nil
	}
	if a.Size >= cursorSize {
		saved, err := p.DB.Cursor(ctx, a.Object)
		if err != nil {
			return err
		}
		start = start.resume(saved, a.Size)
	}
	l.count(a, start.offset)
	if p.SkipSHA256 {
		return p.readParts(ctx, l, a, start, tasks)
	}
	return give(ctx, tasks, func(ctx context.Context) error { return p.readAhead(ctx, l, a, start) })
}

func give(ctx context.Context, tasks chan<- task, t task) error {
	select {
	case tasks <- t:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (p *Packager) readSmall(ctx context.Context, l *ledger, a *asset) error {
	var crc uint32
	sha := sha256.New()
	if a.Size > 0 {
		r, err := p.open(ctx, a, 0, a.Size)
		if err != nil {
			return err
		}
		defer r.Close()
		buf := buffers.Get().(*[smallSize]byte)
		defer buffers.Put(buf)
		for piece := range slices.Chunk(buf[:a.Size], pieceSize) {
			if err := r.fill(piece); err != nil {
				return err
			}
			crc = crc32.Update(crc, crc32.IEEETable, piece)
			if !p.SkipSHA256 {
				sha.Write(piece)
			}
		}
	}
	sum := download.Checksum{CRC32: crc}
	if !p.SkipSHA256 {
		sum.SHA256 = sha.Sum(nil)
	}
	l.count(a, a.Size)
	l.finish(a, sum)
	return nil
}

// readAhead reads the rest of an asset in order. A goroutine of its own reads
// and takes the CRC-32.
func (p *Packager) readAhead(ctx context.Context, l *ledger, a *asset, at cursor) error {
	type chunk struct {
		buf   *[smallSize]byte
		n     int
		crc32 uint32 // of all before it and itself
	}
	free, full := make(chan *[smallSize]byte, readAhead), make(chan chunk, readAhead)
	for range readAhead {
		free <- buffers.Get().(*[smallSize]byte)
	}
	g, ctx := errgroup.WithContext(ctx)
	offset, crc := at.offset, at.crc32
	g.Go(func() error {
		defer close(full)
		r, err := p.open(ctx, a, offset, a.Size-offset)
		if err != nil {
			return err
		}
		defer r.Close()
		for offset < a.Size {
			c := chunk{buf: <-free, n: int(min(smallSize, a.Size-offset))}
			for piece := range slices.Chunk(c.buf[:c.n], pieceSize) {
				if err := r.fill(piece); err != nil {
					buffers.Put(c.buf)
					return err
				}
				crc = crc32.Update(crc, crc32.IEEETable, piece)
			}
			offset += int64(c.n)
			c.crc32 = crc
			full <- c
		}
		return nil
	})
	noted := at.offset
	for c := range full {
		at.sha256.Write(c.buf[:c.n])
		at.offset += int64(c.n)
		at.crc32 = c.crc32
		free <- c.buf
		l.count(a, int64(c.n))
		if at.offset-noted >= cursorSize {
			l.note(a, at.encode())
			noted = at.offset
		}
	}
	err := g.Wait()
	for range len(free) {
		buffers.Put(<-free)
	}
	if err != nil {
		return err
	}
	l.finish(a, download.Checksum{CRC32: at.crc32, SHA256: at.sha256.Sum(nil)})
	return nil
}

// readParts hands out the reading of the rest of an asset, part by part.
func (p *Packager) readParts(ctx context.Context, l *ledger, a *asset, at cursor, tasks chan<- task) error {
	var mu sync.Mutex
	done := make(map[int64]uint32) // CRC-32s of parts after at, by offset
	complete := func(offset int64, crc uint32) {
		mu.Lock()
		defer mu.Unlock()
		done[offset] = crc
		for crc, ok := done[at.offset]; ok; crc, ok = done[at.offset] {
			delete(done, at.offset)
			n := min(partSize, a.Size-at.offset)
			at.crc32 = vzip.CombineCRC32(at.crc32, crc, n)
			at.offset += n
		}
		if at.offset == a.Size {
			l.finish(a, download.Checksum{CRC32: at.crc32})
		} else {
			l.note(a, at.encode())
		}
	}
	for offset := at.offset; offset < a.Size; offset += partSize {
		if err := give(ctx, tasks, func(ctx context.Context) error {
			crc, err := p.readPart(ctx, l, a, offset, min(partSize, a.Size-offset))
			if err != nil {
				return err
			}
			complete(offset, crc)
			return nil
		}); err != nil {
			return err
		}
	}
	return nil
}

func (p *Packager) readPart(ctx context.Context, l *ledger, a *asset, offset, n int64) (uint32, error) {
	r, err := p.open(ctx, a, offset, n)
	if err != nil {
		return 0, err
	}
	defer r.Close()
	buf := buffers.Get().(*[smallSize]byte)
	defer buffers.Put(buf)
	var crc uint32
	for n > 0 {
		data := buf[:min(smallSize, n)]
		if err := r.fill(data); err != nil {
			return 0, err
		}
		crc = crc32.Update(crc, crc32.IEEETable, data)
		n -= int64(len(data))
		l.count(a, int64(len(data)))
	}
	return crc, nil
}

// stream is a range of an asset. Reading fails if the store gives no bytes for
// stallTimeout.
type stream struct {
	io.ReadCloser
	asset  *asset
	ctx    context.Context // of this one stream
	cancel context.CancelCauseFunc
	stall  *time.Timer
}

var errStalled = fmt.Errorf("no bytes for %v", stallTimeout)

func (p *Packager) open(ctx context.Context, a *asset, offset, n int64) (*stream, error) {
	s := &stream{asset: a}
	s.ctx, s.cancel = context.WithCancelCause(ctx)
	s.stall = time.AfterFunc(stallTimeout, func() { s.cancel(errStalled) })
	r, err := p.Objects.Open(s.ctx, a.Object, offset, n)
	if err != nil {
		err = s.fault(err)
		s.stall.Stop()
		s.cancel(nil)
		return nil, err
	}
	s.ReadCloser = r
	return s, nil
}

func (s *stream) Close() error {
	s.stall.Stop()
	defer s.cancel(nil)
	return s.ReadCloser.Close()
}

// fill reads as many bytes as buf takes.
func (s *stream) fill(buf []byte) error {
	for n := 0; n < len(buf); {
		m, err := s.Read(buf[n:])
		n += m
		if err != nil && n < len(buf) {
			return s.fault(err)
		}
		s.stall.Reset(stallTimeout)
	}
	return nil
}

func (s *stream) fault(err error) error {
	switch {
	case s.ctx.Err() != nil:
		err = context.Cause(s.ctx)
	case errors.Is(err, download.ErrObjectNotFound), errors.Is(err, download.ErrObjectChanged):
		return changed(s.asset.Object, err)
	case err == io.EOF: //nolint:errorlint // the store's own end, not that of something inside
		return changed(s.asset.Object, errors.New("it is shorter than planned"))
	}
	return fmt.Errorf("read %s: %w", s.asset.Key, err)
}

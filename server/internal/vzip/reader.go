package vzip

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"sync"
	"time"
)

const (
	// smallBuffer and largeBuffer are the sizes of the buffers in which CopyN
	// gathers small pieces. A large one saves a client that is fast enough waits
	// and wakes; for all others it would be a waste of memory.
	smallBuffer = 256 << 10
	largeBuffer = 1 << 20
	// fastClient is how fast a client has to be for large writes, in bytes a
	// second, and trial how much it has to take for that to be known: more than
	// sockets hold.
	fastClient = 250e6
	trial      = 16 << 20
	// smallContent is the length below which content is read into the buffer.
	// From there on a write of its own costs less than the copy, and a file can
	// be sent by the kernel.
	smallContent = 64 << 10
	// room is what must be free in the buffer before a piece is added to it.
	room = max(smallContent, maxCentralHeaderLen)
)

var (
	smallBuffers = sync.Pool{New: func() any { return new([smallBuffer]byte) }}
	largeBuffers = sync.Pool{New: func() any { return new([largeBuffer]byte) }}
)

// Source has the content of the entries that do not hold it themselves.
type Source interface {
	// Open returns a reader of exactly the bytes [off, off+n) of the content of
	// entry i, the index in what New was given. n is positive and the range is
	// within the entry's size. Fewer bytes are an error for the Reader; more are
	// not read. The Reader closes what it gets. If it is an [*os.File], or
	// anything else with a SyscallConn method, the kernel may copy it.
	//
	// Content that is not what the layout was made of has to be an error of Open,
	// because while nothing is written the failure can still be reported. If it
	// changes later, that is an error of Read, or of Close at the latest.
	Open(ctx context.Context, i int, off, n int64) (io.ReadCloser, error)
}

// Range is n bytes from off on of the content of an entry, the way [Source.Open]
// is asked for it.
type Range struct {
	Entry  int
	Off, N int64
}

// SourceCloser is a [Source] that is closed after use.
type SourceCloser interface {
	Source
	io.Closer
}

// Announced is a [Source] that gains from knowing what it will be asked for.
// [Reader.CopyN] announces the ranges that it is about to open.
type Announced interface {
	Source
	// Announce returns the source for one CopyN, which opens these ranges from
	// it, each once and in this order, unless it ends early. Then it closes it.
	Announce(ctx context.Context, ranges iter.Seq[Range]) SourceCloser
}

// SourceError is a failure to get content from a [Source], as opposed to one to
// write it. If the content ends early it wraps [io.ErrUnexpectedEOF].
type SourceError struct {
	Name string // of the entry
	Err  error
}

func (e *SourceError) Error() string { return fmt.Sprintf("read %q: %v", abbreviate(e.Name), e.Err) }

func (e *SourceError) Unwrap() error { return e.Err }

// Reader reads an archive, at any offset. It belongs to one request, whose
// context it keeps, and to one goroutine at a time. It must be closed.
//
// [Reader.CopyN] is the way to send a range. [Reader.Read] is for callers that
// know no more than [io.ReadSeeker]; it opens entries up to their end, because
// the end of the range is not known to it.
//
// When the context is done, both return ctx.Err(). Failures of the source are
// [*SourceError]. After [Reader.Close] everything fails with [fs.ErrClosed].
type Reader struct {
	ctx    context.Context // of the one request that the Reader is for
	layout *Layout
	source Source
	offset int64
	closed bool

	// content is the entry that Read is in the middle of, open at offset; or nil.
	content io.ReadCloser
	scratch []byte // for Read to make headers in
}

var (
	_ io.ReadSeekCloser = (*Reader)(nil)
	_ error             = (*SourceError)(nil)
)

// NewReader returns a reader of the archive that starts at offset 0 and takes
// content from src. Nothing is opened before it is read.
func (l *Layout) NewReader(ctx context.Context, src Source) *Reader {
	return &Reader{ctx: ctx, layout: l, source: src}
}

// CopyN writes the next n bytes to w and moves the offset on by as many as were
// written, which it returns. It returns [io.EOF] if the archive ended before n
// bytes, and another error if fewer were written for another reason.
//
// Each range of content is opened once, for exactly the bytes needed. Headers
// and content of less than 64 KiB go out in large writes. Larger content is
// copied by [io.CopyN] from the very reader that the source returned, so that a
// w with a ReadFrom method can send a file by sendfile(2).
//
// Nothing is written until the first large content is open or the buffer, of
// 256 KiB at first and 1 MiB for a client that takes 250 MB a second, is nearly
// full of what was read. So if the content at the start of
// the range cannot be had, the count is 0 and w is untouched.
//
// An error that is neither the context's nor a [*SourceError] is from w. Where
// w.ReadFrom did the reading the two are told apart by reading on: a reader that
// failed is taken to fail again.
func (r *Reader) CopyN(w io.Writer, n int64) (int64, error) {
	if r.closed {
		return 0, fs.ErrClosed
	}
	r.release()
	b := batch{w: w}
	defer b.release()
	source := r.source
	if announced, ok := source.(Announced); ok {
		s := announced.Announce(r.ctx, r.layout.ranges(r.offset, n))
		defer s.Close()
		source = s
	}
	err := r.copyTo(&b, source, n)
	if ctxErr := r.ctx.Err(); err != nil && ctxErr != nil {
		err = ctxErr
	}
	r.offset += b.written
	if err == nil && b.written < n {
		err = io.EOF
	}
	return b.written, err
}

func (r *Reader) copyTo(b *batch, source Source, n int64) error {
	for s := range r.layout.segments(r.offset, n) {
		if err := r.ctx.Err(); err != nil {
			return err
		}
		var err error
		switch {
		case s.kind == heldContent:
			err = b.add(r.layout.held(s))
		case s.kind != sourceContent:
			b.take()
			b.buf = r.layout.appendHeader(b.buf, s)
			err = b.makeRoom()
		case s.n < smallContent:
			err = r.copySmall(b, source, s)
		default:
			err = r.copyLarge(b, source, s)
		}
		if err != nil {
			return err
		}
	}
	return b.flush()
}

// copySmall reads content into the buffer, for which there is room.
func (r *Reader) copySmall(b *batch, source Source, s segment) error {
	rc, err := source.Open(r.ctx, s.entry, s.off, s.n)
	if err != nil {
		return r.sourceError(s, err)
	}
	b.take()
	n := len(b.buf)
	_, err = io.ReadFull(rc, b.buf[n:n+int(s.n)])
	if closeErr := rc.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return r.sourceError(s, err)
	}
	b.buf = b.buf[:n+int(s.n)]
	return b.makeRoom()
}

// copyLarge opens content before it writes out the buffer, and then copies it.
func (r *Reader) copyLarge(b *batch, source Source, s segment) error {
	rc, err := source.Open(r.ctx, s.entry, s.off, s.n)
	if err != nil {
		return r.sourceError(s, err)
	}
	if err := b.flush(); err != nil {
		_ = rc.Close() // nothing was read
		return err
	}
	b.release()
	n, err := io.CopyN(b.w, rc, s.n)
	b.written += n
	ofSource := atEnd(err) || err != nil && r.ctx.Err() == nil && fails(rc)
	if closeErr := rc.Close(); err == nil && closeErr != nil {
		err, ofSource = closeErr, true
	}
	if ofSource {
		return r.sourceError(s, err)
	}
	return err
}

// fails reports whether reading on fails.
func fails(r io.Reader) bool {
	_, err := r.Read(make([]byte, 1))
	return err != nil && !atEnd(err)
}

// atEnd reports whether a reader said that it is at its end. It does so by a
// bare io.EOF: a wrapped one is a failure, as of a connection that was closed.
func atEnd(err error) bool {
	return err == io.EOF //nolint:errorlint // see above
}

// sourceError returns the error for a segment that cannot be had. The end of the
// content is never where it is expected, or it would not be an error.
func (r *Reader) sourceError(s segment, err error) error {
	if atEnd(err) {
		err = io.ErrUnexpectedEOF
	}
	return &SourceError{Name: r.layout.entries[s.entry].name, Err: err}
}

// batch gathers small pieces into large writes.
type batch struct {
	w       io.Writer
	buf     []byte // nil while nothing is gathered, or with room free
	written int64

	fast  bool      // the client was, in the last trial
	tried int64     // of written, in trials that are over
	since time.Time // the trial began
}

// take makes sure that there is a buffer.
func (b *batch) take() {
	switch {
	case b.buf != nil:
	case b.fast:
		b.buf = largeBuffers.Get().(*[largeBuffer]byte)[:0]
	default:
		b.buf = smallBuffers.Get().(*[smallBuffer]byte)[:0]
	}
}

// release gives the buffer back.
func (b *batch) release() {
	switch cap(b.buf) {
	case smallBuffer:
		smallBuffers.Put((*[smallBuffer]byte)(b.buf[:smallBuffer]))
	case largeBuffer:
		largeBuffers.Put((*[largeBuffer]byte)(b.buf[:largeBuffer]))
	}
	b.buf = nil
}

// add gathers p, of any length.
func (b *batch) add(p []byte) error {
	for len(p) > 0 {
		b.take()
		n := min(len(p), room)
		b.buf = append(b.buf, p[:n]...)
		p = p[n:]
		if err := b.makeRoom(); err != nil {
			return err
		}
	}
	return nil
}

func (b *batch) makeRoom() error {
	if cap(b.buf)-len(b.buf) >= room {
		return nil
	}
	return b.flush()
}

// flush writes what is gathered.
func (b *batch) flush() error {
	if len(b.buf) == 0 {
		return nil
	}
	if b.since.IsZero() {
		b.since = time.Now()
	}
	n, err := b.w.Write(b.buf)
	b.written += int64(n)
	if err == nil && n < len(b.buf) {
		err = io.ErrShortWrite
	}
	b.buf = b.buf[:0]
	if b.written-b.tried >= trial {
		b.judge()
	}
	return err
}

// judge ends a trial of the client's speed.
func (b *batch) judge() {
	now := time.Now()
	fast := float64(b.written-b.tried) > fastClient*now.Sub(b.since).Seconds()
	b.tried, b.since = b.written, now
	if fast != b.fast {
		b.fast = fast
		b.release()
	}
}

// Read reads the next bytes, as many as p takes unless there is an error or the
// archive ends. The entry it stops in is kept open for a Read that goes on from
// there; any other call but a Seek to the same offset closes it.
func (r *Reader) Read(p []byte) (int, error) {
	if r.closed {
		return 0, fs.ErrClosed
	}
	if len(p) == 0 {
		return 0, nil
	}
	if r.offset >= r.layout.size {
		return 0, io.EOF
	}
	total := 0
	for s := range r.layout.segments(r.offset, int64(len(p))) {
		n, err := r.readSegment(p[total:], s)
		total += n
		r.offset += int64(n)
		if err != nil {
			r.release()
			if ctxErr := r.ctx.Err(); ctxErr != nil {
				err = ctxErr
			}
			return total, err
		}
	}
	return total, nil
}

// readSegment reads all of s into p.
func (r *Reader) readSegment(p []byte, s segment) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	switch s.kind {
	case sourceContent:
		return r.readContent(p[:s.n], s)
	case heldContent:
		return copy(p, r.layout.held(s)), nil
	default:
		r.scratch = r.layout.appendHeader(r.scratch[:0], s)
		return copy(p, r.scratch), nil
	}
}

func (r *Reader) readContent(p []byte, s segment) (int, error) {
	rest := r.layout.entries[s.entry].size - s.off
	if r.content == nil {
		rc, err := r.source.Open(r.ctx, s.entry, s.off, rest)
		if err != nil {
			return 0, r.sourceError(s, err)
		}
		r.content = rc
	}
	n, err := io.ReadFull(r.content, p)
	if err != nil {
		return n, r.sourceError(s, err)
	}
	if s.n == rest {
		err := r.content.Close()
		r.content = nil
		if err != nil {
			return n, r.sourceError(s, err)
		}
	}
	return n, nil
}

// Seek sets the offset of the next Read or CopyN, as [io.Seeker] has it. Beyond
// the end of the archive is allowed, before its start is an error.
func (r *Reader) Seek(offset int64, whence int) (int64, error) {
	if r.closed {
		return 0, fs.ErrClosed
	}
	switch whence {
	case io.SeekStart:
	case io.SeekCurrent:
		offset += r.offset
	case io.SeekEnd:
		offset += r.layout.size
	default:
		return 0, fmt.Errorf("seek: invalid whence %d", whence)
	}
	if offset < 0 {
		return 0, errors.New("seek: negative offset")
	}
	if offset != r.offset {
		r.release()
		r.offset = offset
	}
	return offset, nil
}

// Close closes what is open. Closing again does nothing.
func (r *Reader) Close() error {
	r.closed = true
	r.release()
	return nil
}

// release closes the entry that Read is in the middle of.
func (r *Reader) release() {
	if r.content != nil {
		_ = r.content.Close() // nothing is lost: it was read, and not written
		r.content = nil
	}
}

package transfer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"strconv"
)

// ReadRange reads n bytes from the offset. It asks again for what is missing when
// a connection breaks, so its error is not one of a connection alone: it is
// ErrChanged, has ErrFailed in it, or is that of the context or of the renewal.
// A body that ends early ends with such an error. Close it in any case.
func (r *Remote) ReadRange(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	if !r.ranges {
		return nil, ErrNoRanges
	}
	if off < 0 || n < 0 || off > r.version.Size-n {
		return nil, fmt.Errorf("no bytes %d to %d in a file of %d bytes", off, off+n, r.version.Size)
	}
	if at := r.version.Size - int64(len(r.tail)); off >= at {
		return io.NopCloser(bytes.NewReader(r.tail[off-at:][:n])), nil
	}
	return r.reader(ctx, Range{off, off + n}), nil
}

// ReadAll reads the whole file, also from a server without ranges. Its errors are
// those of ReadRange.
func (r *Remote) ReadAll(ctx context.Context) io.ReadCloser { return r.reader(ctx, r.whole()) }

// whole is all of the file, without an end if that is unknown.
func (r *Remote) whole() Range {
	if r.version.Size < 0 {
		return Range{0, math.MaxInt64}
	}
	return Range{0, r.version.Size}
}

func (r *Remote) reader(ctx context.Context, of Range) *reader {
	return &reader{ctx: ctx, remote: r, retry: retrier{remote: r}, pos: of.Start, end: of.End}
}

// reader reads a range, with as many requests as that takes.
type reader struct {
	ctx      context.Context // of the one call that made the reader
	remote   *Remote
	retry    retrier
	pos, end int64

	// Of the request under way, if body is not nil.
	body  io.ReadCloser
	guard *stallGuard
	left  int64 // bytes that the response should still have

	failure error // of the last request, not yet paused for
}

func (x *reader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for x.pos < x.end {
		if x.failure != nil {
			if err := x.retry.pause(x.ctx, x.failure); err != nil {
				return 0, err
			}
			x.failure = nil
		}
		if x.body == nil {
			if x.failure = x.request(); x.failure != nil {
				continue
			}
		}
		n, err := guardedReader{x.guard, x.body}.Read(p[:min(int64(len(p)), x.left)])
		x.pos += int64(n)
		x.left -= int64(n)
		x.retry.progress(n)
		switch {
		case x.left == 0:
			x.drop() // at the end, or what was sent was only a part
		case errors.Is(err, io.EOF) && x.end == math.MaxInt64:
			x.end = x.pos // that is how long it is
			x.drop()
		case err != nil:
			x.failure = x.guard.cause(noEOF(err))
			x.drop()
		}
		if n > 0 {
			return n, nil
		}
	}
	return 0, io.EOF
}

// request asks for what is left.
func (x *reader) request() error {
	at, err := x.remote.location(x.ctx, &x.retry)
	if err != nil {
		return err
	}
	ctx, guard := newStallGuard(x.ctx, x.remote.cfg.Stall)
	body, n, err := x.remote.open(ctx, guard, at.URL, Range{x.pos, x.end})
	if err != nil {
		guard.end()
		return guard.cause(err)
	}
	guard.pause()
	x.body, x.guard, x.left = body, guard, n
	return nil
}

// open requests a range and checks the response. It returns how many bytes of the
// range the body has, at most.
func (r *Remote) open(ctx context.Context, guard *stallGuard, location string, want Range) (io.ReadCloser, int64, error) {
	bytesRange := ""
	if r.ranges {
		bytesRange = strconv.FormatInt(want.Start, 10) + "-" + strconv.FormatInt(want.End-1, 10)
	}
	response, err := send(ctx, r.cfg.HTTP, location, bytesRange, r.version.validator())
	if err != nil {
		return nil, 0, err
	}
	if want.Start > 0 && r.version.unknown() {
		response.Body.Close()
		return nil, 0, fmt.Errorf("the transfer was cut and cannot go on: %w", ErrChanged)
	}
	n := want.Len()
	if r.ranges {
		n, err = r.version.checkPart(response, want)
	} else {
		err = r.version.checkWhole(response)
		if err == nil { // go to where the last response has ended
			_, err = io.CopyN(io.Discard, guard.reader(response.Body), want.Start)
			err = noEOF(err)
		}
	}
	if err != nil {
		response.Body.Close()
		return nil, 0, err
	}
	return response.Body, n, nil
}

func (x *reader) drop() {
	if x.body != nil {
		x.body.Close()
		x.guard.end()
		x.body = nil
	}
}

// Close ends the request that is under way.
func (x *reader) Close() error {
	x.drop()
	return nil
}

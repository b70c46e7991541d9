package transfer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"
)

// TailSize is how much of the end of a file [Open] fetches to learn its version,
// enough for the end records of a ZIP.
const TailSize = 68 << 10

// Remote is one version of a file on a server. It is safe for concurrent use.
type Remote struct {
	cfg     Config
	version Version
	ranges  bool
	tail    []byte // the end of the file, if ranges is set

	lock chan struct{} // held to read or renew what follows
	at   located
}

// located is a location and how many there were before.
type located struct {
	Location
	generation int
	// early is set where an expiry that is near is a reason to renew. If even a
	// new location is about to expire then the clocks disagree.
	early bool
}

// renewBefore is how long before its expiry a location is renewed.
const renewBefore = 30 * time.Second

func newLocated(l Location, generation int) located {
	return located{Location: l, generation: generation, early: time.Until(l.Expires) > renewBefore}
}

func (l *located) expiring() bool { return l.early && time.Until(l.Expires) <= renewBefore }

// Open learns the version of the file at the location, by fetching its end.
func Open(ctx context.Context, cfg Config, location Location) (*Remote, error) {
	r := &Remote{cfg: cfg.withDefaults(), lock: make(chan struct{}, 1), at: newLocated(location, 1)}
	retry := retrier{remote: r}
	for {
		err := r.probe(ctx, &retry)
		if err == nil {
			return r, nil
		}
		if err := retry.pause(ctx, err); err != nil {
			return nil, err
		}
	}
}

// Version returns the version that the remote is.
func (r *Remote) Version() Version { return r.version }

// Size in bytes, -1 if the server does not say. With ranges it is known.
func (r *Remote) Size() int64 { return r.version.Size }

// HasRanges reports whether parts can be fetched.
func (r *Remote) HasRanges() bool { return r.ranges }

// probe asks for the end of the file. A server that sends the whole instead may
// still know ranges that have a beginning.
func (r *Remote) probe(ctx context.Context, retry *retrier) error {
	at, err := r.location(ctx, retry)
	if err != nil {
		return err
	}
	end := "-" + strconv.Itoa(TailSize)
	if at.Size > 0 {
		end = fmt.Sprintf("%d-%d", max(0, at.Size-TailSize), at.Size-1)
	}
	for _, bytesRange := range []string{end, "0-0", ""} {
		status, err := r.probeRange(ctx, at.URL, bytesRange)
		if err != nil || status == http.StatusPartialContent || status == http.StatusOK && bytesRange != end {
			return err
		}
	}
	return fault("sends neither the package nor a part of it")
}

// probeRange asks for a range, takes down what the response says of the version,
// and returns its status.
func (r *Remote) probeRange(ctx context.Context, location, bytesRange string) (int, error) {
	ctx, stall := newStallGuard(ctx, r.cfg.Stall)
	defer stall.end()
	response, err := send(ctx, r.cfg.HTTP, location, bytesRange, "")
	if err != nil {
		return 0, stall.cause(err)
	}
	defer response.Body.Close()
	switch response.StatusCode {
	case http.StatusOK:
		r.version = versionOf(response.Header, response.ContentLength)
	case http.StatusPartialContent:
		got, size, err := contentRange(response.Header)
		if err != nil {
			return 0, err
		}
		if size < 0 {
			return 0, fault("does not say how large the package is")
		}
		if got.End == size && got.Len() <= TailSize {
			tail := make([]byte, got.Len())
			if _, err := io.ReadFull(stall.reader(response.Body), tail); err != nil {
				return 0, stall.cause(noEOF(err))
			}
			r.tail = tail
		}
		r.version = versionOf(response.Header, size)
		// Parts that cannot be told to be of one version are of no use.
		r.ranges = !r.version.unknown()
	}
	return response.StatusCode, nil
}

// location returns where to send the next request. A location that was refused
// is renewed first, once for everybody who was refused.
func (r *Remote) location(ctx context.Context, retry *retrier) (located, error) {
	select {
	case r.lock <- struct{}{}:
	case <-ctx.Done():
		return located{}, context.Cause(ctx)
	}
	defer func() { <-r.lock }()
	if r.at.generation == retry.refused || r.cfg.Renew != nil && r.at.expiring() {
		next, err := r.cfg.Renew(ctx)
		if err != nil {
			return located{}, finalError{fmt.Errorf("renew the signed URL: %w", err)}
		}
		if next.ID != r.at.ID {
			return located{}, ErrChanged
		}
		r.at = newLocated(next, r.at.generation+1)
		r.cfg.Log.InfoContext(ctx, "renewed the signed URL")
	}
	retry.generation = r.at.generation
	return r.at, nil
}

// host is where the file was last.
func (r *Remote) host(ctx context.Context) (string, error) {
	at, err := r.location(ctx, &retrier{})
	if err != nil {
		return "", err
	}
	u, err := url.Parse(at.URL)
	if err != nil {
		return "", errors.New("the URL of the package is not one")
	}
	return u.Host, nil
}

// noEOF is for reads of what must be there.
func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

package server

import (
	"context"
	"crypto/sha256"
	"fmt"
	"math"
	"net/http"
	"net/netip"
	"strconv"
	"sync"
	"time"

	"github.com/labstack/echo/v4"
	"github.com/maypok86/otter/v2"
	"golang.org/x/sync/semaphore"
	"golang.org/x/time/rate"

	"github.com/downlink-go/downlink/server/internal/download"
)

// buckets are token buckets of one size, one for each K. The number of them is
// bounded, and those that have filled up again are forgotten.
type buckets[K comparable] struct {
	perMinute int
	cache     *otter.Cache[K, *tokenBucket]
}

type tokenBucket struct {
	*rate.Limiter
	turn *semaphore.Weighted // for those that spend a token or not, as they find out
}

// newBuckets returns nil, which limits nothing, if perMinute is negative.
func newBuckets[K comparable](perMinute, most int) *buckets[K] {
	if perMinute < 0 {
		return nil
	}
	return &buckets[K]{perMinute: perMinute, cache: newTable[K, *tokenBucket](most, 2*time.Minute)}
}

func (b *buckets[K]) of(k K) *tokenBucket {
	l, _ := b.cache.ComputeIfAbsent(k, func() (*tokenBucket, bool) {
		return &tokenBucket{rate.NewLimiter(rate.Limit(float64(b.perMinute)/60), b.perMinute), semaphore.NewWeighted(1)}, false
	})
	return l
}

// newTable returns a cache for what may be forgotten after a time without use.
// It is cleaned as it is used: no goroutine outlives a use.
func newTable[K comparable, V any](most int, unused time.Duration) *otter.Cache[K, V] {
	return otter.Must(&otter.Options[K, V]{
		MaximumSize:      most,
		ExpiryCalculator: otter.ExpiryAccessing[K, V](unused),
		Clock:            tickless{start: time.Now()},
	})
}

// tickless is the clock of a cache that is cleaned as it is used.
type tickless struct{ start time.Time }

func (t tickless) NowNano() int64 { return int64(time.Since(t.start)) }

func (tickless) Tick(time.Duration) <-chan time.Time { return nil }

// wait returns after how many seconds the bucket has n tokens, 1 at least.
func wait(l *tokenBucket, n float64) int {
	return max(1, int(math.Ceil((n-l.Tokens())/float64(l.Limit()))))
}

// throttle lets a call through if its API key has made less than so many. The
// headers are those of draft-ietf-httpapi-ratelimit-headers-10.
func (s *Server) throttle(next echo.HandlerFunc) echo.HandlerFunc {
	if s.requests == nil {
		return next
	}
	policy := fmt.Sprintf(`"default";q=%d;w=60`, s.requests.perMinute)
	return func(c echo.Context) error {
		l := s.requests.of(requestInfo(c.Request().Context()).keyID)
		ok := l.Allow()
		header := c.Response().Header()
		header.Set("RateLimit-Policy", policy)
		header.Set("RateLimit", fmt.Sprintf(`"default";r=%d;t=%d`, max(0, int(l.Tokens())), wait(l, float64(s.requests.perMinute))))
		if !ok {
			return tooMany(header, wait(l, 1), "too many requests with this API key")
		}
		return next(c)
	}
}

// tooMany returns the error that asks the caller to come back later.
func tooMany(header http.Header, seconds int, message string) error {
	header.Set("Retry-After", strconv.Itoa(seconds))
	return &download.Error{Code: rateLimited, Message: message}
}

// failures counts calls with invalid API keys by address, and remembers keys
// that were valid, so that one address's bad callers do not lock out its good
// ones.
type failures struct {
	addresses *buckets[netip.Prefix]
	valid     *otter.Cache[[sha256.Size]byte, struct{}]
}

func newFailures(perMinute int) *failures {
	if perMinute < 0 {
		return nil
	}
	return &failures{
		addresses: newBuckets[netip.Prefix](perMinute, 50_000),
		valid:     newTable[[sha256.Size]byte, struct{}](10_000, time.Hour),
	}
}

// network is what counts as one address: a host can have any of its /64 network.
func network(a netip.Addr) netip.Prefix {
	bits := 32
	if a.Is6() {
		bits = 64
	}
	p, _ := a.Prefix(bits) // no error: the address has so many, or is none
	return p
}

// turnTimeout is how long a call waits for those before it whose keys are looked up.
const turnTimeout = 10 * time.Second

// guard calls authenticate for the key unless the address has failed too often.
// Keys that are not known to be valid are looked up one after the other for an
// address: of many at a time each would find that the address may fail once more.
func (f *failures) guard(c echo.Context, key string, authenticate func() error) error {
	if f == nil {
		return authenticate()
	}
	l := f.addresses.of(network(requestInfo(c.Request().Context()).client))
	hash := sha256.Sum256([]byte(key))
	_, known := f.valid.GetIfPresent(hash)
	if !known && l.Tokens() >= 1 {
		ctx, cancel := context.WithTimeout(c.Request().Context(), turnTimeout)
		defer cancel()
		if err := l.turn.Acquire(ctx, 1); err != nil {
			return err
		}
		defer l.turn.Release(1)
		_, known = f.valid.GetIfPresent(hash)
	}
	if !known && l.Tokens() < 1 {
		return tooMany(c.Response().Header(), wait(l, 1), "too many calls with invalid API keys from this address")
	}
	err := authenticate()
	switch {
	case err == nil && !known:
		f.valid.Set(hash, struct{}{})
	case isUnauthenticated(err):
		f.valid.Invalidate(hash)
		l.Allow()
	}
	return err
}

// slots count the downloads that are being served.
type slots struct {
	most, mostPerKey int // negative for any number
	mu               sync.Mutex
	all              int
	perKey           map[string]int
}

// take takes a slot for a URL that was signed for this API key.
func (s *slots) take(header http.Header, keyID string) (release func(), err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.most >= 0 && s.all >= s.most {
		return nil, errBusy
	}
	if s.mostPerKey >= 0 && s.perKey[keyID] >= s.mostPerKey {
		return nil, tooMany(header, retryAfter, "too many downloads at a time with this API key")
	}
	s.all++
	s.perKey[keyID]++
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.all--
		if s.perKey[keyID]--; s.perKey[keyID] == 0 {
			delete(s.perKey, keyID)
		}
	}, nil
}

var errBusy = &download.Error{Code: download.Unavailable, Message: "the server has as many downloads as it can serve at a time"}

// countStream counts a request of HTTP/2 until the client has taken the answer.
// Such a connection has many requests at a time, and a client that opens no window
// for the answers makes each of them stay.
func (s *Server) countStream(next echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) error {
		if c.Request().ProtoMajor < 2 {
			return next(c)
		}
		s.streams.Add(1)
		defer s.streams.Add(-1)
		err := next(c)
		if c.Response().Size > 0 {
			// net/http would send the end of it later, where nothing counts.
			control := http.NewResponseController(unwrap(c.Response()))
			_ = control.SetWriteDeadline(time.Now().Add(s.stallTimeout))
			_ = control.Flush() // the client may be gone
		}
		return err
	}
}

var errCrowded = &download.Error{Code: download.Unavailable, Message: "the server has as many requests as it can answer at a time"}

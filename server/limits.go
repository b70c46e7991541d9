package server

import (
	"cmp"
	"fmt"
	"net/netip"
	"time"
)

// Limits bound what clients can make one server do. The zero value of a field
// stands for its default, which [DefaultLimits] has; a negative number means that
// there is no limit. Several servers behind one address count each for itself.
type Limits struct {
	// HeaderBytes bounds the request line and the header together. Above it the
	// answer is 400; above four times as much the connection is closed with a
	// bare 431. It cannot be lifted. Defaults to 16 KiB.
	HeaderBytes int
	// HeaderTimeout is how long a client may take to send the header of a
	// request, and its body, which nothing reads, if it has one. Also for the
	// TLS handshake. It cannot be lifted. Defaults to 10 seconds.
	HeaderTimeout time.Duration
	// IdleTimeout is for how long a connection is kept between two requests. It
	// cannot be lifted. Defaults to 2 minutes.
	IdleTimeout time.Duration
	// Connections bounds those that are open at a time. More wait to be accepted
	// until one of them ends. Over HTTP/2 it also bounds the requests of all of
	// them: above it the answer is 503 with Retry-After, and without a body. A
	// connection costs some 20 KiB, and four times HeaderBytes at most until it has
	// sent the header of a request. Defaults to 10,000, or half of the file descriptors
	// that the process may have if that is less.
	Connections int
	// Downloads bounds the requests for packages that are served at a time.
	// Above it the answer is 503 with Retry-After. Defaults to 1,000, or a
	// quarter of the file descriptors if that is less.
	Downloads int
	// DownloadsPerKey bounds those of them whose URLs were signed for one API
	// key. Above it the answer is 429 with Retry-After. Defaults to 250.
	DownloadsPerKey int
	// RequestsPerMinute bounds the calls with one API key, as a token bucket: so
	// many at once, and after that so many a minute. Above it the answer is 429
	// with Retry-After. The headers RateLimit and RateLimit-Policy tell clients
	// how much is left. Requests for packages do not count. Defaults to 600.
	RequestsPerMinute int
	// FailuresPerMinute bounds the calls with invalid API keys from one address
	// (IPv6: one /64 network), as a token bucket. Above it a key is not looked up
	// any more but answered 429 with Retry-After, unless it was valid in the last
	// hour: whoever shares the address with somebody who guesses keys goes on
	// working, and has to wait some seconds for a new key at worst. Keys that were
	// not are looked up one after the other, for each address. Defaults
	// to 30.
	FailuresPerMinute int
}

// DefaultLimits returns the limits that hold where a configuration says nothing.
func DefaultLimits() Limits {
	descriptors := maxDescriptors()
	return Limits{
		HeaderBytes:       16 << 10,
		HeaderTimeout:     10 * time.Second,
		IdleTimeout:       2 * time.Minute,
		Connections:       min(10_000, descriptors/2),
		Downloads:         min(1000, descriptors/4),
		DownloadsPerKey:   250,
		RequestsPerMinute: 600,
		FailuresPerMinute: 30,
	}
}

// withDefaults returns a copy with the defaults filled in, or an error that
// names the field.
func (l Limits) withDefaults() (Limits, error) {
	d := DefaultLimits()
	l.HeaderBytes = cmp.Or(l.HeaderBytes, d.HeaderBytes)
	l.HeaderTimeout = cmp.Or(l.HeaderTimeout, d.HeaderTimeout)
	l.IdleTimeout = cmp.Or(l.IdleTimeout, d.IdleTimeout)
	for _, n := range []struct{ value, byDefault *int }{
		{&l.Connections, &d.Connections},
		{&l.Downloads, &d.Downloads},
		{&l.DownloadsPerKey, &d.DownloadsPerKey},
		{&l.RequestsPerMinute, &d.RequestsPerMinute},
		{&l.FailuresPerMinute, &d.FailuresPerMinute},
	} {
		*n.value = cmp.Or(*n.value, *n.byDefault)
	}
	if l.Connections == 0 || l.Downloads == 0 {
		return l, fmt.Errorf("the process may have %d file descriptors, too few to serve with: raise the limit (ulimit -n)", maxDescriptors())
	}
	if l.HeaderBytes < 1<<10 || l.HeaderBytes > 1<<20 {
		return l, fmt.Errorf("header size: %d bytes, want 1024 to 1048576", l.HeaderBytes)
	}
	if l.HeaderTimeout < 0 || l.HeaderTimeout > time.Hour {
		return l, fmt.Errorf("header timeout: %s, want 1h at most", l.HeaderTimeout)
	}
	if l.IdleTimeout < 0 || l.IdleTimeout > 24*time.Hour {
		return l, fmt.Errorf("idle timeout: %s, want 24h at most", l.IdleTimeout)
	}
	return l, nil
}

// parseProxies reads addresses and networks.
func parseProxies(list []string) ([]netip.Prefix, error) {
	proxies := make([]netip.Prefix, len(list))
	for i, s := range list {
		address, err := netip.ParseAddr(s)
		if err == nil {
			address = address.Unmap()
			proxies[i] = netip.PrefixFrom(address, address.BitLen())
			continue
		}
		if proxies[i], err = netip.ParsePrefix(s); err != nil {
			return nil, fmt.Errorf("trusted proxy %q: want an address or a network, such as 10.0.0.0/8", s)
		}
	}
	return proxies, nil
}

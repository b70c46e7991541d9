package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

// newClient returns a client that keeps so many connections, over HTTP/1.1.
func newClient(connections int) *http.Client {
	return &http.Client{Transport: &http.Transport{
		MaxIdleConnsPerHost: connections, MaxConnsPerHost: connections, DisableCompression: true, ReadBufferSize: 64 << 10,
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, //nolint:gosec // our own server, with a certificate of its own
		TLSNextProto:    map[string]func(string, *tls.Conn) http.RoundTripper{},
	}}
}

// dialing returns the client's transport with another way to connect.
func dialing(client *http.Client, dial func(context.Context, string, string) (net.Conn, error)) *http.Transport {
	t := client.Transport.(*http.Transport).Clone()
	t.DialContext = dial
	return t
}

// fetch gets the URL, or a range of it, and writes it to w. It returns the number
// of bytes.
func fetch(ctx context.Context, client *http.Client, url, byteRange string, w io.Writer) (int64, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, err
	}
	want := http.StatusOK
	if byteRange != "" {
		r.Header.Set("Range", byteRange)
		want = http.StatusPartialContent
	}
	response, err := client.Do(r)
	if err != nil {
		return 0, err
	}
	defer response.Body.Close()
	if response.StatusCode != want {
		return 0, fmt.Errorf("status %d", response.StatusCode)
	}
	n, err := copyAll(w, response.Body)
	if err == nil && n != response.ContentLength {
		err = fmt.Errorf("%d bytes of %d", n, response.ContentLength)
	}
	return n, err
}

// sample is what one turn took.
type sample struct {
	wall, cpu time.Duration
	bytes     int64
	requests  int
	p99       time.Duration
}

func (s sample) rate() float64        { return float64(s.bytes) / 1e6 / s.wall.Seconds() }
func (s sample) perSecond() float64   { return float64(s.requests) / s.wall.Seconds() }
func (s sample) cpuPerGB() float64    { return s.cpu.Seconds() / (float64(s.bytes) / 1e9) }
func (s sample) wallSeconds() float64 { return s.wall.Seconds() }

// contender is one of those that take turns. Without a process no CPU time is
// measured.
type contender struct {
	process *process
	turn    func() (sample, error)
}

// compare lets all of them take their turns, round after round, after one that
// does not count, and returns the samples of each.
func (b *bench) compare(contenders ...contender) ([][]sample, error) {
	samples := make([][]sample, len(contenders))
	for round := range b.rounds + 1 {
		for i, c := range contenders {
			var before time.Duration
			if c.process != nil {
				before = c.process.cpu()
			}
			start := time.Now()
			s, err := c.turn()
			if err != nil {
				return nil, err
			}
			if s.wall == 0 {
				s.wall = time.Since(start)
			}
			if c.process != nil { // others tell themselves
				s.cpu = c.process.cpu() - before
			}
			if round > 0 {
				samples[i] = append(samples[i], s)
			}
		}
	}
	return samples, nil
}

// median takes that of a figure.
func median(samples []sample, figure func(sample) float64) float64 {
	values := make([]float64, len(samples))
	for i, s := range samples {
		values[i] = figure(s)
	}
	slices.Sort(values)
	return values[len(values)/2]
}

// download gets the whole of a URL, the given number of times.
func download(ctx context.Context, client *http.Client, p *process, url string, times int) contender {
	return contender{p, func() (s sample, err error) {
		for range times {
			n, err := fetch(ctx, client, url, "", io.Discard)
			if err != nil {
				return sample{}, err
			}
			s.bytes += n
		}
		return s, nil
	}}
}

// randomRanges gets ranges of a megabyte with many connections.
func randomRanges(ctx context.Context, p *process, url string, size int64, connections, requests int) contender {
	client := newClient(connections)
	return contender{p, func() (s sample, err error) {
		const length = 1 << 20
		g, ctx := errgroup.WithContext(ctx)
		for worker := range connections {
			g.Go(func() error {
				random := rand.New(rand.NewPCG(uint64(worker), 1)) //nolint:gosec // the same ranges for everybody
				for range requests / connections {
					off := random.Int64N(max(1, size-length))
					if _, err := fetch(ctx, client, url, fmt.Sprintf("bytes=%d-%d", off, min(size, off+length)-1), io.Discard); err != nil {
						return err
					}
				}
				return nil
			})
		}
		err = g.Wait()
		s.requests = requests / connections * connections
		s.bytes = int64(s.requests) * min(length, size)
		return s, err
	}}
}

// calls makes calls of the API for a while: as many as there can be with so many
// connections, or at a steady rate if there is one. Then latencies count from the
// time at which a call was due.
func calls(ctx context.Context, p *process, connections int, rate float64, duration time.Duration) contender {
	client := newClient(connections)
	return contender{p, func() (sample, error) {
		var mu sync.Mutex
		var latencies []time.Duration
		var next int
		start := time.Now()
		due := func() (time.Time, bool) {
			mu.Lock()
			defer mu.Unlock()
			at := time.Now()
			if rate > 0 {
				at = start.Add(time.Duration(float64(next) / rate * float64(time.Second)))
			}
			next++
			return at, at.Sub(start) < duration
		}
		g, ctx := errgroup.WithContext(ctx)
		for range connections {
			g.Go(func() error {
				for {
					at, more := due()
					if !more {
						return nil
					}
					time.Sleep(time.Until(at))
					if _, err := p.call(ctx, client, callJob); err != nil {
						return err
					}
					took := time.Since(at)
					mu.Lock()
					latencies = append(latencies, took)
					mu.Unlock()
				}
			})
		}
		if err := g.Wait(); err != nil {
			return sample{}, err
		}
		wall := time.Since(start)
		slices.Sort(latencies)
		return sample{wall: wall, requests: len(latencies), p99: latencies[len(latencies)*99/100]}, nil
	}}
}

package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// large serves a package of few large files: the finished one is a static file
// for the others.
func (b *bench) large(ctx context.Context) error {
	return b.throughput(ctx, largeJob, 1, fmt.Sprintf("20 x %.0f MB", 200*b.scale), 1.0, 1.0, true)
}

// small serves a package of many small files.
func (b *bench) small(ctx context.Context) error {
	return b.throughput(ctx, smallJob, 3, fmt.Sprintf("%.0f x 20 KB", 20_000*b.scale), 0.5, 2.5, false)
}

func (b *bench) throughput(ctx context.Context, job string, times int, what string, speed, cost float64, files bool) error {
	d, err := b.startDownlinkd(ctx)
	if err != nil {
		return err
	}
	url, err := d.ready(ctx, job)
	if err != nil {
		return err
	}
	names, contenders := []string{"downlinkd"}, []contender{download(ctx, newClient(1), d, url, times)}
	if b.have("nginx") {
		nginx, _, err := b.startNginx(ctx)
		if err != nil {
			return err
		}
		names = append(names, "nginx, the finished file")
		contenders = append(contenders, download(ctx, newClient(1), nginx, nginx.url+"/"+job+".zip", times))
	}
	if files {
		p, err := b.startPeer(ctx, "files", b.zips())
		if err != nil {
			return err
		}
		names = append(names, "Go's http.FileServer, the finished file")
		contenders = append(contenders, download(ctx, newClient(1), p, p.url+"/"+job+".zip", times))
	}
	samples, err := b.compare(contenders...)
	if err != nil {
		return err
	}
	for i := 1; i < len(samples); i++ {
		r := transferRow(what+"; "+names[i], samples[0], samples[i])
		if i == 1 && names[1] != names[len(names)-1] || !files {
			r.target, r.hit = targetOf(samples[0], samples[i], speed, cost)
		}
		b.add(r)
	}
	return nil
}

// transferRow compares the throughput and the CPU time of two servers.
func transferRow(what string, ours, theirs []sample) row {
	return row{
		what:   what,
		ours:   fmt.Sprintf("%.0f MB/s", median(ours, sample.rate)),
		theirs: fmt.Sprintf("%.0f MB/s", median(theirs, sample.rate)),
		ratio:  fmt.Sprintf("%.2f", median(ours, sample.rate)/median(theirs, sample.rate)),
		cpu:    fmt.Sprintf("%.2f : %.2f", median(ours, sample.cpuPerGB), median(theirs, sample.cpuPerGB)),
	}
}

// targetOf says what is wanted of the ratios, and whether it is so. A cost of 0
// is any.
func targetOf(ours, theirs []sample, speed, cost float64) (string, bool) {
	hit := median(ours, sample.rate) >= speed*median(theirs, sample.rate)
	if cost == 0 {
		return fmt.Sprintf(">= %.1f", speed), hit
	}
	return fmt.Sprintf(">= %.1f at <= %.1f x CPU", speed, cost),
		hit && median(ours, sample.cpuPerGB) <= cost*median(theirs, sample.cpuPerGB)
}

func (b *bench) largeTLS(ctx context.Context) error {
	if !b.have("nginx") {
		return nil
	}
	cert, key := b.cert()
	d, err := b.startDownlinkd(ctx, "--tls-cert", cert, "--tls-key", key)
	if err != nil {
		return err
	}
	url, err := d.ready(ctx, largeJob)
	if err != nil {
		return err
	}
	_, nginx, err := b.startNginx(ctx)
	if err != nil {
		return err
	}
	samples, err := b.compare(download(ctx, newClient(1), d, url, 1), download(ctx, newClient(1), nginx, nginx.url+"/"+largeJob+".zip", 1))
	if err != nil {
		return err
	}
	r := transferRow(fmt.Sprintf("20 x %.0f MB over TLS; nginx, the finished file", 200*b.scale), samples[0], samples[1])
	r.target, r.hit = targetOf(samples[0], samples[1], 1, 0)
	b.add(r)
	return nil
}

// ranges reads a package of very many entries in places.
func (b *bench) ranges(ctx context.Context) error {
	if !b.have("nginx") {
		return nil
	}
	d, err := b.startDownlinkd(ctx)
	if err != nil {
		return err
	}
	url, err := d.ready(ctx, tinyJob)
	if err != nil {
		return err
	}
	nginx, _, err := b.startNginx(ctx)
	if err != nil {
		return err
	}
	info, err := os.Stat(b.zip(tinyJob))
	if err != nil {
		return err
	}
	const connections, requests = 64, 640
	samples, err := b.compare(randomRanges(ctx, d, url, info.Size(), connections, requests),
		randomRanges(ctx, nginx, nginx.url+"/"+tinyJob+".zip", info.Size(), connections, requests))
	if err != nil {
		return err
	}
	r := transferRow(fmt.Sprintf("64 clients, random ranges of 1 MB, %.0f entries of 200 bytes; nginx, the finished file", 100_000*b.scale), samples[0], samples[1])
	r.target, r.hit = targetOf(samples[0], samples[1], 0.5, 0)
	b.add(r)
	return nil
}

// put makes the call for a package that is ready.
func (b *bench) put(ctx context.Context) error {
	d, err := b.startDownlinkd(ctx)
	if err != nil {
		return err
	}
	if _, err := d.ready(ctx, callJob); err != nil {
		return err
	}
	const connections, duration = 64, 3 * time.Second
	contenders := []contender{calls(ctx, d, connections, 0, duration)}
	for _, name := range []string{"echo", "net/http"} {
		p, err := b.startPeer(ctx, name)
		if err != nil {
			return err
		}
		contenders = append(contenders, calls(ctx, p, connections, 0, duration))
	}
	samples, err := b.compare(contenders...)
	if err != nil {
		return err
	}
	ours := median(samples[0], sample.perSecond)
	for i, name := range []string{"a bare Echo handler", "a bare net/http handler"} {
		theirs := median(samples[i+1], sample.perSecond)
		r := row{what: "calls a second, 64 connections; " + name, ours: fmt.Sprintf("%.0f", ours), theirs: fmt.Sprintf("%.0f", theirs), ratio: fmt.Sprintf("%.2f", ours/theirs)}
		if i == 0 {
			r.target, r.hit = ">= 0.5", ours >= 0.5*theirs
		}
		b.add(r)
	}
	steady, err := b.compare(calls(ctx, d, connections, ours/2, duration))
	if err != nil {
		return err
	}
	p99 := median(steady[0], func(s sample) float64 { return s.p99.Seconds() * 1e3 })
	b.add(row{what: "the same at half that load, 99th percentile", ours: fmt.Sprintf("%.1f ms", p99), target: "< 20 ms", hit: p99 < 20})
	return nil
}

// ready measures how long it takes until a package can be downloaded.
func (b *bench) ready(ctx context.Context) error {
	d, err := b.startDownlinkd(ctx)
	if err != nil {
		return err
	}
	client := newClient(1)
	for _, j := range []struct {
		job, what string
		limit     time.Duration
	}{
		{thousandJob, "1,000 files", 10 * time.Millisecond},
		{tinyJob, fmt.Sprintf("%.0f files", 100_000*b.scale), 250 * time.Millisecond},
	} {
		var url string
		samples, err := b.compare(contender{nil, func() (sample, error) {
			if err := b.forget(ctx, d); err != nil {
				return sample{}, err
			}
			start := time.Now()
			if url, err = d.call(ctx, client, j.job); err == nil && url == "" {
				if url, err = d.ready(ctx, j.job); err == nil { // the first turn reads the files
					return sample{wall: time.Since(start)}, nil
				}
			}
			return sample{wall: time.Since(start)}, err
		}})
		if err != nil {
			return err
		}
		took := time.Duration(median(samples[0], sample.wallSeconds) * float64(time.Second))
		b.add(row{what: "a new package ready, " + j.what + " whose checksums are known", ours: milliseconds(took), target: "<= " + milliseconds(j.limit), hit: took <= j.limit})
	}
	if err := b.rebuild(ctx); err != nil {
		return err
	}
	return b.archivers(ctx, d)
}

func milliseconds(d time.Duration) string { return fmt.Sprintf("%.1f ms", d.Seconds()*1e3) }

// forget deletes all packages of a server, so that they are planned again. What
// is known of the files stays.
func (b *bench) forget(ctx context.Context, d *process) error {
	list := exec.CommandContext(ctx, b.bin("downlinkd"), "packages", "list", "--data-dir", d.state)
	out, err := list.Output()
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(out)) {
		id, _, _ := strings.Cut(line, " ")
		if !strings.Contains(id, "-") {
			continue // the heading
		}
		if err := exec.CommandContext(ctx, b.bin("downlinkd"), "packages", "delete", "--data-dir", d.state, id).Run(); err != nil {
			return err
		}
	}
	return nil
}

// rebuild measures the first request for a package after a start, which lays it
// out again from what is stored.
func (b *bench) rebuild(ctx context.Context) error {
	state := filepath.Join(b.temp, "rebuild")
	samples, err := b.compare(contender{nil, func() (s sample, err error) {
		d, err := b.startDownlinkdOn(ctx, state)
		if err != nil {
			return s, err
		}
		defer func() { err = errors.Join(err, d.stop()) }()
		b.running = b.running[:len(b.running)-1]
		url, err := d.ready(ctx, tinyJob)
		if err != nil {
			return s, err
		}
		client := newClient(1)
		start := time.Now()
		_, err = fetch(ctx, client, url, "bytes=0-0", io.Discard)
		return sample{wall: time.Since(start)}, err
	}})
	if err != nil {
		return err
	}
	took := time.Duration(median(samples[0], sample.wallSeconds) * float64(time.Second))
	b.add(row{what: fmt.Sprintf("first byte of a package of %.0f files that is not in the cache", 100_000*b.scale), ours: milliseconds(took), target: "<= 100.0 ms", hit: took <= 100*time.Millisecond})
	return nil
}

// archivers make the large package as a file.
func (b *bench) archivers(ctx context.Context, d *process) error {
	out := filepath.Join(b.data, "made.zip")
	defer func() { _ = os.Remove(out) }() // it may not be there
	client := newClient(1)
	for _, c := range []struct {
		program string
		args    []string
	}{
		{"zip", []string{"-0", "-q", "-r", out, "."}},
		{"7z", []string{"a", "-tzip", "-mx0", "-bso0", "-bsp0", out, "."}},
	} {
		if !b.have(c.program) {
			continue
		}
		samples, err := b.compare(contender{nil, func() (sample, error) {
			if err := b.forget(ctx, d); err != nil {
				return sample{}, err
			}
			start := time.Now()
			_, err := d.call(ctx, client, largeJob)
			return sample{wall: time.Since(start)}, err
		}}, contender{nil, func() (sample, error) {
			_ = os.Remove(out)
			cmd := exec.CommandContext(ctx, c.program, c.args...)
			cmd.Dir, cmd.Stderr = b.job(largeJob), os.Stderr
			return sample{}, cmd.Run()
		}})
		if err != nil {
			return err
		}
		ours, theirs := median(samples[0], sample.wallSeconds), median(samples[1], sample.wallSeconds)
		b.add(row{what: fmt.Sprintf("a package of %.1f GB ready; %s", 4*b.scale, strings.Join(append([]string{c.program}, c.args[:1]...), " ")),
			ours: fmt.Sprintf("%.1f ms", ours*1e3), theirs: fmt.Sprintf("%.0f ms", theirs*1e3), ratio: fmt.Sprintf("%.0f times faster", theirs/ours)})
	}
	return nil
}

// memory downloads with a hundred clients that are slow.
func (b *bench) memory(ctx context.Context) error {
	d, err := b.startDownlinkd(ctx)
	if err != nil {
		return err
	}
	urls := make([]string, 0, 2)
	for _, job := range []string{largeJob, smallJob} {
		url, err := d.ready(ctx, job)
		if err != nil {
			return err
		}
		urls = append(urls, url)
	}
	// A new process: reading the files for their checksums took memory too.
	if err := b.stopAll(); err != nil {
		return err
	}
	if d, err = b.startDownlinkdOn(ctx, d.state); err != nil {
		return err
	}
	for i, job := range []string{largeJob, smallJob} {
		if urls[i], err = d.ready(ctx, job); err != nil {
			return err
		}
	}
	const clients = 100
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	done := make(chan error, clients)
	for i := range clients {
		go func() { done <- sip(ctx, urls[i%2]) }()
	}
	for range clients {
		err = errors.Join(err, <-done)
	}
	megabytes := float64(d.memory()) / 1e6
	layouts := 20_000 * b.scale * 700 / 1e6 // of the two packages
	b.add(row{what: "memory with 100 clients that download", ours: fmt.Sprintf("%.0f MB", megabytes),
		target: fmt.Sprintf("< 64 MB and %.0f MB of layouts", layouts), hit: err == nil && megabytes < 64+layouts})
	return err
}

// sip downloads at 10 MB/s until the context ends.
func sip(ctx context.Context, url string) error {
	client := newClient(1)
	client.Transport = dialing(client, func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := new(net.Dialer).DialContext(ctx, network, address)
		return &slowConn{conn}, err
	})
	if _, err := fetch(ctx, client, url, "", io.Discard); ctx.Err() == nil {
		return err
	}
	return nil
}

type slowConn struct{ net.Conn }

func (c *slowConn) Read(p []byte) (int, error) {
	time.Sleep(time.Millisecond)
	return c.Conn.Read(p[:min(len(p), 10e3)])
}

// start measures the time until a server on an existing database answers.
func (b *bench) start(ctx context.Context) error {
	state := filepath.Join(b.temp, "start")
	samples, err := b.compare(contender{nil, func() (sample, error) {
		start := time.Now()
		d, err := b.launch(ctx, state)
		if err != nil {
			return sample{}, err
		}
		took := time.Since(start)
		b.running = b.running[:len(b.running)-1]
		return sample{wall: took}, d.stop()
	}})
	if err != nil {
		return err
	}
	took := time.Duration(median(samples[0], sample.wallSeconds) * float64(time.Second))
	b.add(row{what: "start of downlinkd on an existing database", ours: milliseconds(took), target: "< 100.0 ms", hit: took < 100*time.Millisecond})
	return nil
}

// client downloads to a file with several programs.
func (b *bench) client(ctx context.Context) error {
	d, err := b.startDownlinkd(ctx)
	if err != nil {
		return err
	}
	url, err := d.ready(ctx, largeJob)
	if err != nil {
		return err
	}
	out := filepath.Join(b.data, "downloaded.zip")
	defer func() { _ = os.Remove(out) }() // it may not be there
	info, err := os.Stat(b.zip(largeJob))
	if err != nil {
		return err
	}
	run := func(program string, args ...string) contender {
		return contender{nil, func() (sample, error) {
			_ = os.Remove(out)
			cmd := exec.CommandContext(ctx, program, args...)
			cmd.Env = append(os.Environ(), "DOWNLINK_API_KEY="+d.key)
			cmd.Stderr = os.Stderr
			start := time.Now()
			if err := cmd.Run(); err != nil {
				return sample{}, fmt.Errorf("%s: %w", filepath.Base(program), err)
			}
			return sample{wall: time.Since(start), bytes: info.Size(), cpu: cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()}, nil
		}}
	}
	names, contenders := []string{"downlink get"}, []contender{run(b.bin("downlink"), "get", "--quiet", "--url", d.url, "-o", out, "bench", largeJob)}
	for name, args := range map[string][]string{
		"curl":   {"-sS", "-o", out, url},
		"aria2c": {"-x4", "-q", "--file-allocation=none", "-d", filepath.Dir(out), "-o", filepath.Base(out), url},
	} {
		if b.have(name) {
			names, contenders = append(names, name), append(contenders, run(name, args...))
		}
	}
	samples, err := b.compare(contenders...)
	if err != nil {
		return err
	}
	for i := 1; i < len(samples); i++ {
		r := transferRow(fmt.Sprintf("download of %.1f GB to a file, verified; %s", 4*b.scale, names[i]), samples[0], samples[i])
		if names[i] == "curl" {
			r.target, r.hit = targetOf(samples[0], samples[i], 1, 1.5)
		}
		b.add(r)
	}
	return nil
}

// binary builds downlinkd in two places.
func (b *bench) binary(ctx context.Context) error {
	again := b.bin("downlinkd-again")
	if err := build(ctx, again, "server/cmd/downlinkd"); err != nil {
		return err
	}
	var sums [2][sha256.Size]byte
	var size int
	for i, name := range []string{b.bin("downlinkd"), again} {
		data, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		sums[i], size = sha256.Sum256(data), len(data)
	}
	same := "reproducible"
	if sums[0] != sums[1] {
		same = "not reproducible"
	}
	b.add(row{what: "binary of downlinkd, stripped", ours: fmt.Sprintf("%.0f MB, %s", float64(size)/1e6, same), target: "< 60 MB, reproducible", hit: sums[0] == sums[1] && size < 60e6})
	return nil
}

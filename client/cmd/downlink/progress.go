package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"

	"github.com/downlink-go/downlink/client"
)

// lineEvery is how often progress is told where there is no terminal.
const lineEvery = 5 * time.Second

// progress shows how far a download is: a bar on a terminal, a line every few
// seconds elsewhere, JSON lines on demand.
type progress struct {
	app *app

	mu     sync.Mutex
	closed bool
	stage  client.Stage
	told   time.Time
	last   client.Progress
	rate   rate
	each   []rate // of the connections

	bars *mpb.Progress // nil where there is no terminal
	bar  *mpb.Bar
}

func (a *app) newProgress() *progress {
	p := &progress{app: a, told: time.Now()} // what is over before it is told of is not worth a line
	if !a.quiet && !a.json && terminal(a.stderr) {
		p.bars = mpb.New(mpb.WithOutput(a.stderr), mpb.WithWidth(64), mpb.WithRefreshRate(200*time.Millisecond))
	}
	return p
}

func terminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0 && os.Getenv("TERM") != "dumb"
}

// update is called with every change.
func (p *progress) update(now client.Progress) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || p.app.quiet {
		return
	}
	if now.Stage != p.stage {
		p.begin(now)
	}
	p.last = now
	p.rate.add(time.Now(), now.Done)
	if len(p.each) != len(now.Connections) {
		p.each = make([]rate, len(now.Connections))
	}
	for i, done := range now.Connections {
		p.each[i].add(time.Now(), done)
	}
	switch {
	case p.app.json:
		p.tellJSON(now)
	case p.bars != nil:
		p.draw(now)
	case now.Note != "" || time.Since(p.told) >= lineEvery:
		p.told = time.Now()
		fmt.Fprintln(p.app.stderr, p.line(now))
	}
}

func (p *progress) begin(now client.Progress) {
	p.stage = now.Stage
	p.rate, p.each = rate{}, nil
	if p.bar != nil {
		p.bar.Abort(true)
		p.bar = nil
	}
}

func (p *progress) tellJSON(now client.Progress) {
	if time.Since(p.told) < time.Second && now.Note == "" && now.Done != now.Total {
		return
	}
	p.told = time.Now()
	event := map[string]any{"event": "progress", "stage": now.Stage, "done": now.Done, "total": now.Total}
	if now.Note != "" {
		event["note"] = now.Note
	}
	if now.Pending != nil && now.Pending.Progress >= 0 {
		event["prepared"] = now.Pending.Progress
	}
	if len(now.Connections) > 0 {
		event["connections"] = now.Connections
	}
	_ = json.NewEncoder(p.app.stderr).Encode(event)
}

func (p *progress) draw(now client.Progress) {
	if now.Note != "" {
		_, _ = fmt.Fprintln(p.bars, now.Note)
	}
	if p.bar == nil {
		p.bar = p.bars.New(0, mpb.BarStyle().Rbound("|"),
			mpb.PrependDecorators(decor.Any(func(decor.Statistics) string { return p.head() })),
			mpb.AppendDecorators(decor.Any(func(decor.Statistics) string { return p.tail() })))
	}
	done, total := now.Done, now.Total
	if now.Pending != nil && now.Pending.Progress >= 0 {
		done, total = int64(1000*now.Pending.Progress), 1000
	}
	p.bar.SetTotal(max(total, 1), false)
	p.bar.SetCurrent(done)
}

// head and tail are called by the goroutine that draws.
func (p *progress) head() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return fmt.Sprintf("%-11s ", p.stage)
}

func (p *progress) tail() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return " " + p.amounts(p.last) + p.connections()
}

// connections is the speed of each connection, where there are several.
func (p *progress) connections() string {
	if len(p.each) < 2 {
		return ""
	}
	var speeds []string
	for i := range p.each {
		speeds = append(speeds, size(int64(p.each[i].perSecond())))
	}
	return " [" + strings.Join(speeds, ", ") + "]"
}

// line is the progress as a line of text.
func (p *progress) line(now client.Progress) string {
	text := string(now.Stage)
	if amounts := p.amounts(now); amounts != "" {
		text += " " + amounts
	}
	if now.Note != "" {
		text += ": " + now.Note
	}
	return text
}

func (p *progress) amounts(now client.Progress) string {
	if now.Stage == client.Preparing {
		switch {
		case now.Pending == nil:
			return ""
		case now.Pending.PendingReason == "job-running":
			return "the job is still running"
		case now.Pending.Progress >= 0:
			return fmt.Sprintf("%.0f %%", 100*now.Pending.Progress)
		}
		return now.Pending.Status
	}
	var parts []string
	if now.Total > 0 {
		parts = append(parts, fmt.Sprintf("%3.0f %% of %s", 100*float64(now.Done)/float64(now.Total), size(now.Total)))
	} else {
		parts = append(parts, size(now.Done))
	}
	if r := p.rate.perSecond(); r > 0 {
		parts = append(parts, size(int64(r))+"/s")
		if now.Total > now.Done {
			left := time.Duration(float64(now.Total-now.Done)/r) * time.Second
			parts = append(parts, left.String()+" left")
		}
	}
	return strings.Join(parts, ", ")
}

// close ends the display. Nothing is shown afterwards; closing again is fine.
func (p *progress) close() {
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return
	}
	p.closed = true
	bar := p.bar
	p.mu.Unlock()
	if bar != nil {
		bar.Abort(true)
	}
	if p.bars != nil {
		p.bars.Wait()
	}
}

// rate is the speed of the last seconds.
type rate struct {
	at   [16]time.Time
	done [16]int64
	n    int
}

func (r *rate) add(now time.Time, done int64) {
	if r.n > 0 && now.Sub(r.at[(r.n-1)%len(r.at)]) < 500*time.Millisecond {
		return
	}
	r.at[r.n%len(r.at)], r.done[r.n%len(r.at)] = now, done
	r.n++
}

func (r *rate) perSecond() float64 {
	if r.n < 2 {
		return 0
	}
	last, first := (r.n-1)%len(r.at), max(0, r.n-len(r.at))%len(r.at)
	seconds := r.at[last].Sub(r.at[first]).Seconds()
	if seconds <= 0 {
		return 0
	}
	return float64(r.done[last]-r.done[first]) / seconds
}

// size formats a number of bytes for people.
func size(n int64) string {
	const unit = 1000
	if n < unit {
		return fmt.Sprintf("%d B", n)
	}
	value, exponent := float64(n), -1
	for value >= unit && exponent < 5 {
		value /= unit
		exponent++
	}
	return fmt.Sprintf("%.1f %cB", value, "kMGTPE"[exponent])
}

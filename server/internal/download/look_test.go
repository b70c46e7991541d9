package download

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
)

// at makes what a look finds from the number of the look.
func at(n int) sighting { return sighting{Package: Package{Entries: n}} }

func TestLooksAreShared(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		begun := 0
		finish := make(chan struct{})
		l := looks{at: func(context.Context, jobName) (sighting, error) {
			begun++
			n := begun
			<-finish
			return at(n), nil
		}}
		var mu sync.Mutex
		answers := map[string]string{}
		call := func(names ...string) {
			for _, name := range names {
				go func() {
					seen, err := l.do(t.Context(), jobName{"W1", "J1"})
					mu.Lock()
					defer mu.Unlock()
					answers[name] = fmt.Sprint(seen.Entries, err)
				}()
			}
			synctest.Wait()
		}
		call("a")
		call("b", "c")
		call("d")
		if begun != 1 {
			t.Fatalf("%d looks at once", begun)
		}
		finish <- struct{}{}
		synctest.Wait()
		call("e")
		close(finish)
		synctest.Wait()
		// A call never gets what was seen before it came in.
		want := map[string]string{"a": "1 <nil>", "b": "2 <nil>", "c": "2 <nil>", "d": "2 <nil>", "e": "3 <nil>"}
		if fmt.Sprint(answers) != fmt.Sprint(want) {
			t.Errorf("calls got looks %v, want %v", answers, want)
		}
		if len(l.jobs) != 0 {
			t.Errorf("%d jobs are kept", len(l.jobs))
		}
	})
}

func TestLooksOfOtherJobs(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		never := make(chan struct{})
		defer close(never)
		l := looks{at: func(_ context.Context, job jobName) (sighting, error) {
			if job.jobID == "J1" {
				<-never
			}
			return at(7), nil
		}}
		go func() { _, _ = l.do(t.Context(), jobName{"W1", "J1"}) }()
		synctest.Wait()
		seen, err := l.do(t.Context(), jobName{"W1", "J2"})
		if seen.Entries != 7 || err != nil {
			t.Errorf("got %d, %v", seen.Entries, err)
		}
	})
}

func TestLookIsCancelledWithTheLastCall(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		job := jobName{"W1", "J1"}
		ended := make(chan error, 1)
		var looked atomic.Int32
		l := looks{at: func(ctx context.Context, _ jobName) (sighting, error) {
			if looked.Add(1) == 1 {
				<-ctx.Done()
				ended <- ctx.Err()
				return sighting{}, ctx.Err()
			}
			return at(9), nil
		}}
		first, leaveFirst := context.WithCancel(t.Context())
		second, leaveSecond := context.WithCancel(t.Context())
		errs := make(chan error, 2)
		for _, ctx := range []context.Context{first, second} {
			go func() {
				_, err := l.do(ctx, job)
				errs <- err
			}()
			synctest.Wait() // the second waits for the next look
		}
		leaveSecond()
		synctest.Wait()
		if err := <-errs; !errors.Is(err, context.Canceled) || len(ended) != 0 {
			t.Errorf("the second, who left, got %v; %d looks cancelled", err, len(ended))
		}
		leaveFirst()
		synctest.Wait()
		if err := <-errs; !errors.Is(err, context.Canceled) {
			t.Errorf("the first, who left, got %v", err)
		}
		if len(ended) != 1 || looked.Load() != 1 {
			t.Errorf("%d looks of %d cancelled, want the one that nobody waits for, and none after", len(ended), looked.Load())
		}
		seen, err := l.do(t.Context(), job)
		if seen.Entries != 9 || err != nil {
			t.Errorf("got %d, %v", seen.Entries, err)
		}
	})
}

func TestLookGoesOnWithoutTheFirstCall(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		job := jobName{"W1", "J1"}
		busy := make(chan struct{})
		l := looks{at: func(ctx context.Context, _ jobName) (sighting, error) {
			<-busy
			return at(2), ctx.Err()
		}}
		call := func(ctx context.Context) chan string {
			answer := make(chan string, 1)
			go func() {
				seen, err := l.do(ctx, job)
				answer <- fmt.Sprint(seen.Entries, err)
			}()
			synctest.Wait()
			return answer
		}
		call(t.Context())
		first, leave := context.WithCancel(t.Context())
		call(first)
		second := call(t.Context())
		leave()
		synctest.Wait()
		close(busy)
		if got := <-second; got != "2 <nil>" {
			t.Errorf("who stayed got %s", got)
		}
	})
}

func TestLookThatPanics(t *testing.T) {
	t.Parallel()
	w := newWorld()
	w.job = func(string, string) (Job, error) { panic("no such luck") }
	_, err := w.service(t).Download(t.Context(), request)
	if err == nil || !strings.Contains(err.Error(), "no such luck") {
		t.Errorf("got %v", err)
	}
}

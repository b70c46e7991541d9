package transfer_test

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	fault "github.com/downlink-go/downlink/client/internal/faultserver"
	"github.com/downlink-go/downlink/client/internal/transfer"
)

// interrupt fetches about half of the file to the path and cancels then.
func interrupt(t *testing.T, s *fault.Server, path string) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	s.OnSent(s.Sent()+size/2, cancel)
	if err := save(ctx, config(s), s, path); !errors.Is(err, context.Canceled) {
		t.Fatalf("interrupted: %v, want context.Canceled", err)
	}
}

// isFile fails the test unless the file is what it should be and nothing is
// beside it.
func isFile(t *testing.T, path string, want []byte) {
	t.Helper()
	got, err := os.ReadFile(path)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("a file of %d bytes, %v, want another of %d", len(got), err, len(want))
	}
	beside, err := filepath.Glob(path + "?*")
	if err != nil || len(beside) > 0 {
		t.Errorf("left beside the file: %v", beside)
	}
}

// slowly leaves time to interrupt a transfer.
func slowly() fault.Fault { return fault.Slow(64<<10, 5*time.Millisecond) }

func TestResumeAfterCancel(t *testing.T) {
	t.Parallel()
	s := fault.Start(t, first, slowly())
	path := filepath.Join(t.TempDir(), "file")
	interrupt(t, s, path)
	before := s.Sent()
	if err := save(t.Context(), config(s), s, path); err != nil {
		t.Fatal(err)
	}
	isFile(t, path, first)
	if sent := s.Sent() - before; sent > size*3/4 {
		t.Errorf("the second run fetched %d bytes of %d", sent, size)
	}
}

// TestResumeNeverTrusts spoils what is on the disk in different ways. All of the
// content is spoiled too, so any trust in it shows.
func TestResumeNeverTrusts(t *testing.T) {
	t.Parallel()
	journal := func(f func([]byte) []byte) func(*testing.T, *fault.Server, string) {
		return func(t *testing.T, _ *fault.Server, path string) {
			name := path + transfer.JournalSuffix
			data, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(name, f(data), 0o666); err != nil {
				t.Fatal(err)
			}
		}
	}
	replace := func(old, with string) func(*testing.T, *fault.Server, string) {
		return journal(func(b []byte) []byte { return bytes.Replace(b, []byte(old), []byte(with), 1) })
	}
	tests := []struct {
		name  string
		spoil func(t *testing.T, s *fault.Server, path string)
		want  []byte
	}{
		{"journal is empty", journal(func([]byte) []byte { return nil }), first},
		{"journal is cut", journal(func(b []byte) []byte { return b[:len(b)/2] }), first},
		{"journal lacks its checksum", journal(func(b []byte) []byte { return b[:bytes.IndexByte(b, '\n')] }), first},
		{"journal has a bit flipped", journal(func(b []byte) []byte { b[len(b)/2] ^= 1; return b }), first},
		{"journal is edited", replace(`"done":[[`, `"done":[[ `), first},
		{"journal is of something else", journal(func([]byte) []byte { return []byte(`{"done":[[0,4194427]]}`) }), first},
		{"journal of another file", func(t *testing.T, _ *fault.Server, path string) {
			other := fault.Start(t, second, slowly())
			interrupt(t, other, filepath.Join(filepath.Dir(path), "other"))
			if err := os.Rename(filepath.Join(filepath.Dir(path), "other")+transfer.JournalSuffix, path+transfer.JournalSuffix); err != nil {
				t.Fatal(err)
			}
		}, first},
		{"content is shorter", func(t *testing.T, _ *fault.Server, path string) {
			if err := os.Truncate(path+transfer.PartialSuffix, size-1); err != nil {
				t.Fatal(err)
			}
		}, first},
		{"content is longer", func(t *testing.T, _ *fault.Server, path string) {
			if err := os.Truncate(path+transfer.PartialSuffix, size+1); err != nil {
				t.Fatal(err)
			}
		}, first},
		{"content is gone", func(t *testing.T, _ *fault.Server, path string) {
			if err := os.Remove(path + transfer.PartialSuffix); err != nil {
				t.Fatal(err)
			}
		}, first},
		{"journal is gone", func(t *testing.T, _ *fault.Server, path string) {
			if err := os.Remove(path + transfer.JournalSuffix); err != nil {
				t.Fatal(err)
			}
		}, first},
		{"replaced meanwhile", func(_ *testing.T, s *fault.Server, _ string) { s.Replace(second) }, second},
		{"replaced by a shorter one meanwhile", func(_ *testing.T, s *fault.Server, _ string) { s.Replace(third) }, third},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			s := fault.Start(t, first, slowly())
			path := filepath.Join(t.TempDir(), "file")
			interrupt(t, s, path)
			if err := os.WriteFile(path+transfer.PartialSuffix, make([]byte, size), 0o666); err != nil {
				t.Fatal(err)
			}
			test.spoil(t, s, path)
			if err := save(t.Context(), config(s), s, path); err != nil {
				t.Fatal(err)
			}
			isFile(t, path, test.want)
		})
	}
}

func TestResumeNeedsAStrongETag(t *testing.T) {
	t.Parallel()
	for name, f := range map[string]fault.Fault{"weak": fault.WeakETag(), "none": fault.Fields("ETag", "")} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := fault.Start(t, first, f, slowly())
			path := filepath.Join(t.TempDir(), "file")
			interrupt(t, s, path)
			if _, err := os.Stat(path + transfer.JournalSuffix); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("the journal of a version that cannot be told: %v", err)
			}
			if err := save(t.Context(), config(s), s, path); err != nil {
				t.Fatal(err)
			}
			isFile(t, path, first)
		})
	}
}

func TestDroppedIsTold(t *testing.T) {
	t.Parallel()
	s := fault.Start(t, first, slowly())
	path := filepath.Join(t.TempDir(), "file")
	interrupt(t, s, path)
	for _, test := range []struct {
		id      string
		dropped bool
	}{{fault.ID, false}, {"another", true}} {
		r, err := transfer.Open(t.Context(), config(s), location(s))
		if err != nil {
			t.Fatal(err)
		}
		p, err := transfer.OpenPartial(path, test.id, r.Version())
		if err != nil {
			t.Fatal(err)
		}
		if p.Dropped() != test.dropped || (p.Done() == 0) != test.dropped {
			t.Errorf("id %s: dropped %v with %d bytes done, want %v", test.id, p.Dropped(), p.Done(), test.dropped)
		}
		if _, err := transfer.OpenPartial(path, test.id, r.Version()); !errors.Is(err, transfer.ErrBusy) {
			t.Errorf("a second writer: %v, want ErrBusy", err)
		}
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	}
}

// TestResumeAfterKill kills a process that fetches the file, several times, as
// soon as it has written something down.
func TestResumeAfterKill(t *testing.T) {
	t.Parallel()
	file := content(4, 24<<20)
	s := fault.Start(t, file, fault.Slow(32<<10, 10*time.Millisecond))
	path := filepath.Join(t.TempDir(), "file")
	lastJournal := ""
	for range 2 {
		child := exec.CommandContext(t.Context(), os.Args[0])
		child.Env = append(os.Environ(), childURL+"="+s.URL(), childPath+"="+path)
		var output strings.Builder
		child.Stderr = &output
		if err := child.Start(); err != nil {
			t.Fatal(err)
		}
		ended := make(chan error, 1)
		go func() { ended <- child.Wait() }()
		for poll := time.NewTicker(10 * time.Millisecond); ; {
			<-poll.C
			journal, err := os.ReadFile(path + transfer.JournalSuffix)
			if err == nil && string(journal) != lastJournal {
				lastJournal = string(journal)
				poll.Stop()
				break
			}
			select {
			case err := <-ended:
				t.Fatalf("the child ended before it was killed: %v %s", err, &output)
			default:
			}
		}
		if err := child.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		if err := <-ended; err == nil {
			t.Fatal("the child ended well although it was killed")
		}
	}
	before := s.Sent()
	if err := save(t.Context(), config(s), s, path); err != nil {
		t.Fatal(err)
	}
	isFile(t, path, file)
	if sent := s.Sent() - before; sent > int64(len(file))*3/4 {
		t.Errorf("after two kills %d bytes of %d were fetched again", sent, len(file))
	}
}

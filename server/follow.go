package server

import (
	"context"
	"os"
	"time"
)

// filePoll is how often files are looked at that a running server follows.
const filePoll = 2 * time.Second

// followed notices changes of files: of those behind a symbolic link too, which
// is how secrets are mounted into containers.
type followed struct {
	paths []string
	seen  []os.FileInfo // nil for one that was not there
}

// follow takes the files as they are. Call it before they are read for the first
// time, so that no change is missed.
func follow(paths ...string) *followed {
	f := &followed{paths: paths, seen: make([]os.FileInfo, len(paths))}
	f.changed()
	return f
}

// changed reports whether there is a file that is not the one it was at the last
// call. One that is gone does not count: it may be on its way.
func (f *followed) changed() bool {
	changed := false
	for i, path := range f.paths {
		now, err := os.Stat(path)
		if err != nil {
			continue
		}
		before := f.seen[i]
		if before == nil || !os.SameFile(before, now) || !now.ModTime().Equal(before.ModTime()) || now.Size() != before.Size() {
			f.seen[i], changed = now, true
		}
	}
	return changed
}

// run calls reload after every change until the context ends.
func (f *followed) run(ctx context.Context, reload func()) {
	ticker := time.NewTicker(filePoll)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			if f.changed() {
				reload()
			}
		}
	}
}

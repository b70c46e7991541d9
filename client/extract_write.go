package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/downlink-go/downlink/client/internal/transfer"
)

// How the files are fetched: neighbours in one request, large files in parts.
const (
	groupBytes = 8 << 20
	partBytes  = 32 << 20
	// groupGap is what is fetched for nothing rather than sending another request.
	groupGap = 64 << 10
	// syncers is how many small files are open and brought to disk at a time: one
	// by one, each would wait for the disk.
	syncers = 32
)

// group is a run of files that are fetched in one request.
type group []*entry

// part is a piece of a large file.
type part struct {
	file   *largeFile
	number int
}

// tasks cuts the files into what one worker does at a time, in order of their
// place in the package.
func (p *plan) tasks() (groups []func(context.Context, *writer) error) {
	var run group
	flush := func() {
		if len(run) > 0 {
			groups = append(groups, run.write)
		}
		run = nil
	}
	for _, e := range p.files {
		if e.method == methodStored && e.size > partBytes {
			flush()
			f := &largeFile{entry: e, sums: make([]uint32, (e.size+partBytes-1)/partBytes)}
			f.left.Store(int32(len(f.sums)))
			for i := range f.sums {
				groups = append(groups, part{f, i}.write)
			}
			continue
		}
		if n := len(run); n > 0 && (e.limit-run[0].offset > groupBytes || e.offset-run[n-1].limit > groupGap) {
			flush()
		}
		run = append(run, e)
	}
	flush()
	return groups
}

// run writes the files.
func (p *plan) run(ctx context.Context, o *extractOptions) error {
	if p.root == nil {
		if err := os.MkdirAll(p.dir, 0o777); err != nil {
			return err
		}
		root, err := os.OpenRoot(p.dir)
		if err != nil {
			return err
		}
		p.root = root
	}
	for _, dir := range p.dirs {
		if err := p.root.Mkdir(dir, 0o777); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	folders := append([]string{"."}, p.dirs...)
	for _, dir := range folders {
		if err := removeLeftovers(p.root, dir); err != nil {
			return err
		}
	}
	w := &writer{root: p.root, src: p.src, meter: &meter{tell: o.progress, now: Progress{Stage: Downloading, Total: p.bytes}}}
	defer w.cleanUp()
	tasks := p.tasks()
	err := inParallel(ctx, o.connections, len(tasks), func(ctx context.Context, i int) error { return tasks[i](ctx, w) })
	if err != nil {
		var found problems
		return errors.Join(found.take(err), found.err())
	}
	return inParallel(ctx, syncers, len(folders), func(_ context.Context, i int) error {
		return transfer.SyncDir(filepath.Join(p.dir, folders[i]))
	})
}

// tempPrefix and tempSuffix make the names of files that are not whole yet.
const (
	tempPrefix = ".downlink-"
	tempSuffix = ".part"
)

// removeLeftovers removes what an earlier run had no chance to.
func removeLeftovers(root *os.Root, dir string) error {
	f, err := root.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	for {
		names, err := f.Readdirnames(1024)
		for _, name := range names {
			if strings.HasPrefix(name, tempPrefix) && strings.HasSuffix(name, tempSuffix) {
				if err := root.Remove(path.Join(dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
					return err
				}
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// writer writes files so that they appear whole.
type writer struct {
	root  *os.Root
	src   source
	meter *meter

	mu    sync.Mutex
	temps map[*tempFile]struct{} // not under their name yet
}

// tempFile is a file on its way to its name.
type tempFile struct {
	*os.File
	w     *writer
	entry *entry
	name  string
}

// create opens a new file beside the entry's.
func (w *writer) create(e *entry) (*tempFile, error) {
	name := path.Join(path.Dir(e.name), fmt.Sprintf("%s%016x%s", tempPrefix, rand.Uint64(), tempSuffix))
	f, err := w.root.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o666)
	if err != nil {
		return nil, err
	}
	t := &tempFile{File: f, w: w, entry: e, name: name}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.temps == nil {
		w.temps = map[*tempFile]struct{}{}
	}
	w.temps[t] = struct{}{}
	return t, nil
}

// commit brings the file to disk and gives it its name.
func (t *tempFile) commit() error {
	if err := t.Sync(); err != nil {
		return err
	}
	if err := t.Close(); err != nil {
		return err
	}
	modified := time.Unix(t.entry.modified, 0)
	if err := t.w.root.Chtimes(t.name, modified, modified); err != nil {
		return err
	}
	if err := t.w.root.Rename(t.name, t.entry.name); err != nil {
		return err
	}
	t.w.mu.Lock()
	defer t.w.mu.Unlock()
	delete(t.w.temps, t)
	return nil
}

// cleanUp removes the files that were not committed.
func (w *writer) cleanUp() {
	for t := range w.temps {
		t.Close()
		_ = w.root.Remove(t.name)
	}
}

// write fetches the files of the group, checks each, and commits them together.
func (g group) write(ctx context.Context, w *writer) error {
	start := g[0].offset
	body, err := w.src.ReadRange(ctx, start, g[len(g)-1].limit-start)
	if err != nil {
		return err
	}
	defer body.Close()
	at := &positionReader{r: body, pos: start}
	for some := range slices.Chunk(g, syncers) {
		files := make([]*tempFile, len(some))
		for i, e := range some {
			if _, err := io.CopyN(io.Discard, at, e.offset-at.pos); err != nil {
				return noEOF(err)
			}
			if files[i], err = w.create(e); err != nil {
				return err
			}
			if err := e.copyContent(ctx, io.MultiWriter(files[i], w.meter), at); err != nil {
				return err
			}
		}
		err := inParallel(ctx, len(files), len(files), func(_ context.Context, i int) error { return files[i].commit() })
		if err != nil {
			return err
		}
	}
	return nil
}

// positionReader knows where in the package it is.
type positionReader struct {
	r   io.Reader
	pos int64
}

func (p *positionReader) Read(b []byte) (int, error) {
	n, err := p.r.Read(b)
	p.pos += int64(n)
	return n, err
}

// largeFile is a stored file that several workers write.
type largeFile struct {
	entry *entry
	sums  []uint32 // of each part
	left  atomic.Int32

	once sync.Once
	err  error
	temp *tempFile
	data int64 // where the content is in the package
}

// open finds the content and creates the file, once.
func (f *largeFile) open(ctx context.Context, w *writer) error {
	f.once.Do(func() {
		if f.data, f.err = findData(ctx, w.src, f.entry); f.err == nil {
			f.temp, f.err = w.create(f.entry)
		}
	})
	return f.err
}

func (p part) write(ctx context.Context, w *writer) error {
	f := p.file
	if err := f.open(ctx, w); err != nil {
		return err
	}
	off := int64(p.number) * partBytes
	n := min(partBytes, f.entry.size-off)
	body, err := w.src.ReadRange(ctx, f.data+off, n)
	if err != nil {
		return err
	}
	defer body.Close()
	sums := &checksums{}
	if err := copyAll(ctx, io.MultiWriter(sums, io.NewOffsetWriter(f.temp, off), w.meter), &exactReader{r: body, left: n}); err != nil {
		return err
	}
	f.sums[p.number] = sums.crc
	if f.left.Add(-1) > 0 {
		return nil
	}
	return f.finish(ctx)
}

// finish checks the whole file, which the last of its parts is in, and commits it.
func (f *largeFile) finish(ctx context.Context) error {
	e := f.entry
	sums := &checksums{size: e.size, crc: combineParts(f.sums, partBytes, e.size)}
	if e.sha256 != nil {
		// SHA-256 goes from start to end: over what was written, from memory.
		sums = newChecksums(e)
		if err := copyAll(ctx, sums, io.NewSectionReader(f.temp, 0, e.size)); err != nil {
			return err
		}
	}
	if err := sums.check(e); err != nil {
		return err
	}
	return f.temp.commit()
}

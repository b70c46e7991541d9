package client

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"io/fs"
	"math"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"sync/atomic"

	"github.com/downlink-go/downlink/client/internal/transfer"
)

// countingSource counts the bytes that are fetched.
type countingSource struct {
	source
	n atomic.Int64
}

func (s *countingSource) ReadRange(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	body, err := s.source.ReadRange(ctx, off, n)
	if err != nil {
		return nil, err
	}
	return &countingBody{body, &s.n}, nil
}

type countingBody struct {
	io.ReadCloser
	n *atomic.Int64
}

func (b *countingBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.n.Add(int64(n))
	return n, err
}

// plan is what is to be written into a folder.
type plan struct {
	src   source
	dir   string
	root  *os.Root // nil as long as the folder does not exist
	dirs  []string // that must exist, parents first
	files []*entry // in order of their place in the package
	bytes int64    // of the files
	kept  int
}

func (p *plan) close() {
	if p.root != nil {
		p.root.Close()
	}
}

// newPlan finds what is to be written and checks all of it that can be checked
// without writing.
func newPlan(ctx context.Context, src source, d *directory, dir string, o *extractOptions) (*plan, error) {
	var found problems
	ours, err := describe(ctx, src, d, &found)
	if err == nil {
		err = found.err()
	}
	if err != nil {
		return nil, err
	}
	p := &plan{src: src, dir: dir}
	if err := p.choose(d, func(name string) bool {
		// The manifest goes along: what is extracted is verified by it later.
		return ours && name == manifestName || o.filter.takes(name)
	}); err != nil {
		return nil, err
	}
	root, err := os.OpenRoot(dir)
	switch {
	case err == nil:
		p.root = root
		err = p.compare(ctx, o)
	case errors.Is(err, fs.ErrNotExist):
		err = nil
	}
	if err == nil {
		err = p.checkSpace()
	}
	if err != nil {
		p.close()
		return nil, err
	}
	return p, nil
}

// choose selects the files and checks their names.
func (p *plan) choose(d *directory, wanted func(string) bool) error {
	claimed := claims{seed: maphash.MakeSeed(), names: map[uint64]string{}}
	for i := range d.entries {
		e := &d.entries[i]
		if !wanted(e.name) {
			continue
		}
		if err := checkFileName(e.name, runtime.GOOS == "windows"); err != nil {
			return err
		}
		if e.unsupported != "" {
			return &FormatError{Name: e.name, Reason: e.unsupported}
		}
		folder := path.Dir(e.name)
		if e.isDir {
			folder = e.name
		} else {
			if e.size > math.MaxInt64/2-p.bytes {
				return &FormatError{Reason: "its files together have a size that no disk has"}
			}
			p.bytes += e.size
			p.files = append(p.files, e)
			if err := claimed.add(e.name); err != nil {
				return err
			}
		}
		if err := p.addFolders(&claimed, folder); err != nil {
			return err
		}
	}
	slices.Sort(p.dirs)
	slices.SortFunc(p.files, func(a, b *entry) int { return int(max(-1, min(1, a.offset-b.offset))) })
	return nil
}

// addFolders adds a folder and those that it is in, once each.
func (p *plan) addFolders(claimed *claims, folder string) error {
	for ; folder != "." && !claimed.has(folder); folder = path.Dir(folder) {
		if err := claimed.add(folder); err != nil {
			return err
		}
		p.dirs = append(p.dirs, folder)
	}
	return nil
}

// claims has the names that are taken, by a hash of what they are where case
// makes no difference: there may be many.
type claims struct {
	seed  maphash.Seed
	names map[uint64]string
}

func (c *claims) has(name string) bool {
	return c.names[maphash.String(c.seed, foldName(name))] == name
}

// add refuses a name that would overwrite another one.
func (c *claims) add(name string) error {
	folded := foldName(name)
	key := maphash.String(c.seed, folded)
	if other, ok := c.names[key]; ok && foldName(other) == folded {
		return &FormatError{Name: name, Reason: fmt.Sprintf("differs from %q in case alone", other)}
	}
	c.names[key] = name
	return nil
}

// compare looks at what is in the folder already: files that are right need not
// be written, and nothing else than files and folders may be in the way.
func (p *plan) compare(ctx context.Context, o *extractOptions) error {
	for _, dir := range p.dirs {
		info, err := p.root.Stat(dir) // fails for a link that leads out
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err == nil && !info.IsDir() {
			return &fs.PathError{Op: "extract", Path: filepath.Join(p.dir, dir), Err: errors.New("not a directory")}
		}
	}
	m := &meter{tell: o.progress, now: Progress{Stage: Verifying, Total: p.bytes}}
	right := make([]bool, len(p.files))
	err := inParallel(ctx, runtime.NumCPU(), len(p.files), func(ctx context.Context, i int) error {
		e := p.files[i]
		if info, err := p.root.Lstat(e.name); err == nil && info.IsDir() {
			return &fs.PathError{Op: "extract", Path: filepath.Join(p.dir, e.name), Err: errors.New("is a directory")}
		}
		err := e.checkFile(ctx, p.root, m)
		right[i] = err == nil
		_, wrong := errors.AsType[Problem](err)
		if wrong || errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	})
	if err != nil {
		return err
	}
	todo := p.files[:0]
	for i, e := range p.files {
		if right[i] {
			p.kept++
			p.bytes -= e.size
		} else {
			todo = append(todo, e)
		}
	}
	p.files = todo
	return nil
}

// blockSize is what a file takes a multiple of on most disks.
const blockSize = 4 << 10

// checkSpace compares what is to be written with what there is room for.
func (p *plan) checkSpace() error {
	need := p.bytes + int64(len(p.files)+len(p.dirs))*blockSize
	existing, err := filepath.Abs(p.dir)
	if err != nil {
		return err
	}
	for {
		if _, err := os.Stat(existing); !errors.Is(err, fs.ErrNotExist) || existing == filepath.Dir(existing) {
			break
		}
		existing = filepath.Dir(existing)
	}
	if err := transfer.CheckRoom(existing, need); err != nil {
		return &SpaceError{Dir: existing, Need: need, Err: err}
	}
	return nil
}

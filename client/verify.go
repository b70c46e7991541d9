package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
)

// Problem is one thing that is wrong with a file of a package.
type Problem struct {
	Name   string // its path in the package
	Reason string
}

// Error returns one line for people.
func (p Problem) Error() string { return fmt.Sprintf("%q %s", p.Name, p.Reason) }

// VerifyError says that a package, or a file of it, is not what it should be.
type VerifyError struct {
	// Problems has what was found, in order of the names; 100 at most.
	Problems []Problem
	// Total is how many problems there are.
	Total int
}

// Error names the first problem, and how many more there are.
func (e *VerifyError) Error() string {
	s := "verification failed"
	if len(e.Problems) > 0 {
		s += ": " + e.Problems[0].Error()
	}
	if e.Total > 1 {
		s += fmt.Sprintf(", and %d more", e.Total-1)
	}
	return s
}

// problems collects what is wrong. It is safe for concurrent use.
type problems struct {
	mu    sync.Mutex
	list  []Problem
	total int
}

const maxProblems = 100

func (p *problems) add(name, reason string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.total++
	if len(p.list) < maxProblems {
		p.list = append(p.list, Problem{Name: name, Reason: reason})
	}
}

func (p *problems) merge(other *problems) {
	for _, one := range other.list {
		p.add(one.Name, one.Reason)
	}
	p.total += other.total - len(other.list)
}

// take keeps the error if it is of one file, and returns any other.
func (p *problems) take(err error) error {
	if one, ok := errors.AsType[Problem](err); ok {
		p.add(one.Name, one.Reason)
		return nil
	}
	if one, ok := errors.AsType[*FormatError](err); ok && one.Name != "" {
		p.add(one.Name, one.Reason)
		return nil
	}
	return err
}

// err returns a [*VerifyError] if there are problems.
func (p *problems) err() error {
	if p.total == 0 {
		return nil
	}
	slices.SortStableFunc(p.list, func(a, b Problem) int { return strings.Compare(a.Name, b.Name) })
	return &VerifyError{Problems: p.list, Total: p.total}
}

// Report is what was verified.
type Report struct {
	// Files that are right, and their Bytes.
	Files int
	Bytes int64
	// Manifest is true if there was one to compare with. Without it a package is
	// checked against its own directory alone, which has no SHA-256.
	Manifest bool
}

func newVerifyOptions(opts []VerifyOption) (*verifyOptions, error) {
	o := &verifyOptions{progress: ignoreProgress}
	if err := applyAll(opts, VerifyOption.applyToVerify, o); err != nil {
		return nil, err
	}
	return o, nil
}

// VerifyFile checks a package that is a file: the size and CRC-32 of every
// entry, its SHA-256 where the manifest has it, and that manifest and directory
// list the same files. With a filter it checks the files that this takes. It uses
// all processors.
//
// Files that are wrong are a [*VerifyError], something that is no ZIP or not an
// honest one is a [*FormatError].
func VerifyFile(ctx context.Context, name string, opts ...VerifyOption) (*Report, error) {
	o, err := newVerifyOptions(opts)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	return verifyPackage(ctx, localSource{f, info.Size()}, o)
}

// localSource is a package that is a file.
type localSource struct {
	file *os.File
	size int64
}

func (s localSource) Size() int64 { return s.size }

// ReadRange reads at any number of places at a time.
func (s localSource) ReadRange(_ context.Context, off, n int64) (io.ReadCloser, error) {
	return io.NopCloser(io.NewSectionReader(s.file, off, n)), nil
}

// verifyParts is the size from which a file is checked by several workers, and
// that of the parts they take.
const verifyParts = 64 << 20

func verifyPackage(ctx context.Context, src source, o *verifyOptions) (*Report, error) {
	d, err := readDirectory(ctx, src)
	if err != nil {
		return nil, err
	}
	var found problems
	report := &Report{}
	checked := d.manifest()
	report.Manifest, err = describe(ctx, src, d, &found)
	if err != nil {
		return nil, err
	}
	m := &meter{tell: o.progress, now: Progress{Stage: Verifying}}
	var large, small []*entry
	for i := range d.entries {
		e := &d.entries[i]
		switch {
		case e.isDir, !o.filter.takes(e.name):
			continue
		case e.unsupported != "":
			found.add(e.name, e.unsupported)
			continue
		case e == checked:
		case e.method == methodStored && e.sha256 == nil && e.size > verifyParts:
			large = append(large, e)
		default:
			small = append(small, e)
		}
		report.Files++
		report.Bytes += e.size
	}
	m.now.Total = report.Bytes
	if checked != nil && o.filter.takes(checked.name) {
		m.add(checked.size)
	}
	for _, e := range large {
		if err := found.take(verifyInParts(ctx, src, e, m)); err != nil {
			return nil, err
		}
	}
	// The largest first: what is left for the end is then small.
	slices.SortFunc(small, func(a, b *entry) int { return int(min(1, max(-1, b.size-a.size))) })
	err = inParallel(ctx, runtime.NumCPU(), len(small), func(ctx context.Context, i int) error {
		e := small[i]
		r, err := src.ReadRange(ctx, e.offset, e.limit-e.offset)
		if err != nil {
			return err
		}
		defer r.Close()
		return found.take(e.copyContent(ctx, m, r))
	})
	if err != nil {
		return nil, err
	}
	if err := found.err(); err != nil {
		return nil, err
	}
	return report, nil
}

// verifyInParts checks one stored file with all processors.
func verifyInParts(ctx context.Context, src source, e *entry, m *meter) error {
	data, err := findData(ctx, src, e)
	if err != nil {
		return err
	}
	sums := make([]uint32, (e.size+verifyParts-1)/verifyParts)
	err = inParallel(ctx, runtime.NumCPU(), len(sums), func(ctx context.Context, i int) error {
		off := int64(i) * verifyParts
		n := min(verifyParts, e.size-off)
		r, err := src.ReadRange(ctx, data+off, n)
		if err != nil {
			return err
		}
		defer r.Close()
		part := &checksums{}
		if err := copyAll(ctx, io.MultiWriter(part, m), &exactReader{r: r, left: n}); err != nil {
			return err
		}
		sums[i] = part.crc
		return nil
	})
	if err != nil {
		return err
	}
	return (&checksums{size: e.size, crc: combineParts(sums, verifyParts, e.size)}).check(e)
}

// copyContent copies and checks the content of an entry, of which r has the
// local header and what comes after it.
func (e *entry) copyContent(ctx context.Context, dst io.Writer, r io.Reader) error {
	content, err := e.content(r)
	if err != nil {
		return err
	}
	return copyAll(ctx, dst, content)
}

// copyAll copies in large steps, until the context ends.
func copyAll(ctx context.Context, dst io.Writer, src io.Reader) error {
	buf := buffers.Get().(*[]byte)
	defer buffers.Put(buf)
	for {
		n, err := src.Read(*buf)
		if n > 0 {
			if _, err := dst.Write((*buf)[:n]); err != nil {
				return err
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if err := context.Cause(ctx); err != nil {
			return err
		}
	}
}

// ErrNoManifest is what [VerifyDir] returns for a folder without the manifest of
// a package: nothing says what should be there.
var ErrNoManifest = errors.New("there is no manifest.json of a package")

// VerifyDir checks a folder to which a package was extracted against the
// manifest.json in it: that every file is there, its size, CRC-32 and SHA-256,
// as far as the manifest has them. Give it the filter that was extracted with:
// what that leaves out need not be there. Other files are not looked at. It uses
// all processors.
//
// Files that are wrong or missing are a [*VerifyError]; without a manifest the
// error is [ErrNoManifest]. The manifest itself is taken as it is.
func VerifyDir(ctx context.Context, dir string, opts ...VerifyOption) (*Report, error) {
	o, err := newVerifyOptions(opts)
	if err != nil {
		return nil, err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	entries, err := readManifestFile(root)
	if err != nil {
		return nil, err
	}
	entries = slices.DeleteFunc(entries, func(e entry) bool { return !o.filter.takes(e.name) })
	report := &Report{Files: len(entries), Manifest: true}
	for i := range entries {
		report.Bytes += entries[i].size
	}
	m := &meter{tell: o.progress, now: Progress{Stage: Verifying, Total: report.Bytes}}
	var found problems
	err = inParallel(ctx, runtime.NumCPU(), len(entries), func(ctx context.Context, i int) error {
		err := entries[i].checkFile(ctx, root, m)
		if errors.Is(err, fs.ErrNotExist) {
			err = Problem{Name: entries[i].name, Reason: "is missing"}
		}
		return found.take(err)
	})
	if err != nil {
		return nil, err
	}
	if err := found.err(); err != nil {
		return nil, err
	}
	return report, nil
}

// readManifestFile returns what the manifest of a folder lists.
func readManifestFile(root *os.Root) ([]entry, error) {
	f, err := root.Open(manifestName)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("verify %s: %w", root.Name(), ErrNoManifest)
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var entries []entry
	var invalid error
	ours, err := readManifest(f, func(m *manifestEntry) error {
		crc, hasCRC, sha, err := m.sums()
		if err == nil && !hasCRC {
			err = errors.New("has no CRC-32 in the manifest")
		}
		if err != nil {
			invalid = &VerifyError{Problems: []Problem{{Name: m.Path, Reason: err.Error()}}, Total: 1}
		}
		if invalid == nil {
			invalid = checkName(m.Path)
		}
		entries = append(entries, entry{name: m.Path, size: m.Size, crc: crc, sha256: sha})
		return nil
	})
	switch {
	case err != nil:
		return nil, err
	case !ours:
		return nil, fmt.Errorf("verify %s: %w", root.Name(), ErrNoManifest)
	}
	return entries, invalid
}

// checkFile compares a file with the entry. What is wrong with it is a
// [Problem]; a file that is not there is fs.ErrNotExist. It follows no link: a
// file that was extracted is none.
func (e *entry) checkFile(ctx context.Context, root *os.Root, w io.Writer) error {
	info, err := root.Lstat(e.name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return err
	case err != nil:
		return Problem{Name: e.name, Reason: "cannot be read: " + err.Error()}
	case !info.Mode().IsRegular():
		return Problem{Name: e.name, Reason: "is not a regular file"}
	case info.Size() != e.size:
		return Problem{Name: e.name, Reason: fmt.Sprintf("has %d bytes, not %d", info.Size(), e.size)}
	}
	f, err := root.Open(e.name)
	if err != nil {
		return err
	}
	defer f.Close()
	sums := newChecksums(e)
	if err := copyAll(ctx, io.MultiWriter(sums, w), f); err != nil {
		return err
	}
	return sums.check(e)
}

package client

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"iter"
	"path"
	"slices"
	"strings"
	"time"
)

// Package is a package that is read where it is, by range, without downloading
// it. It is a file system for io/fs: listing it needs no more requests, and
// reading a file fetches what is read.
//
// A file that is read from start to end is checked against its CRC-32; the last
// Read returns a [Problem] instead of io.EOF if it is wrong. Files that are
// stored, as all of downlinkd are, are an io.Seeker and an io.ReaderAt too. What
// these read from the middle of a file cannot be checked. Each ReadAt is one
// request, so reading in large steps is faster; calls of it may be concurrent.
//
// A Package is safe for concurrent use, a file of it is not but for ReadAt.
type Package struct {
	id     string
	src    source
	dir    *directory
	ctx    context.Context // of Open: the methods of io/fs have none of their own
	cancel context.CancelCauseFunc
}

var (
	_ fs.ReadDirFS  = (*Package)(nil)
	_ fs.StatFS     = (*Package)(nil)
	_ fs.ReadFileFS = (*Package)(nil)
)

// Entry is a file of a package.
type Entry struct {
	Name           string // its path in the package
	Size           int64
	CompressedSize int64 // equal to Size if the file is stored
	Modified       time.Time
	CRC32          uint32
}

// openPackage reads the directory of the package.
func openPackage(ctx context.Context, id string, src source) (*Package, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	dir, err := readDirectory(ctx, src)
	if err != nil {
		cancel(nil)
		return nil, err
	}
	return &Package{id: id, src: src, dir: dir, ctx: ctx, cancel: cancel}, nil
}

// ID returns the ID of the package: the same assets, the same ID.
func (p *Package) ID() string { return p.id }

// Size returns the size of the package as a ZIP.
func (p *Package) Size() int64 { return p.src.Size() }

// Close ends all requests. Files of the package cannot be read any more.
func (p *Package) Close() error {
	p.cancel(fs.ErrClosed)
	return nil
}

// Entries returns the files in byte order of their names.
func (p *Package) Entries() iter.Seq[Entry] {
	return func(yield func(Entry) bool) {
		for i := range p.dir.entries {
			e := &p.dir.entries[i]
			if !e.isDir && !yield(Entry{Name: e.name, Size: e.size, CompressedSize: e.packed, Modified: time.Unix(e.modified, 0).UTC(), CRC32: e.crc}) {
				return
			}
		}
	}
}

// Open opens a file or a folder. It sends no request.
func (p *Package) Open(name string) (fs.File, error) {
	n, err := p.lookup("open", name)
	switch {
	case err != nil:
		return nil, err
	case n.IsDir():
		return &openDir{pkg: p, name: name, node: n}, nil
	case n.entry.unsupported != "":
		return nil, &fs.PathError{Op: "open", Path: name, Err: &FormatError{Name: name, Reason: n.entry.unsupported}}
	case n.entry.method == methodStored:
		return &storedFile{openFile: openFile{pkg: p, name: name, node: n}}, nil
	}
	return &openFile{pkg: p, name: name, node: n}, nil
}

// Stat returns what is known of a file or a folder. It sends no request.
func (p *Package) Stat(name string) (fs.FileInfo, error) {
	n, err := p.lookup("stat", name)
	if err != nil {
		return nil, err
	}
	return n, nil
}

// ReadFile reads and checks a file in one request.
func (p *Package) ReadFile(name string) ([]byte, error) {
	f, err := p.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	// It grows with what comes: what an entry says of its size is only a claim.
	var b bytes.Buffer
	_, err = b.ReadFrom(f)
	return b.Bytes(), err
}

// ReadDir lists a folder in byte order of the names. It sends no request.
func (p *Package) ReadDir(name string) ([]fs.DirEntry, error) {
	n, err := p.lookup("readdir", name)
	if err != nil {
		return nil, err
	}
	if !n.IsDir() {
		return nil, &fs.PathError{Op: "readdir", Path: name, Err: errors.New("not a directory")}
	}
	return p.list(name), nil
}

// lookup finds a file, or a folder, which need not have an entry of its own.
func (p *Package) lookup(op, name string) (node, error) {
	if !fs.ValidPath(name) {
		return node{}, &fs.PathError{Op: op, Path: name, Err: fs.ErrInvalid}
	}
	e := p.dir.find(name)
	if e == nil && name != "." && !p.dir.hasPrefix(name+"/") {
		return node{}, &fs.PathError{Op: op, Path: name, Err: fs.ErrNotExist}
	}
	return node{name: path.Base(name), entry: e}, nil
}

// list finds the children of a folder: a run of entries, in which each folder is
// a run again, that is passed over.
func (p *Package) list(dir string) []fs.DirEntry {
	prefix := dir + "/"
	if dir == "." {
		prefix = ""
	}
	var out []fs.DirEntry
	entries := p.dir.entries
	for i := p.dir.from(prefix); i < len(entries) && strings.HasPrefix(entries[i].name, prefix); {
		child, _, nested := strings.Cut(entries[i].name[len(prefix):], "/")
		if !nested {
			out = append(out, node{name: child, entry: &entries[i]})
			i++
			continue
		}
		if p.dir.find(prefix+child) == nil {
			out = append(out, node{name: child})
		}
		i = p.dir.from(prefix + child + "0") // what follows the slash in ASCII
	}
	slices.SortFunc(out, func(a, b fs.DirEntry) int { return strings.Compare(a.Name(), b.Name()) })
	return out
}

// node is a file or a folder, as io/fs describes it.
type node struct {
	name  string
	entry *entry // nil for a folder that has no entry of its own
}

func (n node) Name() string               { return n.name }
func (n node) IsDir() bool                { return n.entry == nil || n.entry.isDir }
func (n node) Type() fs.FileMode          { return n.Mode().Type() }
func (n node) Info() (fs.FileInfo, error) { return n, nil }
func (n node) Sys() any                   { return nil }
func (n node) String() string             { return fs.FormatDirEntry(n) }

func (n node) Mode() fs.FileMode {
	if n.IsDir() {
		return fs.ModeDir | 0o555
	}
	return 0o444
}

func (n node) Size() int64 {
	if n.IsDir() {
		return 0
	}
	return n.entry.size
}

func (n node) ModTime() time.Time {
	if n.entry == nil {
		return time.Time{}
	}
	return time.Unix(n.entry.modified, 0).UTC()
}

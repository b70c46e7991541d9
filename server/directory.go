package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/downlink-go/downlink/server/internal/download"
)

// directory is an open folder, for [mount]: keys are paths below it. Nothing is
// ever written there.
//
// It reads the file system itself. gocloud.dev/blob/fileblob passes over folders
// that it cannot read and files that end in .attrs, follows links to anywhere,
// walks the tree again for every page, and does not hand out the file that
// sendfile(2) needs.
type directory struct {
	// root refuses paths and symbolic links that leave the folder.
	root *os.Root
	dir  *os.File // the folder itself
	info fs.FileInfo
}

func openDirectory(path string) (*directory, error) {
	root, err := os.OpenRoot(path)
	if err != nil {
		return nil, err
	}
	dir, err := root.Open(".")
	if err != nil {
		_ = root.Close() // only read
		return nil, err
	}
	info, err := dir.Stat()
	if err != nil {
		return nil, errors.Join(err, dir.Close(), root.Close())
	}
	return &directory{root: root, dir: dir, info: info}, nil
}

// open opens a file for reading.
func (d *directory) open(key string) (*os.File, error) {
	return openBelow(d.root, d.dir, filepath.FromSlash(key))
}

// List implements bucket. Symbolic links to files within the folder are assets,
// others are findings.
func (d *directory) List(ctx context.Context, prefix string) ([]Object, []download.Detail, error) {
	// For each folder there is a system call for each of its files: all CPUs take
	// part in a tree of many.
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(runtime.NumCPU())
	var l listing
	err := l.walk(ctx, d, g, prefix)
	if waitErr := g.Wait(); err == nil {
		err = waitErr
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, nil
	}
	// In the order of their keys, or nearly so where a folder has both files and
	// folders: it does not take long to sort what is sorted.
	slices.SortFunc(l.folders, func(a, b []Object) int { return strings.Compare(a[0].Key, b[0].Key) })
	return slices.Concat(l.folders...), l.findings, err
}

// listing is what a walk has found. The lock is for adding to it.
type listing struct {
	mu       sync.Mutex
	folders  [][]Object // none is empty, and each is sorted
	findings []download.Detail
}

func (l *listing) add(objects []Object, findings []download.Detail) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(objects) > 0 {
		l.folders = append(l.folders, objects)
	}
	l.findings = append(l.findings, findings...)
}

func (l *listing) walk(ctx context.Context, d *directory, g *errgroup.Group, prefix string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	entries, err := readFolder(d.root, d.dir, prefix)
	if errors.Is(err, syscall.ENOTDIR) {
		return nil // a file where the folder would be
	}
	if err != nil {
		return err
	}
	slices.SortFunc(entries, func(a, b folderEntry) int { return strings.Compare(a.name, b.name) })
	objects := make([]Object, 0, len(entries))
	var findings []download.Detail
	defer func() { l.add(objects, findings) }()
	for _, entry := range entries {
		key := prefix + entry.name
		if entry.mode.IsDir() {
			below := func() error {
				if err := l.walk(ctx, d, g, key+"/"); !errors.Is(err, fs.ErrNotExist) {
					return err
				}
				return nil
			}
			if g.TryGo(below) {
				continue
			}
			if err := below(); err != nil {
				return err
			}
			continue
		}
		link := entry.mode&fs.ModeSymlink != 0
		if link {
			info, err := d.root.Stat(filepath.FromSlash(key))
			if err != nil {
				findings = append(findings, download.Detail{Asset: key, Message: "is a symbolic link that leads nowhere or out of the bucket"})
				continue
			}
			entry = newFolderEntry(info)
		}
		switch {
		case entry.mode.IsDir():
			findings = append(findings, download.Detail{Asset: key, Message: "is a symbolic link to a folder, which is not followed"})
		case !entry.mode.IsRegular():
			findings = append(findings, download.Detail{Asset: key, Message: "is not a regular file"})
		default:
			objects = append(objects, pinned(key, entry.size, entry.modified))
		}
	}
	return nil
}

// folderEntry is what a folder has.
type folderEntry struct {
	name     string
	mode     fs.FileMode
	size     int64
	modified int64 // nanoseconds since 1970
}

func newFolderEntry(info fs.FileInfo) folderEntry {
	return folderEntry{info.Name(), info.Mode(), info.Size(), info.ModTime().UnixNano()}
}

// readFolderPortably reads a folder below the root. What is removed meanwhile is
// left out.
func readFolderPortably(root *os.Root, name string) ([]folderEntry, error) {
	f, err := root.Open(filepath.FromSlash(name))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	listed, err := f.ReadDir(-1)
	if err != nil {
		return nil, err
	}
	entries := make([]folderEntry, 0, len(listed))
	for _, entry := range listed {
		info, err := entry.Info()
		switch {
		case errors.Is(err, fs.ErrNotExist):
			continue
		case err != nil:
			return nil, err
		}
		entries = append(entries, newFolderEntry(info))
	}
	return entries, nil
}

// pinFile makes the object of a file.
func pinFile(key string, info fs.FileInfo) Object {
	return pinned(key, info.Size(), info.ModTime().UnixNano())
}

// pinned makes the object of a file, which is known by its size and the time it
// was modified, in nanoseconds since 1970.
func pinned(key string, size, modified int64) Object {
	return Object{
		Key:      key,
		Version:  strconv.FormatInt(modified, 36),
		Size:     size,
		Modified: time.Unix(0, modified).UTC(),
	}
}

// Stat implements download.Objects.
func (d *directory) Stat(_ context.Context, key string) (Object, error) {
	info, err := d.root.Stat(filepath.FromSlash(key))
	if err != nil {
		return Object{}, fileError(err)
	}
	if !info.Mode().IsRegular() {
		return Object{}, download.ErrObjectNotFound
	}
	return pinFile(key, info), nil
}

// Open implements download.Objects. What it returns for all but small ranges is
// an *os.File underneath, which net/http sends by sendfile(2).
func (d *directory) Open(_ context.Context, o Object, off, n int64) (io.ReadCloser, error) {
	if r := openSmall(d.dir, o, off, n); r != nil {
		return r, nil
	}
	f, err := d.open(o.Key)
	if err != nil {
		return nil, fileError(err)
	}
	p := &pinnedFile{File: f, object: o}
	if err := p.check(); err != nil {
		_ = f.Close() // only read
		return nil, err
	}
	if off > 0 {
		if _, err := f.Seek(off, io.SeekStart); err != nil {
			_ = f.Close() // only read
			return nil, err
		}
	}
	return p, nil
}

// pinnedFile is an open file that was the pinned version when it was opened, and
// says on Close whether it still is.
type pinnedFile struct {
	*os.File
	object Object
}

func (p *pinnedFile) check() error {
	info, err := p.Stat()
	if err != nil {
		return err
	}
	if now := pinFile(p.object.Key, info); now.Version != p.object.Version || now.Size != p.object.Size {
		return download.ErrObjectChanged
	}
	return nil
}

// Close closes the file. It returns download.ErrObjectChanged if the file was
// written to while it was open, so that what was read is not to be trusted.
func (p *pinnedFile) Close() error {
	return errors.Join(p.check(), p.File.Close())
}

// Folders implements bucket.
func (d *directory) Folders(_ context.Context, prefix string) ([]string, error) {
	entries, err := fs.ReadDir(d.root.FS(), path.Clean(prefix))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var names []string
	for _, entry := range entries {
		if entry.IsDir() {
			names = append(names, entry.Name())
		}
	}
	return names, err
}

// Read implements bucket.
func (d *directory) Read(_ context.Context, key string, limit int64) ([]byte, error) {
	f, err := d.open(key)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
			return nil, fileError(err)
		}
		return nil, unavailable(err) // it is there
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(data)) > limit {
		err = fmt.Errorf("%s is larger than %d bytes", key, limit)
	}
	return data, err
}

func (d *directory) Close() error { return errors.Join(d.dir.Close(), d.root.Close()) }

// fileError tells a file that is not to be had from a fault of the disk. What is
// no error of the system is a path that os.Root refuses.
func fileError(err error) error {
	errno, ok := errors.AsType[syscall.Errno](err)
	if !ok || errno == syscall.ENOTDIR || errno == syscall.ELOOP ||
		errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("%w: %w", download.ErrObjectNotFound, err)
	}
	return unavailable(err)
}

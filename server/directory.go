package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"syscall"

	"github.com/downlink-go/downlink/server/internal/download"
)

// directory is a bucket in a local folder: keys are paths below it. Nothing is
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
}

func openDirectory(u *url.URL) (*directory, error) {
	if u.Host != "" && u.Host != "localhost" {
		return nil, fmt.Errorf("bucket %s: a local folder is written with three slashes, file:///%s", u, u.Host+u.Path)
	}
	root, err := os.OpenRoot(filepath.FromSlash(u.Path))
	if err != nil {
		return nil, fmt.Errorf("bucket %s: %w; make the folder or name another one", u, err)
	}
	dir, err := root.Open(".")
	if err != nil {
		_ = root.Close() // only read
		return nil, fmt.Errorf("bucket %s: %w", u, err)
	}
	return &directory{root: root, dir: dir}, nil
}

// open opens a file for reading.
func (d *directory) open(key string) (*os.File, error) {
	return openBelow(d.root, d.dir, filepath.FromSlash(key))
}

// List implements bucket. Symbolic links to files within the folder are assets,
// others are findings.
func (d *directory) List(ctx context.Context, prefix string) ([]Object, []download.Detail, error) {
	var l listing
	err := l.walk(ctx, d, prefix)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, nil
	}
	return l.objects, l.findings, err
}

type listing struct {
	objects  []Object
	findings []download.Detail
}

func (l *listing) walk(ctx context.Context, d *directory, prefix string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	f, err := d.root.Open(filepath.FromSlash(prefix)) // its entries know where they are
	if err != nil {
		return err
	}
	defer f.Close()
	entries, err := f.ReadDir(-1)
	if errors.Is(err, syscall.ENOTDIR) {
		return nil // a file where the folder would be
	}
	if err != nil {
		return err
	}
	for _, entry := range entries {
		key := prefix + entry.Name()
		if entry.IsDir() {
			if err := l.walk(ctx, d, key+"/"); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
			continue
		}
		info, err := entry.Info()
		if err == nil && entry.Type()&fs.ModeSymlink != 0 {
			info, err = d.root.Stat(filepath.FromSlash(key))
		}
		switch {
		case errors.Is(err, fs.ErrNotExist) && entry.Type()&fs.ModeSymlink == 0:
			// Removed since the folder was read.
		case err != nil:
			l.findings = append(l.findings, download.Detail{Asset: key, Message: "is a symbolic link that leads nowhere or out of the bucket"})
		case info.IsDir():
			l.findings = append(l.findings, download.Detail{Asset: key, Message: "is a symbolic link to a folder, which is not followed"})
		case !info.Mode().IsRegular():
			l.findings = append(l.findings, download.Detail{Asset: key, Message: "is not a regular file"})
		default:
			l.objects = append(l.objects, pinFile(key, info))
		}
	}
	return nil
}

// pinFile makes the object of a file. A file is known by its size and its
// modified time to the nanosecond.
func pinFile(key string, info fs.FileInfo) Object {
	modified := info.ModTime()
	return Object{
		Key:      key,
		Version:  strconv.FormatInt(modified.UnixNano(), 36),
		Size:     info.Size(),
		Modified: modified.UTC(),
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
		return nil, fileError(err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(data)) > limit {
		err = fmt.Errorf("%s is larger than %d bytes", key, limit)
	}
	return data, err
}

// Remote implements bucket.
func (*directory) Remote() bool { return false }

// Close implements bucket.
func (d *directory) Close() error { return errors.Join(d.dir.Close(), d.root.Close()) }

// fileError tells a file that is not to be had from a fault of the disk. What is
// no error of the system is a path that os.Root refuses.
func fileError(err error) error {
	errno, ok := errors.AsType[syscall.Errno](err)
	if !ok || errno == syscall.ENOTDIR || errno == syscall.ELOOP ||
		errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("%w: %w", download.ErrObjectNotFound, err)
	}
	return err
}

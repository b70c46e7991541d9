package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	"github.com/downlink-go/downlink/server/internal/download"
)

// mount is a bucket in a local folder. The folder may go and come back, as a disk
// that is mounted does, or be replaced by another one. While it is gone nothing is
// said of jobs and assets but that they cannot be read at the moment.
type mount struct {
	path    string
	mu      sync.Mutex // for replacing current
	current atomic.Pointer[directory]
}

func openMount(u *url.URL) (*mount, error) {
	if u.Host != "" && u.Host != "localhost" {
		return nil, fmt.Errorf("bucket %s: a local folder is written with three slashes, file:///%s", u, u.Host+u.Path)
	}
	m := &mount{path: filepath.FromSlash(u.Path)}
	d, err := openDirectory(m.path)
	if err != nil {
		return nil, fmt.Errorf("bucket %s: %w; make the folder or name another one", u, err)
	}
	m.current.Store(d)
	return m, nil
}

// directory returns the folder that is at the bucket's path now. One that has
// taken the place of another and is empty is taken for a missing mount.
func (m *mount) directory() (*directory, error) {
	d := m.current.Load()
	named, err := os.Stat(m.path)
	if err == nil && os.SameFile(named, d.info) {
		return d, nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if err == nil {
		d, err = openDirectory(m.path)
	}
	if err != nil {
		return nil, unavailable(fmt.Errorf("the folder of the bucket is gone: %w", err))
	}
	if os.SameFile(d.info, m.current.Load().info) {
		return m.current.Load(), d.Close() // another call was faster
	}
	if _, err := d.dir.Readdirnames(1); err != nil {
		return nil, errors.Join(unavailable(fmt.Errorf("the folder of the bucket has become another one, which is empty: %w", err)), d.Close())
	}
	// Who uses the old one still may: it is closed when nobody does any more.
	m.current.Store(d)
	return d, nil
}

// List implements bucket.
func (m *mount) List(ctx context.Context, prefix string) ([]Object, []download.Detail, error) {
	d, err := m.directory()
	if err != nil {
		return nil, nil, err
	}
	return d.List(ctx, prefix)
}

// Folders implements bucket.
func (m *mount) Folders(ctx context.Context, prefix string) ([]string, error) {
	d, err := m.directory()
	if err != nil {
		return nil, err
	}
	return d.Folders(ctx, prefix)
}

// Read implements bucket.
func (m *mount) Read(ctx context.Context, key string, limit int64) ([]byte, error) {
	d, err := m.directory()
	if err != nil {
		return nil, err
	}
	return d.Read(ctx, key, limit)
}

// Stat implements download.Objects.
func (m *mount) Stat(ctx context.Context, key string) (Object, error) {
	d, err := m.directory()
	if err != nil {
		return Object{}, err
	}
	return d.Stat(ctx, key)
}

// Open implements download.Objects. Packages have many small files, so that it
// looks for another folder only where there is no file in this one.
func (m *mount) Open(ctx context.Context, o Object, off, n int64) (io.ReadCloser, error) {
	d := m.current.Load()
	r, err := d.Open(ctx, o, off, n)
	if !errors.Is(err, download.ErrObjectNotFound) {
		return r, err
	}
	now, gone := m.directory()
	switch {
	case gone != nil:
		return nil, gone
	case now != d:
		return now.Open(ctx, o, off, n)
	}
	return nil, err
}

// Check implements bucket.
func (m *mount) Check(context.Context) error {
	_, err := m.directory()
	return err
}

// Remote implements bucket.
func (*mount) Remote() bool { return false }

// Close implements bucket.
func (m *mount) Close() error { return m.current.Load().Close() }

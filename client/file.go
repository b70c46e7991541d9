package client

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"sync/atomic"
)

// openDir is a folder of a package that is being read.
type openDir struct {
	pkg  *Package
	name string
	node node
	rest []fs.DirEntry
	read bool
}

func (d *openDir) Stat() (fs.FileInfo, error) { return d.node, nil }
func (d *openDir) Close() error               { return nil }

func (d *openDir) Read([]byte) (int, error) {
	return 0, &fs.PathError{Op: "read", Path: d.name, Err: errors.New("is a directory")}
}

func (d *openDir) ReadDir(n int) ([]fs.DirEntry, error) {
	if !d.read {
		d.rest, d.read = d.pkg.list(d.name), true
	}
	if n <= 0 || n > len(d.rest) {
		if n > 0 && len(d.rest) == 0 {
			return nil, io.EOF
		}
		n = len(d.rest)
	}
	out := d.rest[:n:n]
	d.rest = d.rest[n:]
	return out, nil
}

// openFile is a file of a package that is read from start to end, in one request.
type openFile struct {
	pkg     *Package
	name    string
	node    node
	body    io.ReadCloser // nil until something is read
	content io.Reader     // of body
	closed  bool
}

// usable returns the error of a file or a package that is closed or whose context
// is over. It is asked before each read, since what has arrived already can be
// read on from a connection that is being cut.
func (f *openFile) usable(op string) error {
	switch {
	case f.closed:
		return f.fail(op, fs.ErrClosed)
	case f.pkg.ctx.Err() != nil:
		return f.fail(op, context.Cause(f.pkg.ctx))
	}
	return nil
}

func (f *openFile) Stat() (fs.FileInfo, error) {
	if f.closed {
		return nil, f.fail("stat", fs.ErrClosed)
	}
	return f.node, nil
}

func (f *openFile) Close() error {
	if f.closed {
		return f.fail("close", fs.ErrClosed)
	}
	f.closed = true
	f.drop()
	return nil
}

func (f *openFile) Read(p []byte) (int, error) {
	if err := f.usable("read"); err != nil {
		return 0, err
	}
	if f.content == nil {
		if err := f.start(); err != nil {
			return 0, f.fail("read", err)
		}
	}
	n, err := f.content.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		err = f.fail("read", err)
	}
	return n, err
}

// start requests the file from its local header on.
func (f *openFile) start() error {
	e := f.node.entry
	body, err := f.pkg.src.ReadRange(f.pkg.ctx, e.offset, e.limit-e.offset)
	if err != nil {
		return err
	}
	content, err := e.content(body)
	if err != nil {
		body.Close()
		return err
	}
	f.body, f.content = body, content
	return nil
}

// drop ends the request, if there is one.
func (f *openFile) drop() {
	if f.body != nil {
		f.body.Close()
	}
	f.body, f.content = nil, nil
}

// fail adds the name to an error.
func (f *openFile) fail(op string, err error) error {
	if cause := context.Cause(f.pkg.ctx); cause != nil {
		err = cause
	}
	return &fs.PathError{Op: op, Path: f.name, Err: err}
}

// storedFile is a file whose bytes are in the package as they are.
type storedFile struct {
	openFile
	pos  int64        // of the next Read
	at   int64        // where the request is
	data atomic.Int64 // where the bytes are in the package, 0 if not known yet
}

var (
	_ io.ReadSeeker = (*storedFile)(nil)
	_ io.ReaderAt   = (*storedFile)(nil)
)

// maxSkip is up to where a request is read on instead of sending another.
const maxSkip = 256 << 10

// Read goes on with one request as long as what is read is in order.
func (f *storedFile) Read(p []byte) (int, error) {
	if err := f.usable("read"); err != nil {
		return 0, err
	}
	if err := f.move(); err != nil {
		return 0, f.fail("read", err)
	}
	if f.content == nil && f.pos >= f.node.entry.size && f.pos > 0 {
		return 0, io.EOF
	}
	n, err := f.openFile.Read(p)
	f.pos += int64(n)
	f.at = f.pos
	return n, err
}

// move brings the request to where the next Read is. At the start of the file
// it leaves that to openFile, which checks what it reads.
func (f *storedFile) move() error {
	if f.content != nil && f.at < f.pos && f.pos-f.at <= maxSkip {
		n, err := io.CopyN(io.Discard, f.content, f.pos-f.at)
		f.at += n
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
	}
	if f.at == f.pos {
		return nil
	}
	f.drop()
	f.at = f.pos
	left := f.node.entry.size - f.pos
	if f.pos == 0 || left <= 0 {
		return nil
	}
	body, err := f.request(f.pkg.ctx, f.pos, left)
	if err != nil {
		f.at = -1
		return err
	}
	f.body, f.content = body, &exactReader{r: body, left: left}
	return nil
}

// Seek sets where the next Read begins. It sends no request.
func (f *storedFile) Seek(offset int64, whence int) (int64, error) {
	if f.closed {
		return 0, f.fail("seek", fs.ErrClosed)
	}
	switch whence {
	case io.SeekStart:
	case io.SeekCurrent:
		offset += f.pos
	case io.SeekEnd:
		offset += f.node.entry.size
	default:
		return 0, f.fail("seek", fs.ErrInvalid)
	}
	if offset < 0 {
		return 0, f.fail("seek", fs.ErrInvalid)
	}
	f.pos = offset
	return offset, nil
}

// ReadAt reads by a request of its own, and by another one once to find where
// the bytes are.
func (f *storedFile) ReadAt(p []byte, off int64) (int, error) {
	if err := f.usable("readat"); err != nil {
		return 0, err
	}
	if off < 0 {
		return 0, f.fail("readat", fs.ErrInvalid)
	}
	n := min(int64(len(p)), f.node.entry.size-off)
	if n <= 0 {
		if len(p) == 0 {
			return 0, nil
		}
		return 0, io.EOF
	}
	body, err := f.request(f.pkg.ctx, off, n)
	if err != nil {
		return 0, f.fail("readat", err)
	}
	defer body.Close()
	got, err := io.ReadFull(body, p[:n])
	switch {
	case err != nil:
		return got, f.fail("readat", noEOF(err))
	case got < len(p):
		return got, io.EOF
	}
	return got, nil
}

// request fetches n bytes of the file.
func (f *storedFile) request(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	data := f.data.Load()
	if data == 0 {
		var err error
		if data, err = findData(ctx, f.pkg.src, f.node.entry); err != nil {
			return nil, err
		}
		f.data.Store(data)
	}
	return f.pkg.src.ReadRange(ctx, data+off, n)
}

// findData reads the local header and returns where the content begins.
func findData(ctx context.Context, src source, e *entry) (int64, error) {
	most := int64(localLen + 2*0xffff) // with the longest name and extra fields
	header, err := src.ReadRange(ctx, e.offset, min(most, e.limit-e.packed-e.offset))
	if err != nil {
		return 0, err
	}
	defer header.Close()
	n, err := e.skipLocalHeader(header)
	return e.offset + n, err
}

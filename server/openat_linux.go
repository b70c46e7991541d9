package server

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"runtime"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/downlink-go/downlink/server/internal/download"
)

// smallFile is up to where a range is read without an [os.File]: to set one up
// takes longer than to read so little, and nobody sends it by sendfile(2).
const smallFile = 64 << 10

// openBelow opens a file of the folder that dir is, for reading. It is what
// [os.Root.Open] does in one system call instead of two or three for each element
// of the path. Where the kernel does not have it or refuses, os.Root has the last
// word, and the errors are its own.
func openBelow(root *os.Root, dir *os.File, name string) (*os.File, error) {
	fd, err := openat2(dir, name, 0)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, &fs.PathError{Op: "openat2", Path: name, Err: err}
		}
		return root.Open(name)
	}
	return os.NewFile(uintptr(fd), name), nil
}

func openat2(dir *os.File, name string, flags uint64) (int, error) {
	defer runtime.KeepAlive(dir) // it may have been replaced
	for {
		fd, err := unix.Openat2(int(dir.Fd()), name, &unix.OpenHow{
			Flags:   flags | unix.O_RDONLY | unix.O_CLOEXEC,
			Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS,
		})
		if err != unix.EINTR { //nolint:errorlint // a bare errno
			return fd, err
		}
	}
}

// openSmall opens a range that is read once. It returns nil if it cannot, without
// saying why. Whether the file is the pinned one is found out with the bytes.
func openSmall(dir *os.File, o Object, off, n int64) io.ReadCloser {
	if n >= smallFile {
		return nil
	}
	fd, err := openat2(dir, o.Key, unix.O_NONBLOCK) // in case that it has become a pipe
	if err != nil {
		return nil
	}
	return &descriptor{fd: fd, object: o, off: off}
}

// readFolder reads a folder below the root. What is removed meanwhile is left
// out.
func readFolder(root *os.Root, dir *os.File, name string) ([]folderEntry, error) {
	fd, err := openat2(dir, name, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, &fs.PathError{Op: "openat2", Path: name, Err: err}
	}
	if err != nil {
		return readFolderPortably(root, name)
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	names, err := f.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	entries := make([]folderEntry, 0, len(names))
	for _, n := range names {
		var s unix.Stat_t
		switch err := statAt(fd, n, &s); {
		case errors.Is(err, fs.ErrNotExist):
			continue
		case err != nil:
			return nil, &fs.PathError{Op: "fstatat", Path: name + n, Err: err}
		}
		entries = append(entries, folderEntry{n, fileMode(s.Mode), s.Size, s.Mtim.Nano()})
	}
	return entries, nil
}

func statAt(fd int, name string, s *unix.Stat_t) error {
	for {
		err := unix.Fstatat(fd, name, s, unix.AT_SYMLINK_NOFOLLOW)
		if err != unix.EINTR { //nolint:errorlint // a bare errno
			return err
		}
	}
}

// fileMode tells folders, links and regular files from the rest.
func fileMode(mode uint32) fs.FileMode {
	switch mode & unix.S_IFMT {
	case unix.S_IFREG:
		return 0
	case unix.S_IFDIR:
		return fs.ModeDir
	case unix.S_IFLNK:
		return fs.ModeSymlink
	}
	return fs.ModeIrregular
}

// descriptor is a pinned file without what [os.File] is for: it belongs to one
// goroutine, and whoever opened it closes it. After each read it looks whether the
// file is still the pinned version, which says it of all that was read until then.
type descriptor struct {
	fd     int
	object Object
	off    int64
}

func (f *descriptor) check() error {
	var s unix.Stat_t
	if err := unix.Fstat(f.fd, &s); err != nil {
		return &fs.PathError{Op: "fstat", Path: f.object.Key, Err: err}
	}
	var version [16]byte
	if s.Size != f.object.Size || string(strconv.AppendInt(version[:0], s.Mtim.Nano(), 36)) != f.object.Version {
		return download.ErrObjectChanged
	}
	return nil
}

func (f *descriptor) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for {
		n, err := unix.Pread(f.fd, p, f.off)
		if err == unix.EINTR { //nolint:errorlint // a bare errno
			continue
		}
		if err := f.check(); err != nil {
			return 0, err
		}
		switch {
		case err != nil:
			return 0, &fs.PathError{Op: "read", Path: f.object.Key, Err: err}
		case n == 0:
			return 0, io.EOF
		}
		f.off += int64(n)
		return n, nil
	}
}

// Close closes the file.
func (f *descriptor) Close() error { return unix.Close(f.fd) }

package transfer

import (
	"errors"
	"os"
	"syscall"
	"unsafe"
)

// renamesOpenFiles says whether an open file can take another name.
const renamesOpenFiles = false

var (
	kernel32            = syscall.NewLazyDLL("kernel32.dll")
	lockFileEx          = kernel32.NewProc("LockFileEx")
	getDiskFreeSpaceExW = kernel32.NewProc("GetDiskFreeSpaceExW")
)

// lock locks the file against other processes until it is closed. A file system
// without locks is none to fail for.
func lock(f *os.File) error {
	const (
		failImmediately = 1
		exclusive       = 2
		lockViolation   = syscall.Errno(33)
	)
	// The lock is on a byte that no content reaches, so that others can read.
	at := syscall.Overlapped{OffsetHigh: 1 << 30}
	ok, _, err := lockFileEx.Call(f.Fd(), failImmediately|exclusive, 0, 1, 0, uintptr(unsafe.Pointer(&at)))
	if ok == 0 && errors.Is(err, lockViolation) {
		return ErrBusy
	}
	return nil
}

// freeSpace returns how many bytes this user can write to the disk.
func freeSpace(dir string) (uint64, error) {
	name, err := syscall.UTF16PtrFromString(dir)
	if err != nil {
		return 0, err
	}
	var free uint64
	ok, _, err := getDiskFreeSpaceExW.Call(uintptr(unsafe.Pointer(name)), uintptr(unsafe.Pointer(&free)), 0, 0)
	if ok == 0 {
		return 0, err
	}
	return free, nil
}

// SyncDir makes new names in a folder safe, which this system does by itself.
func SyncDir(string) error { return nil }

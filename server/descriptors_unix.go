//go:build unix

package server

import (
	"math"
	"syscall"
)

// maxDescriptors returns how many file descriptors the process may have. The Go
// runtime has raised that as far as it can be.
func maxDescriptors() int {
	var l syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l); err != nil {
		return 1024
	}
	return int(min(uint64(l.Cur), math.MaxInt32)) //nolint:unconvert // it is signed on some systems
}

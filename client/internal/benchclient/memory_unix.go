//go:build unix

package main

import (
	"os"
	"runtime"
	"syscall"
)

// maxMemory returns the largest resident size of a process that has ended.
func maxMemory(s *os.ProcessState) int64 {
	usage, ok := s.SysUsage().(*syscall.Rusage)
	if !ok {
		return 0
	}
	if runtime.GOOS == "darwin" {
		return int64(usage.Maxrss) //nolint:unconvert // not so everywhere
	}
	return int64(usage.Maxrss) * 1024 //nolint:unconvert // not so everywhere
}

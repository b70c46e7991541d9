//go:build !unix

package server

import "math"

// maxDescriptors returns how many file descriptors the process may have.
func maxDescriptors() int { return math.MaxInt32 }

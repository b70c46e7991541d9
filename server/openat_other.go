//go:build !linux

package server

import (
	"io"
	"os"
)

// openBelow opens a file of the folder, for reading.
func openBelow(root *os.Root, _ *os.File, name string) (*os.File, error) { return root.Open(name) }

// openSmall opens a range that is read once, where there is a faster way to.
func openSmall(*os.File, Object, int64, int64) io.ReadCloser { return nil }

// readFolder reads a folder below the root.
func readFolder(root *os.Root, _ *os.File, name string) ([]folderEntry, error) {
	return readFolderPortably(root, name)
}

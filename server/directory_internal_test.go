package server

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/downlink-go/downlink/server/internal/download"
)

// TestReadingNoticesChanges: what was written to after it was opened is not taken
// for what was planned, small or large.
func TestReadingNoticesChanges(t *testing.T) {
	t.Parallel()
	for name, size := range map[string]int{"small": 1000, "large": 2 * 64 << 10} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			path := filepath.Join(dir, "a.tif")
			if err := os.WriteFile(path, bytes.Repeat([]byte("a"), size), 0o644); err != nil {
				t.Fatal(err)
			}
			d, err := openDirectory(dir)
			if err != nil {
				t.Fatal(err)
			}
			defer d.Close()
			o, err := d.Stat(t.Context(), "a.tif")
			if err != nil {
				t.Fatal(err)
			}
			read := func(change func() error) ([]byte, error) {
				r, err := d.Open(t.Context(), o, 10, int64(size)-10)
				if err != nil {
					return nil, err
				}
				err = change()
				data, readErr := io.ReadAll(io.LimitReader(r, int64(size)-10))
				return data, errors.Join(err, readErr, r.Close())
			}
			if data, err := read(func() error { return nil }); err != nil || len(data) != size-10 {
				t.Fatalf("%d bytes, %v", len(data), err)
			}
			for what, change := range map[string]func() error{
				"written to": func() error { return os.WriteFile(path, bytes.Repeat([]byte("b"), size), 0o644) },
				"cut":        func() error { return os.Truncate(path, 20) },
			} {
				touched := func() error {
					return errors.Join(change(), os.Chtimes(path, time.Time{}, o.Modified.Add(time.Second)))
				}
				if data, err := read(touched); !errors.Is(err, download.ErrObjectChanged) || name == "small" && len(data) > 0 {
					t.Errorf("%s: %d bytes, %v, want %v", what, len(data), err, download.ErrObjectChanged)
				}
				if err := errors.Join(os.WriteFile(path, bytes.Repeat([]byte("a"), size), 0o644), os.Chtimes(path, time.Time{}, o.Modified)); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

package vzip_test

import (
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/downlink-go/downlink/server/internal/vzip"
)

// sparse writes an archive to a file in which zeros take no space.
type sparse struct{ *os.File }

func (w sparse) ReadFrom(r io.Reader) (int64, error) {
	limited, ok := r.(*io.LimitedReader)
	if ok {
		if z, ok := limited.R.(*zeroReader); ok && z.n == limited.N {
			n := z.n
			z.n, limited.N = 0, 0
			_, err := w.Seek(n, io.SeekCurrent)
			return n, err
		}
	}
	return io.Copy(struct{ io.Writer }{w.File}, r)
}

func writeSparse(t *testing.T, l *vzip.Layout, src vzip.Source) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "package.zip")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	_, err = newReader(t, l, src).CopyN(sparse{f}, l.Size())
	if err = errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
	return path
}

// zipReader is a program that reads archives.
type zipReader struct {
	name     string
	command  string // with the path of the archive for $1
	required bool   // in CI
	// lists says that the names come on stdout, one a line.
	lists bool
	// not are the archives to leave out.
	not []string
}

var zipReaders = []zipReader{
	// It warns that an empty archive is empty, and takes half a minute for 4 GiB.
	{name: "unzip", command: `unzip -tq "$1"`, required: true, not: []string{"empty", "large"}},
	{
		name: "unzip parts", required: true, not: []string{"empty", "small", "65535", "65536"},
		command: `unzip -tq "$1" -x inputs/large.tif && test "$(unzip -p "$1" inputs/large.tif | head -c 1000 | wc -c)" -eq 1000`,
	},
	{name: "unzip list", command: `unzip -Z1 "$1"`, required: true, lists: true, not: []string{"empty"}},
	{name: "7z", command: `7z t -bd "$1"`, required: true},
	{name: "bsdtar", command: `bsdtar -xOf "$1" >/dev/null`, required: true},
	{name: "bsdtar list", command: `bsdtar -tf "$1"`, required: true, lists: true},
	{name: "bsdtar stream", command: `cat "$1" | bsdtar -xOf - >/dev/null`, required: true, not: []string{"large"}},
	{name: "bsdtar stream list", command: `cat "$1" | bsdtar -tf -`, required: true, lists: true, not: []string{"large"}},
	{name: "python3", command: `python3 -m zipfile -t "$1"`},
	{name: "python3 list", command: `python3 -c 'import sys, zipfile; print(*zipfile.ZipFile(sys.argv[1]).namelist(), sep="\n")' "$1"`, lists: true},
	{name: "jar", command: `jar tf "$1"`, lists: true},
	{name: "java stream", command: `java -XX:TieredStopAtLevel=1 testdata/Stream.java "$1"`, lists: true},
}

// TestThirdPartyReaders has the archive readers that people use check archives.
// With DOWNLINK_CI set, those that CI installs must be there.
func TestThirdPartyReaders(t *testing.T) {
	t.Parallel()
	held := vzip.Entry{Name: "manifest.json", Modified: modified, Data: []byte("{\"entries\": []}\n")}
	for _, tt := range []struct {
		name    string
		entries []vzip.Entry
	}{
		{"empty", nil},
		{"small", []vzip.Entry{
			held,
			zeroFile("inputs/a b.tif", 100),
			zeroFile("inputs/empty.txt", 0),
			zeroFile("outputs/Größe/图像.tif", 200_000),
			zeroFile("outputs/🛰.tif", large),
		}},
		{"65535", append(manyEntries(65_534, 10), held)},
		{"65536", append(manyEntries(65_535, 0), held)},
		{"large", []vzip.Entry{ // an entry, an offset and the directory's offset beyond 4 GiB
			held,
			zeroFile("inputs/large.tif", fourGiB+1),
			{Name: "inputs/small.txt", Modified: modified, Data: []byte("behind")},
			zeroFile("outputs/z.tif", 100),
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if tt.name == "large" && testing.Short() {
				t.Skip("reads 4 GiB")
			}
			names := make([]string, len(tt.entries))
			for i, e := range tt.entries {
				names[i] = e.Name
			}
			path := writeSparse(t, mustNew(t, tt.entries...), zeros{})
			for _, reader := range zipReaders {
				t.Run(reader.name, func(t *testing.T) {
					if slices.Contains(reader.not, tt.name) {
						t.Skip("not for this archive")
					}
					start := time.Now()
					got := reader.run(t, path)
					t.Logf("%v", time.Since(start).Round(time.Millisecond))
					if !reader.lists {
						return
					}
					if got := strings.FieldsFunc(got, func(r rune) bool { return r == '\n' }); !slices.Equal(got, names) {
						t.Errorf("%d names: %.1000q, want %d: %.1000q", len(got), got, len(names), names)
					}
				})
			}
		})
	}
}

// run returns what the reader writes to stdout, and fails if it fails.
func (z zipReader) run(t *testing.T, path string) string {
	t.Helper()
	program, _, _ := strings.Cut(z.name, " ")
	if _, err := exec.LookPath(program); err != nil {
		if z.required && os.Getenv("DOWNLINK_CI") != "" {
			t.Fatalf("%s is not installed", program)
		}
		t.Skipf("%s is not installed", program)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "sh", "-c", z.command, "sh", path)
	cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8", "LANG=C.UTF-8")
	var stdout, stderr strings.Builder
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		t.Errorf("%s: %v\n%.2000s%.2000s", z.command, err, stdout.String(), stderr.String())
	}
	return stdout.String()
}

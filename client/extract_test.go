package client

import (
	"archive/zip"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

func extractTest(t testing.TB, data []byte, dir string, opts ...ExtractOption) (*ExtractResult, error) {
	t.Helper()
	r, _, err := extractFrom(t.Context(), t, &memorySource{data: data}, dir, opts...)
	return r, err
}

// extractFrom also returns how many requests it took without those for the
// directory.
func extractFrom(ctx context.Context, t testing.TB, src *memorySource, dir string, opts ...ExtractOption) (*ExtractResult, int, error) {
	t.Helper()
	o := &extractOptions{connections: defaultConnections, progress: ignoreProgress}
	if err := applyAll(opts, ExtractOption.applyToExtract, o); err != nil {
		t.Fatal(err)
	}
	p, err := openPackage(ctx, "P1", src)
	if err != nil {
		return nil, 0, err
	}
	defer p.Close()
	src.counts()
	r, err := extractPackage(ctx, p, dir, o)
	if src.open != 0 {
		t.Errorf("%d bodies were not closed", src.open)
	}
	n, _ := src.counts()
	return r, n, err
}

// filesIn returns the content of all files in a folder.
func filesIn(t testing.TB, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := fs.WalkDir(os.DirFS(dir), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := fs.ReadFile(os.DirFS(dir), name)
		out[name] = string(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func wantFiles(t testing.TB, dir string, files ...testFile) {
	t.Helper()
	want := map[string]string{}
	for _, f := range files {
		want[f.name] = string(f.data)
	}
	if got := filesIn(t, dir); !maps.Equal(got, want) {
		t.Errorf("got %v, want %v", slices.Sorted(maps.Keys(got)), slices.Sorted(maps.Keys(want)))
	}
}

func TestExtract(t *testing.T) {
	t.Parallel()
	ours := withManifest(t, nil, tree()...)
	large := testFile{name: "large", data: bytes.Repeat([]byte("0123456789abcdef"), (2*partBytes+100)/16)}
	for name, test := range map[string]struct {
		data  []byte
		files []testFile
	}{
		"ours":              {storedZip(t, ours...), ours},
		"deflated":          {deflatedZip(t, tree()...), tree()},
		"folders":           {storedZip(t, append(tree(), text("inputs/a/", ""), text("outputs/none/", ""))...), tree()},
		"large":             {storedZip(t, large, text("small", "x")), []testFile{large, text("small", "x")}},
		"large and SHA-256": {storedZip(t, withManifest(t, nil, large)...), withManifest(t, nil, large)},
		"nothing":           {storedZip(t), nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := filepath.Join(t.TempDir(), "not", "there")
			var last Progress
			r, err := extractTest(t, test.data, dir, WithProgress(func(p Progress) { last = p }))
			if err != nil {
				t.Fatal(err)
			}
			wantFiles(t, dir, test.files...)
			if r.ID != "P1" || r.Written != len(test.files) || r.Kept != 0 {
				t.Errorf("got %+v", r)
			}
			if last.Done != last.Total {
				t.Errorf("the progress ends at %d of %d", last.Done, last.Total)
			}
			// Once more: nothing is fetched but what the manifest says.
			again, err := extractTest(t, test.data, dir)
			if err != nil {
				t.Fatal(err)
			}
			if again.Written != 0 || again.Kept != r.Written || again.Fetched > r.Fetched/2 && len(test.files) > 0 {
				t.Errorf("again: got %+v after %+v", again, r)
			}
		})
	}
}

func TestExtractSetsTimes(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		data []byte
		want time.Time
	}{
		"of the manifest":  {storedZip(t, withManifest(t, nil, text("a", "x"))...), testTime.Add(time.Second)},
		"of the directory": {deflatedZip(t, text("a", "x")), testTime},
		"in DOS form":      {storedZip(t, text("a", "x")), testTime},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			if _, err := extractTest(t, test.data, dir); err != nil {
				t.Fatal(err)
			}
			info, err := os.Stat(filepath.Join(dir, "a"))
			if err != nil || !info.ModTime().Equal(test.want) {
				t.Errorf("got %v, %v, want %v", info.ModTime(), err, test.want)
			}
		})
	}
}

func TestNeighboursAreFetchedTogether(t *testing.T) {
	t.Parallel()
	var files []testFile
	for i := range 2000 {
		files = append(files, text(fmt.Sprintf("outputs/%d", i), strings.Repeat("x", 1000)))
	}
	_, requests, err := extractFrom(t.Context(), t, &memorySource{data: storedZip(t, files...)}, t.TempDir())
	if err != nil || requests != 1 {
		t.Errorf("%d requests, %v, want 1", requests, err)
	}
}

func TestExtractRepairs(t *testing.T) {
	t.Parallel()
	dir := extracted(t, tree()...)
	broken, missing := filepath.Join(dir, "inputs", "a-b"), filepath.Join(dir, "inputs", "a", "x.tif")
	left := filepath.Join(dir, "inputs", tempPrefix+"0"+tempSuffix)
	err := errors.Join(os.WriteFile(broken, []byte("DASH"), 0o600), os.Remove(missing), os.WriteFile(left, nil, 0o600))
	if err != nil {
		t.Fatal(err)
	}
	files := withManifest(t, nil, tree()...)
	r, err := extractTest(t, storedZip(t, files...), dir)
	if err != nil {
		t.Fatal(err)
	}
	if r.Written != 2 || r.Kept != len(files)-2 {
		t.Errorf("got %+v, want 2 written", r)
	}
	wantFiles(t, dir, files...)
}

func TestExtractPatterns(t *testing.T) {
	t.Parallel()
	files := withManifest(t, nil, tree()...)
	for name, test := range map[string]struct {
		opts []ExtractOption
		want []string
	}{
		"include":     {[]ExtractOption{WithInclude("outputs/**/*.tif")}, []string{"outputs/deep/er/y.tif", "outputs/é.tif"}},
		"two":         {[]ExtractOption{WithInclude("inputs/a0"), WithInclude("inputs/empty")}, []string{"inputs/a0", "inputs/empty"}},
		"exclude":     {[]ExtractOption{WithExclude("inputs/**", "manifest.json")}, []string{"outputs/deep/er/y.tif", "outputs/é.tif"}},
		"both":        {[]ExtractOption{WithInclude("**/*.tif"), WithExclude("**/deep/**")}, []string{"inputs/a/x.tif", "outputs/é.tif"}},
		"nothing":     {[]ExtractOption{WithInclude("*.png")}, nil},
		"folder name": {[]ExtractOption{WithInclude("inputs/a?b")}, []string{"inputs/a-b", "inputs/a.b"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			if _, err := extractTest(t, storedZip(t, files...), dir, test.opts...); err != nil {
				t.Fatal(err)
			}
			want := append([]string{manifestName}, test.want...)
			slices.Sort(want)
			if got := slices.Sorted(maps.Keys(filesIn(t, dir))); !slices.Equal(got, want) {
				t.Errorf("got %v, want %v", got, want)
			}
		})
	}
}

// What is wrong anywhere is found before anything is written.
func TestExtractRefusesBeforeWriting(t *testing.T) {
	t.Parallel()
	first := text("a first", "x")
	wrong := map[string]testFile{
		"device":            text("outputs/nul.tif", "x"),
		"device in folder":  text("COM1/a", "x"),
		"superscript":       text("lpt².txt", "x"),
		"dot at the end":    text("outputs/a.", "x"),
		"space at the end":  text("outputs /a", "x"),
		"other case":        text("A First", "x"),
		"folder, same case": text("A FIRST/x", "x"),
		"symbolic link":     {name: "link", data: []byte("/etc/passwd"), change: func(h *zip.FileHeader) { h.SetMode(fs.ModeSymlink | 0o777) }},
		"encrypted":         {name: "e", data: []byte("x"), change: func(h *zip.FileHeader) { h.Flags |= 1 }},
		"method":            {name: "m", data: []byte("x"), change: func(h *zip.FileHeader) { h.Method = 12 }},
		"too large": {name: "l", data: []byte("x"), change: func(h *zip.FileHeader) {
			h.Method, h.CompressedSize64, h.UncompressedSize64 = zip.Deflate, 1<<61, 1<<61
		}},
	}
	tests := map[string][]byte{}
	for name, f := range wrong {
		tests[name] = storedZip(t, first, f)
	}
	for name, test := range hostile(t) {
		tests[name] = test.data
	}
	for name, data := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := filepath.Join(t.TempDir(), "new")
			_, err := extractTest(t, data, dir)
			if _, ok := errors.AsType[*FormatError](err); !ok {
				t.Errorf("got %v, want a FormatError", err)
			}
			if _, err := os.Lstat(dir); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("the folder was made: %v", err)
			}
		})
	}
}

func TestExtractRefusesAManifestThatDisagrees(t *testing.T) {
	t.Parallel()
	files := withManifest(t, func(e []map[string]any) []map[string]any { return e[1:] }, text("a", "x"), text("b", "y"))
	dir := filepath.Join(t.TempDir(), "new")
	_, err := extractTest(t, storedZip(t, files...), dir)
	wantProblem(t, err, "a", "not in the manifest")
	if _, err := os.Lstat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the folder was made: %v", err)
	}
}

func TestWindowsNames(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"a:b", "a?", "x/a*", `a"b`, "a|b", "a<b"} {
		if err := checkFileName(name, true); err == nil {
			t.Errorf("%s is accepted on Windows", name)
		}
		if err := checkFileName(name, false); err != nil {
			t.Errorf("%s is refused elsewhere: %v", name, err)
		}
	}
	for _, name := range []string{"console", "com", "COM10", "nulls.tif", ".con", "outputs/a.tif", "COMx"} {
		if err := checkFileName(name, true); err != nil {
			t.Errorf("%s is refused: %v", name, err)
		}
	}
}

func TestExtractDoesNotFollowLinksOut(t *testing.T) {
	t.Parallel()
	if runtime.GOOS == "windows" {
		t.Skip("links need a privilege on Windows")
	}
	data := storedZip(t, text("another/c", "new"), text("inputs/a", "new"), text("outputs/b", "new"))
	for name, test := range map[string]struct {
		link   string
		target func(outside string) string
		ok     bool
	}{
		"folder leads out":          {"outputs", func(outside string) string { return outside }, false},
		"folder leads out, upwards": {"outputs", func(outside string) string { return "../" + filepath.Base(outside) }, false},
		"file leads out":            {"outputs/b", func(outside string) string { return filepath.Join(outside, "b") }, true},
		"folder stays inside":       {"outputs", func(string) string { return "inputs" }, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			top := t.TempDir()
			dir, outside := filepath.Join(top, "dir"), filepath.Join(top, "outside")
			link := filepath.Join(dir, test.link)
			err := errors.Join(os.MkdirAll(filepath.Dir(link), 0o777), os.MkdirAll(filepath.Join(dir, "inputs"), 0o777), os.Mkdir(outside, 0o777),
				os.WriteFile(filepath.Join(outside, "b"), []byte("old"), 0o600), os.Symlink(test.target(outside), link))
			if err != nil {
				t.Fatal(err)
			}
			_, err = extractTest(t, data, dir)
			if (err == nil) != test.ok {
				t.Errorf("got %v", err)
			}
			if got := filesIn(t, outside); got["b"] != "old" || len(got) != 1 {
				t.Errorf("what is outside has changed: %v", got)
			}
			if _, err := os.Lstat(filepath.Join(dir, "another")); (err == nil) != test.ok {
				t.Errorf("another folder: %v", err)
			}
		})
	}
}

func TestExtractRefusesWhatIsInTheWay(t *testing.T) {
	t.Parallel()
	data := storedZip(t, text("inputs/a", "x"), text("outputs/b", "x"))
	for name, inWay := range map[string]string{"file for folder": "outputs", "folder for file": "outputs/b/c"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			file := filepath.Join(dir, inWay)
			if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o777), os.WriteFile(file, nil, 0o600)); err != nil {
				t.Fatal(err)
			}
			if _, err := extractTest(t, data, dir); err == nil {
				t.Error("no error")
			}
			if got := filesIn(t, dir); len(got) != 1 {
				t.Errorf("got %v", got)
			}
		})
	}
}

// A file that is wrong does not appear, and nothing of it is left.
func TestWrongContentDoesNotAppear(t *testing.T) {
	t.Parallel()
	more := func(h *zip.FileHeader) { h.UncompressedSize64-- }
	less := func(h *zip.FileHeader) { h.UncompressedSize64++ }
	packed := deflated(t, "right content")
	large := testFile{name: "a", data: bytes.Repeat([]byte("0123456789abcdef"), (partBytes+16)/16)}
	for name, data := range map[string][]byte{
		"stored":              damage(t, storedZip(t, text("a", "right content")), "a"),
		"deflated":            damage(t, deflatedZip(t, text("a", "right content")), "a"),
		"SHA-256":             storedZip(t, withManifest(t, func(e []map[string]any) []map[string]any { e[0]["sha256"] = strings.Repeat("0", 64); return e }, text("a", "x"))...),
		"more than it says":   storedZip(t, packed(more)),
		"less than it says":   storedZip(t, packed(less)),
		"large":               damage(t, storedZip(t, large), "a"),
		"large, with SHA-256": damage(t, storedZip(t, withManifest(t, nil, large)...), "a"),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			_, err := extractTest(t, data, dir)
			wantProblem(t, err, "a", "")
			for name := range filesIn(t, dir) {
				if name != manifestName {
					t.Errorf("%s is there", name)
				}
			}
		})
	}
}

// deflated returns a file that is compressed, and whose header can be changed.
func deflated(t testing.TB, content string) func(func(*zip.FileHeader)) testFile {
	t.Helper()
	data := deflatedZip(t, text("a", content))
	z, err := zip.NewReader(bytes.NewReader(data), int64(len(data)))
	if err != nil {
		t.Fatal(err)
	}
	at, err := z.File[0].DataOffset()
	if err != nil {
		t.Fatal(err)
	}
	h := z.File[0].FileHeader
	return func(change func(*zip.FileHeader)) testFile {
		return testFile{name: "a", data: data[at:][:h.CompressedSize64], change: func(c *zip.FileHeader) {
			c.Method, c.CRC32, c.UncompressedSize64 = h.Method, h.CRC32, h.UncompressedSize64
			change(c)
		}}
	}
}

func TestExtractEndsWithTheContext(t *testing.T) {
	t.Parallel()
	var files []testFile
	for i := range 100 {
		files = append(files, text(fmt.Sprint(i), strings.Repeat("x", 1000)))
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var reads atomic.Int64
	src := &memorySource{data: storedZip(t, files...), read: func() {
		if reads.Add(1) == 200 {
			cancel()
		}
	}}
	dir := t.TempDir()
	_, _, err := extractFrom(ctx, t, src, dir)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want %v", err, context.Canceled)
	}
	got := filesIn(t, dir)
	if len(got) == len(files) {
		t.Error("all files are there: the test does not cancel in between")
	}
	for name := range got {
		if strings.HasPrefix(filepath.Base(name), tempPrefix) {
			t.Errorf("%s is left", name)
		}
	}
}

func TestExtractChecksTheRoomFirst(t *testing.T) {
	t.Parallel()
	p := &plan{dir: filepath.Join(t.TempDir(), "new", "folder"), bytes: 1 << 60}
	err := p.checkSpace()
	if e, ok := errors.AsType[*SpaceError](err); !ok || e.Need != 1<<60 || e.Dir != filepath.Dir(filepath.Dir(p.dir)) {
		t.Errorf("got %v, want a SpaceError", err)
	}
}

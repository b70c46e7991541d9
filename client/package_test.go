package client

import (
	"archive/zip"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/fstest"

	"pgregory.net/rapid"
)

func openTest(t testing.TB, data []byte) (*Package, *memorySource) {
	t.Helper()
	src := &memorySource{data: data}
	p, err := openPackage(t.Context(), "P1", src)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = p.Close()
		if src.open != 0 {
			t.Errorf("%d bodies were not closed", src.open)
		}
	})
	return p, src
}

// tree has what makes listing hard: names around the slash, empty files, folders
// with and without an entry.
func tree() []testFile {
	return []testFile{
		text("inputs/a/x.tif", "input"), text("inputs/a-b", "dash"), text("inputs/a.b", "dot"), text("inputs/a0", "zero"),
		text("inputs/empty", ""), text("outputs/deep/er/y.tif", strings.Repeat("output", 1000)), text("outputs/é.tif", "name"),
	}
}

func TestPackageIsAFileSystem(t *testing.T) {
	t.Parallel()
	zips := map[string][]byte{
		"stored":   storedZip(t, withManifest(t, nil, tree()...)...),
		"deflated": deflatedZip(t, tree()...),
		"folders":  storedZip(t, append(tree(), text("inputs/a/", ""), text("outputs/none/", ""))...),
		"nothing":  storedZip(t),
	}
	for name, data := range zips {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p, _ := openTest(t, data)
			var expected []string
			if name != "nothing" {
				for _, f := range tree() {
					expected = append(expected, f.name)
				}
			}
			if err := fstest.TestFS(p, expected...); err != nil {
				t.Fatal(err)
			}
		})
	}
}

func TestEntriesAreThoseOfTheDirectory(t *testing.T) {
	t.Parallel()
	p, _ := openTest(t, storedZip(t, append(tree(), text("outputs/none/", ""))...))
	got := slices.Collect(p.Entries())
	if len(got) != len(tree()) {
		t.Fatalf("got %d entries, want %d", len(got), len(tree()))
	}
	e := got[slices.IndexFunc(got, func(e Entry) bool { return e.Name == "inputs/a/x.tif" })]
	want := Entry{Name: "inputs/a/x.tif", Size: 5, CompressedSize: 5, CRC32: crc32.ChecksumIEEE([]byte("input")), Modified: testTime}
	if e != want {
		t.Errorf("got %+v, want %+v", e, want)
	}
}

func TestListingCostsTwoRequests(t *testing.T) {
	t.Parallel()
	const n = 100_000
	files := make([]testFile, n)
	for i := range files {
		files[i] = text(fmt.Sprintf("outputs/%03d/scene_%06d.tif", i/1000, i), "data")
	}
	data := storedZip(t, files...)
	src := &memorySource{data: data}
	p, err := openPackage(t.Context(), "P1", src)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	found := 0
	err = fs.WalkDir(p, ".", func(_ string, d fs.DirEntry, err error) error {
		if !d.IsDir() {
			found++
		}
		return err
	})
	if err != nil || found != n {
		t.Errorf("got %d files, %v, want %d", found, err, n)
	}
	size := int64(binary.LittleEndian.Uint32(data[len(data)-10:]))
	requests, asked := src.counts()
	if requests > 2 || asked > size+100<<10 {
		t.Errorf("%d requests for %d bytes, want 2 for the %d of the directory", requests, asked, size)
	}
	t.Logf("%d requests, %d bytes, directory of %d", requests, asked, size)
}

func TestSequentialReadIsOneRequest(t *testing.T) {
	t.Parallel()
	content := strings.Repeat("0123456789", 100_000)
	for name, data := range map[string][]byte{"stored": storedZip(t, text("a", content)), "deflated": deflatedZip(t, text("a", content))} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p, src := openTest(t, data)
			src.counts()
			f, err := p.Open("a")
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			var got bytes.Buffer
			if _, err := io.CopyBuffer(&got, struct{ io.Reader }{f}, make([]byte, 1000)); err != nil {
				t.Fatal(err)
			}
			if got.String() != content {
				t.Error("the content is another")
			}
			if n, _ := src.counts(); n != 1 {
				t.Errorf("%d requests, want 1", n)
			}
			_, seeks := f.(io.Seeker)
			_, readsAt := f.(io.ReaderAt)
			if want := name == "stored"; seeks != want || readsAt != want {
				t.Errorf("Seeker %v and ReaderAt %v, want %v", seeks, readsAt, want)
			}
		})
	}
}

func TestShortSeeksStayInTheRequest(t *testing.T) {
	t.Parallel()
	p, src := openTest(t, storedZip(t, text("a", strings.Repeat("x", 2<<20))))
	src.counts()
	f, _ := p.Open("a")
	defer f.Close()
	one := make([]byte, 1)
	for off := int64(0); off < 1<<20; off += 100_000 {
		if _, err := f.(io.Seeker).Seek(off, io.SeekStart); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(f, one); err != nil {
			t.Fatal(err)
		}
	}
	if n, _ := src.counts(); n != 1 {
		t.Errorf("%d requests, want 1", n)
	}
}

// TestStoredFileReadsLikeMemory compares any mix of calls with a bytes.Reader.
func TestStoredFileReadsLikeMemory(t *testing.T) {
	t.Parallel()
	content := make([]byte, 600<<10)
	rng := rand.New(rand.NewPCG(1, 2))
	for i := range content {
		content[i] = byte(rng.Uint32())
	}
	p, _ := openTest(t, storedZip(t, testFile{name: "a", data: content}))
	rapid.Check(t, func(t *rapid.T) {
		f, err := p.Open("a")
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		got, want := f.(io.ReadSeeker), bytes.NewReader(content)
		for range rapid.IntRange(1, 8).Draw(t, "calls") {
			n := rapid.IntRange(1, 300<<10).Draw(t, "n")
			a, b := make([]byte, n), make([]byte, n)
			off := rapid.Int64Range(0, int64(len(content))+10).Draw(t, "off")
			var errA, errB error
			switch rapid.SampledFrom([]string{"seek", "read", "readat"}).Draw(t, "call") {
			case "seek":
				_, errA = got.Seek(off, io.SeekStart)
				_, errB = want.Seek(off, io.SeekStart)
			case "read":
				_, errA = io.ReadFull(got, a)
				_, errB = io.ReadFull(want, b)
			case "readat":
				_, errA = got.(io.ReaderAt).ReadAt(a, off)
				_, errB = want.ReadAt(b, off)
			}
			if !errors.Is(errA, errB) || !bytes.Equal(a, b) {
				t.Fatalf("got %v, want %v; same bytes: %v", errA, errB, bytes.Equal(a, b))
			}
		}
	})
}

func TestReadAtIsConcurrent(t *testing.T) {
	t.Parallel()
	content := []byte(strings.Repeat("0123456789", 1000))
	p, _ := openTest(t, storedZip(t, testFile{name: "a", data: content}))
	f, _ := p.Open("a")
	defer f.Close()
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			b := make([]byte, 500)
			if _, err := f.(io.ReaderAt).ReadAt(b, int64(i*500)); err != nil || !bytes.Equal(b, content[i*500:][:500]) {
				t.Errorf("at %d: %v", i*500, err)
			}
		})
	}
	wg.Wait()
}

func TestWrongContentIsNoticedAtTheEnd(t *testing.T) {
	t.Parallel()
	for name, data := range map[string][]byte{"stored": storedZip(t, text("a", "right content")), "deflated": deflatedZip(t, text("a", "right content"))} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p, _ := openTest(t, damage(t, data, "a"))
			_, err := fs.ReadFile(p, "a")
			if _, ok := errors.AsType[Problem](err); !ok {
				t.Errorf("got %v, want a Problem", err)
			}
		})
	}
}

func TestClosedPackageReadsNothing(t *testing.T) {
	t.Parallel()
	for _, data := range [][]byte{storedZip(t, text("a", "content")), deflatedZip(t, text("a", "content"))} {
		p, _ := openTest(t, data)
		started, _ := p.Open("a")
		defer started.Close()
		if _, err := started.Read(make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		fresh, _ := p.Open("a")
		defer fresh.Close()
		_ = p.Close()
		for _, f := range []fs.File{started, fresh} {
			if _, err := f.Read(make([]byte, 1)); !errors.Is(err, fs.ErrClosed) {
				t.Errorf("got %v, want %v", err, fs.ErrClosed)
			}
		}
	}
}

func TestClosedFileReadsNothing(t *testing.T) {
	t.Parallel()
	p, _ := openTest(t, storedZip(t, text("a", "content")))
	f, _ := p.Open("a")
	_ = f.Close()
	if _, err := f.Read(make([]byte, 1)); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("read: got %v, want %v", err, fs.ErrClosed)
	}
	if _, err := f.(io.ReaderAt).ReadAt(make([]byte, 1), 0); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("readat: got %v, want %v", err, fs.ErrClosed)
	}
}

// hostile has what must not be opened, and a part of why.
func hostile(t testing.TB) map[string]struct {
	data []byte
	why  string
} {
	stored := func(files ...testFile) []byte { return storedZip(t, files...) }
	header := func(change func(*zip.FileHeader)) []byte {
		return stored(testFile{name: "a", data: []byte("content"), change: change})
	}
	ok := stored(text("a", "content"), text("b", "content"))
	edit := func(at int, value uint32) []byte {
		data := bytes.Clone(ok)
		if at < 0 {
			at += len(data)
		}
		binary.LittleEndian.PutUint32(data[at:], value)
		return data
	}
	second := bytes.LastIndex(ok, []byte("PK\x01\x02"))
	return map[string]struct {
		data []byte
		why  string
	}{
		"up":             {stored(text("../a", "x")), "not a path within"},
		"up inside":      {stored(text("a/../../b", "x")), "not a path within"},
		"absolute":       {stored(text("/a", "x")), "not a path within"},
		"empty name":     {stored(text("", "x")), "not a path within"},
		"dot":            {stored(text(".", "x")), "not a path within"},
		"empty element":  {stored(text("a//b", "x")), "not a path within"},
		"not UTF-8":      {stored(text("a\xff", "x")), "not a path within"},
		"backslash":      {stored(text(`..\a`, "x")), "backslash"},
		"NUL":            {stored(text("a\x00b", "x")), "control character"},
		"twice":          {stored(text("a", "x"), text("a", "y")), "twice"},
		"file as folder": {stored(text("a", "x"), text("a/b", "y")), "file and a folder"},
		"folder twice":   {stored(text("a/", ""), text("a", "y")), "twice"},
		"folder content": {bytes.ReplaceAll(stored(text("a+", "x")), []byte("a+"), []byte("a/")), "folder with content"},
		"two sizes":      {header(func(h *zip.FileHeader) { h.UncompressedSize64 = 1 << 40 }), "two sizes"},
		"bomb":           {header(func(h *zip.FileHeader) { h.Method, h.UncompressedSize64 = zip.Deflate, 1<<20 }), "larger than"},
		"no ZIP":         {[]byte(strings.Repeat("x", 1000)), "not a ZIP"},
		"nothing":        {nil, "not a ZIP"},
		"cut":            {ok[:len(ok)-1], "not a ZIP"},
		"behind data":    {append([]byte("#!"), ok...), "not where"},
		"entries":        {edit(-12, 0xfffffff), "directory"},
		"overlap":        {edit(second+42, 1), "overlaps"},
		"local beyond":   {edit(second+42, 1<<30), "overlaps"},
		"signature":      {edit(second, 0), "damaged"},
	}
}

func TestHostilePackagesAreRefused(t *testing.T) {
	t.Parallel()
	for name, test := range hostile(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := openPackage(t.Context(), "P1", &memorySource{data: test.data})
			if e, ok := errors.AsType[*FormatError](err); !ok || !strings.Contains(e.Reason, test.why) {
				t.Errorf("got %v, want a FormatError with %q", err, test.why)
			}
		})
	}
}

func TestLocalNameMustBeThatOfTheDirectory(t *testing.T) {
	t.Parallel()
	data := storedZip(t, text("a", "content"))
	data[localLen] = 'b'
	p, _ := openTest(t, data)
	_, err := p.ReadFile("a")
	if _, ok := errors.AsType[*FormatError](err); !ok {
		t.Errorf("got %v, want a FormatError", err)
	}
}

// end64 is an end of a directory of that many entries and bytes, in ZIP64.
func end64(entries, size, offset uint64) []byte {
	le := binary.LittleEndian
	b := le.AppendUint32(nil, end64Signature)
	b = le.AppendUint64(b, end64Len-12)
	b = append(b, make([]byte, 12)...)
	for _, v := range []uint64{entries, entries, size, offset} {
		b = le.AppendUint64(b, v)
	}
	b = le.AppendUint32(b, locator64Signature)
	b = le.AppendUint32(b, 0)
	b = le.AppendUint64(b, 0)
	b = le.AppendUint32(b, 1)
	b = le.AppendUint32(b, endSignature)
	b = append(b, make([]byte, 4)...)
	b = append(b, bytes.Repeat([]byte{0xff}, 12)...)
	return append(b, 0, 0)
}

// It is not parallel, since it counts what the process allocates.
func TestHugeDirectoriesCostNoMemory(t *testing.T) {
	for _, test := range []struct{ entries, size, offset uint64 }{
		{1 << 62, 0, 0}, {1, 1 << 62, 0}, {1, 1 << 62, 1<<64 - 1<<62}, {maxEntries, maxDirectory, 0}, {maxEntries, 0, 0}, {0, 0, 1 << 63},
	} {
		data := end64(test.entries, test.size, test.offset)
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, err := openPackage(t.Context(), "P1", &memorySource{data: data})
		runtime.ReadMemStats(&after)
		if _, ok := errors.AsType[*FormatError](err); !ok {
			t.Errorf("%+v: got %v, want a FormatError", test, err)
		}
		if allocated := after.TotalAlloc - before.TotalAlloc; allocated > 1<<20 {
			t.Errorf("%+v: %v bytes allocated", test, allocated)
		}
	}
	if _, err := openPackage(t.Context(), "P1", &memorySource{data: end64(0, 0, 0)}); err != nil {
		t.Errorf("an empty package in ZIP64: %v", err)
	}
}

// endSource is a package of any size of which there is the end alone.
type endSource struct {
	end  []byte
	size int64
}

func (s endSource) Size() int64 { return s.size }

func (s endSource) ReadRange(_ context.Context, off, n int64) (io.ReadCloser, error) {
	if off+n < s.size {
		return nil, fmt.Errorf("range %d+%d of %d bytes", off, n, s.size)
	}
	return io.NopCloser(bytes.NewReader(append(make([]byte, n-int64(len(s.end))), s.end...))), nil
}

func TestLargeDirectoriesAreNotFetched(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ entries, size uint64 }{{1, maxDirectory + 1}, {maxEntries + 1, maxDirectory}} {
		end := end64(test.entries, test.size, 0)
		binary.LittleEndian.PutUint64(end[end64Len+8:], test.size)
		_, err := openPackage(t.Context(), "P1", endSource{end, int64(test.size) + int64(len(end))})
		if e, ok := errors.AsType[*FormatError](err); !ok || !strings.Contains(e.Reason, "too large") {
			t.Errorf("%+v: got %v, want a FormatError", test, err)
		}
	}
}

// What is unpacked is never more than what was said, and so checked for.
func TestUnpackingEndsAtTheSize(t *testing.T) {
	t.Parallel()
	f := deflated(t, strings.Repeat("x", 1<<20))(func(h *zip.FileHeader) { h.UncompressedSize64 = 1 << 19 })
	p, _ := openTest(t, storedZip(t, f))
	got, err := p.ReadFile("a")
	if _, ok := errors.AsType[Problem](err); !ok || len(got) > 1<<19 {
		t.Errorf("got %d bytes, %v", len(got), err)
	}
}

// FuzzOpenPackage opens what may be anything, and reads all of it.
func FuzzOpenPackage(f *testing.F) {
	f.Add(storedZip(f, withManifest(f, nil, tree()...)...))
	f.Add(deflatedZip(f, tree()...))
	f.Add(end64(0, 0, 0))
	for _, test := range hostile(f) {
		f.Add(test.data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		src := &memorySource{data: data}
		p, err := openPackage(t.Context(), "P1", src)
		if err != nil {
			if _, ok := errors.AsType[*FormatError](err); !ok {
				t.Fatalf("got %v, want a FormatError", err)
			}
			return
		}
		defer p.Close()
		err = fs.WalkDir(p, ".", func(name string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			if !fs.ValidPath(name) {
				t.Errorf("%q is not a valid path", name)
			}
			if d.IsDir() {
				return nil
			}
			b, err := p.ReadFile(name)
			info, _ := d.Info()
			if err == nil && int64(len(b)) != info.Size() {
				t.Errorf("%s has %d bytes, not %d", name, len(b), info.Size())
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
		_, _ = verifyPackage(t.Context(), src, &verifyOptions{})
		if src.open != 0 {
			t.Errorf("%d bodies were not closed", src.open)
		}
	})
}

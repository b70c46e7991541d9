package vzip_test

import (
	"archive/zip"
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"pgregory.net/rapid"

	"github.com/downlink-go/downlink/server/internal/vzip"
)

// test is what a *testing.T and a *rapid.T have in common.
type test interface {
	Helper()
	Fatalf(format string, args ...any)
	Context() context.Context
}

// checkArchive opens an archive with archive/zip and compares each entry.
func checkArchive(t test, archive []byte, entries []vzip.Entry, contents [][]byte) {
	t.Helper()
	z, err := zip.NewReader(bytes.NewReader(archive), int64(len(archive)))
	if err != nil {
		t.Fatalf("zip.NewReader: %v", err)
	}
	if len(z.File) != len(entries) {
		t.Fatalf("%d entries, want %d", len(z.File), len(entries))
	}
	for i, f := range z.File {
		var flags uint16
		if strings.IndexFunc(f.Name, func(r rune) bool { return r >= utf8.RuneSelf }) >= 0 {
			flags = 1 << 11
		}
		if f.Name != entries[i].Name || f.Flags != flags || f.Method != zip.Store || f.Mode() != 0o644 || len(f.Extra) != 0 {
			t.Fatalf("entry %d is %q, flags %#x, method %d, mode %v, extra %x; want %q, flags %#x",
				i, f.Name, f.Flags, f.Method, f.Mode(), f.Extra, entries[i].Name, flags)
		}
		if want := dosRounded(entries[i].Modified); !f.Modified.Equal(want) {
			t.Fatalf("entry %d is of %v, want %v", i, f.Modified, want)
		}
		rc, err := f.Open()
		if err != nil {
			t.Fatalf("open entry %d: %v", i, err)
		}
		got, err := io.ReadAll(rc) // checks the CRC-32
		if err = errors.Join(err, rc.Close()); err != nil {
			t.Fatalf("read entry %d: %v", i, err)
		}
		if !bytes.Equal(got, contents[i]) || f.UncompressedSize64 != uint64(len(got)) || f.CompressedSize64 != uint64(len(got)) {
			t.Fatalf("entry %d has %d bytes, which are not the %d expected", i, len(got), len(contents[i]))
		}
	}
}

// dosRounded is what is left of a time in an archive.
func dosRounded(t time.Time) time.Time {
	first := time.Date(1980, time.January, 1, 0, 0, 0, 0, time.UTC)
	last := time.Date(2108, time.January, 1, 0, 0, 0, 0, time.UTC).Add(-2 * time.Second)
	switch {
	case t.Before(first):
		return first
	case t.After(last):
		return last
	}
	return time.Unix(t.Unix()&^1, 0)
}

// checkRange compares n bytes from off on, got in each way, with the archive.
func checkRange(t test, l *vzip.Layout, src vzip.Source, archive []byte, off, n int64, step int) {
	t.Helper()
	want := archive[min(off, l.Size()):]
	want = want[:min(n, int64(len(want)))]
	r := l.NewReader(t.Context(), src)
	defer r.Close()
	seek := func() {
		t.Helper()
		if got, err := r.Seek(off, io.SeekStart); got != off || err != nil {
			t.Fatalf("Seek(%d) = %d, %v", off, got, err)
		}
	}
	check := func(how string, got []byte) {
		t.Helper()
		if !bytes.Equal(got, want) {
			t.Fatalf("%s: the %d bytes from %d on are not those of the archive", how, n, off)
		}
	}

	seek()
	var b bytes.Buffer
	wantErr := io.EOF
	if int64(len(want)) == n {
		wantErr = nil
	}
	if copied, err := r.CopyN(&b, n); copied != int64(len(want)) || !errors.Is(err, wantErr) {
		t.Fatalf("CopyN(%d) at %d = %d, %v, want %d, %v", n, off, copied, err, len(want), wantErr)
	}
	check("CopyN", b.Bytes())

	seek()
	got := make([]byte, len(want))
	if _, err := io.ReadFull(r, got); err != nil {
		t.Fatalf("Read: %v", err)
	}
	check("Read", got)

	// In steps, the even ones by Read and the odd ones by CopyN.
	seek()
	b.Reset()
	for i := 0; b.Len() < len(want); i++ {
		part := int64(min(step, len(want)-b.Len()))
		var err error
		if i%2 == 0 {
			_, err = io.CopyN(&b, struct{ io.Reader }{r}, part)
		} else {
			_, err = r.CopyN(&b, part)
		}
		if err != nil {
			t.Fatalf("step %d: %v", i, err)
		}
	}
	check("steps", b.Bytes())
}

// genName draws names that are valid, in any script.
var genName = rapid.Custom(func(t *rapid.T) string {
	element := rapid.OneOf(
		rapid.StringMatching(`[a-z0-9_ ~]{1,12}(\.tif)?`),
		rapid.StringOfN(rapid.Rune().Filter(func(r rune) bool { return r != '/' && r != '\\' && r != 0 }), 1, 8, -1),
	).Filter(func(s string) bool { return s != "." && s != ".." })
	return strings.Join(rapid.SliceOfN(element, 1, 3).Draw(t, "elements"), "/")
})

// genEntries draws entries and their content.
func genEntries(t *rapid.T) ([]vzip.Entry, [][]byte) {
	names := rapid.SliceOfNDistinct(genName, 0, 20, rapid.ID).Draw(t, "names")
	entries := make([]vzip.Entry, len(names))
	contents := make([][]byte, len(names))
	size := rapid.OneOf(rapid.IntRange(0, 10), rapid.IntRange(0, 9000), rapid.IntRange(small-1, large+1))
	seconds := rapid.Int64Range(-5_000_000_000, 9_000_000_000) // 1811 to 2255
	for i, name := range names {
		contents[i] = noise(uint64(i), size.Draw(t, "size"))
		entries[i] = file(name, contents[i])
		entries[i].Modified = time.Unix(seconds.Draw(t, "modified"), 999_999_999)
		if rapid.Bool().Draw(t, "held") {
			entries[i].Data = contents[i]
		}
	}
	return entries, contents
}

func TestProperties(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		entries, contents := genEntries(rt)
		src := newMemory(t, contents...)
		l, err := vzip.New(entries)
		if err != nil {
			rt.Fatalf("New: %v", err)
		}
		var b bytes.Buffer
		if _, err := l.NewReader(rt.Context(), src).CopyN(&b, l.Size()); err != nil {
			rt.Fatalf("CopyN: %v", err)
		}
		checkArchive(rt, b.Bytes(), entries, contents)
		if got, want := l.CRC32(), crc32.ChecksumIEEE(b.Bytes()); got != want {
			rt.Errorf("CRC32 is %08x, want %08x", got, want)
		}
		for i := range entries {
			off, n, ok := l.Content(i)
			if ok != (entries[i].Data == nil && len(contents[i]) > 0) || !bytes.Equal(b.Bytes()[off:off+n], contents[i]) {
				rt.Errorf("the content of entry %d is said to be %d bytes at %d, %t", i, n, off, ok)
			}
		}
		for range 5 {
			off := rapid.Int64Range(0, l.Size()+1).Draw(rt, "off")
			n := rapid.Int64Range(0, l.Size()-off+2).Draw(rt, "n")
			step := rapid.IntRange(1, 70_000).Draw(rt, "step")
			if n/int64(step) > 2000 {
				step = 1000
			}
			checkRange(rt, l, src, b.Bytes(), off, n, step)
		}
	})
}

// TestEveryOffset starts ranges of many lengths at every byte of an archive.
func TestEveryOffset(t *testing.T) {
	t.Parallel()
	contents := [][]byte{noise(1, 7), noise(2, 5), {}, noise(3, 1)}
	entries := []vzip.Entry{file("a", contents[0]), file("ü/held", contents[1]), file("empty", nil), file("b", contents[3])}
	entries[1].Data = contents[1]
	l, src := mustNew(t, entries...), newMemory(t, contents...)
	archive := whole(t, l, src)
	checkArchive(t, archive, entries, contents)
	for off := range l.Size() {
		for n := int64(0); n <= l.Size()-off+1; n += 1 + n/8 {
			checkRange(t, l, src, archive, off, n, 1+int(n)/3)
		}
	}
}

// FuzzLayout lays out whatever the fuzzer makes names and contents of: New
// refuses it, or archive/zip reads it back.
func FuzzLayout(f *testing.F) {
	f.Add("manifest.json\noutputs/ü.tif", "{}\nabc", int64(1_790_000_000))
	f.Add("a\na", "\n", int64(-1))
	f.Add("a/../b", "", int64(1<<40))
	f.Add("", "", int64(0))
	f.Add("a\\b\n/c\nd/\n\xff", "x\ny\nz", int64(0))
	f.Fuzz(func(t *testing.T, names, data string, seconds int64) {
		var entries []vzip.Entry
		var contents [][]byte
		parts := strings.Split(data, "\n")
		for i, name := range strings.Split(names, "\n") {
			content := []byte(parts[i%len(parts)])
			entry := file(name, content)
			entry.Modified = time.Unix(seconds%(1<<40), 0)
			if i%2 == 0 {
				entry.Data = content
			}
			entries, contents = append(entries, entry), append(contents, content)
		}
		l, err := vzip.New(entries)
		if err != nil {
			if !errors.Is(err, vzip.ErrInvalidName) && !errors.Is(err, vzip.ErrDuplicateName) {
				t.Fatalf("New: %v", err)
			}
			return
		}
		checkArchive(t, whole(t, l, newMemory(t, contents...)), entries, contents)
	})
}

// FuzzRange reads ranges of an archive that has some of everything.
func FuzzRange(f *testing.F) {
	contents := [][]byte{noise(1, 300), noise(2, small), noise(3, large), {}, noise(4, 200_000), noise(5, 1)}
	var entries []vzip.Entry
	for i, content := range contents {
		entries = append(entries, file(fmt.Sprintf("%d/é", i), content))
	}
	entries[0].Data = contents[0]
	l := mustNew(f, entries...)
	archive := whole(f, l, newMemory(f, contents...))
	for _, off := range []int64{0, 1, 40, 400, 66_000, 66_040, 131_500, l.Size() - 400, l.Size() - 22, l.Size() - 1, l.Size()} {
		f.Add(off, int64(1), uint16(1))
		f.Add(off, l.Size(), uint16(32<<10))
	}
	f.Fuzz(func(t *testing.T, off, n int64, step uint16) {
		off, n = max(0, off), max(0, n)
		if step < 100 {
			n = min(n, 5000) // not forever
		}
		checkRange(t, l, newMemory(t, contents...), archive, off, n, 1+int(step))
	})
}

package vzip_test

import (
	"archive/zip"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"regexp"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/downlink-go/downlink/server/internal/vzip"
)

var comment = regexp.MustCompile(`#.*`)

// unhex decodes hex digits with white space and comments.
func unhex(t *testing.T, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.Join(strings.Fields(comment.ReplaceAllString(s, "")), ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestGolden(t *testing.T) {
	t.Parallel()
	want := unhex(t, `
		# entry 0: held content
		504b0304        # local file header
		0a00            # version needed: 1.0
		0000            # flags
		0000            # method: stored
		b56c            # time: 13:37:42
		785d            # date: 2026-11-24
		06b0a1dd        # CRC-32
		03000000        # compressed size
		03000000        # uncompressed size
		0d00            # length of the name
		0000            # length of the extra field
		6d616e69666573742e6a736f6e # manifest.json
		7b7d0a          # {}\n

		# entry 1: a name that is not ASCII, a time before 1980
		504b0304
		0a00
		0008            # flags: UTF-8
		0000
		0000            # time: 00:00:00
		2100            # date: 1980-01-01
		c2412435        # CRC-32
		03000000
		03000000
		0c00
		0000
		6f7574707574732fc3bc2e74   # outputs/ü.t
		616263          # abc

		# central directory header 0
		504b0102
		2d03            # version made by: Unix, 4.5
		0a00            # version needed: 1.0
		0000 0000 b56c 785d 06b0a1dd 03000000 03000000
		0d00            # length of the name
		0000            # length of the extra field
		0000            # length of the comment
		0000            # disk number
		0000            # internal attributes
		0000a481        # external attributes: -rw-r--r--
		00000000        # offset of the local header
		6d616e69666573742e6a736f6e

		# central directory header 1
		504b0102
		2d03
		0a00
		0008 0000 0000 2100 c2412435 03000000 03000000
		0c00
		0000
		0000
		0000
		0000
		0000a481
		2e000000        # 46
		6f7574707574732fc3bc2e74

		# end of central directory record
		504b0506
		0000            # this disk
		0000            # disk with the central directory
		0200            # entries on this disk
		0200            # entries
		75000000        # size of the central directory: 117
		5b000000        # its offset: 91
		0000            # length of the comment
	`)
	src := newMemory(t, nil, []byte("abc"))
	entry := file("outputs/ü.t", []byte("abc"))
	entry.Modified = time.Time{}
	l := mustNew(t, vzip.Entry{Name: "manifest.json", Modified: modified, Data: []byte("{}\n")}, entry)
	if got := whole(t, l, src); !bytes.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", hex.Dump(got), hex.Dump(want))
	}
}

// TestGoldenZip64 checks the headers of an entry that is one byte too large,
// and of one that only starts too far in.
func TestGoldenZip64(t *testing.T) {
	t.Parallel()
	const size = 0xFFFFFFFF
	wantStart := unhex(t, `
		504b0304
		2d00            # version needed: 4.5
		0000 0000 b56c 785d
		`+crcHex(size)+`
		ffffffff        # compressed size
		ffffffff        # uncompressed size
		0100            # length of the name
		1400            # length of the extra field
		61              # a
		0100            # ZIP64 extended information
		1000            # length: 16
		ffffffff00000000 # uncompressed size
		ffffffff00000000 # compressed size
	`)
	wantEnd := unhex(t, `
		# local file header of entry 1: nothing in it is too large
		504b0304 0a00 0000 0000 b56c 785d 00000000 00000000 00000000 0100 0000 62

		# central directory header 0
		504b0102
		2d03 2d00 0000 0000 b56c 785d
		`+crcHex(size)+`
		ffffffff
		ffffffff
		0100
		1400            # length of the extra field
		0000 0000 0000 0000a481
		00000000        # offset of the local header
		61
		0100            # ZIP64 extended information
		1000            # length: 16
		ffffffff00000000 # uncompressed size
		ffffffff00000000 # compressed size

		# central directory header 1
		504b0102
		2d03
		2d00            # version needed: 4.5, for the offset
		0000 0000 b56c 785d 00000000 00000000 00000000
		0100
		0c00            # length of the extra field
		0000 0000 0000 0000a481
		ffffffff        # offset of the local header
		62
		0100            # ZIP64 extended information
		0800            # length: 8
		3200000001000000 # offset: 2^32 + 50

		# ZIP64 end of central directory record
		504b0606
		2c00000000000000 # length of the rest: 44
		2d03            # version made by: Unix, 4.5
		2d00            # version needed: 4.5
		00000000        # this disk
		00000000        # disk with the central directory
		0200000000000000 # entries on this disk
		0200000000000000 # entries
		7e00000000000000 # size of the central directory: 126
		5100000001000000 # its offset: 2^32 + 81

		# ZIP64 end of central directory locator
		504b0607
		00000000        # disk with the record
		cf00000001000000 # its offset: 2^32 + 207
		01000000        # disks

		# end of central directory record
		504b0506
		0000
		0000
		0200
		0200
		7e000000
		ffffffff        # offset of the central directory
		0000
	`)
	l := mustNew(t, zeroFile("a", size), zeroFile("b", 0))
	at := readerAt{t, l, zeros{}}
	got := make([]byte, len(wantStart))
	if _, err := at.ReadAt(got, 0); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, wantStart) {
		t.Errorf("start: got\n%s\nwant\n%s", hex.Dump(got), hex.Dump(wantStart))
	}
	if got, want := l.Size(), int64(len(wantStart)+size+len(wantEnd)); got != want {
		t.Fatalf("Size = %d, want %d", got, want)
	}
	got = make([]byte, len(wantEnd))
	if _, err := at.ReadAt(got, l.Size()-int64(len(got))); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, wantEnd) {
		t.Errorf("end: got\n%s\nwant\n%s", hex.Dump(got), hex.Dump(wantEnd))
	}
}

func crcHex(size int64) string {
	c := zeroCRC(size)
	return fmt.Sprintf("%02x%02x%02x%02x", byte(c), byte(c>>8), byte(c>>16), byte(c>>24))
}

func TestEmptyArchive(t *testing.T) {
	t.Parallel()
	for _, entries := range [][]vzip.Entry{nil, {}} {
		l := mustNew(t, entries...)
		got := whole(t, l, nil)
		if want := append([]byte("PK\x05\x06"), make([]byte, 18)...); !bytes.Equal(got, want) {
			t.Errorf("got %x, want %x", got, want)
		}
		z, err := zip.NewReader(bytes.NewReader(got), l.Size())
		if err != nil || len(z.File) != 0 || l.Len() != 0 {
			t.Errorf("zip.NewReader: %v; Len = %d", err, l.Len())
		}
	}
}

func TestNewErrors(t *testing.T) {
	t.Parallel()
	named := func(names ...string) []vzip.Entry {
		entries := make([]vzip.Entry, len(names))
		for i, name := range names {
			entries[i].Name = name
		}
		return entries
	}
	for _, tt := range []struct {
		name    string
		entries []vzip.Entry
		want    error
		text    string
	}{
		{"empty name", named(""), vzip.ErrInvalidName, `entry 0 "": invalid name`},
		{"name too long", named("a", strings.Repeat("n", 65_536)), vzip.ErrInvalidName, `entry 1 "` + strings.Repeat("n", 256) + `...": invalid name`},
		{"name not UTF-8", named("a\xff"), vzip.ErrInvalidName, `entry 0 "a\xff": invalid name`},
		{"rooted name", named("/a"), vzip.ErrInvalidName, ""},
		{"directory", named("a/"), vzip.ErrInvalidName, ""},
		{"empty element", named("a//b"), vzip.ErrInvalidName, ""},
		{"dot", named("."), vzip.ErrInvalidName, ""},
		{"parent", named("a/../b"), vzip.ErrInvalidName, ""},
		{"backslash", named(`a\b`), vzip.ErrInvalidName, ""},
		{"NUL", named("a\x00b"), vzip.ErrInvalidName, ""},
		{"duplicate", named("a", "b", "a"), vzip.ErrDuplicateName, `entry 2 "a": duplicate name`},
		{"negative size", []vzip.Entry{{Name: "a", Size: -1}}, vzip.ErrInvalidSize, `entry 0 "a": negative size`},
		{"size too large", []vzip.Entry{{Name: "a", Size: math.MaxInt64}}, vzip.ErrTooLarge, `entry 0 "a": archive too large`},
		{"sum overflows", []vzip.Entry{{Name: "a", Size: 1 << 62}, {Name: "b", Size: 1 << 62}}, vzip.ErrTooLarge, `entry 1 "b": archive too large`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			l, err := vzip.New(tt.entries)
			if l != nil || !errors.Is(err, tt.want) {
				t.Fatalf("New = %v, %v, want %v", l, err, tt.want)
			}
			if tt.text != "" && err.Error() != tt.text {
				t.Errorf("error is %q, want %q", err, tt.text)
			}
		})
	}
}

func TestNameLengths(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("n", 65_535)
	l := mustNew(t, file("n", nil), file(long, []byte("x")), file(long[:65_534], nil))
	archive := whole(t, l, newMemory(t, nil, []byte("x"), nil))
	z, err := zip.NewReader(bytes.NewReader(archive), l.Size())
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []int{1, 65_535, 65_534} {
		if got := len(z.File[i].Name); got != want {
			t.Errorf("name %d has %d bytes, want %d", i, got, want)
		}
	}
}

func TestModified(t *testing.T) {
	t.Parallel()
	lowest := time.Date(1980, time.January, 1, 0, 0, 0, 0, time.UTC)
	highest := time.Date(2107, time.December, 31, 23, 59, 58, 0, time.UTC)
	east := time.FixedZone("east", 14*60*60)
	for _, tt := range []struct{ in, want time.Time }{
		{modified, modified},
		{modified.Add(1999 * time.Millisecond), modified},
		{modified.Add(2 * time.Second), modified.Add(2 * time.Second)},
		{modified.In(east), modified},
		{time.Date(2000, time.February, 29, 0, 0, 0, 0, east), time.Date(2000, time.February, 28, 10, 0, 0, 0, time.UTC)},
		{time.Time{}, lowest},
		{time.Unix(0, 0), lowest},
		{lowest.Add(-1), lowest},
		{lowest, lowest},
		{time.Date(1980, time.January, 1, 1, 0, 0, 0, east), lowest},
		{highest, highest},
		{highest.Add(2*time.Second - 1), highest},
		{highest.Add(2 * time.Second), highest},
		{time.Date(9999, time.June, 1, 0, 0, 0, 0, time.UTC), highest},
	} {
		entry := file("a", nil)
		entry.Modified = tt.in
		l := mustNew(t, entry)
		z, err := zip.NewReader(bytes.NewReader(whole(t, l, nil)), l.Size())
		if err != nil {
			t.Fatal(err)
		}
		if got := z.File[0].Modified; !got.Equal(tt.want) {
			t.Errorf("%v is stored as %v, want %v", tt.in, got, tt.want)
		}
	}
}

// TestHeldContent checks that Data decides, even if it is empty.
func TestHeldContent(t *testing.T) {
	t.Parallel()
	l := mustNew(t,
		vzip.Entry{Name: "full", Size: 99, CRC32: 99, Data: []byte("content")},
		vzip.Entry{Name: "empty", Size: 99, CRC32: 99, Data: []byte{}})
	z, err := zip.NewReader(bytes.NewReader(whole(t, l, nil)), l.Size())
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []string{"content", ""} {
		if got := mustReadAll(t, z.File[i]); string(got) != want {
			t.Errorf("content is %q, want %q", got, want)
		}
	}
}

// TestDigestIsOfAllButTheSources leaves the source's content out of an archive
// and hashes the rest.
func TestDigestIsOfAllButTheSources(t *testing.T) {
	t.Parallel()
	entries := manyEntries(1000, 1000)
	for i := range entries {
		if i%10 == 0 {
			entries[i].Data = noise(uint64(i), 1000)
		}
	}
	l := mustNew(t, entries...)
	archive := whole(t, l, zeros{})
	rest := bytes.ReplaceAll(archive, make([]byte, 1000), nil)
	if len(rest) != len(archive)-900*1000 {
		t.Fatalf("%d of %d bytes are left", len(rest), len(archive))
	}
	if got, want := l.Digest(), sha256.Sum256(rest); got != want {
		t.Errorf("Digest = %x, want %x", got, want)
	}
}

func TestDigest(t *testing.T) {
	t.Parallel()
	base := func() []vzip.Entry {
		return []vzip.Entry{
			{Name: "manifest.json", Data: []byte("{}"), Modified: modified},
			{Name: "a", Size: 5, CRC32: 1, Modified: modified},
			{Name: "b", Size: 5, CRC32: 2, Modified: modified},
		}
	}
	digest := mustNew(t, base()...).Digest()
	if again := mustNew(t, base()...).Digest(); again != digest {
		t.Errorf("equal entries have digests %x and %x", digest, again)
	}
	for _, tt := range []struct {
		name   string
		change func(e []vzip.Entry)
	}{
		{"name", func(e []vzip.Entry) { e[1].Name = "c" }},
		{"size", func(e []vzip.Entry) { e[1].Size++ }},
		{"crc", func(e []vzip.Entry) { e[1].CRC32++ }},
		{"modified", func(e []vzip.Entry) { e[2].Modified = modified.Add(2 * time.Second) }},
		{"data", func(e []vzip.Entry) { e[0].Data = []byte("[]") }},
		{"order", func(e []vzip.Entry) { e[1], e[2] = e[2], e[1] }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			entries := base()
			tt.change(entries)
			if mustNew(t, entries...).Digest() == digest {
				t.Error("the digest is unchanged")
			}
		})
	}
}

// TestMemoryBytes compares the estimate with the heap. It is not parallel: no
// other test may allocate meanwhile.
func TestMemoryBytes(t *testing.T) {
	entries := manyEntries(50_000, 20_000)
	entries[0].Data = make([]byte, 1<<20)
	heap := func() int64 {
		runtime.GC()
		runtime.GC() // the first moves pools to their victim cache
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	var names int64
	for i := range entries {
		names += int64(len(entries[i].Name))
	}
	before := heap()
	l := mustNew(t, entries...)
	used := heap() - before + names + 1<<20 // which the entries had already
	runtime.KeepAlive(entries)

	if got := l.MemoryBytes(); got < used*9/10 || got > used*11/10 {
		t.Errorf("MemoryBytes = %d, in use %d", got, used)
	}
	if per := (l.MemoryBytes() - names - 1<<20) / 50_000; per > 100 {
		t.Errorf("an entry costs %d bytes and its name", per)
	}
}

// manyEntries returns n entries of the size given.
func manyEntries(n int, size int64) []vzip.Entry {
	entries := make([]vzip.Entry, n)
	crc := zeroCRC(size)
	for i := range entries {
		entries[i] = vzip.Entry{
			Name:     fmt.Sprintf("outputs/scene-%06d/band.tif", i),
			Size:     size,
			CRC32:    crc,
			Modified: modified,
		}
	}
	return entries
}

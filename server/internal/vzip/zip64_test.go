package vzip_test

import (
	"archive/zip"
	"encoding/binary"
	"fmt"
	"hash"
	"hash/crc32"
	"io"
	"testing"

	"github.com/downlink-go/downlink/server/internal/vzip"
)

const (
	max32   = 0xFFFFFFFF
	fourGiB = 1 << 32
)

// startsAt returns the size that an entry with a name of one byte must have for
// the next part of the archive to start at offset, if it is the first entry and
// less than 4 GiB.
func startsAt(offset int64) int64 { return offset - 31 }

func TestZip64(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name  string
		sizes []int64
		// local and central are the lengths of the data in the ZIP64 extra
		// fields, of each entry; 0 is for no such field.
		local, central []int
		end            bool // there is a ZIP64 end of central directory record
	}{
		{"small", []int64{100, 0, 5}, []int{0, 0, 0}, []int{0, 0, 0}, false},
		{"largest size without", []int64{max32 - 1}, []int{0}, []int{0}, true},
		{"size of the sentinel", []int64{max32}, []int{16}, []int{16}, true},
		{"size of 4 GiB", []int64{fourGiB}, []int{16}, []int{16}, true},
		{"first", []int64{fourGiB + 1, 5, 6}, []int{16, 0, 0}, []int{16, 8, 8}, true},
		{"middle", []int64{5, fourGiB + 1, 6}, []int{0, 16, 0}, []int{0, 16, 8}, true},
		{"last", []int64{5, 6, fourGiB + 1}, []int{0, 0, 16}, []int{0, 0, 16}, true},
		{"two", []int64{5 * fourGiB, max32, 6}, []int{16, 16, 0}, []int{16, 24, 8}, true},
		{"many that are large together", []int64{3 << 30, 3 << 30, 3 << 30}, []int{0, 0, 0}, []int{0, 0, 8}, true},
		{"largest offset without", []int64{startsAt(max32 - 1), 0}, []int{0, 0}, []int{0, 0}, true},
		{"offset of the sentinel", []int64{startsAt(max32), 0}, []int{0, 0}, []int{0, 8}, true},
		{"offset of 4 GiB", []int64{startsAt(fourGiB), 0}, []int{0, 0}, []int{0, 8}, true},
		{"largest directory offset without", []int64{startsAt(max32 - 1)}, []int{0}, []int{0}, false},
		{"directory offset of the sentinel", []int64{startsAt(max32)}, []int{0}, []int{0}, true},
		{"terabytes", []int64{1 << 43, 1 << 43, 9}, []int{16, 16, 0}, []int{16, 24, 8}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			entries := make([]vzip.Entry, len(tt.sizes))
			for i, size := range tt.sizes {
				entries[i] = zeroFile(string(rune('a'+i)), size)
			}
			l := mustNew(t, entries...)
			at := readerAt{t, l, zeros{}}
			z, err := zip.NewReader(at, l.Size())
			if err != nil {
				t.Fatal(err)
			}
			if len(z.File) != len(entries) {
				t.Fatalf("%d entries, want %d", len(z.File), len(entries))
			}
			for i, f := range z.File {
				if f.Name != entries[i].Name || f.UncompressedSize64 != uint64(tt.sizes[i]) ||
					f.CompressedSize64 != uint64(tt.sizes[i]) || f.CRC32 != entries[i].CRC32 {
					t.Errorf("entry %d: %+v", i, f.FileHeader)
				}
				checkZip64(t, "central header", f.ReaderVersion, f.Extra, tt.central[i])

				content, err := f.DataOffset()
				if err != nil {
					t.Fatal(err)
				}
				extra := tt.local[i]
				if extra > 0 {
					extra += 4
				}
				local := read(t, at, content-int64(31+extra), 31+extra)
				checkZip64(t, "local header", binary.LittleEndian.Uint16(local[4:]), local[31:], tt.local[i])
				if extra > 0 {
					for _, size := range []uint64{binary.LittleEndian.Uint64(local[35:]), binary.LittleEndian.Uint64(local[43:])} {
						if size != uint64(tt.sizes[i]) {
							t.Errorf("local header %d: size %d, want %d", i, size, tt.sizes[i])
						}
					}
				}
				// The content ends where the next header starts.
				next := "PK\x03\x04"
				if i == len(z.File)-1 {
					next = "PK\x01\x02"
				}
				if got := read(t, at, content+tt.sizes[i], 4); string(got) != next {
					t.Errorf("entry %d is followed by %q, want %q", i, got, next)
				}
			}
			checkEnd(t, at, l, tt.end)
		})
	}
}

// TestZip64Counts crosses the largest number of entries that fits 16 bits.
func TestZip64Counts(t *testing.T) {
	t.Parallel()
	for n, end := range map[int]bool{65_534: false, 65_535: true, 65_536: true} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			t.Parallel()
			l := mustNew(t, manyEntries(n, 0)...)
			at := readerAt{t, l, zeros{}}
			z, err := zip.NewReader(at, l.Size())
			if err != nil {
				t.Fatal(err)
			}
			if len(z.File) != n || l.Len() != n {
				t.Errorf("%d entries, Len %d, want %d", len(z.File), l.Len(), n)
			}
			checkEnd(t, at, l, end)
		})
	}
}

// checkZip64 checks that a header has a ZIP64 extra field with n bytes of data,
// or none if n is 0, and the version needed to go with it.
func checkZip64(t *testing.T, header string, version uint16, extra []byte, n int) {
	t.Helper()
	if n == 0 {
		if version != 10 || len(extra) != 0 {
			t.Errorf("%s: version %d, extra %x, want 10 and none", header, version, extra)
		}
		return
	}
	if version != 45 || len(extra) != 4+n || binary.LittleEndian.Uint16(extra) != 1 || binary.LittleEndian.Uint16(extra[2:]) != uint16(n) {
		t.Errorf("%s: version %d, extra %x, want 45 and %d bytes of ZIP64", header, version, extra, n)
	}
}

// checkEnd checks whether there is a ZIP64 end of central directory record.
func checkEnd(t *testing.T, at readerAt, l *vzip.Layout, want bool) {
	t.Helper()
	locator := read(t, at, l.Size()-22-20, 20)
	if got := string(locator[:4]) == "PK\x06\x07"; got != want {
		t.Fatalf("there is a ZIP64 locator: %t, want %t", got, want)
	}
	if want {
		record := int64(binary.LittleEndian.Uint64(locator[8:]))
		if got := read(t, at, record, 4); record != l.Size()-22-20-56 || string(got) != "PK\x06\x06" {
			t.Errorf("at %d is %q, want the ZIP64 record", record, got)
		}
	}
}

func read(t *testing.T, at io.ReaderAt, off int64, n int) []byte {
	t.Helper()
	p := make([]byte, n)
	if _, err := at.ReadAt(p, off); err != nil {
		t.Fatalf("ReadAt %d: %v", off, err)
	}
	return p
}

// TestZip64WholeContent streams an archive of more than 4 GiB and has the
// checksum of the large entry computed from what comes.
func TestZip64WholeContent(t *testing.T) {
	if testing.Short() {
		t.Skip("reads 4 GiB")
	}
	t.Parallel()
	l := mustNew(t, zeroFile("a", fourGiB+1), zeroFile("b", 5))
	r := newReader(t, l, zeros{})
	if _, err := r.Seek(31+20, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	w := checksum{hash: crc32.NewIEEE(), buf: make([]byte, 1<<20)}
	if _, err := r.CopyN(&w, fourGiB+1); err != nil {
		t.Fatal(err)
	}
	if got, want := w.hash.Sum32(), zeroCRC(fourGiB+1); got != want {
		t.Errorf("CRC-32 is %08x, want %08x", got, want)
	}
}

// checksum hashes in larger pieces than io.Copy does.
type checksum struct {
	hash hash.Hash32
	buf  []byte
}

func (w *checksum) Write(p []byte) (int, error) { return w.hash.Write(p) }

func (w *checksum) ReadFrom(r io.Reader) (int64, error) {
	return io.CopyBuffer(struct{ io.Writer }{w.hash}, r, w.buf)
}

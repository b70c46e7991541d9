// Package vzip lays out ZIP archives that are never built.
//
// Entries are STORED, so once the name, size and CRC-32 of each is known, every
// byte of the archive has a known place. A [Layout] holds those places, some
// hundred bytes an entry; a [Reader] streams any range of the archive by making
// the headers as they are needed and reading the entries from a [Source].
//
// The format is that of the PKWARE APPNOTE 6.3.10, whose sections the code
// cites, narrowed to what every reader understands:
//
//   - method STORED, with the CRC-32 and the sizes in the local header and no
//     data descriptor, so that streaming readers need no look ahead;
//   - ZIP64 structures only where a value does not fit, and then in the local
//     header too;
//   - the UTF-8 flag only for names that are not ASCII;
//   - no comments, no extra field but ZIP64's, no attributes but those of a
//     regular file.
//
// Equal entries give equal bytes, on every machine and in every process.
package vzip

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"iter"
	"math"
	"reflect"
	"sort"
	"strings"
	"time"
)

// Errors that [New] wraps, with the index and name of the entry at fault.
var (
	// ErrInvalidName is the error for a name that is empty, longer than
	// 65,535 bytes, not UTF-8, or not the path of a file within the archive.
	ErrInvalidName = errors.New("invalid name")
	// ErrDuplicateName is the error for a name that an earlier entry has.
	ErrDuplicateName = errors.New("duplicate name")
	// ErrInvalidSize is the error for a negative size.
	ErrInvalidSize = errors.New("negative size")
	// ErrTooLarge is the error for entries of more than 4 EiB together.
	ErrTooLarge = errors.New("archive too large")
)

// maxContent bounds the size of all entries together. It is far below the
// largest int64, so that no offset overflows, whatever the headers add.
const maxContent = 1 << 62

// Entry is one file of an archive.
type Entry struct {
	// Name is the path of the file in the archive, 1 to 65,535 bytes of UTF-8
	// and unique. It is valid in the sense of [fs.ValidPath] (elements separated
	// by slashes, none of them empty, "." or ".."), without backslash and NUL.
	Name string
	// Size is the number of bytes of the content.
	Size int64
	// CRC32 is the IEEE CRC-32 of the content. It is taken on trust: if it is
	// wrong, the archive is damaged.
	CRC32 uint32
	// Modified is stored as a DOS time (APPNOTE 4.4.6) in UTC: rounded down to
	// even seconds, and moved into 1980 to 2107 if it is outside.
	Modified time.Time
	// Data, if not nil, is the content, which the layout then holds in memory
	// and no source is asked for. Size and CRC32 are ignored and derived from
	// it. It must not be modified afterwards.
	Data []byte
}

// Layout is the arrangement of an archive: where each of its bytes comes from.
// It is immutable and may be used by several goroutines at once.
type Layout struct {
	entries   []entry
	directory int64 // offset of the central directory
	end       int64 // offset of the end records
	size      int64
	memory    int64
	digest    [sha256.Size]byte
}

// entry is an Entry with its place. Each costs 72 bytes and the name.
type entry struct {
	name    string
	data    []byte
	size    int64
	offset  int64 // of the local header
	central int64 // of the central directory header
	crc32   uint32
	time    uint16
	date    uint16
}

// New lays out an archive of the entries in the order given, in time and memory
// proportional to their number. No entries at all give a valid, empty archive.
// The error wraps [ErrInvalidName], [ErrDuplicateName], [ErrInvalidSize] or
// [ErrTooLarge].
func New(entries []Entry) (*Layout, error) {
	l := &Layout{entries: make([]entry, len(entries))}
	l.memory = int64(reflect.TypeFor[Layout]().Size()) + int64(len(entries))*int64(reflect.TypeFor[entry]().Size())

	var content, offset int64
	for i := range entries {
		e := &l.entries[i]
		if err := e.init(&entries[i]); err != nil {
			return nil, fmt.Errorf("entry %d %q: %w", i, abbreviate(entries[i].Name), err)
		}
		if e.size > maxContent-content {
			return nil, fmt.Errorf("entry %d %q: %w", i, abbreviate(e.name), ErrTooLarge)
		}
		content += e.size
		e.offset = offset
		offset += e.localHeaderLen() + e.size
		l.memory += int64(len(e.name) + len(e.data))
	}

	if i := duplicate(l.entries); i >= 0 {
		return nil, fmt.Errorf("entry %d %q: %w", i, abbreviate(l.entries[i].name), ErrDuplicateName)
	}

	l.directory = offset
	for i := range l.entries {
		e := &l.entries[i]
		e.central = offset
		offset += e.centralHeaderLen()
	}
	l.end = offset
	l.size = l.end + l.endRecordsLen()
	l.digest = l.hash()
	return l, nil
}

func (e *entry) init(from *Entry) error {
	if !validName(from.Name) {
		return ErrInvalidName
	}
	e.name, e.size, e.crc32 = from.Name, from.Size, from.CRC32
	if from.Data != nil {
		e.data, e.size, e.crc32 = from.Data, int64(len(from.Data)), crc32.ChecksumIEEE(from.Data)
	}
	if e.size < 0 {
		return ErrInvalidSize
	}
	e.date, e.time = dosTime(from.Modified)
	return nil
}

// duplicate returns the index of an entry whose name an earlier one has, or -1.
// Entries that are in the order of their names, all but the first, cost next to
// nothing.
func duplicate(entries []entry) int {
	sorted := true
	for i := 1; i < len(entries) && sorted; i++ {
		sorted = entries[i].name != entries[0].name && (i == 1 || entries[i].name > entries[i-1].name)
	}
	if sorted {
		return -1
	}
	names := make(map[string]struct{}, len(entries))
	for i := range entries {
		if names[entries[i].name] = struct{}{}; len(names) == i {
			return i
		}
	}
	return -1
}

// validName reports whether an archive may have a file of that name. Backslashes
// are separators to some readers, and NUL ends the name for others.
func validName(name string) bool {
	return len(name) <= math.MaxUint16 && fs.ValidPath(name) && name != "." && !strings.ContainsAny(name, "\\\x00")
}

// abbreviate keeps a name of up to 64 KiB from flooding a log.
func abbreviate(name string) string {
	const limit = 256
	if len(name) > limit {
		return name[:limit] + "..."
	}
	return name
}

// Size returns the number of bytes of the archive.
func (l *Layout) Size() int64 { return l.size }

// Len returns the number of entries.
func (l *Layout) Len() int { return len(l.entries) }

// Content returns the place of the content of entry i in the archive, if it comes
// from the source and is not empty.
func (l *Layout) Content(i int) (off, n int64, ok bool) {
	e := &l.entries[i]
	return e.content(), e.size, e.data == nil && e.size > 0
}

// Entries returns how many entries begin in the n bytes of the archive from off
// on, that is with their local headers. It takes logarithmic time.
func (l *Layout) Entries(off, n int64) int {
	before := func(end int64) int {
		return sort.Search(len(l.entries), func(i int) bool { return l.entries[i].offset >= end })
	}
	return before(off+n) - before(off)
}

// Digest returns the SHA-256 of everything in the archive but the content that
// comes from a source: the local headers, the content that the layout holds, the
// central directory and the end records, in the order of the archive. As these
// state the size and CRC-32 of every entry, it identifies the archive's bytes to
// the extent that those identify the content.
func (l *Layout) Digest() [sha256.Size]byte { return l.digest }

// MemoryBytes estimates the heap that the layout keeps in use, names and held
// content included, for a cache that is bounded by bytes.
func (l *Layout) MemoryBytes() int64 { return l.memory }

func (l *Layout) hash() [sha256.Size]byte {
	const batch = 32 << 10
	h := sha256.New()
	var buf []byte
	for s := range l.segments(0, l.size) {
		switch s.kind {
		case sourceContent:
		case heldContent:
			h.Write(buf)
			h.Write(l.held(s))
			buf = buf[:0]
		default:
			if buf = l.appendHeader(buf, s); len(buf) >= batch {
				h.Write(buf)
				buf = buf[:0]
			}
		}
	}
	h.Write(buf)
	return [sha256.Size]byte(h.Sum(nil))
}

// segmentKind says what a segment of the archive is.
type segmentKind uint8

const (
	localHeader   segmentKind = iota // the local file header of an entry
	heldContent                      // content of an entry, in the layout
	sourceContent                    // content of an entry, in the source
	centralHeader                    // the central directory header of an entry
	endRecords                       // everything after the central directory
)

// segment is n bytes, at least one, from off on, of a part of the archive.
type segment struct {
	kind   segmentKind
	entry  int // not for endRecords
	off, n int64
}

// segments yields what the n bytes of the archive from off on consist of, in
// order and without gaps. Beyond the end of the archive there is nothing.
// Finding the first takes logarithmic time.
func (l *Layout) segments(off, n int64) iter.Seq[segment] {
	return func(yield func(segment) bool) {
		end := off + min(n, l.size-off)
		// part yields as much of a part of the archive as is in the range.
		part := func(kind segmentKind, i int, start, length int64) bool {
			from, to := max(off, start), min(end, start+length)
			return from >= to || yield(segment{kind: kind, entry: i, off: from - start, n: to - from})
		}
		for i := l.entryAt(off); i < len(l.entries) && l.entries[i].offset < end; i++ {
			e := &l.entries[i]
			kind := sourceContent
			if e.data != nil {
				kind = heldContent
			}
			if !part(localHeader, i, e.offset, e.localHeaderLen()) || !part(kind, i, e.content(), e.size) {
				return
			}
		}
		for i := l.centralHeaderAt(off); i < len(l.entries) && l.entries[i].central < end; i++ {
			e := &l.entries[i]
			if !part(centralHeader, i, e.central, e.centralHeaderLen()) {
				return
			}
		}
		part(endRecords, -1, l.end, l.size-l.end)
	}
}

// ranges yields what has to come from the source for these bytes of the archive.
func (l *Layout) ranges(off, n int64) iter.Seq[Range] {
	return func(yield func(Range) bool) {
		for s := range l.segments(off, n) {
			if s.kind == sourceContent && !yield(Range{Entry: s.entry, Off: s.off, N: s.n}) {
				return
			}
		}
	}
}

// entryAt returns the index of the first entry that ends after off.
func (l *Layout) entryAt(off int64) int {
	return sort.Search(len(l.entries), func(i int) bool {
		e := &l.entries[i]
		return e.content()+e.size > off
	})
}

// centralHeaderAt returns the index of the first entry whose central directory
// header ends after off.
func (l *Layout) centralHeaderAt(off int64) int {
	return sort.Search(len(l.entries), func(i int) bool {
		e := &l.entries[i]
		return e.central+e.centralHeaderLen() > off
	})
}

// content returns the offset of the entry's content in the archive.
func (e *entry) content() int64 { return e.offset + e.localHeaderLen() }

// held returns the bytes of a heldContent segment.
func (l *Layout) held(s segment) []byte {
	return l.entries[s.entry].data[s.off : s.off+s.n]
}

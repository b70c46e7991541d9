package vzip

import (
	"encoding/binary"
	"math"
	"time"
	"unicode/utf8"
)

// Signatures (APPNOTE 4.3.7, 4.3.12, 4.3.14 to 4.3.16).
const (
	localHeaderSignature    = 0x04034b50
	centralHeaderSignature  = 0x02014b50
	end64Signature          = 0x06064b50
	end64LocatorSignature   = 0x07064b50
	endOfDirectorySignature = 0x06054b50
)

// Lengths without the variable fields.
const (
	localHeaderFixed    = 30
	centralHeaderFixed  = 46
	end64Len            = 56
	end64LocatorLen     = 20
	endOfDirectoryLen   = 22
	zip64ExtraFixed     = 4
	maxCentralHeaderLen = centralHeaderFixed + math.MaxUint16 + zip64ExtraFixed + 24
)

const (
	// A field that holds one of these means that the value is in the ZIP64
	// structure (APPNOTE 4.4.1.4). So a value that equals one is there too.
	sentinel16 = math.MaxUint16
	sentinel32 = math.MaxUint32

	zip64ExtraID = 0x0001 // APPNOTE 4.5.3

	versionStored = 10                // 1.0, the default (APPNOTE 4.4.3.2)
	versionZip64  = 45                // 4.5, "uses ZIP64 format extensions"
	madeBy        = 3<<8 | 45         // UNIX, 4.5 (APPNOTE 4.4.2)
	flagUTF8      = 1 << 11           // language encoding (APPNOTE 4.4.4, appendix D)
	methodStored  = 0                 // APPNOTE 4.4.5
	regularFile   = 0o100644          // st_mode
	attributes    = regularFile << 16 // external attributes of a UNIX host (APPNOTE 4.4.15)
)

var le = binary.LittleEndian

func (e *entry) sizeNeedsZip64() bool   { return e.size >= sentinel32 }
func (e *entry) offsetNeedsZip64() bool { return e.offset >= sentinel32 }

// localExtraLen is the length of the data in the local header's ZIP64 extra
// field. There it always has both sizes.
func (e *entry) localExtraLen() int {
	if e.sizeNeedsZip64() {
		return 16
	}
	return 0
}

// centralExtraLen is the length of the data in the central directory header's
// ZIP64 extra field. There it has those values alone that do not fit.
func (e *entry) centralExtraLen() int {
	n := e.localExtraLen()
	if e.offsetNeedsZip64() {
		n += 8
	}
	return n
}

func (e *entry) localHeaderLen() int64 {
	return int64(localHeaderFixed + len(e.name) + extraLen(e.localExtraLen()))
}

func (e *entry) centralHeaderLen() int64 {
	return int64(centralHeaderFixed + len(e.name) + extraLen(e.centralExtraLen()))
}

// extraLen is the length of an extra field with n bytes of data.
func extraLen(n int) int {
	if n == 0 {
		return 0
	}
	return zip64ExtraFixed + n
}

// appendLocalHeader appends the local file header (APPNOTE 4.3.7).
func (e *entry) appendLocalHeader(b []byte) []byte {
	extra := e.localExtraLen()
	b = le.AppendUint32(b, localHeaderSignature)
	b = e.appendCommon(b, extra)
	b = append(b, e.name...)
	return e.appendExtra(b, extra, false)
}

// appendCentralHeader appends the central directory header (APPNOTE 4.3.12).
func (e *entry) appendCentralHeader(b []byte) []byte {
	extra := e.centralExtraLen()
	b = le.AppendUint32(b, centralHeaderSignature)
	b = le.AppendUint16(b, madeBy)
	b = e.appendCommon(b, extra)
	b = le.AppendUint16(b, 0) // file comment length
	b = le.AppendUint16(b, 0) // disk number start
	b = le.AppendUint16(b, 0) // internal file attributes
	b = le.AppendUint32(b, attributes)
	b = le.AppendUint32(b, clamp32(e.offset))
	b = append(b, e.name...)
	return e.appendExtra(b, extra, e.offsetNeedsZip64())
}

// appendCommon appends the fields that both headers have, from the version
// needed to the length of the extra field.
func (e *entry) appendCommon(b []byte, extra int) []byte {
	version := uint16(versionStored)
	if extra > 0 {
		version = versionZip64
	}
	var flags uint16
	if !isASCII(e.name) {
		flags = flagUTF8
	}
	size := clamp32(e.size)
	b = le.AppendUint16(b, version)
	b = le.AppendUint16(b, flags)
	b = le.AppendUint16(b, methodStored)
	b = le.AppendUint16(b, e.time)
	b = le.AppendUint16(b, e.date)
	b = le.AppendUint32(b, e.crc32)
	b = le.AppendUint32(b, size) // compressed
	b = le.AppendUint32(b, size) // uncompressed
	b = le.AppendUint16(b, uint16(len(e.name)))
	return le.AppendUint16(b, uint16(extraLen(extra)))
}

// appendExtra appends the ZIP64 extended information extra field with n bytes of
// data, if any (APPNOTE 4.5.3). The order of the values is fixed.
func (e *entry) appendExtra(b []byte, n int, offset bool) []byte {
	if n == 0 {
		return b
	}
	b = le.AppendUint16(b, zip64ExtraID)
	b = le.AppendUint16(b, uint16(n))
	if e.sizeNeedsZip64() {
		b = le.AppendUint64(b, uint64(e.size)) // uncompressed
		b = le.AppendUint64(b, uint64(e.size)) // compressed
	}
	if offset {
		b = le.AppendUint64(b, uint64(e.offset))
	}
	return b
}

// endNeedsZip64 reports whether a value does not fit the end of central
// directory record.
func (l *Layout) endNeedsZip64() bool {
	return len(l.entries) >= sentinel16 || l.directory >= sentinel32 || l.end-l.directory >= sentinel32
}

func (l *Layout) endRecordsLen() int64 {
	if l.endNeedsZip64() {
		return end64Len + end64LocatorLen + endOfDirectoryLen
	}
	return endOfDirectoryLen
}

// appendEndRecords appends what follows the central directory.
func (l *Layout) appendEndRecords(b []byte) []byte {
	count, size := uint64(len(l.entries)), l.end-l.directory
	if l.endNeedsZip64() {
		// ZIP64 end of central directory record (APPNOTE 4.3.14).
		b = le.AppendUint32(b, end64Signature)
		b = le.AppendUint64(b, end64Len-12) // of what follows this field
		b = le.AppendUint16(b, madeBy)
		b = le.AppendUint16(b, versionZip64)
		b = le.AppendUint32(b, 0) // number of this disk
		b = le.AppendUint32(b, 0) // disk with the start of the central directory
		b = le.AppendUint64(b, count)
		b = le.AppendUint64(b, count)
		b = le.AppendUint64(b, uint64(size))
		b = le.AppendUint64(b, uint64(l.directory))

		// ZIP64 end of central directory locator (APPNOTE 4.3.15).
		b = le.AppendUint32(b, end64LocatorSignature)
		b = le.AppendUint32(b, 0) // disk with the record above
		b = le.AppendUint64(b, uint64(l.end))
		b = le.AppendUint32(b, 1) // number of disks
	}
	// End of central directory record (APPNOTE 4.3.16).
	b = le.AppendUint32(b, endOfDirectorySignature)
	b = le.AppendUint16(b, 0) // number of this disk
	b = le.AppendUint16(b, 0) // disk with the start of the central directory
	b = le.AppendUint16(b, uint16(min(count, sentinel16)))
	b = le.AppendUint16(b, uint16(min(count, sentinel16)))
	b = le.AppendUint32(b, clamp32(size))
	b = le.AppendUint32(b, clamp32(l.directory))
	return le.AppendUint16(b, 0) // comment length
}

// appendHeader appends the bytes of a segment that is no content. On the way it
// needs room for the whole header, at most maxCentralHeaderLen.
func (l *Layout) appendHeader(b []byte, s segment) []byte {
	start := len(b)
	switch s.kind {
	case localHeader:
		b = l.entries[s.entry].appendLocalHeader(b)
	case centralHeader:
		b = l.entries[s.entry].appendCentralHeader(b)
	case endRecords:
		b = l.appendEndRecords(b)
	}
	if s.off > 0 {
		copy(b[start:], b[start+int(s.off):])
	}
	return b[:start+int(s.n)]
}

// clamp32 returns v, or the sentinel if v does not fit.
func clamp32(v int64) uint32 { return uint32(min(v, sentinel32)) }

func isASCII(s string) bool {
	for i := range len(s) {
		if s[i] >= utf8.RuneSelf {
			return false
		}
	}
	return true
}

// dosTime returns t as a date and time in the format of MS-DOS (APPNOTE 4.4.6).
func dosTime(t time.Time) (date, clock uint16) {
	t = t.UTC()
	switch year := t.Year(); {
	case year < 1980:
		t = time.Date(1980, time.January, 1, 0, 0, 0, 0, time.UTC)
	case year > 2107:
		t = time.Date(2107, time.December, 31, 23, 59, 58, 0, time.UTC)
	}
	year, month, day := t.Date()
	hour, minute, second := t.Clock()
	return uint16((year-1980)<<9 | int(month)<<5 | day), uint16(hour<<11 | minute<<5 | second/2)
}

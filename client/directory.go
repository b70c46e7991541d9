package client

import (
	"bufio"
	"bytes"
	"cmp"
	"compress/flate"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
)

// source is one version of a package that is read by range. A body that ends
// early ends with an error.
type source interface {
	Size() int64
	ReadRange(ctx context.Context, off, n int64) (io.ReadCloser, error)
}

// FormatError says that a package is not a ZIP, that it is a damaged one, or
// that it has something no honest package has, such as a file name that leads
// out of the folder to extract to.
type FormatError struct {
	// Name is the entry that is wrong, empty if it is the whole.
	Name   string
	Reason string
}

// Error returns one line for people.
func (e *FormatError) Error() string {
	if e.Name == "" {
		return "the package is not right: " + e.Reason
	}
	return fmt.Sprintf("the package is not right: %q %s", e.Name, e.Reason)
}

// What a package may have. A directory beyond that is refused before memory is
// spent on it.
const (
	maxEntries   = 1_000_000
	maxDirectory = 256 << 20
)

// The records of a ZIP (APPNOTE.TXT, section 4.3).
const (
	localSignature     = 0x04034b50
	centralSignature   = 0x02014b50
	endSignature       = 0x06054b50
	end64Signature     = 0x06064b50
	locator64Signature = 0x07064b50

	localLen     = 30
	centralLen   = 46
	endLen       = 22
	end64Len     = 56
	locator64Len = 20

	// tailLen holds the end records with the longest comment.
	tailLen = end64Len + locator64Len + endLen + 1<<16

	methodStored   = 0
	methodDeflated = 8

	zip64Field = 0x0001
	// unknown32 is in a field whose value is in a ZIP64 field.
	unknown32 = 0xffffffff
)

// entry is one file or folder of a package.
type entry struct {
	name     string // a valid path of io/fs
	size     int64
	packed   int64
	offset   int64     // of the local header
	limit    int64     // where the next entry or the directory begins
	modified int64     // Unix seconds
	sha256   *[32]byte // nil if not known
	// unsupported says why the content cannot be read, empty if it can.
	unsupported string
	crc         uint32
	dosTime     uint32 // as in the directory, like version and flags
	version     uint16
	flags       uint16
	method      uint16
	isDir       bool
	// exact is set for the packages of downlinkd: local headers have no more and no
	// less than the directory, and the content is right behind them.
	exact bool
}

// directory has the entries of a package in byte order of their names. Names
// are unique, no file is a folder too, and no two entries share bytes.
type directory struct {
	entries []entry
}

// readDirectory fetches the central directory: in one request if it is small,
// in two otherwise.
func readDirectory(ctx context.Context, src source) (*directory, error) {
	size := max(0, src.Size()) // negative if unknown: then ReadRange says why
	tailOffset := max(0, size-tailLen)
	tail := make([]byte, size-tailOffset)
	if err := readFull(ctx, src, tail, tailOffset); err != nil {
		return nil, err
	}
	end, err := findEnd(tail, tailOffset)
	if err != nil {
		return nil, err
	}
	var records io.Reader
	if end.offset >= tailOffset {
		records = bytes.NewReader(tail[end.offset-tailOffset:][:end.size])
	} else {
		head, err := src.ReadRange(ctx, end.offset, tailOffset-end.offset)
		if err != nil {
			return nil, err
		}
		defer head.Close()
		inTail := tail[:max(0, end.offset+end.size-tailOffset)]
		records = io.LimitReader(io.MultiReader(head, bytes.NewReader(inTail)), end.size)
	}
	d := &directory{entries: make([]entry, end.entries)}
	buffered := bufio.NewReaderSize(records, 64<<10)
	var variable []byte
	for i := range d.entries {
		if variable, err = d.entries[i].readRecord(buffered, variable); err != nil {
			return nil, err
		}
	}
	if _, err := buffered.ReadByte(); err != io.EOF {
		if err != nil {
			return nil, err
		}
		return nil, &FormatError{Reason: "its directory has more entries than it says"}
	}
	if err := d.index(end.offset); err != nil {
		return nil, err
	}
	return d, nil
}

func readFull(ctx context.Context, src source, buf []byte, off int64) error {
	body, err := src.ReadRange(ctx, off, int64(len(buf)))
	if err != nil {
		return err
	}
	defer body.Close()
	_, err = io.ReadFull(body, buf)
	return noEOF(err)
}

// endRecord says where the central directory is.
type endRecord struct {
	offset, size, entries int64
}

// findEnd reads the end records. The directory must end where they begin, so a
// ZIP behind other data is refused.
func findEnd(tail []byte, tailOffset int64) (endRecord, error) {
	le := binary.LittleEndian
	at := len(tail) - endLen
	for at >= 0 && (le.Uint32(tail[at:]) != endSignature || at+endLen+int(le.Uint16(tail[at+20:])) != len(tail)) {
		at--
	}
	if at < 0 {
		return endRecord{}, &FormatError{Reason: "it is not a ZIP, or its end is missing"}
	}
	disk, entries := uint64(le.Uint16(tail[at+4:])), uint64(le.Uint16(tail[at+10:]))
	size, offset := uint64(le.Uint32(tail[at+12:])), uint64(le.Uint32(tail[at+16:]))
	// Some write the ZIP64 records where there is no need to.
	if locator := at - locator64Len; locator >= 0 && le.Uint32(tail[locator:]) == locator64Signature {
		at64 := le.Uint64(tail[locator+8:]) - uint64(tailOffset)
		if at64 > uint64(locator) || uint64(locator)-at64 < end64Len || le.Uint32(tail[at64:]) != end64Signature {
			return endRecord{}, &FormatError{Reason: "its ZIP64 end record is not where it should be"}
		}
		at = int(at64)
		entries64, size64, offset64 := le.Uint64(tail[at+32:]), le.Uint64(tail[at+40:]), le.Uint64(tail[at+48:])
		if entries != 0xffff && entries != entries64 || size != unknown32 && size != size64 || offset != unknown32 && offset != offset64 {
			return endRecord{}, &FormatError{Reason: "its two end records contradict each other"}
		}
		disk, entries, size, offset = uint64(le.Uint32(tail[at+16:])), entries64, size64, offset64
	}
	switch {
	case disk != 0:
		return endRecord{}, &FormatError{Reason: "it is one part of several"}
	case entries > maxEntries || size > maxDirectory:
		return endRecord{}, &FormatError{Reason: fmt.Sprintf("its directory is too large: %d entries, %d bytes", entries, size)}
	case entries*centralLen > size:
		return endRecord{}, &FormatError{Reason: "its directory is too small for its entries"}
	case offset > uint64(tailOffset)+uint64(at) || offset+size != uint64(tailOffset)+uint64(at):
		return endRecord{}, &FormatError{Reason: "its directory is not where it should be"}
	}
	return endRecord{offset: int64(offset), size: int64(size), entries: int64(entries)}, nil
}

// readRecord reads one record of the central directory. It returns the buffer,
// which may have grown, for the next.
func (e *entry) readRecord(r io.Reader, buf []byte) ([]byte, error) {
	buf = slices.Grow(buf[:0], centralLen)[:centralLen]
	if err := readPart(r, buf); err != nil {
		return nil, err
	}
	le := binary.LittleEndian
	if le.Uint32(buf) != centralSignature {
		return nil, &FormatError{Reason: "its directory is damaged"}
	}
	n := centralLen + int(le.Uint16(buf[28:])) + int(le.Uint16(buf[30:])) + int(le.Uint16(buf[32:]))
	buf = slices.Grow(buf, n-centralLen)[:n]
	if err := readPart(r, buf[centralLen:]); err != nil {
		return nil, err
	}
	return buf, e.parseRecord(buf[:centralLen], buf[centralLen:])
}

// parseRecord takes the two parts of a record apart.
func (e *entry) parseRecord(fixed, variable []byte) error {
	le := binary.LittleEndian
	nameLen, extraLen := int(le.Uint16(fixed[28:])), int(le.Uint16(fixed[30:]))
	e.name = string(variable[:nameLen])
	extra := variable[nameLen:][:extraLen]
	if name, ok := strings.CutSuffix(e.name, "/"); ok {
		e.name, e.isDir = name, true
	}
	if err := checkName(e.name); err != nil {
		return err
	}
	e.version, e.flags, e.method = le.Uint16(fixed[6:]), le.Uint16(fixed[8:]), le.Uint16(fixed[10:])
	e.dosTime, e.crc = le.Uint32(fixed[12:]), le.Uint32(fixed[16:])
	packed, size, offset := uint64(le.Uint32(fixed[20:])), uint64(le.Uint32(fixed[24:])), uint64(le.Uint32(fixed[42:]))
	// ZIP64 has the fields that have no room above, in this order.
	wide := extraField(extra, zip64Field)
	for _, field := range []*uint64{&size, &packed, &offset} {
		if *field == unknown32 && len(wide) >= 8 {
			*field, wide = le.Uint64(wide), wide[8:]
		}
	}
	const most = 1 << 62
	if size > most || packed > most || offset > most {
		return &FormatError{Name: e.name, Reason: "has a size that no file has"}
	}
	e.size, e.packed, e.offset = int64(size), int64(packed), int64(offset)
	e.modified = dosTime(le.Uint16(fixed[14:]), le.Uint16(fixed[12:]))
	if t := extraField(extra, 0x5455); len(t) >= 5 && t[0]&1 != 0 {
		e.modified = int64(int32(le.Uint32(t[1:])))
	}
	return e.classify(fixed[5], le.Uint32(fixed[38:]))
}

// classify finds what the content is, and sizes that cannot be true.
func (e *entry) classify(system byte, attributes uint32) error {
	const (
		encrypted = 0x1
		unix      = 3
		typeMask  = 0o170000
		regular   = 0o100000
		folder    = 0o040000
		// maxRatio is more than what Deflate can do, 1032 to 1.
		maxRatio = 1040
	)
	mode := attributes >> 16 & typeMask
	switch {
	case e.flags&encrypted != 0:
		e.unsupported = "is encrypted"
	case e.method != methodStored && e.method != methodDeflated:
		e.unsupported = "is compressed by a method that is not supported"
	case system == unix && mode != 0 && mode != regular && mode != folder:
		e.unsupported = "is a symbolic link or another special file"
	case e.isDir && e.size != 0:
		return &FormatError{Name: e.name, Reason: "is a folder with content"}
	case e.method == methodStored && e.size != e.packed:
		return &FormatError{Name: e.name, Reason: "is stored, but has two sizes"}
	case e.method == methodDeflated && e.size/maxRatio > e.packed:
		return &FormatError{Name: e.name, Reason: "says to be larger than what it is compressed to allows"}
	}
	return nil
}

// readPart fills buf with a part of the directory.
func readPart(r io.Reader, buf []byte) error {
	_, err := io.ReadFull(r, buf)
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		return &FormatError{Reason: "its directory ends early"}
	}
	return err
}

// extraField returns the data of the first extra field with the ID.
func extraField(extra []byte, id uint16) []byte {
	for len(extra) >= 4 {
		n := int(binary.LittleEndian.Uint16(extra[2:]))
		if n > len(extra)-4 {
			return nil
		}
		if binary.LittleEndian.Uint16(extra) == id {
			return extra[4:][:n]
		}
		extra = extra[4+n:]
	}
	return nil
}

// dosTime takes the time as UTC, which the format leaves open.
func dosTime(date, clock uint16) int64 {
	return time.Date(int(date>>9)+1980, time.Month(date>>5&15), int(date&31),
		int(clock>>11), int(clock>>5&63), int(clock&31)*2, 0, time.UTC).Unix()
}

// index sorts the entries and finds what is wrong between them.
func (d *directory) index(end int64) error {
	slices.SortFunc(d.entries, func(a, b entry) int { return cmp.Compare(b.offset, a.offset) })
	limit := end
	for i := range d.entries {
		e := &d.entries[i]
		e.limit = limit
		if e.offset > limit-localLen-e.packed {
			return &FormatError{Name: e.name, Reason: "overlaps what comes after it"}
		}
		limit = e.offset
	}
	slices.SortFunc(d.entries, func(a, b entry) int { return strings.Compare(a.name, b.name) })
	for i := range d.entries {
		e := &d.entries[i]
		if i > 0 && d.entries[i-1].name == e.name {
			return &FormatError{Name: e.name, Reason: "is there twice"}
		}
		if !e.isDir && d.hasPrefix(e.name+"/") {
			return &FormatError{Name: e.name, Reason: "is a file and a folder"}
		}
	}
	return nil
}

// from returns the index of the first name that is not less.
func (d *directory) from(name string) int {
	i, _ := slices.BinarySearchFunc(d.entries, name, func(e entry, name string) int { return strings.Compare(e.name, name) })
	return i
}

func (d *directory) hasPrefix(prefix string) bool {
	i := d.from(prefix)
	return i < len(d.entries) && strings.HasPrefix(d.entries[i].name, prefix)
}

// find returns the entry with the name, nil if there is none.
func (d *directory) find(name string) *entry {
	if i := d.from(name); i < len(d.entries) && d.entries[i].name == name {
		return &d.entries[i]
	}
	return nil
}

// skipLocalHeader reads up to the content and returns the length of what it
// read. The header must have the same name as the directory.
func (e *entry) skipLocalHeader(r io.Reader) (int64, error) {
	var fixed [localLen]byte
	if _, err := io.ReadFull(r, fixed[:]); err != nil {
		return 0, noEOF(err)
	}
	le := binary.LittleEndian
	if le.Uint32(fixed[:]) != localSignature {
		return 0, &FormatError{Name: e.name, Reason: "does not begin where the directory says"}
	}
	nameLen, extraLen := int(le.Uint16(fixed[26:])), int(le.Uint16(fixed[28:]))
	n := int64(localLen + nameLen + extraLen)
	if e.offset+n+e.packed > e.limit {
		return 0, &FormatError{Name: e.name, Reason: "overlaps what comes after it"}
	}
	variable := make([]byte, nameLen+extraLen)
	if _, err := io.ReadFull(r, variable); err != nil {
		return 0, noEOF(err)
	}
	if strings.TrimSuffix(string(variable[:nameLen]), "/") != e.name {
		return 0, &FormatError{Name: e.name, Reason: "has another name in front of its content"}
	}
	if e.exact && !e.agrees(fixed[:], variable[nameLen:], n) {
		return 0, &FormatError{Name: e.name, Reason: "has another header than the directory says"}
	}
	return n, nil
}

// agrees reports whether the fields of a local header, of so many bytes in all,
// are those of the directory.
func (e *entry) agrees(fixed, extra []byte, n int64) bool {
	le := binary.LittleEndian
	packed, size := uint64(le.Uint32(fixed[18:])), uint64(le.Uint32(fixed[22:]))
	wide := extraField(extra, zip64Field)
	for _, field := range []*uint64{&size, &packed} {
		if *field == unknown32 && len(wide) >= 8 {
			*field, wide = le.Uint64(wide), wide[8:]
		}
	}
	return le.Uint16(fixed[4:]) <= e.version && le.Uint16(fixed[6:]) == e.flags && le.Uint16(fixed[8:]) == e.method &&
		le.Uint32(fixed[10:]) == e.dosTime && le.Uint32(fixed[14:]) == e.crc &&
		packed == uint64(e.packed) && size == uint64(e.size) && e.offset+n+e.packed == e.limit
}

// noEOF is for where more must come.
func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// content returns the content, unpacked, of which r has the local header and what
// comes after it. It is checked while it is read: at the end comes io.EOF only if
// it was right, and a [Problem] otherwise.
func (e *entry) content(r io.Reader) (io.Reader, error) {
	if _, err := e.skipLocalHeader(r); err != nil {
		return nil, err
	}
	return e.contentBehind(r), nil
}

// contentBehind is what content returns, for an r that is behind the header.
func (e *entry) contentBehind(r io.Reader) io.Reader {
	packed := &exactReader{r: r, left: e.packed}
	return &contentReader{entry: e, packed: packed, unpacked: e.unpack(packed), sums: newChecksums(e)}
}

func (e *entry) unpack(packed io.Reader) io.Reader {
	if e.method == methodDeflated {
		return flate.NewReader(packed)
	}
	return packed
}

// contentReader checks what it reads against what is known of the entry.
type contentReader struct {
	entry    *entry
	packed   *exactReader
	unpacked io.Reader
	sums     *checksums
	err      error
}

func (c *contentReader) Read(p []byte) (int, error) {
	if c.err != nil {
		return 0, c.err
	}
	n, err := c.unpacked.Read(p)
	_, _ = c.sums.Write(p[:n])
	switch {
	case c.packed.err != nil:
		err = c.packed.err
	case c.sums.size > c.entry.size:
		n, err = 0, c.sums.check(c.entry)
	case errors.Is(err, io.EOF):
		err = cmp.Or(c.sums.check(c.entry), io.EOF)
	case err != nil:
		err = Problem{Name: c.entry.name, Reason: "cannot be unpacked"}
	}
	c.err = err
	return n, err
}

// exactReader reads as many bytes as there must be. It keeps the error that
// reading them ended with, for the one who reads through something else.
type exactReader struct {
	r    io.Reader
	left int64
	err  error
}

func (x *exactReader) Read(p []byte) (int, error) {
	if x.left == 0 {
		return 0, io.EOF
	}
	n, err := x.r.Read(p[:min(int64(len(p)), x.left)])
	x.left -= int64(n)
	if err == io.EOF && x.left > 0 {
		err = io.ErrUnexpectedEOF
	}
	if x.left == 0 {
		err = nil
	}
	x.err = err
	return n, err
}

package packager

import (
	"crypto/sha256"
	"encoding"
	"encoding/binary"
	"hash"
)

// cursor is the state of the reading of an asset from its start on.
type cursor struct {
	offset int64
	crc32  uint32
	sha256 hash.Hash // nil without SHA-256
}

// A stored cursor is
//
//	version (1) | offset (8) | CRC-32 (4) | state of the SHA-256, as the standard library encodes it
//
// big endian.
const (
	cursorVersion = 1
	cursorHeader  = 1 + 8 + 4
)

func (c cursor) encode() []byte {
	data := make([]byte, 0, 128)
	data = append(data, cursorVersion)
	data = binary.BigEndian.AppendUint64(data, uint64(c.offset))
	data = binary.BigEndian.AppendUint32(data, c.crc32)
	if c.sha256 != nil {
		data, _ = c.sha256.(encoding.BinaryAppender).AppendBinary(data) // never fails
	}
	return data
}

// resume returns the stored cursor for an asset of this size if it can be used in
// place of c, which is at the start, and c if not.
func (c cursor) resume(data []byte, size int64) cursor {
	if len(data) < cursorHeader || data[0] != cursorVersion {
		return c
	}
	stored := cursor{offset: int64(binary.BigEndian.Uint64(data[1:])), crc32: binary.BigEndian.Uint32(data[9:])}
	if stored.offset < 0 || stored.offset >= size {
		return c
	}
	if c.sha256 != nil {
		stored.sha256 = sha256.New()
		if stored.sha256.(encoding.BinaryUnmarshaler).UnmarshalBinary(data[cursorHeader:]) != nil {
			return c
		}
	}
	return stored
}

package client

import (
	"crypto/sha256"
	"fmt"
	"hash"
	"hash/crc32"
)

// checksums adds up what is written to it: size, CRC-32, and SHA-256 if that is
// known of the entry.
type checksums struct {
	size int64
	crc  uint32
	sha  hash.Hash
}

func newChecksums(e *entry) *checksums {
	s := &checksums{}
	if e.sha256 != nil {
		s.sha = sha256.New()
	}
	return s
}

// Write never fails.
func (s *checksums) Write(p []byte) (int, error) {
	s.size += int64(len(p))
	s.crc = crc32.Update(s.crc, crc32.IEEETable, p)
	if s.sha != nil {
		s.sha.Write(p)
	}
	return len(p), nil
}

// check returns a [Problem] if the sums are not those of the entry.
func (s *checksums) check(e *entry) error {
	switch {
	case s.size > e.size:
		return Problem{Name: e.name, Reason: fmt.Sprintf("is larger than %d bytes", e.size)}
	case s.size < e.size:
		return Problem{Name: e.name, Reason: fmt.Sprintf("has %d bytes, not %d", s.size, e.size)}
	case s.crc != e.crc:
		return Problem{Name: e.name, Reason: fmt.Sprintf("has the CRC-32 %08x, not %08x", s.crc, e.crc)}
	case s.sha != nil && [32]byte(s.sha.Sum(nil)) != *e.sha256:
		return Problem{Name: e.name, Reason: "has another SHA-256"}
	}
	return nil
}

// combineCRC returns the CRC-32 of two pieces in a row, from those of each and
// the length of the second: the first one shifted by as many zeros, which is a
// multiplication by x^(8n) modulo the polynomial.
func combineCRC(a, b uint32, n int64) uint32 {
	power := uint32(1 << (31 - 8)) // x^8, bits reversed
	shift := uint32(1 << 31)       // 1
	for ; n > 0; n >>= 1 {
		if n&1 != 0 {
			shift = multiplyCRC(shift, power)
		}
		power = multiplyCRC(power, power)
	}
	return multiplyCRC(shift, a) ^ b
}

// multiplyCRC multiplies two polynomials, bits reversed, modulo that of CRC-32.
func multiplyCRC(a, b uint32) uint32 {
	var product uint32
	for bit := uint32(1 << 31); bit != 0; bit >>= 1 {
		if a&bit != 0 {
			product ^= b
		}
		odd := b & 1
		b >>= 1
		if odd != 0 {
			b ^= crc32.IEEE
		}
	}
	return product
}

// combineParts returns the CRC-32 of a file from those of its parts, all but the
// last of which have the same size.
func combineParts(sums []uint32, part, size int64) uint32 {
	var crc uint32
	for i, sum := range sums {
		crc = combineCRC(crc, sum, min(part, size-int64(i)*part))
	}
	return crc
}

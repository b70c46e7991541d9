package vzip

import "hash/crc32"

// CombineCRC32 returns the CRC-32 of two byte strings after each other, from the
// CRC-32 of each and the length of the second.
//
// The CRC of a string is a polynomial over GF(2) modulo that of the CRC; to put
// n bytes behind a string multiplies it by x to the power of 8n.
func CombineCRC32(a, b uint32, lengthB int64) uint32 {
	return multiplyPolynomials(powersOfX(lengthB), a) ^ b
}

// multiplyPolynomials multiplies modulo the polynomial of CRC-32. The highest
// bit is the coefficient of x^0.
func multiplyPolynomials(a, b uint32) uint32 {
	var product uint32
	for ; a != 0; a <<= 1 {
		if a&(1<<31) != 0 {
			product ^= b
		}
		if b&1 != 0 {
			b = b>>1 ^ crc32.IEEE
		} else {
			b >>= 1
		}
	}
	return product
}

// powersOfX returns x to the power of 8n.
func powersOfX(n int64) uint32 {
	result := uint32(1 << 31)       // x^0
	square := uint32(1 << (31 - 8)) // x^8, then its square, and so on
	for ; n > 0; n >>= 1 {
		if n&1 != 0 {
			result = multiplyPolynomials(square, result)
		}
		square = multiplyPolynomials(square, square)
	}
	return result
}

// CRC32 returns the CRC-32 of the whole archive. It follows from the headers and
// from the CRC-32 of each entry: no content is read.
func (l *Layout) CRC32() uint32 {
	var sum uint32
	var buf []byte
	for s := range l.segments(0, l.size) {
		switch s.kind {
		case sourceContent:
			sum = CombineCRC32(sum, l.entries[s.entry].crc32, s.n)
		case heldContent:
			sum = crc32.Update(sum, crc32.IEEETable, l.held(s))
		default:
			buf = l.appendHeader(buf[:0], s)
			sum = crc32.Update(sum, crc32.IEEETable, buf)
		}
	}
	return sum
}

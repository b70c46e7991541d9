package madeup

import (
	"hash/crc32"
	"io"
	"math/rand/v2"
	"sync"

	"github.com/downlink-go/downlink/server/internal/vzip"
)

// An asset repeats one pattern of this many bytes, from a place of its own. It is
// no multiple of anything that a transfer might be wrong by.
const period = 1<<20 - 3

// Assets begin at one of so many places of the pattern, so far from each other.
const (
	seeds    = 1021
	seedStep = 1009
)

// pattern is two periods, so that every rotation of one is a part of it.
var pattern = sync.OnceValue(func() []byte {
	b := make([]byte, 2*period)
	_, _ = rand.NewChaCha8([32]byte{'d', 'o', 'w', 'n', 'l', 'i', 'n', 'k'}).Read(b[:period]) // never fails
	copy(b[period:], b[:period])
	return b
})

// checksums has the CRC-32s of assets of one size, by the seed.
type checksums struct {
	size  int64
	known map[int]uint32
}

// of works the CRC-32 out without reading more than two periods.
func (c *checksums) of(seed int) uint32 {
	if sum, ok := c.known[seed]; ok {
		return sum
	}
	if c.known == nil {
		c.known = map[int]uint32{}
	}
	p := pattern()[seed:]
	var sum uint32
	if repeats := c.size / period; repeats > 0 {
		part, length := crc32.ChecksumIEEE(p[:period]), int64(period)
		for ; repeats > 0; repeats >>= 1 {
			if repeats&1 != 0 {
				sum = vzip.CombineCRC32(sum, part, length)
			}
			part = vzip.CombineCRC32(part, part, length)
			length *= 2
		}
	}
	rest := c.size % period
	sum = vzip.CombineCRC32(sum, crc32.ChecksumIEEE(p[:rest]), rest)
	c.known[seed] = sum
	return sum
}

// reader reads the pattern over and over, from a place in it.
type reader struct{ at, left int64 }

func (r *reader) Read(p []byte) (int, error) {
	if r.left == 0 {
		return 0, io.EOF
	}
	n := copy(p[:min(int64(len(p)), r.left)], pattern()[r.at:])
	r.at = (r.at + int64(n)) % period
	r.left -= int64(n)
	return n, nil
}

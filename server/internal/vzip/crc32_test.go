package vzip_test

import (
	"hash/crc32"
	"testing"

	"pgregory.net/rapid"

	"github.com/downlink-go/downlink/server/internal/vzip"
)

func TestCombineCRC32(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		a := rapid.SliceOf(rapid.Byte()).Draw(t, "a")
		b := rapid.SliceOf(rapid.Byte()).Draw(t, "b")
		zeros := rapid.IntRange(0, 1<<20).Draw(t, "zeros")
		b = append(b, make([]byte, zeros)...)
		got := vzip.CombineCRC32(crc32.ChecksumIEEE(a), crc32.ChecksumIEEE(b), int64(len(b)))
		if want := crc32.ChecksumIEEE(append(a, b...)); got != want {
			t.Errorf("got %08x, want %08x", got, want)
		}
	})
}

package madeup

import (
	"hash/crc32"
	"io"
	"strings"
	"testing"

	"github.com/downlink-go/downlink/server/internal/download"
)

// TestAssets: any range of an asset is a part of its bytes, which have the CRC-32
// that was worked out.
func TestAssets(t *testing.T) {
	t.Parallel()
	j, err := Parse("W1/J1=2x0,1x1,3x20KB,1x1048573,1x1048574,2x5MB,1x7MiB")
	if err != nil {
		t.Fatal(err)
	}
	w := New(j)
	job, err := w.Job(t.Context(), "W1", "J1")
	if err != nil {
		t.Fatal(err)
	}
	read := func(o download.Object, off, n int64) string {
		r, err := w.Open(t.Context(), o, off, n)
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	seen := map[string]bool{}
	for _, a := range job.Assets {
		o := a.Object
		all := read(o, 0, o.Size)
		if int64(len(all)) != o.Size || crc32.ChecksumIEEE([]byte(all)) != a.Checksum.CRC32 {
			t.Errorf("%s: %d bytes of %d, or another CRC-32", o.Key, len(all), o.Size)
		}
		for _, off := range []int64{0, 1, o.Size / 3, o.Size - 1} {
			if n := (o.Size - off) / 2; off >= 0 && n > 0 && read(o, off, n) != all[off:off+n] {
				t.Errorf("%s: the range %d+%d is not a part of it", o.Key, off, n)
			}
		}
		if seen[all] && o.Size > 1 {
			t.Errorf("%s has the bytes of another", o.Key)
		}
		seen[all] = true
	}
}

func TestParse(t *testing.T) {
	t.Parallel()
	j, err := Parse("W/J=1x5GB,3x20KiB,1x7")
	if err != nil || len(j.Groups) != 3 || j.Groups[0] != (Group{1, 5e9}) || j.Groups[1] != (Group{3, 20 << 10}) || j.Groups[2] != (Group{1, 7}) {
		t.Errorf("got %+v, %v", j, err)
	}
	for s, want := range map[string]string{
		"":                     "want WORKFLOW/JOB=COUNTxSIZE",
		"W/J":                  "want WORKFLOW/JOB=COUNTxSIZE",
		"W=1x1":                "is not WORKFLOW/JOB",
		"W/J/K=1x1":            "is not WORKFLOW/JOB",
		"W/J=":                 "is not COUNTxSIZE",
		"W/J=5":                "is not COUNTxSIZE",
		"W/J=0x5":              "is not COUNTxSIZE",
		"W/J=1x5QB":            "is not a size",
		"W/J=1x":               "is not a size",
		"W/J=1x-5":             "is not a size",
		"W/J=1x99999999TB":     "is not a size",
		"W/J=2000000x1":        "more than 1000000 assets",
		"W/J=900000x9000000TB": "too large",
	} {
		if _, err := Parse(s); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", s, err, want)
		}
	}
}

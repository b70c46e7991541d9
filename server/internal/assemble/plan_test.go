package assemble

import (
	"bytes"
	"errors"
	"math"
	"math/rand/v2"
	"testing"
)

// archive makes up a package: a header before the content of each entry, and a
// directory at the end.
func archive(sizes []int64, header int64) (size int64, extents []Extent) {
	for i, n := range sizes {
		size += header
		extents = append(extents, Extent{Entry: i + 1, Off: size, N: n})
		size += n
	}
	return size + header*int64(len(sizes)) + 22, extents
}

// check fails the test if the parts break a rule of the store or are not the
// package. It returns the number of bytes that are uploaded.
func check(t *testing.T, parts []Part, size int64, extents []Extent, l Limits) (uploaded int64) {
	t.Helper()
	if len(parts) == 0 || len(parts) > l.MaxParts {
		t.Fatalf("%d parts, want 1 to %d", len(parts), l.MaxParts)
	}
	var off int64
	byEntry := map[int]Extent{}
	for _, e := range extents {
		byEntry[e.Entry] = e
	}
	for i, p := range parts {
		if p.Off != off {
			t.Fatalf("part %d begins at %d, want %d", i, p.Off, off)
		}
		off += p.N
		if p.N <= 0 || p.N > l.MaxPart || i < len(parts)-1 && p.N < l.MinPart {
			t.Fatalf("part %d of %d has %d bytes", i, len(parts), p.N)
		}
		if !p.Copied {
			if p.N > l.MaxUpload {
				t.Fatalf("part %d has %d bytes in memory", i, p.N)
			}
			uploaded += p.N
			continue
		}
		e := byEntry[p.Entry]
		if p.From < 0 || p.From+p.N > e.N || e.Off+p.From != p.Off {
			t.Fatalf("part %d copies %d bytes from %d on of an entry of %d bytes at %d, to %d", i, p.N, p.From, e.N, e.Off, p.Off)
		}
		if e.N <= l.MinPart {
			t.Fatalf("part %d copies a range of an object of %d bytes", i, e.N)
		}
	}
	if off != size {
		t.Fatalf("the parts have %d bytes, want %d", off, size)
	}
	return uploaded
}

func TestPlan(t *testing.T) {
	t.Parallel()
	repeat := func(n int, size int64) []int64 {
		sizes := make([]int64, n)
		for i := range sizes {
			sizes[i] = size
		}
		return sizes
	}
	const mi, gi = 1 << 20, 1 << 30
	for _, tt := range []struct {
		name     string
		sizes    []int64
		uploaded float64 // the largest share that may be uploaded
	}{
		{"nothing", nil, 1},
		{"empty entries", repeat(3, 0), 1},
		{"small entries", repeat(200_000, 20_000), 1},
		{"just too small to copy", repeat(5, 10*mi-1), 1},
		{"just large enough", repeat(5, 10*mi), 0.51},
		{"a typical job", repeat(6, 300e6), 0.03},
		{"large entries", []int64{5 * gi, 5*gi + 1, 50 * gi}, 0.001},
		{"small ones between large ones", []int64{1, 600 * mi, 2, 3, 4, 700 * mi, 5 * mi, 100}, 0.02},
		{"more large ones than parts", repeat(12_000, 30*mi), 0.81},
		{"hardly any choice", append(repeat(2_000, 300*mi), repeat(10_000, 30*mi)...), 0.34},
		{"as large as can be", []int64{5<<40 - gi}, 0.001},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			size, extents := archive(tt.sizes, 90)
			parts, err := Plan(size, extents, S3)
			if err != nil {
				t.Fatal(err)
			}
			if share := float64(check(t, parts, size, extents, S3)) / float64(size); share > tt.uploaded {
				t.Errorf("%.3f of the bytes are uploaded, want %.3f at most", share, tt.uploaded)
			}
		})
	}
}

func TestPlanRefuses(t *testing.T) {
	t.Parallel()
	size, extents := archive([]int64{5 << 40}, 90)
	if _, err := Plan(size, extents, S3); !errors.Is(err, ErrTooLarge) {
		t.Errorf("more than 5 TiB: %v", err)
	}
	sizes := make([]int64, 1_000_000)
	for i := range sizes {
		sizes[i] = 1 << 20
	}
	size, extents = archive(sizes, 90)
	if _, err := Plan(size, extents, S3); !errors.Is(err, ErrTooManyParts) {
		t.Errorf("a TiB of small entries: %v", err)
	}
}

// TestPlanRandom puts random packages together by the rules of S3 themselves, with
// sizes from a byte to some hundred GiB.
func TestPlanRandom(t *testing.T) {
	t.Parallel()
	planned, split := 0, 0
	for seed := range uint64(500) {
		r := rand.New(rand.NewPCG(seed, 2))
		largest := 10 + 28*r.Float64() // the exponent
		sizes := make([]int64, 1+r.IntN(2000))
		for i := range sizes {
			sizes[i] = int64(math.Exp2(largest * r.Float64()))
		}
		size, extents := archive(sizes, 30+r.Int64N(200))
		parts, err := Plan(size, extents, S3)
		if err != nil {
			if size <= S3.MaxSize && size <= S3.MaxUpload*int64(S3.MaxParts) {
				t.Fatalf("seed %d: %d bytes are refused: %v", seed, size, err)
			}
			continue
		}
		planned++
		check(t, parts, size, extents, S3)
		copies := map[int]int64{}
		for _, p := range parts {
			if p.Copied {
				copies[p.Entry]++
			}
		}
		for entry, n := range copies {
			if sizes[entry-1] > 6<<30 && n < 2 {
				t.Fatalf("seed %d: an entry of %d bytes is one copy", seed, sizes[entry-1])
			}
			if n > 1 {
				split++
			}
		}
	}
	if planned < 300 || split == 0 {
		t.Errorf("%d packages of 500, with %d entries in several copies: too few to tell", planned, split)
	}
}

// FuzzPlan puts random packages together, by small rules of the same kind.
func FuzzPlan(f *testing.F) {
	for seed := range uint64(20) {
		f.Add(seed, uint16(seed*40), uint16(1+seed*seed))
	}
	f.Fuzz(func(t *testing.T, seed uint64, entries, header uint16) {
		r := rand.New(rand.NewPCG(seed, 1))
		l := Limits{MinPart: 1 + r.Int64N(50), MaxSize: 1 << 40, MaxParts: 1 + r.IntN(200)}
		l.Upload = 2*l.MinPart + r.Int64N(50)
		l.MaxUpload = l.Upload + r.Int64N(500)
		l.Copy = 2*l.MinPart + r.Int64N(500)
		l.MaxPart = max(l.Copy, l.MaxUpload) + r.Int64N(5000)
		sizes := make([]int64, entries%300)
		scale := 1 + r.Int64N(2000)
		for i := range sizes {
			sizes[i] = r.Int64N(1 + r.Int64N(scale))
		}
		size, extents := archive(sizes, 1+int64(header%200))
		parts, err := Plan(size, extents, l)
		if errors.Is(err, ErrTooManyParts) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		check(t, parts, size, extents, l)

		// The parts after each other are the package.
		whole := make([]byte, size)
		for i := range whole {
			whole[i] = byte(r.Uint32())
		}
		var joined []byte
		for _, p := range parts {
			from := whole[p.Off:]
			if p.Copied {
				e := extents[p.Entry-1]
				from = whole[e.Off : e.Off+e.N][p.From:]
			}
			joined = append(joined, from[:p.N]...)
		}
		if !bytes.Equal(joined, whole) {
			t.Error("the parts are not the package")
		}
		again, err := Plan(size, extents, l)
		if err != nil || len(again) != len(parts) {
			t.Errorf("another plan the second time: %v", err)
		}
	})
}

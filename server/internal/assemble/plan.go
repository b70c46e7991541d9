package assemble

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"sort"
)

// Part is one part of a multipart upload: n bytes of the package from Off on.
type Part struct {
	Off, N int64
	// Copied parts are inside the content of one entry, which the store copies
	// from the entry's object: the bytes from From on. The others are uploaded.
	Copied bool
	Entry  int
	From   int64
}

// Extent is the place of an entry's content in a package.
type Extent struct {
	Entry  int
	Off, N int64
}

// Limits are the rules of a store for multipart uploads, and our own preferences
// within them. Sizes are in bytes.
type Limits struct {
	// MinPart is the least size of a part that is not the last, MaxPart the
	// largest of any, MaxParts how many there may be and MaxSize how large the
	// object may be.
	MinPart, MaxPart int64
	MaxParts         int
	MaxSize          int64
	// Upload and Copy are the preferred sizes of parts of either kind. They are
	// exceeded, up to MaxUpload and MaxPart, where there would be too many
	// parts. Upload is at least twice MinPart, Copy as well.
	Upload, MaxUpload int64
	Copy              int64
}

// S3 are the limits of Amazon S3, which others share. An uploaded part is held in
// memory.
var S3 = Limits{
	MinPart: 5 << 20, MaxPart: 5 << 30, MaxParts: 10_000, MaxSize: 5 << 40,
	Upload: 16 << 20, MaxUpload: 64 << 20,
	Copy: 512 << 20,
}

// The errors of [Plan].
var (
	// ErrTooLarge: the package is larger than an object may be.
	ErrTooLarge = errors.New("package larger than an object of the store may be")
	// ErrTooManyParts: too much of the package is in small assets.
	ErrTooManyParts = errors.New("package needs more parts than an upload may have")
)

// Plan cuts a package into the parts of a multipart upload, so that as much as
// can be is copied by the store from the entries' own objects. The extents are
// the content that can be copied, in the order of the package. The parts are in
// that order too, and without gaps. Equal arguments give equal parts.
//
// A part is either copied or uploaded as a whole, so between the copied content
// of two entries there is an uploaded part, with the header of the second. That
// is filled up to the least size of a part with the beginning of the content.
func Plan(size int64, extents []Extent, l Limits) ([]Part, error) {
	if size > l.MaxSize {
		return nil, fmt.Errorf("%w: %d bytes, %d allowed", ErrTooLarge, size, l.MaxSize)
	}
	// At least MinPart is left to copy, however much of it fills the part before.
	large := make([]Extent, 0, len(extents))
	for _, e := range extents {
		if e.N >= 2*l.MinPart {
			large = append(large, e)
		}
	}
	p := planner{Limits: l, size: size}
	for {
		if parts := p.plan(large); len(parts) <= l.MaxParts {
			return parts, nil
		}
		if p.Upload == l.MaxUpload && p.Copy == l.MaxPart {
			break
		}
		p.Upload, p.Copy = min(2*p.Upload, l.MaxUpload), min(2*p.Copy, l.MaxPart)
	}
	// Each copy costs an uploaded part before it: leave out the smallest ones. Those
	// that would take more parts to upload come first.
	bySize := slices.Clone(large)
	slices.SortFunc(bySize, func(a, b Extent) int { return cmp.Or(cmp.Compare(b.N, a.N), cmp.Compare(a.Off, b.Off)) })
	largest := func(n int) []Extent {
		chosen := slices.Clone(bySize[:n])
		slices.SortFunc(chosen, func(a, b Extent) int { return cmp.Compare(a.Off, b.Off) })
		return chosen
	}
	least := sort.Search(len(bySize), func(i int) bool { return bySize[i].N <= 2*l.MaxUpload })
	more := sort.Search(len(bySize)-least, func(n int) bool { return len(p.plan(largest(least+n+1))) > l.MaxParts })
	if parts := p.plan(largest(least + more)); len(parts) <= l.MaxParts {
		return parts, nil
	}
	return nil, fmt.Errorf("%w: %d", ErrTooManyParts, l.MaxParts)
}

// planner plans with parts of given sizes.
type planner struct {
	Limits
	size  int64
	parts []Part
}

// plan copies all of these extents.
func (p *planner) plan(extents []Extent) []Part {
	p.parts = p.parts[:0]
	var start int64 // of what is to be uploaded
	for _, e := range extents {
		from, end := max(e.Off, start+p.MinPart), e.Off+e.N
		if start == e.Off {
			from = start // nothing has to be uploaded before it
		}
		p.cut(Part{Off: start, N: from - start}, p.Upload)
		p.cut(Part{Off: from, N: end - from, Copied: true, Entry: e.Entry, From: from - e.Off}, p.Copy)
		start = end
	}
	p.cut(Part{Off: start, N: p.size - start}, p.Upload)
	return p.parts
}

// cut adds the bytes as parts of about equal size, of which none is larger than
// most or, if there are several, smaller than half of it.
func (p *planner) cut(whole Part, most int64) {
	n := (whole.N + most - 1) / most
	for i := range n {
		from, to := share(whole.N, i, n), share(whole.N, i+1, n)
		part := whole
		part.Off, part.N = whole.Off+from, to-from
		if part.Copied {
			part.From += from
		}
		p.parts = append(p.parts, part)
	}
}

// share returns whole*i/n, which need not fit into 64 bits on the way.
func share(whole, i, n int64) int64 { return whole/n*i + whole%n*i/n }

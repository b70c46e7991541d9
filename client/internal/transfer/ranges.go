package transfer

import (
	"encoding/json"
	"slices"
)

// Range is the bytes from Start up to, and without, End.
type Range struct{ Start, End int64 }

// Len is the number of bytes.
func (r Range) Len() int64 { return r.End - r.Start }

// rangeSet has ranges in order that neither touch nor overlap.
type rangeSet []Range

// add unites the set with a range.
func (s *rangeSet) add(r Range) {
	if r.Start >= r.End {
		return
	}
	from, _ := slices.BinarySearchFunc(*s, r.Start, func(e Range, at int64) int {
		if e.End < at {
			return -1
		}
		return 1
	})
	to := from
	for ; to < len(*s) && (*s)[to].Start <= r.End; to++ {
		r.Start, r.End = min(r.Start, (*s)[to].Start), max(r.End, (*s)[to].End)
	}
	*s = slices.Replace(*s, from, to, r)
}

// remove takes a range out of the set.
func (s *rangeSet) remove(r Range) {
	var left rangeSet
	for _, e := range *s {
		left.add(Range{e.Start, min(e.End, r.Start)})
		left.add(Range{max(e.Start, r.End), e.End})
	}
	*s = left
}

// missing returns what the set lacks of a file.
func (s rangeSet) missing(size int64) []Range {
	var gaps []Range
	at := int64(0)
	for _, e := range s {
		if e.Start > at {
			gaps = append(gaps, Range{at, e.Start})
		}
		at = e.End
	}
	if at < size {
		gaps = append(gaps, Range{at, size})
	}
	return gaps
}

// total is the number of bytes in the set.
func (s rangeSet) total() int64 {
	var n int64
	for _, e := range s {
		n += e.Len()
	}
	return n
}

// valid reports whether it is a set of ranges of a file.
func (s rangeSet) valid(size int64) bool {
	at := int64(-1)
	for _, e := range s {
		if e.Start <= at || e.End <= e.Start {
			return false
		}
		at = e.End
	}
	return at <= size
}

// MarshalJSON writes the two ends as an array.
func (r Range) MarshalJSON() ([]byte, error) { return json.Marshal([2]int64{r.Start, r.End}) }

// UnmarshalJSON reads what MarshalJSON writes.
func (r *Range) UnmarshalJSON(data []byte) error {
	var ends [2]int64
	if err := json.Unmarshal(data, &ends); err != nil {
		return err
	}
	r.Start, r.End = ends[0], ends[1]
	return nil
}

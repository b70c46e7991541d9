package download

import (
	"crypto/sha256"
	"encoding/binary"
	"hash"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
)

// Plan is what one package consists of: which versions of which objects, under
// which names and in which order. It is the truth that replicas share; a stored
// plan with all checksums gives the same bytes everywhere.
type Plan struct {
	ID         uuid.UUID
	WorkflowID string
	JobID      string
	// Entries are in the order of the package, the byte order of their names.
	Entries []Entry
}

// Entry is an asset with its name in the package.
type Entry struct {
	Asset
	// Name is the asset's path in the package, "inputs/..." or "outputs/...".
	Name string
}

// namespace is that of the package identifiers (UUID version 5). It never
// changes: neither may what fingerprint hashes.
var namespace = uuid.MustParse("8f2f4c7e-6c0b-5d9a-9c52-2f1d3b7a6e41")

// NewPlan plans the package of a job's assets, each of which is pinned (has a
// Version). The identifier depends on the workflow, the job and the assets as
// given, whatever their order. It takes over the slice.
func NewPlan(workflowID, jobID string, assets []Asset) *Plan {
	slices.SortFunc(assets, func(a, b Asset) int {
		if a.Role != b.Role {
			return strings.Compare(string(a.Role), string(b.Role))
		}
		return strings.Compare(a.Path, b.Path)
	})
	p := &Plan{WorkflowID: workflowID, JobID: jobID, Entries: make([]Entry, len(assets))}
	for i, a := range assets {
		p.Entries[i] = Entry{Asset: a}
	}
	// Both take a while for large jobs, and touch different things.
	var sum [sha256.Size]byte
	var fingerprint sync.WaitGroup
	fingerprint.Go(func() { sum = p.fingerprint() })
	p.name()
	fingerprint.Wait()
	p.ID = uuid.NewSHA1(namespace, sum[:])
	byName := func(a, b Entry) int { return strings.Compare(a.Name, b.Name) }
	if !slices.IsSortedFunc(p.Entries, byName) {
		slices.SortFunc(p.Entries, byName)
	}
	return p
}

// fingerprint hashes everything that the bytes of the package depend on, but
// for the checksums that are found out by reading: those follow from the rest.
func (p *Plan) fingerprint() [sha256.Size]byte {
	h := sha256.New()
	buf := make([]byte, 0, 512)
	buf = appendString(buf, p.WorkflowID)
	buf = appendString(buf, p.JobID)
	for i := range p.Entries {
		a := &p.Entries[i].Asset
		buf = appendString(buf, string(a.Role))
		buf = appendString(buf, a.Path)
		buf = appendString(buf, a.Object.Key)
		buf = appendString(buf, a.Object.Version)
		buf = binary.AppendVarint(buf, a.Object.Size)
		buf = binary.AppendVarint(buf, a.Object.Modified.UnixNano())
		buf = appendString(buf, a.MediaType)
		buf = appendChecksum(buf, a.Checksum)
		buf = flush(h, buf)
	}
	h.Write(buf)
	return [sha256.Size]byte(h.Sum(nil))
}

func flush(h hash.Hash, buf []byte) []byte {
	if len(buf) < 4096 {
		return buf
	}
	h.Write(buf)
	return buf[:0]
}

// Missing returns how many entries have no checksum yet, and their bytes.
func (p *Plan) Missing() (entries int, bytes int64) {
	for i := range p.Entries {
		if e := &p.Entries[i]; e.Checksum == nil {
			entries++
			bytes += e.Object.Size
		}
	}
	return entries, bytes
}

// Size returns the bytes of all assets together.
func (p *Plan) Size() int64 {
	var n int64
	for i := range p.Entries {
		n += p.Entries[i].Object.Size
	}
	return n
}

// Modified returns when the newest asset was written, the zero time if there is
// none. It stands for the package's own modified time, so that no wall clock
// gets into the bytes.
func (p *Plan) Modified() time.Time {
	var newest time.Time
	for i := range p.Entries {
		if t := p.Entries[i].Object.Modified; t.After(newest) {
			newest = t
		}
	}
	return newest
}

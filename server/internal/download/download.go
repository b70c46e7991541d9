// Package download decides what a download is and who may have it.
//
// A job's assets become a [Plan]: the safe names, the order and the identity of
// one package. Once every checksum is known, [Plan.Layout] gives the bytes of
// that package and a [Keyring] signs links to it. [Service] ties these together
// behind the one call of the API.
//
// The package knows no HTTP, no SQL, no queue and no object store: what it needs
// of them are the small interfaces declared beside [Service].
package download

import (
	"context"
	"errors"
	"io"
	"time"

	"github.com/google/uuid"
)

// Role says which half of a package an asset belongs to.
type Role string

// The roles of an asset.
const (
	Input  Role = "input"  // what the job read; packaged under inputs/
	Output Role = "output" // what the job made; packaged under outputs/
)

// Dir returns the top-level folder of the role, "inputs" or "outputs".
func (r Role) Dir() string {
	switch r {
	case Input:
		return "inputs"
	case Output:
		return "outputs"
	}
	return string(r) + "s"
}

// JobStatus is how far a job run is.
type JobStatus string

// The states of a job.
const (
	JobRunning   JobStatus = "running"
	JobSucceeded JobStatus = "succeeded"
	JobFailed    JobStatus = "failed"
)

// Job is one run of a workflow and the assets that belong to it.
type Job struct {
	Status JobStatus
	// Assets may be incomplete while the job is running, and is ignored when
	// it failed. Their order does not matter.
	Assets []Asset
}

// Asset is one file of a job.
type Asset struct {
	Role Role
	// Path is the asset's place under its role's folder, with forward slashes.
	// It may be any string: [NewPlan] makes a safe name of it.
	Path string
	// Object is what holds the content. With an empty Version the service asks
	// the store for the object as it is now, and a Size of 0 or more is then a
	// promise that the object must keep; -1 makes no promise.
	Object Object
	// Checksum is what is known of the content, nil if nothing is.
	Checksum *Checksum
	// MediaType is passed on in the manifest. Defaults to the type for the
	// extension of the path.
	MediaType string
}

// Object is an object of the store, pinned to one version of its content.
type Object struct {
	// Key names the object in its bucket.
	Key string
	// Version changes whenever the content does: an entity tag, or the
	// modified time of a file. Together with Key and Size it identifies bytes.
	Version string
	// Size is in bytes.
	Size int64
	// Modified is when the content was written. It is part of the package.
	Modified time.Time
}

// Checksum is what is known of an asset's content beyond its size.
type Checksum struct {
	// CRC32 is the IEEE CRC-32, as in ZIP.
	CRC32 uint32
	// SHA256 has 32 bytes, or is nil where it is not known.
	SHA256 []byte
}

// The facts that a store of objects reports. Everything else it returns is
// taken for a passing fault.
var (
	// ErrObjectNotFound: there is no such object, or it may not be read.
	ErrObjectNotFound = errors.New("object not found")
	// ErrObjectChanged: the object is not the pinned version any more.
	ErrObjectChanged = errors.New("object changed")
)

// Objects reads the store that holds the assets. Implementations are safe for
// concurrent use.
type Objects interface {
	// Stat returns the object as it is now, or ErrObjectNotFound.
	Stat(ctx context.Context, key string) (Object, error)
	// Open returns a reader of the bytes [off, off+n) of the object's pinned
	// version; n is positive. It or the reader fails with ErrObjectNotFound or
	// ErrObjectChanged before there is a byte that is not of that version. A
	// reader that ends early stands for an object that changed meanwhile.
	Open(ctx context.Context, object Object, off, n int64) (io.ReadCloser, error)
}

// State is how far a package is.
type State string

// The states of a package.
const (
	Pending State = "pending" // checksums are missing; work is queued
	Ready   State = "ready"   // laid out; downloadable
	Failed  State = "failed"  // gave up; the next request starts again
)

// Progress tells how far work in the background is.
type Progress struct {
	// BytesTotal is what has to be gone through, and BytesDone how much of it
	// has been.
	BytesTotal int64
	BytesDone  int64
	// Started is when the work began, zero until then, and Updated when it was
	// last heard of. Time between two turns of work is left out.
	Started time.Time
	Updated time.Time
}

// TimeLeft estimates how long the work will take, from the rate at which it has
// gone so far.
func (p Progress) TimeLeft() time.Duration {
	const typicalRate = 200e6 // bytes per second, until there is a measured one
	left := float64(max(p.BytesTotal-p.BytesDone, 0))
	rate := typicalRate
	if worked := p.Updated.Sub(p.Started); !p.Started.IsZero() && worked > time.Second && p.BytesDone > 0 {
		rate = float64(p.BytesDone) / worked.Seconds()
	}
	// The bound keeps stalled work from an estimate of years.
	return time.Duration(min(left/rate, 24*3600) * float64(time.Second))
}

// Share returns the part that is done, from 0 to 1, or -1 where there is nothing
// to do.
func (p Progress) Share() float64 {
	if p.BytesTotal <= 0 {
		return -1
	}
	return min(float64(p.BytesDone)/float64(p.BytesTotal), 1)
}

// ErrPackageNotFound says that no package has the identifier asked for.
var ErrPackageNotFound = errors.New("package not found")

// Package is the state of one package, without its layout.
type Package struct {
	ID         uuid.UUID
	WorkflowID string
	JobID      string
	State      State
	// Entries is the number of assets in it.
	Entries int

	// Size of the ZIP in bytes and Digest, its strong validator of 32 bytes.
	// Set when ready.
	Size   int64
	Digest []byte

	// Progress is that of reading what had no checksum when the package was
	// planned.
	Progress

	// Failure is why it failed, nil otherwise.
	Failure *Error

	Created time.Time
	// Requested is when the package was last asked for, to within an hour.
	Requested time.Time
}

// Assembly is a ready package as one object of the store, for links that lead
// there. A package has at most one at a time.
type Assembly struct {
	ID        uuid.UUID
	PackageID uuid.UUID
	// Key is that of the object, and no other assembly's.
	Key   string
	State State
	// Progress is that of uploading and copying the bytes of the package.
	Progress
	// Upload is the multipart upload that is under way, if there is one.
	Upload string
	// Expires is until when the object is kept at least.
	Expires time.Time
	// Failure is why it failed, nil otherwise.
	Failure *Error
}

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
func (r Role) Dir() string { return string(r) + "s" }

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
	// version; n is positive. It fails with ErrObjectNotFound or
	// ErrObjectChanged before it returns a byte that is not of that version. A
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

	// BytesTotal is what had to be read when the package was planned, and
	// BytesDone how much of it has been. Started is when reading began (zero
	// until then); together with Updated they give the rate.
	BytesTotal int64
	BytesDone  int64
	Started    time.Time

	// Failure is why it failed, nil otherwise.
	Failure *Error

	Created time.Time
	Updated time.Time
	// Requested is when the package was last asked for, to within an hour.
	Requested time.Time
}

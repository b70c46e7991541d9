package download

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"
)

// Catalog knows the jobs. It must be safe for concurrent use.
type Catalog interface {
	// Job returns the job as it is now, or ErrJobNotFound. It is asked on every
	// call of the API, and also for identifiers that no job has. An [Error] it
	// returns is shown to the caller, any other error is not.
	Job(ctx context.Context, workflowID, jobID string) (Job, error)
}

// ErrJobNotFound says that there is no such workflow, or no such job in it.
var ErrJobNotFound = errors.New("job not found")

// Grants knows who may have the jobs of a workflow.
type Grants interface {
	Granted(ctx context.Context, organizationID, workflowID string) (bool, error)
}

// Packages keeps the state of packages.
type Packages interface {
	// Package returns the state, or ErrPackageNotFound, in one indexed read. It
	// notes that the package was asked for.
	Package(ctx context.Context, id uuid.UUID) (Package, error)
	// Plan returns the stored plan, or ErrPackageNotFound.
	Plan(ctx context.Context, id uuid.UUID) (*Plan, error)
}

// Packager makes packages ready.
type Packager interface {
	// Prepare makes the plan's package exist: ready at once if every checksum
	// can be had without reading an asset, pending with the work queued if not.
	// A failed package starts again. Any number of concurrent calls for one
	// plan, in any number of processes, make one package.
	Prepare(ctx context.Context, plan *Plan) (Package, error)
	// Wait returns the package as soon as it is not pending any more, or as it
	// is after d.
	Wait(ctx context.Context, id uuid.UUID, d time.Duration) (Package, error)
}

// Assembler puts ready packages together in the store.
type Assembler interface {
	// Assemble makes the package's object exist and keeps it until the given
	// time at least: ready if it is there already, pending with the work queued
	// if not. Any number of concurrent calls make one object.
	Assemble(ctx context.Context, p Package, filename string, until time.Time) (Assembly, error)
	// WaitAssembled returns the assembly as soon as it is not pending any more,
	// or as it is after d.
	WaitAssembled(ctx context.Context, id uuid.UUID, d time.Duration) (Assembly, error)
}

// Presigner makes links to objects of the store.
type Presigner interface {
	// Presign returns a URL to get the object with, as a file of this name, and
	// when it expires: at the given time, to the second, or before, if the
	// credentials that it is signed with do.
	Presign(ctx context.Context, key, filename string, expires time.Time) (string, time.Time, error)
}

// Limits bound one package. A job beyond them is an [Error] with
// PackageTooLarge.
type Limits struct {
	// Entries is the largest number of assets. Defaults to 200,000.
	Entries int
	// Bytes is the largest size of all assets together. Defaults to 16 TiB.
	Bytes int64
}

// Config is what a [Service] needs.
type Config struct {
	Catalog  Catalog
	Grants   Grants
	Packages Packages
	Packager Packager
	Objects  Objects
	Keyring  *Keyring
	Limits   Limits

	// Assembler and Presigner have packages delivered by the store. Without them
	// links lead to this server, which streams the packages.
	Assembler Assembler
	Presigner Presigner

	// LinkLifetime is the shortest life of a signed link. Large packages get
	// longer ones: twice what they take at 1 MiB/s, seven days at most.
	// Defaults to 1 hour.
	LinkLifetime time.Duration
	// FailureHold is for how long a failed preparation is reported before a
	// call starts it again. Defaults to 10 seconds.
	FailureHold time.Duration
	// CacheBytes bounds the memory of cached layouts. Defaults to 256 MiB.
	CacheBytes int64
	// Now is the clock. Defaults to time.Now.
	Now func() time.Time
}

// maxLinkLifetime is as long as S3 lets a presigned URL live.
const maxLinkLifetime = 7 * 24 * time.Hour

// runningRetry is the pace at which a job that is still running is looked at.
const runningRetry = 2 * time.Second

// maxConcurrentStats bounds the requests to the store for one job.
const maxConcurrentStats = 32

// Service answers the call of the API. It is safe for concurrent use.
type Service struct {
	Config
	contents *contentCache
	looks    looks
}

// NewService returns a service with the defaults filled in.
func NewService(c Config) *Service {
	c.Limits.Entries = cmp.Or(c.Limits.Entries, 200_000)
	c.Limits.Bytes = cmp.Or(c.Limits.Bytes, 16<<40)
	c.LinkLifetime = cmp.Or(c.LinkLifetime, time.Hour)
	c.FailureHold = cmp.Or(c.FailureHold, 10*time.Second)
	c.CacheBytes = cmp.Or(c.CacheBytes, 256<<20)
	if c.Now == nil {
		c.Now = time.Now
	}
	s := &Service{Config: c, contents: newContentCache(c.Packages, c.Objects, c.CacheBytes)}
	s.looks.at = s.look
	return s
}

// Request asks for one job's package.
type Request struct {
	OrganizationID string
	KeyID          string // of the API key, for the link
	WorkflowID     string
	JobID          string
	// Wait is how long the answer may be held until the package is ready.
	Wait time.Duration
}

// Reason says why a package is pending.
type Reason string

// The reasons for being pending.
const (
	JobIsRunning Reason = "job-running"
	Checksumming Reason = "checksumming"
	Assembling   Reason = "assembling"
)

// Download is the answer to a [Request].
type Download struct {
	ID    uuid.UUID
	State State // Pending or Ready

	// While pending: why, after what time to ask again, and the part of the
	// work that is done, from 0 to 1, or -1 where that is not known.
	Reason     Reason
	RetryAfter time.Duration
	Progress   float64

	// When ready: the token of the signed link and the name of the file it ends
	// in, or a URL of the store instead of both, when that expires, and the size
	// of the ZIP in bytes.
	URL      string
	Token    string
	Filename string
	Expires  time.Time
	Size     int64
}

var errDenied = &Error{Code: PermissionDenied, Message: "no such workflow or job, or no permission for it"}

// Download returns the state of the job's package, and prepares it if need be.
// Calls may be repeated freely. The errors that callers may see are of type
// [*Error]; a workflow or job that does not exist and one that the organization
// has no grant for give the same one.
func (s *Service) Download(ctx context.Context, r Request) (Download, error) {
	if !IsIdentifier(r.WorkflowID) {
		return Download{}, InvalidIdentifier("workflow_id")
	}
	if !IsIdentifier(r.JobID) {
		return Download{}, InvalidIdentifier("job_id")
	}
	granted, err := s.Grants.Granted(ctx, r.OrganizationID, r.WorkflowID)
	if err != nil {
		return Download{}, err
	}
	if !granted {
		// Look for a job that cannot exist, so that the time taken does not tell
		// a workflow without a grant from a job that is not there.
		_, _ = s.Catalog.Job(ctx, "-", "-")
		return Download{}, errDenied
	}
	deadline := s.Now().Add(r.Wait)
	for {
		d, err := s.attempt(ctx, r, deadline)
		if err != nil || d.State == Ready || d.Reason != JobIsRunning || deadline.Sub(s.Now()) < runningRetry {
			return d, err
		}
		select {
		case <-ctx.Done():
			return Download{}, ctx.Err()
		case <-time.After(runningRetry):
		}
	}
}

func (s *Service) attempt(ctx context.Context, r Request, deadline time.Time) (Download, error) {
	seen, err := s.looks.do(ctx, jobName{r.WorkflowID, r.JobID})
	if errors.Is(err, ErrJobNotFound) {
		return Download{}, errDenied
	}
	if err != nil {
		return Download{}, err
	}
	p := seen.Package
	if seen.running {
		return Download{ID: p.ID, State: Pending, Reason: JobIsRunning, RetryAfter: 5 * runningRetry, Progress: -1}, nil
	}
	if wait := deadline.Sub(s.Now()); p.State == Pending && wait > 0 {
		if p, err = s.Packager.Wait(ctx, p.ID, wait); err != nil {
			return Download{}, err
		}
	}
	if p.State == Ready && s.Assembler != nil {
		return s.assembled(ctx, p, deadline)
	}
	return s.answer(p, r.KeyID)
}

// look looks at a job, and has its package prepared if that is not yet so.
func (s *Service) look(ctx context.Context, job jobName) (sighting, error) {
	plan, running, err := s.Plan(ctx, job.workflowID, job.jobID)
	if err != nil {
		return sighting{}, err
	}
	if running {
		return sighting{Package: Package{ID: plan.ID}, running: true}, nil
	}
	p, err := s.Packages.Package(ctx, plan.ID)
	if errors.Is(err, ErrPackageNotFound) || err == nil && p.State == Failed && s.Now().Sub(p.Updated).Abs() > s.FailureHold {
		p, err = s.Packager.Prepare(ctx, plan)
	}
	return sighting{Package: p}, err
}

// assembled answers with a link to the store, once the package is there.
func (s *Service) assembled(ctx context.Context, p Package, deadline time.Time) (Download, error) {
	name := Filename(p.WorkflowID, p.JobID)
	expires := s.Now().Add(s.lifetime(p.Size)).Truncate(time.Second)
	a, err := s.Assembler.Assemble(ctx, p, name, expires)
	if wait := deadline.Sub(s.Now()); err == nil && a.State == Pending && wait > 0 {
		a, err = s.Assembler.WaitAssembled(ctx, a.ID, wait)
	}
	switch {
	case err != nil:
		return Download{}, err
	case a.State == Failed && a.Failure != nil:
		return Download{}, a.Failure
	case a.State != Ready:
		return Download{ID: p.ID, State: Pending, Reason: Assembling, RetryAfter: a.TimeLeft(), Progress: a.Share()}, nil
	}
	d := Download{ID: p.ID, State: Ready, Size: p.Size}
	d.URL, d.Expires, err = s.Presigner.Presign(ctx, a.Key, name, expires)
	return d, err
}

// Plan plans the package of a job as the job is now. While the job is running
// the plan is of what there is so far, and nothing in it is checked. Errors are
// those of [Catalog.Job], and [*Error] for a job that has no package.
func (s *Service) Plan(ctx context.Context, workflowID, jobID string) (plan *Plan, running bool, err error) {
	job, err := s.Catalog.Job(ctx, workflowID, jobID)
	if err != nil {
		return nil, false, err
	}
	switch job.Status {
	case JobRunning:
		return NewPlan(workflowID, jobID, job.Assets), true, nil
	case JobFailed:
		return nil, false, &Error{Code: JobHasFailed, Message: "the job failed and has no package"}
	}
	if err := s.checkLimits(job.Assets); err != nil {
		return nil, false, err
	}
	if err := s.pin(ctx, job.Assets); err != nil {
		return nil, false, err
	}
	if err := s.checkLimits(job.Assets); err != nil { // now that every size is known
		return nil, false, err
	}
	return NewPlan(workflowID, jobID, job.Assets), false, nil
}

// answer turns the state of a package into the answer to a request.
func (s *Service) answer(p Package, keyID string) (Download, error) {
	d := Download{ID: p.ID, State: p.State}
	switch p.State {
	case Failed:
		if p.Failure == nil {
			return Download{}, fmt.Errorf("package %s failed without a reason", p.ID)
		}
		return Download{}, p.Failure
	case Pending:
		d.Reason = Checksumming
		d.RetryAfter, d.Progress = p.TimeLeft(), p.Share()
	case Ready:
		d.Size = p.Size
		d.Filename = Filename(p.WorkflowID, p.JobID)
		d.Expires = s.Now().Add(s.lifetime(p.Size)).Truncate(time.Second)
		d.Token = s.Keyring.Sign(Link{Package: p.ID, Digest: [8]byte(p.Digest), Expires: d.Expires, KeyID: keyID}, d.Filename)
	}
	return d, nil
}

func (s *Service) lifetime(size int64) time.Duration {
	const slowest = 1 << 20 // bytes per second
	needed := 2 * time.Duration(min(size/slowest, int64(maxLinkLifetime/time.Second))) * time.Second
	return min(max(s.LinkLifetime, needed), maxLinkLifetime)
}

// Filename returns the name of the file that a package is downloaded as.
func Filename(workflowID, jobID string) string { return workflowID + "_" + jobID + ".zip" }

// pin asks the store for the assets that are not pinned to a version yet, and
// checks what was promised of them.
func (s *Service) pin(ctx context.Context, assets []Asset) error {
	findings := make([]string, len(assets))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(maxConcurrentStats)
	for i := range assets {
		o := &assets[i].Object
		if o.Version != "" {
			continue
		}
		g.Go(func() error {
			found, err := s.Objects.Stat(gctx, o.Key)
			switch {
			case errors.Is(err, ErrObjectNotFound):
				findings[i] = "declared in the job but not found"
			case err != nil:
				return fmt.Errorf("stat %s: %w", o.Key, err)
			case o.Size >= 0 && o.Size != found.Size:
				findings[i] = fmt.Sprintf("declared with %d bytes but has %d", o.Size, found.Size)
			}
			*o = found
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return cmp.Or(ctx.Err(), err)
	}
	var details []Detail
	for i, finding := range findings {
		if finding != "" {
			details = append(details, Detail{Asset: assets[i].natural(), Message: finding})
		}
	}
	if details == nil {
		return nil
	}
	slices.SortFunc(details, func(a, b Detail) int { return strings.Compare(a.Asset, b.Asset) })
	return MissingAssets(details)
}

// MissingAssets returns the error for assets that are not there or not as they
// should be, one detail each.
func MissingAssets(details []Detail) *Error {
	message := "1 asset of the job is missing or not as declared"
	if n := len(details); n > 1 {
		message = fmt.Sprintf("%d assets of the job are missing or not as declared", n)
	}
	// An answer stays readable, and small, however much is missing.
	const most = 100
	return &Error{Code: AssetMissing, Message: message, Details: details[:min(len(details), most)]}
}

func (s *Service) checkLimits(assets []Asset) error {
	if n := len(assets); n > s.Limits.Entries {
		return &Error{Code: PackageTooLarge, Message: "the job has more assets than a package may hold",
			Details: []Detail{{Field: "entries", Limit: int64(s.Limits.Entries), Actual: int64(n),
				Message: fmt.Sprintf("%d entries, %d allowed", n, s.Limits.Entries)}}}
	}
	var total int64
	for i := range assets {
		if size := assets[i].Object.Size; size > 0 {
			total += size
		}
	}
	if total > s.Limits.Bytes || total < 0 {
		return &Error{Code: PackageTooLarge, Message: "the job has more bytes than a package may hold",
			Details: []Detail{{Field: "bytes", Limit: s.Limits.Bytes, Actual: total,
				Message: fmt.Sprintf("%d bytes, %d allowed", total, s.Limits.Bytes)}}}
	}
	return nil
}

// IsIdentifier reports whether the contract's pattern for the identifiers of
// workflows and jobs has s.
func IsIdentifier(s string) bool {
	if len(s) < 1 || len(s) > 128 {
		return false
	}
	for i := range len(s) {
		c := s[i]
		alphanumeric := 'A' <= c && c <= 'Z' || 'a' <= c && c <= 'z' || '0' <= c && c <= '9'
		if !alphanumeric && (i == 0 || strings.IndexByte("._~-", c) < 0) {
			return false
		}
	}
	return true
}

// InvalidIdentifier returns the error for a parameter that is not an identifier.
func InvalidIdentifier(field string) *Error {
	return &Error{Code: InvalidParameter, Message: field + " is malformed", Details: []Detail{{
		Field:   field,
		Message: "must be 1 to 128 letters, digits or . _ ~ - and start with a letter or digit",
	}}}
}

// Link returns what the token says. Errors are those of [Keyring.Verify].
func (s *Service) Link(token, filename string) (Link, error) {
	return s.Keyring.Verify(token, filename, s.Now())
}

// Content returns what the link leads to, or an [Error] with PackageOutdated if
// the package is gone or is not the one that was signed for.
func (s *Service) Content(ctx context.Context, link Link) (*Content, error) {
	c, err := s.contents.get(ctx, link.Package)
	if errors.Is(err, ErrPackageNotFound) {
		return nil, errOutdated
	}
	if err != nil {
		return nil, err
	}
	if digest := c.Layout.Digest(); !bytes.HasPrefix(digest[:], link.Digest[:]) {
		return nil, errOutdated
	}
	return c, nil
}

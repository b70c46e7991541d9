package server

import (
	"context"
	"errors"
	"fmt"
	"mime"
	"net/url"
	"slices"
	"strings"

	"github.com/downlink-go/downlink/server/internal/download"
)

// The types of a [Catalog], for programs that bring their own.
type (
	// Catalog knows the jobs. A server's default reads them from its bucket.
	Catalog = download.Catalog
	// Job is one run of a workflow and the assets that belong to it.
	Job = download.Job
	// JobStatus is how far a job run is.
	JobStatus = download.JobStatus
	// Asset is one file of a job, held by an object of the bucket.
	Asset = download.Asset
	// Role says which half of a package an asset belongs to.
	Role = download.Role
	// Object is an object of the bucket, pinned to one version of its content.
	Object = download.Object
	// Checksum is what is known of an asset's content beyond its size.
	Checksum = download.Checksum
)

// The values of [JobStatus] and [Role].
const (
	JobRunning   = download.JobRunning
	JobSucceeded = download.JobSucceeded
	JobFailed    = download.JobFailed
	Input        = download.Input
	Output       = download.Output
)

// ErrJobNotFound is what a [Catalog] returns for a job that does not exist.
var ErrJobNotFound = download.ErrJobNotFound

// bucket is a store of objects that can be listed.
type bucket interface {
	download.Objects
	// List returns all objects whose key starts with the prefix, a folder
	// ending in a slash. Where there is no such folder it returns nothing. What
	// is there but cannot be an asset is a finding.
	List(ctx context.Context, prefix string) (objects []Object, findings []download.Detail, err error)
	// Folders returns the names of the folders right below the prefix, a folder
	// ending in a slash or nothing for the top.
	Folders(ctx context.Context, prefix string) ([]string, error)
	// Read returns a whole small object, or download.ErrObjectNotFound if there
	// is none. One that may not be read is another error, as is one above the
	// limit: who can do without the object must not do without what it says.
	Read(ctx context.Context, key string, limit int64) ([]byte, error)
	// Remote reports whether it takes a while to open an object, so that it pays
	// to read ahead.
	Remote() bool
	// Check fails if the bucket cannot be read at the moment.
	Check(ctx context.Context) error
	Close() error
}

// openBucket opens the bucket that the URL names.
func openBucket(ctx context.Context, rawURL string) (bucket, error) {
	u, err := url.Parse(rawURL)
	if err != nil || u.Scheme == "" {
		return nil, fmt.Errorf("bucket %q: want a URL such as file:///data or s3://name", redactURL(rawURL))
	}
	switch u.Scheme {
	case "file":
		m, err := openMount(u)
		if err != nil {
			return nil, err
		}
		return m, nil
	case "s3":
		b, err := openObjectStore(ctx, u)
		if err != nil {
			return nil, err
		}
		return b, nil
	default:
		return nil, fmt.Errorf("bucket %q: unknown scheme %q, want file or s3", redactURL(rawURL), u.Scheme)
	}
}

// redactURL drops what may hold credentials.
func redactURL(rawURL string) string {
	u, err := url.Parse(rawURL)
	if err != nil {
		return "(not a URL)"
	}
	u.User, u.RawQuery = nil, ""
	return u.String()
}

// bucketCatalog finds jobs in the folders of a bucket.
type bucketCatalog struct{ bucket bucket }

// Job reads <workflow>/<job>/job.json, or without it lists inputs/ and outputs/.
func (c *bucketCatalog) Job(ctx context.Context, workflowID, jobID string) (Job, error) {
	prefix := workflowID + "/" + jobID + "/"
	manifest, err := c.bucket.Read(ctx, prefix+jobFile, maxJobFile)
	switch {
	case errors.Is(err, download.ErrObjectNotFound):
		return c.list(ctx, prefix, Job{Status: JobSucceeded}, false)
	case err != nil:
		return Job{}, bucketError(err)
	}
	job, listed, err := parseJob(manifest, prefix)
	if err != nil {
		return Job{}, fmt.Errorf("%s%s: %w", prefix, jobFile, err)
	}
	switch {
	case listed && job.Status == JobSucceeded && c.bucket.Remote():
		return job, c.pin(ctx, prefix, job.Assets)
	case listed, job.Status == JobFailed:
		return job, nil
	}
	return c.list(ctx, prefix, job, true)
}

// maxStats is how many assets that job.json lists in one of the job's folders are
// asked for one by one. For more it takes fewer requests to list the folder.
const maxStats = 100

// pin pins assets that job.json lists in the job's folders, where there are many.
// What it does not find, or not as declared, it leaves to be asked for.
func (c *bucketCatalog) pin(ctx context.Context, prefix string, assets []Asset) error {
	for _, role := range []Role{Input, Output} {
		dir := prefix + role.Dir() + "/"
		inside := make(map[string][]*Object)
		for i := range assets {
			if o := &assets[i].Object; strings.HasPrefix(o.Key, dir) {
				inside[o.Key] = append(inside[o.Key], o)
			}
		}
		if len(inside) <= maxStats {
			continue
		}
		objects, _, err := c.bucket.List(ctx, dir)
		if err != nil {
			return bucketError(err)
		}
		for _, found := range objects {
			for _, o := range inside[found.Key] {
				if o.Size < 0 || o.Size == found.Size {
					*o = found
				}
			}
		}
	}
	return nil
}

// list fills in the objects of the job's folders.
func (c *bucketCatalog) list(ctx context.Context, prefix string, job Job, known bool) (Job, error) {
	var findings []download.Detail
	for _, role := range []Role{Input, Output} {
		dir := prefix + role.Dir() + "/"
		objects, found, err := c.bucket.List(ctx, dir)
		if err != nil {
			return Job{}, bucketError(err)
		}
		for _, d := range found {
			d.Asset = strings.TrimPrefix(d.Asset, prefix)
			findings = append(findings, d)
		}
		job.Assets = slices.Grow(job.Assets, len(objects))
		for _, o := range objects {
			job.Assets = append(job.Assets, Asset{Role: role, Path: o.Key[len(dir):], Object: o})
		}
	}
	switch {
	case len(findings) > 0 && job.Status == JobSucceeded:
		slices.SortFunc(findings, func(a, b download.Detail) int { return strings.Compare(a.Asset, b.Asset) })
		return Job{}, download.MissingAssets(findings)
	case len(job.Assets) == 0 && !known:
		return Job{}, ErrJobNotFound
	}
	return job, nil
}

// bucketError marks what went wrong with the bucket as a passing fault.
func bucketError(err error) error {
	if _, ok := errors.AsType[*download.Error](err); ok || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return unavailable(err)
}

// unavailable marks a fault of the bucket that may pass.
func unavailable(err error) error {
	return &download.Error{Code: download.Unavailable, Message: "the assets cannot be read at the moment", Err: err}
}

// validMediaType reports whether s is a media type as RFC 9110, section 8.3.1
// has it.
func validMediaType(s string) bool {
	t, _, err := mime.ParseMediaType(s)
	return err == nil && strings.Contains(t, "/")
}

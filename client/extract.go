package client

import "context"

// ExtractResult is what [Client.Extract] has done.
type ExtractResult struct {
	// ID of the package.
	ID string
	// Written and Kept are how many files were written, and how many were there
	// already, and right.
	Written, Kept int
	// Fetched is how many bytes of the package were fetched.
	Fetched int64
}

// SpaceError says that the disk has no room for what is to be written.
type SpaceError struct {
	Dir  string // that was to be written to, or the one it would be in
	Need int64  // bytes
	Err  error  // says how many are free
}

// Error returns one line for people.
func (e *SpaceError) Error() string { return e.Err.Error() }

// Unwrap returns Err.
func (e *SpaceError) Unwrap() error { return e.Err }

// extractPackage writes the files of a package into a folder.
func extractPackage(ctx context.Context, p *Package, dir string, o *extractOptions) (*ExtractResult, error) {
	src := &countingSource{source: p.src}
	plan, err := newPlan(ctx, src, p.dir, dir, o)
	if err != nil {
		return nil, err
	}
	defer plan.close()
	if err := plan.run(ctx, o); err != nil {
		return nil, err
	}
	return &ExtractResult{ID: p.id, Written: len(plan.files), Kept: plan.kept, Fetched: src.n.Load()}, nil
}

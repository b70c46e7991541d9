package client

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"slices"

	"github.com/downlink-go/downlink/client/internal/transfer"
)

// Result is what [Client.Save] has done.
type Result struct {
	// Path of the file and its Size in bytes.
	Path string
	Size int64
	// ID of the package.
	ID string
	// Kept is true if the file was there already, and right.
	Kept bool
	// Resumed is how many bytes an earlier run had fetched.
	Resumed int64
	// Verified is false after WithoutVerification.
	Verified bool
}

// FileExistsError says that there is a file already which is not the package, or
// cannot be shown to be.
type FileExistsError struct{ Path string }

// Error returns one line for people.
func (e *FileExistsError) Error() string {
	return e.Path + " exists already and is not this package"
}

// Is makes errors.Is(err, fs.ErrExist) true.
func (e *FileExistsError) Is(target error) bool { return target == fs.ErrExist }

// Save waits until the package is ready and downloads it to the path, by several
// requests at a time. The file appears under its name when it is whole, verified
// and safely on the disk; until then what there is of it lies beside it, and
// another call goes on from there after any end of this one.
//
// A file that is there already is kept if it is this package and right, and
// replaced if it is this package and damaged. If it is anything else the error is
// a [*FileExistsError], unless WithOverwrite is given.
//
// If the package changes meanwhile, Save starts over. Files that do not have the
// checksums that the package says are fetched once more, and are a
// [*VerifyError] if that does not help. A package that is not a ZIP, or not an
// honest one, is a [*FormatError], before anything is fetched if the server
// answers requests for parts of it.
func (c *Client) Save(ctx context.Context, workflowID, jobID, path string, opts ...SaveOption) (*Result, error) {
	o := &saveOptions{connections: defaultConnections, progress: ignoreProgress}
	if err := applyAll(opts, SaveOption.applyToSave, o); err != nil {
		return nil, err
	}
	if info, err := os.Lstat(path); err == nil && !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is in the way: it is not a file", path)
	}
	var result Result
	repaired := false
	err := c.restarting(ctx, workflowID, jobID, o.progress, func(r *remote) error {
		s := &save{remote: r, path: path, options: o}
		err := s.run(ctx)
		if damaged(err) && !repaired {
			repaired = true
			return startOver{err, "what came is damaged, fetching that again"}
		}
		result = s.result
		return err
	})
	if err != nil {
		return nil, err
	}
	return &result, nil
}

// save is one attempt of [Client.Save], at one version of the package.
type save struct {
	remote  *remote
	path    string
	options *saveOptions
	result  Result
	exists  bool // something that may be replaced has the name
	// directory is that of the package, nil where it cannot be fetched by itself.
	directory *directory
}

func (s *save) run(ctx context.Context) error {
	s.result = Result{Path: s.path, ID: s.remote.id, Verified: !s.options.unverified}
	if s.remote.HasRanges() {
		d, err := readDirectory(ctx, s.remote)
		if err != nil {
			return err
		}
		s.directory = d
	}
	if err := s.lookAtExisting(ctx); err != nil || s.result.Kept {
		return err
	}
	p, err := transfer.OpenPartial(s.path, s.remote.id, s.remote.Version())
	if err != nil {
		return err
	}
	defer p.Close()
	s.result.Resumed = p.Done()
	switch {
	case p.Dropped():
		s.tell(0, "what an earlier run left is not of this package, starting over")
	case s.result.Resumed > 0:
		s.tell(s.result.Resumed, fmt.Sprintf("going on after %d bytes of an earlier run", s.result.Resumed))
	}
	err = s.remote.Fetch(ctx, p, transfer.FetchOptions{Connections: s.options.connections, Observe: func(now transfer.Progress) {
		s.options.progress(Progress{Stage: Downloading, Done: now.Done, Total: max(now.Total, 0), Connections: now.Connections})
	}})
	if err != nil {
		return err
	}
	if err := s.verify(ctx); err != nil {
		if damaged(err) {
			err = cmp.Or(p.Forget(s.suspects(err)...), err)
		}
		return err
	}
	if _, err := os.Lstat(s.path); err == nil && !s.exists {
		return &FileExistsError{Path: s.path} // since a moment ago
	}
	info, err := p.File().Stat()
	if err != nil {
		return err
	}
	s.result.Size = info.Size()
	return p.Commit()
}

// tell reports something that happens once.
func (s *save) tell(done int64, note string) {
	s.options.progress(Progress{Stage: Downloading, Done: done, Total: max(s.remote.Size(), 0), Note: note})
}

// lookAtExisting decides about a file that is there already: it is kept, it may
// be replaced, or it is an error.
func (s *save) lookAtExisting(ctx context.Context) error {
	file, err := os.Open(s.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return err
	}
	s.exists = true
	if !s.isThis(ctx, localSource{file: file, size: info.Size()}) {
		if s.options.overwrite {
			return ctx.Err()
		}
		return &FileExistsError{Path: s.path}
	}
	_, err = VerifyFile(ctx, s.path, WithProgress(s.options.progress))
	switch {
	case damaged(err):
		s.tell(0, "the file that is there is damaged, fetching it again")
		return nil
	case err == nil:
		s.result.Size, s.result.Kept, s.result.Verified = info.Size(), true, true
	}
	return err
}

// isThis reports whether a file is the package, though perhaps damaged: it has
// the same directory, with the checksums of all files.
func (s *save) isThis(ctx context.Context, file localSource) bool {
	if s.directory == nil || file.Size() != s.remote.Size() {
		return false
	}
	d, err := readDirectory(ctx, file)
	return err == nil && slices.Equal(d.entries, s.directory.entries)
}

// damaged reports whether a package was found not to be right.
func damaged(err error) bool {
	_, wrong := errors.AsType[*VerifyError](err)
	_, malformed := errors.AsType[*FormatError](err)
	return wrong || malformed
}

// verify checks what was fetched.
func (s *save) verify(ctx context.Context) error {
	name := s.path + transfer.PartialSuffix
	if !s.options.unverified {
		_, err := VerifyFile(ctx, name, WithProgress(s.options.progress))
		return err
	}
	file, err := os.Open(name)
	if err != nil {
		return err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return err
	}
	_, err = readDirectory(ctx, localSource{file: file, size: info.Size()})
	return err
}

// suspects returns what of the package may be wrong: the files that are found
// to be, or all of it where that cannot be said so exactly.
func (s *save) suspects(err error) []transfer.Range {
	whole := []transfer.Range{{End: math.MaxInt64}}
	var names []string
	if e, ok := errors.AsType[*VerifyError](err); ok && e.Total == len(e.Problems) {
		for _, p := range e.Problems {
			names = append(names, p.Name)
		}
	} else if e, ok := errors.AsType[*FormatError](err); ok && e.Name != "" {
		names = []string{e.Name}
	}
	if s.directory == nil || len(names) == 0 {
		return whole
	}
	var ranges []transfer.Range
	for _, name := range names {
		e := s.directory.find(name)
		if e == nil {
			e = s.directory.manifest() // only there can the name come from
		}
		if e == nil {
			return whole
		}
		ranges = append(ranges, transfer.Range{Start: e.offset, End: e.limit})
	}
	return ranges
}

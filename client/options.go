package client

import (
	"errors"
	"fmt"

	"github.com/bmatcuk/doublestar/v4"
)

// Stage says what a [Progress] is about.
type Stage string

// The stages of a download.
const (
	Preparing   Stage = "preparing"   // the server is not ready yet
	Downloading Stage = "downloading" // bytes are coming
	Verifying   Stage = "verifying"   // what is on the disk is being checked
)

// Progress tells how far a download is.
type Progress struct {
	Stage Stage
	// Done and Total are bytes; Total is 0 where it is not known. While
	// preparing they are 0 and Pending has the server's answer.
	Done, Total int64
	Pending     *Download
	// Connections has how many bytes each connection has fetched, nil where there
	// is only one.
	Connections []int64
	// Note says, once, what is worth telling: that a download is resumed, or
	// starts over because the package has changed. Empty otherwise.
	Note string
}

// The options, by what they configure. Each is for one call.
type (
	// SaveOption configures [Client.Save].
	SaveOption interface{ applyToSave(*saveOptions) error }
	// ExtractOption configures [Client.Extract].
	ExtractOption interface{ applyToExtract(*extractOptions) error }
	// CopyOption configures [Client.Copy].
	CopyOption interface{ applyToCopy(*copyOptions) error }
	// VerifyOption configures [VerifyFile] and [VerifyDir].
	VerifyOption interface{ applyToVerify(*verifyOptions) error }

	// TransferOption configures what fetches in parallel.
	TransferOption interface {
		SaveOption
		ExtractOption
	}
	// FilterOption configures what looks at single files.
	FilterOption interface {
		ExtractOption
		VerifyOption
	}
	// ProgressOption configures all of it.
	ProgressOption interface {
		SaveOption
		ExtractOption
		CopyOption
		VerifyOption
	}
)

type saveOptions struct {
	connections int
	progress    func(Progress)
	overwrite   bool
	unverified  bool
}

type extractOptions struct {
	connections int
	progress    func(Progress)
	filter      filter
}

type copyOptions struct{ progress func(Progress) }

type verifyOptions struct {
	progress func(Progress)
	filter   filter
}

// defaultConnections is how many parts are fetched at a time if nobody says.
const defaultConnections = 4

func ignoreProgress(Progress) {}

type saveOption func(*saveOptions)

func (f saveOption) applyToSave(o *saveOptions) error {
	f(o)
	return nil
}

type connectionsOption int

func (n connectionsOption) check() error {
	if n < 1 || n > maxConnections {
		return fmt.Errorf("%d connections: want 1 to %d", int(n), maxConnections)
	}
	return nil
}

func (n connectionsOption) applyToSave(o *saveOptions) error {
	o.connections = int(n)
	return n.check()
}

func (n connectionsOption) applyToExtract(o *extractOptions) error {
	o.connections = int(n)
	return n.check()
}

type progressOption func(Progress)

func (f progressOption) set(progress *func(Progress)) error {
	if f == nil {
		return errors.New("the function for the progress is nil")
	}
	*progress = f
	return nil
}

func (f progressOption) applyToSave(o *saveOptions) error       { return f.set(&o.progress) }
func (f progressOption) applyToExtract(o *extractOptions) error { return f.set(&o.progress) }
func (f progressOption) applyToCopy(o *copyOptions) error       { return f.set(&o.progress) }
func (f progressOption) applyToVerify(o *verifyOptions) error   { return f.set(&o.progress) }

type filterOption func(*filter) error

func (f filterOption) applyToExtract(o *extractOptions) error { return f(&o.filter) }
func (f filterOption) applyToVerify(o *verifyOptions) error   { return f(&o.filter) }

// OptionError says that an option has a value that it cannot have.
type OptionError struct{ Err error }

// Error returns one line for people.
func (e *OptionError) Error() string { return e.Err.Error() }

// Unwrap returns Err.
func (e *OptionError) Unwrap() error { return e.Err }

// applyAll applies options to what they configure.
func applyAll[O, C any](options []O, apply func(O, *C) error, config *C) error {
	for _, o := range options {
		if err := apply(o, config); err != nil {
			return &OptionError{Err: err}
		}
	}
	return nil
}

// maxConnections is how many connections a client opens to one host for
// downloads, all of them together.
const maxConnections = 16

// WithConnections sets how many parts are fetched at a time, at most 16. There
// are fewer where there is little to fetch or the server has too much to do, and
// one where it knows no ranges. All downloads of a [Client] share 16 connections
// to each host. Defaults to 4.
func WithConnections(n int) TransferOption { return connectionsOption(n) }

// WithProgress sets a function that is told of the progress, a few times a
// second. It is not called twice at a time and must not block. Defaults to none.
func WithProgress(f func(Progress)) ProgressOption { return progressOption(f) }

// WithOverwrite lets Save replace a file that is not this package. Defaults to an
// error.
func WithOverwrite() SaveOption {
	return saveOption(func(o *saveOptions) { o.overwrite = true })
}

// WithoutVerification leaves out the check of every file's checksum. What comes
// is then only known to have the right size, to be of one version, and to be a
// ZIP. Defaults to checking.
func WithoutVerification() SaveOption {
	return saveOption(func(o *saveOptions) { o.unverified = true })
}

// WithInclude takes only the files whose path in the package matches one of the
// patterns. They are those of [path.Match], and ** matches any number of folders:
// "outputs/**/*.tif". Repeated, the patterns add up. Defaults to all files.
func WithInclude(patterns ...string) FilterOption {
	return filterOption(func(f *filter) error {
		f.include = append(f.include, patterns...)
		return checkPatterns(patterns)
	})
}

// WithExclude leaves out the files whose path in the package matches one of the
// patterns, also of those that [WithInclude] takes. Defaults to none.
func WithExclude(patterns ...string) FilterOption {
	return filterOption(func(f *filter) error {
		f.exclude = append(f.exclude, patterns...)
		return checkPatterns(patterns)
	})
}

func checkPatterns(patterns []string) error {
	for _, p := range patterns {
		if !doublestar.ValidatePattern(p) {
			return fmt.Errorf("the pattern %q is malformed", p)
		}
	}
	return nil
}

// filter selects files by their path.
type filter struct{ include, exclude []string }

func (f *filter) takes(name string) bool {
	return (len(f.include) == 0 || matchesAny(f.include, name)) && !matchesAny(f.exclude, name)
}

func matchesAny(patterns []string, name string) bool {
	for _, p := range patterns {
		if doublestar.MatchUnvalidated(p, name) {
			return true
		}
	}
	return false
}

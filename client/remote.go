package client

import (
	"context"
	"errors"
	"fmt"

	"github.com/downlink-go/downlink/client/internal/transfer"
)

var (
	// ErrTransfer is in every error for which the host of a package or the way to
	// it is to blame, after what could be tried again has been.
	ErrTransfer = transfer.ErrFailed
	// ErrChanged says that the package was replaced by another while it was read.
	// Methods that can start over do so instead, a few times.
	ErrChanged = transfer.ErrChanged
	// ErrNoRanges says that the host sends the package only as a whole: that is
	// enough for Save and Copy, but not for Open and Extract.
	ErrNoRanges = transfer.ErrNoRanges
	// ErrBusy says that another process is writing the same file.
	ErrBusy = transfer.ErrBusy
)

// maxRestarts is how often a download starts over because the package has
// changed, before it gives up.
const maxRestarts = 3

// remote is a package that is ready, where its host has it.
type remote struct {
	*transfer.Remote
	id string
}

// openRemote waits until the package is ready and connects to its host.
func (c *Client) openRemote(ctx context.Context, workflowID, jobID string, progress func(Progress)) (*remote, error) {
	onPending := func(*Download) {}
	if progress != nil {
		onPending = func(d *Download) { progress(Progress{Stage: Preparing, Pending: d}) }
	}
	locate := func(ctx context.Context) (transfer.Location, error) {
		d, err := c.waitUntilReady(ctx, workflowID, jobID, onPending)
		if err != nil {
			return transfer.Location{}, err
		}
		return transfer.Location{URL: string(d.SignedURL), ID: d.ID, Expires: d.Expires, Size: d.Size}, nil
	}
	location, err := locate(ctx)
	if err != nil {
		return nil, err
	}
	r, err := transfer.Open(ctx, transfer.Config{
		HTTP: c.data, Renew: locate, Log: c.log, Hosts: c.hosts, Stall: c.stallTimeout, Budget: c.retryBudget,
	}, location)
	if err != nil {
		return nil, err
	}
	return &remote{Remote: r, id: location.ID}, nil
}

// startOver is an error for which a download starts over.
type startOver struct {
	error
	note string // says why
}

func (e startOver) Unwrap() error { return e.error }

// restarting calls f with the package, and again if it changes meanwhile or f
// asks for it.
func (c *Client) restarting(ctx context.Context, workflowID, jobID string, progress func(Progress), f func(*remote) error) error {
	for restarts := 0; ; restarts++ {
		r, err := c.openRemote(ctx, workflowID, jobID, progress)
		if err == nil {
			err = f(r)
		}
		again, ok := errors.AsType[startOver](err)
		if errors.Is(err, ErrChanged) {
			again, ok = startOver{err, "the package has changed, starting over"}, true
		}
		if !ok {
			return err
		}
		if restarts == maxRestarts {
			return fmt.Errorf("gave up after starting over %d times: %w", restarts, again.error)
		}
		if progress != nil {
			progress(Progress{Stage: Preparing, Note: again.note})
		}
	}
}

// Open waits until the package is ready and reads its directory, which takes two
// or three small requests however large the package is. The package belongs to
// ctx: when that is over nothing of it can be read any more. Close it.
//
// A package that is not a ZIP, or has what no honest one has, is a
// [*FormatError]. A host that does not send parts is [ErrNoRanges].
func (c *Client) Open(ctx context.Context, workflowID, jobID string) (*Package, error) {
	var p *Package
	err := c.restarting(ctx, workflowID, jobID, nil, func(r *remote) (err error) {
		p, err = openPackage(ctx, r.id, r)
		return err
	})
	return p, err
}

// Extract writes the files of a package into a folder, straight from its host:
// no ZIP is on the disk at any time. Each file is verified and appears whole. Run
// again, it fetches only what is missing or wrong.
//
// Everything that could go wrong is looked at before anything is written: names
// that lead out of the folder or cannot be on this system, files and links in the
// way, the room on the disk ([*SpaceError]). A file that is not right is a
// [*VerifyError].
func (c *Client) Extract(ctx context.Context, workflowID, jobID, dir string, opts ...ExtractOption) (*ExtractResult, error) {
	o := &extractOptions{connections: defaultConnections, progress: ignoreProgress}
	if err := applyAll(opts, ExtractOption.applyToExtract, o); err != nil {
		return nil, err
	}
	var result *ExtractResult
	err := c.restarting(ctx, workflowID, jobID, o.progress, func(r *remote) error {
		p, err := openPackage(ctx, r.id, r)
		if err != nil {
			return err
		}
		defer p.Close()
		result, err = extractPackage(ctx, p, dir, o)
		return err
	})
	return result, err
}

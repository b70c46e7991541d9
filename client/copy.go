package client

import (
	"cmp"
	"context"
	"io"
	"slices"
)

// Copy waits until the package is ready and writes it to w, in order and by one
// request at a time, which goes on where the last one was cut. It returns the
// number of bytes.
//
// Each file is verified while it passes, if the server answers requests for
// parts. Whatever the error is, w has then got a part of the package, with
// something wrong at the end of it if it is a [*VerifyError]. So the reader of
// what is written must learn of the error. A package that changes meanwhile is
// [ErrChanged].
func (c *Client) Copy(ctx context.Context, workflowID, jobID string, w io.Writer, opts ...CopyOption) (int64, error) {
	o := &copyOptions{progress: ignoreProgress}
	if err := applyAll(opts, CopyOption.applyToCopy, o); err != nil {
		return 0, err
	}
	r, err := c.openRemote(ctx, workflowID, jobID, o.progress)
	if err != nil {
		return 0, err
	}
	var entries []*entry
	if r.HasRanges() {
		if entries, err = r.inOrder(ctx); err != nil {
			return 0, err
		}
	}
	body := r.ReadAll(ctx)
	defer body.Close()
	m := &meter{tell: o.progress, now: Progress{Stage: Downloading, Total: max(r.Size(), 0)}}
	at := &positionReader{r: io.TeeReader(body, io.MultiWriter(w, m))}
	err = verifyPassing(ctx, at, entries)
	return at.pos, err
}

// inOrder returns the files of the package in the order of their content, or
// what is wrong with the package as far as it shows without them.
func (r *remote) inOrder(ctx context.Context) ([]*entry, error) {
	d, err := readDirectory(ctx, r)
	if err != nil {
		return nil, err
	}
	var found problems
	if _, err := describe(ctx, r, d, &found); err != nil {
		return nil, err
	}
	var entries []*entry
	for i := range d.entries {
		switch e := &d.entries[i]; {
		case e.unsupported != "":
			found.add(e.name, e.unsupported)
		case !e.isDir:
			entries = append(entries, e)
		}
	}
	slices.SortFunc(entries, func(a, b *entry) int { return cmp.Compare(a.offset, b.offset) })
	return entries, found.err()
}

// verifyPassing reads the package to its end and checks the files on the way.
func verifyPassing(ctx context.Context, at *positionReader, entries []*entry) error {
	var found problems
	for _, e := range entries {
		if _, err := io.CopyN(io.Discard, at, e.offset-at.pos); err != nil {
			return noEOF(err)
		}
		if err := found.take(e.copyContent(ctx, io.Discard, at)); err != nil {
			return err
		}
		if err := found.err(); err != nil {
			return err
		}
	}
	return copyAll(ctx, io.Discard, at)
}

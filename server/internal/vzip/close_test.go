package vzip

import (
	"bytes"
	"context"
	"errors"
	"io"
	"testing"
)

var errChanged = errors.New("changed")

// changing is a source whose content turns out to have changed when it is closed.
type changing struct{ content []byte }

func (c changing) Open(_ context.Context, _ int, off, n int64) (io.ReadCloser, error) {
	return changedReader{bytes.NewReader(c.content[off : off+n])}, nil
}

type changedReader struct{ io.Reader }

func (changedReader) Close() error { return errChanged }

// TestCloseTells: what a source finds out on Close is an error of the range, and
// nothing that follows it is written.
func TestCloseTells(t *testing.T) {
	t.Parallel()
	for _, size := range []int{10, 2 * smallContent} {
		l, err := New([]Entry{{Name: "a", Size: int64(size)}, {Name: "b", Data: []byte("b")}})
		if err != nil {
			t.Fatal(err)
		}
		src := changing{make([]byte, size)}
		r := l.NewReader(t.Context(), src)
		var w bytes.Buffer
		n, err := r.CopyN(&w, l.Size())
		if e, ok := errors.AsType[*SourceError](err); !ok || e.Name != "a" || !errors.Is(err, errChanged) {
			t.Errorf("%d bytes: CopyN fails with %v", size, err)
		}
		if n >= l.Size() || int64(w.Len()) != n {
			t.Errorf("%d bytes: %d of %d were written", size, w.Len(), l.Size())
		}
		r = l.NewReader(t.Context(), src)
		if _, err := io.ReadAll(r); !errors.Is(err, errChanged) {
			t.Errorf("%d bytes: Read fails with %v", size, err)
		}
	}
}

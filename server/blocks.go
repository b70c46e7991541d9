package server

import (
	"bytes"
	"context"
	"errors"
	"io"
	"time"

	"github.com/google/uuid"
	"github.com/maypok86/otter/v2"

	"github.com/downlink-go/downlink/server/internal/download"
	"github.com/downlink-go/downlink/server/internal/vzip"
)

const (
	// blockSize is that of the blocks of packages that are kept.
	blockSize = 256 << 10
	// blockEntries is how many entries a block has to have to be kept. With fewer
	// it is fast enough to read them again.
	blockEntries = 64
	// blockRange is up to where a range is taken from blocks. Who reads more at
	// once does not come again soon.
	blockRange = 4 << 20
	// blockTime is for how long a block is kept.
	blockTime = 10 * time.Second
)

// blocks keeps the parts of packages that are made of many tiny assets, which are
// read by range, and would have to be opened one by one each time. What it has are
// the bytes that the layout stands for, whatever has become of the assets.
type blocks struct {
	cache *otter.Cache[blockName, []byte]
}

// blockName is that of the block with this index of a package.
type blockName struct {
	packageID uuid.UUID
	index     int64
}

// newBlocks returns blocks that take up to so many bytes of memory, one at least.
func newBlocks(maxBytes int64) *blocks {
	return &blocks{cache: otter.Must(&otter.Options[blockName, []byte]{
		MaximumWeight:    uint64(max(maxBytes, blockSize)),
		Weigher:          func(_ blockName, b []byte) uint32 { return uint32(len(b)) },
		ExpiryCalculator: otter.ExpiryWriting[blockName, []byte](blockTime),
		Clock:            tickless{start: time.Now()},
	})}
}

// bytes returns how many are kept.
func (b *blocks) bytes() int64 { return int64(b.cache.WeightedSize()) }

// blockReader copies ranges of a package, with what is in blocks taken from there.
// It belongs to one request.
type blockReader struct {
	*vzip.Reader
	ctx     context.Context // of the request
	blocks  *blocks
	content *download.Content
	source  vzip.Source
}

// CopyN is that of the vzip.Reader.
func (r *blockReader) CopyN(w io.Writer, n int64) (written int64, err error) {
	if n > blockRange {
		return r.Reader.CopyN(w, n)
	}
	off, err := r.Seek(0, io.SeekCurrent)
	if err != nil {
		return 0, err
	}
	want := n
	n = min(n, max(r.content.Layout.Size()-off, 0))
	// direct is what comes before off and is yet to be copied without blocks, all
	// at once.
	direct := int64(0)
	copyDirect := func() error {
		m, err := r.Reader.CopyN(w, direct)
		written += m
		direct = 0
		return err
	}
	for end := off + n; off < end; {
		p, skip, err := r.next(off, end-off)
		if err != nil {
			return written, err
		}
		if p == nil {
			direct, off = direct+skip, off+skip
			continue
		}
		if err := copyDirect(); err != nil {
			return written, err
		}
		m, err := w.Write(p)
		written += int64(m)
		if err != nil {
			return written, err
		}
		if off, err = r.Seek(int64(m), io.SeekCurrent); err != nil {
			return written, err
		}
	}
	if err := copyDirect(); err != nil {
		return written, err
	}
	if written < want {
		return written, io.EOF
	}
	return written, nil
}

// next returns the bytes of the package from off on that are in one block, n at
// most. If they are nil, as many as skip says have to be read as they are.
func (r *blockReader) next(off, n int64) (p []byte, skip int64, err error) {
	layout := r.content.Layout
	name := blockName{r.content.Plan.ID, off / blockSize}
	start := name.index * blockSize
	size := min(blockSize, layout.Size()-start)
	n = min(n, start+size-off)
	if layout.Entries(start, size) < blockEntries {
		return nil, n, nil
	}
	whole, ok := r.blocks.cache.GetIfPresent(name)
	switch {
	case ok:
	case n < size: // so that who wants one asset does not read all around it
		return nil, n, nil
	default:
		load := func(ctx context.Context, _ blockName) ([]byte, error) {
			// Others wait for it too, whatever becomes of this request.
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
			defer cancel()
			return readBlock(ctx, layout, r.source, start, size)
		}
		if whole, err = r.blocks.cache.Get(r.ctx, name, otter.LoaderFunc[blockName, []byte](load)); err != nil {
			return nil, 0, err
		}
	}
	return whole[off-start:][:n], 0, nil
}

func readBlock(ctx context.Context, layout *vzip.Layout, source vzip.Source, off, n int64) (_ []byte, err error) {
	r := layout.NewReader(ctx, source)
	defer func() { err = errors.Join(err, r.Close()) }()
	if _, err := r.Seek(off, io.SeekStart); err != nil {
		return nil, err
	}
	var b bytes.Buffer
	b.Grow(int(n))
	_, err = r.CopyN(&b, n)
	return b.Bytes(), err
}

package server

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/labstack/echo/v4"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/downlink-go/downlink/server/internal/download"
	"github.com/downlink-go/downlink/server/internal/vzip"
)

// contentRoute is where signed URLs lead. The token is in the path and the path
// ends in .zip, so that wget, curl -O and GDAL take it as it is.
const contentRoute = "/packages/:token/:filename"

func contentPath(token, filename string) string { return "/packages/" + token + "/" + filename }

// maxRanges bounds the ranges of one request. Each may cost a request to the store,
// and 130 bytes of answer, however small it is.
const maxRanges = 100

// serveContent answers GET and HEAD of a signed URL: ranges, conditions and
// multipart ranges as http.ServeContent has them (RFC 9110, sections 13 and 14),
// up to maxRanges.
//
// A package that cannot be read is an error as long as no byte of it is out.
// After that the connection is cut, so that a short answer is never taken for a
// whole one.
func (s *Server) serveContent(c echo.Context) error {
	ctx := c.Request().Context()
	link, err := s.service.Link(c.Param("token"), c.Param("filename"))
	if err != nil {
		return err
	}
	info := requestInfo(ctx)
	info.keyID = link.KeyID
	release, err := s.slots.take(c.Response().Header(), link.KeyID)
	if err != nil {
		return err
	}
	defer release()
	content, err := s.service.Content(ctx, link)
	if err != nil {
		return err
	}
	info.workflowID, info.jobID, info.packageID = content.Plan.WorkflowID, content.Plan.JobID, content.Plan.ID.String()

	// Echo's Response hides the ReadFrom of net/http's own writer, without
	// which no file goes out by sendfile(2).
	w := &contentWriter{ResponseWriter: unwrap(c.Response()), stall: s.stallTimeout,
		sent: s.metrics.bytes.WithLabelValues(contentRoute)}
	defer func() { info.counted = w.counted }()
	w.control = http.NewResponseController(w.ResponseWriter)
	digest := content.Layout.Digest()
	header := w.Header()
	header.Set("Content-Type", "application/zip")
	header.Set("Content-Disposition", `attachment; filename="`+c.Param("filename")+`"`)
	header.Set("ETag", `"`+hex.EncodeToString(digest[:])+`"`)
	header.Set("Cache-Control", "private, no-transform")

	if strings.Count(c.Request().Header.Get("Range"), ",") >= maxRanges {
		remove(header, "Content-Type", "Content-Disposition")
		header.Set("Content-Range", fmt.Sprintf("bytes */%d", content.Layout.Size()))
		return &download.Error{Code: rangeNotSatisfiable, Message: fmt.Sprintf("too many ranges: at most %d in a request", maxRanges)}
	}
	source := s.source(content)
	reader := &packageReader{reader: &blockReader{
		Reader: content.Layout.NewReader(ctx, source), ctx: ctx, blocks: s.blocks, content: content, source: source,
	}}
	defer reader.Close()
	http.ServeContent(w, c.Request(), "", content.Modified, reader)

	response := c.Response()
	err = reader.failure()
	switch {
	case err != nil && w.committed:
		response.Status, response.Size, response.Committed = w.status, w.written, true
		if _, ok := errors.AsType[*vzip.SourceError](err); ok { // otherwise the client went
			s.metrics.cut.Inc()
			s.log.WarnContext(ctx, "download cut",
				slog.String("request_id", info.requestID), slog.String("package_id", info.packageID), slog.Any("error", err))
		}
		panic(http.ErrAbortHandler)
	case err != nil:
		remove(header, "Content-Type", "Content-Disposition", "ETag", "Cache-Control",
			"Last-Modified", "Accept-Ranges", "Content-Range", "Content-Length")
		return download.ReadError(err)
	case w.status == http.StatusRequestedRangeNotSatisfiable:
		remove(header, "Content-Type", "Content-Disposition", "Content-Length")
		return &download.Error{Code: rangeNotSatisfiable, Message: fmt.Sprintf("the package has %d bytes", content.Layout.Size())}
	case w.status == http.StatusPreconditionFailed:
		remove(header, "Content-Type", "Content-Disposition", "Content-Length")
		return &download.Error{Code: preconditionFailed, Message: "the package is not the one that the request is conditional on"}
	}
	w.commit() // HEAD and 304 have no body that would have done it
	response.Status, response.Size, response.Committed = w.status, w.written, true
	return nil
}

// source returns what to read the package from.
func (s *Server) source(content *download.Content) vzip.Source {
	if s.bucket != nil && s.bucket.Remote() {
		return &readAhead{Source: content, memory: s.aheadMemory, held: &s.aheadHeld}
	}
	return content
}

func remove(h http.Header, names ...string) {
	for _, name := range names {
		h.Del(name)
	}
}

func unwrap(w http.ResponseWriter) http.ResponseWriter {
	for {
		u, ok := w.(interface{ Unwrap() http.ResponseWriter })
		if !ok {
			return w
		}
		w = u.Unwrap()
	}
}

// contentWriter stands between http.ServeContent and net/http's writer. It puts
// off the header until the first byte is at hand, swallows the texts of errors,
// ends clients that do not take what they asked for, and hands whole ranges to
// the package's reader instead of copying them through a small buffer.
type contentWriter struct {
	http.ResponseWriter
	control   *http.ResponseController
	stall     time.Duration
	status    int
	committed bool
	written   int64
	counted   int64              // of those written, in sent
	sent      prometheus.Counter // nil where nothing counts
}

// add notes that n bytes were written. They are counted in chunks, so that a long
// download shows while it runs and small writes cost nothing.
func (w *contentWriter) add(n int64) {
	w.written += n
	if news := w.written - w.counted; news >= chunk && w.sent != nil {
		w.sent.Add(float64(news))
		w.counted = w.written
	}
}

func (w *contentWriter) WriteHeader(status int) { w.status = status }

func (w *contentWriter) commit() {
	if !w.committed {
		w.committed = true
		w.ResponseWriter.WriteHeader(w.status)
	}
}

// failed reports whether http.ServeContent is writing an error.
func (w *contentWriter) failed() bool { return w.status >= http.StatusBadRequest }

const (
	// chunk is what must get through to the client within the stall timeout, in
	// bytes. A smaller one allows slower clients and costs more calls.
	chunk = 1 << 20
	// fastChunk is the same of a file for a client that took the last one at
	// fastRate, in bytes a second: it would have to become a thousand times slower
	// to be cut for it.
	fastChunk = 4 << 20
	fastRate  = 100e6
)

// copyBuffer is the size of the pieces in which content that is no file is sent.
const copyBuffer = 256 << 10

var copyBuffers = sync.Pool{New: func() any { return new([copyBuffer]byte) }}

func (w *contentWriter) Write(p []byte) (int, error) {
	if w.failed() {
		return len(p), nil
	}
	w.commit()
	total := 0
	for {
		if err := w.extend(); err != nil {
			return total, err
		}
		n, err := w.ResponseWriter.Write(p[:min(len(p), chunk)])
		total += n
		w.add(int64(n))
		p = p[n:]
		if err != nil || len(p) == 0 {
			return total, err
		}
	}
}

// ReadFrom is what io.CopyN calls, with an *io.LimitedReader.
func (w *contentWriter) ReadFrom(src io.Reader) (int64, error) {
	limited, ok := src.(*io.LimitedReader)
	if !ok || w.failed() {
		return io.Copy(struct{ io.Writer }{w}, src)
	}
	if r, ok := limited.R.(*packageReader); ok {
		n, err := r.copyN(w, limited.N)
		limited.N -= n
		return n, err
	}
	if _, ok := limited.R.(syscall.Conn); !ok {
		// Not a file: nothing is won by net/http's own copy, in small pieces.
		buf := copyBuffers.Get().(*[copyBuffer]byte)
		defer copyBuffers.Put(buf)
		return io.CopyBuffer(struct{ io.Writer }{w}, src, buf[:])
	}
	// A range of a file. In chunks, for the deadline to move on.
	w.commit()
	var total int64
	size := int64(chunk)
	for limited.N > 0 {
		start := time.Now()
		if err := w.extend(); err != nil {
			return total, err
		}
		n, err := io.CopyN(w.ResponseWriter, limited.R, min(limited.N, size))
		if size = chunk; float64(n) > fastRate*time.Since(start).Seconds() {
			size = fastChunk
		}
		total += n
		w.add(n)
		limited.N -= n
		if errors.Is(err, io.EOF) {
			return total, nil // short: the caller counts
		}
		if err != nil {
			return total, err
		}
	}
	return total, nil
}

// extend gives the client another stall timeout for the next chunk.
func (w *contentWriter) extend() error {
	err := w.control.SetWriteDeadline(time.Now().Add(w.stall))
	if errors.Is(err, http.ErrNotSupported) {
		return nil // a test's recorder
	}
	return err
}

// packageReader is the io.ReadSeeker for http.ServeContent. For multipart ranges
// that reads in a goroutine of its own, which may outlive the call when the
// client goes; hence the lock.
type packageReader struct {
	mu     sync.Mutex
	reader *blockReader
	err    error // the first failure to read
}

func (r *packageReader) Read(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	n, err := r.reader.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		r.fail(err)
	}
	return n, err
}

func (r *packageReader) Seek(offset int64, whence int) (int64, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.reader.Seek(offset, whence)
}

func (r *packageReader) copyN(w io.Writer, n int64) (int64, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	n, err := r.reader.CopyN(w, n)
	r.fail(err)
	return n, err
}

func (r *packageReader) fail(err error) {
	if r.err == nil {
		r.err = err
	}
}

func (r *packageReader) failure() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.err
}

// Close ends reading; what is read afterwards fails.
func (r *packageReader) Close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	_ = r.reader.Close() // nothing is read after this
}

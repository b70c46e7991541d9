package server

import (
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/downlink-go/downlink/server/internal/download"
)

// mockPrefix starts the paths of signed URLs that have faults. Clients of
// downloads send no headers of their own, so that the URL has to say it.
const mockPrefix = "/faulty/"

// mockLink is a signed URL with faults.
type mockLink struct {
	rate    int64 // bytes a second, 0 for any
	noRange bool

	mu     sync.Mutex
	sent   int64
	limits map[string]int64 // the bytes after which each fault strikes
}

// content makes the faults of downloads in front of the server.
func (f *mockFaults) content(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		rest, ok := strings.CutPrefix(r.URL.Path, mockPrefix)
		if !ok {
			next.ServeHTTP(w, r)
			return
		}
		id, path, _ := strings.Cut(rest, "/")
		r = r.Clone(r.Context())
		r.URL.Path, r.URL.RawPath = "/"+path, ""
		l := f.link(id)
		if l == nil || l.reached("expire") {
			r.URL.Path = f.expired(r.URL.Path)
			next.ServeHTTP(w, r)
			return
		}
		m := &mockWriter{ResponseWriter: w, request: r, link: l, status: http.StatusOK}
		if l.noRange {
			r.Header.Del("Range")
			r.Header.Del("If-Range")
		}
		if m.changed = l.reached("etag"); m.changed {
			forChanged(r.Header)
		}
		next.ServeHTTP(m, r)
		if m.struck {
			panic(http.ErrAbortHandler)
		}
	})
}

// expired returns the path of the signed URL with a token whose time is over. A
// path that is none stays as it is.
func (f *mockFaults) expired(path string) string {
	parts := strings.Split(path, "/") // "", packages, token, filename
	if len(parts) != 4 {
		return path
	}
	link, err := f.keyring.Verify(parts[2], parts[3], time.Now())
	if err != nil {
		return path
	}
	return contentPath(f.keyring.Sign(download.Link{
		Package: link.Package, Digest: link.Digest, KeyID: link.KeyID, Expires: time.Unix(1, 0),
	}, parts[3]), parts[3])
}

// changedTag is how the ETag begins of a file that is said to have been replaced.
const changedTag = `"replaced-`

// forChanged makes the conditions of a request what they would come to if the
// file had the other ETag.
func forChanged(h http.Header) {
	if v := h.Get("If-Range"); v != "" && !strings.HasPrefix(v, changedTag) {
		h.Del("Range")
	}
	h.Del("If-Range")
	switch v := h.Get("If-Match"); {
	case strings.HasPrefix(v, changedTag):
		h.Del("If-Match")
	case v != "" && v != "*":
		h.Set("If-Match", `"none"`)
	}
	h.Del("If-None-Match")
}

// reached reports whether the fault is asked for and as many bytes are out.
func (l *mockLink) reached(fault string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	n, ok := l.limits[fault]
	return ok && l.sent >= n
}

// take returns how many of n bytes may be sent, and the fault that strikes
// after them, if one does.
func (l *mockLink) take(n int) (allowed int, fault string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	allowed = n
	for _, name := range []string{"truncate", "reset", "stall", "expire"} {
		if limit, ok := l.limits[name]; ok && l.sent+int64(allowed) > limit {
			allowed, fault = int(max(0, limit-l.sent)), name
		}
	}
	l.sent += int64(allowed)
	if fault != "" && fault != "expire" {
		delete(l.limits, fault) // once
	}
	return allowed, fault
}

// mockWriter sends a download with the faults of its URL. It does not unwrap, so
// that every byte comes by.
type mockWriter struct {
	http.ResponseWriter
	request *http.Request
	link    *mockLink
	status  int
	changed bool // the ETag
	struck  bool
}

var errStruck = errors.New("the fault that was asked for")

func (w *mockWriter) WriteHeader(status int) {
	w.status = status
	if tag := w.Header().Get("ETag"); w.changed && tag != "" {
		w.Header().Set("ETag", changedTag+strings.TrimPrefix(tag, `"`))
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *mockWriter) Write(p []byte) (int, error) {
	if w.status >= http.StatusMultipleChoices {
		return w.ResponseWriter.Write(p)
	}
	if w.struck {
		return 0, errStruck
	}
	total := 0
	for len(p) > 0 {
		piece := p
		if w.link.rate > 0 { // ten pieces a second
			piece = p[:min(int64(len(p)), max(1, w.link.rate/10))]
		}
		allowed, fault := w.link.take(len(piece))
		n, err := w.ResponseWriter.Write(piece[:allowed])
		total += n
		if err != nil {
			return total, err
		}
		if fault != "" {
			w.strike(fault)
			return total, errStruck
		}
		if err := w.pause(n); err != nil {
			return total, err
		}
		p = p[n:]
	}
	return total, nil
}

// pause waits for as long as n bytes take at the link's rate.
func (w *mockWriter) pause(n int) error {
	if w.link.rate <= 0 {
		return nil
	}
	if err := http.NewResponseController(w.ResponseWriter).Flush(); err != nil {
		return err
	}
	select {
	case <-time.After(time.Duration(n) * time.Second / time.Duration(w.link.rate)):
		return nil
	case <-w.request.Context().Done():
		return w.request.Context().Err()
	}
}

// strike makes a fault that ends the response.
func (w *mockWriter) strike(fault string) {
	w.struck = true
	control := http.NewResponseController(w.ResponseWriter)
	_ = control.Flush() // the bytes before it arrive
	switch fault {
	case "stall":
		<-w.request.Context().Done()
	case "reset":
		connection, _, err := control.Hijack()
		if err != nil {
			return // HTTP/2: its stream is reset when it is cut
		}
		if c, ok := connection.(*tls.Conn); ok {
			connection = c.NetConn()
		}
		if c, ok := connection.(*net.TCPConn); ok {
			_ = c.SetLinger(0)
		}
		_ = connection.Close()
	}
}

// SetWriteDeadline lets the server go on to end clients that take nothing.
func (w *mockWriter) SetWriteDeadline(t time.Time) error {
	return http.NewResponseController(w.ResponseWriter).SetWriteDeadline(t)
}

package faultserver

import (
	"bytes"
	"compress/gzip"
	"crypto/tls"
	"fmt"
	"io"
	"mime/multipart"
	"net"
	"net/http"
	"net/textproto"
	"strconv"
	"strings"
	"time"
)

// Status answers with a status, a body and header fields, given as pairs of name
// and value.
func Status(status int, body string, fields ...string) Fault {
	return replace(func(w http.ResponseWriter, _ *http.Request) {
		setFields(w.Header(), fields)
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	})
}

// ExpiredXML is what an object store says of a signed URL that is too old, with
// status 403. It repeats the secret, as they do.
const ExpiredXML = `<?xml version="1.0" encoding="UTF-8"?>
<Error><Code>AccessDenied</Code><Message>Request has expired</Message><Resource>/` + Secret + `</Resource></Error>`

// NoHEAD answers HEAD with 403, as signed URLs for GET alone do.
func NoHEAD() Fault {
	return Where(func(r *http.Request) bool { return r.Method == http.MethodHead }, Status(http.StatusForbidden, ""))
}

// Redirect sends clients to another URL.
func Redirect(to func() string) Fault {
	return replace(func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, to(), http.StatusFound) })
}

// NoRanges sends the whole file, whatever is asked for, and does not say that
// there are no ranges.
func NoRanges() Fault {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			r = r.Clone(r.Context())
			r.Header.Del("Range")
			r.Header.Del("If-Range")
			next.ServeHTTP(&editor{ResponseWriter: w, edit: func(_ int, h http.Header) { h.Del("Accept-Ranges") }}, r)
		})
	}
}

// OtherRange has the request answered as if it had been for another range. The
// Content-Range says truly what is sent.
func OtherRange(other string) Fault {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			r = r.Clone(r.Context())
			r.Header.Set("Range", other)
			next.ServeHTTP(w, r)
		})
	}
}

// NoIfRange has If-Range ignored: ranges of a file that has been replaced are
// sent all the same.
func NoIfRange() Fault {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			r = r.Clone(r.Context())
			r.Header.Del("If-Range")
			next.ServeHTTP(w, r)
		})
	}
}

// Fields sets header fields of responses of success, given as pairs of name and
// value. An empty value deletes the field.
func Fields(fields ...string) Fault {
	return edit(func(status int, h http.Header) {
		if status < 300 {
			setFields(h, fields)
		}
	})
}

// WeakETag makes the ETag a weak one.
func WeakETag() Fault {
	return edit(func(_ int, h http.Header) { h.Set("ETag", "W/"+h.Get("ETag")) })
}

// NoLength sends the file without its length: in chunks, and up to the end of
// the connection to a client of HTTP/1.0.
func NoLength() Fault {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			next.ServeHTTP(&editor{
				ResponseWriter: w,
				edit:           func(_ int, h http.Header) { h.Del("Content-Length") },
				body: writerFunc(func(p []byte) (int, error) {
					n, err := w.Write(p)
					// Or net/http works out the length of what is short.
					_ = http.NewResponseController(w).Flush()
					return n, err
				}),
			}, r)
		})
	}
}

// Gzip compresses responses that nobody asked to compress.
func Gzip() Fault {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			z := gzip.NewWriter(w)
			defer z.Close()
			next.ServeHTTP(&editor{ResponseWriter: w, body: z, edit: func(_ int, h http.Header) {
				h.Set("Content-Encoding", "gzip")
				h.Del("Content-Length")
			}}, r)
		})
	}
}

// Multipart answers a request for one range with a list of parts.
func Multipart() Fault {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			var body bytes.Buffer
			parts := multipart.NewWriter(&body)
			next.ServeHTTP(&editor{ResponseWriter: w, body: &body, edit: func(_ int, h http.Header) {
				_, _ = parts.CreatePart(textproto.MIMEHeader{"Content-Range": {h.Get("Content-Range")}})
				h.Set("Content-Type", "multipart/byteranges; boundary="+parts.Boundary())
				h.Del("Content-Range")
				h.Del("Content-Length")
			}}, r)
			parts.Close()
			_, _ = w.Write(body.Bytes())
		})
	}
}

// Truncate ends the connection after n bytes of the body, without an error at
// the level of TCP.
func Truncate(n int64) Fault {
	return cut(n, func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
}

// Reset resets the connection, or the stream of HTTP/2, after n bytes of the body.
func Reset(n int64) Fault { return cut(n, reset) }

// Stall sends nothing more after n bytes of the body, until the client is gone.
func Stall(n int64) Fault {
	return cut(n, func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
}

// Hang sends nothing at all until the client is gone.
func Hang() Fault {
	return replace(func(_ http.ResponseWriter, r *http.Request) {
		<-r.Context().Done()
		panic(http.ErrAbortHandler)
	})
}

// Drop resets the connection instead of answering.
func Drop() Fault { return replace(reset) }

// Slow sends a piece of the body of n bytes at a time and pauses before each.
func Slow(n int, pause time.Duration) Fault {
	return body(func(w http.ResponseWriter, r *http.Request) io.Writer {
		return writerFunc(func(p []byte) (int, error) {
			sent := 0
			for len(p) > 0 {
				select {
				case <-time.After(pause):
				case <-r.Context().Done():
					return sent, r.Context().Err()
				}
				piece := p[:min(n, len(p))]
				m, err := w.Write(piece)
				sent += m
				if err != nil {
					return sent, err
				}
				_ = http.NewResponseController(w).Flush()
				p = p[m:]
			}
			return sent, nil
		})
	})
}

// Delay waits before it answers.
func Delay(d time.Duration) Fault {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			select {
			case <-time.After(d):
				next.ServeHTTP(w, r)
			case <-r.Context().Done():
			}
		})
	}
}

// Garbage sends as many other bytes.
func Garbage() Fault {
	return body(func(w http.ResponseWriter, _ *http.Request) io.Writer {
		return writerFunc(func(p []byte) (int, error) {
			q := bytes.Clone(p)
			for i := range q {
				q[i] ^= 0xff
			}
			return w.Write(q)
		})
	})
}

// TooMuch sends bytes after those that the Content-Range speaks of, in a body
// without a length.
func TooMuch(n int) Fault {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			NoLength()(next).ServeHTTP(w, r)
			_, _ = io.WriteString(w, strings.Repeat("x", n))
		})
	}
}

// TooLittle leaves out the last n bytes of the body and says so in Content-Length
// alone: the Content-Range is that of the whole.
func TooLittle(n int64) Fault {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			left := int64(0)
			next.ServeHTTP(&editor{
				ResponseWriter: w,
				edit: func(_ int, h http.Header) {
					length, _ := strconv.ParseInt(h.Get("Content-Length"), 10, 64)
					left = max(0, length-n)
					h.Set("Content-Length", strconv.FormatInt(left, 10))
				},
				body: writerFunc(func(p []byte) (int, error) {
					keep := min(int64(len(p)), left)
					left -= keep
					if _, err := w.Write(p[:keep]); err != nil {
						return 0, err
					}
					return len(p), nil
				}),
			}, r)
		})
	}
}

// CloseDelimited answers as servers of HTTP/1.0 did: without a length, the end of
// the connection is the end of the body. It sends n bytes, or all if n is
// negative. It needs HTTP/1.
func CloseDelimited(n int64) Fault {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			r = r.Clone(r.Context())
			r.Header.Del("Range")
			connection, buffered, err := http.NewResponseController(w).Hijack()
			if err != nil {
				panic(fmt.Sprintf("faultserver: %v", err))
			}
			defer connection.Close()
			answer := &memory{header: http.Header{}}
			next.ServeHTTP(answer, r)
			if n >= 0 {
				answer.body.Truncate(int(min(n, int64(answer.body.Len()))))
			}
			answer.header.Del("Content-Length")
			answer.header.Del("Accept-Ranges")
			fmt.Fprintf(buffered, "HTTP/1.0 %d OK\r\n", answer.status)
			_ = answer.header.Write(buffered)
			_, _ = io.WriteString(buffered, "\r\n")
			_, _ = answer.body.WriteTo(buffered)
			_ = buffered.Flush()
		})
	}
}

// replace is a fault that never asks the good handler.
func replace(f http.HandlerFunc) Fault {
	return func(http.Handler) http.Handler { return f }
}

// edit changes the header just before it is sent.
func edit(f func(status int, h http.Header)) Fault {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			next.ServeHTTP(&editor{ResponseWriter: w, edit: f}, r)
		})
	}
}

// body wraps where the body goes.
func body(f func(http.ResponseWriter, *http.Request) io.Writer) Fault {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			next.ServeHTTP(&editor{ResponseWriter: w, body: f(w, r)}, r)
		})
	}
}

// cut sends n bytes of the body and then does something else. Headers of
// responses whose body is shorter are sent all the same.
func cut(n int64, then func(http.ResponseWriter, *http.Request)) Fault {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			left := n
			next.ServeHTTP(&editor{ResponseWriter: w, body: writerFunc(func(p []byte) (int, error) {
				if int64(len(p)) <= left {
					left -= int64(len(p))
					return w.Write(p)
				}
				_, _ = w.Write(p[:left])
				_ = http.NewResponseController(w).Flush()
				then(w, r)
				return int(left), io.ErrShortWrite
			})}, r)
		})
	}
}

// reset ends the connection so that the client gets an error of TCP, or of the
// stream.
func reset(w http.ResponseWriter, _ *http.Request) {
	connection, _, err := http.NewResponseController(w).Hijack()
	if err != nil { // of HTTP/2, whose streams are reset by this
		panic(http.ErrAbortHandler)
	}
	inner := connection
	if secure, ok := connection.(*tls.Conn); ok {
		inner = secure.NetConn()
	}
	if c, ok := inner.(*net.TCPConn); ok {
		_ = c.SetLinger(0)
	}
	inner.Close()
}

func setFields(h http.Header, fields []string) {
	for i := 0; i+1 < len(fields); i += 2 {
		if fields[i+1] == "" {
			h.Del(fields[i])
		} else {
			h.Set(fields[i], fields[i+1])
		}
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// editor changes the header and the body of a response.
type editor struct {
	http.ResponseWriter
	edit func(status int, h http.Header) // nil to leave it as it is
	body io.Writer                       // nil for the ResponseWriter
	sent bool
}

func (e *editor) WriteHeader(status int) {
	if !e.sent {
		e.sent = true
		if e.edit != nil {
			e.edit(status, e.Header())
		}
	}
	e.ResponseWriter.WriteHeader(status)
}

func (e *editor) Write(p []byte) (int, error) {
	if !e.sent {
		e.WriteHeader(http.StatusOK)
	}
	if e.body != nil {
		return e.body.Write(p)
	}
	return e.ResponseWriter.Write(p)
}

func (e *editor) Flush() { _ = http.NewResponseController(e.ResponseWriter).Flush() }

func (e *editor) Unwrap() http.ResponseWriter { return e.ResponseWriter }

// memory is a response that is kept.
type memory struct {
	header http.Header
	status int
	body   bytes.Buffer
}

func (m *memory) Header() http.Header { return m.header }

func (m *memory) WriteHeader(status int) { m.status = status }

func (m *memory) Write(p []byte) (int, error) { return m.body.Write(p) }

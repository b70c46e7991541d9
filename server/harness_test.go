package server_test

import (
	"archive/zip"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"

	"github.com/downlink-go/downlink/gen/apitypes"
	"github.com/downlink-go/downlink/server"
	"github.com/downlink-go/downlink/server/servertest"
)

// deployment is a running server on loopback, with its own bucket and state, an
// organization with a key, and a grant for the workflow W1.
type deployment struct {
	t      testing.TB
	URL    string
	Bucket string // the folder
	Config server.Config
	Key    string
	Log    *logBuffer
	// Handler is that of the server, to put something in front of it.
	Handler http.Handler
	Admin   http.Handler // that for operators
	// Client validates every answer of the API against the contract.
	Client *http.Client
	stop   context.CancelFunc
	done   chan error
	// Spans are those that have ended, as text.
	Spans *spanBuffer
	// Secrets are what must show nowhere: keys and tokens.
	Secrets *secrets
}

// deploy starts a server. The functions change its configuration.
func deploy(t testing.TB, change ...func(*server.Config)) *deployment {
	t.Helper()
	d := &deployment{t: t, Bucket: t.TempDir(), Log: &logBuffer{}, Spans: &spanBuffer{}, Secrets: &secrets{}}
	d.Config = server.Config{
		Bucket:  "file://" + filepath.ToSlash(d.Bucket),
		DataDir: filepath.Join(t.TempDir(), "state"),
		Log:     slog.New(slog.NewTextHandler(d.Log, &slog.HandlerOptions{Level: slog.LevelDebug})),
		// Tests say themselves when they want not to wait.
		ReadyWait: 30 * time.Second,
		// They also ask faster than clients may.
		Limits:         server.Limits{RequestsPerMinute: -1},
		TracerProvider: sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(d.Spans)),
	}
	for _, f := range change {
		f(&d.Config)
	}
	d.start()
	t.Cleanup(func() {
		if err := d.Stop(); err != nil {
			t.Errorf("stop: %v", err)
		}
		d.Secrets.check(t, "the log", d.Log.String())
		d.Secrets.check(t, "a span", d.Spans.String())
	})
	d.Client = &http.Client{
		Transport:     &contractTransport{t: t, secrets: d.Secrets, next: &http.Transport{}},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	t.Cleanup(d.Client.CloseIdleConnections)
	d.Key = d.NewOrganization("acme", "W1")
	return d
}

func (d *deployment) start() {
	d.t.Helper()
	s, err := server.New(d.t.Context(), d.Config)
	if err != nil {
		d.t.Fatal(err)
	}
	d.Handler, d.Admin = s.Handler(), s.AdminHandler()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		d.t.Fatal(err)
	}
	d.URL = "http://" + l.Addr().String()
	if d.Config.TLSCert != "" {
		d.URL = "https://" + l.Addr().String()
	}
	ctx, cancel := context.WithCancel(context.Background())
	d.stop, d.done = cancel, make(chan error, 1)
	go func() { d.done <- errors.Join(s.Serve(ctx, l), s.Close(context.Background())) }()
}

// Stop stops the server, gracefully. Stopping twice is fine.
func (d *deployment) Stop() error {
	if d.stop == nil {
		return nil
	}
	d.stop()
	d.stop = nil
	return <-d.done
}

// Restart stops the server and starts it again on the same state, elsewhere.
func (d *deployment) Restart() {
	d.t.Helper()
	if err := d.Stop(); err != nil {
		d.t.Fatal(err)
	}
	d.start()
}

// NewOrganization adds an organization with grants and returns a key of it.
func (d *deployment) NewOrganization(name string, workflows ...string) string {
	d.t.Helper()
	ctx := d.t.Context()
	db, err := server.OpenDatabase(ctx, d.Config.DataDir, d.Config.Database)
	if err != nil {
		d.t.Fatal(err)
	}
	defer db.Close()
	if _, err := db.CreateOrganization(ctx, name); err != nil {
		d.t.Fatal(err)
	}
	for _, w := range workflows {
		if err := db.Grant(ctx, name, w); err != nil {
			d.t.Fatal(err)
		}
	}
	_, key, err := db.CreateKey(ctx, name, "", time.Time{})
	if err != nil {
		d.t.Fatal(err)
	}
	d.Secrets.add(string(key))
	return string(key)
}

// Write puts files into the bucket, by key.
func (d *deployment) Write(files map[string]string) {
	d.t.Helper()
	for key, content := range files {
		path := filepath.Join(d.Bucket, filepath.FromSlash(key))
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			d.t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			d.t.Fatal(err)
		}
	}
}

// answer is a response that has been read.
type answer struct {
	*http.Response
	body []byte
}

// do sends a request whose path is sent as it is, escapes and all.
func (d *deployment) do(method, path string, header http.Header) answer {
	d.t.Helper()
	r, err := http.NewRequestWithContext(d.t.Context(), method, d.URL, nil)
	if err != nil {
		d.t.Fatal(err)
	}
	if path, err = url.PathUnescape(path); err != nil {
		d.t.Fatal(err)
	}
	return d.send(r, path, header)
}

func (d *deployment) send(r *http.Request, rawPath string, header http.Header) answer {
	d.t.Helper()
	r.URL.Opaque = "//" + r.URL.Host + rawPath // sent to the server as it is
	if header != nil {
		r.Header = header
	}
	response, err := d.Client.Do(r)
	if err != nil {
		d.t.Fatal(redacted(err))
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		d.t.Fatal(redacted(err))
	}
	return answer{response, body}
}

// redacted drops the URL, which may be a signed one.
func redacted(err error) error {
	if e, ok := errors.AsType[*url.Error](err); ok {
		return e.Err
	}
	return err
}

func apiPath(workflowID, jobID string) string {
	return "/v0/workflows/" + workflowID + "/jobs/" + jobID + "/download"
}

// put calls the API with the deployment's key.
func (d *deployment) put(workflowID, jobID string) answer {
	d.t.Helper()
	return d.do(http.MethodPut, apiPath(workflowID, jobID), http.Header{"Authorization": {d.Key}})
}

// download decodes a 200 answer.
func (a answer) download(t testing.TB) apitypes.Download {
	t.Helper()
	if a.StatusCode != http.StatusOK {
		t.Fatalf("status %d: %s", a.StatusCode, a.body)
	}
	var d apitypes.Download
	if err := json.Unmarshal(a.body, &d); err != nil {
		t.Fatal(err)
	}
	return d
}

// wantError checks the status and the code of an error, and returns it.
func (a answer) wantError(t testing.TB, status int, code string) apitypes.Error {
	t.Helper()
	var e apitypes.ErrorResponse
	if err := json.Unmarshal(a.body, &e); err != nil {
		t.Fatalf("status %d with %q: %v", a.StatusCode, a.body, err)
	}
	if a.StatusCode != status || string(e.Error.Code) != code {
		t.Errorf("status %d, code %q, want %d, %q", a.StatusCode, e.Error.Code, status, code)
	}
	return e.Error
}

// ready asks for a package and returns the path of its signed URL.
func (d *deployment) ready(workflowID, jobID string) (path string, download apitypes.Download) {
	d.t.Helper()
	download = d.put(workflowID, jobID).download(d.t)
	path, ok := strings.CutPrefix(download.SignedURL, d.URL)
	if download.Status != apitypes.DownloadStatusReady || !ok {
		d.t.Fatalf("status %s, want ready with a URL of this server", download.Status)
	}
	return path, download
}

// get reads a signed URL, by its path.
func (d *deployment) get(path string, header ...string) answer {
	d.t.Helper()
	h := http.Header{}
	for i := 0; i < len(header); i += 2 {
		h.Add(header[i], header[i+1])
	}
	return d.do(http.MethodGet, path, h)
}

// contractTransport checks every answer of the API against the contract.
type contractTransport struct {
	t       testing.TB
	secrets *secrets
	next    *http.Transport
}

func (c *contractTransport) CloseIdleConnections() { c.next.CloseIdleConnections() }

func (c *contractTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	response, err := c.next.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	if strings.Contains(r.URL.Opaque+r.URL.Path, "/packages/") && response.StatusCode < http.StatusBadRequest {
		return response, nil
	}
	body, err := io.ReadAll(response.Body)
	response.Body.Close()
	if err != nil {
		return nil, err
	}
	response.Body = io.NopCloser(bytes.NewReader(body))
	if response.StatusCode < http.StatusBadRequest {
		c.secrets.addTokens(body)
	} else {
		c.secrets.check(c.t, "an error", string(body)+fmt.Sprint(response.Header))
	}
	if strings.Contains(r.URL.Opaque+r.URL.Path, "/packages/") {
		return response, nil
	}
	for _, f := range servertest.Check(r, response, body) {
		c.t.Errorf("against the contract: %s", f)
	}
	return response, nil
}

// logBuffer is what a server has logged.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// spanBuffer takes the spans of a server, with all that they would tell.
type spanBuffer struct{ logBuffer }

func (*spanBuffer) OnStart(context.Context, sdktrace.ReadWriteSpan) {}
func (*spanBuffer) Shutdown(context.Context) error                  { return nil }
func (*spanBuffer) ForceFlush(context.Context) error                { return nil }

func (s *spanBuffer) OnEnd(span sdktrace.ReadOnlySpan) {
	fmt.Fprintln(s, span.Name(), span.SpanContext().TraceID(), span.Parent().TraceID(), span.Attributes(),
		span.Status(), span.Events(), span.Links(), span.SpanContext().TraceState())
}

// eventually polls until the condition holds, or fails.
func eventually(t testing.TB, what string, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if condition() {
			return
		}
	}
	t.Fatalf("not so after 30 s: %s", what)
}

// openZIP opens a package with the standard library's reader.
func openZIP(t testing.TB, data []byte) *zip.Reader {
	t.Helper()
	z, err := zip.NewReader(bytes.NewReader(data), int64(len(data)))
	if err != nil {
		t.Fatal(err)
	}
	return z
}

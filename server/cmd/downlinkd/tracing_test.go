package main

import (
	"compress/gzip"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"
)

// collector takes traces by OTLP over HTTP.
type collector struct {
	*httptest.Server
	mu      sync.Mutex
	raw     strings.Builder // as text, all of it
	spans   []*tracepb.Span
	service string
	headers http.Header
	refuse  string // what to answer with 400, if it is not empty
}

func newCollector(t *testing.T) *collector {
	c := &collector{}
	c.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.headers = r.Header.Clone()
		if c.refuse != "" {
			http.Error(w, c.refuse+r.Header.Get("X-Api-Key"), http.StatusBadRequest)
			return
		}
		body := io.Reader(r.Body)
		if r.Header.Get("Content-Encoding") == "gzip" {
			z, err := gzip.NewReader(r.Body)
			if err != nil {
				t.Error(err)
				return
			}
			body = z
		}
		data, err := io.ReadAll(body)
		if err != nil {
			t.Error(err)
		}
		var traces tracepb.TracesData // on the wire it is what exporters send
		if err := proto.Unmarshal(data, &traces); err != nil || r.URL.Path != "/v1/traces" {
			t.Errorf("%s is not one of traces: %v", r.URL.Path, err)
		}
		fmt.Fprintln(&c.raw, traces.String())
		for _, rs := range traces.ResourceSpans {
			for _, a := range rs.Resource.Attributes {
				if a.Key == "service.name" {
					c.service = a.Value.GetStringValue()
				}
			}
			for _, ss := range rs.ScopeSpans {
				c.spans = append(c.spans, ss.Spans...)
			}
		}
	}))
	t.Cleanup(c.Close)
	return c
}

// attributes returns those of a span as text.
func attributes(s *tracepb.Span) map[string]string {
	m := map[string]string{}
	for _, a := range s.Attributes {
		m[a.Key] = strings.TrimSpace(a.Value.GetStringValue())
		if m[a.Key] == "" {
			m[a.Key] = fmt.Sprint(a.Value.GetIntValue())
		}
	}
	return m
}

// TestTraces: a server's spans arrive at a collector when it stops, as children of
// the caller's span, with what takes time below them, and with no secret.
func TestTraces(t *testing.T) {
	c := newCollector(t)
	state, bucket := filepath.Join(t.TempDir(), "state"), t.TempDir()
	t.Setenv("DOWNLINK_DATA_DIR", state)
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", c.URL)
	t.Setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-api-key=collectors%20secret")
	t.Setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip")
	t.Setenv("OTEL_SERVICE_NAME", "packages")
	t.Setenv("OTEL_BSP_SCHEDULE_DELAY", "3600000") // nothing arrives but by the flush at the end
	if err := os.MkdirAll(filepath.Join(bucket, "W1/J1/inputs"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(bucket, "W1/J1/inputs/a"), []byte("a"), 0o644); err != nil {
		t.Fatal(err)
	}
	mustRun(t, "org", "create", "acme")
	mustRun(t, "grant", "acme", "W1")
	key := strings.TrimSpace(mustRun(t, "key", "create", "--org", "acme"))
	p := startServer(t, "--bucket", "file://"+bucket, "--ready-wait", "30s")

	const trace, parent = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	send := func(method, url string) {
		t.Helper()
		r, err := http.NewRequestWithContext(t.Context(), method, url, nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Authorization", key)
		r.Header.Set("Traceparent", "00-"+trace+"-"+parent+"-01")
		response, err := client.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, response.Body)
		response.Body.Close()
	}
	send(http.MethodPut, p.url+"/v0/workflows/W1/jobs/J1/download")
	d, ok := p.put(t.Context(), key, "J1", "")
	if !ok || d.SignedURL == "" {
		t.Fatal("no signed URL")
	}
	send(http.MethodGet, d.SignedURL)
	send(http.MethodGet, d.SignedURL+"x?"+key)
	send(http.MethodGet, p.url+"/nowhere/"+key)
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Wait(); err != nil {
		t.Fatal(err)
	}

	c.mu.Lock()
	defer c.mu.Unlock()
	if c.service != "packages" || c.headers.Get("X-Api-Key") != "collectors secret" {
		t.Errorf("service %q; is the header that the environment has there? %v", c.service, c.headers.Get("X-Api-Key") != "")
	}
	const call, content = "PUT /v0/workflows/:workflow_id/jobs/:job_id/download", "GET /packages/:token/:filename"
	requests := map[string]*tracepb.Span{}
	children := map[string][]string{}
	for _, s := range c.spans {
		if s.Kind == tracepb.Span_SPAN_KIND_SERVER && fmt.Sprintf("%x", s.TraceId) == trace {
			if fmt.Sprintf("%x", s.ParentSpanId) != parent {
				t.Errorf("%s has the parent %x", s.Name, s.ParentSpanId)
			}
			if _, ok := requests[s.Name]; !ok {
				requests[s.Name] = s
			}
		}
		children[string(s.ParentSpanId)] = append(children[string(s.ParentSpanId)], s.Name)
	}
	for name, want := range map[string]map[string]string{
		call: {"http.request.method": "PUT", "http.response.status_code": "200", "downlink.workflow_id": "W1", "downlink.job_id": "J1"},
		content: {"http.request.method": "GET", "http.route": "/packages/:token/:filename", "url.path": "/packages/:token/:filename",
			"http.response.status_code": "200", "downlink.assets_opened": "1", "downlink.package_id": d.ID},
		"GET": {"http.response.status_code": "404"},
	} {
		s, ok := requests[name]
		if !ok {
			t.Errorf("there is no span %q in the caller's trace", name)
			continue
		}
		got := attributes(s)
		for k, v := range want {
			if got[k] != v {
				t.Errorf("%s: %s is %q, want %q", name, k, got[k], v)
			}
		}
	}
	if t.Failed() {
		t.FailNow()
	}
	for _, want := range []string{"authenticate", "database grant", "look up job", "database package", "plan package", "wait for package"} {
		if got := children[string(requests[call].SpanId)]; !slices.Contains(got, want) {
			t.Errorf("the call has the children %q, and not %q", got, want)
		}
	}
	var linked bool
	for _, s := range c.spans {
		if s.Name == "look up job" && fmt.Sprintf("%x", s.TraceId) == trace {
			if got := children[string(s.SpanId)]; !slices.Contains(got, "bucket list") {
				t.Errorf("looking up the job has the children %q", got)
			}
		}
		if s.Name == "prepare package" {
			linked = len(s.Links) == 1 && fmt.Sprintf("%x", s.Links[0].TraceId) == trace && len(s.ParentSpanId) == 0
		}
	}
	if !linked {
		t.Error("the preparation of the package is not linked to the call")
	}
	token := strings.Split(d.SignedURL, "/")[4]
	for _, secret := range []string{key, key[len(key)-20:], token, token[len(token)-20:], "collectors"} {
		if strings.Contains(c.raw.String(), secret) {
			t.Error("the spans have a secret")
		}
	}
}

// TestTracesConfiguration: what is wrong with it is said at the start.
func TestTracesConfiguration(t *testing.T) {
	t.Setenv("DOWNLINK_DATA_DIR", filepath.Join(t.TempDir(), "state"))
	for _, tt := range []struct{ name, value, want string }{
		{"OTEL_TRACES_EXPORTER", "jaeger", "want otlp or none"},
		{"OTEL_EXPORTER_OTLP_ENDPOINT", "localhost:4318", "want a url"},
		{"OTEL_EXPORTER_OTLP_PROTOCOL", "grpc", "http/protobuf"},
		{"OTEL_TRACES_SAMPLER", "sometimes", "unsupported sampler"},
		{"OTEL_EXPORTER_OTLP_HEADERS", "a secret without a name", "header"},
		{"OTEL_EXPORTER_OTLP_CERTIFICATE", "/does/not/exist", "tls"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://user:password@localhost:4318")
			t.Setenv(tt.name, tt.value)
			_, stderr, code := command(t, "serve", "--bucket", "file://"+t.TempDir(), "--listen", "256.0.0.1:0")
			if code != exitFailure || !strings.Contains(strings.ToLower(stderr), tt.want) {
				t.Errorf("exit code %d, want %q in: %s", code, tt.want, stderr)
			}
			if strings.Contains(stderr, "secret") || strings.Contains(stderr, "password") {
				t.Errorf("a secret: %s", stderr)
			}
		})
	}
}

// TestTracesRefused: a collector that refuses traces, and even echoes what is
// secret, shows in the log without that, and keeps nothing from ending.
func TestTracesRefused(t *testing.T) {
	c := newCollector(t)
	c.refuse = "no tenant has the key "
	t.Setenv("DOWNLINK_DATA_DIR", filepath.Join(t.TempDir(), "state"))
	t.Setenv("OTEL_TRACES_EXPORTER", "otlp")
	t.Setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", c.URL+"/v1/traces")
	t.Setenv("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "x-api-key=collectors%20secret")
	p := startServer(t, "--bucket", "file://"+t.TempDir())
	if _, ok := p.put(t.Context(), "key", "J1", ""); ok {
		t.Fatal("an invalid key was accepted")
	}
	start := time.Now()
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(start); took > 20*time.Second {
		t.Errorf("the stop took %s", took)
	}
	if log := p.log.String(); !strings.Contains(log, "no tenant has the key xxxxx") || strings.Contains(log, "collectors") || !strings.Contains(log, "trace_id=") {
		t.Errorf("the log: %s", log)
	}
}

// TestTracesByDefault: a collector that is not named is one on this machine, over
// HTTP as OpenTelemetry has it. It need not be there.
func TestTracesByDefault(t *testing.T) {
	t.Setenv("DOWNLINK_DATA_DIR", filepath.Join(t.TempDir(), "state"))
	t.Setenv("OTEL_TRACES_EXPORTER", "otlp")
	p := startServer(t, "--bucket", "file://"+t.TempDir(), "--shutdown-timeout", "1s")
	if _, ok := p.put(t.Context(), "key", "J1", ""); ok {
		t.Fatal("an invalid key was accepted")
	}
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	if log := p.log.String(); !strings.Contains(log, "trace_id=") || strings.Contains(log, "https://localhost:4318") {
		t.Errorf("the log: %s", log)
	}
}

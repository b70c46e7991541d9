package server_test

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"os/exec"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/downlink-go/downlink/api"
)

// fetch gets a route that is not the API's.
func fetch(t *testing.T, method, url string) (*http.Response, []byte) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	response, err := http.DefaultTransport.RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response, body
}

func TestDocs(t *testing.T) {
	t.Parallel()
	d := deploy(t)
	response, got := fetch(t, http.MethodGet, d.URL+"/openapi.yaml")
	if !bytes.Equal(got, api.OpenAPI) || response.Header.Get("Content-Type") != "application/yaml" {
		t.Errorf("/openapi.yaml is not the contract, or of the type %q", response.Header.Get("Content-Type"))
	}
	var fromYAML, fromJSON any
	if err := yaml.Unmarshal(api.OpenAPI, &fromYAML); err != nil {
		t.Fatal(err)
	}
	normal, err := json.Marshal(fromYAML)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(normal, &fromYAML); err != nil {
		t.Fatal(err)
	}
	response, got = fetch(t, http.MethodGet, d.URL+"/openapi.json")
	if err := json.Unmarshal(got, &fromJSON); err != nil || !reflect.DeepEqual(fromYAML, fromJSON) || response.Header.Get("Content-Type") != "application/json" {
		t.Errorf("/openapi.json is not the contract (error %v), or of the type %q", err, response.Header.Get("Content-Type"))
	}

	response, page := fetch(t, http.MethodGet, d.URL+"/docs")
	policy := response.Header.Get("Content-Security-Policy")
	if response.StatusCode != 200 || !strings.Contains(policy, "default-src 'none'") || !strings.Contains(policy, "script-src 'self';") {
		t.Errorf("/docs: status %d with the policy %q", response.StatusCode, policy)
	}
	references := regexp.MustCompile(`(?:src|href)="([^"]*)"`).FindAllSubmatch(page, -1)
	if len(references) != 4 {
		t.Errorf("the page refers to %d files, want 4", len(references))
	}
	for _, m := range references {
		if !bytes.HasPrefix(m[1], []byte("docs/")) {
			t.Errorf("the page refers to %s, which is not below it", m[1])
			continue
		}
		if asset, body := fetch(t, http.MethodGet, d.URL+"/"+string(m[1])); asset.StatusCode != 200 || len(body) == 0 || asset.Header.Get("Content-Type") == "" {
			t.Errorf("%s: status %d with %d bytes", m[1], asset.StatusCode, len(body))
		}
	}
	if !compressed(t, d.URL+"/docs/swagger-ui.css") {
		t.Error("what is compressed is not sent so")
	}
	for _, path := range []string{"/openapi.yaml", "/openapi.json", "/docs", "/docs/swagger-ui.css"} {
		if head, body := fetch(t, http.MethodHead, d.URL+path); head.StatusCode != 200 || len(body) > 0 {
			t.Errorf("HEAD %s: status %d with %d bytes", path, head.StatusCode, len(body))
		}
		d.do(http.MethodPost, path, nil).wantError(t, 405, "method_not_allowed")
	}
	for _, path := range []string{"/docs/swagger-initializer.js", "/docs/index.html", "/docs/x", "/docs/../docs/x"} {
		d.do(http.MethodGet, path, nil).wantError(t, 404, "not_found")
	}
	if r, _ := fetch(t, http.MethodGet, d.URL+"/docs/"); r.StatusCode != http.StatusPermanentRedirect || r.Header.Get("Location") != "../docs" {
		t.Errorf("/docs/ answers %d to %q", r.StatusCode, r.Header.Get("Location"))
	}
}

// compressed reports whether a file comes compressed, and is the same then.
func compressed(t *testing.T, url string) bool {
	t.Helper()
	plainly := http.Transport{DisableCompression: true}
	defer plainly.CloseIdleConnections()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	plain, err := plainly.RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Body.Close()
	want, err := io.ReadAll(plain.Body)
	if err != nil {
		t.Fatal(err)
	}
	response, got := fetch(t, http.MethodGet, url) // asks for gzip, and unpacks it
	return response.Uncompressed && plain.Header.Get("Content-Encoding") == "" && bytes.Equal(got, want)
}

// TestDocsInBrowser opens the page in Chromium, which is where policies count.
// Chromium may reach nothing but the server.
func TestDocsInBrowser(t *testing.T) {
	t.Parallel()
	chromium := os.Getenv("DOWNLINK_TEST_CHROMIUM")
	if chromium == "" {
		t.Skip("make test-ui runs this")
	}
	d := deploy(t)
	screenshot := os.Getenv("DOWNLINK_TEST_SCREENSHOT")
	if screenshot == "" {
		screenshot = t.TempDir() + "/docs.png"
	}
	browse := func(args ...string) (dom, log string) {
		args = append([]string{
			"--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
			"--disable-component-update", "--disable-sync", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
			"--user-data-dir=" + t.TempDir(), "--enable-logging=stderr", "--virtual-time-budget=15000", "--window-size=1280,2000",
		}, append(args, d.URL+"/docs#/Jobs/downloadJob")...)
		cmd := exec.CommandContext(t.Context(), chromium, args...)
		cmd.WaitDelay = 10 * time.Second
		var stdout, stderr bytes.Buffer
		cmd.Stdout, cmd.Stderr = &stdout, &stderr
		if err := cmd.Run(); err != nil {
			t.Fatalf("%v\n%s", err, stderr.String())
		}
		return stdout.String(), stderr.String()
	}
	dom, log := browse("--dump-dom")
	for _, want := range []string{"operations-Jobs-downloadJob", "Create a download package from a workflow job", "Try it out", "workflow_id", "X-Request-Id", "Retry-After"} {
		if !strings.Contains(dom, want) {
			t.Errorf("the page does not show %q", want)
		}
	}
	for line := range strings.Lines(log) {
		if strings.Contains(line, "CONSOLE") || strings.Contains(line, "Content Security Policy") {
			t.Errorf("the browser's console: %s", line)
		}
	}
	browse("--screenshot="+screenshot, "--hide-scrollbars")
	if info, err := os.Stat(screenshot); err != nil || info.Size() < 10_000 {
		t.Errorf("no screenshot: %v", err)
	}
}

package server_test

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"

	"github.com/downlink-go/downlink/server"
)

// admin gets a page for operators.
func (d *deployment) admin(path string) (status int, body string) {
	d.t.Helper()
	w := httptest.NewRecorder()
	d.Admin.ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
	return w.Code, w.Body.String()
}

// TestMetrics: what happens shows, and what clients send makes no labels.
func TestMetrics(t *testing.T) {
	t.Parallel()
	d := deploy(t)
	d.Write(smallJob)
	path, _ := d.ready("W1", "J1")
	d.get(path)
	d.get(path)
	d.do(http.MethodPut, "/nowhere/"+d.Key, nil)
	d.do("PROPFIND", apiPath("W1", "J1"), nil)

	status, page := d.admin("/metrics")
	if status != http.StatusOK {
		t.Fatalf("status %d: %s", status, page)
	}
	d.Secrets.check(t, "the metrics", page)
	for _, want := range []string{
		`downlink_http_requests_total{method="GET",route="/packages/:token/:filename",status="200"} 2`,
		`downlink_http_requests_total{method="PUT",route="/v0/workflows/:workflow_id/jobs/:job_id/download",status="200"} `,
		`downlink_http_requests_total{method="PUT",route="none",status="404"} 1`,
		`downlink_http_requests_total{method="other",route="/v0/workflows/:workflow_id/jobs/:job_id/download",status="405"} 1`,
		`downlink_http_active_requests{route="/packages/:token/:filename"} 0`,
		`downlink_packages{state="ready"} 1`,
		`downlink_packages_pending_bytes 0`,
		`downlink_queue_jobs{state="available"} 0`,
		`downlink_layout_cache_packages 1`,
		`downlink_layout_cache_requests_total{result="hit"} 1`,
		`downlink_layout_cache_requests_total{result="miss"} 1`,
		`downlink_bucket_operations_total{operation="open",outcome="ok"} 6`,
		`downlink_downloads_cut_total 0`,
		`downlink_readahead_bytes 0`,
		`downlink_readahead_assets 0`,
		`downlink_build_info{version=`,
		`go_goroutines `,
	} {
		if !strings.Contains(page, "\n"+want) {
			t.Errorf("missing: %s", want)
		}
	}
	for _, id := range []string{"W1", "J1", "acme"} {
		if regexp.MustCompile(`="[^"]*\b` + id + `\b`).MatchString(page) {
			t.Errorf("a label has %q", id)
		}
	}
}

// TestReadiness: a server is ready until something that it needs is gone, and
// again when that is back. It is not ready from when it is told to stop.
func TestReadiness(t *testing.T) {
	t.Parallel()
	d := deploy(t, func(c *server.Config) {
		c.Bucket = "file://" + filepath.ToSlash(filepath.Join(t.TempDir(), "bucket"))
		if err := os.Mkdir(strings.TrimPrefix(c.Bucket, "file://"), 0o755); err != nil {
			t.Fatal(err)
		}
	})
	folder := filepath.FromSlash(strings.TrimPrefix(d.Config.Bucket, "file://"))
	check := func(wantStatus int, wantBucket string) {
		t.Helper()
		status, body := d.admin("/readyz")
		var got struct {
			Status string
			Checks map[string]string
		}
		if err := json.Unmarshal([]byte(body), &got); err != nil {
			t.Fatal(err)
		}
		if status != wantStatus || !strings.Contains(got.Checks["bucket"], wantBucket) ||
			got.Checks["database"] != "ok" || got.Checks["migrations"] != "ok" {
			t.Errorf("status %d, want %d: %s", status, wantStatus, body)
		}
	}
	check(http.StatusOK, "ok")
	if err := os.Rename(folder, folder+"-away"); err != nil {
		t.Fatal(err)
	}
	check(http.StatusServiceUnavailable, "no such file")
	if err := os.Mkdir(folder, 0o755); err != nil {
		t.Fatal(err)
	}
	check(http.StatusServiceUnavailable, "which is empty")
	if err := os.Remove(folder); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(folder+"-away", folder); err != nil {
		t.Fatal(err)
	}
	check(http.StatusOK, "ok")

	// A newer release has migrated the database: this one goes on.
	db, err := server.OpenDatabase(t.Context(), d.Config.DataDir, d.Config.Database)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, err := db.SQL().ExecContext(t.Context(), `INSERT INTO goose_db_version (version_id, is_applied) VALUES (9999, TRUE)`); err != nil {
		t.Fatal(err)
	}
	check(http.StatusOK, "ok")

	if err := d.Stop(); err != nil {
		t.Fatal(err)
	}
	if status, body := d.admin("/readyz"); status != http.StatusServiceUnavailable || !strings.Contains(body, "stopping") {
		t.Errorf("after the stop: status %d: %s", status, body)
	}
	if status, body := d.admin("/debug/pprof/cmdline"); status != http.StatusNotFound {
		t.Errorf("the command line is told: status %d: %s", status, body)
	}
	if status, _ := d.admin("/healthz"); status != http.StatusOK {
		t.Errorf("healthz: status %d", status)
	}
}

// TestOperationsFiles: the dashboard and the alerts ask for metrics that exist.
func TestOperationsFiles(t *testing.T) {
	t.Parallel()
	d := deploy(t)
	d.Write(smallJob)
	path, _ := d.ready("W1", "J1")
	d.get(path)
	_, page := d.admin("/metrics")
	names := regexp.MustCompile(`\b(downlink|process)_[a-z_]+`)
	if runtime.GOOS != "linux" { // which has less to tell of processes
		names = regexp.MustCompile(`\bdownlink_[a-z_]+`)
	}
	for _, name := range []string{"ops/dashboard.json", "ops/alerts.yaml"} {
		f, err := os.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		content, err := io.ReadAll(f)
		if err != nil {
			t.Fatal(err)
		}
		if filepath.Ext(name) == ".json" && !json.Valid(content) {
			t.Errorf("%s is not JSON", name)
		}
		found := names.FindAllString(string(content), -1)
		if len(found) == 0 {
			t.Errorf("%s asks for nothing", name)
		}
		for _, metric := range found {
			if !strings.Contains(page, "\n"+metric+" ") && !strings.Contains(page, "\n"+metric+"{") {
				t.Errorf("%s: there is no %s", name, metric)
			}
		}
		for _, route := range regexp.MustCompile(`route=\\*"([^"\\]+)`).FindAllStringSubmatch(string(content), -1) {
			if !strings.Contains(page, `route="`+route[1]+`"`) {
				t.Errorf("%s: there is no route %s", name, route[1])
			}
		}
	}
}

// TestAlerts: each alert fires on what it is for, and not otherwise. Prometheus has
// nothing to say against the metrics.
func TestAlerts(t *testing.T) {
	t.Parallel()
	promtool, err := exec.LookPath("promtool")
	if err != nil {
		if os.Getenv("DOWNLINK_CI") != "" {
			t.Fatal("promtool is not installed")
		}
		t.Skip("promtool is not installed")
	}
	if out, err := exec.CommandContext(t.Context(), promtool, "test", "rules", "testdata/alerts_test.yaml").CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	_, page := deploy(t).admin("/metrics")
	cmd := exec.CommandContext(t.Context(), promtool, "check", "metrics")
	cmd.Stdin = strings.NewReader(page)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

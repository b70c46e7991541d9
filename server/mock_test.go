package server_test

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/downlink-go/downlink/client"
	"github.com/downlink-go/downlink/server"
	"github.com/downlink-go/downlink/server/servertest"
)

// mockClient returns the real client for a mock. Every answer is checked against
// the contract, but for the status that the contract does not have.
func mockClient(t *testing.T, url, fault string, options ...client.Option) *client.Client {
	t.Helper()
	hc := &http.Client{Transport: &contractTransport{t: t, secrets: &secrets{}, next: &http.Transport{}}}
	if fault == "unknown-status" {
		hc = &http.Client{Transport: &http.Transport{}}
	}
	t.Cleanup(hc.CloseIdleConnections)
	options = append([]client.Option{client.WithAPIKey("any"), client.WithHTTPClient(hc)}, options...)
	c, err := client.New(url, options...)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// TestMockFaults drives the client through every fault. In the end the files are
// right; where that cannot be, without ranges or with a file that is replaced
// again and again, there is none but an error.
func TestMockFaults(t *testing.T) {
	t.Parallel()
	const job = "W1/J1=2x3MB,20x20KB"
	clean := servertest.New(t, server.MockConfig{Jobs: []string{job}})
	reference := filepath.Join(t.TempDir(), "right.zip")
	if r, err := mockClient(t, clean, "").Save(t.Context(), "W1", "J1", reference); err != nil || !r.Verified {
		t.Fatalf("without a fault: %+v, %v", r, err)
	}
	want, err := os.ReadFile(reference)
	if err != nil {
		t.Fatal(err)
	}
	for _, fault := range []string{
		"pending:1", "unknown-status:1", "429:1", "503:1", "expire:1MB", "truncate:1MB", "truncate:0",
		"reset:1MB", "stall:1MB", "etag:1MB", "no-range", "slow:8MB", "pending:1,truncate:100KB,slow:20MB",
	} {
		t.Run(fault, func(t *testing.T) {
			t.Parallel()
			url := servertest.New(t, server.MockConfig{Jobs: []string{job}, Faults: []string{"W1/J1=" + fault}})
			name, _, _ := strings.Cut(fault, ":")
			c := mockClient(t, url, name, client.WithStallTimeout(2*time.Second))

			path := filepath.Join(t.TempDir(), "job.zip")
			_, err := c.Save(t.Context(), "W1", "J1", path)
			got, readErr := os.ReadFile(path)
			switch {
			case err == nil && (readErr != nil || string(got) != string(want)):
				t.Errorf("save: a wrong file, without an error: %v", readErr)
			case err != nil && readErr == nil:
				t.Errorf("save: a file in spite of %v", err)
			case err != nil && name != "etag":
				t.Errorf("save: %v", err)
			}

			dir := t.TempDir()
			_, err = c.Extract(t.Context(), "W1", "J1", dir)
			if err == nil {
				if _, err := client.VerifyDir(t.Context(), dir); err != nil {
					t.Errorf("extract: wrong files, without an error: %v", err)
				}
			} else if name != "etag" && name != "no-range" {
				t.Errorf("extract: %v", err)
			}

			p, err := c.Open(t.Context(), "W1", "J1")
			if err != nil {
				if name != "etag" && name != "no-range" {
					t.Errorf("open: %v", err)
				}
				return
			}
			defer p.Close()
			f, err := p.Open("inputs/scene.tif")
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if b, err := io.ReadAll(f); err == nil && !strings.Contains(string(want), string(b)) {
				t.Error("open: wrong bytes, without an error")
			} else if err != nil && name != "etag" && name != "no-range" {
				t.Errorf("open: %v", err)
			}
		})
	}
}

// TestMockFaultsShow: each fault is seen by one who looks.
func TestMockFaultsShow(t *testing.T) {
	t.Parallel()
	url := servertest.New(t, server.MockConfig{
		Jobs:   []string{"W1/J1=3x1MB", "W1/J2=1x10", "W1/J3=failed", "W1/J4=running", "W1/J5=1x10"},
		Faults: []string{"W1/J2=pending:2", "W1/J5=pending:1,unknown-status:1", "W1/J5=503:1", "W1/J5=429:1"},
	})
	d := &deployment{t: t, URL: url, Client: &http.Client{Transport: &http.Transport{}}}
	t.Cleanup(d.Client.CloseIdleConnections)
	call := func(job, fault string) answer {
		return d.do(http.MethodPut, apiPath("W1", job), http.Header{"Authorization": {"k"}, server.MockFaultHeader: {fault}})
	}
	link := func(fault string) string { return call("J1", fault).download(t).SignedURL }
	get := func(url string, header ...string) (*http.Response, int, error) {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			t.Fatal(err)
		}
		for i := 0; i < len(header); i += 2 {
			r.Header.Set(header[i], header[i+1])
		}
		response, err := d.Client.Do(r)
		if err != nil {
			return nil, 0, redacted(err)
		}
		defer response.Body.Close()
		n, err := io.Copy(io.Discard, response.Body)
		return response, int(n), err
	}

	var states []string
	for range 6 {
		states = append(states, string(call("J2", "").download(t).Status))
	}
	if got := fmt.Sprint(states); got != "[pending pending ready pending pending ready]" {
		t.Errorf("pending:2 of a job: %s", got)
	}
	var codes []string
	for range 6 {
		a := call("J5", "")
		codes = append(codes, fmt.Sprint(a.StatusCode))
		if a.StatusCode == 200 {
			codes = append(codes, string(a.download(t).Status))
		}
	}
	if got := fmt.Sprint(codes); got != "[429 503 200 queued 200 pending 200 ready 429]" {
		t.Errorf("faults together: %s", got)
	}
	for _, want := range []string{"429", "200 pending", "429", "200 pending"} { // of a job that is pending anyway
		got := call("J4", "429=1")
		if s := fmt.Sprint(got.StatusCode); s != want && s+" "+string(got.download(t).Status) != want {
			t.Errorf("429 of a running job: %s, want %s", s, want)
		}
	}
	if d := call("J4", "unknown-status=1").download(t); d.Status != "queued" {
		t.Errorf("unknown-status of a running job: %s", d.Status)
	}
	if got := call("J1", "unknown-status=1").download(t); got.Status != "queued" || got.SignedURL != "" {
		t.Errorf("unknown-status: %s", got.Status)
	}
	for fault, status := range map[string]int{"429=1": 429, "503=1": 503} {
		a := call("J1", fault)
		if a.StatusCode != status || a.Header.Get("Retry-After") == "" {
			t.Errorf("%s: status %d, Retry-After %q", fault, a.StatusCode, a.Header.Get("Retry-After"))
		}
		call("J1", fault).download(t)
	}
	for _, fault := range []string{"truncate", "reset", "stall", "expire"} {
		u := link(fault + "=1000000")
		_, n, err := get(u)
		// A reset may overtake the bytes before it.
		if err == nil || n > 1e6 || n < 1e6 && fault != "reset" {
			t.Errorf("%s: %d bytes, %v", fault, n, err)
		}
		response, n, err := get(u, "Range", "bytes=1000000-")
		if want := map[bool]int{true: 410, false: 206}[fault == "expire"]; err != nil || response.StatusCode != want || want == 206 && n < 2e6 {
			t.Errorf("after %s: %d bytes, %v, want status %d", fault, n, err, want)
		}
	}
	u := link("etag=1")
	before, _, _ := get(u, "Range", "bytes=0-9")
	after, n, err := get(u, "Range", "bytes=10-19", "If-Range", before.Header.Get("ETag"))
	if err != nil || after.StatusCode != 200 || n < 3e6 || after.Header.Get("ETag") == before.Header.Get("ETag") {
		t.Errorf("etag: status %d, %d bytes, %v", after.StatusCode, n, err)
	}
	if again, n, _ := get(u, "Range", "bytes=10-19", "If-Range", after.Header.Get("ETag")); again.StatusCode != 206 || n != 10 {
		t.Errorf("etag, again: status %d, %d bytes", again.StatusCode, n)
	}
	if r, n, err := get(link("no-range"), "Range", "bytes=0-9"); err != nil || r.StatusCode != 200 || n < 3e6 {
		t.Errorf("no-range: status %d, %d bytes, %v", r.StatusCode, n, err)
	}
	start := time.Now()
	if _, n, err := get(link("slow=10000"), "Range", "bytes=0-4999"); err != nil || n != 5000 || time.Since(start) < 400*time.Millisecond {
		t.Errorf("slow: %d bytes in %s, %v", n, time.Since(start), err)
	}
	e := call("J1", "explode=1").wantError(t, 400, "invalid_parameter")
	if len(e.Details) != 1 || !strings.Contains(e.Details[0].Message, "there are pending, unknown-status") {
		t.Errorf("unknown fault: %+v", e)
	}
	call("J3", "pending=1").wantError(t, 400, "job_failed")
	call("J9", "pending=1").wantError(t, 403, "permission_denied")
}

// TestMockIsTheSameEverywhere: clients may compare what they got with constants.
func TestMockIsTheSameEverywhere(t *testing.T) {
	t.Parallel()
	for range 2 {
		url := servertest.New(t, server.MockConfig{Jobs: []string{"W1/J1=1x3MB,2x20KB"}})
		path := filepath.Join(t.TempDir(), "job.zip")
		r, err := mockClient(t, url, "").Save(t.Context(), "W1", "J1", path)
		if err != nil {
			t.Fatal(err)
		}
		content, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if got, want := fmt.Sprintf("%s %x", r.ID, sha256.Sum256(content)), "d1ceaeb4-8042-567f-a4a6-7b63c9a246e5 bf9cdcee56f0bcfd937ba352f327972d5f055467f8761bb5ff8911883d1963de"; got != want {
			t.Errorf("got the package %s, want %s", got, want)
		}
	}
}

// TestMockKeepsTheContract: the suite passes on it.
func TestMockKeepsTheContract(t *testing.T) {
	t.Parallel()
	url := servertest.New(t, server.MockConfig{Key: "secret-of-the-mock", Jobs: []string{"W1/J1=1x5TB,10000x20KB", "W1/J2=running", "W1/J3=failed"}})
	findings, err := servertest.Contract(t.Context(), url, servertest.Target{
		Key: "secret-of-the-mock", WorkflowID: "W1", JobID: "J1", PendingJobID: "J2", FailedJobID: "J3",
	})
	if err != nil || len(findings) > 0 {
		t.Errorf("findings %v, error %v", findings, err)
	}
}

func TestMockConfig(t *testing.T) {
	t.Parallel()
	for want, c := range map[string]server.MockConfig{
		"is not COUNTxSIZE":                       {Jobs: []string{"W/J=many"}},
		"there is no job W/J":                     {Faults: []string{"W/J=pending:1"}},
		"want WORKFLOW/JOB=FAULT:VALUE":           {Faults: []string{"pending"}},
		`unknown fault "boom"; there are pending`: {Faults: []string{"W1/J1=boom"}},
		"want a number":                           {Faults: []string{"W1/J1=truncate"}},
		"takes no value":                          {Faults: []string{"W1/J1=no-range:1"}},
		"want 1 or more":                          {Faults: []string{"W1/J1=slow:0"}},
		"such as pending=3":                       {Faults: []string{"W1/J1=pending:1KB"}},
		"such as stall=1MB":                       {Faults: []string{"W1/J1=stall:-1"}},
		"slow: given twice":                       {Faults: []string{"W1/J1=slow:1,slow:2"}},
		"slow is given twice for W1/J1":           {Faults: []string{"W1/J1=slow:1", "W1/J1=slow:2"}},
		"there is a job W/J already":              {Jobs: []string{"W/J=1x1", "W/J=2x2"}},
	} {
		if _, err := server.NewMock(c); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want %q", err, want)
		}
	}
}

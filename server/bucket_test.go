package server_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/downlink-go/downlink/api"
	"github.com/downlink-go/downlink/server"
)

// names returns the entries of a job's package, without the manifest.
func (d *deployment) names(workflowID, jobID string) []string {
	d.t.Helper()
	var manifest struct {
		Entries []struct{ Path string }
	}
	path, _ := d.ready(workflowID, jobID)
	z := openZIP(d.t, d.get(path).body)
	r, err := z.Open("manifest.json")
	if err != nil {
		d.t.Fatal(err)
	}
	if err := json.NewDecoder(r).Decode(&manifest); err != nil {
		d.t.Fatal(err)
	}
	var names []string
	for _, e := range manifest.Entries {
		names = append(names, e.Path)
	}
	return names
}

// TestBucketFolders: everything under inputs/ and outputs/ is an asset, whatever
// its name, and nothing else is.
func TestBucketFolders(t *testing.T) {
	t.Parallel()
	d := deploy(t)
	d.Write(map[string]string{
		"W1/J1/inputs/a.tif":         "a",
		"W1/J1/inputs/a.tif.attrs":   "{}",
		"W1/J1/inputs/.hidden":       "h",
		"W1/J1/outputs/inputs/x":     "x",
		"W1/J1/outputs/job.json":     "not the job's",
		"W1/J1/outputs/__0x2f__.txt": "looks escaped",
		"W1/J1/logs/l.txt":           "no asset",
		"W1/J10/inputs/other":        "of another job",
	})
	if err := os.Symlink("a.tif", filepath.Join(d.Bucket, "W1/J1/inputs/link.tif")); err != nil {
		t.Fatal(err)
	}
	want := []string{
		"inputs/.hidden", "inputs/a.tif", "inputs/a.tif.attrs", "inputs/link.tif",
		"outputs/__0x2f__.txt", "outputs/inputs/x", "outputs/job.json",
	}
	if got := d.names("W1", "J1"); !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

// TestBucketIsOnlyRead: no file appears in the bucket.
func TestBucketIsOnlyRead(t *testing.T) {
	t.Parallel()
	d := deploy(t)
	d.Write(smallJob)
	tree := func() string {
		var b strings.Builder
		err := filepath.WalkDir(d.Bucket, func(path string, _ os.DirEntry, err error) error {
			fmt.Fprintln(&b, path)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return b.String()
	}
	before := tree()
	path, _ := d.ready("W1", "J1")
	d.get(path)
	if after := tree(); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
}

func TestBucketLinks(t *testing.T) {
	t.Parallel()
	outside := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(outside, []byte("secret"), 0o644); err != nil {
		t.Fatal(err)
	}
	for name, target := range map[string]string{
		"absolute":   outside,
		"relative":   "../../../../../../../../../../../../.." + outside,
		"nowhere":    "missing",
		"to itself":  "link",
		"to folders": "..",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := deploy(t)
			d.Write(smallJob)
			if err := os.Symlink(target, filepath.Join(d.Bucket, "W1/J1/inputs/link")); err != nil {
				t.Fatal(err)
			}
			e := d.put("W1", "J1").wantError(t, 400, "asset_missing")
			if len(e.Details) != 1 || e.Details[0].Asset != "inputs/link" {
				t.Errorf("details %v, want one for inputs/link", e.Details)
			}
		})
	}
	// A job file that may not be read, and so may say anything.
	denied := deploy(t)
	denied.Write(smallJob)
	if err := os.Symlink(outside, filepath.Join(denied.Bucket, "W1/J1/job.json")); err != nil {
		t.Fatal(err)
	}
	denied.put("W1", "J1").wantError(t, 503, "unavailable")
	// A folder of assets that is a link out of the bucket.
	d := deploy(t)
	d.Write(map[string]string{"W1/J1/README": "x"})
	if err := os.Symlink(filepath.Dir(outside), filepath.Join(d.Bucket, "W1/J1/inputs")); err != nil {
		t.Fatal(err)
	}
	if a := d.put("W1", "J1"); a.StatusCode == 200 || strings.Contains(string(a.body), outside) {
		t.Errorf("status %d: %s", a.StatusCode, a.body)
	}
}

// jobFiles are well-formed job files and what becomes of them.
var jobFiles = []struct {
	name   string
	job    string
	names  []string // of the package
	status int      // of an error
	code   string
	asset  string // that the details name
}{
	{name: "status alone", job: `{"status": "succeeded"}`, names: []string{"inputs/a", "outputs/b", "outputs/tmp~"}},
	{name: "assets", job: `{"$schema": "x", "status": "succeeded", "assets": [
		{"role": "output", "path": "b", "size": 4, "crc32": "` + "8f910463" + `", "media_type": "text/plain"},
		{"role": "input", "path": "dem/shared.tif", "key": "shared/dem.tif"}]}`,
		names: []string{"inputs/dem/shared.tif", "outputs/b"}},
	{name: "no assets", job: `{"status": "succeeded", "assets": []}`},
	{name: "failed", job: `{"status": "failed"}`, status: 400, code: "job_failed"},
	{name: "missing", job: `{"status": "succeeded", "assets": [{"role": "input", "path": "gone"}]}`, status: 400, code: "asset_missing", asset: "inputs/gone"},
	{name: "of another size", job: `{"status": "succeeded", "assets": [{"role": "input", "path": "a", "size": 4}]}`, status: 400, code: "asset_missing", asset: "inputs/a"},
	{name: "a folder", job: `{"status": "succeeded", "assets": [{"role": "input", "path": "x", "key": "shared"}]}`, status: 400, code: "asset_missing", asset: "inputs/x"},
	{name: "out of the bucket", job: `{"status": "succeeded", "assets": [{"role": "input", "path": "x", "key": "../secret"}]}`, status: 500, code: "internal"},
	{name: "absolute", job: `{"status": "succeeded", "assets": [{"role": "input", "path": "x", "key": "/etc/passwd"}]}`, status: 500, code: "internal"},
}

func TestJobFile(t *testing.T) {
	t.Parallel()
	files := map[string]string{
		"W1/J1/inputs/a":     "alpha",
		"W1/J1/outputs/b":    "beta",
		"shared/dem.tif":     "elevation",
		"W1/J1/outputs/tmp~": "not declared",
	}
	for _, tt := range jobFiles {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			d := deploy(t)
			d.Write(files)
			d.Write(map[string]string{"W1/J1/job.json": tt.job})
			if tt.status == 0 {
				if got := d.names("W1", "J1"); !slices.Equal(got, tt.names) {
					t.Errorf("got %q, want %q", got, tt.names)
				}
				return
			}
			e := d.put("W1", "J1").wantError(t, tt.status, tt.code)
			if tt.asset != "" && (len(e.Details) != 1 || e.Details[0].Asset != tt.asset) {
				t.Errorf("details %v, want one for %s", e.Details, tt.asset)
			}
		})
	}
}

// TestJobRunning: while the job runs its package is pending, whatever is missing.
func TestJobRunning(t *testing.T) {
	t.Parallel()
	d := deploy(t, func(c *server.Config) { c.ReadyWait = -1 })
	d.Write(smallJob)
	d.Write(map[string]string{"W1/J1/job.json": `{"status": "running", "assets": [{"role": "output", "path": "not yet there"}]}`})
	a := d.put("W1", "J1")
	got := a.download(t)
	if got.Status != "pending" || got.SignedURL != "" {
		t.Errorf("status %s, want pending without a URL", got.Status)
	}
	if got, want := a.Header.Get("Downlink-Pending-Reason"), "job-running"; got != want {
		t.Errorf("Downlink-Pending-Reason %q, want %q", got, want)
	}
	if a.Header.Get("Retry-After") == "" {
		t.Error("no Retry-After")
	}
	for _, h := range []string{"Downlink-Expires", "Downlink-Package-Size", "Downlink-Progress"} {
		if _, ok := a.Header[h]; ok {
			t.Errorf("%s is sent", h)
		}
	}

	// A call that waits has its answer when the job is done.
	waiting := make(chan answer)
	go func() {
		waiting <- d.do(http.MethodPut, apiPath("W1", "J1"), http.Header{"Authorization": {d.Key}, "Prefer": {"wait=60"}})
	}()
	d.Write(map[string]string{"W1/J1/job.json": `{"status": "succeeded"}`})
	if got := (<-waiting).download(t); got.Status != "ready" {
		t.Errorf("after the wait: %s, want ready", got.Status)
	}
}

// brokenJobs are job files that are refused, with the line to blame.
var brokenJobs = map[string]struct {
	job  string
	line int
}{
	"empty":             {"", 1},
	"not JSON":          {"{\n\n  status: succeeded\n}", 3},
	"cut":               {"{\n\"status\": \"succeeded\",\n", 3},
	"an array":          {"[]", 1},
	"no status":         {"{\n}", 2},
	"unknown status":    {"{\n\"status\": \"done\"}", 2},
	"unknown member":    {"{\"status\": \"succeeded\",\n\"asets\": []}", 2},
	"twice":             {"{\"status\": \"succeeded\",\n\"status\": \"failed\"}", 2},
	"something follows": {"{\"status\": \"succeeded\"}\n{}", 2},
	"assets no array":   {"{\"status\": \"succeeded\",\n\"assets\": {}}", 2},
	"unknown role":      {"{\"status\": \"succeeded\", \"assets\": [\n{\"role\": \"output\", \"path\": \"a\"},\n{\"role\": \"log\", \"path\": \"a\"}]}", 3},
	"no path":           {"{\"status\": \"succeeded\", \"assets\": [\n{\"role\": \"output\"}]}", 2},
	"asset twice":       {"{\"status\": \"succeeded\", \"assets\": [{\"role\": \"output\", \"path\": \"a\"},\n{\"role\": \"output\", \"path\": \"a\"}]}", 2},
	"negative size":     {"{\"status\": \"succeeded\", \"assets\": [\n{\"role\": \"output\", \"path\": \"a\", \"size\": -1}]}", 2},
	"short crc32":       {"{\"status\": \"succeeded\", \"assets\": [\n{\"role\": \"output\", \"path\": \"a\", \"crc32\": \"123\"}]}", 2},
	"long sha256":       {"{\"status\": \"succeeded\", \"assets\": [\n{\"role\": \"output\", \"path\": \"a\", \"sha256\": \"" + strings.Repeat("a", 66) + "\"}]}", 2},
	"media type":        {"{\"status\": \"succeeded\", \"assets\": [\n{\"role\": \"output\", \"path\": \"a\", \"media_type\": \"tiff\"}]}", 2},
	"unknown in asset":  {"{\"status\": \"succeeded\", \"assets\": [\n{\"role\": \"output\", \"path\": \"a\", \"crc\": \"1\"}]}", 2},
	"wrong type":        {"{\"status\": \"succeeded\", \"assets\": [\n{\"role\": \"output\", \"path\": 5}]}", 2},
}

// TestBrokenJobFile: callers get no detail, the log has the file and the line.
func TestBrokenJobFile(t *testing.T) {
	t.Parallel()
	for name, tt := range brokenJobs {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := deploy(t)
			d.Write(smallJob)
			d.Write(map[string]string{"W1/J1/job.json": tt.job})
			a := d.put("W1", "J1")
			a.wantError(t, 500, "internal")
			if strings.Contains(string(a.body), "job.json") {
				t.Errorf("the answer tells: %s", a.body)
			}
			if want := fmt.Sprintf("W1/J1/job.json: line %d: ", tt.line); !strings.Contains(d.Log.String(), want) {
				t.Errorf("the log does not say %q:\n%s", want, d.Log)
			}
		})
	}
}

// TestJobSchema: the published schema accepts what the server does and refuses
// what it refuses, but for what a schema cannot say.
func TestJobSchema(t *testing.T) {
	t.Parallel()
	document, err := jsonschema.UnmarshalJSON(bytes.NewReader(api.JobSchema))
	if err != nil {
		t.Fatal(err)
	}
	compiler := jsonschema.NewCompiler()
	if err := compiler.AddResource("job.schema.json", document); err != nil {
		t.Fatal(err)
	}
	schema, err := compiler.Compile("job.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	for name, tt := range brokenJobs {
		if name == "twice" || name == "asset twice" {
			continue
		}
		job, err := jsonschema.UnmarshalJSON(strings.NewReader(tt.job))
		if err == nil && schema.Validate(job) == nil {
			t.Errorf("%s: the schema accepts what the server refuses", name)
		}
	}
	for _, tt := range jobFiles {
		job, err := jsonschema.UnmarshalJSON(strings.NewReader(tt.job))
		if err != nil {
			t.Fatal(err)
		}
		if err := schema.Validate(job); err != nil {
			t.Errorf("%s: the schema refuses what the server accepts: %v", tt.name, err)
		}
	}
}

func TestLimits(t *testing.T) {
	t.Parallel()
	d := deploy(t, func(c *server.Config) { c.MaxEntries, c.MaxBytes = 3, 100 })
	d.Write(smallJob)
	d.ready("W1", "J1")
	d.Write(map[string]string{"W1/J1/inputs/more": ""})
	e := d.put("W1", "J1").wantError(t, 400, "package_too_large")
	if len(e.Details) != 1 || e.Details[0].Field != "entries" || e.Details[0].Limit != 3 || e.Details[0].Actual != 4 {
		t.Errorf("details %+v, want entries, 4 of 3", e.Details)
	}
	d.Write(map[string]string{"W1/J2/inputs/big": strings.Repeat("x", 101)})
	e = d.put("W1", "J2").wantError(t, 400, "package_too_large")
	if len(e.Details) != 1 || e.Details[0].Field != "bytes" || e.Details[0].Limit != 100 || e.Details[0].Actual != 101 {
		t.Errorf("details %+v, want bytes, 101 of 100", e.Details)
	}
}

// TestOwnCatalog: a program's own catalog says which objects of the bucket are a
// job's assets.
func TestOwnCatalog(t *testing.T) {
	t.Parallel()
	d := deploy(t, func(c *server.Config) {
		c.Catalog = catalogFunc(func(_ context.Context, _, jobID string) (server.Job, error) {
			switch jobID {
			case "J1":
				return server.Job{Status: server.JobSucceeded, Assets: []server.Asset{{
					Role: server.Output, Path: "renamed.txt", Object: server.Object{Key: "archive/1", Size: -1},
				}}}, nil
			case "broken":
				return server.Job{}, errors.New("secret trouble")
			}
			return server.Job{}, server.ErrJobNotFound
		})
	})
	d.Write(map[string]string{"archive/1": "content"})
	if got, want := d.names("W1", "J1"), []string{"outputs/renamed.txt"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	d.put("W1", "J2").wantError(t, 403, "permission_denied")
	if a := d.put("W1", "broken"); strings.Contains(string(a.body), "secret") {
		t.Errorf("the answer tells: %s", a.body)
	} else {
		a.wantError(t, 500, "internal")
	}
}

type catalogFunc func(ctx context.Context, workflowID, jobID string) (server.Job, error)

func (f catalogFunc) Job(ctx context.Context, workflowID, jobID string) (server.Job, error) {
	return f(ctx, workflowID, jobID)
}

package server_test

import (
	"bytes"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/downlink-go/downlink/gen/apitypes"
	"github.com/downlink-go/downlink/server"
)

var smallJob = map[string]string{
	"W1/J1/inputs/a.txt":         "alpha",
	"W1/J1/outputs/b.txt":        "beta",
	"W1/J1/outputs/deep/ü/c.txt": "",
}

func TestDownloadJobReady(t *testing.T) {
	t.Parallel()
	d := deploy(t)
	d.Write(smallJob)
	before := time.Now().Truncate(time.Second)
	a := d.put("W1", "J1")
	got := a.download(t)
	if got.Status != apitypes.DownloadStatusReady || got.WorkflowID != "W1" {
		t.Errorf("got %s of %s, want ready of W1", got.Status, got.WorkflowID)
	}
	if id, err := uuid.Parse(got.ID); err != nil || id.Version() != 5 {
		t.Errorf("id %q, want a UUID of version 5", got.ID)
	}
	if !strings.HasPrefix(got.SignedURL, d.URL+"/packages/") || !strings.HasSuffix(got.SignedURL, "/W1_J1.zip") {
		t.Error("signed_url is not of the form {public_url}/packages/{token}/W1_J1.zip")
	}
	expires, err := time.Parse(time.RFC3339, a.Header.Get("Downlink-Expires"))
	if err != nil || expires.Before(before.Add(time.Hour)) || expires.After(time.Now().Add(time.Hour)) {
		t.Errorf("Downlink-Expires %q, want an hour from now", a.Header.Get("Downlink-Expires"))
	}
	for _, name := range []string{"Retry-After", "Downlink-Pending-Reason", "Downlink-Progress", "Preference-Applied"} {
		if _, ok := a.Header[name]; ok {
			t.Errorf("%s is sent with a package that is ready", name)
		}
	}
	path, _ := d.ready("W1", "J1")
	if body := d.get(path).body; strconv.Itoa(len(body)) != a.Header.Get("Downlink-Package-Size") {
		t.Errorf("Downlink-Package-Size %s, but the package has %d bytes", a.Header.Get("Downlink-Package-Size"), len(body))
	}
}

// TestSameAssetsSamePackage: the identifier and the bytes depend on the assets
// alone, not on the server and its state.
func TestSameAssetsSamePackage(t *testing.T) {
	t.Parallel()
	bucket := t.TempDir()
	modified := time.Date(2026, 1, 2, 3, 4, 5, 678, time.UTC)
	for _, name := range []string{"inputs/a", "outputs/b"} {
		path := filepath.Join(bucket, "W1", "J1", name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(name), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, modified, modified); err != nil {
			t.Fatal(err)
		}
	}
	var ids []string
	var packages [][]byte
	var etags []string
	for range 2 {
		d := deploy(t, func(c *server.Config) { c.Bucket = "file://" + bucket })
		path, download := d.ready("W1", "J1")
		a := d.get(path)
		ids, packages, etags = append(ids, download.ID), append(packages, a.body), append(etags, a.Header.Get("ETag"))
	}
	if ids[0] != ids[1] || etags[0] != etags[1] || !bytes.Equal(packages[0], packages[1]) {
		t.Errorf("two servers make different packages: ids %q, entity tags %q", ids, etags)
	}

	// A changed asset makes another package.
	d := deploy(t, func(c *server.Config) { c.Bucket = "file://" + bucket })
	if err := os.WriteFile(filepath.Join(bucket, "W1/J1/outputs/b"), []byte("changed"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, download := d.ready("W1", "J1"); download.ID == ids[0] {
		t.Error("a changed asset leaves the id as it is")
	}
}

func TestAuthentication(t *testing.T) {
	t.Parallel()
	d := deploy(t)
	d.Write(smallJob)
	ctx := t.Context()
	db, err := server.OpenDatabase(ctx, d.Config.DataDir, "")
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	_, expired, err := db.CreateKey(ctx, "acme", "expired", time.Now().Add(-time.Second))
	if err != nil {
		t.Fatal(err)
	}
	revokedKey, revoked, err := db.CreateKey(ctx, "acme", "revoked", time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	if err := db.RevokeKey(ctx, revokedKey.ID); err != nil {
		t.Fatal(err)
	}
	last := d.Key[len(d.Key)-1]
	wrong := d.Key[:len(d.Key)-1] + string(rune(last^1))

	tests := []struct {
		name   string
		header []string
		want   int
	}{
		{"raw key", []string{d.Key}, 200},
		{"bearer", []string{"Bearer " + d.Key}, 200},
		{"scheme in any case", []string{"bEARER   " + d.Key}, 200},
		{"no key", nil, 401},
		{"empty", []string{""}, 401},
		{"scheme alone", []string{"Bearer"}, 401},
		{"wrong scheme", []string{"Basic " + d.Key}, 401},
		{"wrong secret", []string{wrong}, 401},
		{"unknown key", []string{"dl_aaaaaaaaaaaa_aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"}, 401},
		{"not a key", []string{"hello"}, 401},
		{"not ASCII", []string{"dl_\xff\xfe_x"}, 401},
		{"expired", []string{string(expired)}, 401},
		{"revoked", []string{string(revoked)}, 401},
		{"two headers", []string{d.Key, d.Key}, 401},
		{"8 KB", []string{strings.Repeat("k", 8<<10)}, 401},
		{"20 KB", []string{strings.Repeat("k", 20<<10)}, 400},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			h := http.Header{}
			if tt.header != nil {
				h["Authorization"] = tt.header
			}
			a := d.do(http.MethodPut, apiPath("W1", "J1"), h)
			switch tt.want {
			case 200:
				a.download(t)
			case 400:
				a.wantError(t, 400, "invalid_parameter")
			default:
				a.wantError(t, 401, "unauthenticated")
				if a.Header.Get("WWW-Authenticate") == "" {
					t.Error("no WWW-Authenticate")
				}
			}
		})
	}
}

// TestAuthenticationComesFirst: without a key nobody learns what is valid.
func TestAuthenticationComesFirst(t *testing.T) {
	t.Parallel()
	d := deploy(t)
	d.Write(smallJob)
	for _, path := range []string{apiPath("W1", "J1"), apiPath("W1", ".."), apiPath("W9", "J9"), apiPath("", "")} {
		d.do(http.MethodPut, path, nil).wantError(t, 401, "unauthenticated")
	}
}

func TestMalformedIdentifiers(t *testing.T) {
	t.Parallel()
	d := deploy(t)
	d.Write(smallJob)
	long := strings.Repeat("x", 128)
	for name, id := range map[string]string{
		"empty":             "",
		"129 characters":    long + "x",
		"dots":              "..",
		"dot":               ".",
		"encoded dots":      "%2E%2E",
		"encoded slash":     "a%2Fb",
		"control character": "a%00b",
		"line feed":         "a%0Ab",
		"invalid UTF-8":     "a%FFb",
		"percent":           "a%25b",
		"twice encoded":     "a%2541",
		"space":             "a%20b",
		"not ASCII":         "%C3%BC",
		"starts with dash":  "-a",
		"colon":             "a:b",
	} {
		t.Run(name, func(t *testing.T) {
			for field, path := range map[string]string{
				"workflow_id": apiPath(id, "J1"),
				"job_id":      apiPath("W1", id),
			} {
				r, err := http.NewRequestWithContext(t.Context(), http.MethodPut, d.URL, nil)
				if err != nil {
					t.Fatal(err)
				}
				e := d.send(r, path, http.Header{"Authorization": {d.Key}}).wantError(t, 400, "invalid_parameter")
				if len(e.Details) != 1 || e.Details[0].Field != field {
					t.Errorf("details %v, want one for %s", e.Details, field)
				}
			}
		})
	}
	// The longest there is, and one whose encoding is not needed, are fine.
	d.put("W1", long).wantError(t, 403, "permission_denied")
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPut, d.URL, nil)
	if err != nil {
		t.Fatal(err)
	}
	d.send(r, apiPath("W1", "%4A1"), http.Header{"Authorization": {d.Key}}).download(t)
}

// TestPermissionDenied: what does not exist, what belongs to somebody else and
// what nobody may have are told apart by nothing.
func TestPermissionDenied(t *testing.T) {
	t.Parallel()
	d := deploy(t)
	d.Write(smallJob)
	d.Write(map[string]string{"W2/J1/inputs/a": "of somebody else", "W1/empty/README": "no asset"})
	other := d.NewOrganization("other", "W2")
	all := d.NewOrganization("all", "*")

	d.do(http.MethodPut, apiPath("W2", "J1"), http.Header{"Authorization": {other}}).download(t)
	d.do(http.MethodPut, apiPath("W2", "J1"), http.Header{"Authorization": {all}}).download(t)

	var bodies [][]byte
	var headers []http.Header
	for _, ids := range [][2]string{{"W1", "J2"}, {"W2", "J1"}, {"W2", "J2"}, {"W3", "J1"}, {"W1", "empty"}} {
		a := d.put(ids[0], ids[1])
		a.wantError(t, 403, "permission_denied")
		bodies = append(bodies, a.body)
		for _, name := range []string{"Date", "X-Request-Id", "RateLimit"} { // of the call, not of its object
			a.Header.Del(name)
		}
		headers = append(headers, a.Header)
	}
	for _, h := range headers {
		if !reflect.DeepEqual(h, headers[0]) {
			t.Errorf("headers differ: %v and %v", h, headers[0])
		}
	}
	for _, b := range bodies {
		if !bytes.Equal(b, bodies[0]) {
			t.Errorf("bodies differ: %s and %s", b, bodies[0])
		}
	}
}

func TestRoutesAndMethods(t *testing.T) {
	t.Parallel()
	d := deploy(t)
	d.Write(smallJob)
	for _, path := range []string{"/", "/v0", "/v1/workflows/W1/jobs/J1/download", apiPath("W1", "J1") + "/", "/packages/x", "/%FF"} {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, d.URL, nil)
		if err != nil {
			t.Fatal(err)
		}
		d.send(r, path, nil).wantError(t, 404, "not_found")
	}
	for _, method := range []string{http.MethodGet, http.MethodPost, http.MethodDelete, http.MethodPatch, "BREW"} {
		a := d.do(method, apiPath("W1", "J1"), http.Header{"Authorization": {d.Key}})
		a.wantError(t, 405, "method_not_allowed")
		if allow := a.Header.Get("Allow"); !strings.Contains(allow, http.MethodPut) {
			t.Errorf("%s: Allow %q, want PUT", method, allow)
		}
	}
	if a := d.do(http.MethodHead, apiPath("W1", "J1"), nil); a.StatusCode != 405 || len(a.body) != 0 {
		t.Errorf("HEAD: status %d with %d bytes, want 405 with none", a.StatusCode, len(a.body))
	}
}

// TestBodyIsIgnored: whatever its type.
func TestBodyIsIgnored(t *testing.T) {
	t.Parallel()
	d := deploy(t)
	d.Write(smallJob)
	for _, contentType := range []string{"", "application/json", "text/csv", "multipart/form-data"} {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPut, d.URL, strings.NewReader("{not json"))
		if err != nil {
			t.Fatal(err)
		}
		h := http.Header{"Authorization": {d.Key}}
		if contentType != "" {
			h.Set("Content-Type", contentType)
		}
		d.send(r, apiPath("W1", "J1"), h).download(t)
	}
}

func TestPrefer(t *testing.T) {
	t.Parallel()
	d := deploy(t)
	d.Write(smallJob)
	tests := []struct {
		prefer  []string
		applied string
	}{
		{[]string{"wait=5"}, "wait=5"},
		{[]string{"WAIT = 5"}, "wait=5"},
		{[]string{`wait="5"`}, "wait=5"},
		{[]string{"respond-async, wait=7; foo=bar"}, "wait=7"},
		{[]string{"respond-async", "wait=8"}, "wait=8"},
		{[]string{"wait=3600"}, "wait=60"},
		{[]string{"wait=0"}, "wait=0"},
		{[]string{"wait=5, wait=9"}, "wait=5"},
		{[]string{"wait=-1"}, ""},
		{[]string{"wait=soon"}, ""},
		{[]string{"wait"}, ""},
		{[]string{"waiting=5"}, ""},
		{[]string{""}, ""},
		{[]string{"wait=99999999999999999999"}, ""},
	}
	for _, tt := range tests {
		a := d.do(http.MethodPut, apiPath("W1", "J1"), http.Header{"Authorization": {d.Key}, "Prefer": tt.prefer})
		a.download(t)
		if got := a.Header.Get("Preference-Applied"); got != tt.applied {
			t.Errorf("Prefer %q: applied %q, want %q", tt.prefer, got, tt.applied)
		}
	}
}

func TestRequestIDs(t *testing.T) {
	t.Parallel()
	d := deploy(t)
	d.Write(smallJob)
	seen := map[string]bool{}
	path, _ := d.ready("W1", "J1")
	for _, a := range []answer{d.put("W1", "J1"), d.put("W1", "J2"), d.do(http.MethodGet, "/", nil), d.get(path)} {
		id := a.Header.Get("X-Request-Id")
		if id == "" || seen[id] {
			t.Errorf("X-Request-Id %q, want one for each response", id)
		}
		seen[id] = true
		if !strings.Contains(d.Log.String(), "request_id="+id) {
			t.Errorf("request %s is not in the log", id)
		}
	}
}

func TestPublicURL(t *testing.T) {
	t.Parallel()
	d := deploy(t, func(c *server.Config) { c.PublicURL = "https://downloads.example.com/base/" })
	d.Write(smallJob)
	got := d.put("W1", "J1").download(t).SignedURL
	if !strings.HasPrefix(got, "https://downloads.example.com/base/packages/") {
		t.Error("signed_url does not start with the public URL")
	}
}

package server_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/downlink-go/downlink/gen/apitypes"
	"github.com/downlink-go/downlink/server"
	"github.com/downlink-go/downlink/server/internal/catalog"
)

// assembling makes a deployment have packages put together in the store.
func assembling(s store) func(*server.Config) {
	return func(c *server.Config) { c.Bucket, c.Delivery = s.URL(), server.Assemble }
}

// bytesOf makes up content that does not repeat itself.
func bytesOf(seed byte, n int) string {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{seed}).Read(b) // never fails
	return string(b)
}

// assemblyJob is a job with assets to copy, to upload, and with names that have
// to be escaped.
func assemblyJob() map[string]string {
	return map[string]string{
		"W1/J1/inputs/scene 1+2=3 & ä%2F.tif": bytesOf(1, 11<<20),
		"W1/J1/outputs/a.bin":                 bytesOf(2, 300),
		"W1/J1/outputs/b.bin":                 bytesOf(3, 16<<20),
		"W1/J1/outputs/c.bin":                 bytesOf(4, 12<<20+1),
		"W1/J1/outputs/empty.txt":             "",
		"W1/J1/outputs/z.txt":                 "the last one",
	}
}

// assembled asks for a package until it is ready, and returns the store's URL.
func (d *deployment) assembled(workflowID, jobID string) (string, answer) {
	d.t.Helper()
	a := d.put(workflowID, jobID)
	got := a.download(d.t)
	if got.Status != apitypes.DownloadStatusReady {
		d.t.Fatalf("status %s, reason %q", got.Status, a.Header.Get("Downlink-Pending-Reason"))
	}
	return got.SignedURL, a
}

// fetch gets a URL of the store.
func (d *deployment) fetch(rawURL string, header http.Header) answer {
	d.t.Helper()
	r, err := http.NewRequestWithContext(d.t.Context(), http.MethodGet, rawURL, nil)
	if err != nil {
		d.t.Fatal(redacted(err))
	}
	if header != nil {
		r.Header = header
	}
	response, err := http.DefaultClient.Do(r)
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

// objects lists what is in the folder of assembled packages, and the uploads.
func (s *s3Store) assemblies(ctx context.Context) (objects, uploads []string) {
	s.t.Helper()
	prefix := aws.String(s.prefix + ".downlink/")
	list, err := s.client.ListObjectsV2(ctx, &s3.ListObjectsV2Input{Bucket: &s.bucket, Prefix: prefix})
	if err != nil {
		s.t.Fatal(err)
	}
	for _, o := range list.Contents {
		objects = append(objects, strings.TrimPrefix(*o.Key, s.prefix))
	}
	ups, err := s.client.ListMultipartUploads(ctx, &s3.ListMultipartUploadsInput{Bucket: &s.bucket, Prefix: prefix})
	if err != nil {
		s.t.Fatal(err)
	}
	for _, u := range ups.Uploads {
		uploads = append(uploads, strings.TrimPrefix(*u.Key, s.prefix))
	}
	return objects, uploads
}

// TestAssemble has a package put together in the store, whose bytes, digest and
// name are those of the streamed package.
func TestAssemble(t *testing.T) {
	t.Parallel()
	s := newS3Store(t)
	s.Write(assemblyJob())
	streaming := deploy(t, on(s))
	path, want := streaming.ready("W1", "J1")
	streamed := streaming.get(path)
	if streamed.StatusCode != http.StatusOK {
		t.Fatalf("streamed: status %d", streamed.StatusCode)
	}

	d := deploy(t, assembling(s))
	a := d.do(http.MethodPut, apiPath("W1", "J1"), http.Header{"Authorization": {d.Key}, "Prefer": {"wait=0"}})
	if got := a.download(t); got.Status != apitypes.DownloadStatusPending || got.SignedURL != "" || got.ID != want.ID ||
		a.Header.Get("Downlink-Pending-Reason") != "assembling" || a.Header.Get("Retry-After") == "" || a.Header.Get("Downlink-Progress") == "" {
		t.Errorf("the first answer is %+v with %v", got, a.Header)
	}
	signed, a := d.assembled("W1", "J1")
	if got := a.download(t); got.ID != want.ID || a.Header.Get("Downlink-Package-Size") != fmt.Sprint(len(streamed.body)) {
		t.Errorf("package %s of %s bytes, want %s of %d", got.ID, a.Header.Get("Downlink-Package-Size"), want.ID, len(streamed.body))
	}
	if expires, err := time.Parse(time.RFC3339, a.Header.Get("Downlink-Expires")); err != nil || time.Until(expires) < 59*time.Minute || time.Until(expires) > time.Hour {
		t.Errorf("expires %q, want in an hour", a.Header.Get("Downlink-Expires"))
	}
	if !strings.HasPrefix(signed, s.server.String()) {
		t.Error("the signed URL is not one of the store")
	}

	got := d.fetch(signed, nil)
	if got.StatusCode != http.StatusOK || !bytes.Equal(got.body, streamed.body) {
		t.Fatalf("status %d with %d bytes, which are not the %d of the streamed package", got.StatusCode, len(got.body), len(streamed.body))
	}
	for name, want := range map[string]string{
		"Content-Type": "application/zip", "Content-Disposition": `attachment; filename="W1_J1.zip"`,
		"X-Amz-Meta-Downlink-Digest": strings.Trim(streamed.Header.Get("ETag"), `"`),
	} {
		if got := got.Header.Get(name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	part := d.fetch(signed, http.Header{"Range": {"bytes=100-20000000"}})
	if part.StatusCode != http.StatusPartialContent || !bytes.Equal(part.body, streamed.body[100:20000001]) {
		t.Errorf("a range: status %d with %d bytes", part.StatusCode, len(part.body))
	}
	var uploaded, copied int
	for _, r := range s.Requests() {
		switch {
		case r.method == http.MethodPut && r.header.Get("X-Amz-Copy-Source") != "":
			copied++
			if r.header.Get("X-Amz-Copy-Source-If-Match") == "" {
				t.Error("a copy that is not conditional")
			}
		case r.method == http.MethodPut:
			uploaded++
		}
	}
	if copied != 3 || uploaded != 4 {
		t.Errorf("%d parts copied and %d uploaded, want 3 and 4", copied, uploaded)
	}

	// It is there now, and asked for by all who come.
	for range 3 {
		if _, again := d.assembled("W1", "J1"); again.StatusCode != http.StatusOK {
			t.Error(again.StatusCode)
		}
	}
	heads := 0
	for _, r := range s.Requests() {
		if r.method == http.MethodHead && strings.HasPrefix(r.key, ".downlink/") {
			heads++
		} else if r.method != http.MethodGet && r.method != http.MethodHead {
			t.Errorf("%s of %s for a package that is there", r.method, r.key)
		}
	}
	if heads > 1 {
		t.Errorf("%d looks for the object within seconds, want 1 at most", heads)
	}
	// What the client downloads is verified.
	if _, err := d.newClient(d.Key).Save(t.Context(), "W1", "J1", filepath.Join(t.TempDir(), "j.zip")); err != nil {
		t.Errorf("the client: %v", err)
	}
	if objects, uploads := s.assemblies(t.Context()); len(objects) != 1 || len(uploads) != 0 {
		t.Errorf("in the store: %q and the uploads %q, want one package", objects, uploads)
	}
}

// TestAssembleOnce asks for many packages from many sides at the same time.
func TestAssembleOnce(t *testing.T) {
	t.Parallel()
	s := newS3Store(t)
	s.Write(map[string]string{"W1/J1/outputs/a.bin": bytesOf(1, 11<<20), "W1/J2/outputs/a.txt": "small"})
	d := deploy(t, assembling(s))
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() { d.assembled("W1", fmt.Sprintf("J%d", 1+i%2)) })
	}
	wg.Wait()
	if objects, uploads := s.assemblies(t.Context()); len(objects) != 2 || len(uploads) != 0 {
		t.Errorf("in the store: %q and the uploads %q, want two packages", objects, uploads)
	}
}

// TestAssembleAgain: what is no longer in the store is put there again, and never
// promised to be there. A changed job is another package.
func TestAssembleAgain(t *testing.T) {
	t.Parallel()
	s := newS3Store(t)
	s.Write(map[string]string{"W1/J1/outputs/a.bin": bytesOf(1, 11<<20)})
	d := deploy(t, assembling(s))
	first, _ := d.assembled("W1", "J1")
	before := d.fetch(first, nil)
	objects, _ := s.assemblies(t.Context())
	s.Remove(objects[0])
	d.Restart() // forgets that it was there a moment ago
	second, _ := d.assembled("W1", "J1")
	after := d.fetch(second, nil)
	if after.StatusCode != http.StatusOK || !bytes.Equal(before.body, after.body) || before.Header.Get("ETag") != after.Header.Get("ETag") {
		t.Errorf("status %d, not the same package again (ETag %s, was %s)", after.StatusCode, after.Header.Get("ETag"), before.Header.Get("ETag"))
	}

	s.Write(map[string]string{"W1/J1/outputs/a.bin": bytesOf(2, 11<<20)})
	third, _ := d.assembled("W1", "J1")
	if changed := d.fetch(third, nil); changed.StatusCode != http.StatusOK || bytes.Equal(changed.body, after.body) {
		t.Errorf("after the change: status %d, or the old package", changed.StatusCode)
	}
}

// TestAssembleAssetChanges has an asset change after it was listed and before it
// is copied: nothing is ever put together of two versions.
func TestAssembleAssetChanges(t *testing.T) {
	t.Parallel()
	s := newS3Store(t)
	s.Write(map[string]string{"W1/J1/outputs/a.bin": bytesOf(1, 11<<20), "W1/J1/outputs/b.bin": bytesOf(2, 12<<20)})
	d := deploy(t, assembling(s))
	var once sync.Once
	s.Fault(func(_ http.ResponseWriter, r *http.Request) bool {
		if r.Header.Get("X-Amz-Copy-Source") != "" {
			once.Do(func() { s.Write(map[string]string{"W1/J1/outputs/b.bin": bytesOf(3, 12<<20)}) })
		}
		return false
	})
	failed := d.put("W1", "J1").wantError(t, http.StatusBadRequest, "asset_missing")
	if len(failed.Details) == 0 {
		t.Error("the error does not tell which asset")
	}
	signed, _ := d.assembled("W1", "J1")
	z := openZIP(t, d.fetch(signed, nil).body)
	for _, f := range z.File {
		r, err := f.Open()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, r); err != nil {
			t.Errorf("%s: %v", f.Name, err)
		}
	}
}

// TestAssembleWrongChecksum: the checksums of what the store copied are those of
// the package, or there is none.
func TestAssembleWrongChecksum(t *testing.T) {
	t.Parallel()
	s := newS3Store(t)
	s.Write(map[string]string{
		"W1/J1/job.json": `{"status":"succeeded","assets":[{"role":"output","path":"a.bin","crc32":"0badf00d"}]}`,
	})
	s.Write(map[string]string{"W1/J1/outputs/a.bin": bytesOf(1, 11<<20)})
	d := deploy(t, assembling(s))
	d.put("W1", "J1").wantError(t, http.StatusBadRequest, "asset_missing")
	if objects, _ := s.assemblies(t.Context()); len(objects) != 0 {
		t.Errorf("in the store: %q, want nothing", objects)
	}
}

// TestAssembleExpires: objects are deleted when the last URL for them is over, as
// are uploads that came to nothing.
func TestAssembleExpires(t *testing.T) {
	t.Parallel()
	s := newS3Store(t)
	s.Write(map[string]string{"W1/J1/outputs/a.txt": "large ones have longer URLs", "W1/J2/outputs/b.bin": bytesOf(1, 11<<20)})
	d := deploy(t, assembling(s), func(c *server.Config) { c.LinkLifetime = 3 * time.Second })
	s.Fault(func(w http.ResponseWriter, r *http.Request) bool {
		if strings.Contains(r.Header.Get("X-Amz-Copy-Source"), "/W1/J2/") {
			s3Fault(w, http.StatusBadRequest, "InvalidRequest")
			return true
		}
		return false
	})
	d.assembled("W1", "J1")
	d.do(http.MethodPut, apiPath("W1", "J2"), http.Header{"Authorization": {d.Key}, "Prefer": {"wait=0"}}).download(t)
	eventually(t, "an upload is under way", func() bool {
		_, uploads := s.assemblies(t.Context())
		return len(uploads) == 1
	})
	objects, _ := s.assemblies(t.Context())
	if len(objects) != 1 {
		t.Fatalf("in the store: %q, want one package", objects)
	}
	// The package of the second job goes, and with it what is wanted of it.
	if err := d.Stop(); err != nil {
		t.Fatal(err)
	}
	db, err := server.OpenDatabase(t.Context(), d.Config.DataDir, d.Config.Database)
	if err != nil {
		t.Fatal(err)
	}
	packages, err := db.Packages(t.Context(), catalog.PackageFilter{JobID: "J2"})
	if err != nil || len(packages) != 1 {
		t.Fatalf("%d packages, %v", len(packages), err)
	}
	if err := db.DeletePackage(t.Context(), packages[0].ID); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	s.Fault(nil)
	d.start()
	eventually(t, "everything is deleted", func() bool {
		// Servers look when they start, and then every few minutes.
		for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
			if objects, uploads := s.assemblies(t.Context()); len(objects)+len(uploads) == 0 {
				return true
			}
		}
		d.Restart()
		return false
	})
	signed, _ := d.assembled("W1", "J1")
	if got := d.fetch(signed, nil); got.StatusCode != http.StatusOK {
		t.Errorf("asked for again: status %d", got.StatusCode)
	}
}

// TestAssembleRestart stops a server in the middle. The next one goes on with the
// same upload and makes no part twice.
func TestAssembleRestart(t *testing.T) {
	t.Parallel()
	s := newS3Store(t)
	s.Write(assemblyJob())
	d := deploy(t, assembling(s), func(c *server.Config) { c.ShutdownTimeout = 100 * time.Millisecond })
	var mu sync.Mutex
	made := map[string]int{}
	release := make(chan struct{})
	s.Fault(func(_ http.ResponseWriter, r *http.Request) bool {
		part := r.URL.Query().Get("partNumber")
		if part == "" || r.Method != http.MethodPut {
			return false
		}
		if part == "4" { // an earlier server's does not go through
			select {
			case <-release:
			case <-r.Context().Done():
				return true
			}
		}
		mu.Lock()
		made[part]++
		mu.Unlock()
		return false
	})
	d.do(http.MethodPut, apiPath("W1", "J1"), http.Header{"Authorization": {d.Key}, "Prefer": {"wait=0"}}).download(t)
	eventually(t, "all parts but one are there", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return len(made) == 6
	})
	d.Restart()
	close(release)
	signed, _ := d.assembled("W1", "J1")
	if got := d.fetch(signed, nil); got.StatusCode != http.StatusOK {
		t.Fatalf("status %d", got.StatusCode)
	}
	mu.Lock()
	defer mu.Unlock()
	begun := 0
	for _, r := range s.Requests() {
		if _, ok := r.query["uploads"]; ok && r.method == http.MethodPost && strings.HasSuffix(r.key, ".zip") {
			begun++
		}
	}
	if begun != 1 {
		t.Errorf("%d uploads were begun, want 1", begun)
	}
	twice := 0
	for _, n := range made {
		if n > 1 {
			twice++ // at the stop the store may have had a part that the server did not know of
		}
	}
	if twice > 1 {
		t.Errorf("parts were made %v times", made)
	}
}

// TestAssembleFaults: faults of the store are tried again, and one that lasts is
// told.
func TestAssembleFaults(t *testing.T) {
	t.Parallel()
	s := newS3Store(t)
	s.Write(map[string]string{"W1/J1/outputs/a.bin": bytesOf(1, 11<<20)})
	d := deploy(t, assembling(s))
	var mu sync.Mutex
	failed := map[string]bool{}
	s.Fault(func(w http.ResponseWriter, r *http.Request) bool {
		kind := r.Method + r.URL.Query().Get("partNumber")
		reading := r.Method == http.MethodHead || r.Method == http.MethodGet && r.URL.Query().Get("x-id") == "GetObject"
		if !strings.Contains(r.URL.Path, ".downlink/") || reading {
			return false
		}
		mu.Lock()
		defer mu.Unlock()
		if failed[kind] {
			return false
		}
		failed[kind] = true
		s3Fault(w, http.StatusServiceUnavailable, "SlowDown")
		return true
	})
	signed, _ := d.assembled("W1", "J1")
	if got := d.fetch(signed, nil); got.StatusCode != http.StatusOK {
		t.Errorf("status %d", got.StatusCode)
	}
	if len(failed) < 4 {
		t.Errorf("only %d kinds of requests failed", len(failed))
	}
	s.Fault(func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.Path, ".downlink/") {
			return false
		}
		s3Fault(w, http.StatusForbidden, "SignatureDoesNotMatch")
		return true
	})
	if err := d.Stop(); err != nil {
		t.Fatal(err)
	}
	const want = "must be allowed to put"
	if _, err := server.New(t.Context(), d.Config); err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("without permission: New = %v, want %q", err, want)
	}
}

// TestAssembleConfiguration: what cannot work is refused at the start.
func TestAssembleConfiguration(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		config server.Config
		want   string
	}{
		"a folder": {server.Config{Bucket: "file:///tmp", Delivery: server.Assemble}, "bucket of S3 alone"},
		"a typo":   {server.Config{Bucket: "file:///tmp", Delivery: "assembel"}, "want stream or assemble"},
	} {
		c.config.DataDir = t.TempDir()
		if _, err := server.New(t.Context(), c.config); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

// TestAssembleShortLivedCredentials: no URL is said to outlive the credentials.
func TestAssembleShortLivedCredentials(t *testing.T) {
	s := newS3Store(t)
	s.Write(map[string]string{"W1/J1/outputs/a.txt": "a"})
	expires := time.Now().Add(20 * time.Minute).Truncate(time.Second)
	// The environment's own come before those of a container.
	access, secret := os.Getenv("AWS_ACCESS_KEY_ID"), os.Getenv("AWS_SECRET_ACCESS_KEY")
	provider := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(map[string]string{
			"AccessKeyId": access, "SecretAccessKey": secret, "Token": "", "Expiration": expires.UTC().Format(time.RFC3339),
		})
	}))
	defer provider.Close()
	t.Setenv("AWS_ACCESS_KEY_ID", "")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "")
	t.Setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", provider.URL)
	d := deploy(t, assembling(s))
	signed, a := d.assembled("W1", "J1")
	got, err := time.Parse(time.RFC3339, a.Header.Get("Downlink-Expires"))
	if err != nil || got.After(expires) || got.Before(expires.Add(-6*time.Minute)) { // the SDK renews them 5 minutes before
		t.Errorf("announced until %s, want %s, when the credentials end", got, expires)
	}
	u, err := url.Parse(signed)
	if err != nil {
		t.Fatal(redacted(err))
	}
	at, _ := time.Parse("20060102T150405Z", u.Query().Get("X-Amz-Date"))
	if life, _ := time.ParseDuration(u.Query().Get("X-Amz-Expires") + "s"); at.Add(life).Before(got) {
		t.Errorf("announced until %s, signed until %s", got, at.Add(life))
	}
	if got := d.fetch(signed, nil); got.StatusCode != http.StatusOK {
		t.Errorf("status %d", got.StatusCode)
	}
}

// TestAssemblePublicEndpoint: URLs have the host that consumers reach.
func TestAssemblePublicEndpoint(t *testing.T) {
	t.Parallel()
	s := newS3Store(t)
	s.Write(map[string]string{"W1/J1/outputs/a.txt": "a"})
	d := deploy(t, assembling(s), func(c *server.Config) {
		c.Bucket += "&public_endpoint=" + url.QueryEscape(s.target.String())
	})
	signed, _ := d.assembled("W1", "J1")
	if !strings.HasPrefix(signed, s.target.String()) {
		t.Error("the signed URL does not start with the public endpoint")
	}
	if got := d.fetch(signed, nil); got.StatusCode != http.StatusOK {
		t.Errorf("status %d", got.StatusCode)
	}
	if keys, _ := s.assemblies(t.Context()); !slices.ContainsFunc(keys, func(k string) bool { return strings.HasSuffix(k, "/W1_J1.zip") }) {
		t.Errorf("in the store: %q", keys)
	}
}

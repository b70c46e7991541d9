package main

import (
	"context"
	"crypto/rand"
	"fmt"
	mathrand "math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/downlink-go/downlink/gen/apitypes"
)

// TestKillAssembly kills a real server at random points of putting a package
// together, again and again. Each goes on where the last one was: in the end
// there is the one package with the right bytes, no upload, and no part was made
// more often than there were servers that could have been making it.
func TestKillAssembly(t *testing.T) {
	const kills = 12
	content := map[string][]byte{}
	for i := range 6 {
		data := make([]byte, 11<<20)
		_, _ = rand.Read(data)
		content[fmt.Sprintf("J0/outputs/%d.bin", i)] = data
	}
	bucket, err := url.Parse(fillS3(t, content))
	if err != nil {
		t.Fatal(err)
	}
	q := bucket.Query()
	target, err := url.Parse(q.Get("endpoint"))
	if err != nil {
		t.Fatal(err)
	}
	var begun, parts atomic.Int64
	proxy := httptest.NewServer(&httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.URL.Scheme, r.Out.URL.Host, r.Out.Host = "http", target.Host, r.In.Host // the host is signed
			switch {
			case r.In.URL.Query().Has("uploads") && r.In.Method == http.MethodPost && strings.Contains(r.In.URL.Path, "/packages/"):
				begun.Add(1)
			case r.In.URL.Query().Has("partNumber"):
				parts.Add(1)
				time.Sleep(mathrand.N(100 * time.Millisecond)) // makes it last
			}
		},
		ErrorHandler: func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) },
	})
	defer proxy.Close()
	q.Set("endpoint", proxy.URL)
	q.Set("public_endpoint", target.String())
	bucket.RawQuery = q.Encode()

	state := []string{"--data-dir", filepath.Join(t.TempDir(), "state")}
	mustRun(t, append([]string{"org", "create", "acme"}, state...)...)
	mustRun(t, append([]string{"grant", "acme", "W1"}, state...)...)
	key := strings.TrimSpace(mustRun(t, append([]string{"key", "create", "--org", "acme"}, state...)...))
	args := append([]string{"--bucket", bucket.String(), "--delivery", "assemble"}, state...)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	interrupted := 0
	for range kills {
		p := startServer(t, args...)
		d, ok := p.put(ctx, key, "J0", "wait=0")
		if !ok || d.Status == apitypes.DownloadStatusReady {
			p.kill()
			break
		}
		time.Sleep(mathrand.N(150 * time.Millisecond)) // the random point
		p.kill()
		interrupted++
	}
	if interrupted < 3 {
		t.Fatalf("only %d servers were killed in the middle", interrupted)
	}
	p := startServer(t, args...)
	d, ok := p.put(ctx, key, "J0", "wait=60")
	if !ok || d.Status != apitypes.DownloadStatusReady {
		t.Fatalf("answered %t, status %s", ok, d.Status)
	}
	checkPackage(t, ctx, d.SignedURL, "J0", content)
	// Seven uploaded and six copied parts; a killed server may have begun eight.
	if n := parts.Load(); n > int64(13+8*interrupted) {
		t.Errorf("%d parts were made with %d servers killed", n, interrupted)
	}
	// There may be some of servers that died before they had noted it.
	if n := begun.Load(); n > 3 {
		t.Errorf("%d uploads were begun with %d servers killed", n, interrupted)
	}

	client := s3.New(s3.Options{
		BaseEndpoint: aws.String(target.String()), Region: q.Get("region"), UsePathStyle: true, Credentials: environment(),
	})
	folder := aws.String(q.Get("prefix") + "/.downlink/")
	list, err := client.ListObjectsV2(ctx, &s3.ListObjectsV2Input{Bucket: &bucket.Host, Prefix: folder})
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range list.Contents {
		defer func() {
			if _, err := client.DeleteObject(ctx, &s3.DeleteObjectInput{Bucket: &bucket.Host, Key: o.Key}); err != nil {
				t.Error(err)
			}
		}()
	}
	uploads, err := client.ListMultipartUploads(ctx, &s3.ListMultipartUploadsInput{Bucket: &bucket.Host, Prefix: folder})
	if err != nil {
		t.Fatal(err)
	}
	if packages := len(list.Contents); packages != 1 || len(uploads.Uploads) != 0 {
		t.Errorf("%d packages and %d uploads in the store, want 1 and 0", packages, len(uploads.Uploads))
	}
	t.Logf("%d servers killed, %d uploads begun, %d parts made of 13", interrupted, begun.Load(), parts.Load())
}

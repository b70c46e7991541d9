package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"golang.org/x/sync/errgroup"

	"github.com/downlink-go/downlink/gen/apitypes"
	"github.com/downlink-go/downlink/server/internal/catalog/catalogtest"
)

// TestReplicas runs three real servers on one database, one bucket and the same
// signing keys. Calls and ranges of downloads go to any of them at random, as
// from a load balancer, while they are killed and started again. Every download
// is right, and every server has the same bytes under the same ETag.
func TestReplicas(t *testing.T) {
	for name, fill := range map[string]func(*testing.T, map[string][]byte) string{"file": fillFolder, "s3": fillS3} {
		t.Run(name, func(t *testing.T) { testReplicas(t, fill) })
	}
}

func testReplicas(t *testing.T, fill func(*testing.T, map[string][]byte) string) {
	const (
		servers   = 3
		jobs      = 3
		clients   = 4
		downloads = 12 // of each client
	)
	content := map[string][]byte{}
	for j := range jobs {
		for i := range 6 {
			data := make([]byte, 1+i*i*(20<<10))
			_, _ = rand.Read(data)
			content[fmt.Sprintf("J%d/outputs/%d.bin", j, i)] = data
		}
	}
	database := catalogtest.Postgres(t)
	bucket := fill(t, content)
	admin := []string{"--data-dir", t.TempDir(), "--database", database}
	mustRun(t, append([]string{"org", "create", "acme"}, admin...)...)
	mustRun(t, append([]string{"grant", "acme", "W1"}, admin...)...)
	key := strings.TrimSpace(mustRun(t, append([]string{"key", "create", "--org", "acme"}, admin...)...))
	// What becomes of a package whose server dies while it reads the assets is
	// TestKill's; here nobody has to wait for a lease to end.
	mustRun(t, append([]string{"warm", "--bucket", bucket}, admin...)...)
	secret := make([]byte, 32)
	_, _ = rand.Read(secret)
	t.Setenv(signingKeysVariable, base64.StdEncoding.EncodeToString(secret))

	b := &balancer{key: key}
	start := func(i int) {
		b.servers[i].Store(startServer(t, "--bucket", bucket, "--data-dir", t.TempDir(), "--database", database))
	}
	for i := range servers {
		start(i)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()

	var (
		packages sync.Map // the first download of each job
		g        errgroup.Group
		done     = make(chan error, 1)
	)
	for range clients {
		g.Go(func() error {
			for range downloads {
				job := fmt.Sprintf("J%d", mathrand.IntN(jobs))
				got, err := b.download(ctx, job)
				if err != nil {
					return fmt.Errorf("%s: %w", job, err)
				}
				first, _ := packages.LoadOrStore(job, got)
				if f := first.(fetched); f.id != got.id || f.etag != got.etag || !bytes.Equal(f.data, got.data) {
					return fmt.Errorf("%s: the package %s with ETag %s is not the first one, %s with %s", job, got.id, got.etag, f.id, f.etag)
				}
			}
			return nil
		})
	}
	go func() { done <- g.Wait() }()
	for k := 0; ; k++ {
		select {
		case err := <-done:
			if err != nil {
				t.Fatal(err)
			}
		case <-time.After(mathrand.N(300 * time.Millisecond)): // the random point
			i := k % servers
			b.servers[i].Load().kill()
			start(i)
			continue
		}
		break
	}

	for i := range servers {
		p := b.servers[i].Load()
		for j := range jobs {
			job := fmt.Sprintf("J%d", j)
			d, ok := p.put(ctx, key, job, "wait=60")
			if !ok || d.Status != apitypes.DownloadStatusReady {
				t.Fatalf("server %d: %s: status %q", i, job, d.Status)
			}
			checkPackage(t, ctx, d.SignedURL, job, content)
			first, ok := packages.Load(job)
			if !ok {
				continue
			}
			response, data, err := get(ctx, d.SignedURL, nil)
			if err != nil {
				t.Fatalf("server %d: %s: %v", i, job, err)
			}
			if f := first.(fetched); f.id != d.ID || f.etag != response.Header.Get("ETag") || !bytes.Equal(f.data, data) {
				t.Errorf("server %d has another package of %s", i, job)
			}
		}
	}
}

// balancer spreads requests over the servers that are there.
type balancer struct {
	key     string
	servers [3]atomic.Pointer[process]
}

func (b *balancer) any() *process { return b.servers[mathrand.IntN(len(b.servers))].Load() }

// fetched is a package as a client got it.
type fetched struct {
	id, etag string
	data     []byte
}

// download gets a job's package in ranges of random sizes, each from any server.
// What fails because a server went away is tried again.
func (b *balancer) download(ctx context.Context, job string) (fetched, error) {
	var answer apitypes.Download
	for answer.Status != apitypes.DownloadStatusReady {
		if err := ctx.Err(); err != nil {
			return fetched{}, err
		}
		answer, _ = b.any().put(ctx, b.key, job, "wait=5")
	}
	u, err := url.Parse(answer.SignedURL)
	if err != nil {
		return fetched{}, errors.New("the signed URL is not one")
	}
	d := fetched{id: answer.ID}
	for size := int64(1); int64(len(d.data)) < size; {
		if err := ctx.Err(); err != nil {
			return fetched{}, err
		}
		from := len(d.data)
		header := http.Header{"Range": {fmt.Sprintf("bytes=%d-%d", from, from+1+mathrand.IntN(1<<20))}}
		if d.etag != "" {
			header.Set("If-Match", d.etag)
		}
		response, data, err := get(ctx, b.any().url+u.Path, header)
		if err != nil {
			continue // the server went away; what came may be short
		}
		if response.StatusCode != http.StatusPartialContent {
			return fetched{}, fmt.Errorf("status %d: %s", response.StatusCode, data)
		}
		var first, last int
		if _, err := fmt.Sscanf(response.Header.Get("Content-Range"), "bytes %d-%d/%d", &first, &last, &size); err != nil || first != from || last-first+1 != len(data) {
			return fetched{}, fmt.Errorf("Content-Range %q for %d bytes from %d on", response.Header.Get("Content-Range"), len(data), from)
		}
		d.etag = response.Header.Get("ETag")
		d.data = append(d.data, data...)
	}
	return d, nil
}

// get reads a URL. An error is one of the connection, and tells nothing of the
// URL.
func get(ctx context.Context, rawURL string, header http.Header) (*http.Response, []byte, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, rawURL, nil)
	if err != nil {
		return nil, nil, errors.New("the URL is not one")
	}
	if header != nil {
		r.Header = header
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	response, err := client.Do(r)
	if err != nil {
		return nil, nil, errors.New("no answer")
	}
	defer response.Body.Close()
	data, err := io.ReadAll(response.Body)
	return response, data, err
}

// fillFolder writes the content of jobs of W1 to a folder.
func fillFolder(t *testing.T, content map[string][]byte) string {
	dir := t.TempDir()
	for name, data := range content {
		path := filepath.Join(dir, "W1", filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return "file://" + filepath.ToSlash(dir)
}

// fillS3 writes it to a prefix of the bucket that DOWNLINK_TEST_S3 names.
func fillS3(t *testing.T, content map[string][]byte) string {
	raw := os.Getenv("DOWNLINK_TEST_S3")
	if raw == "" {
		if os.Getenv("DOWNLINK_CI") != "" {
			t.Fatal("DOWNLINK_TEST_S3 is not set, and DOWNLINK_CI wants S3")
		}
		t.Skip("DOWNLINK_TEST_S3 is not set: S3 is left out (make services starts a server)")
	}
	u, err := url.Parse(raw)
	if err != nil {
		t.Fatal("DOWNLINK_TEST_S3 is not a URL")
	}
	q := u.Query()
	client := s3.New(s3.Options{
		BaseEndpoint: aws.String(q.Get("endpoint")),
		Region:       q.Get("region"),
		UsePathStyle: true,
		Credentials:  environment(),
	})
	prefix := fmt.Sprintf("replicas-%016x", mathrand.Uint64())
	for name, data := range content {
		name := aws.String(prefix + "/W1/" + name)
		if _, err := client.PutObject(t.Context(), &s3.PutObjectInput{
			Bucket: &u.Host, Key: name, Body: bytes.NewReader(data), ChecksumAlgorithm: types.ChecksumAlgorithmCrc32,
		}); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if _, err := client.DeleteObject(context.Background(), &s3.DeleteObjectInput{Bucket: &u.Host, Key: name}); err != nil {
				t.Error(err)
			}
		})
	}
	q.Set("prefix", prefix)
	u.RawQuery = q.Encode()
	return u.String()
}

// environment are the credentials in the environment.
func environment() aws.CredentialsProvider {
	return aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
		return aws.Credentials{AccessKeyID: os.Getenv("AWS_ACCESS_KEY_ID"), SecretAccessKey: os.Getenv("AWS_SECRET_ACCESS_KEY")}, nil
	})
}

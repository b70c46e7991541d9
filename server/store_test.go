package server_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"github.com/downlink-go/downlink/gen/apitypes"
	"github.com/downlink-go/downlink/server"
)

// store is a bucket of a test's own, of one kind.
type store interface {
	// URL is what a server is configured with.
	URL() string
	// Write puts objects, by key.
	Write(files map[string]string)
	Remove(key string)
}

// eachStore runs the test over every kind of bucket. S3 is there if the
// environment variable DOWNLINK_TEST_S3 holds the URL of a bucket, and must be if
// DOWNLINK_CI is set.
func eachStore(t *testing.T, test func(t *testing.T, s store)) {
	t.Run("file", func(t *testing.T) {
		t.Parallel()
		test(t, &folder{t: t, dir: t.TempDir()})
	})
	t.Run("s3", func(t *testing.T) {
		t.Parallel()
		test(t, newS3Store(t))
	})
}

// on makes a deployment use the store.
func on(s store) func(*server.Config) {
	return func(c *server.Config) { c.Bucket = s.URL() }
}

// folder is a store of files.
type folder struct {
	t   testing.TB
	dir string
}

func (f *folder) URL() string { return "file://" + filepath.ToSlash(f.dir) }

func (f *folder) Write(files map[string]string) {
	f.t.Helper()
	(&deployment{t: f.t, Bucket: f.dir}).Write(files)
}

func (f *folder) Remove(key string) {
	f.t.Helper()
	if err := os.Remove(filepath.Join(f.dir, filepath.FromSlash(key))); err != nil {
		f.t.Fatal(err)
	}
}

// s3Store is a prefix of the bucket on the S3 server. Between that and the
// deployment is a proxy, which notes what is asked for and can have faults.
type s3Store struct {
	t       testing.TB
	client  *s3.Client
	bucket  string
	prefix  string
	server  *url.URL // of the proxy
	target  *url.URL
	handler http.Handler // of the proxy: passes requests on

	mu       sync.Mutex
	requests []s3Request
	fault    func(w http.ResponseWriter, r *http.Request) bool
}

// s3Request is what a server asked for.
type s3Request struct {
	method string
	key    string // without the prefix
	query  url.Values
	header http.Header
}

func newS3Store(tb testing.TB) *s3Store {
	tb.Helper()
	raw := os.Getenv("DOWNLINK_TEST_S3")
	if raw == "" {
		if os.Getenv("DOWNLINK_CI") != "" {
			tb.Fatal("DOWNLINK_TEST_S3 is not set, and DOWNLINK_CI wants S3")
		}
		tb.Skip("DOWNLINK_TEST_S3 is not set: S3 is left out (make services starts a server)")
	}
	u, err := url.Parse(raw)
	if err != nil {
		tb.Fatal("DOWNLINK_TEST_S3 is not a URL")
	}
	q := u.Query()
	target, err := url.Parse(q.Get("endpoint"))
	if err != nil {
		tb.Fatal("the endpoint in DOWNLINK_TEST_S3 is not a URL")
	}
	s := &s3Store{t: tb, bucket: u.Host, prefix: fmt.Sprintf("test-%016x/", rand.Uint64()), target: target}
	s.client = s3.New(s3.Options{
		BaseEndpoint: aws.String(target.String()),
		Region:       q.Get("region"),
		UsePathStyle: true,
		Credentials: aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
			return aws.Credentials{AccessKeyID: os.Getenv("AWS_ACCESS_KEY_ID"), SecretAccessKey: os.Getenv("AWS_SECRET_ACCESS_KEY")}, nil
		}),
	})
	s.handler = &httputil.ReverseProxy{
		// The host is signed: it stays that of the proxy.
		Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.URL.Scheme, r.Out.URL.Host, r.Out.Host = "http", target.Host, r.In.Host
		},
		Transport:     &http.Transport{MaxIdleConnsPerHost: 64, DisableCompression: true},
		FlushInterval: -1,
		ErrorHandler:  func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) },
	}
	proxy := httptest.NewServer(s)
	tb.Cleanup(proxy.Close)
	if s.server, err = url.Parse(proxy.URL); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(s.clear)
	return s
}

// clear removes all objects.
func (s *s3Store) clear() {
	ctx := context.Background() // the test's is over
	p := s3.NewListObjectsV2Paginator(s.client, &s3.ListObjectsV2Input{Bucket: &s.bucket, Prefix: &s.prefix})
	for p.HasMorePages() {
		page, err := p.NextPage(ctx)
		if err != nil {
			s.t.Error(err)
			return
		}
		for _, o := range page.Contents {
			if _, err := s.client.DeleteObject(ctx, &s3.DeleteObjectInput{Bucket: &s.bucket, Key: o.Key}); err != nil {
				s.t.Error(err)
			}
		}
	}
}

func (s *s3Store) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	key := strings.TrimPrefix(strings.TrimPrefix(r.URL.Path, "/"+s.bucket), "/")
	s.requests = append(s.requests, s3Request{r.Method, strings.TrimPrefix(key, s.prefix), r.URL.Query(), r.Header.Clone()})
	fault := s.fault
	s.mu.Unlock()
	if fault == nil || !fault(w, r) {
		s.handler.ServeHTTP(w, r)
	}
}

// Fault sets what answers requests in place of the S3 server, where it returns
// true.
func (s *s3Store) Fault(f func(w http.ResponseWriter, r *http.Request) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fault = f
}

// Requests returns the requests since the last call.
func (s *s3Store) Requests() []s3Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	requests := s.requests
	s.requests = nil
	return requests
}

func (s *s3Store) URL() string {
	q := url.Values{
		"region": {"us-east-1"}, "endpoint": {s.server.String()}, "use_path_style": {"true"}, "prefix": {s.prefix},
	}
	return "s3://" + s.bucket + "?" + q.Encode()
}

func (s *s3Store) Write(files map[string]string) {
	s.t.Helper()
	for key, content := range files {
		s.put(key, content, func(*s3.PutObjectInput) {})
	}
}

func (s *s3Store) put(key, content string, change func(*s3.PutObjectInput)) {
	s.t.Helper()
	in := &s3.PutObjectInput{
		Bucket: &s.bucket, Key: aws.String(s.prefix + key), Body: strings.NewReader(content),
		ChecksumAlgorithm: types.ChecksumAlgorithmCrc32,
	}
	change(in)
	if _, err := s.client.PutObject(s.t.Context(), in); err != nil {
		s.t.Fatal(err)
	}
}

func (s *s3Store) Remove(key string) {
	s.t.Helper()
	if _, err := s.client.DeleteObject(s.t.Context(), &s3.DeleteObjectInput{Bucket: &s.bucket, Key: aws.String(s.prefix + key)}); err != nil {
		s.t.Fatal(err)
	}
}

func TestStoreFolders(t *testing.T) {
	t.Parallel()
	eachStore(t, func(t *testing.T, s store) {
		s.Write(map[string]string{
			"W1/J1/inputs/a.tif":         "a",
			"W1/J1/inputs/.hidden":       "h",
			"W1/J1/inputs/a b+c%2F&=.x":  "marks",
			"W1/J1/outputs/Übersicht":    "not ASCII",
			"W1/J1/outputs/inputs/x":     "x",
			"W1/J1/outputs/__0x2f__.txt": "looks escaped",
			"W1/J1/outputs/job.json":     "not the job's",
			"W1/J1/logs/l.txt":           "no asset",
			"W1/J10/inputs/other":        "of another job",
		})
		d := deploy(t, on(s))
		want := []string{
			"inputs/.hidden", "inputs/a b+c%2F&=.x", "inputs/a.tif",
			"outputs/__0x2f__.txt", "outputs/inputs/x", "outputs/job.json", "outputs/Übersicht",
		}
		if got := d.names("W1", "J1"); !slices.Equal(got, want) {
			t.Errorf("got  %q\nwant %q", got, want)
		}
		d.put("W1", "J2").wantError(t, 403, "permission_denied")
	})
}

func TestStoreJobFile(t *testing.T) {
	t.Parallel()
	eachStore(t, func(t *testing.T, s store) {
		s.Write(map[string]string{
			"W1/J1/inputs/a":     "alpha",
			"W1/J1/outputs/b":    "beta",
			"shared/dem.tif":     "elevation",
			"W1/J1/outputs/tmp~": "not declared",
		})
		d := deploy(t, on(s))
		for _, tt := range jobFiles {
			s.Write(map[string]string{"W1/J1/job.json": tt.job})
			if tt.status == 0 {
				if got := d.names("W1", "J1"); !slices.Equal(got, tt.names) {
					t.Errorf("%s: got %q, want %q", tt.name, got, tt.names)
				}
				continue
			}
			e := d.put("W1", "J1").wantError(t, tt.status, tt.code)
			if tt.asset != "" && (len(e.Details) != 1 || e.Details[0].Asset != tt.asset) {
				t.Errorf("%s: details %v, want one for %s", tt.name, e.Details, tt.asset)
			}
		}
	})
}

// TestStorePackage: the package has the assets, and any range of it is what is
// there in the whole.
func TestStorePackage(t *testing.T) {
	t.Parallel()
	eachStore(t, func(t *testing.T, s store) {
		job := mixedJob(t)
		for i := range 200 {
			job[fmt.Sprintf("W1/J1/outputs/many/%03d", i)] = strings.Repeat(string(rune('a'+i%26)), i*i)
		}
		s.Write(job)
		d := deploy(t, on(s))
		path, _ := d.ready("W1", "J1")
		whole := d.get(path)
		if whole.StatusCode != http.StatusOK || int64(len(whole.body)) != whole.ContentLength {
			t.Fatalf("status %d, %d bytes of %d", whole.StatusCode, len(whole.body), whole.ContentLength)
		}
		for _, f := range openZIP(t, whole.body).File {
			r, err := f.Open()
			if err != nil {
				t.Fatal(err)
			}
			content, err := io.ReadAll(r) // checks the CRC-32
			if want, ok := job["W1/J1/"+f.Name]; err != nil || ok && string(content) != want {
				t.Errorf("%s: not the asset's content: %v", f.Name, err)
			}
			delete(job, "W1/J1/"+f.Name)
		}
		if len(job) > 0 {
			t.Errorf("left out: %d assets", len(job))
		}
		for range 20 {
			from := rand.IntN(len(whole.body))
			to := min(from+rand.IntN(1<<uint(rand.IntN(23))), len(whole.body)-1)
			part := d.get(path, "Range", fmt.Sprintf("bytes=%d-%d", from, to))
			if part.StatusCode != http.StatusPartialContent || !bytes.Equal(part.body, whole.body[from:to+1]) {
				t.Errorf("bytes %d-%d: status %d, %d bytes that differ", from, to, part.StatusCode, len(part.body))
			}
		}
		several := d.get(path, "Range", "bytes=0-9,100000-100009,-10")
		if several.StatusCode != http.StatusPartialContent || !bytes.Contains(several.body, whole.body[100000:100010]) {
			t.Errorf("several ranges: status %d", several.StatusCode)
		}
	})
}

// TestStoreAssetChanged: what is not as planned any more fails before its first
// byte, and the next call makes another package.
func TestStoreAssetChanged(t *testing.T) {
	t.Parallel()
	eachStore(t, func(t *testing.T, s store) {
		for name, change := range map[string]func(){
			"other content": func() { s.Write(map[string]string{"W1/J1/inputs/a": "other"}) },
			"longer":        func() { s.Write(map[string]string{"W1/J1/inputs/a": "a longer one"}) },
			"gone":          func() { s.Remove("W1/J1/inputs/a") },
		} {
			s.Write(map[string]string{"W1/J1/inputs/a": "alpha", "W1/J1/inputs/b": "beta", "W1/J1/outputs/c": "gamma"})
			d := deploy(t, on(s))
			path, first := d.ready("W1", "J1")
			change()
			d.get(path).wantError(t, http.StatusGone, "package_outdated")
			if _, second := d.ready("W1", "J1"); second.ID == first.ID {
				t.Errorf("%s: the new package has the id of the old one", name)
			}
		}
	})
}

// TestStoreAssetChangesMeanwhile: a download that is on its way when an asset
// changes is cut.
func TestStoreAssetChangesMeanwhile(t *testing.T) {
	t.Parallel()
	eachStore(t, func(t *testing.T, s store) {
		job := map[string]string{}
		for i := range 4 { // more than all buffers hold
			job[fmt.Sprintf("W1/J1/outputs/%d", i)] = strings.Repeat(string(rune('0'+i)), 24<<20)
		}
		s.Write(job)
		d := deploy(t, on(s))
		path, _ := d.ready("W1", "J1")
		for name, change := range map[string]func(){
			"changed": func() { s.Write(map[string]string{"W1/J1/outputs/3": strings.Repeat("x", 24<<20)}) },
			"gone":    func() { s.Remove("W1/J1/outputs/3") },
		} {
			r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, d.URL+path, nil)
			if err != nil {
				t.Fatal(err)
			}
			response, err := d.Client.Do(r)
			if err != nil {
				t.Fatal(redacted(err))
			}
			if _, err := io.CopyN(io.Discard, response.Body, 1<<20); err != nil {
				t.Fatal(err)
			}
			change()
			_, err = io.Copy(io.Discard, response.Body)
			response.Body.Close()
			if err == nil {
				t.Errorf("%s: the download ended as if all were well", name)
			}
			if name == "changed" {
				path, _ = d.ready("W1", "J1")
			}
		}
	})
}

// reads counts the requests for the content of assets.
func reads(requests []s3Request) int {
	n := 0
	for _, r := range requests {
		if r.method == http.MethodGet && r.query.Get("x-id") == "GetObject" && !strings.HasSuffix(r.key, "/job.json") {
			n++
		}
	}
	return n
}

// TestS3ChecksumsForNothing: what the store knows is not read, also of objects
// that were uploaded in parts.
func TestS3ChecksumsForNothing(t *testing.T) {
	t.Parallel()
	s := newS3Store(t)
	s.Write(map[string]string{"W1/J1/inputs/small": "content", "W1/J1/inputs/empty": ""})
	parts := []string{strings.Repeat("0123456789abcdef", 5<<20/16), "the last part"}
	s.putParts("W1/J1/outputs/parts", types.ChecksumTypeComposite, parts...)
	s.putParts("W1/J1/outputs/whole", types.ChecksumTypeFullObject, parts...)
	s.Fault(s.attributes(parts...))
	d := deploy(t, on(s), func(c *server.Config) { c.ReadyWait = -1 })
	path, _ := d.ready("W1", "J1")
	if n := reads(s.Requests()); n != 0 {
		t.Errorf("%d reads of assets to plan, want none", n)
	}
	for _, f := range openZIP(t, d.get(path).body).File {
		r, err := f.Open()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, r); err != nil { // checks the CRC-32
			t.Errorf("%s: %v", f.Name, err)
		}
	}
}

// attributes answers GetObjectAttributes as S3 does, a part a page. versitygw
// v1.8.0 does not tell of the parts of an object.
func (s *s3Store) attributes(parts ...string) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, r *http.Request) bool {
		if !r.URL.Query().Has("attributes") {
			return false
		}
		head, err := s.client.HeadObject(r.Context(), &s3.HeadObjectInput{
			Bucket: &s.bucket, Key: aws.String(strings.TrimPrefix(r.URL.Path, "/"+s.bucket+"/")),
		})
		if err != nil {
			s.t.Error(err)
			return false
		}
		n, _ := strconv.Atoi(r.Header.Get("x-amz-part-number-marker"))
		crc := binary.BigEndian.AppendUint32(nil, crc32.ChecksumIEEE([]byte(parts[n])))
		fmt.Fprintf(w, `<?xml version="1.0" encoding="UTF-8"?>
<GetObjectAttributesResponse xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><ETag>%s</ETag><ObjectParts>
<PartsCount>%d</PartsCount><PartNumberMarker>%d</PartNumberMarker><NextPartNumberMarker>%d</NextPartNumberMarker>
<MaxParts>1</MaxParts><IsTruncated>%t</IsTruncated>
<Part><PartNumber>%d</PartNumber><Size>%d</Size><ChecksumCRC32>%s</ChecksumCRC32></Part></ObjectParts></GetObjectAttributesResponse>`,
			strings.Trim(*head.ETag, `"`), len(parts), n, n+1, n+1 < len(parts), n+1, len(parts[n]), base64.StdEncoding.EncodeToString(crc))
		return true
	}
}

// TestS3DistrustsParts: parts that do not make up the object are not believed.
func TestS3DistrustsParts(t *testing.T) {
	t.Parallel()
	s := newS3Store(t)
	parts := []string{strings.Repeat("0123456789abcdef", 5<<20/16), "the last part"}
	for name, told := range map[string]func(http.ResponseWriter, *http.Request) bool{
		"another part": s.attributes(parts[0], "the best part"),
		"too few":      s.attributes(parts[0]),
		"denied": func(w http.ResponseWriter, r *http.Request) bool {
			if r.URL.Query().Has("attributes") {
				s3Fault(w, http.StatusForbidden, "AccessDenied")
			}
			return r.URL.Query().Has("attributes")
		},
	} {
		s.putParts("W1/J1/outputs/parts", types.ChecksumTypeComposite, parts...)
		s.Fault(told)
		d := deploy(t, on(s))
		path, _ := d.ready("W1", "J1")
		if n := reads(s.Requests()); n != 1 {
			t.Errorf("%s: %d reads, want one", name, n)
		}
		r, err := openZIP(t, d.get(path).body).Open("outputs/parts")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, r); err != nil { // checks the CRC-32
			t.Errorf("%s: %v", name, err)
		}
		s.Requests()
	}
}

// putParts uploads an object in parts with CRC-32s.
func (s *s3Store) putParts(key string, kind types.ChecksumType, parts ...string) {
	s.t.Helper()
	ctx, name := s.t.Context(), aws.String(s.prefix+key)
	upload, err := s.client.CreateMultipartUpload(ctx, &s3.CreateMultipartUploadInput{
		Bucket: &s.bucket, Key: name, ChecksumAlgorithm: types.ChecksumAlgorithmCrc32, ChecksumType: kind,
	})
	if err != nil {
		s.t.Fatal(err)
	}
	var done []types.CompletedPart
	for i, part := range parts {
		number := aws.Int32(int32(i + 1))
		out, err := s.client.UploadPart(ctx, &s3.UploadPartInput{
			Bucket: &s.bucket, Key: name, UploadId: upload.UploadId, PartNumber: number,
			Body: strings.NewReader(part), ChecksumAlgorithm: types.ChecksumAlgorithmCrc32,
		})
		if err != nil {
			s.t.Fatal(err)
		}
		done = append(done, types.CompletedPart{ETag: out.ETag, PartNumber: number, ChecksumCRC32: out.ChecksumCRC32})
	}
	if _, err := s.client.CompleteMultipartUpload(ctx, &s3.CompleteMultipartUploadInput{
		Bucket: &s.bucket, Key: name, UploadId: upload.UploadId,
		MultipartUpload: &types.CompletedMultipartUpload{Parts: done},
	}); err != nil {
		s.t.Fatal(err)
	}
}

// TestS3WithoutChecksums: objects without a CRC-32 in the store are read once.
func TestS3WithoutChecksums(t *testing.T) {
	t.Parallel()
	s := newS3Store(t)
	for i := range 3 {
		s.put(fmt.Sprintf("W1/J1/inputs/%d", i), "content", func(in *s3.PutObjectInput) { in.ChecksumAlgorithm = types.ChecksumAlgorithmSha256 })
	}
	d := deploy(t, on(s))
	d.ready("W1", "J1")
	if n := reads(s.Requests()); n != 3 {
		t.Errorf("%d reads of assets, want 3", n)
	}
	d.ready("W1", "J1")
	if n := reads(s.Requests()); n != 0 {
		t.Errorf("%d reads of assets the second time, want none", n)
	}
}

// TestS3KnowsNoChecksums: a store that knows no checksums, and says so when it is
// asked, is one to read from.
func TestS3KnowsNoChecksums(t *testing.T) {
	t.Parallel()
	s := newS3Store(t)
	s.Write(map[string]string{"W1/J1/inputs/a": "alpha", "W1/J1/outputs/b": "beta"})
	s.Fault(func(w http.ResponseWriter, r *http.Request) bool {
		asked := r.Header.Get("x-amz-checksum-mode") != ""
		if asked {
			s3Fault(w, http.StatusNotImplemented, "NotImplemented")
		}
		return asked
	})
	d := deploy(t, on(s))
	d.ready("W1", "J1")
	if n := reads(s.Requests()); n != 2 {
		t.Errorf("%d reads of assets, want 2", n)
	}
}

// TestS3ManyDeclared: many assets that job.json lists are found by listing their
// folder, and what is elsewhere, missing or otherwise than declared by asking.
func TestS3ManyDeclared(t *testing.T) {
	t.Parallel()
	s := newS3Store(t)
	const many = 150
	var declared []string
	files := map[string]string{"shared/dem.tif": "x", "W1/J1/outputs/not-declared": "y", "W1/J1/inputs/few": "x"}
	declare := func(role, member string) {
		declared = append(declared, fmt.Sprintf(`{"role":%q,%s,"crc32":"%08x"}`, role, member, crc32.ChecksumIEEE([]byte("x"))))
	}
	for i := range many {
		name := fmt.Sprintf("%03d", i)
		files["W1/J1/outputs/"+name] = "x"
		declare("output", `"size":1,"path":"`+name+`"`)
	}
	declare("input", `"path":"few"`)
	declare("input", `"path":"dem.tif","key":"shared/dem.tif"`)
	declare("input", `"path":"again","key":"W1/J1/outputs/007"`)
	write := func() {
		files["W1/J1/job.json"] = `{"status":"succeeded","assets":[` + strings.Join(declared, ",") + `]}`
		s.Write(files)
		s.Requests()
	}
	write()
	d := deploy(t, on(s))
	if got := d.names("W1", "J1"); len(got) != many+3 {
		t.Errorf("%d assets, want %d", len(got), many+3)
	}
	heads, lists := 0, 0
	for _, r := range s.Requests() {
		switch {
		case r.method == http.MethodHead:
			heads++
		case strings.HasSuffix(r.query.Get("prefix"), "/W1/J1/outputs/"):
			lists++
		}
	}
	if heads != 2 || lists != 1 {
		t.Errorf("%d requests for one asset, want 2; %d listings, want 1", heads, lists)
	}

	declare("output", `"path":"missing"`)
	declare("output", `"path":"large","size":100`)
	files["W1/J1/outputs/large"] = "x"
	write()
	e := d.put("W1", "J1").wantError(t, http.StatusBadRequest, "asset_missing")
	if len(e.Details) != 2 || e.Details[0].Asset != "outputs/large" || e.Details[1].Asset != "outputs/missing" {
		t.Errorf("details %v, want the large one and the missing one", e.Details)
	}
}

// TestS3JobFileDenied: a job whose job.json may not be read is not taken for one
// that has none, which would be a job that is over.
func TestS3JobFileDenied(t *testing.T) {
	t.Parallel()
	for code, status := range map[string]int{"AccessDenied": http.StatusForbidden, "InvalidObjectState": http.StatusForbidden} {
		s := newS3Store(t)
		s.Write(map[string]string{"W1/J1/job.json": `{"status":"running"}`, "W1/J1/outputs/a": "the first of many"})
		s.Fault(func(w http.ResponseWriter, r *http.Request) bool {
			denied := strings.HasSuffix(r.URL.Path, "/job.json")
			if denied {
				s3Fault(w, status, code)
			}
			return denied
		})
		d := deploy(t, on(s))
		d.put("W1", "J1").wantError(t, http.StatusServiceUnavailable, "unavailable")
	}
}

// TestS3AssetDenied: what may not be read for a while has not changed.
func TestS3AssetDenied(t *testing.T) {
	t.Parallel()
	s := newS3Store(t)
	s.Write(smallJob)
	d := deploy(t, on(s))
	path, _ := d.ready("W1", "J1")
	s.Fault(func(w http.ResponseWriter, _ *http.Request) bool {
		s3Fault(w, http.StatusForbidden, "AccessDenied")
		return true
	})
	d.get(path).wantError(t, http.StatusServiceUnavailable, "unavailable")
}

// TestS3PinnedReads: every read is conditional on the version that was planned.
func TestS3PinnedReads(t *testing.T) {
	t.Parallel()
	s := newS3Store(t)
	s.Write(mixedJob(t))
	d := deploy(t, on(s))
	path, _ := d.ready("W1", "J1")
	s.Requests()
	d.get(path)
	requests := s.Requests()
	if n := reads(requests); n != 7 { // the empty one needs none
		t.Errorf("%d reads, want one for each of 7 assets", n)
	}
	for _, r := range requests {
		if !strings.HasPrefix(r.header.Get("If-Match"), `"`) || r.header.Get("Range") == "" {
			t.Errorf("%s %s with If-Match %q, Range %q", r.method, r.key, r.header.Get("If-Match"), r.header.Get("Range"))
		}
	}
}

// TestS3ReadsAhead: small assets are read many at once, and no more than the
// range that was asked for.
func TestS3ReadsAhead(t *testing.T) {
	t.Parallel()
	s := newS3Store(t)
	job := map[string]string{}
	for i := range 60 {
		job[fmt.Sprintf("W1/J1/outputs/%02d", i)] = strings.Repeat("a", 1000)
	}
	s.Write(job)
	d := deploy(t, on(s))
	path, _ := d.ready("W1", "J1")
	s.Requests()
	if a := d.get(path, "Range", "bytes=-60000"); a.StatusCode != http.StatusPartialContent {
		t.Errorf("status %d", a.StatusCode)
	}
	if n := reads(s.Requests()); n == 0 || n >= 60 {
		t.Errorf("%d reads for a part of the package", n)
	}
	// None is answered before eight are asked for.
	var waiting atomic.Int32
	eight := make(chan struct{})
	s.Fault(func(_ http.ResponseWriter, r *http.Request) bool {
		if waiting.Add(1) == 8 {
			close(eight)
		}
		select {
		case <-eight:
		case <-r.Context().Done():
		}
		return false
	})
	if a := d.get(path); a.StatusCode != http.StatusOK || int64(len(a.body)) != a.ContentLength {
		t.Errorf("status %d, %d bytes of %d", a.StatusCode, len(a.body), a.ContentLength)
	}
}

// TestS3IgnoresConditions: a store that does not know If-Match or Range is found
// out by what it answers.
func TestS3IgnoresConditions(t *testing.T) {
	t.Parallel()
	s := newS3Store(t)
	s.Write(map[string]string{"W1/J1/inputs/a": "alpha"})
	d := deploy(t, on(s))
	path, _ := d.ready("W1", "J1")
	var etag string
	s.Fault(func(_ http.ResponseWriter, r *http.Request) bool {
		etag = r.Header.Get("If-Match")
		return false
	})
	d.get(path)
	for name, header := range map[string]http.Header{
		"other version": {"Etag": {`"0123"`}, "Content-Range": {"bytes 0-4/5"}},
		"other size":    {"Etag": {etag}, "Content-Range": {"bytes 0-4/50"}},
		"all of it":     {"Etag": {etag}},
	} {
		s.Fault(func(w http.ResponseWriter, _ *http.Request) bool {
			maps.Copy(w.Header(), header)
			w.WriteHeader(http.StatusPartialContent)
			_, _ = io.WriteString(w, "gamma")
			return true
		})
		if a := d.get(path); a.StatusCode != http.StatusGone {
			t.Errorf("%s: status %d, want 410", name, a.StatusCode)
		}
	}
}

// s3Fault answers as S3 does.
func s3Fault(w http.ResponseWriter, status int, code string) {
	w.Header().Set("Content-Type", "application/xml")
	w.WriteHeader(status)
	fmt.Fprintf(w, "<Error><Code>%s</Code><Message>as the test has it</Message></Error>", code)
}

// TestS3Faults: what is wrong with the store is 503, and nothing of it is told.
func TestS3Faults(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		status int
		code   string
	}{
		{"throttled", 503, "SlowDown"},
		{"broken", 500, "InternalError"},
		{"credentials", 403, "ExpiredToken"},
		{"no bucket", 404, "NoSuchBucket"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := newS3Store(t)
			s.Write(smallJob)
			d := deploy(t, on(s))
			path, _ := d.ready("W1", "J1")
			s.Fault(func(w http.ResponseWriter, _ *http.Request) bool {
				s3Fault(w, tt.status, tt.code)
				return true
			})
			for _, a := range []answer{d.put("W1", "J1"), d.get(path)} {
				a.wantError(t, http.StatusServiceUnavailable, "unavailable")
				if a.Header.Get("Retry-After") == "" || strings.Contains(string(a.body), tt.code) {
					t.Errorf("Retry-After %q: %s", a.Header.Get("Retry-After"), a.body)
				}
			}
			if secret := os.Getenv("AWS_SECRET_ACCESS_KEY"); strings.Contains(d.Log.String(), secret) || strings.Contains(d.Log.String(), "Signature=") {
				t.Error("the log has credentials")
			}
			s.Fault(nil)
			d.ready("W1", "J1")
		})
	}
}

// TestS3BrokenStreams: a stream that breaks is taken up again where it was; one
// that always breaks cuts the download.
func TestS3BrokenStreams(t *testing.T) {
	t.Parallel()
	s := newS3Store(t)
	content := make([]byte, 8<<20)
	for i := range content {
		content[i] = byte(rand.Uint32())
	}
	s.Write(map[string]string{"W1/J1/inputs/a": string(content)})
	d := deploy(t, on(s))
	path, _ := d.ready("W1", "J1")
	want := d.get(path).body

	breakAfter := func(n int64) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method != http.MethodGet {
				return false
			}
			s.handler.ServeHTTP(&cutWriter{ResponseWriter: w, left: n}, r)
			return true
		}
	}
	s.Fault(breakAfter(1 << 20))
	if got := d.get(path); !bytes.Equal(got.body, want) {
		t.Errorf("with broken streams: status %d, %d bytes, want the %d of the package", got.StatusCode, len(got.body), len(want))
	}
	ended := func() error {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, d.URL+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		response, err := d.Client.Do(r)
		if err != nil {
			return err
		}
		defer response.Body.Close()
		_, err = io.Copy(io.Discard, response.Body)
		return err
	}
	s.Fault(breakAfter(0))
	if ended() == nil {
		t.Error("with streams that give nothing: the download ended as if all were well")
	}

	// What is taken up again is the same version, whatever there is now.
	slices.Reverse(content)
	var once sync.Once
	s.Fault(func(w http.ResponseWriter, r *http.Request) bool {
		cut := false
		if r.Method == http.MethodGet {
			once.Do(func() { cut = true })
		}
		if !cut {
			return false
		}
		// The client cannot know of the end before the object is another one.
		s.handler.ServeHTTP(&cutWriter{ResponseWriter: w, left: 1 << 20, cut: func() {
			s.Write(map[string]string{"W1/J1/inputs/a": string(content)})
		}}, r)
		return true
	})
	if ended() == nil {
		t.Error("taken up again after a change: the download ended as if all were well")
	}
}

// cutWriter cuts the connection after so many bytes.
type cutWriter struct {
	http.ResponseWriter
	left int64
	cut  func() // is called before; may be nil
}

func (c *cutWriter) Unwrap() http.ResponseWriter { return c.ResponseWriter }

func (c *cutWriter) Write(p []byte) (int, error) {
	n, err := c.ResponseWriter.Write(p[:min(int64(len(p)), c.left)])
	if c.left -= int64(n); c.left == 0 && err == nil {
		_ = http.NewResponseController(c.ResponseWriter).Flush() // cut next
		if c.cut != nil {
			c.cut()
		}
		panic(http.ErrAbortHandler)
	}
	return n, err
}

// TestS3ListsInPages: a job of many objects takes one request a page, keys are
// decoded, and objects that stand for folders are no assets.
func TestS3ListsInPages(t *testing.T) {
	t.Parallel()
	s := newS3Store(t)
	const pages, page = 3, 300
	crc := base64.StdEncoding.EncodeToString(binary.BigEndian.AppendUint32(nil, crc32.ChecksumIEEE([]byte("x"))))
	d := deploy(t, on(s))
	s.Fault(func(w http.ResponseWriter, r *http.Request) bool {
		q := r.URL.Query()
		switch prefix := q.Get("prefix"); {
		case r.Method == http.MethodHead:
			for name, value := range map[string]string{
				"ETag": `"e"`, "Content-Length": "1", "x-amz-checksum-crc32": crc, "x-amz-checksum-type": "FULL_OBJECT",
			} {
				w.Header().Set(name, value)
			}
		case strings.HasSuffix(prefix, "/outputs/"):
			n, _ := strconv.Atoi(q.Get("continuation-token"))
			fmt.Fprintf(w, `<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><EncodingType>url</EncodingType>
<IsTruncated>%t</IsTruncated><NextContinuationToken>%d</NextContinuationToken>`, n+1 < pages, n+1)
			folder := url.QueryEscape(prefix)
			fmt.Fprintf(w, "<Contents><Key>%sfolder%%2F</Key><Size>0</Size><ETag>e</ETag></Contents>", folder)
			for i := range page {
				fmt.Fprintf(w, "<Contents><Key>%s%d-%04d+%%01%%26</Key><Size>1</Size><ETag>&quot;e&quot;</ETag><LastModified>2026-01-02T03:04:05.678Z</LastModified></Contents>", folder, n, i)
			}
			fmt.Fprint(w, "</ListBucketResult>")
		default:
			return false
		}
		return true
	})
	got := d.put("W1", "J1").download(t)
	if got.Status != apitypes.DownloadStatusReady {
		t.Errorf("status %s, want ready", got.Status)
	}
	lists := 0
	keys := map[string]bool{}
	for _, r := range s.Requests() {
		if strings.HasSuffix(r.query.Get("prefix"), "/outputs/") {
			lists++
		}
		if r.method == http.MethodHead {
			keys[r.key] = true
		}
	}
	if lists != pages || len(keys) != pages*page || !keys["W1/J1/outputs/2-0299 \x01&"] {
		t.Errorf("%d requests to list, want %d; %d keys, want %d", lists, pages, len(keys), pages*page)
	}
}

// TestS3Configuration: what cannot work is an error at once, which says what to
// change and has no secrets.
func TestS3Configuration(t *testing.T) {
	t.Parallel()
	s := newS3Store(t)
	for name, bad := range map[string]struct{ bucket, want string }{
		"no such bucket":   {strings.Replace(s.URL(), "s3://"+s.bucket, "s3://missing", 1), "cannot be listed"},
		"path":             {"s3://b/path", "prefix="},
		"credentials":      {"s3://AKIA:hidden@b", "environment"},
		"unknown":          {"s3://b?region=x&colour=red", "colour"},
		"twice":            {"s3://b?region=x&prefix=a&prefix=b", "prefix stands twice"},
		"path style":       {"s3://b?use_path_style=maybe", "use_path_style"},
		"endpoint":         {"s3://b?endpoint=localhost", "endpoint"},
		"endpoint secrets": {"s3://b?endpoint=http://u:hidden@localhost", "endpoint"},
	} {
		_, err := server.New(t.Context(), server.Config{Bucket: bad.bucket, DataDir: t.TempDir()})
		if err == nil || !strings.Contains(err.Error(), bad.want) || strings.Contains(err.Error(), "hidden") {
			t.Errorf("%s: %v, want an error with %q", name, err, bad.want)
		}
	}
}

// TestS3Region: where the region is missing or wrong, the error says which.
func TestS3Region(t *testing.T) {
	for _, name := range []string{"AWS_REGION", "AWS_DEFAULT_REGION"} {
		t.Setenv(name, "")
	}
	for _, name := range []string{"AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"} {
		t.Setenv(name, filepath.Join(t.TempDir(), "none"))
	}
	amazon := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("X-Amz-Bucket-Region", "eu-central-1")
		s3Fault(w, http.StatusMovedPermanently, "PermanentRedirect")
	}))
	defer amazon.Close()
	t.Setenv("AWS_ACCESS_KEY_ID", "id")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "secret")
	for query, want := range map[string]string{
		"":                  "region=",
		"&region=us-east-1": "it is in region eu-central-1, not us-east-1",
	} {
		_, err := server.New(t.Context(), server.Config{Bucket: "s3://b?use_path_style=true&endpoint=" + amazon.URL + query, DataDir: t.TempDir()})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want an error with %q", query, err, want)
		}
	}
}

// TestS3Warm: the jobs of a bucket are its folders.
func TestS3Warm(t *testing.T) {
	t.Parallel()
	eachStore(t, func(t *testing.T, s store) {
		s.Write(map[string]string{"W1/J1/inputs/a": "a", "W1/J2/outputs/b": "b", "W2/J1/inputs/c": "c", "top": "x", "W1/loose": "x"})
		var jobs []string
		err := server.Warm(t.Context(), server.Config{Bucket: s.URL(), DataDir: t.TempDir()}, "", func(p server.WarmProgress) {
			if p.Finished {
				jobs = append(jobs, p.WorkflowID+"/"+p.JobID)
				if p.Err != nil {
					t.Errorf("%s: %v", p.JobID, p.Err)
				}
			}
		})
		if want := []string{"W1/J1", "W1/J2", "W2/J1"}; err != nil || !slices.Equal(jobs, want) {
			t.Errorf("%v: got %q, want %q", err, jobs, want)
		}
	})
}

// TestS3ClientGoes: when the client is gone nothing more is asked for.
func TestS3ClientGoes(t *testing.T) {
	t.Parallel()
	s := newS3Store(t)
	job := map[string]string{"W1/J1/inputs/a": strings.Repeat("a", 32<<20)}
	for i := range 50 {
		job[fmt.Sprintf("W1/J1/outputs/%d", i)] = strings.Repeat("b", 1<<20)
	}
	s.Write(job)
	d := deploy(t, on(s))
	path, _ := d.ready("W1", "J1")
	ctx, cancel := context.WithCancel(t.Context())
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, d.URL+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	s.Requests()
	response, err := d.Client.Do(r)
	if err != nil {
		t.Fatal(redacted(err))
	}
	cancel()
	_, err = io.Copy(io.Discard, response.Body)
	response.Body.Close()
	if !errors.Is(err, context.Canceled) {
		t.Errorf("the client's own end: %v", err)
	}
	eventually(t, "the download has ended", func() bool { return strings.Contains(d.Log.String(), "route=/packages/") })
	if n := reads(s.Requests()); n > 40 {
		t.Errorf("%d assets were opened for a client that went at once", n)
	}
}

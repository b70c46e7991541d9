package server

import (
	"cmp"
	"context"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/aws/smithy-go"
	gcaws "gocloud.dev/aws"

	"github.com/downlink-go/downlink/server/internal/download"
	"github.com/downlink-go/downlink/server/internal/packager"
	"github.com/downlink-go/downlink/server/internal/vzip"
)

// objectStore is a bucket of S3, or of a store that speaks its protocol. Nothing
// is written to it but assembled packages (see multipart.go).
//
// An object is pinned by its entity tag: every read is conditional on it, and
// what comes back is checked against it, for stores that know no conditions. A
// bucket's versions are not used. Listings do not tell them, and a package of
// what has been replaced must not go on to be served.
//
// The URL and the credentials are those of gocloud.dev; the requests are not.
// Its s3blob escapes keys on the way in and out, so that an object whose key
// looks escaped cannot be read, and hides the checksums.
type objectStore struct {
	client *s3.Client
	// patient is a client for what the store may work on for long without a word.
	patient *s3.Client
	// public is a client with the endpoint that consumers know, to sign URLs.
	public *s3.Client
	name   string
	prefix string // of all keys, empty or with a slash at the end
	page   int32  // of a listing; 0 for as many as the store gives
}

var _ packager.Checksummer = (*objectStore)(nil)

const (
	// storeStall is after how long without a byte the store is given up on.
	storeStall = time.Minute
	// copyStall is the same where the store copies up to 5 GiB.
	copyStall = 10 * time.Minute
	// storeConnections is how many connections are kept for the next requests.
	storeConnections = 256
	// maxResumptions is how often in a row a stream is taken up again that
	// breaks without having given a byte.
	maxResumptions = 3
)

// openObjectStore opens the bucket that an s3:// URL names, and looks whether it
// can be listed. The parameters are those of gocloud.dev's s3blob that matter to
// reading, and prefix.
func openObjectStore(ctx context.Context, u *url.URL) (*objectStore, error) {
	b := &objectStore{name: u.Host}
	fail := func(err error) (*objectStore, error) {
		return nil, fmt.Errorf("bucket %s: %w", redactURL(u.String()), err)
	}
	if u.User != nil || strings.Trim(u.Path, "/") != "" || u.Host == "" {
		return fail(errors.New("want s3://name?region=...&prefix=..., with credentials in the environment"))
	}
	q := u.Query()
	for name, values := range q {
		if len(values) > 1 {
			return fail(fmt.Errorf("%s stands twice", name))
		}
	}
	if b.prefix = strings.Trim(take(q, "prefix"), "/"); b.prefix != "" {
		b.prefix += "/"
	}
	var endpoints [2]string
	for i, name := range []string{"endpoint", "public_endpoint"} {
		endpoints[i] = take(q, name)
		if e, err := url.Parse(endpoints[i]); endpoints[i] != "" && (err != nil || e.Host == "" || e.User != nil) {
			return fail(errors.New(name + ": want a URL such as https://s3.example.com"))
		}
	}
	pathStyle, err := strconv.ParseBool(cmp.Or(take(q, "use_path_style"), "false"))
	if err != nil {
		return fail(errors.New("use_path_style: want true or false"))
	}
	config, err := gcaws.V2ConfigFromURLParams(ctx, q)
	if err != nil {
		return fail(err)
	}
	if config.Region == "" {
		return fail(errors.New("the region is missing: add region=... or set AWS_REGION"))
	}
	client := func(endpoint string, stall time.Duration) *s3.Client {
		return s3.NewFromConfig(config, func(o *s3.Options) {
			if endpoint != "" {
				o.BaseEndpoint = &endpoint
			}
			o.UsePathStyle = pathStyle
			// The package's own CRC-32s are what the bytes are checked with.
			o.ResponseChecksumValidation = aws.ResponseChecksumValidationWhenRequired
			o.HTTPClient = storeHTTPClient(stall)
		})
	}
	b.client, b.patient = client(endpoints[0], storeStall), client(endpoints[0], copyStall)
	b.public = client(cmp.Or(endpoints[1], endpoints[0]), storeStall)
	if err := b.Check(ctx); err != nil {
		if e, ok := errors.AsType[*awshttp.ResponseError](err); ok {
			// Amazon tells, but the message does not always say so.
			if region := e.Response.Header.Get("X-Amz-Bucket-Region"); region != "" && region != config.Region {
				err = fmt.Errorf("it is in region %s, not %s: %w", region, config.Region, err)
			}
		}
		return fail(fmt.Errorf("cannot be listed: %w", err))
	}
	return b, nil
}

// take removes a parameter from the query and returns it.
func take(q url.Values, name string) string {
	value := q.Get(name)
	q.Del(name)
	return value
}

// storeHTTPClient returns a client that gives up when nothing arrives for stall.
func storeHTTPClient(stall time.Duration) *awshttp.BuildableClient {
	return awshttp.NewBuildableClient().WithTransportOptions(func(t *http.Transport) {
		t.MaxIdleConns, t.MaxIdleConnsPerHost = storeConnections, storeConnections
		t.ResponseHeaderTimeout = stall
		dial := t.DialContext
		t.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
			conn, err := dial(ctx, network, address)
			if err != nil {
				return nil, err
			}
			return &stallConn{conn, stall}, nil
		}
	})
}

// stallConn is a connection that fails where nothing arrives for so long.
type stallConn struct {
	net.Conn
	stall time.Duration
}

func (c *stallConn) Read(p []byte) (int, error) {
	if err := c.SetReadDeadline(time.Now().Add(c.stall)); err != nil {
		return 0, err
	}
	return c.Conn.Read(p)
}

// Remote implements bucket.
func (*objectStore) Remote() bool { return true }

// Close implements bucket.
func (*objectStore) Close() error { return nil }

// listing asks for the keys below the prefix, and with a delimiter for folders.
func (b *objectStore) listing(prefix, delimiter string, page int32) *s3.ListObjectsV2Input {
	in := &s3.ListObjectsV2Input{
		Bucket: &b.name,
		Prefix: aws.String(b.prefix + prefix),
		// Plain XML has no way to write some characters that keys may have.
		EncodingType: types.EncodingTypeUrl,
	}
	if delimiter != "" {
		in.Delimiter = &delimiter
	}
	if page > 0 {
		in.MaxKeys = &page
	}
	return in
}

// pages calls f with the pages of a listing until f returns false.
func (b *objectStore) pages(ctx context.Context, in *s3.ListObjectsV2Input, f func(*s3.ListObjectsV2Output) bool) error {
	p := s3.NewListObjectsV2Paginator(b.client, in, func(o *s3.ListObjectsV2PaginatorOptions) {
		o.StopOnDuplicateToken = true
	})
	for p.HasMorePages() {
		page, err := p.NextPage(ctx)
		if err != nil {
			return storeError(err)
		}
		if !f(page) {
			break
		}
	}
	return nil
}

// key returns a key of a listing as the bucket's users know it.
func (b *objectStore) key(page *s3.ListObjectsV2Output, listed *string) string {
	key := aws.ToString(listed)
	if page.EncodingType == types.EncodingTypeUrl {
		if plain, err := url.QueryUnescape(key); err == nil {
			key = plain
		}
	}
	return strings.TrimPrefix(key, b.prefix)
}

// List implements bucket. The empty objects that stand for folders in some tools
// are passed over.
func (b *objectStore) List(ctx context.Context, prefix string) (objects []Object, findings []download.Detail, err error) {
	err = b.pages(ctx, b.listing(prefix, "", b.page), func(page *s3.ListObjectsV2Output) bool {
		for i := range page.Contents {
			o := &page.Contents[i]
			object := pinObject(b.key(page, o.Key), o.ETag, o.Size, o.LastModified)
			switch {
			case !strings.HasSuffix(object.Key, "/"):
				objects = append(objects, object)
			case object.Size > 0:
				findings = append(findings, download.Detail{Asset: object.Key, Message: "is an object with the name of a folder"})
			}
		}
		return true
	})
	return objects, findings, err
}

// Folders implements bucket.
func (b *objectStore) Folders(ctx context.Context, prefix string) (names []string, err error) {
	err = b.pages(ctx, b.listing(prefix, "/", b.page), func(page *s3.ListObjectsV2Output) bool {
		for _, p := range page.CommonPrefixes {
			names = append(names, strings.TrimSuffix(strings.TrimPrefix(b.key(page, p.Prefix), prefix), "/"))
		}
		return true
	})
	return names, err
}

// pinObject makes the object of what the store tells. Times are in whole seconds:
// listings may have more, headers never do.
func pinObject(key string, etag *string, size *int64, modified *time.Time) Object {
	return Object{
		Key:      key,
		Version:  strings.Trim(aws.ToString(etag), `"`),
		Size:     aws.ToInt64(size),
		Modified: aws.ToTime(modified).UTC().Truncate(time.Second),
	}
}

// Check implements bucket.
func (b *objectStore) Check(ctx context.Context) error {
	_, err := b.client.ListObjectsV2(ctx, b.listing("", "", 1))
	return err
}

// Stat implements download.Objects.
func (b *objectStore) Stat(ctx context.Context, key string) (Object, error) {
	head, err := b.client.HeadObject(ctx, &s3.HeadObjectInput{Bucket: &b.name, Key: aws.String(b.prefix + key)})
	if err != nil {
		return Object{}, storeError(err)
	}
	return pinObject(key, head.ETag, head.ContentLength, head.LastModified), nil
}

// Read implements bucket.
func (b *objectStore) Read(ctx context.Context, key string, limit int64) ([]byte, error) {
	out, err := b.client.GetObject(ctx, &s3.GetObjectInput{Bucket: &b.name, Key: aws.String(b.prefix + key)})
	switch {
	case err == nil:
	case errorCode(err) == "InvalidObjectState":
		return nil, bucketError(err) // it is there
	default:
		return nil, storeError(err)
	}
	defer out.Body.Close()
	if aws.ToInt64(out.ContentLength) > limit {
		return nil, fmt.Errorf("%s is larger than %d bytes", key, limit)
	}
	data, err := io.ReadAll(io.LimitReader(out.Body, limit+1))
	if err != nil {
		return nil, storeError(err)
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("%s is larger than %d bytes", key, limit)
	}
	return data, nil
}

// Open implements download.Objects. A stream that breaks is taken up again where
// it was.
func (b *objectStore) Open(ctx context.Context, o Object, off, n int64) (io.ReadCloser, error) {
	body, err := b.open(ctx, o, off, n)
	if err != nil {
		return nil, err
	}
	return &objectStream{ctx: ctx, store: b, object: o, body: body, off: off, end: off + n}, nil
}

func (b *objectStore) open(ctx context.Context, o Object, off, n int64) (io.ReadCloser, error) {
	out, err := b.client.GetObject(ctx, &s3.GetObjectInput{
		Bucket:  &b.name,
		Key:     aws.String(b.prefix + o.Key),
		IfMatch: aws.String(`"` + o.Version + `"`),
		Range:   aws.String(fmt.Sprintf("bytes=%d-%d", off, off+n-1)),
	})
	if err != nil {
		return nil, storeError(err)
	}
	want := fmt.Sprintf("bytes %d-%d/%d", off, off+n-1, o.Size)
	if strings.Trim(aws.ToString(out.ETag), `"`) != o.Version || aws.ToString(out.ContentRange) != want {
		_ = out.Body.Close() // nothing was read
		return nil, download.ErrObjectChanged
	}
	return out.Body, nil
}

// objectStream reads the rest of a range of an object, [off, end).
type objectStream struct {
	ctx      context.Context // of the one request that the stream is for
	store    *objectStore
	object   Object
	body     io.ReadCloser
	off, end int64
	failures int   // since the last byte
	err      error // why it was given up
}

func (s *objectStream) Read(p []byte) (int, error) {
	for s.err == nil && s.off < s.end {
		n, err := s.body.Read(p)
		if n > 0 {
			s.off += int64(n)
			s.failures = 0
			return n, nil // an error comes again
		}
		if err != nil {
			s.err = s.resume(err)
		}
	}
	if s.err != nil {
		return 0, s.err
	}
	return 0, io.EOF
}

// resume opens the rest of the range after the stream broke.
func (s *objectStream) resume(cause error) error {
	if s.failures++; s.failures > maxResumptions || s.ctx.Err() != nil {
		if errors.Is(cause, io.EOF) {
			cause = io.ErrUnexpectedEOF // it is not the end of the object
		}
		return storeError(fmt.Errorf("stream broke %d bytes before its end: %w", s.end-s.off, cause))
	}
	_ = s.body.Close() // nothing more to get from it
	body, err := s.store.open(s.ctx, s.object, s.off, s.end-s.off)
	if err != nil {
		s.body = http.NoBody
		return err
	}
	s.body = body
	return nil
}

func (s *objectStream) Close() error { return s.body.Close() }

// Checksum implements packager.Checksummer: the CRC-32 of the whole object if the
// store has it, or else that of its parts, if it has those. A store that does not
// know about checksums, or does not tell, knows nothing.
func (b *objectStore) Checksum(ctx context.Context, o Object) (*Checksum, error) {
	head, err := b.client.HeadObject(ctx, &s3.HeadObjectInput{
		Bucket:       &b.name,
		Key:          aws.String(b.prefix + o.Key),
		IfMatch:      aws.String(`"` + o.Version + `"`),
		ChecksumMode: types.ChecksumModeEnabled,
	})
	if unsupported(err) {
		return nil, nil
	}
	if err != nil {
		return nil, storeError(err)
	}
	if now := pinObject(o.Key, head.ETag, head.ContentLength, head.LastModified); now.Version != o.Version || now.Size != o.Size {
		return nil, download.ErrObjectChanged
	}
	value := aws.ToString(head.ChecksumCRC32)
	composite, parts, found := strings.Cut(value, "-")
	if found || head.ChecksumType == types.ChecksumTypeComposite {
		return b.combineParts(ctx, o, composite, parts)
	}
	crc, ok := decodeCRC32(value)
	if !ok {
		return nil, nil
	}
	return &Checksum{CRC32: crc}, nil
}

// combineParts makes the CRC-32 of an object from those of its parts, whose own
// CRC-32 is the composite one. It knows nothing where the two do not agree.
func (b *objectStore) combineParts(ctx context.Context, o Object, composite, count string) (*Checksum, error) {
	var (
		sum, of uint32
		size    int64
		parts   int
		marker  *string
	)
	for {
		out, err := b.client.GetObjectAttributes(ctx, &s3.GetObjectAttributesInput{
			Bucket:           &b.name,
			Key:              aws.String(b.prefix + o.Key),
			ObjectAttributes: []types.ObjectAttributes{types.ObjectAttributesObjectParts, types.ObjectAttributesEtag},
			PartNumberMarker: marker,
		})
		if untold(err) {
			return nil, nil
		}
		if err != nil {
			return nil, storeError(err)
		}
		if strings.Trim(aws.ToString(out.ETag), `"`) != o.Version {
			return nil, download.ErrObjectChanged
		}
		if out.ObjectParts == nil {
			return nil, nil
		}
		for _, part := range out.ObjectParts.Parts {
			crc, ok := decodeCRC32(aws.ToString(part.ChecksumCRC32))
			if !ok {
				return nil, nil
			}
			n := aws.ToInt64(part.Size)
			sum = vzip.CombineCRC32(sum, crc, n)
			of = crc32.Update(of, crc32.IEEETable, binary.BigEndian.AppendUint32(nil, crc))
			size += n
			parts++
		}
		next := out.ObjectParts.NextPartNumberMarker
		if !aws.ToBool(out.ObjectParts.IsTruncated) || next == nil || len(out.ObjectParts.Parts) == 0 {
			break
		}
		marker = next
	}
	want, ok := decodeCRC32(composite)
	if !ok || want != of || size != o.Size || count != "" && count != strconv.Itoa(parts) {
		return nil, nil
	}
	return &Checksum{CRC32: sum}, nil
}

// decodeCRC32 decodes a CRC-32 in base64, as S3 has it.
func decodeCRC32(s string) (uint32, bool) {
	b, err := base64.StdEncoding.DecodeString(s)
	if err != nil || len(b) != 4 {
		return 0, false
	}
	return binary.BigEndian.Uint32(b), true
}

// untold reports whether the store refuses to tell of parts, which takes a
// permission of its own, or does not know how.
func untold(err error) bool {
	status := errorStatus(err)
	return unsupported(err) || status == http.StatusForbidden || status == http.StatusBadRequest
}

// unsupported reports whether the store does not know what it was asked to do.
func unsupported(err error) bool {
	status := errorStatus(err)
	return status == http.StatusMethodNotAllowed || status == http.StatusNotImplemented
}

// errorStatus returns the status of an answer that is an error, or 0.
func errorStatus(err error) int {
	if e, ok := errors.AsType[*awshttp.ResponseError](err); ok {
		return e.HTTPStatusCode()
	}
	return 0
}

// errorCode returns what the store calls the error, or nothing.
func errorCode(err error) string {
	if e, ok := errors.AsType[smithy.APIError](err); ok {
		return e.ErrorCode()
	}
	return ""
}

// storeError tells what has become of an object from a fault of the store, which
// callers may hope to be a passing one. Access that is denied is a fault: the
// store tells those who may list the bucket what is not there.
func storeError(err error) error {
	switch errorCode(err) {
	case "NoSuchKey", "NotFound", "InvalidObjectState":
		return fmt.Errorf("%w: %w", download.ErrObjectNotFound, err)
	}
	switch errorStatus(err) {
	case http.StatusPreconditionFailed, http.StatusRequestedRangeNotSatisfiable:
		return fmt.Errorf("%w: %w", download.ErrObjectChanged, err)
	}
	return bucketError(err)
}

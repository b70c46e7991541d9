package server

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"github.com/downlink-go/downlink/server/internal/assemble"
	"github.com/downlink-go/downlink/server/internal/download"
)

var (
	_ assemble.Store     = (*objectStore)(nil)
	_ download.Presigner = (*objectStore)(nil)
)

// digestMetadata is the metadata of an object that has the digest of its package,
// which is the entity tag when the server streams it. The store's own entity tag
// of an object in parts is something else.
const digestMetadata = "downlink-digest"

// checkAssembly fails if packages cannot be put together in the bucket.
func (b *objectStore) checkAssembly(ctx context.Context) error {
	if e := aws.ToString(b.client.Options().BaseEndpoint); strings.Contains(e, ".r2.cloudflarestorage.com") {
		return errors.New("R2 wants all parts of an object to have one size, so that packages cannot be put together in it: leave out --delivery assemble")
	}
	// Better now than with the first package.
	const key = ".downlink/probe"
	_, err := b.Begin(ctx, key, "probe", "")
	if err == nil {
		err = b.Abort(ctx, key)
	}
	if err != nil {
		return fmt.Errorf("to put packages together the server must be allowed to put, list and abort uploads and to delete objects under .downlink/: %w", err)
	}
	return nil
}

func (b *objectStore) fullKey(key string) *string { return aws.String(b.prefix + key) }

func attachment(filename string) string { return `attachment; filename="` + filename + `"` }

// Begin implements assemble.Store.
func (b *objectStore) Begin(ctx context.Context, key, filename, digest string) (string, error) {
	out, err := b.client.CreateMultipartUpload(ctx, &s3.CreateMultipartUploadInput{
		Bucket:             &b.name,
		Key:                b.fullKey(key),
		ContentType:        aws.String("application/zip"),
		ContentDisposition: aws.String(attachment(filename)),
		CacheControl:       aws.String("private, no-transform"),
		Metadata:           map[string]string{digestMetadata: digest},
		// The store tells the CRC-32 of what it copies.
		ChecksumAlgorithm: types.ChecksumAlgorithmCrc32,
	})
	if err != nil {
		return "", uploadError(err)
	}
	return aws.ToString(out.UploadId), nil
}

// Upload implements assemble.Store. The store checks the CRC-32.
func (b *objectStore) Upload(ctx context.Context, key, upload string, number int, data []byte, sum uint32) (assemble.Stored, error) {
	out, err := b.patient.UploadPart(ctx, &s3.UploadPartInput{
		Bucket:        &b.name,
		Key:           b.fullKey(key),
		UploadId:      &upload,
		PartNumber:    aws.Int32(int32(number)), //nolint:gosec // 10,000 at most
		Body:          bytes.NewReader(data),
		ContentLength: aws.Int64(int64(len(data))),
		ChecksumCRC32: encodeCRC32(&sum),
	})
	if err != nil {
		return assemble.Stored{}, uploadError(err)
	}
	return assemble.Stored{Number: number, Size: int64(len(data)), Tag: aws.ToString(out.ETag), CRC32: &sum}, nil
}

// Copy implements assemble.Store.
func (b *objectStore) Copy(ctx context.Context, key, upload string, number int, from Object, off, n int64) (assemble.Stored, error) {
	out, err := b.patient.UploadPartCopy(ctx, &s3.UploadPartCopyInput{
		Bucket:            &b.name,
		Key:               b.fullKey(key),
		UploadId:          &upload,
		PartNumber:        aws.Int32(int32(number)), //nolint:gosec // 10,000 at most
		CopySource:        aws.String(copySource(b.name, b.prefix+from.Key)),
		CopySourceIfMatch: aws.String(`"` + from.Version + `"`),
		CopySourceRange:   aws.String(fmt.Sprintf("bytes=%d-%d", off, off+n-1)),
	})
	if err != nil {
		return assemble.Stored{}, uploadError(err)
	}
	if out.CopyPartResult == nil {
		return assemble.Stored{}, storeError(errors.New("the store does not tell of the part that it copied"))
	}
	return assemble.Stored{
		Number: number, Size: n, Tag: aws.ToString(out.CopyPartResult.ETag), CRC32: parseCRC32(out.CopyPartResult.ChecksumCRC32),
	}, nil
}

// copySource names an object the way that the header of that name wants it:
// escaped, but for the slashes.
func copySource(bucket, key string) string {
	parts := strings.Split(key, "/")
	for i, p := range parts {
		parts[i] = strings.ReplaceAll(url.QueryEscape(p), "+", "%20")
	}
	return bucket + "/" + strings.Join(parts, "/")
}

// Parts implements assemble.Store.
func (b *objectStore) Parts(ctx context.Context, key, upload string) ([]assemble.Stored, error) {
	p := s3.NewListPartsPaginator(b.client, &s3.ListPartsInput{Bucket: &b.name, Key: b.fullKey(key), UploadId: &upload})
	var parts []assemble.Stored
	for p.HasMorePages() {
		page, err := p.NextPage(ctx)
		if err != nil {
			return nil, uploadError(err)
		}
		for _, part := range page.Parts {
			parts = append(parts, assemble.Stored{
				Number: int(aws.ToInt32(part.PartNumber)), Size: aws.ToInt64(part.Size),
				Tag: aws.ToString(part.ETag), CRC32: parseCRC32(part.ChecksumCRC32),
			})
		}
	}
	return parts, nil
}

// Complete implements assemble.Store.
func (b *objectStore) Complete(ctx context.Context, key, upload string, parts []assemble.Stored) error {
	completed := make([]types.CompletedPart, len(parts))
	for i, p := range parts {
		completed[i] = types.CompletedPart{
			PartNumber: aws.Int32(int32(p.Number)), //nolint:gosec // 10,000 at most
			ETag:       &p.Tag, ChecksumCRC32: encodeCRC32(p.CRC32),
		}
	}
	_, err := b.patient.CompleteMultipartUpload(ctx, &s3.CompleteMultipartUploadInput{
		Bucket: &b.name, Key: b.fullKey(key), UploadId: &upload,
		MultipartUpload: &types.CompletedMultipartUpload{Parts: completed},
	})
	return uploadError(err)
}

// uploads returns the uploads of an object that are under way.
func (b *objectStore) uploads(ctx context.Context, key string) ([]string, error) {
	p := s3.NewListMultipartUploadsPaginator(b.client, &s3.ListMultipartUploadsInput{Bucket: &b.name, Prefix: b.fullKey(key)})
	var uploads []string
	for p.HasMorePages() {
		page, err := p.NextPage(ctx)
		if err != nil {
			return nil, uploadError(err)
		}
		for _, u := range page.Uploads {
			if aws.ToString(u.Key) == b.prefix+key {
				uploads = append(uploads, aws.ToString(u.UploadId))
			}
		}
	}
	return uploads, nil
}

// Abort implements assemble.Store.
func (b *objectStore) Abort(ctx context.Context, key string) error {
	uploads, err := b.uploads(ctx, key)
	if err != nil {
		return err
	}
	for _, id := range uploads {
		_, err := b.client.AbortMultipartUpload(ctx, &s3.AbortMultipartUploadInput{Bucket: &b.name, Key: b.fullKey(key), UploadId: &id})
		if err = uploadError(err); err != nil && !errors.Is(err, assemble.ErrNoUpload) {
			return err
		}
	}
	return nil
}

// Find implements assemble.Store.
func (b *objectStore) Find(ctx context.Context, key string) (size int64, digest string, err error) {
	head, err := b.client.HeadObject(ctx, &s3.HeadObjectInput{Bucket: &b.name, Key: b.fullKey(key)})
	if err != nil {
		return 0, "", storeError(err)
	}
	return aws.ToInt64(head.ContentLength), head.Metadata[digestMetadata], nil
}

// Delete implements assemble.Store.
func (b *objectStore) Delete(ctx context.Context, key string) error {
	_, err := b.client.DeleteObject(ctx, &s3.DeleteObjectInput{Bucket: &b.name, Key: b.fullKey(key)})
	if err = uploadError(err); errors.Is(err, download.ErrObjectNotFound) {
		return nil
	}
	return err
}

// Presign implements download.Presigner. The URL is that of the public endpoint.
func (b *objectStore) Presign(ctx context.Context, key, filename string, expires time.Time) (string, time.Time, error) {
	credentials, err := b.public.Options().Credentials.Retrieve(ctx)
	if err != nil {
		return "", time.Time{}, storeError(err)
	}
	now := time.Now()
	if credentials.CanExpire && credentials.Expires.Before(expires) {
		expires = credentials.Expires.Truncate(time.Second)
	}
	// The signature's time is in whole seconds, up to one before now.
	lifetime := expires.Sub(now).Truncate(time.Second)
	if lifetime <= 0 {
		return "", time.Time{}, storeError(errors.New("the credentials for the store have expired"))
	}
	r, err := s3.NewPresignClient(b.public).PresignGetObject(ctx, &s3.GetObjectInput{
		Bucket:                     &b.name,
		Key:                        b.fullKey(key),
		ResponseContentDisposition: aws.String(attachment(filename)),
		ResponseContentType:        aws.String("application/zip"),
	}, s3.WithPresignExpires(lifetime))
	if err != nil {
		return "", time.Time{}, storeError(err)
	}
	return r.URL, now.Truncate(time.Second).Add(lifetime), nil
}

// uploadError is storeError for what is done to uploads. It is nil if err is.
func uploadError(err error) error {
	if err == nil {
		return nil
	}
	if errorCode(err) == "NoSuchUpload" {
		return fmt.Errorf("%w: %w", assemble.ErrNoUpload, err)
	}
	return storeError(err)
}

func encodeCRC32(sum *uint32) *string {
	if sum == nil {
		return nil
	}
	return aws.String(base64.StdEncoding.EncodeToString(binary.BigEndian.AppendUint32(nil, *sum)))
}

// parseCRC32 returns nil where the store tells none.
func parseCRC32(s *string) *uint32 {
	if sum, ok := decodeCRC32(aws.ToString(s)); ok {
		return &sum
	}
	return nil
}

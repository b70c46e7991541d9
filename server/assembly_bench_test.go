package server_test

import (
	"archive/zip"
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"github.com/downlink-go/downlink/gen/apitypes"
	"github.com/downlink-go/downlink/server"
)

// BenchmarkAssemble has a package put together in the S3 server, beside the way
// without: get the assets, write a ZIP, put it. It reports the share of the
// package that went through the server.
func BenchmarkAssemble(b *testing.B) {
	for _, bm := range []struct {
		objects, size int
	}{{6, 50 << 20}, {6, 300e6}} {
		if os.Getenv("DOWNLINK_CI") != "" && bm.size > 100e6 {
			continue // there it only has to run
		}
		b.Run(fmt.Sprintf("%dx%dMB", bm.objects, bm.size/1e6), func(b *testing.B) {
			s := newS3Store(b)
			content := strings.Repeat("0123456789abcdef", bm.size/16)
			var keys []string
			for i := range bm.objects {
				keys = append(keys, fmt.Sprintf("W1/J1/outputs/%05d", i))
				s.Write(map[string]string{keys[i]: content})
			}
			b.Run("by-hand", func(b *testing.B) {
				b.SetBytes(int64(bm.objects * bm.size))
				for b.Loop() {
					packageByHand(b, s, keys)
				}
			})
			b.Run("store", func(b *testing.B) {
				d := deploy(b, func(c *server.Config) {
					assembling(s)(c)
					c.Bucket += "&public_endpoint=" + url.QueryEscape(s.target.String())
					c.Log = nil
				})
				b.SetBytes(int64(bm.objects * bm.size))
				var through, size int64
				for n := 0; b.Loop(); n++ {
					b.StopTimer()
					s.Write(map[string]string{"W1/J1/outputs/n.txt": fmt.Sprint(n)}) // another package
					s.Requests()
					b.StartTimer()
					var got apitypes.Download
					for got.Status != apitypes.DownloadStatusReady {
						got = d.do(http.MethodPut, apiPath("W1", "J1"), http.Header{"Authorization": {d.Key}, "Prefer": {"wait=60"}}).download(b)
					}
					b.StopTimer()
					for _, r := range s.Requests() {
						var n int64
						_, _ = fmt.Sscan(r.header.Get("Content-Length"), &n)
						through += n
					}
					size += int64(bm.objects * bm.size)
					b.StartTimer()
				}
				b.ReportMetric(100*float64(through)/float64(size), "%through")
			})
		})
	}
}

// packageByHand gets the objects, puts them into a ZIP, and that into the store.
func packageByHand(b *testing.B, s *s3Store, keys []string) {
	b.Helper()
	f, err := os.Create(filepath.Join(b.TempDir(), "package.zip"))
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = os.Remove(f.Name()) }() // the folder goes too
	defer f.Close()
	z := zip.NewWriter(f)
	for _, key := range keys {
		out, err := s.client.GetObject(b.Context(), &s3.GetObjectInput{Bucket: &s.bucket, Key: aws.String(s.prefix + key)})
		if err != nil {
			b.Fatal(err)
		}
		w, err := z.CreateHeader(&zip.FileHeader{Name: key, Method: zip.Store})
		if err != nil {
			b.Fatal(err)
		}
		if _, err := io.Copy(w, out.Body); err != nil {
			b.Fatal(err)
		}
		out.Body.Close()
	}
	if err := z.Close(); err != nil {
		b.Fatal(err)
	}
	size, err := f.Seek(0, io.SeekCurrent)
	if err != nil {
		b.Fatal(err)
	}
	// In parts, as tools do.
	key := aws.String(s.prefix + "by-hand.zip")
	upload, err := s.client.CreateMultipartUpload(b.Context(), &s3.CreateMultipartUploadInput{Bucket: &s.bucket, Key: key})
	if err != nil {
		b.Fatal(err)
	}
	const part = 64 << 20
	var parts []types.CompletedPart
	buf := make([]byte, part)
	for off := int64(0); off < size; off += part {
		n := min(part, size-off)
		if _, err := f.ReadAt(buf[:n], off); err != nil {
			b.Fatal(err)
		}
		number := aws.Int32(int32(off/part + 1))
		out, err := s.client.UploadPart(b.Context(), &s3.UploadPartInput{Bucket: &s.bucket, Key: key, UploadId: upload.UploadId,
			PartNumber: number, Body: bytes.NewReader(buf[:n])})
		if err != nil {
			b.Fatal(err)
		}
		parts = append(parts, types.CompletedPart{PartNumber: number, ETag: out.ETag, ChecksumCRC32: out.ChecksumCRC32})
	}
	if _, err := s.client.CompleteMultipartUpload(b.Context(), &s3.CompleteMultipartUploadInput{Bucket: &s.bucket, Key: key,
		UploadId: upload.UploadId, MultipartUpload: &types.CompletedMultipartUpload{Parts: parts}}); err != nil {
		b.Fatal(err)
	}
}

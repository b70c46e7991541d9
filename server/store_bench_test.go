package server_test

import (
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"golang.org/x/sync/errgroup"

	"github.com/downlink-go/downlink/server"
)

// BenchmarkS3 downloads packages whose assets are on the S3 server, beside a loop
// that gets the same objects one after the other. With a delay each request to
// the S3 server takes so long to be answered, as in a network.
func BenchmarkS3(b *testing.B) {
	for _, bm := range []struct {
		name    string
		objects int
		size    int
		delay   time.Duration
	}{
		{"20x20MiB", 20, 20 << 20, 0},
		{"1000x20KiB", 1000, 20 << 10, 0},
		{"1000x20KiB-5ms", 1000, 20 << 10, 5 * time.Millisecond},
	} {
		b.Run(bm.name, func(b *testing.B) {
			s := newS3Store(b)
			endpoint := s.target
			if bm.delay > 0 {
				endpoint = s.server
				s.Fault(func(http.ResponseWriter, *http.Request) bool {
					time.Sleep(bm.delay)
					return false
				})
			}
			content := strings.Repeat("0123456789abcdef", bm.size/16)
			keys := make([]string, bm.objects)
			var g errgroup.Group
			g.SetLimit(16)
			for i := range keys {
				keys[i] = fmt.Sprintf("W1/J1/outputs/%05d", i)
				g.Go(func() error {
					s.Write(map[string]string{keys[i]: content})
					return nil
				})
			}
			if err := g.Wait(); err != nil {
				b.Fatal(err)
			}
			b.Run("loop", func(b *testing.B) {
				client := s3.New(s.client.Options(), func(o *s3.Options) { o.BaseEndpoint = aws.String(endpoint.String()) })
				b.SetBytes(int64(bm.objects * bm.size))
				for b.Loop() {
					for _, key := range keys {
						out, err := client.GetObject(b.Context(), &s3.GetObjectInput{Bucket: &s.bucket, Key: aws.String(s.prefix + key)})
						if err != nil {
							b.Fatal(err)
						}
						if _, err := io.Copy(io.Discard, out.Body); err != nil {
							b.Fatal(err)
						}
						out.Body.Close()
					}
				}
			})
			b.Run("package", func(b *testing.B) {
				d := deploy(b, func(c *server.Config) {
					q := url.Values{"region": {"us-east-1"}, "endpoint": {endpoint.String()}, "use_path_style": {"true"}, "prefix": {s.prefix}}
					c.Bucket, c.Log = "s3://"+s.bucket+"?"+q.Encode(), nil
				})
				path, _ := d.ready("W1", "J1")
				client := &http.Client{Transport: &http.Transport{}}
				defer client.CloseIdleConnections()
				b.SetBytes(int64(bm.objects * bm.size))
				for b.Loop() {
					r, err := http.NewRequestWithContext(b.Context(), http.MethodGet, d.URL+path, nil)
					if err != nil {
						b.Fatal(err)
					}
					response, err := client.Do(r)
					if err != nil {
						b.Fatal(redacted(err))
					}
					if n, err := io.Copy(io.Discard, response.Body); err != nil || n != response.ContentLength {
						b.Fatalf("%d bytes: %v", n, err)
					}
					response.Body.Close()
				}
			})
		})
	}
}

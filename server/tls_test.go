package server_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/downlink-go/downlink/server"
)

// newPair writes a self-signed certificate for 127.0.0.1 and its key, and
// returns the certificate.
func newPair(t testing.TB, certFile, keyFile string, serial int64) *x509.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(serial),
		Subject:      pkix.Name{CommonName: "downlink test"},
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().Add(time.Hour),
		IPAddresses:  []net.IP{net.IPv4(127, 0, 0, 1)},
		IsCA:         true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for path, block := range map[string]*pem.Block{
		certFile: {Type: "CERTIFICATE", Bytes: der}, keyFile: {Type: "PRIVATE KEY", Bytes: private},
	} {
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// deployTLS starts a server with a certificate, and a client that trusts it and
// speaks HTTP/2 or HTTP/1.1.
func deployTLS(t *testing.T, http2 bool, change ...func(*server.Config)) *deployment {
	t.Helper()
	dir := t.TempDir()
	certFile, keyFile := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	cert := newPair(t, certFile, keyFile, 1)
	d := deploy(t, append(change, func(c *server.Config) { c.TLSCert, c.TLSKey = certFile, keyFile })...)
	roots := x509.NewCertPool()
	roots.AddCert(cert)
	next := d.Client.Transport.(*contractTransport).next
	next.TLSClientConfig, next.ForceAttemptHTTP2 = &tls.Config{RootCAs: roots}, http2
	return d
}

// overTLS runs a test over both versions of HTTP.
func overTLS(t *testing.T, test func(t *testing.T, http2 bool)) {
	for _, http2 := range []bool{false, true} {
		t.Run(map[bool]string{false: "HTTP1", true: "HTTP2"}[http2], func(t *testing.T) {
			t.Parallel()
			test(t, http2)
		})
	}
}

func TestTLSServesPackages(t *testing.T) {
	t.Parallel()
	overTLS(t, func(t *testing.T, http2 bool) {
		d := deployTLS(t, http2)
		job := mixedJob(t)
		d.Write(job)
		path, answer := d.ready("W1", "J1")
		if !strings.HasPrefix(answer.SignedURL, "https://") {
			t.Error("the signed URL is not an https one")
		}
		whole := d.get(path)
		if want := map[bool]int{false: 1, true: 2}[http2]; whole.ProtoMajor != want {
			t.Fatalf("%s, want HTTP/%d", whole.Proto, want)
		}
		if whole.StatusCode != http.StatusOK || int64(len(whole.body)) != whole.ContentLength {
			t.Fatalf("status %d, %d bytes of %d", whole.StatusCode, len(whole.body), whole.ContentLength)
		}
		for _, f := range openZIP(t, whole.body).File {
			r, err := f.Open()
			if err != nil {
				t.Fatal(err)
			}
			content, err := io.ReadAll(r)
			if err != nil || f.Name != "manifest.json" && string(content) != job["W1/J1/"+f.Name] {
				t.Errorf("%s: %d bytes, %v", f.Name, len(content), err)
			}
		}
		etag := whole.Header.Get("ETag")
		var wg sync.WaitGroup
		for i := range 20 { // over HTTP/2, at once on one connection
			wg.Go(func() {
				start, end := i*1000, i*200_000+2000
				a := d.get(path, "Range", fmt.Sprintf("bytes=%d-%d", start, end-1), "If-Range", etag)
				if a.StatusCode != http.StatusPartialContent || !bytes.Equal(a.body, whole.body[start:end]) {
					t.Errorf("bytes %d to %d: status %d, %d bytes", start, end, a.StatusCode, len(a.body))
				}
			})
		}
		wg.Wait()
		if a := d.do(http.MethodHead, path, nil); a.StatusCode != 200 || a.ContentLength != int64(len(whole.body)) {
			t.Errorf("HEAD: status %d, %d bytes", a.StatusCode, a.ContentLength)
		}
		if a := d.get(path, "If-None-Match", etag); a.StatusCode != http.StatusNotModified {
			t.Errorf("If-None-Match: status %d", a.StatusCode)
		}
		d.get(path, "Range", "bytes=99999999-").wantError(t, 416, "range_not_satisfiable")
		d.get(strings.Replace(path, "W1_J1", "W1_J2", 1)).wantError(t, 403, "signed_url_invalid")
	})
}

// TestTLSAborts: a download that cannot go on ends in an error, not early.
func TestTLSAborts(t *testing.T) {
	t.Parallel()
	overTLS(t, func(t *testing.T, http2 bool) {
		d := deployTLS(t, http2)
		d.sparse("W1/J1/inputs/a.bin", 64<<20)
		path, _ := d.ready("W1", "J1")
		response := d.begin(path)
		defer response.Body.Close()
		if err := os.Truncate(filepath.Join(d.Bucket, "W1/J1/inputs/a.bin"), 32<<20); err != nil {
			t.Fatal(err)
		}
		if n, err := io.Copy(io.Discard, response.Body); err == nil {
			t.Errorf("%d bytes of %d came as if all were well", n, response.ContentLength)
		}
		d.Write(smallJob)
		d.ready("W1", "J1") // on the same connection, if it is HTTP/2
	})
}

// TestTLSStalledClient: one that takes nothing loses its download, and one that
// is slow does not as long as it takes something.
func TestTLSStalledClient(t *testing.T) {
	t.Parallel()
	overTLS(t, func(t *testing.T, http2 bool) {
		d := deployTLS(t, http2, func(c *server.Config) { c.StallTimeout = time.Second })
		d.sparse("W1/J1/inputs/a.bin", 256<<20)
		path, _ := d.ready("W1", "J1")
		response := d.begin(path)
		defer response.Body.Close()
		eventually(t, "the download has ended", func() bool { return strings.Contains(d.Log.String(), "route=/packages/") })
		if n, err := io.Copy(io.Discard, response.Body); err == nil {
			t.Errorf("%d bytes came as if all were well", n)
		}

		// Twice the stall timeout in all, but never that long without taking.
		slow := d.begin(path)
		defer slow.Body.Close()
		for start := time.Now(); time.Since(start) < 2*time.Second; {
			if _, err := io.CopyN(io.Discard, slow.Body, 2<<20); err != nil {
				t.Fatalf("a client that takes 2 MiB at a time was cut: %v", err)
			}
			eventually(t, "a moment is over", pause(50*time.Millisecond))
		}
	})
}

// TestTLSDeafConnection: a client of HTTP/2 that opens its windows and then reads
// nothing from the connection, not even the end of the stream, is cut.
func TestTLSDeafConnection(t *testing.T) {
	t.Parallel()
	d := deployTLS(t, true, func(c *server.Config) { c.StallTimeout = 300 * time.Millisecond })
	d.sparse("W1/J1/inputs/a.bin", 256<<20)
	path, _ := d.ready("W1", "J1")
	next := d.Client.Transport.(*contractTransport).next
	deaf := &deafConn{}
	transport := &http.Transport{
		ForceAttemptHTTP2: true, TLSClientConfig: next.TLSClientConfig,
		HTTP2: &http.HTTP2Config{MaxReceiveBufferPerConnection: 4<<20 - 1, MaxReceiveBufferPerStream: 4<<20 - 1},
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			conn, err := (&net.Dialer{}).DialContext(ctx, network, address)
			if err == nil {
				err = conn.(*net.TCPConn).SetReadBuffer(4096)
			}
			deaf.Conn = conn
			return deaf, err
		},
	}
	defer transport.CloseIdleConnections()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, d.URL+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	response, err := transport.RoundTrip(r)
	if err != nil {
		t.Fatal(redacted(err))
	}
	deaf.stop()
	defer response.Body.Close()
	defer deaf.Close()
	eventually(t, "the download has ended", func() bool { return strings.Contains(d.Log.String(), "route=/packages/") })
}

// deafConn is a connection that can stop reading.
type deafConn struct {
	net.Conn
	mu sync.Mutex
	no chan struct{}
}

func (c *deafConn) stop() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.no = make(chan struct{})
}

func (c *deafConn) Read(p []byte) (int, error) {
	c.mu.Lock()
	no := c.no
	c.mu.Unlock()
	if no != nil {
		<-no
		return 0, net.ErrClosed
	}
	return c.Conn.Read(p)
}

func (c *deafConn) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.no != nil {
		close(c.no)
		c.no = nil
	}
	return c.Conn.Close()
}

// TestHTTP2Streams: over HTTP/2, too, no more requests are there at a time than there
// may be connections, even if clients never take the answers.
func TestHTTP2Streams(t *testing.T) {
	t.Parallel()
	const limit, requests = 20, 100
	d := deployTLS(t, true, func(c *server.Config) {
		c.Limits.Connections, c.StallTimeout = limit, 5*time.Second
	})
	d.Write(smallJob)
	config := d.Client.Transport.(*contractTransport).next.TLSClientConfig.Clone()
	config.NextProtos = []string{"h2"}
	flood := func() (statuses map[string]int, conn net.Conn) {
		conn, err := (&tls.Dialer{Config: config}).DialContext(t.Context(), "tcp", strings.TrimPrefix(d.URL, "https://"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		if err := conn.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
			t.Fatal(err)
		}
		frame := func(kind, flags byte, stream uint32, payload string) string {
			return string(binary.BigEndian.AppendUint32([]byte{0, 0, byte(len(payload)), kind, flags}, stream)) + payload
		}
		// The preface, and SETTINGS_INITIAL_WINDOW_SIZE of 0.
		text := "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0, "\x00\x04\x00\x00\x00\x00")
		for i := range uint32(requests) { // GET https://x/, which is 404 with a body
			text += frame(1, 5, 2*i+1, "\x82\x87\x84\x41\x01x")
		}
		if _, err := io.WriteString(conn, text); err != nil {
			t.Fatal(err)
		}
		statuses = map[string]int{}
		for answered := 0; answered < requests; {
			var head [9]byte
			if _, err := io.ReadFull(conn, head[:]); err != nil {
				t.Fatalf("after %v: %v", statuses, err)
			}
			payload := make([]byte, int(head[0])<<16|int(head[1])<<8|int(head[2]))
			if _, err := io.ReadFull(conn, payload); err != nil {
				t.Fatal(err)
			}
			switch {
			case head[3] == 4 && head[4] == 0: // settings
				if !bytes.Contains(payload, []byte{0, 3, 0, 0, 0, 100}) || !bytes.Contains(payload, []byte{0, 4, 0, 1, 0, 0}) {
					t.Errorf("settings %x, want 100 streams of 64 KiB", payload)
				}
			case head[3] == 1 && payload[0] == 0x8d: // :status 404
				statuses["not found"]++
				answered++
			case head[3] == 1:
				statuses["refused"]++
				answered++
			}
		}
		return statuses, conn
	}
	statuses, conn := flood()
	if statuses["not found"] != limit || statuses["refused"] != requests-limit {
		t.Errorf("answers: %v, want %d not found and the others refused", statuses, limit)
	}
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPut, d.URL+apiPath("W1", "J1"), nil)
	if err != nil {
		t.Fatal(err)
	}
	response, err := d.Client.Transport.(*contractTransport).next.RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	response.Body.Close()
	if response.StatusCode != http.StatusServiceUnavailable || response.Header.Get("Retry-After") == "" || response.ContentLength != 0 {
		t.Errorf("meanwhile: status %d with Retry-After %q and %d bytes", response.StatusCode, response.Header.Get("Retry-After"), response.ContentLength)
	}
	free := func() bool {
		response, err := d.Client.Transport.(*contractTransport).next.RoundTrip(r)
		if err != nil {
			t.Fatal(err)
		}
		response.Body.Close()
		return response.StatusCode == http.StatusUnauthorized
	}
	conn.Close()
	eventually(t, "the client is gone", free)
	flood()
	eventually(t, "the client has taken nothing for the stall timeout", free)
}

// TestTLSReload: a new pair is taken over, a broken one is not.
func TestTLSReload(t *testing.T) {
	t.Parallel()
	d := deployTLS(t, false)
	serial := func() int64 {
		conn, err := (&tls.Dialer{Config: &tls.Config{InsecureSkipVerify: true}}).DialContext(t.Context(), "tcp", strings.TrimPrefix(d.URL, "https://"))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		return conn.(*tls.Conn).ConnectionState().PeerCertificates[0].SerialNumber.Int64()
	}
	if got := serial(); got != 1 {
		t.Fatalf("certificate %d, want 1", got)
	}
	if err := os.WriteFile(d.Config.TLSCert, []byte("broken"), 0o600); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the broken pair is logged", func() bool { return strings.Contains(d.Log.String(), "TLS certificate not reloaded") })
	if got := serial(); got != 1 {
		t.Errorf("with a broken pair: certificate %d, want the old one", got)
	}
	newPair(t, d.Config.TLSCert, d.Config.TLSKey, 2)
	eventually(t, "the new pair is shown", func() bool { return serial() == 2 })
}

func TestTLSVersions(t *testing.T) {
	t.Parallel()
	d := deployTLS(t, false)
	address := strings.TrimPrefix(d.URL, "https://")
	for version, ok := range map[uint16]bool{tls.VersionTLS10: false, tls.VersionTLS11: false, tls.VersionTLS12: true, tls.VersionTLS13: true} {
		config := &tls.Config{InsecureSkipVerify: true, MinVersion: version, MaxVersion: version}
		conn, err := (&tls.Dialer{Config: config}).DialContext(t.Context(), "tcp", address)
		if err == nil {
			conn.Close()
		}
		if ok != (err == nil) {
			t.Errorf("%s: %v", tls.VersionName(version), err)
		}
	}
	// Plain HTTP is told what is wrong.
	response, err := http.Get("http://" + address)
	if err != nil {
		t.Fatal(err)
	}
	response.Body.Close()
	if response.StatusCode != http.StatusBadRequest {
		t.Errorf("plain HTTP: status %d, want 400", response.StatusCode)
	}
}

// begin starts to download a signed URL, by its path.
func (d *deployment) begin(path string) *http.Response {
	d.t.Helper()
	r, err := http.NewRequestWithContext(d.t.Context(), http.MethodGet, d.URL+path, nil)
	if err != nil {
		d.t.Fatal(err)
	}
	response, err := d.Client.Do(r)
	if err != nil {
		d.t.Fatal(redacted(err))
	}
	if response.StatusCode != http.StatusOK {
		response.Body.Close()
		d.t.Fatalf("status %d", response.StatusCode)
	}
	if _, err := io.CopyN(io.Discard, response.Body, 100); err != nil {
		d.t.Fatal(err)
	}
	return response
}

// pause is a condition that holds after a time.
func pause(d time.Duration) func() bool {
	start := time.Now()
	return func() bool { return time.Since(start) > d }
}

package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	randv2 "math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

// The jobs of the workflow "bench".
const (
	largeJob    = "large"    // 20 files of 200 MB
	smallJob    = "small"    // 20,000 files of 20 KB
	tinyJob     = "tiny"     // 100,000 files of 200 bytes
	thousandJob = "thousand" // 1,000 files of 200 KB
	callJob     = "call"     // 4 files of 20 KB
)

func (b *bench) jobs() []struct {
	name  string
	files int
	size  int
} {
	scaled := func(n int) int { return max(1, int(float64(n)*b.scale)) }
	return []struct {
		name  string
		files int
		size  int
	}{
		{largeJob, 20, scaled(200e6)},
		{smallJob, scaled(20_000), 20e3},
		{tinyJob, scaled(100_000), 200},
		{thousandJob, 1000, scaled(200e3)},
		{callJob, 4, 20e3},
	}
}

func (b *bench) bucket() string         { return filepath.Join(b.data, "bucket") }
func (b *bench) job(name string) string { return filepath.Join(b.bucket(), "bench", name, "outputs") }
func (b *bench) zips() string           { return filepath.Join(b.data, "zips") }
func (b *bench) zip(job string) string  { return filepath.Join(b.zips(), job+".zip") }
func (b *bench) bin(name string) string { return filepath.Join(b.temp, name) }
func (b *bench) cert() (cert, key string) {
	return filepath.Join(b.data, "cert.pem"), filepath.Join(b.data, "key.pem")
}

// prepare builds the programs, and the data unless it is there.
func (b *bench) prepare(ctx context.Context, stdin *os.File, yes bool) error {
	for _, program := range []string{"client/cmd/downlink", "server/cmd/downlinkd"} {
		if err := build(ctx, b.bin(filepath.Base(program)), program); err != nil {
			return err
		}
	}
	done := filepath.Join(b.data, "complete")
	if _, err := os.Stat(done); err == nil {
		return nil
	}
	var total int
	for _, j := range b.jobs() {
		total += 2 * j.files * j.size // as files, and as a finished package
	}
	if !yes && !confirm(stdin, fmt.Sprintf("make %.1f GB of data in %s?", float64(total)/1e9, b.data)) {
		return errors.New("no data")
	}
	if err := os.MkdirAll(b.zips(), 0o755); err != nil {
		return err
	}
	if err := b.writeCertificate(); err != nil {
		return err
	}
	for _, j := range b.jobs() {
		fmt.Fprintf(os.Stderr, "making job %s ...\n", j.name)
		if err := writeJob(b.job(j.name), j.files, j.size); err != nil {
			return err
		}
	}
	d, err := b.startDownlinkd(ctx)
	if err != nil {
		return err
	}
	for _, j := range b.jobs() {
		url, err := d.ready(ctx, j.name)
		if err != nil {
			return err
		}
		if err := save(ctx, url, b.zip(j.name)); err != nil {
			return err
		}
	}
	if err := b.stopAll(); err != nil {
		return err
	}
	return os.WriteFile(done, nil, 0o644)
}

func build(ctx context.Context, out, program string) error {
	cmd := exec.CommandContext(ctx, "go", "build", "-tags", "grpcnotrace", "-trimpath", "-ldflags=-s", "-o", out, "github.com/downlink-go/downlink/"+program)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	cmd.Stderr = os.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("build %s: %w", program, err)
	}
	return nil
}

// writeJob writes files of bytes that do not compress, a thousand to a folder.
func writeJob(dir string, files, size int) error {
	block := make([]byte, min(size, 1<<20))
	random := randv2.NewChaCha8([32]byte{})
	for i := range files {
		folder := filepath.Join(dir, fmt.Sprintf("tile_%03d", i/1000))
		if i%1000 == 0 {
			if err := os.MkdirAll(folder, 0o755); err != nil {
				return err
			}
		}
		_, _ = random.Read(block)
		f, err := os.Create(filepath.Join(folder, fmt.Sprintf("band_%06d.tif", i)))
		if err != nil {
			return err
		}
		for left := size; left > 0 && err == nil; left -= len(block) {
			_, err = f.Write(block[:min(left, len(block))])
		}
		if err := errors.Join(err, f.Close()); err != nil {
			return err
		}
	}
	return nil
}

func save(ctx context.Context, url, name string) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	_, err = fetch(ctx, newClient(1), url, "", f)
	return errors.Join(err, f.Close())
}

// writeCertificate writes one for the loopback address that signs itself.
func (b *bench) writeCertificate() error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "benchpeers"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(10, 0, 0),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, DNSNames: []string{"localhost"},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return err
	}
	private, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return err
	}
	certFile, keyFile := b.cert()
	return errors.Join(writePEM(certFile, "CERTIFICATE", der), writePEM(keyFile, "EC PRIVATE KEY", private))
}

func writePEM(name, kind string, der []byte) error {
	var out bytes.Buffer
	if err := pem.Encode(&out, &pem.Block{Type: kind, Bytes: der}); err != nil {
		return err
	}
	return os.WriteFile(name, out.Bytes(), 0o600)
}

// copyAll reads r in large pieces: io.Discard would take small ones.
func copyAll(w io.Writer, r io.Reader) (int64, error) {
	return io.CopyBuffer(struct{ io.Writer }{w}, struct{ io.Reader }{r}, make([]byte, 256<<10))
}

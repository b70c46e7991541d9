package server

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net/http"
	"sync/atomic"
	"time"
)

// certificate is what the server shows to clients over TLS. It can be replaced
// while the server runs; connections that are open keep the one they have.
type certificate struct {
	certFile, keyFile string
	files             *followed
	current           atomic.Pointer[tls.Certificate]
}

// openCertificate reads the pair. Its errors name the files and what to change.
func openCertificate(certFile, keyFile string, log *slog.Logger) (*certificate, error) {
	c := &certificate{certFile: certFile, keyFile: keyFile, files: follow(certFile, keyFile)}
	if err := c.load(); err != nil {
		return nil, err
	}
	c.describe(log, "TLS certificate loaded")
	return c, nil
}

func (c *certificate) load() error {
	pair, err := tls.LoadX509KeyPair(c.certFile, c.keyFile)
	if err != nil {
		return fmt.Errorf("TLS certificate %s with key %s: %w", c.certFile, c.keyFile, err)
	}
	c.current.Store(&pair)
	return nil
}

// reload takes over a new pair. One that is broken, or of which only one half is
// there yet, is logged, and the old one stays.
func (c *certificate) reload(log *slog.Logger) {
	if err := c.load(); err != nil {
		log.Error("TLS certificate not reloaded", slog.Any("error", err))
		return
	}
	c.describe(log, "TLS certificate reloaded")
}

// describe logs until when the certificate is good, as a warning once it is not.
func (c *certificate) describe(log *slog.Logger, message string) {
	level, expires := slog.LevelInfo, c.current.Load().Leaf.NotAfter
	if time.Now().After(expires) {
		level = slog.LevelWarn
	}
	log.Log(context.Background(), level, message, slog.Time("expires", expires))
}

// maxStreams bounds the requests of one connection of HTTP/2 at a time. It is the
// least that RFC 9113, section 6.5.2 recommends.
const maxStreams = 100

// secure makes the server speak TLS 1.2 or later, and HTTP/2 to clients that can,
// with the cipher suites and curves that crypto/tls prefers.
func (c *certificate) secure(hs *http.Server, stall time.Duration) {
	hs.TLSConfig = &tls.Config{
		MinVersion:     tls.VersionTLS12,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return c.current.Load(), nil },
	}
	hs.HTTP2 = &http.HTTP2Config{
		MaxConcurrentStreams: maxStreams,
		// The deadline of a stream cannot end it while its connection takes nothing.
		WriteByteTimeout: stall,
		// Nothing reads bodies: they need no more room than there has to be.
		MaxReceiveBufferPerConnection: 64 << 10,
		MaxReceiveBufferPerStream:     64 << 10,
	}
}

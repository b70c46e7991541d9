package server

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"go.opentelemetry.io/otel/trace"
)

// Config configures a [Server]. Bucket is required; the zero value of every
// other field is a usable default.
type Config struct {
	// Bucket is the URL of the store that holds the assets: file:///data, or
	// s3://name for S3 and what speaks its protocol. It is only read, unless
	// packages are assembled in it (see Delivery).
	//
	// The parameters of an s3 URL are region, prefix (of the keys, such as
	// prefix=jobs), endpoint (such as https://s3.example.com), public_endpoint
	// (the same as consumers reach it, for URLs of the store) and use_path_style,
	// and those of gocloud.dev/aws: profile, role, anonymous, dualstack, fips and
	// rate_limiter_capacity. Credentials are found the way the AWS SDK finds
	// them. They must allow to get objects and to list the bucket; to get
	// attributes of objects (s3:GetObjectAttributes) saves reading those that
	// were uploaded in parts with checksums.
	Bucket string
	// DataDir is the folder for the server's own state: the SQLite database
	// and the signing keys. It is made if need be, readable by its owner alone.
	// Defaults to [DefaultDataDir].
	DataDir string
	// Database is the path of a SQLite file, or a postgres:// URL. Defaults to
	// downlink.db in the data directory.
	Database string
	// SigningKeys sign and verify URLs: the first signs, all of them verify.
	// Servers behind one address need the same. Defaults to those in
	// SigningKeysFile.
	SigningKeys []SigningKey
	// SigningKeysFile is a file of signing keys, as [RotateSigningKey] writes it.
	// It must be there; a change of it is taken over within seconds. Defaults to
	// signing-keys in the data directory, which is made if need be.
	SigningKeysFile string
	// Delivery is who sends packages to consumers. Defaults to [Stream].
	Delivery Delivery
	// Catalog knows the jobs. Defaults to the folders of the bucket.
	Catalog Catalog
	// PublicURL is the scheme, host and optional path that signed URLs start
	// with, for servers behind a proxy. Defaults to what each request came for.
	PublicURL string
	// TLSCert and TLSKey are files in PEM: the certificate with those that lead
	// to its root, and its private key. With them Serve speaks HTTPS, TLS 1.2 or
	// later and HTTP/2 included. A change of them is taken over within seconds; a
	// pair that does not fit is logged, and the old one kept. Default to plain
	// HTTP.
	TLSCert, TLSKey string
	// CORSOrigins are the origins, such as https://maps.example.com, whose pages
	// may use the server from a browser; * stands for all. Defaults to none.
	CORSOrigins []string
	// TrustedProxies are addresses and networks, such as 10.0.0.0/8, of proxies in
	// front of the server. What they say in X-Forwarded-For, X-Forwarded-Proto
	// and X-Forwarded-Host is taken for the client's address, in the access log
	// and in the limits, and for what signed URLs start with. Nobody else's word
	// is. Defaults to none.
	TrustedProxies []string
	// Limits bound what clients can make the server do.
	Limits Limits
	// ReadyWait is how long a call is held for its package to become ready
	// where it does not say itself. Negative means not at all. Defaults to 1
	// second.
	ReadyWait time.Duration
	// LinkLifetime is the shortest life of a signed URL; those of packages
	// above 1.8 GB live longer. At most seven days. Defaults to 1 hour.
	LinkLifetime time.Duration
	// StallTimeout is for how long a client may take nothing before its
	// download is cut. Defaults to 1 minute.
	StallTimeout time.Duration
	// ShutdownTimeout is how long running downloads may take to finish when the
	// server stops. Defaults to 30 seconds.
	ShutdownTimeout time.Duration
	// ShutdownDelay is for how long a server that stops goes on accepting requests
	// while it is no longer ready, so that balancers send elsewhere before it is
	// gone. Defaults to 0.
	ShutdownDelay time.Duration
	// MaxEntries and MaxBytes bound one package: the number of its assets and
	// their size. Default to 200,000 and 16 TiB.
	MaxEntries int
	MaxBytes   int64
	// CacheBytes bounds the memory of cached package layouts, some 700 bytes an
	// entry. A quarter as much on top is for blocks of 256 KiB of packages that are
	// made of tiny assets and read by ranges of up to 4 MiB; they are kept for 10
	// seconds. Defaults to 256 MiB.
	CacheBytes int64
	// SkipMigrations keeps the schema of the database as it is, for deployments
	// that migrate it themselves; a step that is missing is then an error.
	SkipMigrations bool
	// SkipSHA256 leaves SHA-256 out of the manifests of packages whose assets
	// have to be read, which takes most of the time that reading costs.
	SkipSHA256 bool
	// KeepPackages is for how long a package is kept that nobody asks for. It
	// is planned again, with the same bytes, when somebody does. Negative means
	// for ever. Defaults to 90 days.
	KeepPackages time.Duration
	// TracerProvider makes spans of requests, of what takes time in them and of
	// the preparation of packages. They have what the access log has: no key, no
	// token, no signed URL. Requests that come with a traceparent header (W3C
	// Trace Context) are part of that trace. Defaults to none, at no cost.
	TracerProvider trace.TracerProvider
	// Log receives the access log and what goes wrong. Keys, tokens and signed
	// URLs never get there. Defaults to discarding it.
	Log *slog.Logger
}

// Delivery is who sends packages to consumers.
type Delivery string

const (
	// Stream has this server stream packages from their assets. Nothing is built.
	Stream Delivery = "stream"
	// Assemble has packages put together in the bucket, which copies all but the
	// small assets, and signed URLs lead to the bucket. The bytes are the same.
	// It takes a bucket of S3, and permission to put, list and abort uploads and
	// to delete objects under .downlink/ there. Calls for a package answer
	// pending, for the reason "assembling", until it is there. It is kept for
	// half as long again as the URLs for it live.
	//
	// The store's credentials may be short-lived: no URL is announced to outlive
	// them.
	Assemble Delivery = "assemble"
)

// DefaultDataDir returns the folder for a user's server state:
// $XDG_DATA_HOME/downlinkd or its counterpart on the system.
func DefaultDataDir() string {
	if dir := os.Getenv("XDG_DATA_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "downlinkd")
	}
	if runtime.GOOS == "windows" {
		return filepath.Join(os.Getenv("LocalAppData"), "downlinkd")
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return filepath.Join(string(filepath.Separator), "var", "lib", "downlinkd")
	}
	return filepath.Join(home, ".local", "share", "downlinkd")
}

// withDefaults returns a copy with the defaults filled in, or an error that
// names the field.
func (c Config) withDefaults() (Config, error) {
	c.DataDir = cmp.Or(c.DataDir, DefaultDataDir())
	c.ReadyWait = cmp.Or(c.ReadyWait, time.Second)
	c.LinkLifetime = cmp.Or(c.LinkLifetime, time.Hour)
	c.StallTimeout = cmp.Or(c.StallTimeout, time.Minute)
	c.ShutdownTimeout = cmp.Or(c.ShutdownTimeout, 30*time.Second)
	c.KeepPackages = cmp.Or(c.KeepPackages, 90*24*time.Hour)
	c.CacheBytes = cmp.Or(c.CacheBytes, 256<<20)
	c.Delivery = cmp.Or(c.Delivery, Stream)
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Bucket == "" {
		return c, errors.New("bucket: missing; name the folder of the assets, such as file:///data")
	}
	switch {
	case c.Delivery != Stream && c.Delivery != Assemble:
		return c, fmt.Errorf("delivery %q: want %s or %s", c.Delivery, Stream, Assemble)
	case c.Delivery == Assemble && !strings.HasPrefix(c.Bucket, "s3:"):
		return c, fmt.Errorf("delivery %s: packages can be put together in a bucket of S3 alone; leave it out to stream them", Assemble)
	}
	if len(c.SigningKeys) > 0 && c.SigningKeysFile != "" {
		return c, errors.New("signing keys: given themselves and as a file; leave one of them out")
	}
	if c.PublicURL != "" {
		u, err := url.Parse(c.PublicURL)
		switch {
		case err == nil && u.User != nil:
			return c, errors.New("public URL: has a user, whom everybody with a signed URL would get to know; leave it out")
		case err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" || u.RawQuery != "" || u.Fragment != "":
			return c, fmt.Errorf("public URL %q: want http or https, a host and at most a path", c.PublicURL)
		}
		c.PublicURL = strings.TrimRight(c.PublicURL, "/")
	}
	if (c.TLSCert == "") != (c.TLSKey == "") {
		return c, errors.New("TLS: the certificate and its key belong together; give both or neither")
	}
	var err error
	if c.CORSOrigins, err = checkOrigins(c.CORSOrigins); err != nil {
		return c, err
	}
	if _, err = parseProxies(c.TrustedProxies); err != nil {
		return c, err
	}
	if c.Limits, err = c.Limits.withDefaults(); err != nil {
		return c, err
	}
	for _, f := range []struct {
		name  string
		value int64
		most  int64
	}{
		{"link lifetime", int64(c.LinkLifetime), int64(longestLink)},
		{"stall timeout", int64(c.StallTimeout), int64(time.Hour)},
		{"shutdown timeout", int64(c.ShutdownTimeout), int64(24 * time.Hour)},
		{"shutdown delay", int64(c.ShutdownDelay), int64(time.Hour)},
		{"ready wait", int64(c.ReadyWait), int64(maxWait)},
		{"largest number of entries", int64(c.MaxEntries), 10_000_000},
		{"largest number of bytes", c.MaxBytes, 1 << 60},
		{"cache size", c.CacheBytes, 1 << 50},
	} {
		if f.value < 0 && f.name != "ready wait" {
			return c, fmt.Errorf("%s: must not be negative", f.name)
		}
		if f.value > f.most {
			return c, fmt.Errorf("%s: larger than allowed", f.name)
		}
	}
	return c, nil
}

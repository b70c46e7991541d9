// Package server implements the Download Job call: an HTTP server that packages
// a job's assets as one ZIP, which is never built but laid out and streamed from
// the assets themselves.
//
// [New] wires a server from its [Config]; [Server.Serve] runs it. With the
// defaults its state is a SQLite database in the data directory and jobs are
// folders of a bucket:
//
//	<workflow_id>/<job_id>/job.json        optional, see api/job.schema.json
//	<workflow_id>/<job_id>/inputs/...      assets
//	<workflow_id>/<job_id>/outputs/...
//
// Programs with a job database of their own set [Config.Catalog]; the assets are
// still objects of the bucket.
package server

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/gofrs/flock"
	"github.com/labstack/echo/v4"
	"golang.org/x/sync/errgroup"

	"github.com/downlink-go/downlink/gen/apiserver"
	"github.com/downlink-go/downlink/server/internal/catalog"
	"github.com/downlink-go/downlink/server/internal/download"
)

// Config configures a [Server]. Bucket is required; the zero value of every
// other field is a usable default.
type Config struct {
	// Bucket is the URL of the store that holds the assets, such as
	// file:///data. It is only read.
	Bucket string
	// DataDir is the folder for the server's own state: the SQLite database
	// and the signing keys. It is made if need be, readable by its owner alone.
	// Defaults to [DefaultDataDir].
	DataDir string
	// Database is the path of a SQLite file, or a postgres:// URL. Defaults to
	// downlink.db in the data directory.
	Database string
	// Catalog knows the jobs. Defaults to the folders of the bucket.
	Catalog Catalog
	// PublicURL is the scheme, host and optional path that signed URLs start
	// with, for servers behind a proxy. Defaults to what each request came for.
	PublicURL string
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
	// MaxEntries and MaxBytes bound one package: the number of its assets and
	// their size. Default to 200,000 and 16 TiB.
	MaxEntries int
	MaxBytes   int64
	// CacheBytes bounds the memory of cached package layouts, some 700 bytes an
	// entry. Defaults to 256 MiB.
	CacheBytes int64
	// Log receives the access log and what goes wrong. Keys, tokens and signed
	// URLs never get there. Defaults to discarding it.
	Log *slog.Logger
}

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
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Bucket == "" {
		return c, errors.New("bucket: missing; name the folder of the assets, such as file:///data")
	}
	if c.PublicURL != "" {
		u, err := url.Parse(c.PublicURL)
		if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" || u.RawQuery != "" || u.Fragment != "" {
			return c, fmt.Errorf("public URL %q: want http or https, a host and at most a path", c.PublicURL)
		}
		c.PublicURL = strings.TrimRight(c.PublicURL, "/")
	}
	for _, f := range []struct {
		name  string
		value int64
		most  int64
	}{
		{"link lifetime", int64(c.LinkLifetime), int64(longestLink)},
		{"stall timeout", int64(c.StallTimeout), int64(time.Hour)},
		{"shutdown timeout", int64(c.ShutdownTimeout), int64(24 * time.Hour)},
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

// Server answers the Download Job call and serves the packages. It is safe for
// concurrent use.
type Server struct {
	config  Config
	log     *slog.Logger
	lock    *flock.Flock
	bucket  bucket
	db      *catalog.DB
	keyring *download.Keyring
	service *download.Service
	handler http.Handler

	stallTimeout time.Duration
}

// New opens the bucket and the state, and wires a server from them. [Server.Close]
// releases what it holds. Errors say what to change.
func New(ctx context.Context, config Config) (_ *Server, err error) {
	config, err = config.withDefaults()
	if err != nil {
		return nil, err
	}
	s := &Server{config: config, log: config.Log, stallTimeout: config.StallTimeout}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
		}
	}()
	if s.bucket, err = openBucket(config.Bucket); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(config.DataDir, 0o700); err != nil {
		return nil, fmt.Errorf("data directory: %w", err)
	}
	if err := s.lockDataDir(); err != nil {
		return nil, err
	}
	keys, err := loadSigningKeys(signingKeyFile(config.DataDir), time.Now())
	if err != nil {
		return nil, fmt.Errorf("signing keys: %w", err)
	}
	if s.keyring, err = download.NewKeyring(keys...); err != nil {
		return nil, fmt.Errorf("signing keys: %w", err)
	}
	if s.db, err = OpenDatabase(ctx, config.DataDir, config.Database); err != nil {
		return nil, err
	}
	jobs := config.Catalog
	if jobs == nil {
		jobs = &bucketCatalog{bucket: s.bucket}
	}
	s.service = download.NewService(download.Config{
		Catalog:      jobs,
		Grants:       s.db,
		Packages:     s.db,
		Packager:     &inlinePackager{db: s.db, objects: s.bucket},
		Objects:      s.bucket,
		Keyring:      s.keyring,
		Limits:       download.Limits{Entries: config.MaxEntries, Bytes: config.MaxBytes},
		LinkLifetime: config.LinkLifetime,
		CacheBytes:   config.CacheBytes,
	})
	s.handler = s.routes()
	return s, nil
}

// OpenDatabase opens the state of a server and brings its schema up to date. An
// empty database stands for downlink.db in the data directory, which is made if
// need be.
func OpenDatabase(ctx context.Context, dataDir, database string) (*catalog.DB, error) {
	if database == "" {
		if err := os.MkdirAll(dataDir, 0o700); err != nil {
			return nil, fmt.Errorf("data directory: %w", err)
		}
		database = filepath.Join(dataDir, "downlink.db")
	}
	db, err := catalog.Open(ctx, catalog.Config{Database: database})
	if err != nil {
		return nil, err
	}
	if err := db.Migrate(ctx); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return db, nil
}

// lockDataDir keeps a second server off the same data directory. The lock ends
// with the process, however that ends.
func (s *Server) lockDataDir() error {
	s.lock = flock.New(filepath.Join(s.config.DataDir, "downlinkd.lock"), flock.SetPermissions(0o600))
	locked, err := s.lock.TryLock()
	if err != nil {
		return fmt.Errorf("data directory: %w", err)
	}
	if !locked {
		return fmt.Errorf("data directory %s is in use by another downlinkd: stop that one, or name another folder", s.config.DataDir)
	}
	return nil
}

// routes builds the HTTP interface: the contract's generated routes and that of
// the signed URLs.
func (s *Server) routes() http.Handler {
	e := echo.New()
	e.HTTPErrorHandler = s.handleError
	e.Use(s.observe)
	h := &handler{service: s.service, readyWait: max(s.config.ReadyWait, 0), publicURL: s.config.PublicURL}
	apiserver.RegisterHandlersWithOptions(e, apiserver.NewStrictHandler(h, nil), apiserver.RegisterHandlersOptions{
		OperationMiddlewares: map[string][]echo.MiddlewareFunc{"downloadJob": {s.authenticate, joinPrefer}},
	})
	e.GET(contentRoute, s.serveContent)
	e.HEAD(contentRoute, s.serveContent)
	return e
}

// Handler returns the HTTP interface, for programs that run their own
// [http.Server]. Set its WriteTimeout above a minute: that is how long answers
// may be held, and downloads extend it as they go.
func (s *Server) Handler() http.Handler { return s.handler }

// Serve answers on the listener until the context ends. Then it stops accepting,
// lets running requests finish for the shutdown timeout, cuts the rest and
// returns nil. It closes the listener.
func (s *Server) Serve(ctx context.Context, listener net.Listener) error {
	hs := &http.Server{
		Handler:           s.handler,
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       2 * time.Minute,
		WriteTimeout:      2 * maxWait,
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelWarn),
		// Requests outlive ctx until the shutdown timeout.
		BaseContext: func(net.Listener) context.Context { return context.WithoutCancel(ctx) },
	}
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		if err := hs.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			return err
		}
		return nil
	})
	g.Go(func() error {
		s.followSigningKeys(gctx)
		return nil
	})
	g.Go(func() error {
		<-gctx.Done()
		s.log.Info("stopping", slog.Duration("at_most", s.config.ShutdownTimeout))
		stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.config.ShutdownTimeout)
		defer cancel()
		if err := hs.Shutdown(stop); err != nil {
			s.log.Warn("requests were cut")
			return hs.Close()
		}
		return nil
	})
	return g.Wait()
}

// followSigningKeys takes over changes of the signing keys' file until the
// context ends.
func (s *Server) followSigningKeys(ctx context.Context) {
	path := signingKeyFile(s.config.DataDir)
	before, _ := os.Stat(path)
	ticker := time.NewTicker(keyPoll)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-ticker.C:
			after, err := os.Stat(path)
			if err != nil || before != nil && os.SameFile(before, after) && after.ModTime().Equal(before.ModTime()) {
				continue
			}
			before = after
			keys, err := loadSigningKeys(path, now)
			if err == nil {
				err = s.keyring.Set(keys)
			}
			if err != nil {
				s.log.Error("signing keys not reloaded", slog.Any("error", err))
				continue
			}
			s.log.Info("signing keys reloaded", slog.Int("keys", len(keys)))
		}
	}
}

// keyPoll is how often the signing keys' file is looked at.
const keyPoll = 2 * time.Second

// Close releases what the server holds. Call it after Serve has returned.
func (s *Server) Close() error {
	var errs []error
	if s.db != nil {
		errs = append(errs, s.db.Close())
	}
	if s.bucket != nil {
		errs = append(errs, s.bucket.Close())
	}
	if s.lock != nil {
		errs = append(errs, s.lock.Unlock())
	}
	return errors.Join(errs...)
}

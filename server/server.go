package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/gofrs/flock"
	"github.com/labstack/echo/v4"
	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/trace"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"

	"github.com/downlink-go/downlink/gen/apiserver"
	"github.com/downlink-go/downlink/server/internal/catalog"
	"github.com/downlink-go/downlink/server/internal/download"
	"github.com/downlink-go/downlink/server/internal/packager"
)

// Server answers the Download Job call and serves the packages. It is safe for
// concurrent use.
type Server struct {
	config   Config
	log      *slog.Logger
	lock     *flock.Flock
	bucket   bucket
	db       *catalog.DB
	keys     keys
	packager *packager.Packager
	keyring  *download.Keyring
	keysFile *followed    // what the keyring follows, or nil
	tls      *certificate // nil for plain HTTP
	service  *download.Service
	metrics  *metrics
	tracer   trace.Tracer // nil for no spans
	handler  http.Handler
	stopping atomic.Bool
	// middlewares are what a mock has around the operation.
	middlewares []apiserver.StrictMiddlewareFunc

	proxies      proxies
	requests     *buckets[string] // calls by API key, or nil for any number
	failures     *failures        // or nil for any number
	slots        slots
	streams      atomic.Int64 // requests of HTTP/2
	stallTimeout time.Duration
	aheadMemory  *semaphore.Weighted
	aheadHeld    aheadHeld
	blocks       *blocks
}

// New opens the bucket and the state, wires a server from them, and begins to
// work on packages that were left unfinished. [Server.Close] releases what it
// holds. Errors say what to change.
func New(ctx context.Context, config Config) (_ *Server, err error) {
	config, err = config.withDefaults()
	if err != nil {
		return nil, err
	}
	s := &Server{
		config: config, log: config.Log, stallTimeout: config.StallTimeout,
		aheadMemory: semaphore.NewWeighted(aheadTotal),
		blocks:      newBlocks(config.CacheBytes / 4),
		requests:    newBuckets[string](config.Limits.RequestsPerMinute, 50_000),
		failures:    newFailures(config.Limits.FailuresPerMinute),
		slots:       slots{most: config.Limits.Downloads, mostPerKey: config.Limits.DownloadsPerKey, perKey: map[string]int{}},
	}
	if s.proxies, err = parseProxies(config.TrustedProxies); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close(ctx))
		}
	}()
	if config.TLSCert != "" {
		if s.tls, err = openCertificate(config.TLSCert, config.TLSKey, s.log); err != nil {
			return nil, err
		}
	}
	if s.bucket, err = openBucket(ctx, config.Bucket); err != nil {
		return nil, err
	}
	operations := newBucketMetrics()
	store, _ := s.bucket.(*objectStore)
	if config.Delivery == Assemble {
		if err := store.checkAssembly(ctx); err != nil {
			return nil, fmt.Errorf("bucket %s: %w", redactURL(config.Bucket), err)
		}
	}
	s.bucket = countBucket(s.bucket, operations)
	if config.TracerProvider != nil {
		s.tracer = config.TracerProvider.Tracer(tracerName)
		s.bucket = traceBucket(s.bucket, s.tracer)
	}
	if err := os.MkdirAll(config.DataDir, 0o700); err != nil {
		return nil, fmt.Errorf("data directory: %w", err)
	}
	if err := s.lockDataDir(); err != nil {
		return nil, err
	}
	if err := s.loadKeyring(); err != nil {
		return nil, fmt.Errorf("signing keys: %w", err)
	}
	prepare := (*catalog.DB).Migrate
	if config.SkipMigrations {
		prepare = (*catalog.DB).CheckMigrated
	}
	if s.db, err = openDatabase(ctx, config.DataDir, config.Database, prepare); err != nil {
		return nil, err
	}
	if s.packager, err = packager.New(ctx, packager.Config{
		DB:         s.db,
		Objects:    s.bucket,
		Logger:     config.Log,
		SkipSHA256: config.SkipSHA256,
		KeepFor:    max(config.KeepPackages, 0),
		Assembly:   s.assembly(store, operations),
		Tracer:     s.tracer,
	}); err != nil {
		return nil, err
	}
	s.keys = s.db
	jobs := config.Catalog
	if jobs == nil {
		jobs = &bucketCatalog{bucket: s.bucket}
	}
	parts := download.Config{
		Catalog:      jobs,
		Grants:       s.db,
		Packages:     s.db,
		Packager:     s.packager,
		Objects:      s.bucket,
		Keyring:      s.keyring,
		Limits:       download.Limits{Entries: config.MaxEntries, Bytes: config.MaxBytes},
		LinkLifetime: config.LinkLifetime,
		CacheBytes:   config.CacheBytes,
	}
	if config.Delivery == Assemble {
		parts.Assembler, parts.Presigner = s.packager, store
	}
	if s.tracer != nil {
		s.keys = tracedKeys{s.keys, s.tracer}
		parts.Catalog = tracedCatalog{parts.Catalog, s.tracer}
		parts.Grants = tracedGrants{parts.Grants, s.tracer}
		parts.Packages = tracedPackages{parts.Packages, s.tracer}
		parts.Packager = tracedPackager{parts.Packager, s.tracer}
	}
	s.service = download.NewService(parts)
	s.metrics = newMetrics(s, operations)
	if s.handler, err = s.routes(); err != nil {
		return nil, err
	}
	if err := s.packager.Start(ctx); err != nil {
		return nil, err
	}
	return s, nil
}

// assembly returns what the packager needs to put packages together in the store,
// and to delete those that are there, also when no more are wanted. It is nil for
// other buckets.
func (s *Server) assembly(store *objectStore, operations *prometheus.CounterVec) *packager.Assembly {
	if store == nil {
		return nil
	}
	return &packager.Assembly{Store: &countedAssembly{store, operations}, Source: s.source}
}

// loadKeyring takes the signing keys from the configuration or the file.
func (s *Server) loadKeyring() (err error) {
	keys := s.config.SigningKeys
	if len(keys) == 0 {
		path := s.config.SigningKeysFile
		if path == "" {
			path = signingKeyFile(s.config.DataDir)
			if err := makeSigningKeys(path, time.Now()); err != nil {
				return err
			}
		}
		s.keysFile = follow(path)
		if keys, err = loadSigningKeys(path); err != nil {
			return err
		}
	}
	s.keyring, err = download.NewKeyring(keys...)
	return err
}

// lockDataDir keeps a second server off the same SQLite database. The lock ends
// with the process, however that ends.
func (s *Server) lockDataDir() error {
	if catalog.IsPostgres(s.config.Database) {
		return nil // any number of servers
	}
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

// routes builds the HTTP interface: the contract's generated routes, that of the
// signed URLs, and those that show the contract.
func (s *Server) routes() (http.Handler, error) {
	e := echo.New()
	e.HTTPErrorHandler = s.handleError
	e.Use(secureHeaders, s.countStream, s.traceRequest, s.observe, allowOrigins(s.config.CORSOrigins))
	h := &handler{service: s.service, readyWait: max(s.config.ReadyWait, 0), publicURL: s.config.PublicURL}
	apiserver.RegisterHandlersWithOptions(e, apiserver.NewStrictHandler(h, s.middlewares), apiserver.RegisterHandlersOptions{
		OperationMiddlewares: map[string][]echo.MiddlewareFunc{"downloadJob": {s.authenticate, s.throttle, joinPrefer}},
	})
	e.GET(contentRoute, s.serveContent)
	e.HEAD(contentRoute, s.serveContent)
	return e, addDocs(e)
}

// Handler returns the HTTP interface, for programs that run their own
// [http.Server]. Set its WriteTimeout above a minute: that is how long answers
// may be held, and downloads extend it as they go.
func (s *Server) Handler() http.Handler { return s.handler }

// Serve answers on the listener, over TLS if the configuration has a
// certificate, until the context ends. Then it goes on accepting
// for the shutdown delay, no longer ready, stops accepting, lets running requests finish for the shutdown timeout, cuts the rest and
// returns nil. It closes the listener.
func (s *Server) Serve(ctx context.Context, listener net.Listener) error {
	hs := &http.Server{
		Handler:           s.handler,
		MaxHeaderBytes:    4 * s.config.Limits.HeaderBytes,
		ReadHeaderTimeout: s.config.Limits.HeaderTimeout,
		IdleTimeout:       s.config.Limits.IdleTimeout,
		WriteTimeout:      2 * maxWait,
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelWarn),
		// Requests outlive ctx until the shutdown timeout.
		BaseContext: func(net.Listener) context.Context { return context.WithoutCancel(ctx) },
	}
	if n := s.config.Limits.Connections; n >= 0 {
		listener = limitListener(listener, n)
	}
	serve := hs.Serve
	if s.tls != nil {
		s.tls.secure(hs, s.stallTimeout)
		serve = func(l net.Listener) error { return hs.ServeTLS(l, "", "") }
	}
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		if err := serve(listener); !errors.Is(err, http.ErrServerClosed) {
			return err
		}
		return nil
	})
	if s.keysFile != nil {
		g.Go(func() error {
			s.keysFile.run(gctx, s.reloadKeyring)
			return nil
		})
	}
	if s.tls != nil {
		g.Go(func() error {
			s.tls.files.run(gctx, func() { s.tls.reload(s.log) })
			return nil
		})
	}
	g.Go(func() error {
		<-gctx.Done()
		s.stopping.Store(true)
		if d := s.config.ShutdownDelay; d > 0 && ctx.Err() != nil {
			s.log.Info("not ready any more", slog.Duration("accepting_for", d))
			time.Sleep(d)
		}
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

// reloadKeyring takes over a change of the signing keys' file.
func (s *Server) reloadKeyring() {
	keys, err := loadSigningKeys(s.keysFile.paths[0])
	if err == nil {
		err = s.keyring.Set(keys)
	}
	if err != nil {
		s.log.Error("signing keys not reloaded", slog.Any("error", err))
		return
	}
	s.log.Info("signing keys reloaded", slog.Int("keys", len(keys)))
}

// Close ends the work on packages and releases what the server holds. Call it
// after Serve has returned. Packages that are being prepared may finish for the
// shutdown timeout or until the context ends; the rest is taken up again, where
// it was left, by the next server on this state.
func (s *Server) Close(ctx context.Context) error {
	var errs []error
	if s.packager != nil {
		errs = append(errs, s.packager.Stop(ctx))
	}
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

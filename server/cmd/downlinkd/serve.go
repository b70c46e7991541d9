package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"go.opentelemetry.io/otel"

	"github.com/downlink-go/downlink/server"
)

// signingKeysVariable holds keys that are not to be seen on a command line.
const signingKeysVariable = "DOWNLINK_SIGNING_KEYS"

func newServeCommand() *cobra.Command {
	var (
		config  server.Config
		listen  string
		admin   string
		logJSON bool
	)
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run the server",
		Long: `Runs the server until SIGINT or SIGTERM. Then it stops accepting and lets running
downloads finish for --shutdown-timeout; a second signal ends it at once.

The bucket holds the assets as <workflow>/<job>/inputs/... and outputs/...; it
is only read, unless packages are put together in it (--delivery assemble). The
data directory holds the server's own state. A bucket of S3 is written
s3://name?region=...&prefix=..., with endpoint=https://... and
use_path_style=true for other stores of its kind; credentials come the way the
AWS SDK finds them, from AWS_ACCESS_KEY_ID and so on.

Any number of servers can share one PostgreSQL database and one bucket, if they
have the same signing keys: in a file, or themselves in DOWNLINK_SIGNING_KEYS
(base64 of 32 bytes, such as openssl rand -base64 32 gives; the first one signs,
all of them verify).

Traces go to a collector by OTLP over HTTP if OTEL_EXPORTER_OTLP_ENDPOINT says
so, or OTEL_TRACES_EXPORTER=otlp for one on this machine, with OTEL_SERVICE_NAME,
OTEL_TRACES_SAMPLER and so on as OpenTelemetry has them. Without, there are none.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			if config.SigningKeys, err = server.ParseSigningKeys(os.Getenv(signingKeysVariable)); err != nil {
				return fmt.Errorf("%s: %w", signingKeysVariable, err)
			}
			// The zero values of these fields stand for their defaults.
			if config.ReadyWait == 0 {
				config.ReadyWait = -1
			}
			if config.KeepPackages == 0 {
				config.KeepPackages = -1
			}
			var handler slog.Handler = slog.NewTextHandler(cmd.ErrOrStderr(), nil)
			if logJSON {
				handler = slog.NewJSONHandler(cmd.ErrOrStderr(), nil)
			}
			config.Log = slog.New(handler)
			if err := serve(cmd.Context(), config, listen, admin, cmd.OutOrStdout()); err != nil {
				return &failure{err}
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&config.Bucket, "bucket", "", "URL of the store of the assets, such as file:///data or s3://name (required)")
	f.StringVar((*string)(&config.Delivery), "delivery", string(server.Stream), "who sends packages: this server (stream), or the bucket, once they are put together there (assemble; for S3)")
	f.StringVar(&listen, "listen", "localhost:8080", "address to listen on; port 0 takes a free one")
	f.StringVar(&admin, "admin-listen", "", "address for operators, such as localhost:9090: /healthz, /readyz, /metrics, /debug/pprof (default none)")
	stateFlags(cmd, &config.DataDir, &config.Database)
	f.StringVar(&config.SigningKeysFile, "signing-keys-file", "", "file of the keys that sign URLs (default: signing-keys in the data directory)")
	hardeningFlags(f, &config)
	f.StringVar(&config.PublicURL, "public-url", "", "what signed URLs start with, behind a proxy (default: as each request has it)")
	f.DurationVar(&config.ReadyWait, "ready-wait", time.Second, "hold a call so long for its package to become ready, 1m at most; 0 for not at all")
	f.DurationVar(&config.LinkLifetime, "link-lifetime", time.Hour, "shortest life of a signed URL, 168h at most; large packages get longer ones")
	f.DurationVar(&config.StallTimeout, "stall-timeout", time.Minute, "cut a download whose client takes nothing for so long")
	f.DurationVar(&config.ShutdownTimeout, "shutdown-timeout", 30*time.Second, "how long running downloads may take to finish at the end")
	f.DurationVar(&config.ShutdownDelay, "shutdown-delay", 0, "go on accepting for so long after the signal, with /readyz at 503, for balancers to notice")
	f.IntVar(&config.MaxEntries, "max-entries", 200_000, "largest number of assets in a package")
	f.Int64Var(&config.MaxBytes, "max-bytes", 16<<40, "largest size of a package's assets, in bytes")
	f.Int64Var(&config.CacheBytes, "cache-bytes", 256<<20, "memory for the layouts of packages, in bytes, and a quarter more for blocks of tiny assets")
	f.BoolVar(&config.SkipMigrations, "skip-migrations", false, "do not bring the schema of the database up to date; see downlinkd migrate")
	f.BoolVar(&config.SkipSHA256, "skip-sha256", false, "compute CRC-32 alone for assets that have to be read, which is faster")
	f.DurationVar(&config.KeepPackages, "keep-packages", 90*24*time.Hour, "forget packages that nobody has asked for in so long; 0 for never")
	f.BoolVar(&logJSON, "log-json", false, "write the log as JSON lines")
	completeFlag(cmd, "delivery", string(server.Stream), string(server.Assemble))
	return cmd
}

// serve runs the server until the context ends. Once it listens it prints where,
// for programs that asked for a free port.
func serve(ctx context.Context, config server.Config, listen, admin string, stdout io.Writer) (err error) {
	traces, err := startTracing(ctx, config.Log)
	if err != nil {
		return err
	}
	if traces != nil {
		config.TracerProvider = traces
		defer func() { // last of all
			flush, cancel := context.WithTimeout(context.WithoutCancel(ctx), min(flushTimeout, cmp.Or(config.ShutdownTimeout, flushTimeout)))
			defer cancel()
			if err := traces.Shutdown(flush); err != nil {
				otel.Handle(err)
			}
		}()
	}
	s, err := server.New(ctx, config)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close(context.WithoutCancel(ctx))) }()
	var lc net.ListenConfig
	listener, err := lc.Listen(ctx, "tcp", listen)
	if err != nil {
		return fmt.Errorf("%w; choose another address with --listen", err)
	}
	scheme := "http"
	if config.TLSCert != "" {
		scheme = "https"
	}
	var adminAddress net.Addr
	if admin != "" {
		adminListener, err := lc.Listen(ctx, "tcp", admin)
		if err != nil {
			_ = listener.Close() // nothing was accepted
			return fmt.Errorf("%w; choose another address with --admin-listen", err)
		}
		adminAddress = adminListener.Addr()
		stop := serveAdmin(s, adminListener)
		defer stop()
	}
	fmt.Fprintf(stdout, "listening on %s://%s\n", scheme, listener.Addr())
	if adminAddress != nil {
		fmt.Fprintf(stdout, "for operators on http://%s\n", adminAddress)
	}
	return s.Serve(ctx, listener)
}

// serveAdmin serves operators until it is stopped, which is after everybody else:
// they may want to know why that takes so long.
func serveAdmin(s *server.Server, listener net.Listener) (stop func()) {
	hs := &http.Server{Handler: s.AdminHandler(), ReadHeaderTimeout: 10 * time.Second}
	var running sync.WaitGroup
	running.Go(func() { _ = hs.Serve(listener) }) // it ends when it is closed
	return func() {
		_ = hs.Close() // nobody is waited for
		running.Wait()
	}
}

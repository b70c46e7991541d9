package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"github.com/go-logr/logr"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
)

// flushTimeout is how long the last spans may take to be sent at the end.
const flushTimeout = 5 * time.Second

// startTracing returns what makes and exports spans, as OpenTelemetry's
// environment variables say, or nil if they ask for none. Its errors, and what it
// logs later, have none of the secrets in those variables.
func startTracing(ctx context.Context, log *slog.Logger) (_ *sdktrace.TracerProvider, err error) {
	wanted, err := tracesWanted()
	if err != nil || !wanted {
		return nil, err
	}
	// What OpenTelemetry does not like it reports aside and goes on without.
	// Until it has started, that is an error.
	problems := &problems{log: log, hide: strings.NewReplacer(exporterSecrets()...)}
	otel.SetErrorHandler(problems)
	otel.SetLogger(logr.New(problems))
	defer func() { err = problems.started(err) }()

	var options []otlptracehttp.Option
	if exportEndpoint() == "" {
		// The exporter would take HTTPS, against OpenTelemetry's specification.
		options = append(options, otlptracehttp.WithEndpointURL("http://localhost:4318/v1/traces"))
	}
	exporter, err := otlptracehttp.New(ctx, options...)
	if err != nil {
		return nil, err
	}
	version := "unknown"
	if info, ok := debug.ReadBuildInfo(); ok {
		version = info.Main.Version
	}
	about, err := resource.New(ctx, resource.WithTelemetrySDK(), resource.WithHost(), resource.WithAttributes(
		attribute.String("service.name", "downlinkd"),
		attribute.String("service.version", version),
	), resource.WithFromEnv())
	if err != nil {
		return nil, err
	}
	return sdktrace.NewTracerProvider(sdktrace.WithBatcher(exporter), sdktrace.WithResource(about)), nil
}

// tracesWanted reports whether the environment asks for traces: by naming the
// exporter, or where to export to.
func tracesWanted() (bool, error) {
	endpoint := exportEndpoint()
	exporter := os.Getenv("OTEL_TRACES_EXPORTER")
	switch {
	case strings.EqualFold(os.Getenv("OTEL_SDK_DISABLED"), "true"), exporter == "none", exporter == "" && endpoint == "":
		return false, nil
	case exporter != "" && exporter != "otlp":
		return false, fmt.Errorf("OTEL_TRACES_EXPORTER %q: want otlp or none", exporter)
	}
	switch protocol := cmp.Or(os.Getenv("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"), os.Getenv("OTEL_EXPORTER_OTLP_PROTOCOL")); protocol {
	case "", "http/protobuf", "http/json":
	default:
		return false, fmt.Errorf("OTEL_EXPORTER_OTLP_PROTOCOL %q: want http/protobuf or http/json; collectors take these on port 4318", protocol)
	}
	if u, err := url.Parse(endpoint); endpoint != "" && (err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https") {
		return false, errors.New("OTEL_EXPORTER_OTLP_ENDPOINT: want a URL such as http://localhost:4318")
	}
	return true, nil
}

// exportEndpoint returns where the environment says to export to, if it does.
func exportEndpoint() string {
	return cmp.Or(os.Getenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"), os.Getenv("OTEL_EXPORTER_OTLP_ENDPOINT"))
}

// exporterSecrets returns what must not show of the exporter's configuration, as
// pairs of old and new: the values of headers, and the user in an endpoint.
func exporterSecrets() (pairs []string) {
	hide := func(secret string) {
		plain, err := url.PathUnescape(secret)
		if err != nil {
			plain = secret
		}
		for _, s := range []string{secret, plain} {
			if len(s) > 3 { // a shorter one would be found everywhere
				pairs = append(pairs, s, "xxxxx")
			}
		}
	}
	for _, signal := range []string{"", "TRACES_"} {
		headers := os.Getenv("OTEL_EXPORTER_OTLP_" + signal + "HEADERS")
		hide(headers)
		for header := range strings.SplitSeq(headers, ",") {
			_, value, _ := strings.Cut(header, "=")
			hide(strings.TrimSpace(value))
		}
		if u, err := url.Parse(os.Getenv("OTEL_EXPORTER_OTLP_" + signal + "ENDPOINT")); err == nil && u.User != nil {
			hide(u.User.String())
		}
	}
	return pairs
}

// problems takes what OpenTelemetry reports: it keeps it until started is called,
// and logs it from then on.
type problems struct {
	log  *slog.Logger
	hide *strings.Replacer

	mu      sync.Mutex
	early   []error
	running bool
}

// Handle implements otel.ErrorHandler.
func (p *problems) Handle(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	err = errors.New(p.hide.Replace(err.Error()))
	if !p.running {
		p.early = append(p.early, err)
		return
	}
	p.log.Warn("traces", slog.Any("error", err))
}

// started returns what was reported before, and err.
func (p *problems) started(err error) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.running = true
	if err != nil {
		p.early = append(p.early, errors.New(p.hide.Replace(err.Error())))
	}
	if err = errors.Join(p.early...); err != nil {
		return fmt.Errorf("traces, as the environment (OTEL_...) has them: %w", err)
	}
	return nil
}

// What follows implements logr.LogSink. The values beside a message may be secret.

var _ logr.LogSink = (*problems)(nil)

func (*problems) Init(logr.RuntimeInfo)                  {}
func (*problems) Enabled(level int) bool                 { return level <= 1 } // warnings
func (p *problems) Info(_ int, message string, _ ...any) { p.Handle(errors.New(message)) }
func (p *problems) WithValues(...any) logr.LogSink       { return p }
func (p *problems) WithName(string) logr.LogSink         { return p }

func (p *problems) Error(err error, message string, _ ...any) {
	p.Handle(fmt.Errorf("%s: %w", message, err))
}

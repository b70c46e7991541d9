// Package client downloads the packages of satellite-imagery jobs: it calls the
// Download Job API, waits until the package is ready, and fetches it.
//
//	c, err := client.New("", client.WithAPIKey(os.Getenv("DOWNLINK_API_KEY")))
//	result, err := c.Save(ctx, "W1", "J1", "job.zip")
//
// It works against downlinkd and against the original of the API, which is the
// default. What it needs of a server is the published contract; what downlinkd
// tells beyond that makes waiting and resuming better.
//
// The API key goes to the host of the base URL alone. It is sent neither to the
// host of a signed URL nor along a redirect to another host. Keys and signed
// URLs appear in no error and no log.
package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"runtime/debug"
	"strings"
	"time"

	"github.com/downlink-go/downlink/client/internal/transfer"
	"github.com/downlink-go/downlink/gen/apiclient"
)

// DefaultBaseURL is the original of the API.
const DefaultBaseURL = "https://api.pixxel.space"

// Client calls the API of one host. It is safe for concurrent use.
type Client struct {
	api  *apiclient.Client
	data *http.Client // for signed URLs; knows no key
	log  *slog.Logger
	// hosts bounds the connections of parallel downloads to one host.
	hosts *transfer.Hosts

	readyTimeout time.Duration // 0 for as long as the context lets it
	stallTimeout time.Duration // 0 for the default of package transfer
	retryBudget  time.Duration // the same
}

// Option configures a [Client].
type Option func(*options) error

func (f Option) apply(o *options) error { return f(o) }

type options struct {
	key       APIKey
	http      *http.Client
	log       *slog.Logger
	userAgent string

	readyTimeout time.Duration
	stallTimeout time.Duration
	retryBudget  time.Duration
}

// APIKey is the secret that a client presents. It never shows itself when it is
// printed or logged; string(key) is the key.
type APIKey string

// String returns a placeholder.
func (APIKey) String() string { return "[api key]" }

// Format writes a placeholder, whatever the verb.
func (k APIKey) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, k.String()) }

// LogValue returns a placeholder.
func (k APIKey) LogValue() slog.Value { return slog.StringValue(k.String()) }

// WithAPIKey sets the key for the API. Without one no Authorization is sent.
func WithAPIKey(key string) Option {
	return func(o *options) error {
		k := strings.TrimSpace(key)
		for _, r := range k {
			if r <= ' ' || r >= 0x7f {
				return errors.New("the API key has characters that no key has; check for line breaks and quotes")
			}
		}
		o.key = APIKey(k)
		return nil
	}
}

// WithHTTPClient sets the client that requests go through. It is not modified.
// A Timeout of it bounds each request as a whole and so the time that a download
// may take: leave it at 0. Defaults to one with the proxy of the environment.
func WithHTTPClient(c *http.Client) Option {
	return func(o *options) error {
		if c == nil {
			return errors.New("the HTTP client is nil")
		}
		o.http = c
		return nil
	}
}

// WithLogger sets where the client logs what it does, without keys and signed
// URLs. Defaults to discarding it.
func WithLogger(l *slog.Logger) Option {
	return func(o *options) error {
		if l == nil {
			return errors.New("the logger is nil")
		}
		o.log = l
		return nil
	}
}

// WithUserAgent sets the User-Agent of the requests. Defaults to
// "downlink-go/" and the version of this module.
func WithUserAgent(agent string) Option {
	return func(o *options) error {
		o.userAgent = agent
		return nil
	}
}

// WithReadyTimeout bounds how long a package may take to become ready, in every
// method that waits for one. The error is then a [*NotReadyError]. Defaults to
// what the context of the call lets it.
func WithReadyTimeout(d time.Duration) Option {
	return func(o *options) error {
		if d <= 0 {
			return errors.New("the time to wait for a package is not positive")
		}
		o.readyTimeout = d
		return nil
	}
}

// WithStallTimeout sets for how long a connection to the host of a package may
// send nothing until it is given up for another. Defaults to 30 seconds.
func WithStallTimeout(d time.Duration) Option {
	return func(o *options) error {
		if d <= 0 {
			return errors.New("the time for a stall is not positive")
		}
		o.stallTimeout = d
		return nil
	}
}

// WithRetryBudget sets for how long requests for a part of a package are repeated
// that get nowhere. Then the download ends with [ErrTransfer]. Defaults to 5
// minutes.
func WithRetryBudget(d time.Duration) Option {
	return func(o *options) error {
		if d <= 0 {
			return errors.New("the time for repeating requests is not positive")
		}
		o.retryBudget = d
		return nil
	}
}

// New returns a client for the API at the base URL, or at [DefaultBaseURL] if
// that is empty.
func New(baseURL string, opts ...Option) (*Client, error) {
	if baseURL == "" {
		baseURL = DefaultBaseURL
	}
	base, err := url.Parse(baseURL)
	if err != nil || base.Host == "" || base.Scheme != "http" && base.Scheme != "https" {
		return nil, errors.New("the base URL is not of the form https://host")
	}
	if base.User != nil || base.RawQuery != "" || base.Fragment != "" {
		return nil, errors.New("the base URL must have no user, query or fragment")
	}
	o := options{http: &http.Client{Transport: defaultTransport()}, log: slog.New(slog.DiscardHandler), userAgent: "downlink-go/" + version()}
	if err := applyAll(opts, Option.apply, &o); err != nil {
		return nil, err
	}
	api := *o.http
	api.CheckRedirect = dropKeyAcrossHosts(o.http.CheckRedirect)
	headers := func(_ context.Context, r *http.Request) error {
		if o.key != "" {
			r.Header.Set("Authorization", string(o.key))
		}
		r.Header.Set("Accept", "application/json")
		r.Header.Set("User-Agent", o.userAgent)
		return nil
	}
	generated, err := apiclient.NewClient(baseURL, apiclient.WithHTTPClient(&api), apiclient.WithRequestEditorFn(headers))
	if err != nil {
		return nil, fmt.Errorf("base URL: %w", err)
	}
	data := *o.http
	data.CheckRedirect = keepURLSecret(o.http.CheckRedirect)
	data.Transport = userAgentTransport{agent: o.userAgent, next: o.http.Transport}
	return &Client{
		api: generated, data: &data, log: o.log, hosts: transfer.NewHosts(maxConnections),
		readyTimeout: o.readyTimeout, stallTimeout: o.stallTimeout, retryBudget: o.retryBudget,
	}, nil
}

// defaultTransport is net/http's own but for a few more idle connections to the
// one host that parallel downloads talk to.
func defaultTransport() *http.Transport {
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.MaxIdleConnsPerHost = 16
	t.ResponseHeaderTimeout = 2 * time.Minute
	return t
}

// checkRedirect is what an [http.Client] asks before it follows a redirect.
type checkRedirect = func(r *http.Request, via []*http.Request) error

// dropKeyAcrossHosts keeps the key on the host, port and scheme that it was
// meant for. net/http itself lets it go on to subdomains and from https to http.
func dropKeyAcrossHosts(next checkRedirect) checkRedirect {
	return func(r *http.Request, via []*http.Request) error {
		if first := via[0].URL; r.URL.Host != first.Host || r.URL.Scheme != first.Scheme {
			r.Header.Del("Authorization")
		}
		return follow(next, r, via)
	}
}

// keepURLSecret keeps signed URLs from those that they redirect to, and from
// those who listen: net/http would send them as Referer.
func keepURLSecret(next checkRedirect) checkRedirect {
	return func(r *http.Request, via []*http.Request) error {
		r.Header.Del("Referer")
		if r.URL.Scheme != "https" && via[len(via)-1].URL.Scheme == "https" {
			return errors.New("refused to follow a redirect from https to http")
		}
		return follow(next, r, via)
	}
}

// follow decides as the client that was given to [WithHTTPClient] does.
func follow(next checkRedirect, r *http.Request, via []*http.Request) error {
	if next != nil {
		return next(r, via)
	}
	if len(via) >= 10 {
		return errors.New("stopped after 10 redirects")
	}
	return nil
}

// userAgentTransport names the program to the hosts of signed URLs.
type userAgentTransport struct {
	agent string
	next  http.RoundTripper
}

func (t userAgentTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	next := t.next
	if next == nil {
		next = http.DefaultTransport
	}
	r = r.Clone(r.Context())
	r.Header.Set("User-Agent", t.agent)
	return next.RoundTrip(r)
}

func version() string {
	const module = "github.com/downlink-go/downlink"
	b, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	if b.Main.Path == module {
		return b.Main.Version
	}
	for _, d := range b.Deps {
		if d.Path == module {
			return d.Version
		}
	}
	return "unknown"
}

package server

import (
	"context"
	"net/http"
	"runtime/debug"
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/downlink-go/downlink/server/internal/catalog"
	"github.com/downlink-go/downlink/server/internal/download"
	"github.com/downlink-go/downlink/server/internal/packager"
)

// metrics are those of one server. Labels have few values: routes, methods,
// statuses and states, never an identifier.
type metrics struct {
	registry *prometheus.Registry
	requests *prometheus.CounterVec
	duration *prometheus.HistogramVec
	bytes    *prometheus.CounterVec
	active   *prometheus.GaugeVec
	bucket   *prometheus.CounterVec
	cut      prometheus.Counter
}

// newBucketMetrics returns the counter for [countBucket].
func newBucketMetrics() *prometheus.CounterVec {
	return prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "downlink_bucket_operations_total",
		Help: "Operations on the bucket, by kind (list, read, stat, open, checksum, and upload, copy, complete, find and delete of assembled packages) and outcome (ok, missing, changed, canceled, error). Bytes that break off later are not counted here.",
	}, []string{"operation", "outcome"})
}

func newMetrics(s *Server, operations *prometheus.CounterVec) *metrics {
	route := []string{"route"}
	m := &metrics{
		registry: prometheus.NewRegistry(),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "downlink_http_requests_total",
			Help: "Requests that were answered. Watch the share of status 5xx.",
		}, []string{"route", "method", "status"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "downlink_http_request_duration_seconds",
			Help: "Time until a request was answered as a whole. A call may be held for up to a minute, a download takes what its client takes.",
			// Calls take milliseconds, downloads up to hours.
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 10, 60, 600, 3600},
		}, route),
		bytes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "downlink_http_sent_bytes_total",
			Help: "Bytes of bodies that were sent, those of downloads as they go. Its rate on the route of packages is the throughput of downloads.",
		}, route),
		active: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "downlink_http_active_requests",
			Help: "Requests that are being answered. On the route of packages these are the downloads under way.",
		}, route),
		bucket: operations,
		cut: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "downlink_downloads_cut_total",
			Help: "Downloads that were cut because an asset could not be read any more, or has changed. Those that clients gave up are not counted.",
		}),
	}
	m.registry.MustRegister(m.bucket, m.cut, m.requests, m.duration, m.bytes, m.active,
		&stateCollector{db: s.db, packager: s.packager}, cacheCollector{s.service}, buildInfo(),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "downlink_readahead_bytes",
			Help: "Memory held by assets that are read ahead of their turn, of 256 MiB that all downloads share. Where that is used up they read one asset after the other.",
		}, func() float64 { return float64(s.aheadHeld.bytes.Load()) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "downlink_readahead_assets",
			Help: "Assets that are opened or read ahead of their turn.",
		}, func() float64 { return float64(s.aheadHeld.assets.Load()) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "downlink_block_cache_bytes",
			Help: "Memory of blocks of packages that are made of tiny assets and read by range, a quarter of cache-bytes at most.",
		}, func() float64 { return float64(s.blocks.bytes()) }),
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// begin counts a request that is being answered. The returned function counts
// it as answered.
func (m *metrics) begin(route, method string) (end func(status int, bytes int64, took time.Duration)) {
	if route == "" {
		route = "none"
	}
	active := m.active.WithLabelValues(route)
	active.Inc()
	return func(status int, bytes int64, took time.Duration) {
		active.Dec()
		m.requests.WithLabelValues(route, knownMethod(method), strconv.Itoa(status)).Inc()
		m.duration.WithLabelValues(route).Observe(took.Seconds())
		m.bytes.WithLabelValues(route).Add(float64(bytes))
	}
}

// knownMethod keeps a client from making up values of a label.
func knownMethod(method string) string {
	switch method {
	case http.MethodGet, http.MethodHead, http.MethodPut, http.MethodPost, http.MethodDelete, http.MethodOptions:
		return method
	}
	return "other"
}

func buildInfo() prometheus.Collector {
	version := "unknown"
	if info, ok := debug.ReadBuildInfo(); ok {
		version = info.Main.Version
	}
	g := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "downlink_build_info", Help: "Always 1; the label has the version of the server.",
		ConstLabels: prometheus.Labels{"version": version},
	})
	g.Set(1)
	return g
}

// cacheCollector tells of the cache of package layouts.
type cacheCollector struct{ service *download.Service }

var (
	cacheBytes = prometheus.NewDesc("downlink_layout_cache_bytes",
		"Memory that the layouts of packages take, estimated. At the limit (cache-bytes) a growing rate of misses says that it is too small.", nil, nil)
	cachePackages = prometheus.NewDesc("downlink_layout_cache_packages",
		"Packages whose layout is in memory.", nil, nil)
	cacheRequests = prometheus.NewDesc("downlink_layout_cache_requests_total",
		"Requests for layouts. A miss reads the plan from the database and lays it out again.", []string{"result"}, nil)
)

func (cacheCollector) Describe(ch chan<- *prometheus.Desc) {
	ch <- cacheBytes
	ch <- cachePackages
	ch <- cacheRequests
}

func (c cacheCollector) Collect(ch chan<- prometheus.Metric) {
	stats := c.service.CacheStats()
	ch <- prometheus.MustNewConstMetric(cacheBytes, prometheus.GaugeValue, float64(stats.Bytes))
	ch <- prometheus.MustNewConstMetric(cachePackages, prometheus.GaugeValue, float64(stats.Packages))
	ch <- prometheus.MustNewConstMetric(cacheRequests, prometheus.CounterValue, float64(stats.Hits), "hit")
	ch <- prometheus.MustNewConstMetric(cacheRequests, prometheus.CounterValue, float64(stats.Misses), "miss")
}

// stateCollector tells what the database has. It asks at most every few seconds,
// however often and by however many it is asked. All servers on one database
// tell the same.
type stateCollector struct {
	db       *catalog.DB
	packager *packager.Packager

	mu       sync.Mutex
	asked    time.Time
	packages []catalog.PackageCount
	jobs     map[string]int
	err      error
}

const (
	stateAge     = 5 * time.Second
	stateTimeout = 5 * time.Second
)

var (
	packagesDesc = prometheus.NewDesc("downlink_packages",
		"Packages in the database, by state. Those that failed start again with the next call.", []string{"state"}, nil)
	pendingBytes = prometheus.NewDesc("downlink_packages_pending_bytes",
		"Bytes of assets that are still to be read before their packages are ready.", nil, nil)
	queueJobs = prometheus.NewDesc("downlink_queue_jobs",
		"Jobs in the queue, by state. Many that are available mean that servers cannot keep up, retryable ones that assets cannot be read.", []string{"state"}, nil)
)

func (*stateCollector) Describe(ch chan<- *prometheus.Desc) {
	ch <- packagesDesc
	ch <- pendingBytes
	ch <- queueJobs
}

func (c *stateCollector) Collect(ch chan<- prometheus.Metric) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if time.Since(c.asked) > stateAge {
		ctx, cancel := context.WithTimeout(context.Background(), stateTimeout) // a scrape has no context of its own
		c.packages, c.err = c.db.PackageCounts(ctx)
		if c.err == nil {
			c.jobs, c.err = c.packager.JobCounts(ctx)
		}
		cancel()
		c.asked = time.Now()
	}
	if c.err != nil {
		ch <- prometheus.NewInvalidMetric(packagesDesc, c.err)
		return
	}
	var pending int64
	for _, p := range c.packages {
		ch <- prometheus.MustNewConstMetric(packagesDesc, prometheus.GaugeValue, float64(p.Packages), string(p.State))
		pending += p.BytesLeft
	}
	ch <- prometheus.MustNewConstMetric(pendingBytes, prometheus.GaugeValue, float64(pending))
	for state, n := range c.jobs {
		ch <- prometheus.MustNewConstMetric(queueJobs, prometheus.GaugeValue, float64(n), state)
	}
}

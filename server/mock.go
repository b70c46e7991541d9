package server

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/downlink-go/downlink/gen/apiserver"
	"github.com/downlink-go/downlink/server/internal/catalog"
	"github.com/downlink-go/downlink/server/internal/download"
	"github.com/downlink-go/downlink/server/internal/madeup"
)

// MockConfig configures a [Mock]. The zero value is usable.
type MockConfig struct {
	// Jobs are made up: W1/J1=20x200MB has 20 assets of 200 MB, W1/J2=1x5GB,3x20KB
	// 4 of two sizes, W1/J3=running never ends and W1/J4=failed has failed. Defaults
	// to W1/J1=3x1MB,20x20KB.
	Jobs []string
	// Faults are those of single jobs, for every request: W1/J1=pending:3,slow:1MB,
	// or each in a string of its own. [MockFaults] lists them. Clients choose faults
	// themselves with the header [MockFaultHeader] of the call. Defaults to none.
	Faults []string
	// Key is the only API key that is accepted. Defaults to any that is not empty.
	Key string
	// LinkLifetime is that of [Config].
	LinkLifetime time.Duration
	// Log is that of [Config].
	Log *slog.Logger
}

// Mock is a server of made-up jobs, for tests of clients: it has no state, needs
// no bucket and makes the faults that it is asked for. Apart from those it answers
// as a [Server] does, by the same code, but for its [Limits], which do not hold.
// The bytes of an asset are always the same and are worked out when they are read.
// It is safe for concurrent use.
type Mock struct{ server *Server }

// Handler returns the HTTP interface. Set the WriteTimeout of an [http.Server]
// with it above a minute.
func (m *Mock) Handler() http.Handler { return m.server.handler }

// Serve answers on the listener until the context ends, and then cuts what is
// still running after a second. It closes the listener.
func (m *Mock) Serve(ctx context.Context, listener net.Listener) error {
	return m.server.Serve(ctx, listener)
}

// NewMock returns a mock. Errors say what is wrong with the configuration.
func NewMock(config MockConfig) (*Mock, error) {
	names := config.Jobs
	if len(names) == 0 {
		names = []string{"W1/J1=3x1MB,20x20KB"}
	}
	var jobs []madeup.Job
	seen := map[string]bool{}
	for _, s := range names {
		j, err := madeup.Parse(s)
		if err != nil {
			return nil, err
		}
		name := j.WorkflowID + "/" + j.JobID
		if seen[name] {
			return nil, fmt.Errorf("job %q: there is a job %s already", s, name)
		}
		seen[name] = true
		jobs = append(jobs, j)
	}
	world := madeup.New(jobs...)
	faults, err := newMockFaults(world, config.Faults)
	if err != nil {
		return nil, err
	}
	c, err := Config{
		Bucket: "mock", LinkLifetime: config.LinkLifetime, Log: config.Log,
		ShutdownTimeout: time.Second, // nothing is lost
	}.withDefaults()
	if err != nil {
		return nil, err
	}
	secret := make(download.SigningKey, 32)
	_, _ = rand.Read(secret) // never fails
	keyring, err := download.NewKeyring(secret)
	if err != nil {
		return nil, err
	}
	faults.keyring = keyring
	s := &Server{
		config: c, log: c.Log, stallTimeout: c.StallTimeout, keyring: keyring,
		aheadMemory: semaphore.NewWeighted(aheadTotal),
		blocks:      newBlocks(c.CacheBytes / 4),
		slots:       slots{most: -1, mostPerKey: -1, perKey: map[string]int{}},
		keys:        mockKeys(config.Key),
		middlewares: []apiserver.StrictMiddlewareFunc{faults.calls},
	}
	s.service = download.NewService(download.Config{
		Catalog: world, Grants: world, Packages: world, Packager: world, Objects: world,
		Keyring: keyring, LinkLifetime: c.LinkLifetime,
	})
	s.metrics = newMetrics(s, newBucketMetrics())
	routes, err := s.routes()
	if err != nil {
		return nil, err
	}
	s.handler = faults.content(routes)
	return &Mock{s}, nil
}

// keys knows the API keys.
type keys interface {
	Authenticate(ctx context.Context, key catalog.APIKey) (catalog.Identity, error)
}

// mockKeys accepts one key, or any if it is empty.
type mockKeys string

func (k mockKeys) Authenticate(_ context.Context, key catalog.APIKey) (catalog.Identity, error) {
	if k != "" && subtle.ConstantTimeCompare([]byte(k), []byte(key)) != 1 {
		return catalog.Identity{}, &download.Error{Code: download.Unauthenticated, Message: "the API key is not valid"}
	}
	return catalog.Identity{OrganizationID: "mock", Organization: "mock", KeyID: "mock"}, nil
}

// newMockFaults reads the faults of single jobs.
func newMockFaults(world *madeup.World, specs []string) (*mockFaults, error) {
	f := &mockFaults{byJob: map[string]faultSpec{}, calledBy: map[string]int{}, links: map[string]*mockLink{}}
	for _, s := range specs {
		name, text, ok := cutFault(s)
		if !ok {
			return nil, fmt.Errorf("fault %q: want WORKFLOW/JOB=FAULT:VALUE, such as W1/J1=pending:3", s)
		}
		workflowID, jobID, err := madeup.ParseName(name)
		if err != nil {
			return nil, fmt.Errorf("fault %q: %w", s, err)
		}
		if !world.Has(workflowID, jobID) {
			return nil, fmt.Errorf("fault %q: there is no job %s", s, name)
		}
		spec, err := parseFaults(text)
		if err != nil {
			return nil, fmt.Errorf("fault %q: %w", s, err)
		}
		if f.byJob[name] == nil {
			f.byJob[name] = faultSpec{}
		}
		for kind, value := range spec {
			if _, twice := f.byJob[name][kind]; twice {
				return nil, fmt.Errorf("fault %q: %s is given twice for %s", s, kind, name)
			}
			f.byJob[name][kind] = value
		}
	}
	return f, nil
}

// specFor returns the faults for a call: those of its header, or of its job.
func (f *mockFaults) specFor(header, job string) (faultSpec, error) {
	if header == "" {
		return f.byJob[job], nil
	}
	spec, err := parseFaults(header)
	if err != nil {
		return nil, &download.Error{
			Code: download.InvalidParameter, Message: MockFaultHeader + " is malformed",
			Details: []download.Detail{{Field: MockFaultHeader, Message: err.Error()}},
		}
	}
	return spec, nil
}

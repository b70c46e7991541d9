package download

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"
)

// newWorld returns a world with one succeeded job of one asset, a grant for
// everybody, and a packager whose packages are ready at once.
func newWorld() *world {
	return &world{
		job: func(string, string) (Job, error) {
			return Job{Status: JobSucceeded, Assets: []Asset{asset(Input, "a", "a")}}, nil
		},
		granted: func(string, string) (bool, error) { return true, nil },
		stat:    func(string) (Object, error) { return Object{}, ErrObjectNotFound },
		pkg:     func(uuid.UUID) (Package, error) { return Package{}, ErrPackageNotFound },
		prepare: func(p *Plan) (Package, error) {
			return Package{ID: p.ID, WorkflowID: p.WorkflowID, JobID: p.JobID, State: Ready, Size: 1000, Digest: make([]byte, 32)}, nil
		},
	}
}

func (w *world) service(t testing.TB, change ...func(*Config)) *Service {
	c := Config{Catalog: w, Grants: w, Packages: w, Packager: w, Objects: w, Keyring: newTestKeyring(t, testKey(1))}
	for _, f := range change {
		f(&c)
	}
	return NewService(c)
}

var request = Request{OrganizationID: "o", WorkflowID: "W1", JobID: "J1"}

func TestDownloadAsksBeforeItLooks(t *testing.T) {
	t.Parallel()
	w := newWorld()
	var asked []string
	w.granted = func(string, string) (bool, error) { return false, nil }
	w.job = func(workflowID, jobID string) (Job, error) {
		asked = append(asked, workflowID+"/"+jobID)
		return Job{}, ErrJobNotFound
	}
	if _, err := w.service(t).Download(t.Context(), request); code(err) != PermissionDenied {
		t.Errorf("without a grant: %v", err)
	}
	// It takes as long as for a job that does not exist, and tells no more.
	if !slices.Equal(asked, []string{"-/-"}) {
		t.Errorf("asked for %q, want one job that cannot exist", asked)
	}
	_, malformed := w.service(t).Download(t.Context(), Request{WorkflowID: "W1", JobID: "-"})
	if code(malformed) != InvalidParameter {
		t.Errorf("a malformed job: %v", malformed)
	}
}

func TestDownloadStates(t *testing.T) {
	t.Parallel()
	now := signedAt
	assetMissing := MissingAssets([]Detail{{Asset: "a", Message: "gone"}})
	tests := []struct {
		name     string
		stored   *Package // nil for none
		prepared *Package // nil if it must not be asked for
		want     State
		err      Code
	}{
		{name: "new", prepared: &Package{State: Ready}, want: Ready},
		{name: "new, pending", prepared: &Package{State: Pending}, want: Pending},
		{name: "ready", stored: &Package{State: Ready}, want: Ready},
		{name: "pending", stored: &Package{State: Pending}, want: Pending},
		{name: "failed just now", stored: &Package{State: Failed, Failure: assetMissing, Progress: Progress{Updated: now.Add(-9 * time.Second)}}, err: AssetMissing},
		{name: "failed before", stored: &Package{State: Failed, Failure: assetMissing, Progress: Progress{Updated: now.Add(-11 * time.Second)}}, prepared: &Package{State: Pending}, want: Pending},
		{name: "failed before the clock was put back", stored: &Package{State: Failed, Failure: assetMissing, Progress: Progress{Updated: now.Add(time.Hour)}}, prepared: &Package{State: Pending}, want: Pending},
		{name: "fails at once", prepared: &Package{State: Failed, Failure: &Error{Code: Unavailable}}, err: Unavailable},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld()
			complete := func(id uuid.UUID, p *Package) Package {
				full := *p
				full.ID, full.WorkflowID, full.JobID, full.Digest = id, "W1", "J1", make([]byte, 32)
				return full
			}
			if tt.stored != nil {
				w.pkg = func(id uuid.UUID) (Package, error) { return complete(id, tt.stored), nil }
			}
			prepared := false
			w.prepare = func(p *Plan) (Package, error) {
				prepared = true
				if tt.prepared == nil {
					return Package{}, errors.New("prepared for nothing")
				}
				return complete(p.ID, tt.prepared), nil
			}
			d, err := w.service(t, func(c *Config) { c.Now = func() time.Time { return now } }).Download(t.Context(), request)
			if code(err) != tt.err || (err == nil) != (tt.err == "") {
				t.Fatalf("error %v, want %q", err, tt.err)
			}
			if prepared != (tt.prepared != nil) {
				t.Errorf("prepared: %t", prepared)
			}
			if d.State != tt.want {
				t.Errorf("state %s, want %s", d.State, tt.want)
			}
			if (d.Token != "") != (tt.want == Ready) {
				t.Errorf("token %q with a package that is %s", d.Token, tt.want)
			}
		})
	}
}

func TestTimeLeft(t *testing.T) {
	t.Parallel()
	begun := time.Date(2026, 5, 1, 0, 0, 0, 0, time.UTC)
	for _, tt := range []struct {
		name     string
		progress Progress
		want     time.Duration
	}{
		{"nothing left", Progress{}, 0},
		{"not begun", Progress{BytesTotal: 1e9}, 5 * time.Second},
		{"just begun", Progress{BytesTotal: 1e9, Started: begun, Updated: begun}, 5 * time.Second},
		{"measured", Progress{BytesTotal: 10e9, BytesDone: 4e9, Started: begun, Updated: begun.Add(8 * time.Second)}, 12 * time.Second},
		{"stalled", Progress{BytesTotal: 1 << 50, BytesDone: 1, Started: begun, Updated: begun.Add(time.Hour)}, 24 * time.Hour},
	} {
		if got := tt.progress.TimeLeft().Round(time.Millisecond); got != tt.want {
			t.Errorf("%s: got %v, want %v", tt.name, got, tt.want)
		}
	}
}

func TestDownloadProgress(t *testing.T) {
	t.Parallel()
	w := newWorld()
	for _, tt := range []struct {
		total, done int64
		want        float64
		left        time.Duration
	}{{0, 0, -1, 0}, {100e9, 0, 0, 500 * time.Second}, {100e9, 42e9, 0.42, 290 * time.Second}, {100, 100, 1, 0}, {100, 120, 1, 0}} {
		w.prepare = func(p *Plan) (Package, error) {
			return Package{ID: p.ID, State: Pending, Progress: Progress{BytesTotal: tt.total, BytesDone: tt.done}}, nil
		}
		d, err := w.service(t).Download(t.Context(), request)
		if err != nil || d.Progress != tt.want || d.RetryAfter != tt.left || d.Reason != Checksumming {
			t.Errorf("%d of %d bytes: %+v, %v, want progress %v", tt.done, tt.total, d, err, tt.want)
		}
	}
}

// TestDownloadWaits: for what is left of the time, and for a running job too.
func TestDownloadWaits(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.prepare = func(p *Plan) (Package, error) {
			time.Sleep(3 * time.Second)
			return Package{ID: p.ID, State: Pending}, nil
		}
		var waited time.Duration
		w.wait = func(id uuid.UUID, d time.Duration) (Package, error) {
			waited = d
			return Package{ID: id, State: Pending}, nil
		}
		s := w.service(t)
		r := request
		r.Wait = 10 * time.Second
		if _, err := s.Download(t.Context(), r); err != nil || waited != 7*time.Second {
			t.Errorf("waited %s, %v, want the 7 s that are left", waited, err)
		}

		start := time.Now()
		w = newWorld()
		succeeded := w.job
		w.job = func(workflowID, jobID string) (Job, error) {
			if time.Since(start) < 5*time.Second {
				return Job{Status: JobRunning}, nil
			}
			return succeeded(workflowID, jobID)
		}
		d, err := w.service(t).Download(t.Context(), r)
		if err != nil || d.State != Ready {
			t.Errorf("a job that ends within the wait: %+v, %v", d, err)
		}

		w.job = func(string, string) (Job, error) { return Job{Status: JobRunning}, nil }
		start = time.Now()
		d, err = w.service(t).Download(t.Context(), r)
		if err != nil || d.State != Pending || d.Reason != JobIsRunning {
			t.Errorf("a job that does not end: %+v, %v", d, err)
		}
		if took := time.Since(start); took > r.Wait {
			t.Errorf("took %s, want at most %s", took, r.Wait)
		}

		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := w.service(t).Download(ctx, r); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a caller that goes: %v", err)
		}
	})
}

func TestDownloadPins(t *testing.T) {
	t.Parallel()
	w := newWorld()
	unpinned := func(path string, size int64) Asset {
		return Asset{Role: Input, Path: path, Object: Object{Key: path, Size: size}}
	}
	var assets []Asset
	w.job = func(string, string) (Job, error) { return Job{Status: JobSucceeded, Assets: assets}, nil }
	w.stat = func(key string) (Object, error) {
		switch key {
		case "a", "b":
			return Object{Key: key, Version: "v", Size: 5, Modified: modified}, nil
		case "fault":
			return Object{}, errors.New("disk on fire")
		}
		return Object{}, ErrObjectNotFound
	}
	var planned *Plan
	prepare := w.prepare
	w.prepare = func(p *Plan) (Package, error) {
		planned = p
		return prepare(p)
	}
	s := w.service(t)

	assets = []Asset{unpinned("a", -1), unpinned("b", 5)}
	if _, err := s.Download(t.Context(), request); err != nil {
		t.Fatal(err)
	}
	for _, e := range planned.Entries {
		if e.Object.Version != "v" || e.Object.Size != 5 {
			t.Errorf("%s is planned as %+v", e.Name, e.Object)
		}
	}

	assets = []Asset{unpinned("a", 4), unpinned("b", -1), unpinned("c", -1)}
	_, err := s.Download(t.Context(), request)
	e, ok := errors.AsType[*Error](err)
	if !ok || e.Code != AssetMissing || len(e.Details) != 2 || e.Details[0].Asset != "inputs/a" || e.Details[1].Asset != "inputs/c" {
		t.Errorf("got %v, want asset_missing for a and c", err)
	}

	assets = []Asset{unpinned("a", -1), unpinned("fault", -1)}
	if _, err := s.Download(t.Context(), request); err == nil || code(err) != "" {
		t.Errorf("a fault of the store: %v", err)
	}
}

func TestLifetime(t *testing.T) {
	t.Parallel()
	s := newWorld().service(t)
	for _, tt := range []struct {
		size int64
		want time.Duration
	}{
		{0, time.Hour},
		{1 << 30, time.Hour},
		{10 << 30, 20480 * time.Second},
		{1 << 40, 7 * 24 * time.Hour},
		{1 << 62, 7 * 24 * time.Hour},
	} {
		if got := s.lifetime(tt.size); got != tt.want {
			t.Errorf("a link to %d bytes lives %s, want %s", tt.size, got, tt.want)
		}
	}
}

func TestContent(t *testing.T) {
	t.Parallel()
	w := newWorld()
	plan := NewPlan("W1", "J1", []Asset{asset(Input, "a", "a")})
	layout, err := plan.Layout()
	if err != nil {
		t.Fatal(err)
	}
	var loads atomic.Int32
	w.plan = func(id uuid.UUID) (*Plan, error) {
		loads.Add(1)
		if id != plan.ID {
			return nil, ErrPackageNotFound
		}
		return plan, nil
	}
	now := signedAt
	s := w.service(t, func(c *Config) { c.Now = func() time.Time { return now } })
	digest := layout.Digest()
	sign := func(l Link) string { return s.Keyring.Sign(l, "W1_J1.zip") }
	open := func(token string) (*Content, error) {
		l, err := s.Link(token, "W1_J1.zip")
		if err != nil {
			return nil, err
		}
		return s.Content(t.Context(), l)
	}
	good := Link{Package: plan.ID, Digest: [8]byte(digest[:]), Expires: signedAt.Add(time.Hour)}

	for range 3 {
		c, err := open(sign(good))
		if err != nil || c.Layout.Size() != layout.Size() {
			t.Fatalf("content: %v", err)
		}
	}
	// A clock that is put forward ends links, one that is put back does not.
	for jump, want := range map[time.Duration]Code{0: "", -365 * 24 * time.Hour: "", 2 * time.Hour: LinkExpired} {
		now = signedAt.Add(jump)
		if _, err := open(sign(good)); code(err) != want {
			t.Errorf("a clock put by %s: %v, want %q", jump, err, want)
		}
	}
	now = signedAt
	if n := loads.Load(); n != 1 {
		t.Errorf("the plan was loaded %d times, want once", n)
	}
	other, gone, expired := good, good, good
	other.Digest[0]++
	gone.Package[0]++
	expired.Expires = signedAt
	for name, tt := range map[string]struct {
		link Link
		want Code
	}{"of another digest": {other, PackageOutdated}, "of no package": {gone, PackageOutdated}, "expired": {expired, LinkExpired}} {
		if _, err := open(sign(tt.link)); code(err) != tt.want {
			t.Errorf("a link %s: %v, want %s", name, err, tt.want)
		}
	}
}

// planner is the Packages of a package that takes its time to load.
type planner struct {
	Packages
	load func(ctx context.Context) (*Plan, error)
}

func (p planner) Plan(ctx context.Context, _ uuid.UUID) (*Plan, error) { return p.load(ctx) }

func TestContentIsLoadedForAll(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		plan := NewPlan("W1", "J1", []Asset{{Role: Input, Path: "a", Object: Object{Key: "a", Version: "1"}, Checksum: &Checksum{}}})
		loading, proceed := make(chan struct{}), make(chan struct{})
		c := newContentCache(planner{load: func(ctx context.Context) (*Plan, error) {
			close(loading)
			<-proceed
			return plan, ctx.Err()
		}}, nil, 1<<20)
		ctx, leave := context.WithCancel(t.Context())
		go func() { _, _ = c.get(ctx, plan.ID) }() // it leaves
		<-loading
		second := make(chan error)
		go func() {
			_, err := c.get(t.Context(), plan.ID)
			second <- err
		}()
		synctest.Wait()
		leave() // the one that has begun to load it
		close(proceed)
		if err := <-second; err != nil {
			t.Errorf("the second request got %v", err)
		}
	})
}

func TestErrorForLogs(t *testing.T) {
	t.Parallel()
	cause := errors.New("cause")
	err := &Error{Code: AssetMissing, Message: "missing", Err: cause, Details: []Detail{
		{Asset: "a", Message: "1"}, {Asset: "b", Message: "2"}, {Asset: "c", Message: "3"}, {Asset: "d", Message: "4"},
	}}
	if got := err.Error(); !strings.Contains(got, "a: 1") || strings.Contains(got, "d: 4") || !strings.HasSuffix(got, ": cause") {
		t.Errorf("%q", got)
	}
	if !errors.Is(err, cause) {
		t.Error("the cause is lost")
	}
}

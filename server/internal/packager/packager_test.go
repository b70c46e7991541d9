package packager_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"go.uber.org/goleak"
	"golang.org/x/sync/errgroup"

	"github.com/downlink-go/downlink/server/internal/catalog"
	"github.com/downlink-go/downlink/server/internal/catalog/catalogtest"
	"github.com/downlink-go/downlink/server/internal/download"
	"github.com/downlink-go/downlink/server/internal/packager"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// long is more than anything here takes.
const long = 30 * time.Second

// each runs the test over every kind of database, migrated.
func each(t *testing.T, test func(t *testing.T, database string)) {
	t.Parallel()
	catalogtest.Each(t, test)
}

func openDB(tb testing.TB, database string) *catalog.DB {
	tb.Helper()
	return catalogtest.Open(tb, catalog.Config{Database: database}, packager.Migrator)
}

// newPackager returns a packager that is stopped with the test.
func newPackager(tb testing.TB, db *catalog.DB, objects download.Objects, change ...func(*packager.Config)) *packager.Packager {
	tb.Helper()
	c := packager.Config{DB: db, Objects: objects, StopTimeout: time.Millisecond}
	for _, f := range change {
		f(&c)
	}
	p, err := packager.New(tb.Context(), c)
	if err != nil {
		tb.Fatal(err)
	}
	p.SetBackoff(time.Millisecond)
	tb.Cleanup(func() {
		if err := p.Stop(context.Background()); err != nil {
			tb.Error(err)
		}
	})
	return p
}

func start(tb testing.TB, p *packager.Packager) *packager.Packager {
	tb.Helper()
	if err := p.Start(tb.Context()); err != nil {
		tb.Fatal(err)
	}
	return p
}

func prepare(t *testing.T, p *packager.Packager, plan *download.Plan, want download.State) download.Package {
	t.Helper()
	pkg, err := p.Prepare(t.Context(), plan)
	if err != nil || pkg.State != want {
		t.Fatalf("Prepare = %+v, %v, want it to be %s", pkg, err, want)
	}
	return pkg
}

func wait(t *testing.T, p *packager.Packager, id uuid.UUID, want download.State) download.Package {
	t.Helper()
	pkg, err := p.Wait(t.Context(), id, long)
	if err != nil || pkg.State != want {
		t.Fatalf("Wait = %+v, %v, want it to be %s", pkg, err, want)
	}
	return pkg
}

// eventually fails the test unless the condition becomes true.
func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(long); !condition(); {
		if time.Now().After(deadline) {
			t.Fatalf("it never came to this: %s", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func count(t *testing.T, db *catalog.DB, from string) (n int) {
	t.Helper()
	if err := db.SQL().QueryRowContext(t.Context(), "SELECT count(*) FROM "+from).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

// checkReady fails the test unless the stored package has the right checksums.
func checkReady(t *testing.T, db *catalog.DB, s *store, pkg download.Package, sha bool) {
	t.Helper()
	plan, err := db.Plan(t.Context(), pkg.ID)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range plan.Entries {
		if want := s.want(e.Object.Key, sha); e.Checksum == nil || !reflect.DeepEqual(*e.Checksum, want) {
			t.Fatalf("%s: checksum %+v, want %+v", e.Name, e.Checksum, want)
		}
	}
	layout, err := plan.Layout()
	if err != nil {
		t.Fatal(err)
	}
	if digest := layout.Digest(); pkg.Size != layout.Size() || !bytes.Equal(pkg.Digest, digest[:]) {
		t.Errorf("size %d, digest %x, want %d, %x", pkg.Size, pkg.Digest, layout.Size(), digest)
	}
	if pkg.BytesDone != pkg.BytesTotal {
		t.Errorf("%d of %d bytes done", pkg.BytesDone, pkg.BytesTotal)
	}
}

func TestPendingBecomesReady(t *testing.T) {
	each(t, func(t *testing.T, database string) {
		for name, sha := range map[string]bool{"with SHA-256": true, "without": false} {
			t.Run(name, func(t *testing.T) {
				s := newStore()
				db := openDB(t, database)
				p := start(t, newPackager(t, db, s, func(c *packager.Config) { c.SkipSHA256 = !sha }))
				sizes := []int{0, 1, 1 << 20, 1<<20 + 1, 5<<20 + 7}
				if !sha {
					sizes = append(sizes, 130<<20+3) // several parts
				}
				var assets []download.Asset
				for i, size := range sizes {
					path := string(rune('a' + i))
					assets = append(assets, download.Asset{Role: download.Input, Path: path, Object: s.put(name+path, pattern(size))})
				}
				assets = append(assets, download.Asset{Role: download.Output, Path: "again", Object: assets[1].Object})
				plan := download.NewPlan("W1", strings.ReplaceAll(name, " ", "-"), assets)
				prepare(t, p, plan, download.Pending)
				checkReady(t, db, s, wait(t, p, plan.ID, download.Ready), sha)

				// What was found out serves every later package.
				s.opened()
				later := download.NewPlan("W2", "later", assets[:2])
				checkReady(t, db, s, prepare(t, p, later, download.Ready), sha)
				if opens := s.opened(); opens != nil {
					t.Errorf("read again: %+v", opens)
				}
			})
		}
	})
}

// pattern is data that differs everywhere.
func pattern(n int) []byte {
	data := make([]byte, n)
	for i := range data {
		data[i] = byte(i) ^ byte(i>>8)*3 ^ byte(i>>16)*7
	}
	return data
}

func TestKnownChecksumsMakeReadyAtOnce(t *testing.T) {
	each(t, func(t *testing.T, database string) {
		s := newStore()
		db := openDB(t, database)
		t.Run("in the plan", func(t *testing.T) {
			plan := s.job("declared", 3)
			for i := range plan.Entries {
				sum := s.want(plan.Entries[i].Object.Key, i == 1)
				plan.Entries[i].Checksum = &sum
			}
			prepare(t, newPackager(t, db, s), plan, download.Ready)
		})
		t.Run("in the store", func(t *testing.T) {
			pkg := prepare(t, newPackager(t, db, knowing{s}), s.job("known", 3), download.Ready)
			checkReady(t, db, s, pkg, false)
		})
		t.Run("of nothing", func(t *testing.T) {
			prepare(t, newPackager(t, db, s), download.NewPlan("W1", "empty", nil), download.Ready)
		})
		if n := count(t, db, "river_job"); n != 0 {
			t.Errorf("%d jobs, want none", n)
		}
	})
}

func TestMigrator(t *testing.T) {
	each(t, func(t *testing.T, database string) {
		g, ctx := errgroup.WithContext(t.Context())
		for range 4 {
			g.Go(func() error {
				db, err := catalog.Open(ctx, catalog.Config{Database: database})
				if err != nil {
					return err
				}
				defer db.Close()
				m, err := packager.Migrator(db)
				if err != nil {
					return err
				}
				return errors.Join(db.Migrate(ctx, m), db.CheckMigrated(ctx, m))
			})
		}
		if err := g.Wait(); err != nil {
			t.Fatal(err)
		}
		db := openDB(t, database)
		if _, err := db.SQL().ExecContext(t.Context(), `INSERT INTO river_migration (line, version) VALUES ('main', 999)`); err != nil {
			t.Fatal(err)
		}
		m, err := packager.Migrator(db)
		if err != nil {
			t.Fatal(err)
		}
		if err := db.Migrate(t.Context(), m); !errors.Is(err, catalog.ErrNewerSchema) {
			t.Errorf("got %v, want ErrNewerSchema", err)
		}
	})
}

// Two processes with thousands of calls each make one package and one job.
func TestStampede(t *testing.T) {
	each(t, func(t *testing.T, database string) {
		s := newStore()
		plan := s.job("popular", 3)
		var wg sync.WaitGroup
		var packagers []*packager.Packager
		for range 2 {
			packagers = append(packagers, newPackager(t, openDB(t, database), s))
		}
		db := openDB(t, database)
		for i := range 10_000 {
			wg.Go(func() {
				copied := *plan
				copied.Entries = append([]download.Entry(nil), plan.Entries...)
				pkg, err := packagers[i%2].Prepare(t.Context(), &copied)
				if err != nil || pkg.ID != plan.ID || pkg.State != download.Pending {
					t.Errorf("Prepare = %+v, %v", pkg, err)
				}
			})
		}
		wg.Wait()
		if packages, jobs := count(t, db, "packages"), count(t, db, "river_job"); packages != 1 || jobs != 1 {
			t.Errorf("%d packages and %d jobs, want 1 and 1", packages, jobs)
		}
		for _, p := range packagers {
			if db.Dialect() == catalog.Postgres || p == packagers[0] { // a SQLite database has one server
				start(t, p)
			}
		}
		for i := range 1000 {
			wg.Go(func() {
				if pkg, err := packagers[i%2].Wait(t.Context(), plan.ID, long); err != nil || pkg.State != download.Ready {
					t.Errorf("Wait = %+v, %v", pkg, err)
				}
			})
		}
		wg.Wait()
		if opens := s.opened(); len(opens) != 3 {
			t.Errorf("read %d times, want 3", len(opens))
		}
	})
}

// TestManyLookupsAreWork: no call waits while the store is asked about very many
// assets. What the store does not know is read.
func TestManyLookupsAreWork(t *testing.T) {
	each(t, func(t *testing.T, database string) {
		const assets, unknown = 1500, 7
		s := &counting{store: newStore(), unknown: map[string]bool{}}
		db := openDB(t, database)
		p := newPackager(t, db, s)
		plan := s.job("job", assets)
		for i := range unknown {
			s.unknown[plan.Entries[i*200].Object.Key] = true
		}
		prepare(t, p, plan, download.Pending)
		if n := s.asked.Load(); n != 0 {
			t.Errorf("the call asked the store %d times, want none", n)
		}
		start(t, p)
		pkg := wait(t, p, plan.ID, download.Ready)
		if n := s.asked.Load(); n != assets {
			t.Errorf("the store was asked %d times, want once for each of %d", n, assets)
		}
		if n := len(s.opened()); n != unknown {
			t.Errorf("%d assets were read, want the %d that the store does not know", n, unknown)
		}
		if pkg.BytesDone != pkg.BytesTotal {
			t.Errorf("%d bytes of %d are done", pkg.BytesDone, pkg.BytesTotal)
		}
		stored, err := db.Plan(t.Context(), plan.ID)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range stored.Entries {
			if want := s.want(e.Object.Key, false); e.Checksum == nil || e.Checksum.CRC32 != want.CRC32 {
				t.Fatalf("%s has the checksum %v, want %08x", e.Name, e.Checksum, want.CRC32)
			}
		}
	})
}

// counting is a store that knows all checksums but some.
type counting struct {
	*store
	unknown map[string]bool
	asked   atomic.Int64
}

func (c *counting) Checksum(ctx context.Context, o download.Object) (*download.Checksum, error) {
	c.asked.Add(1)
	if c.unknown[o.Key] {
		return nil, nil
	}
	return knowing{c.store}.Checksum(ctx, o)
}

func TestCallerThatLeavesDoesNotHurtTheOthers(t *testing.T) {
	each(t, func(t *testing.T, database string) {
		s := &slow{store: newStore(), asked: make(chan struct{})}
		p := newPackager(t, openDB(t, database), s)
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, err := p.Prepare(ctx, s.job("job", 1)); !errors.Is(err, context.Canceled) {
				t.Errorf("who left got %v, want context.Canceled", err)
			}
		})
		<-s.asked
		var calling sync.WaitGroup
		for range 20 {
			plan := s.job("job", 1)
			calling.Add(1)
			wg.Go(func() {
				calling.Done()
				if pkg, err := p.Prepare(t.Context(), plan); err != nil || pkg.State != download.Pending {
					t.Errorf("who stayed got %+v, %v", pkg, err)
				}
			})
		}
		calling.Wait()
		cancel()
		wg.Wait()
	})
}

// slow is a store that takes for ever to find out that it knows no checksum, the
// first time it is asked.
type slow struct {
	*store
	once  sync.Once
	asked chan struct{}
}

func (s *slow) Checksum(ctx context.Context, _ download.Object) (*download.Checksum, error) {
	s.once.Do(func() {
		close(s.asked)
		<-ctx.Done()
	})
	return nil, ctx.Err()
}

func TestMissingAssetsFail(t *testing.T) {
	each(t, func(t *testing.T, database string) {
		s := newStore()
		db := openDB(t, database)
		p := start(t, newPackager(t, db, s))
		plan := s.job("job", 5)
		gone, other := plan.Entries[1], plan.Entries[3]
		s.remove(gone.Object.Key)
		s.put(other.Object.Key, []byte("something else"))
		prepare(t, p, plan, download.Pending)
		pkg := wait(t, p, plan.ID, download.Failed)
		if f := pkg.Failure; f.Code != download.AssetMissing || len(f.Details) != 2 || f.Details[0].Asset != gone.Name || f.Details[1].Asset != other.Name {
			t.Errorf("failure = %+v, want asset_missing of %s and %s", f, gone.Name, other.Name)
		}

		// Once they are back, the next call starts it again.
		again := s.job("job", 5)
		if again.ID != plan.ID {
			t.Fatal("the plan has another identifier")
		}
		prepare(t, p, again, download.Pending)
		checkReady(t, db, s, wait(t, p, plan.ID, download.Ready), true)
	})
}

func TestShortAsset(t *testing.T) {
	each(t, func(t *testing.T, database string) {
		for name, size := range map[string]int{"small": 100, "large": 3 << 20} {
			t.Run(name, func(t *testing.T) {
				s := newStore()
				p := start(t, newPackager(t, openDB(t, database), s))
				o := s.put(name, pattern(size))
				plan := download.NewPlan("W1", name, []download.Asset{{Role: download.Output, Path: "a", Object: o}})
				s.onOpen = func(context.Context, download.Object, int64, int64) (io.ReadCloser, error) {
					s.put(name, pattern(size/2)) // it shrinks while it is read
					return io.NopCloser(bytes.NewReader(pattern(size / 2))), nil
				}
				prepare(t, p, plan, download.Pending)
				if pkg := wait(t, p, plan.ID, download.Failed); pkg.Failure.Code != download.AssetMissing {
					t.Errorf("failure = %+v, want asset_missing", pkg.Failure)
				}
			})
		}
	})
}

func TestFaultsAreRetried(t *testing.T) {
	each(t, func(t *testing.T, database string) {
		s := newStore()
		db := openDB(t, database)
		p := start(t, newPackager(t, db, s))
		var faults atomic.Int64
		fault := func(context.Context, download.Object, int64, int64) (io.ReadCloser, error) {
			if faults.Add(-1) >= 0 {
				return nil, errors.New("connection reset")
			}
			return nil, nil
		}
		s.onOpen = fault

		faults.Store(2)
		plan := s.job("flaky", 1)
		prepare(t, p, plan, download.Pending)
		checkReady(t, db, s, wait(t, p, plan.ID, download.Ready), true)

		faults.Store(4)
		plan = s.job("down", 1)
		prepare(t, p, plan, download.Pending)
		if pkg := wait(t, p, plan.ID, download.Failed); pkg.Failure.Code != download.Unavailable {
			t.Errorf("failure = %+v, want unavailable", pkg.Failure)
		}
		if faults.Load() != 0 {
			t.Errorf("%d attempts left over", faults.Load())
		}
		prepare(t, p, s.job("down", 1), download.Pending)
		checkReady(t, db, s, wait(t, p, plan.ID, download.Ready), true)
	})
}

// blockOn makes the store give no bytes of one object until it is let go, and
// tells when it is asked for it.
func (s *store) blockOn(key string) (asked <-chan struct{}, letGo func()) {
	c := make(chan struct{}, 100)
	var free atomic.Bool
	s.mu.Lock()
	defer s.mu.Unlock()
	s.onOpen = func(ctx context.Context, o download.Object, _, _ int64) (io.ReadCloser, error) {
		if o.Key != key || free.Load() {
			return nil, nil
		}
		c <- struct{}{}
		return blocked{ctx}, nil
	}
	return c, func() { free.Store(true) }
}

func TestStopPutsWorkBack(t *testing.T) {
	each(t, func(t *testing.T, database string) {
		s := newStore()
		db := openDB(t, database)
		plan := s.job("job", 20)
		asked, letGo := s.blockOn(plan.Entries[19].Object.Key)
		first := start(t, newPackager(t, db, s))
		prepare(t, first, plan, download.Pending)
		<-asked
		eventually(t, "everything else is read", func() bool { return count(t, db, "asset_checksums") == 19 })
		if err := first.Stop(t.Context()); err != nil {
			t.Fatal(err)
		}
		if n := count(t, db, "river_job WHERE state = 'available' AND attempt = 0"); n != 1 {
			t.Errorf("%d jobs put back without the loss of an attempt, want 1", n)
		}
		if n := count(t, db, "packages WHERE state = 'pending' AND worker = ''"); n != 1 {
			t.Errorf("%d packages given back, want 1", n)
		}
		letGo()
		s.opened()
		second := start(t, newPackager(t, db, s))
		checkReady(t, db, s, wait(t, second, plan.ID, download.Ready), true)
		if opens := s.opened(); len(opens) != 1 {
			t.Errorf("read again: %+v, want the last asset only", opens)
		}
	})
}

// A process that ends at once leaves a job that is running and a package that is
// held.
func TestCrash(t *testing.T) {
	each(t, func(t *testing.T, database string) {
		s := newStore()
		plan := s.job("job", 20)
		asked, letGo := s.blockOn(plan.Entries[19].Object.Key)
		db := openDB(t, database)
		crashing, err := catalog.Open(t.Context(), catalog.Config{Database: database})
		if err != nil {
			t.Fatal(err)
		}
		first := start(t, newPackager(t, crashing, s))
		prepare(t, first, plan, download.Pending)
		<-asked
		eventually(t, "everything else is read", func() bool { return count(t, db, "asset_checksums") == 19 })
		if err := crashing.Close(); err != nil { // nothing it does is heard of any more
			t.Fatal(err)
		}
		_ = first.Stop(t.Context())
		if n := count(t, db, "river_job WHERE state = 'running'"); n != 1 {
			t.Fatalf("%d jobs left running, want 1", n)
		}
		if n := count(t, db, "packages WHERE state = 'pending' AND worker <> ''"); n != 1 {
			t.Fatalf("%d packages left held, want 1", n)
		}

		letGo()
		s.opened()
		if db.Dialect() == catalog.Postgres {
			// Another server may be alive: it is only after the lease that the
			// package is up for grabs.
			second := newPackager(t, db, s)
			if err := second.Sweep(t.Context()); err != nil {
				t.Fatal(err)
			}
			if n := count(t, db, "river_job WHERE state = 'running'"); n != 1 {
				t.Errorf("the job was taken from a server that may be alive")
			}
			for _, statement := range []string{
				`UPDATE packages SET lease_until = lease_until - 60000000`,
				`UPDATE river_job SET attempted_at = attempted_at - interval '1 minute'`,
			} {
				if _, err := db.SQL().ExecContext(t.Context(), statement); err != nil {
					t.Fatal(err)
				}
			}
		}
		second := start(t, newPackager(t, db, s))
		checkReady(t, db, s, wait(t, second, plan.ID, download.Ready), true)
		if opens := s.opened(); len(opens) != 1 {
			t.Errorf("read again: %+v, want the last asset only", opens)
		}
	})
}

// A large asset goes on where its reading ended.
func TestLargeAssetGoesOn(t *testing.T) {
	each(t, func(t *testing.T, database string) {
		for name, sha := range map[string]bool{"with-SHA-256": true, "without": false} {
			t.Run(name, func(t *testing.T) {
				s := newStore()
				db := openDB(t, database)
				o := s.put(name, pattern(200<<20+5))
				plan := download.NewPlan("W1", name, []download.Asset{{Role: download.Output, Path: "large", Object: o}})
				const reached = 150 << 20 // where the store gets stuck
				s.onOpen = func(ctx context.Context, _ download.Object, off, n int64) (io.ReadCloser, error) {
					if off+n <= reached {
						return nil, nil
					}
					data := s.objects[name].data[off:max(off, reached)]
					return io.NopCloser(io.MultiReader(bytes.NewReader(data), blocked{ctx})), nil
				}
				change := func(c *packager.Config) { c.SkipSHA256 = !sha }
				first := start(t, newPackager(t, db, s, change))
				prepare(t, first, plan, download.Pending)
				eventually(t, "all that can be is read", func() bool {
					return count(t, db, "packages WHERE state = 'pending' AND bytes_done >= 157000000") == 1
				})
				if err := first.Stop(t.Context()); err != nil {
					t.Fatal(err)
				}
				s.opened()
				s.onOpen = nil
				second := start(t, newPackager(t, db, s, change))
				checkReady(t, db, s, wait(t, second, plan.ID, download.Ready), sha)
				for _, o := range s.opened() {
					if o.off < 128<<20 {
						t.Errorf("read again: %+v", o)
					}
				}
				if n := count(t, db, "asset_cursors"); n != 0 {
					t.Errorf("%d cursors left, want none", n)
				}
			})
		}
	})
}

// A package whose job was lost is found.
func TestLostJob(t *testing.T) {
	each(t, func(t *testing.T, database string) {
		s := newStore()
		db := openDB(t, database)
		p := newPackager(t, db, s)
		plan := s.job("job", 1)
		prepare(t, p, plan, download.Pending)
		for _, statement := range []string{`DELETE FROM river_job`, `UPDATE packages SET lease_until = 1`} {
			if _, err := db.SQL().ExecContext(t.Context(), statement); err != nil {
				t.Fatal(err)
			}
		}
		start(t, p)
		checkReady(t, db, s, wait(t, p, plan.ID, download.Ready), true)
	})
}

func TestDeletedWhileWorkedOn(t *testing.T) {
	each(t, func(t *testing.T, database string) {
		s := newStore()
		db := openDB(t, database)
		p := start(t, newPackager(t, db, s))
		plan := s.job("job", 3)
		asked, letGo := s.blockOn(plan.Entries[2].Object.Key)
		prepare(t, p, plan, download.Pending)
		<-asked
		if err := db.DeletePackage(t.Context(), plan.ID); err != nil {
			t.Fatal(err)
		}
		if _, err := p.Wait(t.Context(), plan.ID, long); !errors.Is(err, download.ErrPackageNotFound) {
			t.Errorf("Wait: got %v, want ErrPackageNotFound", err)
		}
		letGo()
		again := s.job("job", 3)
		prepare(t, p, again, download.Pending) // while the first job is still running
		checkReady(t, db, s, wait(t, p, plan.ID, download.Ready), true)
		eventually(t, "the first job has noticed", func() bool { return count(t, db, "river_job WHERE state = 'completed'") == 2 })
	})
}

func TestWaitReturnsInTime(t *testing.T) {
	each(t, func(t *testing.T, database string) {
		s := newStore()
		p := newPackager(t, openDB(t, database), s) // not started
		plan := s.job("job", 1)
		prepare(t, p, plan, download.Pending)
		if pkg, err := p.Wait(t.Context(), plan.ID, time.Millisecond); err != nil || pkg.State != download.Pending {
			t.Errorf("Wait = %+v, %v, want it to be pending", pkg, err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := p.Wait(ctx, plan.ID, long); !errors.Is(err, context.Canceled) {
			t.Errorf("Wait: got %v, want context.Canceled", err)
		}
		if _, err := p.Wait(t.Context(), uuid.New(), long); !errors.Is(err, download.ErrPackageNotFound) {
			t.Errorf("Wait: got %v, want ErrPackageNotFound", err)
		}
	})
}

func TestWaitIsWoken(t *testing.T) {
	each(t, func(t *testing.T, database string) {
		s := newStore()
		p := start(t, newPackager(t, openDB(t, database), s))
		p.SetPoll(time.Hour)
		plan := s.job("job", 2)
		ctx, cancel := context.WithTimeout(t.Context(), long)
		defer cancel()
		prepare(t, p, plan, download.Pending)
		if pkg, err := p.Wait(ctx, plan.ID, time.Hour); err != nil || pkg.State != download.Ready {
			t.Errorf("Wait = %+v, %v, want it to be ready", pkg, err)
		}
	})
}

func TestWarm(t *testing.T) {
	each(t, func(t *testing.T, database string) {
		s := newStore()
		db := openDB(t, database)
		p := newPackager(t, db, s)
		plan := s.job("job", 4)
		size := plan.Size()
		var done, total int64
		if err := p.Warm(t.Context(), plan, func(d, n int64) { done, total = d, n }); err != nil {
			t.Fatal(err)
		}
		if done != size || total != size {
			t.Errorf("progress %d of %d, want %d of it", done, total, size)
		}
		s.opened()
		prepare(t, p, s.job("job", 4), download.Ready)
		if opens := s.opened(); opens != nil {
			t.Errorf("read again: %+v", opens)
		}
		broken := s.job("broken", 2)
		s.remove(broken.Entries[0].Object.Key)
		err := p.Warm(t.Context(), broken, func(int64, int64) {})
		if e, ok := errors.AsType[*download.Error](err); !ok || e.Code != download.AssetMissing {
			t.Errorf("got %v, want asset_missing", err)
		}
	})
}

func TestPrune(t *testing.T) {
	each(t, func(t *testing.T, database string) {
		s := newStore()
		db := openDB(t, database)
		p := newPackager(t, db, s, func(c *packager.Config) { c.KeepFor = time.Hour })
		plan := s.job("job", 1)
		prepare(t, p, plan, download.Pending)
		if _, err := db.SQL().ExecContext(t.Context(), `UPDATE packages SET requested_at = 1`); err != nil {
			t.Fatal(err)
		}
		start(t, p)
		eventually(t, "the package is gone", func() bool { return count(t, db, "packages") == 0 })
	})
}

func TestLogIsQuiet(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	var b bytes.Buffer
	s := newStore()
	db := openDB(t, catalogtest.SQLite(t))
	p := newPackager(t, db, s, func(c *packager.Config) {
		c.Logger = slog.New(slog.NewTextHandler(lockedWriter{&mu, &b}, nil))
		c.StopTimeout = long
	})
	start(t, p)
	plan := s.job("job", 1)
	prepare(t, p, plan, download.Pending)
	wait(t, p, plan.ID, download.Ready)
	if err := p.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	mu.Lock()
	defer mu.Unlock()
	if got := b.String(); strings.Count(got, "\n") != 1 || !strings.Contains(got, "package ready") {
		t.Errorf("log:\n%s\nwant one line that says that the package is ready", got)
	}
}

type lockedWriter struct {
	mu *sync.Mutex
	w  io.Writer
}

func (l lockedWriter) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(p)
}

package catalog_test

import (
	"bytes"
	"database/sql"
	"errors"
	"fmt"
	"reflect"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"

	"github.com/downlink-go/downlink/server/internal/catalog"
	"github.com/downlink-go/downlink/server/internal/catalog/catalogtest"
	"github.com/downlink-go/downlink/server/internal/download"
)

const lease = time.Minute

func object(i int) download.Object {
	return download.Object{
		Key:      fmt.Sprintf("workflow-0001/job-0007/outputs/tile_%06d.tif", i),
		Version:  fmt.Sprintf("%x-%x", 1777000000000000000+i, 20_000+i),
		Size:     int64(20_000 + i),
		Modified: time.Date(2026, 4, 1, 0, 0, i, 0, time.UTC),
	}
}

func plan(job string, n int) *download.Plan {
	assets := make([]download.Asset, n)
	for i := range assets {
		assets[i] = download.Asset{Role: download.Output, Path: fmt.Sprintf("tile_%06d.tif", i), Object: object(i)}
	}
	return download.NewPlan("workflow-0001", job, assets)
}

// pending is the package of a plan that nothing is known of.
func pending(p *download.Plan) download.Package {
	_, missing := p.Missing()
	return download.Package{ID: p.ID, WorkflowID: p.WorkflowID, JobID: p.JobID, State: download.Pending,
		Entries: len(p.Entries), Progress: download.Progress{BytesTotal: missing}}
}

func nothing(*sql.Tx, catalog.Run) error { return nil }

// add stores a pending package.
func add(t *testing.T, db *catalog.DB, p *download.Plan) download.Package {
	t.Helper()
	stored, err := db.AddPackage(t.Context(), pending(p), p, lease, nothing)
	if err != nil {
		t.Fatal(err)
	}
	return stored
}

func TestPackageLife(t *testing.T) {
	each(t, func(t *testing.T, db *catalog.DB, now *clock) {
		ctx := t.Context()
		p := plan("job", 3)
		if _, err := db.Package(ctx, p.ID); !errors.Is(err, download.ErrPackageNotFound) {
			t.Errorf("Package: got %v, want ErrPackageNotFound", err)
		}
		if _, err := db.Plan(ctx, p.ID); !errors.Is(err, download.ErrPackageNotFound) {
			t.Errorf("Plan: got %v, want ErrPackageNotFound", err)
		}
		if _, err := db.Claim(ctx, p.ID, lease); !errors.Is(err, download.ErrPackageNotFound) {
			t.Errorf("Claim: got %v, want ErrPackageNotFound", err)
		}

		start := now.now()
		want := pending(p)
		want.Created, want.Updated, want.Requested = start, start, start
		if got := add(t, db, p); !reflect.DeepEqual(got, want) {
			t.Errorf("added  %+v\nwant %+v", got, want)
		}
		if got, err := db.Package(ctx, p.ID); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("Package = %+v, %v\nwant %+v", got, err, want)
		}
		if got, err := db.Plan(ctx, p.ID); err != nil || !reflect.DeepEqual(got, p) {
			t.Errorf("Plan = %+v, %v\nwant %+v", got, err, p)
		}

		now.advance(time.Second)
		w, err := db.Claim(ctx, p.ID, lease)
		if err != nil {
			t.Fatal(err)
		}
		if got := w.Package; !got.Started.Equal(now.now()) {
			t.Errorf("started %v, want now", got.Started)
		}
		now.advance(2 * time.Second)
		for _, done := range []int64{100, 50} {
			if err := w.Progress(ctx, done, lease); err != nil {
				t.Fatal(err)
			}
		}
		got, err := db.Package(ctx, p.ID)
		if err != nil || got.BytesDone != 100 || !got.Updated.Equal(now.now()) {
			t.Errorf("after progress: %+v, %v, want 100 bytes, updated now", got, err)
		}

		for i := range p.Entries {
			p.Entries[i].Checksum = &download.Checksum{CRC32: uint32(i), SHA256: bytes.Repeat([]byte{byte(i)}, 32)}
		}
		digest := bytes.Repeat([]byte{7}, 32)
		if err := w.Ready(ctx, p, 12345, digest); err != nil {
			t.Fatal(err)
		}
		got, err = db.Package(ctx, p.ID)
		if err != nil || got.State != download.Ready || got.Size != 12345 || !bytes.Equal(got.Digest, digest) || got.BytesDone != got.BytesTotal {
			t.Errorf("when ready: %+v, %v", got, err)
		}
		if stored, err := db.Plan(ctx, p.ID); err != nil || !reflect.DeepEqual(stored, p) {
			t.Errorf("Plan when ready = %+v, %v\nwant %+v", stored, err, p)
		}
		for _, err := range []error{w.Ready(ctx, p, 1, digest), w.Progress(ctx, 1, lease), w.Fail(ctx, &download.Error{}), w.Release(ctx)} {
			if !errors.Is(err, catalog.ErrNotHeld) {
				t.Errorf("after ready: got %v, want ErrNotHeld", err)
			}
		}
		if again := add(t, db, p); !reflect.DeepEqual(again, got) {
			t.Errorf("added again: %+v, want what is there: %+v", again, got)
		}

		if err := db.DeletePackage(ctx, p.ID); err != nil {
			t.Fatal(err)
		}
		if err := db.DeletePackage(ctx, p.ID); !errors.Is(err, download.ErrPackageNotFound) {
			t.Errorf("delete again: got %v, want ErrPackageNotFound", err)
		}
		if _, err := db.Plan(ctx, p.ID); !errors.Is(err, download.ErrPackageNotFound) {
			t.Errorf("the plan outlives its package: %v", err)
		}
	})
}

func TestFailedPackageStartsAgain(t *testing.T) {
	each(t, func(t *testing.T, db *catalog.DB, now *clock) {
		ctx := t.Context()
		p := plan("job", 2)
		created := add(t, db, p).Created
		w, err := db.Claim(ctx, p.ID, lease)
		if err != nil {
			t.Fatal(err)
		}
		if err := w.Progress(ctx, 10, lease); err != nil {
			t.Fatal(err)
		}
		failure := download.MissingAssets([]download.Detail{{Asset: "outputs/a", Message: "gone", Limit: 1, Actual: 2}})
		if err := w.Fail(ctx, failure); err != nil {
			t.Fatal(err)
		}
		if got, err := db.Package(ctx, p.ID); err != nil || got.State != download.Failed || !reflect.DeepEqual(got.Failure, failure) {
			t.Errorf("failed: %+v, %v, want %+v", got, err, failure)
		}
		now.advance(time.Second)
		if got := add(t, db, p); got.State != download.Pending || got.Failure != nil || got.BytesDone != 0 ||
			!got.Started.IsZero() || !got.Created.Equal(created) || !got.Updated.Equal(now.now()) {
			t.Errorf("started again: %+v", got)
		}
	})
}

func TestAddPackageIsOneTransaction(t *testing.T) {
	each(t, func(t *testing.T, db *catalog.DB, _ *clock) {
		p := plan("job", 1)
		broken := errors.New("queue is broken")
		if _, err := db.AddPackage(t.Context(), pending(p), p, lease, func(*sql.Tx, catalog.Run) error { return broken }); !errors.Is(err, broken) {
			t.Errorf("got %v, want the error of the callback", err)
		}
		if _, err := db.Package(t.Context(), p.ID); !errors.Is(err, download.ErrPackageNotFound) {
			t.Errorf("got %v, want nothing stored", err)
		}
	})
}

func TestAddPackageManyTimesAtOnce(t *testing.T) {
	each(t, func(t *testing.T, db *catalog.DB, _ *clock) {
		p := plan("job", 2)
		var calls atomic.Int64
		var g errgroup.Group
		for range 200 {
			g.Go(func() error {
				_, err := db.AddPackage(t.Context(), pending(p), p, lease, func(*sql.Tx, catalog.Run) error { calls.Add(1); return nil })
				return err
			})
		}
		if err := g.Wait(); err != nil || calls.Load() != 1 {
			t.Errorf("%d callbacks, %v, want 1", calls.Load(), err)
		}
	})
}

func TestClaims(t *testing.T) {
	each(t, func(t *testing.T, db *catalog.DB, now *clock) {
		ctx := t.Context()
		p := plan("job", 1)
		add(t, db, p)
		mine, err := db.Claim(ctx, p.ID, lease)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := db.Claim(ctx, p.ID, lease); !errors.Is(err, catalog.ErrNotHeld) {
			t.Errorf("while held: got %v, want ErrNotHeld", err)
		}
		now.advance(lease - time.Second)
		if err := mine.Progress(ctx, 1, lease); err != nil {
			t.Fatal(err)
		}
		now.advance(lease - time.Second)
		if _, err := db.Claim(ctx, p.ID, lease); !errors.Is(err, catalog.ErrNotHeld) {
			t.Errorf("while renewed: got %v, want ErrNotHeld", err)
		}
		now.advance(2 * time.Second)
		yours, err := db.Claim(ctx, p.ID, lease)
		if err != nil {
			t.Fatalf("after the lease: %v", err)
		}
		// It worked 59 s before, and has begun again just now.
		if worked := yours.Package.Updated.Sub(yours.Package.Started); worked != lease-time.Second {
			t.Errorf("worked %v, want %v", worked, lease-time.Second)
		}
		if err := mine.Progress(ctx, 2, lease); !errors.Is(err, catalog.ErrNotHeld) {
			t.Errorf("after it was lost: got %v, want ErrNotHeld", err)
		}
		if err := yours.Release(ctx); err != nil {
			t.Fatal(err)
		}
		if _, err := db.Claim(ctx, p.ID, lease); err != nil {
			t.Errorf("after release: %v", err)
		}
		if err := db.ReleaseAll(ctx); err != nil {
			t.Fatal(err)
		}
		if _, err := db.Claim(ctx, p.ID, lease); err != nil {
			t.Errorf("after release of all: %v", err)
		}
	})
}

func TestUnattended(t *testing.T) {
	each(t, func(t *testing.T, db *catalog.DB, now *clock) {
		ctx := t.Context()
		a, b := plan("a", 1), plan("b", 1)
		add(t, db, a)
		now.advance(time.Second)
		add(t, db, b)
		find := func(want ...uuid.UUID) {
			t.Helper()
			got, err := db.Unattended(ctx, lease, 1)
			if err != nil || len(got) != len(want) || len(got) == 1 && got[0].PackageID != want[0] {
				t.Errorf("Unattended = %v, %v, want %v", got, err, want)
			}
		}
		find()
		now.advance(lease + time.Second)
		find(a.ID)
		find(b.ID)
		find()
		now.advance(lease + time.Second)
		w, err := db.Claim(ctx, a.ID, lease)
		if err != nil {
			t.Fatal(err)
		}
		find(b.ID)
		if err := w.Fail(ctx, &download.Error{Code: download.Unavailable}); err != nil {
			t.Fatal(err)
		}
		now.advance(lease + time.Second)
		find(b.ID)
		find()
	})
}

// TestClockPutBack: a package whose worker is gone is not left alone for as long
// as the clock was ahead, and one whose worker lives is its worker's again with
// the next sign of life.
func TestClockPutBack(t *testing.T) {
	each(t, func(t *testing.T, db *catalog.DB, now *clock) {
		ctx := t.Context()
		abandoned, working, waiting := plan("abandoned", 1), plan("working", 1), plan("waiting", 1)
		for _, p := range []*download.Plan{abandoned, working, waiting} {
			add(t, db, p)
		}
		if _, err := db.Claim(ctx, abandoned.ID, lease); err != nil {
			t.Fatal(err)
		}
		w, err := db.Claim(ctx, working.ID, lease)
		if err != nil {
			t.Fatal(err)
		}
		now.advance(-365 * 24 * time.Hour)
		if err := w.Progress(ctx, 1, lease); err != nil {
			t.Fatal(err)
		}
		if _, err := db.Claim(ctx, working.ID, lease); !errors.Is(err, catalog.ErrNotHeld) {
			t.Errorf("the one whose worker lives: %v, want ErrNotHeld", err)
		}
		if _, err := db.Claim(ctx, abandoned.ID, lease); err != nil {
			t.Errorf("the abandoned one: %v", err)
		}
		got, err := db.Unattended(ctx, lease, 10)
		if err != nil || len(got) != 1 || got[0].PackageID != waiting.ID {
			t.Errorf("unattended: %v, %v, want the one that waits", got, err)
		}
	})
}

func TestRequestedIsNotedOnceAnHour(t *testing.T) {
	each(t, func(t *testing.T, db *catalog.DB, now *clock) {
		ctx := t.Context()
		p := plan("job", 1)
		created := add(t, db, p).Created
		ask := func() time.Time {
			t.Helper()
			if _, err := db.Package(ctx, p.ID); err != nil {
				t.Fatal(err)
			}
			all, err := db.Packages(ctx, catalog.PackageFilter{})
			if err != nil {
				t.Fatal(err)
			}
			return all[0].Requested
		}
		now.advance(59 * time.Minute)
		if got := ask(); !got.Equal(created) {
			t.Errorf("after 59 minutes: %v, want %v", got, created)
		}
		now.advance(2 * time.Minute)
		if got := ask(); !got.Equal(now.now()) {
			t.Errorf("after 61 minutes: %v, want %v", got, now.now())
		}
	})
}

func TestListAndPrune(t *testing.T) {
	each(t, func(t *testing.T, db *catalog.DB, now *clock) {
		ctx := t.Context()
		for _, job := range []string{"a", "b", "c"} {
			add(t, db, plan(job, 1))
			now.advance(time.Hour)
		}
		jobs := func(f catalog.PackageFilter) (s string) {
			t.Helper()
			all, err := db.Packages(ctx, f)
			if err != nil {
				t.Fatal(err)
			}
			for _, p := range all {
				s += p.JobID
			}
			return s
		}
		for _, tt := range []struct {
			filter catalog.PackageFilter
			want   string
		}{
			{catalog.PackageFilter{}, "cba"},
			{catalog.PackageFilter{Limit: 2}, "cb"},
			{catalog.PackageFilter{JobID: "b"}, "b"},
			{catalog.PackageFilter{WorkflowID: "workflow-0001", State: download.Pending}, "cba"},
			{catalog.PackageFilter{WorkflowID: "other"}, ""},
			{catalog.PackageFilter{State: download.Ready}, ""},
		} {
			if got := jobs(tt.filter); got != tt.want {
				t.Errorf("Packages(%+v) = %s, want %s", tt.filter, got, tt.want)
			}
		}
		if err := db.SaveCursor(ctx, object(1), []byte("cursor")); err != nil {
			t.Fatal(err)
		}
		if n, err := db.Prune(ctx, now.now().Add(-90*time.Minute)); err != nil || n != 2 {
			t.Errorf("Prune = %d, %v, want 2", n, err)
		}
		if got := jobs(catalog.PackageFilter{}); got != "c" {
			t.Errorf("left %s, want c", got)
		}
		if c, err := db.Cursor(ctx, object(1)); err != nil || c == nil {
			t.Errorf("Cursor = %q, %v, want it to be kept", c, err)
		}
		if _, err := db.Prune(ctx, now.now().Add(time.Second)); err != nil {
			t.Fatal(err)
		}
		if c, err := db.Cursor(ctx, object(1)); err != nil || c != nil {
			t.Errorf("Cursor = %q, %v, want it to be gone", c, err)
		}
	})
}

func checksum(i int, sha bool) download.Checksum {
	c := download.Checksum{CRC32: uint32(i) * 2654435761}
	if sha {
		c.SHA256 = bytes.Repeat([]byte{byte(i)}, 32)
	}
	return c
}

func TestChecksums(t *testing.T) {
	each(t, func(t *testing.T, db *catalog.DB, _ *clock) {
		ctx := t.Context()
		const n = 12_345 // more than two chunks
		var objects []download.Object
		var save []catalog.AssetChecksum
		for i := range n {
			o := object(i)
			objects = append(objects, o)
			if i%3 != 0 {
				save = append(save, catalog.AssetChecksum{Object: o, Checksum: checksum(i, i%2 == 0)})
			}
		}
		if err := db.SaveChecksums(ctx, append(save, save[0])); err != nil {
			t.Fatal(err)
		}
		objects[1].Version += "x"
		objects[2].Size++
		objects = append(objects, objects[4])
		found, err := db.Checksums(ctx, objects)
		if err != nil || len(found) != len(objects) {
			t.Fatalf("%d checksums, %v, want %d", len(found), err, len(objects))
		}
		for i, got := range found {
			k := i
			if i == n {
				k = 4
			}
			if k%3 == 0 || k == 1 || k == 2 {
				if got != nil {
					t.Errorf("object %d: got %+v, want nil", i, got)
				}
			} else if want := checksum(k, k%2 == 0); got == nil || !reflect.DeepEqual(*got, want) {
				t.Fatalf("object %d: got %+v, want %+v", i, got, want)
			}
		}

		// Later knowledge replaces what was there, and ends the reading.
		if err := db.SaveCursor(ctx, object(5), []byte("one")); err != nil {
			t.Fatal(err)
		}
		if err := db.SaveCursor(ctx, object(5), []byte("two")); err != nil {
			t.Fatal(err)
		}
		if c, err := db.Cursor(ctx, object(5)); err != nil || string(c) != "two" {
			t.Errorf("Cursor = %q, %v, want two", c, err)
		}
		if err := db.SaveChecksums(ctx, []catalog.AssetChecksum{{Object: object(5), Checksum: checksum(6, true)}}); err != nil {
			t.Fatal(err)
		}
		if found, err := db.Checksums(ctx, []download.Object{object(5)}); err != nil || !reflect.DeepEqual(*found[0], checksum(6, true)) {
			t.Errorf("replaced: %+v, %v", found[0], err)
		}
		if c, err := db.Cursor(ctx, object(5)); err != nil || c != nil {
			t.Errorf("Cursor = %q, %v, want none", c, err)
		}
	})
}

// Much else may be stored between the objects that are asked for.
func TestChecksumsAmongOthers(t *testing.T) {
	each(t, func(t *testing.T, db *catalog.DB, _ *clock) {
		const n, versions = 1000, 5
		version := func(i, v int) download.Object {
			o := object(i)
			o.Version = fmt.Sprintf("v%d", v)
			return o
		}
		var save []catalog.AssetChecksum
		for i := range n {
			for v := range versions {
				save = append(save, catalog.AssetChecksum{Object: version(i, v), Checksum: checksum(i*versions+v, true)})
			}
		}
		if err := db.SaveChecksums(t.Context(), save); err != nil {
			t.Fatal(err)
		}
		for name, pick := range map[string]func(yield func(i, v int)){
			"the last version of each": func(yield func(i, v int)) {
				for i := range n {
					yield(i, versions-1)
				}
			},
			"some of them": func(yield func(i, v int)) {
				for i := 3; i < n; i += 97 {
					yield(i, i%versions)
				}
			},
			"backwards": func(yield func(i, v int)) {
				for i := n - 1; i >= 0; i-- {
					yield(i, 0)
				}
			},
			"two versions, twice each": func(yield func(i, v int)) {
				for _, v := range []int{1, 3, 1, 3} {
					yield(7, v)
				}
			},
		} {
			var objects []download.Object
			var want []download.Checksum
			pick(func(i, v int) {
				objects = append(objects, version(i, v))
				want = append(want, checksum(i*versions+v, true))
			})
			found, err := db.Checksums(t.Context(), objects)
			if err != nil {
				t.Fatal(err)
			}
			for i, got := range found {
				if got == nil || !reflect.DeepEqual(*got, want[i]) {
					t.Fatalf("%s: object %d: got %+v, want %+v", name, i, got, want[i])
				}
			}
		}
	})
}

// Names that cannot be stored as text are not an error, and not mixed up.
func TestChecksumsOfOddNames(t *testing.T) {
	each(t, func(t *testing.T, db *catalog.DB, _ *clock) {
		ctx := t.Context()
		odd := []download.Object{{Key: "a\xff", Version: "1"}, {Key: "a\xfe", Version: "1"}, {Key: "a\x00b", Version: "1"},
			{Key: string(bytes.Repeat([]byte("k"), 5000)), Version: "1"}}
		fine := []download.Object{{Key: "a\ufffd", Version: "1"}, {Key: `"quoted" \ <é> 日本 ` + "\u2028", Version: `W/"x"`}, {Key: "unpinned"}}
		var save []catalog.AssetChecksum
		for i, o := range append(odd, fine...) {
			save = append(save, catalog.AssetChecksum{Object: o, Checksum: checksum(i+1, true)})
		}
		if err := db.SaveChecksums(ctx, save); err != nil {
			t.Fatal(err)
		}
		found, err := db.Checksums(ctx, append(odd[:4:4], fine...))
		if err != nil {
			t.Fatal(err)
		}
		for i, got := range found[:4] {
			if got != nil {
				t.Errorf("odd name %d: got %+v, want nil", i, got)
			}
		}
		for i, got := range found[4:6] {
			if got == nil || got.CRC32 != checksum(5+i, true).CRC32 {
				t.Errorf("fine name %d: got %+v", i, got)
			}
		}
		if found[6] != nil {
			t.Errorf("object without a version: got %+v, want nil", found[6])
		}
		for _, o := range odd {
			if err := db.SaveCursor(ctx, o, []byte("x")); err != nil {
				t.Error(err)
			}
			if c, err := db.Cursor(ctx, o); err != nil || c != nil {
				t.Errorf("Cursor(%.10q) = %q, %v, want none", o.Key, c, err)
			}
		}
	})
}

func BenchmarkChecksums(b *testing.B) {
	for name, open := range map[string]func(testing.TB) string{"sqlite": catalogtest.SQLite, "postgres": catalogtest.Postgres} {
		b.Run(name, func(b *testing.B) {
			db := catalogtest.Open(b, catalog.Config{Database: open(b)})
			const n = 100_000
			objects := make([]download.Object, n)
			save := make([]catalog.AssetChecksum, n)
			for i := range n {
				objects[i] = object(i)
				save[i] = catalog.AssetChecksum{Object: objects[i], Checksum: checksum(i, true)}
			}
			b.Run("save", func(b *testing.B) {
				for b.Loop() {
					if err := db.SaveChecksums(b.Context(), save); err != nil {
						b.Fatal(err)
					}
				}
			})
			b.Run("look_up", func(b *testing.B) {
				if err := db.SaveChecksums(b.Context(), save); err != nil {
					b.Fatal(err)
				}
				b.ResetTimer()
				b.ReportAllocs()
				for b.Loop() {
					found, err := db.Checksums(b.Context(), objects)
					if err != nil || found[n-1] == nil {
						b.Fatal(err)
					}
				}
			})
		})
	}
}

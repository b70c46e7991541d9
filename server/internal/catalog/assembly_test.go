package catalog_test

import (
	"database/sql"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/downlink-go/downlink/server/internal/catalog"
	"github.com/downlink-go/downlink/server/internal/download"
)

// assembly returns a new one of the package.
func assembly(packageID uuid.UUID, expires time.Time) download.Assembly {
	id := uuid.New()
	return download.Assembly{ID: id, PackageID: packageID, Key: "key/" + id.String(),
		Progress: download.Progress{BytesTotal: 1000}, Expires: expires}
}

func TestAssemblies(t *testing.T) {
	each(t, func(t *testing.T, db *catalog.DB, now *clock) {
		ctx := t.Context()
		p := add(t, db, plan("J1", 1))
		added := 0
		note := func(*sql.Tx) error { added++; return nil }
		if _, err := db.Assembly(ctx, p.ID); !errors.Is(err, catalog.ErrNotFound) {
			t.Fatalf("before there is one: %v", err)
		}
		a, err := db.AddAssembly(ctx, assembly(p.ID, now.now().Add(time.Hour)), lease, note)
		if err != nil || a.State != download.Pending || a.BytesTotal != 1000 {
			t.Fatalf("AddAssembly = %+v, %v", a, err)
		}
		other, err := db.AddAssembly(ctx, assembly(p.ID, now.now().Add(time.Hour)), lease, note)
		if err != nil || other.ID != a.ID || added != 1 {
			t.Errorf("a second one: %+v, %v, added %d times", other, err, added)
		}

		w, err := db.ClaimAssembly(ctx, a.ID, lease)
		if err != nil || w.Assembly.Key != a.Key {
			t.Fatal(err)
		}
		if _, err := db.ClaimAssembly(ctx, a.ID, lease); !errors.Is(err, catalog.ErrNotHeld) {
			t.Errorf("claimed twice: %v", err)
		}
		if err := errors.Join(w.Begun(ctx, "U1"), w.Progress(ctx, 300, lease)); err != nil {
			t.Fatal(err)
		}
		if got, err := db.AssemblyByID(ctx, a.ID); err != nil || got.Upload != "U1" || got.BytesDone != 300 {
			t.Errorf("at work: %+v, %v", got, err)
		}
		// Its worker dies, and another takes over what there is.
		now.advance(2 * lease)
		ids, err := db.UnattendedAssemblies(ctx, lease, 10)
		if err != nil || !slices.Equal(ids, []uuid.UUID{a.ID}) {
			t.Fatalf("unattended: %v, %v", ids, err)
		}
		next, err := db.ClaimAssembly(ctx, a.ID, lease)
		if err != nil || next.Assembly.Upload != "U1" {
			t.Fatalf("the next worker: %v", err)
		}
		if err := w.Ready(ctx); !errors.Is(err, catalog.ErrNotHeld) {
			t.Errorf("the dead worker: %v", err)
		}
		if err := next.Ready(ctx); err != nil {
			t.Fatal(err)
		}
		got, err := db.Assembly(ctx, p.ID)
		if err != nil || got.State != download.Ready || got.BytesDone != 1000 || got.Upload != "" {
			t.Errorf("ready: %+v, %v", got, err)
		}
	})
}

func TestAssembliesExpire(t *testing.T) {
	each(t, func(t *testing.T, db *catalog.DB, now *clock) {
		ctx := t.Context()
		ready := func(job string) (download.Package, download.Assembly) {
			t.Helper()
			p := add(t, db, plan(job, 1))
			a, err := db.AddAssembly(ctx, assembly(p.ID, now.now().Add(time.Hour)), lease, func(*sql.Tx) error { return nil })
			if err != nil {
				t.Fatal(err)
			}
			w, err := db.ClaimAssembly(ctx, a.ID, lease)
			if err == nil {
				err = w.Ready(ctx)
			}
			if err != nil {
				t.Fatal(err)
			}
			return p, a
		}
		expired := func(want ...uuid.UUID) {
			t.Helper()
			var got []uuid.UUID
			list, err := db.ExpiredAssemblies(ctx, 10)
			for _, a := range list {
				got = append(got, a.ID)
			}
			byText := func(a, b uuid.UUID) int { return slices.Compare(a[:], b[:]) }
			slices.SortFunc(got, byText)
			slices.SortFunc(want, byText)
			if err != nil || !slices.Equal(got, want) {
				t.Errorf("expired: %v, %v, want %v", got, err, want)
			}
		}
		_, kept := ready("kept")
		_, old := ready("old")
		deleted, ofDeleted := ready("deleted")
		p, replaced := ready("replaced")
		expired()

		if ok, err := db.KeepAssembly(ctx, kept.ID, now.now().Add(3*time.Hour)); err != nil || !ok {
			t.Errorf("keep: %t, %v", ok, err)
		}
		if err := db.DeletePackage(ctx, deleted.ID); err != nil {
			t.Fatal(err)
		}
		if err := db.ExpireAssembly(ctx, replaced.ID); err != nil {
			t.Fatal(err)
		}
		if ok, err := db.KeepAssembly(ctx, replaced.ID, now.now().Add(3*time.Hour)); err != nil || ok {
			t.Errorf("keep an expired one: %t, %v", ok, err)
		}
		expired(ofDeleted.ID, replaced.ID)
		// There is room for a new one at once.
		a, err := db.AddAssembly(ctx, assembly(p.ID, now.now().Add(4*time.Hour)), lease, func(*sql.Tx) error { return nil })
		if err != nil || a.ID == replaced.ID || a.State != download.Pending {
			t.Errorf("in its place: %+v, %v", a, err)
		}
		now.advance(2 * time.Hour)
		expired(ofDeleted.ID, replaced.ID, old.ID)
		if err := db.DeleteAssembly(ctx, old.ID); err != nil {
			t.Fatal(err)
		}
		if err := db.DeleteAssembly(ctx, kept.ID); err != nil {
			t.Fatal(err)
		}
		expired(ofDeleted.ID, replaced.ID)
		if _, err := db.AssemblyByID(ctx, kept.ID); err != nil {
			t.Errorf("one that is not expired was deleted: %v", err)
		}
		// Work on a package that is gone ends with its lease.
		if err := db.DeletePackage(ctx, p.ID); err != nil {
			t.Fatal(err)
		}
		now.advance(2 * lease)
		expired(ofDeleted.ID, replaced.ID, a.ID)
	})
}

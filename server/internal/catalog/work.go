package catalog

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"

	"github.com/downlink-go/downlink/server/internal/download"
)

// hold is the right to work on a pending row. One holder at a time has it, for as
// long as it renews its lease. Its methods fail with ErrNotHeld once it is lost:
// the holder must stop then, since another may have begun.
type hold struct {
	db     *DB
	table  table
	id     uuid.UUID
	worker string
}

// table is one of those whose rows are worked on.
type table string

const (
	packages   table = "packages"
	assemblies table = "assemblies"
)

// Work is the right to prepare one pending package.
type Work struct {
	hold
	Package download.Package
}

// Claim takes the right to prepare the package until the lease ends. It fails
// with ErrNotHeld if the package is not pending or the lease of its holder has
// not ended, and with [download.ErrPackageNotFound].
//
// Servers compare leases by their own clocks: the lease should be long compared
// to how far those are apart. One that ends further ahead than any lease lasts
// was made by a clock that has been put back since, and counts as ended.
func (db *DB) Claim(ctx context.Context, id uuid.UUID, lease time.Duration) (*Work, error) {
	w := &Work{hold: db.newHold(packages, id)}
	var err error
	w.Package, err = scanPackage(w.claim(ctx, packageColumns, lease))
	if err == nil {
		return w, nil
	}
	if !errors.Is(err, sql.ErrNoRows) {
		return nil, fault(ctx, fmt.Sprintf("claim package %s", id), err)
	}
	if _, err := db.readPackage(ctx, id); err != nil {
		return nil, err
	}
	return nil, fmt.Errorf("claim package %s: %w", id, ErrNotHeld)
}

func (db *DB) newHold(t table, id uuid.UUID) hold {
	return hold{db: db, table: t, id: id, worker: uuid.NewString()}
}

// claim takes the row and returns columns of it, or no row.
func (h *hold) claim(ctx context.Context, columns string, lease time.Duration) *sql.Row {
	now := h.db.now()
	// The time between two turns of work must not count as time worked.
	return h.db.write.QueryRowContext(ctx,
		`UPDATE `+string(h.table)+` SET worker = $2, lease_until = $3, updated_at = $4,
			started_at = CASE WHEN started_at = 0 THEN $4 ELSE $4 - (updated_at - started_at) END
		WHERE id = $1 AND state = 'pending' AND (worker = '' OR lease_until < $4 OR lease_until > $5)
		RETURNING `+columns,
		h.id, h.worker, micros(now.Add(lease)), micros(now), micros(now.Add(2*lease)))
}

// Progress renews the lease and stores how many bytes have been gone through,
// which never goes down.
func (h *hold) Progress(ctx context.Context, bytesDone int64, lease time.Duration) error {
	now := h.db.now()
	return h.fault(ctx, h.update(ctx, h.db.write, `lease_until = $3, updated_at = $4,
		bytes_done = CASE WHEN bytes_done < $5 THEN $5 ELSE bytes_done END`,
		micros(now.Add(lease)), micros(now), bytesDone))
}

// Release gives the row back, so that any worker can claim it at once.
func (h *hold) Release(ctx context.Context) error {
	return h.fault(ctx, h.update(ctx, h.db.write, `worker = ''`))
}

// Fail stores why the work cannot be done, without the cause in failure.Err.
func (h *hold) Fail(ctx context.Context, failure *download.Error) error {
	data, err := json.Marshal(storedFailure{failure.Code, failure.Message, failure.Details})
	if err != nil {
		return fmt.Errorf("encode failure of %s: %w", h.id, err)
	}
	return h.fault(ctx, h.update(ctx, h.db.write, `worker = '', state = 'failed', failure = $3, updated_at = $4`,
		string(data), micros(h.db.now())))
}

// Ready stores the complete plan, the size of the ZIP and its digest. The
// package is ready then.
func (w *Work) Ready(ctx context.Context, plan *download.Plan, size int64, digest []byte) error {
	data, err := plan.MarshalBinary()
	if err != nil {
		return fmt.Errorf("encode plan of package %s: %w", w.Package.ID, err)
	}
	return w.fault(ctx, w.db.tx(ctx, func(tx *sql.Tx) error {
		if err := w.update(ctx, tx, `worker = '', state = 'ready', size = $3, digest = $4, bytes_done = bytes_total,
			updated_at = $5`, size, digest, micros(w.db.now())); err != nil {
			return err
		}
		_, err := tx.ExecContext(ctx, `UPDATE package_plans SET plan = $2 WHERE package_id = $1`, w.Package.ID, data)
		return err
	}))
}

// update sets columns of the row if the worker still has it. The first free
// parameter is $3.
func (h *hold) update(ctx context.Context, on execer, columns string, args ...any) error {
	result, err := on.ExecContext(ctx,
		`UPDATE `+string(h.table)+` SET `+columns+` WHERE id = $1 AND worker = $2 AND state = 'pending'`,
		append([]any{h.id, h.worker}, args...)...)
	if err != nil {
		return err
	}
	n, err := result.RowsAffected()
	if err == nil && n == 0 {
		err = ErrNotHeld
	}
	return err
}

// fault is nil if err is.
func (h *hold) fault(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	return fault(ctx, fmt.Sprintf("update %s in %s", h.id, h.table), err)
}

type execer interface {
	ExecContext(ctx context.Context, statement string, args ...any) (sql.Result, error)
}

// ReleaseAll ends every lease on what is pending. It is for a server that has the
// database to itself and has just started: whoever held them is gone.
func (db *DB) ReleaseAll(ctx context.Context) error {
	for _, t := range []table{packages, assemblies} {
		if _, err := db.exec(ctx, "release "+string(t), `UPDATE `+string(t)+` SET lease_until = 0 WHERE state = 'pending'`); err != nil {
			return err
		}
	}
	return nil
}

// Unattended returns the runs of pending packages whose lease has ended, up to
// limit of them, those that were being worked on first. It extends the lease of
// each, so that no other server gets it too, and takes it from its holder.
func (db *DB) Unattended(ctx context.Context, lease time.Duration, limit int) ([]Run, error) {
	return unattended(ctx, db, packages, `id, run`, lease, limit, func(rows *sql.Rows) (r Run, err error) {
		err = rows.Scan(&r.PackageID, &r.Number)
		return r, err
	})
}

// UnattendedAssemblies returns pending assemblies as Unattended does packages.
func (db *DB) UnattendedAssemblies(ctx context.Context, lease time.Duration, limit int) ([]uuid.UUID, error) {
	return unattended(ctx, db, assemblies, `id`, lease, limit, func(rows *sql.Rows) (id uuid.UUID, err error) {
		err = rows.Scan(&id)
		return id, err
	})
}

func unattended[T any](ctx context.Context, db *DB, t table, columns string, lease time.Duration, limit int, scan func(*sql.Rows) (T, error)) ([]T, error) {
	op := "find unattended " + string(t)
	now := db.now()
	rows, err := db.write.QueryContext(ctx,
		`UPDATE `+string(t)+` SET lease_until = $2, worker = '' WHERE state = 'pending' AND (lease_until < $1 OR lease_until > $4) AND id IN (
			SELECT id FROM `+string(t)+` WHERE state = 'pending' AND (lease_until < $1 OR lease_until > $4)
			ORDER BY CASE WHEN worker = '' THEN 1 ELSE 0 END, lease_until LIMIT $3)
		RETURNING `+columns, micros(now), micros(now.Add(lease)), limit, micros(now.Add(2*lease)))
	if err != nil {
		return nil, fault(ctx, op, err)
	}
	return collect(ctx, rows, op, scan)
}

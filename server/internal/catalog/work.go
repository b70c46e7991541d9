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

// Work is the right to prepare one pending package. One holder at a time has it,
// for as long as it renews its lease. Its methods fail with ErrNotHeld once it
// is lost: the holder must stop then, since another may have begun.
type Work struct {
	db      *DB
	id      string
	Package download.Package
}

// Claim takes the right to prepare the package until the lease ends. It fails
// with ErrNotHeld if the package is not pending or the lease of its holder has
// not ended, and with [download.ErrPackageNotFound].
//
// Servers compare leases by their own clocks: the lease should be long compared
// to how far those are apart.
func (db *DB) Claim(ctx context.Context, id uuid.UUID, lease time.Duration) (*Work, error) {
	now := db.now()
	w := &Work{db: db, id: uuid.NewString()}
	// The time between two turns of work must not count as time worked.
	var err error
	w.Package, err = scanPackage(db.write.QueryRowContext(ctx,
		`UPDATE packages SET worker = $2, lease_until = $3, updated_at = $4,
			started_at = CASE WHEN started_at = 0 THEN $4 ELSE $4 - (updated_at - started_at) END
		WHERE id = $1 AND state = 'pending' AND (worker = '' OR lease_until < $4)
		RETURNING `+packageColumns,
		id, w.id, micros(now.Add(lease)), micros(now)))
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

// Progress renews the lease and stores how many bytes have been read, which
// never goes down.
func (w *Work) Progress(ctx context.Context, bytesDone int64, lease time.Duration) error {
	now := w.db.now()
	return w.fault(ctx, w.update(ctx, w.db.write, `lease_until = $3, updated_at = $4,
		bytes_done = CASE WHEN bytes_done < $5 THEN $5 ELSE bytes_done END`,
		micros(now.Add(lease)), micros(now), bytesDone))
}

// Release gives the package back, so that any worker can claim it at once.
func (w *Work) Release(ctx context.Context) error {
	return w.fault(ctx, w.update(ctx, w.db.write, `worker = ''`))
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

// Fail stores why the package cannot be prepared, without the cause in
// failure.Err. AddPackage starts it again.
func (w *Work) Fail(ctx context.Context, failure *download.Error) error {
	data, err := json.Marshal(storedFailure{failure.Code, failure.Message, failure.Details})
	if err != nil {
		return fmt.Errorf("encode failure of package %s: %w", w.Package.ID, err)
	}
	return w.fault(ctx, w.update(ctx, w.db.write, `worker = '', state = 'failed', failure = $3, updated_at = $4`,
		string(data), micros(w.db.now())))
}

// update sets columns of the package if the worker still has it. The first free
// parameter is $3.
func (w *Work) update(ctx context.Context, on execer, columns string, args ...any) error {
	result, err := on.ExecContext(ctx,
		`UPDATE packages SET `+columns+` WHERE id = $1 AND worker = $2 AND state = 'pending'`,
		append([]any{w.Package.ID, w.id}, args...)...)
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
func (w *Work) fault(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	return fault(ctx, fmt.Sprintf("update package %s", w.Package.ID), err)
}

type execer interface {
	ExecContext(ctx context.Context, statement string, args ...any) (sql.Result, error)
}

// ReleaseAll ends every lease on a pending package. It is for a server that has
// the database to itself and has just started: whoever held them is gone.
func (db *DB) ReleaseAll(ctx context.Context) error {
	_, err := db.exec(ctx, "release packages",
		`UPDATE packages SET lease_until = 0 WHERE state = 'pending'`)
	return err
}

// Unattended returns the runs of pending packages whose lease has ended, up to
// limit of them, those that were being worked on first. It extends the lease of
// each, so that no other server gets it too, and takes it from its holder.
func (db *DB) Unattended(ctx context.Context, lease time.Duration, limit int) ([]Run, error) {
	const op = "find unattended packages"
	now := db.now()
	rows, err := db.write.QueryContext(ctx,
		`UPDATE packages SET lease_until = $2, worker = '' WHERE state = 'pending' AND lease_until < $1 AND id IN (
			SELECT id FROM packages WHERE state = 'pending' AND lease_until < $1
			ORDER BY CASE WHEN worker = '' THEN 1 ELSE 0 END, lease_until LIMIT $3)
		RETURNING id, run`, micros(now), micros(now.Add(lease)), limit)
	if err != nil {
		return nil, fault(ctx, op, err)
	}
	return collect(ctx, rows, op, func(rows *sql.Rows) (r Run, err error) {
		err = rows.Scan(&r.PackageID, &r.Number)
		return r, err
	})
}

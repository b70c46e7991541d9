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

const assemblyColumns = `id, package_id, object_key, state, upload, failure,
	bytes_total, bytes_done, started_at, updated_at, expires_at`

// Assembly returns the package's assembly, expired ones left out, or ErrNotFound,
// in one indexed read.
func (db *DB) Assembly(ctx context.Context, packageID uuid.UUID) (download.Assembly, error) {
	a, err := scanAssembly(db.readRow(ctx,
		`SELECT `+assemblyColumns+` FROM assemblies WHERE package_id = $1 AND state <> 'expired'`, packageID))
	if err != nil {
		return download.Assembly{}, assemblyFault(ctx, "read assembly of package", packageID, err)
	}
	return a, nil
}

// AssemblyByID returns the assembly in any state, or ErrNotFound.
func (db *DB) AssemblyByID(ctx context.Context, id uuid.UUID) (download.Assembly, error) {
	a, err := scanAssembly(db.readRow(ctx, `SELECT `+assemblyColumns+` FROM assemblies WHERE id = $1`, id))
	if err != nil {
		return download.Assembly{}, assemblyFault(ctx, "read assembly", id, err)
	}
	return a, nil
}

// AddAssembly adds a pending assembly and calls added in the same transaction,
// unless its package has one: then it returns that.
func (db *DB) AddAssembly(ctx context.Context, a download.Assembly, lease time.Duration, added func(*sql.Tx) error) (download.Assembly, error) {
	now := db.now()
	err := db.tx(ctx, func(tx *sql.Tx) error {
		row := tx.QueryRowContext(ctx,
			`INSERT INTO assemblies (id, package_id, object_key, state, upload, bytes_total, bytes_done,
				worker, lease_until, started_at, created_at, updated_at, expires_at)
			VALUES ($1, $2, $3, 'pending', '', $4, 0, '', $5, 0, $6, $6, $7)
			ON CONFLICT (package_id) WHERE state <> 'expired' DO NOTHING
			RETURNING `+assemblyColumns,
			a.ID, a.PackageID, a.Key, a.BytesTotal, micros(now.Add(lease)), micros(now), micros(a.Expires))
		stored, err := scanAssembly(row)
		if errors.Is(err, sql.ErrNoRows) {
			a, err = scanAssembly(tx.QueryRowContext(ctx,
				`SELECT `+assemblyColumns+` FROM assemblies WHERE package_id = $1 AND state <> 'expired'`, a.PackageID))
			return err
		}
		if err != nil {
			return err
		}
		a = stored
		return added(tx)
	})
	if err != nil {
		return download.Assembly{}, fault(ctx, fmt.Sprintf("add assembly of package %s", a.PackageID), err)
	}
	return a, nil
}

// KeepAssembly has the object kept until the given time at least, and reports
// whether it still is.
func (db *DB) KeepAssembly(ctx context.Context, id uuid.UUID, until time.Time) (bool, error) {
	n, err := db.exec(ctx, "keep assembly",
		`UPDATE assemblies SET expires_at = CASE WHEN expires_at < $2 THEN $2 ELSE expires_at END
		WHERE id = $1 AND state = 'ready'`, id, micros(until))
	return n > 0, err
}

// ExpireAssembly has an assembly that is not at work deleted, and makes room for
// a new one of its package.
func (db *DB) ExpireAssembly(ctx context.Context, id uuid.UUID) error {
	_, err := db.exec(ctx, "expire assembly",
		`UPDATE assemblies SET state = 'expired' WHERE id = $1 AND state IN ('ready', 'failed')`, id)
	return err
}

// ExpiredAssemblies returns assemblies whose objects are to be deleted, up to
// limit of them: those whose time is over, those whose package is gone, and those
// that were to be replaced.
func (db *DB) ExpiredAssemblies(ctx context.Context, limit int) ([]download.Assembly, error) {
	now := micros(db.now())
	if _, err := db.exec(ctx, "expire assemblies",
		`UPDATE assemblies SET state = 'expired'
		WHERE state IN ('ready', 'failed') AND expires_at < $1
			OR (state IN ('ready', 'failed') OR state = 'pending' AND lease_until < $1)
				AND NOT EXISTS (SELECT 1 FROM packages WHERE packages.id = assemblies.package_id)`, now); err != nil {
		return nil, err
	}
	return query(ctx, db, "list expired assemblies",
		func(rows *sql.Rows) (download.Assembly, error) { return scanAssembly(rows) },
		`SELECT `+assemblyColumns+` FROM assemblies WHERE state = 'expired' ORDER BY expires_at LIMIT $1`, limit)
}

// DeleteAssembly forgets an expired assembly, whose object is deleted.
func (db *DB) DeleteAssembly(ctx context.Context, id uuid.UUID) error {
	_, err := db.exec(ctx, "delete assembly", `DELETE FROM assemblies WHERE id = $1 AND state = 'expired'`, id)
	return err
}

// AssemblyWork is the right to work on one pending assembly.
type AssemblyWork struct {
	hold
	Assembly download.Assembly
}

// ClaimAssembly takes the right to work on the assembly until the lease ends, as
// Claim does. It fails with ErrNotHeld, and so it does if there is none.
func (db *DB) ClaimAssembly(ctx context.Context, id uuid.UUID, lease time.Duration) (*AssemblyWork, error) {
	w := &AssemblyWork{hold: db.newHold(assemblies, id)}
	var err error
	w.Assembly, err = scanAssembly(w.claim(ctx, assemblyColumns, lease))
	if errors.Is(err, sql.ErrNoRows) {
		return nil, fmt.Errorf("claim assembly %s: %w", id, ErrNotHeld)
	}
	if err != nil {
		return nil, fault(ctx, fmt.Sprintf("claim assembly %s", id), err)
	}
	return w, nil
}

// Begun stores the multipart upload that parts go to from now on.
func (w *AssemblyWork) Begun(ctx context.Context, upload string) error {
	return w.fault(ctx, w.update(ctx, w.db.write, `upload = $3`, upload))
}

// Ready stores that the object is there.
func (w *AssemblyWork) Ready(ctx context.Context) error {
	return w.fault(ctx, w.update(ctx, w.db.write, `worker = '', state = 'ready', upload = '', bytes_done = bytes_total,
		updated_at = $3`, micros(w.db.now())))
}

// scanAssembly reads assemblyColumns.
func scanAssembly(row scanner) (download.Assembly, error) {
	var a download.Assembly
	var failure []byte
	var started, updated, expires int64
	err := row.Scan(&a.ID, &a.PackageID, &a.Key, &a.State, &a.Upload, &failure,
		&a.BytesTotal, &a.BytesDone, &started, &updated, &expires)
	if err != nil {
		return download.Assembly{}, err
	}
	a.Started, a.Updated, a.Expires = fromMicros(started), fromMicros(updated), fromMicros(expires)
	a.Failure, err = scanFailure(failure)
	return a, err
}

func scanFailure(data []byte) (*download.Error, error) {
	if data == nil {
		return nil, nil
	}
	f := &storedFailure{}
	if err := json.Unmarshal(data, f); err != nil {
		return nil, fmt.Errorf("decode failure: %w", err)
	}
	return &download.Error{Code: f.Code, Message: f.Message, Details: f.Details}, nil
}

func assemblyFault(ctx context.Context, op string, id uuid.UUID, err error) error {
	if errors.Is(err, sql.ErrNoRows) {
		err = ErrNotFound
	}
	return fault(ctx, fmt.Sprintf("%s %s", op, id), err)
}

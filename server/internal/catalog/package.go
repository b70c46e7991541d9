package catalog

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"

	"github.com/downlink-go/downlink/server/internal/download"
)

// requestedEvery is how precisely it is kept when a package was asked for. A
// package that is asked for often is not written each time.
const requestedEvery = time.Hour

const packageColumns = `id, workflow_id, job_id, state, entries, size, digest, failure,
	bytes_total, bytes_done, started_at, created_at, updated_at, requested_at`

// Package returns the state of the package, or [download.ErrPackageNotFound], in
// one indexed read. It notes that the package was asked for, at most once an
// hour.
func (db *DB) Package(ctx context.Context, id uuid.UUID) (download.Package, error) {
	p, err := db.readPackage(ctx, id)
	if err != nil {
		return download.Package{}, err
	}
	if now := db.now(); now.Sub(p.Requested) > requestedEvery {
		if _, err := db.exec(ctx, "note request of package",
			`UPDATE packages SET requested_at = $2 WHERE id = $1`, id, micros(now)); err != nil {
			return download.Package{}, err
		}
	}
	return p, nil
}

func (db *DB) readPackage(ctx context.Context, id uuid.UUID) (download.Package, error) {
	p, err := scanPackage(db.readRow(ctx, `SELECT `+packageColumns+` FROM packages WHERE id = $1`, id))
	if err != nil {
		return download.Package{}, packageFault(ctx, "read package", id, err)
	}
	return p, nil
}

// PackageFilter selects packages. Its zero value selects the newest 100.
type PackageFilter struct {
	WorkflowID string         // any if empty
	JobID      string         // any if empty
	State      download.State // any if empty
	// Limit bounds the number of packages. Defaults to 100.
	Limit int
}

// Packages lists the packages that the filter selects, the newest first.
func (db *DB) Packages(ctx context.Context, f PackageFilter) ([]download.Package, error) {
	if f.Limit <= 0 {
		f.Limit = 100
	}
	return query(ctx, db, "list packages", func(rows *sql.Rows) (download.Package, error) { return scanPackage(rows) },
		`SELECT `+packageColumns+` FROM packages
		WHERE ($1 = '' OR workflow_id = $1) AND ($2 = '' OR job_id = $2) AND ($3 = '' OR state = $3)
		ORDER BY created_at DESC, id LIMIT $4`,
		f.WorkflowID, f.JobID, string(f.State), f.Limit)
}

// PackageCount is the number of packages in one state, and how many bytes of
// assets these have still to be read.
type PackageCount struct {
	State     download.State
	Packages  int64
	BytesLeft int64
}

// PackageCounts counts the packages by state. It reads all of them.
func (db *DB) PackageCounts(ctx context.Context) ([]PackageCount, error) {
	return query(ctx, db, "count packages", func(rows *sql.Rows) (c PackageCount, err error) {
		err = rows.Scan(&c.State, &c.Packages, &c.BytesLeft)
		return c, err
	}, `SELECT state, count(*), CAST(sum(CASE state WHEN 'pending' THEN bytes_total - bytes_done ELSE 0 END) AS BIGINT) FROM packages GROUP BY state`)
}

// Plan returns the stored plan of the package, or [download.ErrPackageNotFound].
// It has all checksums if the package is ready.
func (db *DB) Plan(ctx context.Context, id uuid.UUID) (*download.Plan, error) {
	var data []byte
	err := db.read.QueryRowContext(ctx, `SELECT plan FROM package_plans WHERE package_id = $1`, id).Scan(&data)
	if err != nil {
		return nil, packageFault(ctx, "read plan of package", id, err)
	}
	plan, err := download.UnmarshalPlan(data)
	if err != nil {
		return nil, fmt.Errorf("decode plan of package %s: %w", id, err)
	}
	return plan, nil
}

// Run names one start of a package. A package that is started again after it
// failed or was deleted has another number.
type Run struct {
	PackageID uuid.UUID
	Number    int64
}

// AddPackage stores a package that is Pending or Ready with its plan, unless
// there is one of its identifier already that has not failed, and returns what
// is stored then. If it stores the package, it calls stored in the same
// transaction, and stores nothing if that fails. The times are set here. A
// pending package needs no attention from now until the lease ends.
func (db *DB) AddPackage(ctx context.Context, p download.Package, plan *download.Plan, lease time.Duration, stored func(*sql.Tx, Run) error) (download.Package, error) {
	data, err := plan.MarshalBinary()
	if err != nil {
		return download.Package{}, fmt.Errorf("encode plan of package %s: %w", p.ID, err)
	}
	now := db.now()
	run := Run{PackageID: p.ID, Number: micros(now)}
	err = db.tx(ctx, func(tx *sql.Tx) error {
		row := tx.QueryRowContext(ctx,
			`INSERT INTO packages (id, workflow_id, job_id, state, entries, size, digest, bytes_total, bytes_done,
				run, worker, lease_until, started_at, created_at, updated_at, requested_at)
			VALUES ($1, $2, $3, $4, $5, $6, $7, $8, 0, $9, '', $10, 0, $11, $11, $11)
			ON CONFLICT (id) DO UPDATE SET state = excluded.state, size = excluded.size, digest = excluded.digest,
				failure = NULL, bytes_total = excluded.bytes_total, bytes_done = 0,
				run = excluded.run, worker = '', lease_until = excluded.lease_until, started_at = 0,
				updated_at = excluded.updated_at, requested_at = excluded.requested_at
			WHERE packages.state = 'failed'
			RETURNING `+packageColumns,
			p.ID, p.WorkflowID, p.JobID, string(p.State), p.Entries, p.Size, p.Digest, p.BytesTotal,
			run.Number, micros(now.Add(lease)), micros(now))
		added, err := scanPackage(row)
		if errors.Is(err, sql.ErrNoRows) {
			p, err = scanPackage(tx.QueryRowContext(ctx, `SELECT `+packageColumns+` FROM packages WHERE id = $1`, p.ID))
			return err
		}
		if err != nil {
			return err
		}
		p = added
		if _, err := tx.ExecContext(ctx,
			`INSERT INTO package_plans (package_id, plan) VALUES ($1, $2)
			ON CONFLICT (package_id) DO UPDATE SET plan = excluded.plan`, p.ID, data); err != nil {
			return err
		}
		return stored(tx, run)
	})
	if err != nil {
		return download.Package{}, fault(ctx, fmt.Sprintf("add package %s", p.ID), err)
	}
	return p, nil
}

// DeletePackage removes the package and its plan. Signed links to it stop
// working; the next request plans it again. It fails with
// [download.ErrPackageNotFound].
func (db *DB) DeletePackage(ctx context.Context, id uuid.UUID) error {
	n, err := db.exec(ctx, "delete package", `DELETE FROM packages WHERE id = $1`, id)
	if err == nil && n == 0 {
		err = fmt.Errorf("delete package %s: %w", id, download.ErrPackageNotFound)
	}
	return err
}

// Prune removes the packages that nobody has asked for since the given time, and
// what was kept of assets whose reading never ended. It returns the number of
// packages.
func (db *DB) Prune(ctx context.Context, before time.Time) (int64, error) {
	n, err := db.exec(ctx, "prune packages", `DELETE FROM packages WHERE requested_at < $1`, micros(before))
	if err != nil {
		return 0, err
	}
	_, err = db.exec(ctx, "prune cursors", `DELETE FROM asset_cursors WHERE updated_at < $1`, micros(before))
	return n, err
}

// scanPackage reads packageColumns.
func scanPackage(row scanner) (download.Package, error) {
	var p download.Package
	var failure []byte
	var started, created, updated, requested int64
	err := row.Scan(&p.ID, &p.WorkflowID, &p.JobID, &p.State, &p.Entries, &p.Size, &p.Digest, &failure,
		&p.BytesTotal, &p.BytesDone, &started, &created, &updated, &requested)
	if err != nil {
		return download.Package{}, err
	}
	p.Started, p.Created = fromMicros(started), fromMicros(created)
	p.Updated, p.Requested = fromMicros(updated), fromMicros(requested)
	if p.Failure, err = scanFailure(failure); err != nil {
		return download.Package{}, fmt.Errorf("package %s: %w", p.ID, err)
	}
	return p, nil
}

// storedFailure is a [download.Error] without its cause, which is in the log of
// the server that found it.
type storedFailure struct {
	Code    download.Code     `json:"code"`
	Message string            `json:"message"`
	Details []download.Detail `json:"details,omitempty"`
}

func packageFault(ctx context.Context, op string, id uuid.UUID, err error) error {
	if errors.Is(err, sql.ErrNoRows) {
		err = download.ErrPackageNotFound
	}
	return fault(ctx, fmt.Sprintf("%s %s", op, id), err)
}

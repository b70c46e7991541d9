// Package catalog keeps the state of a deployment in SQL: organizations, their
// API keys and grants, the packages, and the checksums of assets.
//
// SQLite is for one server, PostgreSQL for any number of them. Both run the
// same statements but for a few that are marked, and pass one suite of tests.
//
// Every method takes its deadline from its context and may be called
// concurrently. An error that only says that the database cannot be used right
// now is a [download.Error] with Unavailable; what else a method may return is
// in its comment, and any other error is a fault.
package catalog

import (
	"cmp"
	"context"
	"database/sql"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/maypok86/otter/v2"

	"github.com/downlink-go/downlink/server/internal/download"
)

// Dialect is the SQL that a database speaks.
type Dialect string

// The dialects.
const (
	SQLite   Dialect = "sqlite"
	Postgres Dialect = "postgres"
)

// Config says which database to open.
type Config struct {
	// Database is the path of a SQLite file, created if it is missing, or the
	// postgres:// URL of a PostgreSQL database. Required.
	Database string
	// MaxConns bounds the connections to PostgreSQL. Defaults to 16.
	MaxConns int
	// Now is the clock. Defaults to time.Now.
	Now func() time.Time
}

// DB is an open database.
type DB struct {
	dialect Dialect
	// With SQLite, write has one connection and read opens no transactions that
	// write. With PostgreSQL both are the same pool.
	write, read *sql.DB
	postgres    *pgx.ConnConfig // nil with SQLite
	path        string          // empty with PostgreSQL
	now         func() time.Time
	keys        *keyCache
	permissions *otter.Cache[permission, struct{}]

	mu       sync.Mutex
	prepared map[string]*sql.Stmt // what readRow has parsed
}

var (
	_ download.Grants   = (*DB)(nil)
	_ download.Packages = (*DB)(nil)
)

// IsPostgres reports whether the name of a database is that of a PostgreSQL one.
func IsPostgres(database string) bool {
	return strings.HasPrefix(database, "postgres://") || strings.HasPrefix(database, "postgresql://")
}

// Open opens the database and makes sure that it answers. It leaves the schema
// alone: see [DB.Migrate]. The password in a URL appears in no error.
func Open(ctx context.Context, c Config) (*DB, error) {
	db := &DB{now: c.Now, prepared: map[string]*sql.Stmt{}}
	if db.now == nil {
		db.now = time.Now
	}
	db.keys = newKeyCache(db)
	db.permissions = newMemory[permission, struct{}](db)
	var err error
	if IsPostgres(c.Database) {
		err = db.openPostgres(ctx, c.Database, cmp.Or(c.MaxConns, 16))
	} else {
		err = db.openSQLite(ctx, c.Database)
	}
	if err != nil {
		return nil, err
	}
	return db, nil
}

// Close closes all connections. Nothing may use the database afterwards.
func (db *DB) Close() error {
	err := db.write.Close()
	if db.read != db.write {
		err = cmp.Or(db.read.Close(), err)
	}
	return err
}

// Ping fails if the database does not answer.
func (db *DB) Ping(ctx context.Context) error {
	var one int
	if err := db.readRow(ctx, `SELECT 1`).Scan(&one); err != nil {
		return fault(ctx, "ask database", err)
	}
	return nil
}

// Dialect returns the dialect of the database.
func (db *DB) Dialect() Dialect { return db.dialect }

// SQL returns the pool that may write. With SQLite it has one connection: code
// that holds a transaction must not ask for another.
func (db *DB) SQL() *sql.DB { return db.write }

// tx runs f in one transaction.
func (db *DB) tx(ctx context.Context, f func(*sql.Tx) error) error {
	tx, err := db.write.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback() // does nothing after a commit
	if err := f(tx); err != nil {
		return err
	}
	return tx.Commit()
}

// exec runs a statement and returns how many rows it changed.
func (db *DB) exec(ctx context.Context, op, statement string, args ...any) (int64, error) {
	result, err := db.write.ExecContext(ctx, statement, args...)
	if err != nil {
		return 0, fault(ctx, op, err)
	}
	n, err := result.RowsAffected()
	if err != nil {
		return 0, fault(ctx, op, err)
	}
	return n, nil
}

// query returns what scan makes of each row.
func query[T any](ctx context.Context, db *DB, op string, scan func(*sql.Rows) (T, error), statement string, args ...any) ([]T, error) {
	rows, err := db.read.QueryContext(ctx, statement, args...)
	if err != nil {
		return nil, fault(ctx, op, err)
	}
	return collect(ctx, rows, op, scan)
}

func collect[T any](ctx context.Context, rows *sql.Rows, op string, scan func(*sql.Rows) (T, error)) ([]T, error) {
	defer rows.Close()
	var all []T
	for rows.Next() {
		v, err := scan(rows)
		if err != nil {
			return nil, fault(ctx, op, err)
		}
		all = append(all, v)
	}
	if err := rows.Err(); err != nil {
		return nil, fault(ctx, op, err)
	}
	return all, nil
}

// readRow reads one row. The statement is parsed once for each connection: for
// what every call of the API reads, SQLite takes longer to parse than to read.
func (db *DB) readRow(ctx context.Context, statement string, args ...any) scanner {
	db.mu.Lock()
	prepared, ok := db.prepared[statement]
	db.mu.Unlock()
	if !ok {
		var err error
		if prepared, err = db.read.PrepareContext(ctx, statement); err != nil {
			return failedRow{err}
		}
		db.mu.Lock()
		if other, ok := db.prepared[statement]; ok {
			_ = prepared.Close() //nolint:sqlclosecheck // another call was faster
			prepared = other
		} else {
			db.prepared[statement] = prepared
		}
		db.mu.Unlock()
	}
	return prepared.QueryRowContext(ctx, args...)
}

// scanner is a row.
type scanner interface{ Scan(...any) error }

// failedRow is the row of a statement that cannot be prepared.
type failedRow struct{ err error }

func (r failedRow) Scan(...any) error { return r.err }

// micros is how times are stored.
func micros(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMicro()
}

func fromMicros(us int64) time.Time {
	if us == 0 {
		return time.Time{}
	}
	return time.UnixMicro(us).UTC()
}

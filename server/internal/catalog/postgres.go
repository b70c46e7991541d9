package catalog

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
)

func (db *DB) openPostgres(ctx context.Context, url string, maxConns int) error {
	config, err := pgx.ParseConfig(url)
	if err != nil {
		// The cause may quote the URL, and with it the password.
		return errors.New("the URL of the database is malformed")
	}
	config.ConnectTimeout = cmp.Or(config.ConnectTimeout, 5*time.Second)
	if config.RuntimeParams["application_name"] == "" {
		config.RuntimeParams["application_name"] = "downlinkd"
	}
	db.dialect, db.postgres = Postgres, config
	db.write = stdlib.OpenDB(*config)
	db.write.SetMaxOpenConns(maxConns)
	db.write.SetMaxIdleConns(maxConns)
	db.write.SetConnMaxIdleTime(5 * time.Minute)
	db.read = db.write
	if err := db.write.PingContext(ctx); err != nil {
		return errors.Join(fault(ctx, "open database", err), db.Close())
	}
	return nil
}

// NewListenerPool returns a pool of one connection to the same PostgreSQL
// database, for code that needs LISTEN. The caller closes it. It is not for SQLite.
func (db *DB) NewListenerPool(ctx context.Context) (*pgxpool.Pool, error) {
	config, err := pgxpool.ParseConfig("")
	if err != nil {
		return nil, fmt.Errorf("configure listener: %w", err)
	}
	config.ConnConfig = db.postgres.Copy()
	config.MinConns, config.MaxConns = 0, 1
	pool, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		return nil, fmt.Errorf("open listener: %w", err)
	}
	return pool, nil
}

// migrationLock is the number of the advisory lock that migrations hold.
const migrationLock = 0x646f776e6c696e6b // "downlink"

// lockPostgres keeps other processes from migrating the same database.
func (db *DB) lockPostgres(ctx context.Context) (unlock func(), err error) {
	conn, err := db.write.Conn(ctx)
	if err != nil {
		return nil, err
	}
	if _, err := conn.ExecContext(ctx, "SELECT pg_advisory_lock($1)", int64(migrationLock)); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return func() {
		// Also when ctx is over. If it fails the connection is broken, and the
		// lock gone with it.
		_, _ = conn.ExecContext(context.WithoutCancel(ctx), "SELECT pg_advisory_unlock($1)", int64(migrationLock))
		_ = conn.Close()
	}, nil
}

package catalog

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"time"

	_ "modernc.org/sqlite" // the driver named "sqlite"
)

// openSQLite opens the file with one connection that writes and a pool of those
// that read.
//
// The journal is a write-ahead log, so that readers and the writer do not wait
// for each other, and it is synced at checkpoints rather than at each commit:
// the end of a process at any point loses nothing, while a power cut may undo
// the commits of the last seconds, and never corrupts the file. What is lost
// that way is found out again, except for an organization, a key, a grant or a
// revocation made in just those seconds.
func (db *DB) openSQLite(ctx context.Context, path string) error {
	if path == "" {
		return errors.New("no database given")
	}
	path, err := filepath.Abs(path)
	if err != nil {
		return fmt.Errorf("open database: %w", err)
	}
	if err := makePrivate(path); err != nil {
		return fmt.Errorf("open database: %w", err)
	}
	db.dialect, db.path = SQLite, path
	busy := fmt.Sprintf("busy_timeout(%d)", busyTimeout.Milliseconds())
	// Plans of many MB are stored: larger pages, and a checkpoint after 32 MiB
	// rather than within most such commits.
	db.write, err = sql.Open("sqlite", sqliteDSN(path, "immediate",
		busy, "page_size(8192)", "journal_mode(WAL)", "wal_autocheckpoint(4096)",
		"synchronous(NORMAL)", "foreign_keys(1)"))
	if err != nil {
		return fmt.Errorf("open database: %w", err)
	}
	db.write.SetMaxOpenConns(1)
	db.read, err = sql.Open("sqlite", sqliteDSN(path, "deferred", busy, "query_only(1)"))
	if err != nil {
		return fmt.Errorf("open database: %w", err)
	}
	readers := max(4, runtime.NumCPU())
	db.read.SetMaxOpenConns(readers)
	db.read.SetMaxIdleConns(readers)

	// The first connection sets the mode of the journal, and finds out whether
	// this is a database at all. Where several processes do so to a new file,
	// SQLite gives up at once rather than after busy_timeout.
	for deadline := time.Now().Add(busyTimeout); ; {
		_, err := db.write.ExecContext(ctx, "SELECT count(*) FROM sqlite_schema")
		if err == nil {
			return nil
		}
		if ctx.Err() != nil || !transient(err) || time.Now().After(deadline) {
			return errors.Join(fault(ctx, "open database "+path, err), db.Close())
		}
		select {
		case <-ctx.Done():
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// makePrivate makes the file, for its owner alone, if it is not there: it holds
// hashes of secrets. SQLite gives the files beside it the same mode.
func makePrivate(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	return f.Close()
}

// busyTimeout is how long a connection waits for another process that writes.
const busyTimeout = 10 * time.Second

// sqliteDSN names the file with settings that hold on every connection.
func sqliteDSN(path, txlock string, pragmas ...string) string {
	u := url.URL{Scheme: "file", OmitHost: true, Path: filepath.ToSlash(path)}
	u.RawQuery = url.Values{"_txlock": {txlock}, "_pragma": pragmas}.Encode()
	return u.String()
}

// lockSQLite keeps other processes from migrating the same file. The lock is an
// exclusive transaction on a small file beside it, which ends with the process.
func (db *DB) lockSQLite(ctx context.Context) (unlock func(), err error) {
	if err := makePrivate(db.path + "-migrate"); err != nil {
		return nil, err
	}
	lock, err := sql.Open("sqlite", sqliteDSN(db.path+"-migrate", "exclusive", "busy_timeout(60000)"))
	if err != nil {
		return nil, err
	}
	tx, err := lock.BeginTx(ctx, nil)
	if err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	return func() {
		_ = tx.Rollback()
		_ = lock.Close()
	}, nil
}

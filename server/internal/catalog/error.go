package catalog

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"net"

	"github.com/jackc/pgx/v5/pgconn"
	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"github.com/downlink-go/downlink/server/internal/download"
)

// The facts that methods report.
var (
	// ErrNotFound: there is no organization, key or grant of that name.
	ErrNotFound = errors.New("not found")
	// ErrConflict: the name is taken.
	ErrConflict = errors.New("already exists")
	// ErrNotHeld: the package is not pending any more, or another worker has it.
	ErrNotHeld = errors.New("package not held by this worker")
	// ErrNewerSchema: a newer release has migrated the database.
	ErrNewerSchema = errors.New("the database was migrated by a newer release")
	// ErrUnauthenticated: the key is malformed, unknown, expired or revoked.
	ErrUnauthenticated error = &download.Error{Code: download.Unauthenticated, Message: "the API key is not valid"}
)

// fault says what failed, and tells a database that cannot be used right now
// from one that was used wrongly.
func fault(ctx context.Context, op string, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("%s: %w", op, ctx.Err())
	}
	wrapped := fmt.Errorf("%s: %w", op, err)
	if transient(err) {
		return &download.Error{Code: download.Unavailable, Message: "the service cannot reach its database at the moment", Err: wrapped}
	}
	return wrapped
}

func transient(err error) bool {
	if e, ok := errors.AsType[*sqlite.Error](err); ok {
		switch e.Code() & 0xff { // the rest refines it
		case sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_FULL,
			sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_NOMEM:
			return true
		}
		return false
	}
	if e, ok := errors.AsType[*pgconn.PgError](err); ok {
		switch e.Code[:min(2, len(e.Code))] {
		case "08", "53", "57": // connection, resources, shutdown and cancelled by the operator
			return true
		}
		switch e.Code {
		case "40001", "40P01", "25006": // serialization, deadlock, read only as a standby is
			return true
		}
		return false
	}
	if _, ok := errors.AsType[net.Error](err); ok {
		return true
	}
	if _, ok := errors.AsType[*pgconn.ConnectError](err); ok {
		return true
	}
	return errors.Is(err, driver.ErrBadConn) || errors.Is(err, sql.ErrConnDone) || errors.Is(err, net.ErrClosed) ||
		errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || pgconn.SafeToRetry(err)
}

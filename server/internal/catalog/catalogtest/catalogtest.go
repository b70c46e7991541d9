// Package catalogtest opens databases for tests.
package catalogtest

import (
	"context"
	"database/sql"
	"fmt"
	"math/rand/v2"
	"net/url"
	"os"
	"path/filepath"
	"testing"

	_ "github.com/jackc/pgx/v5/stdlib" // the driver named "pgx"

	"github.com/downlink-go/downlink/server/internal/catalog"
)

// Each runs the test over every kind of database at once, each time with the
// name of an empty one of its own. PostgreSQL is there if the environment variable
// DOWNLINK_TEST_POSTGRES holds its URL, and must be if DOWNLINK_CI is set.
func Each(t *testing.T, test func(t *testing.T, database string)) {
	for name, database := range map[string]func(testing.TB) string{"sqlite": SQLite, "postgres": Postgres} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, database(t))
		})
	}
}

// SQLite returns the path of a database that is not there yet.
func SQLite(tb testing.TB) string {
	return filepath.Join(tb.TempDir(), "state.db")
}

// Postgres returns the URL of an empty schema of its own, which goes away with
// the test. It skips the test if there is no server.
func Postgres(tb testing.TB) string {
	tb.Helper()
	server := os.Getenv("DOWNLINK_TEST_POSTGRES")
	if server == "" {
		if os.Getenv("DOWNLINK_CI") != "" {
			tb.Fatal("DOWNLINK_TEST_POSTGRES is not set, and DOWNLINK_CI wants PostgreSQL")
		}
		tb.Skip("DOWNLINK_TEST_POSTGRES is not set: PostgreSQL is left out (make services starts one)")
	}
	u, err := url.Parse(server)
	if err != nil {
		tb.Fatal("DOWNLINK_TEST_POSTGRES is not a URL")
	}
	db, err := sql.Open("pgx", server)
	if err != nil {
		tb.Fatal(err)
	}
	schema := fmt.Sprintf("test_%016x", rand.Uint64())
	if _, err := db.ExecContext(tb.Context(), "CREATE SCHEMA "+schema); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if _, err := db.ExecContext(context.Background(), "DROP SCHEMA "+schema+" CASCADE"); err != nil {
			tb.Error(err)
		}
		if err := db.Close(); err != nil {
			tb.Error(err)
		}
	})
	q := u.Query()
	q.Set("search_path", schema)
	u.RawQuery = q.Encode()
	return u.String()
}

// Open opens and migrates the database until the test ends.
func Open(tb testing.TB, c catalog.Config, others ...func(*catalog.DB) (catalog.Migrator, error)) *catalog.DB {
	tb.Helper()
	db, err := catalog.Open(tb.Context(), c)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := db.Close(); err != nil {
			tb.Error(err)
		}
	})
	var migrators []catalog.Migrator
	for _, other := range others {
		m, err := other(db)
		if err != nil {
			tb.Fatal(err)
		}
		migrators = append(migrators, m)
	}
	if err := db.Migrate(tb.Context(), migrators...); err != nil {
		tb.Fatal(err)
	}
	return db
}

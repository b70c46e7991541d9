package server

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/downlink-go/downlink/server/internal/catalog"
	"github.com/downlink-go/downlink/server/internal/packager"
)

// databaseName returns the database to open: an empty one stands for
// downlink.db in the data directory.
func databaseName(dataDir, database string) string {
	if database == "" {
		return filepath.Join(dataDir, "downlink.db")
	}
	return database
}

// OpenDatabase opens the state of a server, which may be running, and brings its
// schema up to date. An empty database stands for downlink.db in the data
// directory, which is made if need be. It is for the commands of this module,
// which know the type that it returns.
func OpenDatabase(ctx context.Context, dataDir, database string) (*catalog.DB, error) {
	return openDatabase(ctx, dataDir, database, (*catalog.DB).Migrate)
}

// OpenDatabaseAsIs is OpenDatabase for those who look after the schema
// themselves, and returns what the queue needs of it.
func OpenDatabaseAsIs(ctx context.Context, dataDir, database string) (*catalog.DB, catalog.Migrator, error) {
	var queue catalog.Migrator
	db, err := openDatabase(ctx, dataDir, database, func(_ *catalog.DB, _ context.Context, others ...catalog.Migrator) error {
		queue = others[0]
		return nil
	})
	return db, queue, err
}

func openDatabase(ctx context.Context, dataDir, database string, prepare func(*catalog.DB, context.Context, ...catalog.Migrator) error) (*catalog.DB, error) {
	if !catalog.IsPostgres(database) {
		// Otherwise it would become the name of a file, with the password in it.
		if strings.Contains(database, "://") || strings.Contains(database, "host=") {
			return nil, errors.New("database: want the path of a SQLite file, or a URL such as postgres://user:password@host/database")
		}
		if err := os.MkdirAll(filepath.Dir(databaseName(dataDir, database)), 0o700); err != nil {
			return nil, fmt.Errorf("data directory: %w", err)
		}
	}
	db, err := catalog.Open(ctx, catalog.Config{Database: databaseName(dataDir, database)})
	if err != nil {
		return nil, err
	}
	queue, err := packager.Migrator(db)
	if err == nil {
		err = prepare(db, ctx, queue)
	}
	if err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return db, nil
}

package catalog

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"path"

	"github.com/pressly/goose/v3"
)

//go:embed migrations
var migrations embed.FS

// Migration is one step of the schema.
type Migration struct {
	Name    string
	Applied bool
}

// Migrator brings the tables of one component up to date.
type Migrator interface {
	// Status lists the steps in their order. It fails with ErrNewerSchema if
	// the database has steps that this release does not know.
	Status(ctx context.Context) ([]Migration, error)
	// Up applies the steps that are missing. No other process does so at the
	// same time.
	Up(ctx context.Context) error
}

// Migrate brings the schema up to date: the catalog's own tables and those of
// other components in the same database. Any number of processes may call it at
// once. It fails with ErrNewerSchema, and changes nothing, if a newer release
// has been at work.
func (db *DB) Migrate(ctx context.Context, others ...Migrator) error {
	steps, err := db.MigrationStatus(ctx, others...)
	if err != nil {
		return err
	}
	if complete(steps) {
		return nil
	}
	lock := db.lockSQLite
	if db.dialect == Postgres {
		lock = db.lockPostgres
	}
	unlock, err := lock(ctx)
	if err != nil {
		return fault(ctx, "lock database for migration", err)
	}
	defer unlock()
	for _, m := range db.migrators(others) {
		if err := m.Up(ctx); err != nil {
			return fault(ctx, "migrate database", err)
		}
	}
	return nil
}

// MigrationStatus lists the steps of the schema, applied or not. It fails with
// ErrNewerSchema as [DB.Migrate] does.
func (db *DB) MigrationStatus(ctx context.Context, others ...Migrator) ([]Migration, error) {
	var all []Migration
	for _, m := range db.migrators(others) {
		steps, err := m.Status(ctx)
		if err != nil {
			return nil, fault(ctx, "read state of migrations", err)
		}
		all = append(all, steps...)
	}
	return all, nil
}

// CheckMigrated fails if a step of the schema is missing, or with
// ErrNewerSchema.
func (db *DB) CheckMigrated(ctx context.Context, others ...Migrator) error {
	steps, err := db.MigrationStatus(ctx, others...)
	if err != nil {
		return err
	}
	if !complete(steps) {
		return errors.New("the database needs to be migrated")
	}
	return nil
}

func complete(steps []Migration) bool {
	for _, s := range steps {
		if !s.Applied {
			return false
		}
	}
	return true
}

func (db *DB) migrators(others []Migrator) []Migrator {
	return append([]Migrator{ownMigrator{db}}, others...)
}

// ownMigrator applies the migrations in this package.
type ownMigrator struct{ db *DB }

func (m ownMigrator) provider() (*goose.Provider, error) {
	dialect := goose.DialectSQLite3
	if m.db.dialect == Postgres {
		dialect = goose.DialectPostgres
	}
	files, err := fs.Sub(migrations, path.Join("migrations", string(m.db.dialect)))
	if err != nil {
		return nil, err
	}
	return goose.NewProvider(dialect, m.db.write, files, goose.WithDisableGlobalRegistry(true))
}

func (m ownMigrator) Status(ctx context.Context) ([]Migration, error) {
	p, err := m.provider()
	if err != nil {
		return nil, err
	}
	current, newest, err := p.GetVersions(ctx)
	if err != nil {
		return nil, err
	}
	if current > newest {
		return nil, fmt.Errorf("%w: its schema has version %d, this release knows %d", ErrNewerSchema, current, newest)
	}
	status, err := p.Status(ctx)
	if err != nil {
		return nil, err
	}
	steps := make([]Migration, len(status))
	for i, s := range status {
		steps[i] = Migration{Name: "catalog/" + s.Source.Path, Applied: s.State == goose.StateApplied}
	}
	return steps, nil
}

func (m ownMigrator) Up(ctx context.Context) error {
	p, err := m.provider()
	if err != nil {
		return err
	}
	_, err = p.Up(ctx)
	return err
}

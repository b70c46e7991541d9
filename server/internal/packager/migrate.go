package packager

import (
	"context"
	"database/sql"
	"fmt"
	"log/slog"

	"github.com/riverqueue/river/riverdriver"
	"github.com/riverqueue/river/riverdriver/riverdatabasesql"
	"github.com/riverqueue/river/riverdriver/riversqlite"
	"github.com/riverqueue/river/rivermigrate"

	"github.com/downlink-go/downlink/server/internal/catalog"
)

// Migrator returns what brings the tables of the queue up to date, for
// [catalog.DB.Migrate].
func Migrator(db *catalog.DB) (catalog.Migrator, error) {
	var driver riverdriver.Driver[*sql.Tx] = riversqlite.New(db.SQL())
	if db.Dialect() == catalog.Postgres {
		driver = riverdatabasesql.New(db.SQL())
	}
	m, err := rivermigrate.New(driver, &rivermigrate.Config{Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return nil, fmt.Errorf("configure migrations of the queue: %w", err)
	}
	return &queueMigrator{driver: driver, migrator: m}, nil
}

type queueMigrator struct {
	driver   riverdriver.Driver[*sql.Tx]
	migrator *rivermigrate.Migrator[*sql.Tx]
}

func (m *queueMigrator) Status(ctx context.Context) ([]catalog.Migration, error) {
	applied, err := m.applied(ctx)
	if err != nil {
		return nil, err
	}
	var steps []catalog.Migration
	for _, v := range m.migrator.AllVersions() {
		steps = append(steps, catalog.Migration{Name: fmt.Sprintf("queue/%05d_%s", v.Version, v.Name), Applied: applied[v.Version]})
		delete(applied, v.Version)
	}
	for version := range applied {
		return nil, fmt.Errorf("%w: this release does not know version %d of its queue", catalog.ErrNewerSchema, version)
	}
	return steps, nil
}

func (m *queueMigrator) applied(ctx context.Context) (map[int]bool, error) {
	exec := m.driver.GetExecutor()
	exists, err := exec.TableExists(ctx, &riverdriver.TableExistsParams{Table: "river_migration"})
	if err != nil || !exists {
		return nil, err
	}
	// Another process may be in the middle of the steps: an early one adds the
	// column.
	lines, err := exec.ColumnExists(ctx, &riverdriver.ColumnExistsParams{Table: "river_migration", Column: "line"})
	if err != nil {
		return nil, err
	}
	var rows []*riverdriver.Migration
	if lines {
		rows, err = exec.MigrationGetByLine(ctx, &riverdriver.MigrationGetByLineParams{Line: riverdriver.MigrationLineMain})
	} else {
		rows, err = exec.MigrationGetAllAssumingMain(ctx, &riverdriver.MigrationGetAllAssumingMainParams{})
	}
	if err != nil {
		return nil, err
	}
	applied := make(map[int]bool, len(rows))
	for _, row := range rows {
		applied[row.Version] = true
	}
	return applied, nil
}

func (m *queueMigrator) Up(ctx context.Context) error {
	_, err := m.migrator.Migrate(ctx, rivermigrate.DirectionUp, nil)
	return err
}

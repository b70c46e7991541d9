package catalog

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"regexp"
	"time"

	"github.com/google/uuid"

	"github.com/downlink-go/downlink/server/internal/download"
)

// Organization owns API keys and may have the packages of some workflows.
type Organization struct {
	ID      string
	Name    string
	Created time.Time
}

// identifier is what names of organizations and workflows look like.
var identifier = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._~-]{0,127}$`)

// CreateOrganization adds an organization. The name is an identifier as in the
// API. It fails with ErrConflict if the name is taken, and with a
// [download.Error] of InvalidParameter if it is malformed.
func (db *DB) CreateOrganization(ctx context.Context, name string) (Organization, error) {
	if !identifier.MatchString(name) {
		return Organization{}, download.InvalidIdentifier("organization")
	}
	id, err := uuid.NewV7()
	if err != nil {
		return Organization{}, err
	}
	o := Organization{ID: id.String(), Name: name, Created: fromMicros(micros(db.now()))}
	n, err := db.exec(ctx, "create organization",
		`INSERT INTO organizations (id, name, created_at) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING`,
		o.ID, o.Name, micros(o.Created))
	if err != nil {
		return Organization{}, err
	}
	if n == 0 {
		return Organization{}, fmt.Errorf("organization %q: %w", name, ErrConflict)
	}
	return o, nil
}

// Organizations lists all organizations by name.
func (db *DB) Organizations(ctx context.Context) ([]Organization, error) {
	return query(ctx, db, "list organizations", func(rows *sql.Rows) (o Organization, err error) {
		var created int64
		err = rows.Scan(&o.ID, &o.Name, &created)
		o.Created = fromMicros(created)
		return o, err
	}, `SELECT id, name, created_at FROM organizations ORDER BY name`)
}

// organizationID returns the identifier of the organization, or ErrNotFound.
func (db *DB) organizationID(ctx context.Context, name string) (id string, err error) {
	if !identifier.MatchString(name) {
		return "", fmt.Errorf("organization %q: %w", name, ErrNotFound)
	}
	err = db.read.QueryRowContext(ctx, `SELECT id FROM organizations WHERE name = $1`, name).Scan(&id)
	if errors.Is(err, sql.ErrNoRows) {
		return id, fmt.Errorf("organization %q: %w", name, ErrNotFound)
	}
	if err != nil {
		return id, fault(ctx, "find organization", err)
	}
	return id, nil
}

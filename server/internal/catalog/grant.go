package catalog

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/downlink-go/downlink/server/internal/download"
)

// AllWorkflows in a grant stands for every workflow.
const AllWorkflows = "*"

// Grant is the permission of an organization to download the packages of a
// workflow.
type Grant struct {
	Organization string
	WorkflowID   string // or AllWorkflows
	Created      time.Time
}

// Grant lets the organization have the packages of the workflow, or of
// AllWorkflows. Doing so twice is fine. It fails with ErrNotFound if there is no
// such organization, and with a [download.Error] of InvalidParameter for a
// malformed workflow.
func (db *DB) Grant(ctx context.Context, organization, workflowID string) error {
	if workflowID != AllWorkflows && !identifier.MatchString(workflowID) {
		return download.InvalidIdentifier("workflow")
	}
	id, err := db.organizationID(ctx, organization)
	if err != nil {
		return err
	}
	_, err = db.exec(ctx, "grant workflow",
		`INSERT INTO workflow_grants (organization_id, workflow_id, created_at) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING`,
		id, workflowID, micros(db.now()))
	return err
}

// RevokeGrant takes back what Grant gave. Servers go on serving by it for up to 5
// seconds. It fails with ErrNotFound if there is no such organization or it has
// no such grant.
func (db *DB) RevokeGrant(ctx context.Context, organization, workflowID string) error {
	id, err := db.organizationID(ctx, organization)
	if err != nil {
		return err
	}
	n, err := db.exec(ctx, "revoke grant",
		`DELETE FROM workflow_grants WHERE organization_id = $1 AND workflow_id = $2`, id, workflowID)
	if err == nil && n == 0 {
		err = fmt.Errorf("grant of workflow %q to organization %q: %w", workflowID, organization, ErrNotFound)
	}
	return err
}

// Grants lists all grants by organization and workflow.
func (db *DB) Grants(ctx context.Context) ([]Grant, error) {
	return query(ctx, db, "list grants", func(rows *sql.Rows) (g Grant, err error) {
		var created int64
		err = rows.Scan(&g.Organization, &g.WorkflowID, &created)
		g.Created = fromMicros(created)
		return g, err
	}, `SELECT o.name, g.workflow_id, g.created_at FROM workflow_grants g
		JOIN organizations o ON o.id = g.organization_id ORDER BY o.name, g.workflow_id`)
}

// permission is that of an organization to have the packages of a workflow.
type permission struct{ organizationID, workflowID string }

// Granted reports whether the organization may have the packages of the
// workflow. It takes one indexed read; a permission, and nothing else, is
// remembered for 5 seconds.
func (db *DB) Granted(ctx context.Context, organizationID, workflowID string) (bool, error) {
	p := permission{organizationID, workflowID}
	if _, ok := db.permissions.GetIfPresent(p); ok {
		return true, nil
	}
	var one int
	err := db.readRow(ctx,
		`SELECT 1 FROM workflow_grants WHERE organization_id = $1 AND workflow_id IN ($2, '*') LIMIT 1`,
		organizationID, workflowID).Scan(&one)
	if errors.Is(err, sql.ErrNoRows) {
		return false, nil
	}
	if err != nil {
		return false, fault(ctx, "look up grant", err)
	}
	db.permissions.Set(p, struct{}{})
	return true, nil
}

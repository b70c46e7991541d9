package download

import (
	"context"
	"io"
	"strings"
	"time"

	"github.com/google/uuid"
)

// memory has the contents of a plan's entries, by name.
type memory struct {
	plan     *Plan
	contents map[string]string
}

func (m memory) Stat(context.Context, string) (Object, error) { return Object{}, ErrObjectNotFound }

func (m memory) Open(_ context.Context, o Object, off, n int64) (io.ReadCloser, error) {
	for _, e := range m.plan.Entries {
		if e.Object.Key == o.Key {
			return io.NopCloser(strings.NewReader(m.contents[e.Name][off : off+n])), nil
		}
	}
	return nil, ErrObjectNotFound
}

// world implements what a Service needs with the functions that a test sets.
type world struct {
	job     func(workflowID, jobID string) (Job, error)
	granted func(organizationID, workflowID string) (bool, error)
	stat    func(key string) (Object, error)
	pkg     func(id uuid.UUID) (Package, error)
	plan    func(id uuid.UUID) (*Plan, error)
	prepare func(plan *Plan) (Package, error)
	wait    func(id uuid.UUID, d time.Duration) (Package, error)
}

func (w *world) Job(_ context.Context, workflowID, jobID string) (Job, error) {
	return w.job(workflowID, jobID)
}

func (w *world) Granted(_ context.Context, organizationID, workflowID string) (bool, error) {
	return w.granted(organizationID, workflowID)
}

func (w *world) Stat(_ context.Context, key string) (Object, error) { return w.stat(key) }

func (w *world) Open(context.Context, Object, int64, int64) (io.ReadCloser, error) {
	return nil, ErrObjectNotFound
}

func (w *world) Package(_ context.Context, id uuid.UUID) (Package, error) { return w.pkg(id) }

func (w *world) Plan(_ context.Context, id uuid.UUID) (*Plan, error) { return w.plan(id) }

func (w *world) Prepare(_ context.Context, plan *Plan) (Package, error) { return w.prepare(plan) }

func (w *world) Wait(_ context.Context, id uuid.UUID, d time.Duration) (Package, error) {
	return w.wait(id, d)
}

package server

import (
	"cmp"
	"context"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/labstack/echo/v4"

	"github.com/downlink-go/downlink/gen/apiserver"
	"github.com/downlink-go/downlink/gen/apitypes"
	"github.com/downlink-go/downlink/server/internal/download"
)

// maxWait caps the preference wait=N.
const maxWait = 60 * time.Second

// handler implements the generated interface: it translates, and decides
// nothing.
type handler struct {
	service   *download.Service
	readyWait time.Duration
	publicURL string // empty for what the request came for
}

var _ apiserver.StrictServerInterface = (*handler)(nil)

// DownloadJob answers PUT /v0/workflows/{workflow_id}/jobs/{job_id}/download.
func (h *handler) DownloadJob(ctx context.Context, r apiserver.DownloadJobRequestObject) (apiserver.DownloadJobResponseObject, error) {
	info := requestInfo(ctx)
	wait, preferred := preferredWait(r.Params.Prefer)
	if !preferred {
		wait = h.readyWait
	}
	d, err := h.service.Download(ctx, download.Request{
		OrganizationID: info.organizationID,
		KeyID:          info.keyID,
		WorkflowID:     r.WorkflowID,
		JobID:          r.JobID,
		Wait:           wait,
	})
	if err != nil {
		return nil, err
	}
	info.workflowID, info.jobID, info.packageID = r.WorkflowID, r.JobID, d.ID.String()

	body := apitypes.Download{
		ID:         d.ID.String(),
		Status:     apitypes.DownloadStatus(d.State),
		WorkflowID: r.WorkflowID,
	}
	headers := apiserver.DownloadResponseHeaders{XRequestID: info.requestID}
	if preferred {
		headers.PreferenceApplied = new("wait=" + strconv.Itoa(int(wait/time.Second)))
	}
	if d.State == download.Ready {
		body.SignedURL = cmp.Or(d.URL, cmp.Or(h.publicURL, info.origin)+contentPath(d.Token, d.Filename))
		headers.DownlinkExpires = new(d.Expires.UTC().Format(time.RFC3339))
		headers.DownlinkPackageSize = &d.Size
	} else {
		headers.RetryAfter = new(max(1, int(math.Ceil(d.RetryAfter.Seconds()))))
		headers.DownlinkPendingReason = new(apitypes.PendingReason(d.Reason))
		if d.Progress >= 0 {
			headers.DownlinkProgress = new(float32(math.Floor(d.Progress*1000) / 1000))
		}
	}
	return apiserver.DownloadJob200JSONResponse{
		DownloadJSONResponse: apiserver.DownloadJSONResponse{Body: body, Headers: headers},
	}, nil
}

// preferredWait reads wait=N from the Prefer header (RFC 7240), capped at
// maxWait. As that says, a malformed preference is ignored and of several the
// first counts.
func preferredWait(prefer string) (time.Duration, bool) {
	for preference := range strings.SplitSeq(prefer, ",") {
		preference, _, _ = strings.Cut(preference, ";") // parameters of the preference
		name, value, _ := strings.Cut(preference, "=")
		if !strings.EqualFold(strings.TrimSpace(name), "wait") {
			continue
		}
		value = strings.Trim(strings.TrimSpace(value), `"`)
		seconds, err := strconv.ParseUint(value, 10, 32)
		if err != nil {
			return 0, false
		}
		return min(time.Duration(seconds)*time.Second, maxWait), true
	}
	return 0, false
}

// joinPrefer makes one line of several Prefer lines, as RFC 9110, section 5.3
// lets a recipient do; the generated code takes one only.
func joinPrefer(next echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) error {
		header := c.Request().Header
		if lines := header.Values("Prefer"); len(lines) > 1 {
			header.Set("Prefer", strings.Join(lines, ", "))
		}
		return next(c)
	}
}

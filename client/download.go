package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/downlink-go/downlink/client/internal/transfer"
	"github.com/downlink-go/downlink/gen/apitypes"
)

// SignedURL is where a package can be downloaded without a key, by anyone who
// has it. It shows its host alone when it is printed or logged; string(u) is the
// URL.
type SignedURL string

// String returns the URL without what makes it secret.
func (u SignedURL) String() string {
	parsed, err := url.Parse(string(u))
	if err != nil || parsed.Host == "" {
		return "[signed URL]"
	}
	return parsed.Scheme + "://" + parsed.Host + "/[signed URL]"
}

// Format writes what String returns, whatever the verb.
func (u SignedURL) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, u.String()) }

// LogValue returns what String does.
func (u SignedURL) LogValue() slog.Value { return slog.StringValue(u.String()) }

// Download is the state of one job's package, as of one call.
type Download struct {
	// ID identifies the package: the same assets, the same ID.
	ID         string
	WorkflowID string
	JobID      string
	// Status is as the server has it: "pending" and "ready" in any case, or
	// something else. See [Download.Ready].
	Status string
	// SignedURL is where the ZIP is, empty while it is pending.
	SignedURL SignedURL

	// The rest is what downlinkd tells in headers.

	// Expires is when SignedURL stops working, zero if unknown.
	Expires time.Time
	// Size of the ZIP in bytes, 0 if unknown.
	Size int64
	// PendingReason is "job-running", "checksumming", "assembling" or empty.
	PendingReason string
	// Progress of the preparation from 0 to 1, -1 if unknown.
	Progress float64
	// RetryAfter is how long the server asks to wait, 0 if it does not say.
	RetryAfter time.Duration
}

// Ready reports whether the package can be downloaded. A status that is not
// known counts as ready if there is a URL.
func (d *Download) Ready() bool {
	return d.SignedURL != "" && !strings.EqualFold(d.Status, string(apitypes.DownloadStatusPending))
}

// LogValue has no more of the URL than its host.
func (d Download) LogValue() slog.Value {
	return slog.GroupValue(
		slog.String("id", d.ID),
		slog.String("workflow_id", d.WorkflowID),
		slog.String("job_id", d.JobID),
		slog.String("status", d.Status),
		slog.Any("signed_url", d.SignedURL),
	)
}

// maxAnswer bounds what is read of an answer of the API.
const maxAnswer = 1 << 20

// DownloadJob calls the API once: it asks for the package of a job and returns
// its state. It may be repeated freely. An error of the API is an [*APIError], and
// [ErrUnreachable] is in that of a call without an answer.
func (c *Client) DownloadJob(ctx context.Context, workflowID, jobID string) (*Download, error) {
	return c.downloadJob(ctx, workflowID, jobID, 0)
}

// downloadJob asks the server to hold the answer for wait, if that is not 0.
func (c *Client) downloadJob(ctx context.Context, workflowID, jobID string, wait time.Duration) (*Download, error) {
	// A path with an empty or a dot segment would ask for something else.
	for name, id := range map[string]string{"workflow": workflowID, "job": jobID} {
		if id == "" || id == "." || id == ".." {
			return nil, fmt.Errorf("%q is not the ID of a %s", id, name)
		}
	}
	params := &apitypes.DownloadJobParams{}
	if wait > 0 {
		params.Prefer = "wait=" + strconv.Itoa(int(wait/time.Second))
	}
	response, err := c.api.DownloadJob(ctx, workflowID, jobID, params)
	if err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, fmt.Errorf("%w: %w", ErrUnreachable, withoutURL(err))
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, maxAnswer))
	if err != nil {
		return nil, fmt.Errorf("%w: read its answer: %w", ErrUnreachable, withoutURL(err))
	}
	c.log.DebugContext(ctx, "called the API", slog.Int("status", response.StatusCode), slog.String("request_id", response.Header.Get("X-Request-Id")))
	if response.StatusCode != http.StatusOK {
		return nil, newAPIError(response, body)
	}
	var answer apitypes.Download
	if err := json.Unmarshal(body, &answer); err != nil {
		return nil, errors.New("the API answers with something that is not a download: is the base URL right?")
	}
	d := &Download{
		ID:            answer.ID,
		WorkflowID:    workflowID,
		JobID:         jobID,
		Status:        string(answer.Status),
		SignedURL:     SignedURL(answer.SignedURL),
		PendingReason: response.Header.Get("Downlink-Pending-Reason"),
		Progress:      -1,
		RetryAfter:    transfer.RetryAfter(response.Header),
	}
	if u, err := url.Parse(answer.SignedURL); answer.SignedURL != "" && (err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https") {
		return nil, errors.New("the API answers with a signed URL that is not one")
	}
	d.Expires, _ = time.Parse(time.RFC3339, response.Header.Get("Downlink-Expires"))
	d.Size, _ = strconv.ParseInt(response.Header.Get("Downlink-Package-Size"), 10, 64)
	if p, err := strconv.ParseFloat(response.Header.Get("Downlink-Progress"), 64); err == nil && p >= 0 && p <= 1 {
		d.Progress = p
	}
	return d, nil
}

// newAPIError reads the error envelope, as far as there is one: other servers
// have codes that are numbers, or details of another form.
func newAPIError(response *http.Response, body []byte) *APIError {
	e := &APIError{
		StatusCode: response.StatusCode,
		RequestID:  response.Header.Get("X-Request-Id"),
		RetryAfter: transfer.RetryAfter(response.Header),
	}
	var envelope struct {
		Error struct {
			Code    json.RawMessage `json:"code"`
			Message json.RawMessage `json:"message"`
			Details json.RawMessage `json:"details"`
		} `json:"error"`
	}
	if json.Unmarshal(body, &envelope) != nil {
		return e
	}
	e.Code = plain(envelope.Error.Code)
	e.Message = plain(envelope.Error.Message)
	e.Details = envelope.Error.Details
	return e
}

// plain returns a JSON string or number as text.
func plain(raw json.RawMessage) string {
	var s string
	if json.Unmarshal(raw, &s) == nil {
		return s
	}
	if raw = bytes.TrimSpace(raw); len(raw) > 0 && raw[0] != '{' && raw[0] != '[' && string(raw) != "null" {
		return string(raw)
	}
	return ""
}

// How WaitUntilReady paces itself.
const (
	holdFor    = 30 * time.Second // what it asks the server to hold an answer for
	minPause   = time.Second
	maxPause   = time.Minute
	maxFailed  = 5 // calls in a row, after which it gives up
	baseFailed = time.Second
)

// WaitUntilReady calls the API until the package is ready, at the pace that the
// server asks for. A status that is not known counts as pending.
//
// It waits as long as the context and [WithReadyTimeout] let it. At the end of
// that the error is a [*NotReadyError], which says how far the package got and
// wraps the context's error.
//
// Passing faults are tried again: answers of 429, 502, 503 and 504, and up to
// five connections in a row that fail. Other errors of the API end the wait.
func (c *Client) WaitUntilReady(ctx context.Context, workflowID, jobID string) (*Download, error) {
	return c.waitUntilReady(ctx, workflowID, jobID, nil)
}

// waitUntilReady reports every answer that is pending to onPending, if that is
// not nil.
func (c *Client) waitUntilReady(ctx context.Context, workflowID, jobID string, onPending func(*Download)) (*Download, error) {
	if c.readyTimeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, c.readyTimeout)
		defer cancel()
	}
	var last *Download
	failed := 0
	for {
		d, err := c.downloadJob(ctx, workflowID, jobID, holdFor)
		if err == nil && d.Ready() {
			return d, nil
		}
		if ctx.Err() != nil {
			return nil, &NotReadyError{Last: last, Err: ctx.Err()}
		}
		var pause time.Duration
		apiErr, answered := errors.AsType[*APIError](err)
		switch {
		case err == nil:
			last, failed = d, 0
			pause = min(max(d.RetryAfter, minPause), maxPause)
			if onPending != nil {
				onPending(d)
			}
		case answered && !apiErr.temporary():
			return nil, err
		case !answered && failed+1 >= maxFailed:
			return nil, err
		default:
			pause = min(baseFailed<<failed, maxPause)
			if answered {
				pause = min(max(apiErr.RetryAfter, pause), maxPause)
			} else {
				failed++
			}
			c.log.WarnContext(ctx, "the API call will be repeated", slog.Duration("pause", pause), slog.Any("error", err))
		}
		timer := time.NewTimer(jitter(pause))
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil, &NotReadyError{Last: last, Err: ctx.Err(), Cause: err}
		case <-timer.C:
		}
	}
}

// jitter adds up to a tenth, so that many clients do not call as one. It never
// takes anything off: a server's Retry-After is a minimum.
func jitter(d time.Duration) time.Duration {
	return d + rand.N(d/10+1)
}

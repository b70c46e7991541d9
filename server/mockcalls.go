package server

import (
	"fmt"
	"net/http"
	"strconv"
	"sync"

	"github.com/labstack/echo/v4"

	"github.com/downlink-go/downlink/gen/apiserver"
	"github.com/downlink-go/downlink/gen/apitypes"
	"github.com/downlink-go/downlink/server/internal/download"
)

// mockFaults makes the faults of a mock: of calls by changing what the handler
// answers, of downloads by standing in front of the server.
type mockFaults struct {
	byJob   map[string]faultSpec
	keyring *download.Keyring

	mu       sync.Mutex
	calledBy map[string]int // calls so far, by job and faults
	links    map[string]*mockLink
	made     int // links so far
}

// Clients choose faults, so what is remembered of them is bounded.
const mostMockStates = 10_000

// calls is the middleware around the contract's operation.
func (f *mockFaults) calls(next apiserver.StrictHandlerFunc, _ string) apiserver.StrictHandlerFunc {
	return func(c echo.Context, request any) (any, error) {
		r, ok := request.(apiserver.DownloadJobRequestObject)
		if !ok {
			return nil, fmt.Errorf("unexpected request type %T", request)
		}
		job := r.WorkflowID + "/" + r.JobID
		spec, err := f.specFor(c.Request().Header.Get(MockFaultHeader), job)
		if err != nil {
			return nil, err
		}
		if len(spec) == 0 {
			return next(c, request)
		}
		info := requestInfo(c.Request().Context())
		prefix := f.newLink(spec)
		info.origin += prefix
		response, err := next(c, request)
		d, ok := response.(apiserver.DownloadJob200JSONResponse)
		if err != nil || !ok {
			return response, err
		}
		return f.spoil(c.Response().Header(), spec, f.count(job, spec), d)
	}
}

// count returns how many calls there were before with these faults.
func (f *mockFaults) count(job string, spec faultSpec) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.calledBy) >= mostMockStates {
		clear(f.calledBy)
	}
	key := fmt.Sprint(job, " ", spec)
	n := f.calledBy[key]
	f.calledBy[key]++
	return n
}

// spoil turns the nth answer without an error into what the faults want it to be.
func (f *mockFaults) spoil(header http.Header, spec faultSpec, n int, d apiserver.DownloadJob200JSONResponse) (any, error) {
	kinds := []string{"429", "503", "unknown-status", "pending"} // in the order that MockFaults promises
	cycle := int64(1)
	for _, k := range kinds {
		cycle += spec[k]
	}
	at := int64(n) % cycle
	for _, k := range kinds {
		if at >= spec[k] {
			at -= spec[k]
			continue
		}
		switch k {
		case "429":
			return nil, tooMany(header, 1, "too many requests, as asked for")
		case "503":
			header.Set("Retry-After", "1")
			return nil, &download.Error{Code: download.Unavailable, Message: "not available, as asked for"}
		}
		if d.Body.Status == apitypes.DownloadStatusReady {
			d.Body.Status, d.Body.SignedURL = apitypes.DownloadStatusPending, ""
			d.Headers = apiserver.DownloadResponseHeaders{
				XRequestID: d.Headers.XRequestID, PreferenceApplied: d.Headers.PreferenceApplied,
				RetryAfter:            new(1),
				DownlinkPendingReason: new(apitypes.PendingReasonChecksumming),
				DownlinkProgress:      new(float32(at) / float32(spec[k])),
			}
		}
		if k == "unknown-status" {
			d.Body.Status = "queued"
		}
		return d, nil
	}
	return d, nil
}

// newLink remembers the faults of a signed URL and returns what its path begins
// with, empty if there are none.
func (f *mockFaults) newLink(spec faultSpec) string {
	l := &mockLink{limits: map[string]int64{}, rate: spec["slow"], noRange: spec["no-range"] != 0}
	for _, k := range []string{"expire", "truncate", "reset", "stall", "etag"} {
		if n, ok := spec[k]; ok {
			l.limits[k] = n
		}
	}
	if len(l.limits) == 0 && l.rate == 0 && !l.noRange {
		return ""
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.made++
	delete(f.links, strconv.Itoa(f.made-mostMockStates))
	id := strconv.Itoa(f.made)
	f.links[id] = l
	return mockPrefix + id
}

// link returns what is known of a signed URL with faults, nil if that is too old.
func (f *mockFaults) link(id string) *mockLink {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.links[id]
}

package client

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// ErrUnreachable is in the error of a call to the API that got no answer.
var ErrUnreachable = errors.New("the API cannot be reached")

// APIError is an error that the API answered with.
type APIError struct {
	// StatusCode is that of HTTP.
	StatusCode int
	// Code, Message and Details are those of the error envelope, empty if the
	// answer had none. The codes of downlinkd are the constants ErrorCode... of
	// package apitypes; Details has JSON of any form.
	Code    string
	Message string
	Details json.RawMessage
	// RequestID names the request in the server's log.
	RequestID string
	// RetryAfter is how long the server asks to wait before the next call, 0 if
	// it does not say.
	RetryAfter time.Duration
}

// Error returns one line for people.
func (e *APIError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "the API answers %d", e.StatusCode)
	if e.Code != "" {
		b.WriteString(" " + e.Code)
	}
	if e.Message != "" {
		b.WriteString(": " + e.Message)
	} else {
		b.WriteString(" " + http.StatusText(e.StatusCode))
	}
	for _, finding := range e.findings() {
		b.WriteString("; " + finding)
	}
	if e.RequestID != "" {
		b.WriteString(" (request " + e.RequestID + ")")
	}
	return b.String()
}

// findings puts the details of downlinkd into words, a few at most.
func (e *APIError) findings() []string {
	var details []struct {
		Field, Asset, Message string
	}
	if json.Unmarshal(e.Details, &details) != nil {
		return nil
	}
	var out []string
	for i, d := range details {
		if i == 3 {
			return append(out, fmt.Sprintf("and %d more", len(details)-i))
		}
		if d.Message != "" {
			out = append(out, strings.TrimPrefix(d.Field+d.Asset+": "+d.Message, ": "))
		}
	}
	return out
}

// temporary reports whether the same call may succeed later.
func (e *APIError) temporary() bool {
	switch e.StatusCode {
	case http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return true
	}
	return false
}

// NotReadyError says that a package was not ready in time. It wraps the
// context's error.
type NotReadyError struct {
	// Last is the last answer, nil if there was none.
	Last *Download
	// Err is why the wait ended.
	Err error
	// Cause is what the last call failed with, nil if it was answered.
	Cause error
}

// Error says how far the package got.
func (e *NotReadyError) Error() string {
	var b strings.Builder
	b.WriteString("the package was not ready in time")
	switch {
	case e.Last == nil:
	case e.Last.PendingReason == "job-running":
		b.WriteString(": the job is still running")
	case e.Last.Progress >= 0:
		fmt.Fprintf(&b, ": %.0f %% done", 100*e.Last.Progress)
	default:
		fmt.Fprintf(&b, ": still %s", strings.ToLower(e.Last.Status))
	}
	if e.Cause != nil {
		b.WriteString(": " + e.Cause.Error())
	}
	return b.String()
}

// Unwrap returns why the wait ended and what the last call failed with.
func (e *NotReadyError) Unwrap() []error {
	if e.Cause == nil {
		return []error{e.Err}
	}
	return []error{e.Err, e.Cause}
}

// withoutURL drops the URL that net/http puts into its errors: it may be a
// signed one.
func withoutURL(err error) error {
	if e, ok := errors.AsType[*url.Error](err); ok {
		return e.Err
	}
	return err
}

// Package transfer fetches one version of a remote file by range: in parallel,
// resumed after faults and across runs, and never mixed with another version.
//
// A [Remote] is the file as a server has it. [Remote.ReadRange] reads a part of
// it and [Remote.Fetch] all that is missing of a [Partial], the file on the disk.
// Both try again what may pass, within a budget of time, and have the location
// renewed when it stops working. Every response is checked against the version
// before a byte of it is used.
//
// Errors and logs have no URL in them: it may be a signed one.
package transfer

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"time"
)

var (
	// ErrFailed is in every error for which the server or the way to it is to
	// blame, after what could be tried again has been.
	ErrFailed = errors.New("the transfer failed")
	// ErrChanged says that the server has another version of the file by now.
	// What was fetched so far is of no use.
	ErrChanged = errors.New("the file has changed on the server")
	// ErrNoRanges says that the server sends the file only as a whole.
	ErrNoRanges = errors.New("the server does not answer requests for parts of the file")
)

// Location is where a file can be fetched for the time being.
type Location struct {
	URL string
	// ID is what the file is known by: locations with another are of another
	// file.
	ID string
	// Expires is when URL stops working, zero if unknown.
	Expires time.Time
	// Size of the file, 0 if unknown. It is a hint that saves requests.
	Size int64
}

// Config is how a [Remote] works.
type Config struct {
	// HTTP sends the requests.
	HTTP *http.Client
	// Renew returns a location that works again. It is not called twice at a time.
	// Defaults to none: a location that is refused is an error at once.
	Renew func(ctx context.Context) (Location, error)
	// Log is told of faults that are passed over. Defaults to discarding them.
	Log *slog.Logger
	// Hosts bounds the connections of Fetch. Defaults to no bound.
	Hosts *Hosts
	// Stall is for how long a connection may send nothing. Defaults to 30 s.
	Stall time.Duration
	// Budget is for how long a part may fail without getting on. Defaults to 5 min.
	Budget time.Duration
	// Pause is what the first repetition of a request waits; it doubles with each
	// one up to 64 times. Defaults to 250 ms.
	Pause time.Duration
}

func (c Config) withDefaults() Config {
	c.Stall = cmp.Or(c.Stall, 30*time.Second)
	c.Budget = cmp.Or(c.Budget, 5*time.Minute)
	c.Pause = cmp.Or(c.Pause, 250*time.Millisecond)
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	c.HTTP = discreetly(c.HTTP)
	return c
}

// Version tells one state of a file from another.
type Version struct {
	// Size in bytes, -1 if the server does not say.
	Size int64
	// ETag and LastModified are those of the response, empty if it had none.
	ETag         string
	LastModified string
}

// strong reports whether two files of the version are the same to the byte, also
// if much time is between them (RFC 9110, section 8.8.1).
func (v Version) strong() bool { return strings.HasPrefix(v.ETag, `"`) }

// unknown reports whether another file of the size could not be told from this one.
func (v Version) unknown() bool { return v.ETag == "" && v.LastModified == "" }

// validator is the If-Range that goes with the version. A weak ETag cannot be one
// (RFC 9110, section 13.1.5).
func (v Version) validator() string {
	switch {
	case v.ETag == "":
		return v.LastModified
	case v.strong():
		return v.ETag
	}
	return ""
}

// StatusError is a response that is not one of success.
type StatusError struct {
	StatusCode int
	// Code is what the body says, of downlinkd or an object store. It may be empty.
	Code string

	retryAfter time.Duration
}

// Error returns one line for people.
func (e *StatusError) Error() string {
	text := fmt.Sprintf("the server of the package answers %d %s", e.StatusCode, http.StatusText(e.StatusCode))
	if e.Code != "" {
		text += ": " + e.Code
	}
	return text
}

// refused reports whether another location may help.
func (e *StatusError) refused() bool {
	switch e.StatusCode {
	case http.StatusUnauthorized, http.StatusForbidden, http.StatusNotFound, http.StatusGone:
		return true
	}
	return false
}

// throttled reports whether the server has too much to do.
func (e *StatusError) throttled() bool {
	return e.StatusCode == http.StatusTooManyRequests || e.StatusCode == http.StatusServiceUnavailable
}

// temporary reports whether the same request may succeed later.
func (e *StatusError) temporary() bool {
	return e.StatusCode >= 500 || e.StatusCode == http.StatusRequestTimeout || e.StatusCode == http.StatusTooManyRequests
}

// fault is a response that breaks the rules. It may be better the next time.
type fault string

func (f fault) Error() string { return "the server of the package " + string(f) }

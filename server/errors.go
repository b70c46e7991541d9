package server

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"strconv"

	"github.com/labstack/echo/v4"

	"github.com/downlink-go/downlink/gen/apitypes"
	"github.com/downlink-go/downlink/server/internal/download"
)

// retryAfter is what 429 and 503 ask callers to wait, in seconds.
const retryAfter = 10

// rateLimited is the code for callers that ask for too much at a time.
const rateLimited download.Code = "rate_limited"

// The codes that only the content route has; it is not part of the contract.
const (
	rangeNotSatisfiable download.Code = "range_not_satisfiable"
	preconditionFailed  download.Code = "precondition_failed"
)

// statuses is the one place where codes become HTTP statuses.
var statuses = map[download.Code]int{
	download.InvalidParameter: http.StatusBadRequest,
	download.JobHasFailed:     http.StatusBadRequest,
	download.AssetMissing:     http.StatusBadRequest,
	download.PackageTooLarge:  http.StatusBadRequest,
	download.Unauthenticated:  http.StatusUnauthorized,
	download.PermissionDenied: http.StatusForbidden,
	rateLimited:               http.StatusTooManyRequests,
	download.Unavailable:      http.StatusServiceUnavailable,
	download.LinkInvalid:      http.StatusForbidden,
	download.LinkExpired:      http.StatusGone,
	download.PackageOutdated:  http.StatusGone,
	rangeNotSatisfiable:       http.StatusRequestedRangeNotSatisfiable,
	preconditionFailed:        http.StatusPreconditionFailed,
}

// handleError answers every error of every route with the contract's envelope.
func (s *Server) handleError(err error, c echo.Context) {
	if c.Response().Committed {
		return
	}
	status, body := envelope(c, err)
	if status >= http.StatusInternalServerError && !errors.Is(err, context.Canceled) {
		s.log.ErrorContext(c.Request().Context(), "request failed",
			slog.String("request_id", requestInfo(c.Request().Context()).requestID), slog.Any("error", err))
	}
	header := c.Response().Header()
	switch status {
	case http.StatusUnauthorized:
		header.Set("WWW-Authenticate", `Bearer realm="downlink"`)
	case http.StatusTooManyRequests, http.StatusServiceUnavailable:
		if header.Get("Retry-After") == "" {
			header.Set("Retry-After", strconv.Itoa(retryAfter))
		}
	}
	// A client of HTTP/2 need not take a body, but does take a header.
	if c.Request().Method == http.MethodHead || errors.Is(err, errCrowded) {
		_ = c.NoContent(status)
		return
	}
	_ = c.JSON(status, body) // the client may be gone; there is nobody else to tell
}

// envelope returns what the caller gets to know of an error.
func envelope(c echo.Context, err error) (int, apitypes.ErrorResponse) {
	answer := func(status int, code apitypes.ErrorCode, message string) (int, apitypes.ErrorResponse) {
		return status, apitypes.ErrorResponse{Error: apitypes.Error{
			Code: code, Message: message, Details: []apitypes.ErrorDetail{},
		}}
	}
	if e, ok := errors.AsType[*download.Error](err); ok {
		status, body := answer(statuses[e.Code], apitypes.ErrorCode(e.Code), e.Message)
		for _, d := range e.Details {
			body.Error.Details = append(body.Error.Details, apitypes.ErrorDetail{
				Field: d.Field, Asset: d.Asset, Limit: d.Limit, Actual: d.Actual, Message: d.Message,
			})
		}
		return status, body
	}
	if e, ok := errors.AsType[*echo.HTTPError](err); ok {
		switch e.Code {
		case http.StatusNotFound:
			return answer(e.Code, apitypes.ErrorCodeNotFound, "no such route")
		case http.StatusMethodNotAllowed:
			return answer(e.Code, apitypes.ErrorCodeMethodNotAllowed, "the method is not allowed for this route")
		case http.StatusBadRequest:
			// The generated code could not bind a parameter of the path: one
			// that is empty, or not valid percent-encoding.
			for _, name := range c.ParamNames() {
				if c.Param(name) == "" {
					return envelope(c, download.InvalidIdentifier(name))
				}
			}
			return answer(e.Code, apitypes.ErrorCodeInvalidParameter, "the request is malformed")
		}
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return answer(http.StatusServiceUnavailable, apitypes.ErrorCodeUnavailable, "the service is not available at the moment")
	}
	return answer(http.StatusInternalServerError, apitypes.ErrorCodeInternal, "internal error")
}

package download

import "strings"

// Code classifies an [Error] for callers. Package server maps each to a status.
type Code string

// The codes of an [Error].
const (
	InvalidParameter Code = "invalid_parameter"
	JobHasFailed     Code = "job_failed"
	AssetMissing     Code = "asset_missing"
	PackageTooLarge  Code = "package_too_large"
	Unauthenticated  Code = "unauthenticated"
	PermissionDenied Code = "permission_denied"
	Unavailable      Code = "unavailable"

	// The codes of signed links, which are not part of the contract.
	LinkInvalid     Code = "signed_url_invalid"
	LinkExpired     Code = "signed_url_expired"
	PackageOutdated Code = "package_outdated"
)

// Error is a failure that callers may see. An error without one in its chain is
// a fault of the server, of which nothing is told.
type Error struct {
	Code Code
	// Message and Details are safe to show to anyone who may make the call.
	Message string
	Details []Detail
	// Err is the cause, for the log alone. It may be nil.
	Err error
}

// Detail is one finding of an [Error]. Its zero members are left out.
type Detail struct {
	Field   string `json:"field,omitempty"`  // the parameter or the limit
	Asset   string `json:"asset,omitempty"`  // the path of the asset
	Limit   int64  `json:"limit,omitempty"`  // the largest value accepted
	Actual  int64  `json:"actual,omitempty"` // the value found
	Message string `json:"message"`
}

// Error returns the message, the details and the cause: the form for logs.
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.Message)
	for i, d := range e.Details {
		if i == 3 {
			b.WriteString("; ...")
			break
		}
		b.WriteString("; ")
		b.WriteString(d.Field + d.Asset + ": " + d.Message)
	}
	if e.Err != nil {
		b.WriteString(": " + e.Err.Error())
	}
	return b.String()
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

package transfer

import (
	"bytes"
	"context"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// send requests a range, or the whole file if it is empty. The validator, if
// there is one, keeps the range to its version. Errors have no URL in them.
func send(ctx context.Context, client *http.Client, location, bytesRange, validator string) (*http.Response, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, location, nil)
	if err != nil {
		return nil, errors.New("the URL of the package is not one")
	}
	// Without this net/http asks for gzip, and for a range of that then.
	request.Header.Set("Accept-Encoding", "identity")
	if bytesRange != "" {
		request.Header.Set("Range", "bytes="+bytesRange)
		if validator != "" {
			request.Header.Set("If-Range", validator)
		}
	}
	response, err := client.Do(request)
	if e, ok := errors.AsType[*url.Error](err); ok {
		err = e.Err
	}
	if err != nil {
		return nil, err
	}
	switch response.StatusCode {
	case http.StatusOK, http.StatusPartialContent:
		if encoding := response.Header.Get("Content-Encoding"); encoding != "" && encoding != "identity" {
			response.Body.Close()
			return nil, fault("sends it compressed, which was not asked for")
		}
		return response, nil
	case http.StatusRequestedRangeNotSatisfiable:
		return response, nil
	}
	defer response.Body.Close()
	return nil, newStatusError(response)
}

// maxErrorBody is how much of an error's body is read.
const maxErrorBody = 64 << 10

func newStatusError(response *http.Response) *StatusError {
	e := &StatusError{StatusCode: response.StatusCode, retryAfter: RetryAfter(response.Header)}
	body, err := io.ReadAll(io.LimitReader(response.Body, maxErrorBody))
	if err != nil {
		return e
	}
	// Only the code: object stores repeat what was signed.
	var inJSON struct {
		Error struct {
			Code json.RawMessage `json:"code"`
		} `json:"error"`
	}
	var inXML struct {
		Code string
	}
	code := ""
	if json.Unmarshal(body, &inJSON) == nil {
		code = string(bytes.Trim(inJSON.Error.Code, `"`))
	} else if xml.Unmarshal(body, &inXML) == nil {
		code = strings.TrimSpace(inXML.Code)
	}
	if len(code) <= 64 && !strings.ContainsFunc(code, notInCode) {
		e.Code = code
	}
	return e
}

func notInCode(r rune) bool {
	return (r < '0' || r > '9') && (r < 'A' || r > 'Z') && (r < 'a' || r > 'z') && r != '_' && r != '-' && r != '.'
}

// RetryAfter reads the header of that name, in seconds or as a date (RFC 9110,
// section 10.2.3). Nonsense is 0.
func RetryAfter(h http.Header) time.Duration {
	value := h.Get("Retry-After")
	if seconds, err := strconv.ParseInt(value, 10, 32); err == nil {
		return time.Duration(max(seconds, 0)) * time.Second
	}
	if at, err := http.ParseTime(value); err == nil {
		return max(time.Until(at), 0)
	}
	return 0
}

// versionOf returns the version that a response is of, given its size.
func versionOf(h http.Header, size int64) Version {
	return Version{Size: size, ETag: h.Get("ETag"), LastModified: h.Get("Last-Modified")}
}

// check returns an error unless the response is of the version: ErrChanged if it
// is of another one, a fault if that cannot be told.
func (v Version) check(h http.Header, size int64) error {
	got := versionOf(h, size)
	switch {
	case v.ETag != "" && got.ETag == "":
		return fault("left out the ETag")
	case got.ETag != v.ETag, v.ETag == "" && got.LastModified != v.LastModified:
		return ErrChanged
	case got.Size == v.Size:
		return nil
	case v.ETag != "":
		return fault("says another size of the same version")
	}
	return ErrChanged
}

// contentRange parses the Content-Range of a 206; size is -1 if it is unknown.
func contentRange(h http.Header) (r Range, size int64, err error) {
	const wrong = fault("sends a range without saying which")
	value, ok := strings.CutPrefix(h.Get("Content-Range"), "bytes ")
	span, total, ok2 := strings.Cut(value, "/")
	first, last, ok3 := strings.Cut(span, "-")
	if !ok || !ok2 || !ok3 {
		return Range{}, 0, wrong
	}
	start, err1 := strconv.ParseUint(first, 10, 62)
	end, err2 := strconv.ParseUint(last, 10, 62)
	if err1 != nil || err2 != nil || end < start {
		return Range{}, 0, wrong
	}
	r = Range{int64(start), int64(end) + 1}
	if total == "*" {
		return r, -1, nil
	}
	n, err := strconv.ParseUint(total, 10, 62)
	if err != nil || r.End > int64(n) {
		return Range{}, 0, wrong
	}
	return r, int64(n), nil
}

// checkPart returns how many bytes of the range a response has, which may be
// fewer than were asked for, or what is wrong with it.
func (v Version) checkPart(response *http.Response, want Range) (int64, error) {
	switch response.StatusCode {
	case http.StatusOK:
		// Of another version: then that is the answer to If-Range.
		if err := v.check(response.Header, response.ContentLength); err != nil {
			return 0, err
		}
		if want != (Range{0, v.Size}) {
			return 0, fault("sends the whole package instead of a part")
		}
		return v.Size, nil
	case http.StatusRequestedRangeNotSatisfiable:
		if size, ok := strings.CutPrefix(response.Header.Get("Content-Range"), "bytes */"); ok && size != strconv.FormatInt(v.Size, 10) {
			return 0, ErrChanged
		}
		return 0, fault("has no such part of the package")
	}
	got, size, err := contentRange(response.Header)
	if err != nil {
		return 0, err
	}
	if err := v.check(response.Header, size); err != nil {
		return 0, err
	}
	if got.Start != want.Start || got.End > want.End {
		return 0, fault(fmt.Sprintf("sends bytes %d-%d instead of %d-%d", got.Start, got.End-1, want.Start, want.End-1))
	}
	if response.ContentLength >= 0 && response.ContentLength != got.Len() {
		return 0, fault("sends a part of another length than it says")
	}
	return got.Len(), nil
}

// checkWhole is checkPart for a server without ranges.
func (v Version) checkWhole(response *http.Response) error {
	if response.StatusCode != http.StatusOK {
		return fault("answers as if a part had been asked for")
	}
	return v.check(response.Header, response.ContentLength)
}

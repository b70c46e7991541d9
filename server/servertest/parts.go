package servertest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/downlink-go/downlink/gen/apitypes"
)

// states asks for the target's jobs, each in its state.
func (s *suite) states() error {
	ready, err := s.ready()
	if err != nil || ready == nil {
		return err
	}
	again, err := s.ready()
	if err != nil || again == nil {
		return err
	}
	if ready.ID != again.ID {
		s.found(RuleIdempotent, "PUT "+jobPath(s.target.WorkflowID, s.target.JobID), "two calls got two ids")
	}
	if id := s.target.PendingJobID; id != "" {
		a, err := s.want(RuleStatus, call{
			path: jobPath(s.target.WorkflowID, id), note: "a running job", header: http.Header{"Prefer": {"wait=0"}},
		}, http.StatusOK)
		if err != nil {
			return err
		}
		if d := decode(a); d != nil && d.Status != apitypes.DownloadStatusPending {
			s.found(RuleState, a.name, "status %q, want pending", d.Status)
		}
	}
	if id := s.target.FailedJobID; id != "" {
		a, err := s.want(RuleStatus, call{path: jobPath(s.target.WorkflowID, id), note: "a failed job"}, http.StatusBadRequest)
		if err != nil {
			return err
		}
		if e := decodeError(a); e != nil && e.Code != apitypes.ErrorCodeJobFailed {
			s.found(RuleEnvelope, a.name, "code %q, want job_failed", e.Code)
		}
	}
	return nil
}

// ready asks for the target's package until it is there, and keeps its URL.
func (s *suite) ready() (*apitypes.Download, error) {
	for {
		a, err := s.want(RuleStatus, call{note: "the job of the target"}, http.StatusOK)
		if err != nil {
			return nil, err
		}
		d := decode(a)
		if d == nil {
			return nil, nil
		}
		if d.WorkflowID != s.target.WorkflowID {
			s.found(RuleBody, a.name, "workflowId %q, want the one that was requested", d.WorkflowID)
		}
		if d.SignedURL != "" {
			s.link, s.size = d.SignedURL, a.Header.Get("Downlink-Package-Size")
		}
		if d.Status != apitypes.DownloadStatusPending {
			return d, nil
		}
		seconds, _ := strconv.Atoi(a.Header.Get("Retry-After"))
		if seconds < 1 {
			return nil, nil // a finding already
		}
		if err := s.sleep(time.Duration(min(seconds, 60)) * time.Second); err != nil {
			return nil, fmt.Errorf("waiting for the job of the target: %w", err)
		}
	}
}

func decode(a *answer) *apitypes.Download {
	var d apitypes.Download
	if a == nil || json.Unmarshal(a.body, &d) != nil {
		return nil
	}
	return &d
}

func decodeError(a *answer) *apitypes.Error {
	var e apitypes.ErrorResponse
	if a == nil || json.Unmarshal(a.body, &e) != nil {
		return nil
	}
	return &e.Error
}

// authentication tries keys. The first thing that a call says is whether its key
// is good, whatever else is wrong with it.
func (s *suite) authentication() error {
	key := s.target.Key
	last := key[len(key)-1] ^ 1
	for _, tt := range []struct {
		note   string
		values []string
		valid  bool
	}{
		{"the raw key", []string{key}, true},
		{"Bearer", []string{"Bearer " + key}, true},
		{"the scheme in another case", []string{"bEARER " + key}, true},
		{"no key", nil, false},
		{"an empty key", []string{""}, false},
		{"a scheme alone", []string{"Bearer"}, false},
		{"Basic", []string{"Basic " + key}, false},
		{"another last character", []string{key[:len(key)-1] + string(rune(last))}, false},
		{"one character more", []string{key + "x"}, false},
		{"one character less", []string{key[:len(key)-1]}, false},
		{"the key twice", []string{key + " " + key}, false},
		{"no key at all", []string{"hello"}, false},
		{"not ASCII", []string{"\xff\xfe"}, false},
		{"8 KB", []string{strings.Repeat("k", 8<<10)}, false},
	} {
		c := call{note: tt.note, header: http.Header{"Authorization": tt.values}, noKey: true}
		want := http.StatusUnauthorized
		if tt.valid {
			want = http.StatusOK
		}
		if _, err := s.want(RuleAuthentication, c, want); err != nil {
			return err
		}
	}
	for _, path := range []string{
		jobPath("no-such-workflow", "no-such-job"), jobPath(s.target.WorkflowID, "-"), jobPath("a%00b", "J"),
		jobPath(s.target.WorkflowID, strings.Repeat("x", 1000)),
	} {
		for _, header := range []http.Header{{"Authorization": nil}, {"Authorization": {"hello"}}} {
			if _, err := s.want(RuleAuthentication, call{path: path, note: "without a valid key", header: header, noKey: true}, http.StatusUnauthorized); err != nil {
				return err
			}
		}
	}
	return nil
}

// identifiers tries each path parameter with values that its schema admits and
// with others.
func (s *suite) identifiers() error {
	for _, parameter := range []string{"workflow_id", "job_id"} {
		for _, v := range identifiers(contract().schemas[parameter]) {
			path := jobPath(s.target.WorkflowID, v.escaped)
			if parameter == "workflow_id" {
				path = jobPath(v.escaped, s.target.JobID)
			}
			a, err := s.send(call{path: path, note: v.note})
			if err != nil {
				return err
			}
			if a == nil {
				continue
			}
			e := decodeError(a)
			malformed := a.StatusCode == http.StatusBadRequest && e != nil && e.Code == apitypes.ErrorCodeInvalidParameter
			switch {
			case v.valid && (malformed || !slices.Contains([]int{200, 400, 403}, a.StatusCode)):
				s.found(RuleIdentifier, a.name, "status %d for a well-formed %s that does not exist", a.StatusCode, parameter)
			case !v.valid && v.mayNotRoute && a.StatusCode == http.StatusNotFound:
			case !v.valid && !malformed:
				s.found(RuleIdentifier, a.name, "status %d for a malformed %s, want 400 with invalid_parameter", a.StatusCode, parameter)
			case !v.valid && !v.mayNotRoute && !slices.ContainsFunc(e.Details, func(d apitypes.ErrorDetail) bool { return d.Field == parameter }):
				s.found(RuleIdentifier, a.name, "no detail names %s", parameter)
			}
		}
	}
	return nil
}

// perRequest are the headers that belong to a call and not to what it is about.
var perRequest = []string{"X-Request-Id", "Date", "RateLimit"}

// permission compares what is answered for what does not exist and for what the
// key may not have.
func (s *suite) permission() error {
	w, j := s.target.WorkflowID, s.target.JobID
	asked := []call{
		{path: jobPath(w, "no-such-job"), note: "no such job"},
		{path: jobPath("no-such-workflow", j), note: "no such workflow"},
		{path: jobPath("no-such-workflow", "no-such-job"), note: "no such workflow and job"},
	}
	if s.target.ForeignWorkflowID != "" {
		asked = append(asked, call{path: jobPath(s.target.ForeignWorkflowID, s.target.ForeignJobID), note: "no permission"},
			call{path: jobPath(s.target.ForeignWorkflowID, "no-such-job"), note: "no permission and no such job"})
	}
	var first *answer
	for _, c := range asked {
		a, err := s.want(RulePermission, c, http.StatusForbidden)
		if err != nil {
			return err
		}
		if a == nil {
			continue
		}
		for _, name := range perRequest {
			a.Header.Del(name)
		}
		if first == nil {
			first = a
			continue
		}
		if !bytes.Equal(a.body, first.body) {
			s.found(RulePermission, a.name, "the body is not that of %s", first.name)
		}
		if !maps.EqualFunc(a.Header, first.Header, slices.Equal) {
			s.found(RulePermission, a.name, "the header is not that of %s", first.name)
		}
	}
	return nil
}

// longestWait is what wait=N is capped at.
const longestWait = 60

// preferences tries the Prefer header. None of its values makes a call fail.
func (s *suite) preferences() error {
	for _, tt := range []struct {
		lines []string
		wait  int // -1: nothing to honour
	}{
		{[]string{"wait=0"}, 0}, {[]string{"wait=1"}, 1}, {[]string{"wait=60"}, 60}, {[]string{"wait=61"}, longestWait},
		{[]string{"wait=4294967295"}, longestWait}, {[]string{"WAIT=5"}, 5}, {[]string{`wait="5"`}, 5},
		{[]string{"wait=5, wait=9"}, 5}, {[]string{"respond-async, wait=7; foo=bar"}, 7}, {[]string{"respond-async", "wait=8"}, 8},
		{[]string{"wait=-1"}, -1}, {[]string{"wait=1.5"}, -1}, {[]string{"wait=soon"}, -1}, {[]string{"wait"}, -1}, {[]string{"wait="}, -1},
		{[]string{""}, -1}, {[]string{",;=\""}, -1}, {[]string{"\x80\xff"}, -1}, {[]string{"waiting=5"}, -1},
		{[]string{strings.Repeat("a=b,", 1000)}, -1}, {[]string{"respond-async"}, -1},
	} {
		note := fmt.Sprintf("Prefer: %.40q", strings.Join(tt.lines, ", "))
		a, err := s.want(RulePrefer, call{note: note, header: http.Header{"Prefer": tt.lines}}, http.StatusOK)
		if err != nil {
			return err
		}
		if a == nil {
			continue
		}
		applied := a.Header.Get("Preference-Applied")
		switch {
		case applied != "" && tt.wait < 0:
			s.found(RulePrefer, a.name, "Preference-Applied %q, where there is nothing to honour", applied)
		case applied != "" && applied != "wait="+strconv.Itoa(tt.wait):
			s.found(RulePrefer, a.name, "Preference-Applied %q, want wait=%d", applied, tt.wait)
		}
	}
	return nil
}

// ignored sends what the contract does not know.
func (s *suite) ignored() error {
	job := jobPath(s.target.WorkflowID, s.target.JobID)
	calls := []call{
		{note: "a query", path: job + "?a=b&workflow_id=x"},
		{note: "an odd query", path: job + "?%FF=%00;&&=;"},
		{note: "a long query", path: job + "?q=" + strings.Repeat("x", 2000)},
		{note: "Accept: text/html", header: http.Header{"Accept": {"text/html"}}},
		{note: "Accept: garbage", header: http.Header{"Accept": {";;,=/*"}}},
		{note: "If-Match: *", header: http.Header{"If-Match": {`*`}}},
		{note: "If-None-Match: *", header: http.Header{"If-None-Match": {`*`}}},
		{note: "Range", header: http.Header{"Range": {"bytes=0-0"}}},
		{note: "an unknown header", header: http.Header{"X-Odd": {strings.Repeat("\x80", 500)}}},
		{note: "a long Cookie", header: http.Header{"Cookie": {strings.Repeat("a=b; ", 500)}}},
		{note: "a request id", header: http.Header{"X-Request-Id": {"\x80 not one"}}},
	}
	for _, contentType := range []string{"", "application/json", "text/csv", "multipart/form-data", "application/x-www-form-urlencoded", ";;/"} {
		for _, body := range []string{"{not json", `{"id": 1}`, strings.Repeat("\x00\xff", 500)} {
			calls = append(calls, call{note: fmt.Sprintf("a body of the type %q", contentType), body: body, contentType: contentType})
		}
	}
	for _, c := range calls {
		if _, err := s.want(RuleIgnored, c, http.StatusOK); err != nil {
			return err
		}
	}
	return nil
}

// routes asks for what does not exist.
func (s *suite) routes() error {
	job := jobPath(s.target.WorkflowID, s.target.JobID)
	for _, c := range []call{
		{path: job + "/"}, {path: job + "s"}, {path: strings.TrimSuffix(job, "/download")},
		{path: "/v0/no-such-route"}, {path: "/v0/no-such-route", method: http.MethodGet}, {path: "/v0/%FF%00", method: http.MethodGet},
	} {
		c.note = "no such route"
		if _, err := s.want(RuleStatus, c, http.StatusNotFound); err != nil {
			return err
		}
	}
	for _, method := range []string{http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPatch, http.MethodDelete, "BREW"} {
		a, err := s.want(RuleStatus, call{method: method, note: "no such method"}, http.StatusMethodNotAllowed)
		if err != nil {
			return err
		}
		if a == nil {
			continue
		}
		methods := regexp.MustCompile(`\s*,\s*`).Split(strings.Join(a.Header.Values("Allow"), ","), -1)
		if !slices.Contains(methods, http.MethodPut) || slices.Contains(methods, method) {
			s.found(RuleAllow, a.name, "Allow lists %q", methods)
		}
	}
	return nil
}

// firstBytes are those of every package: its first local header.
const firstBytes = "PK\x03\x04"

// download tries the signed URL, which needs no key.
func (s *suite) download() error {
	if _, err := url.Parse(s.link); s.link == "" || err != nil {
		return nil //nolint:nilerr // a finding already
	}
	get := func(method, condition string) (*answer, error) {
		r, err := http.NewRequestWithContext(s.ctx, method, s.link, nil)
		if err != nil {
			return nil, errors.New("signed_url is no URL")
		}
		if method == http.MethodGet {
			r.Header.Set("Range", "bytes=0-3")
		}
		if condition != "" {
			r.Header.Set("If-Range", condition)
		}
		return s.do(r, "")
	}
	const name = "GET signed_url"
	mark := len(s.findings)
	defer func() { // the path is a secret
		for i := range s.findings[mark:] {
			s.findings[mark+i].Request = name
		}
	}()
	a, err := get(http.MethodGet, "")
	if err != nil || a == nil {
		return err
	}
	etag := a.Header.Get("ETag")
	if a.StatusCode != http.StatusPartialContent || string(a.body) != firstBytes {
		s.found(RuleDownload, name, "status %d with %d bytes for the first 4 bytes, want 206 with those of a ZIP", a.StatusCode, len(a.body))
		return nil
	}
	if !strings.HasPrefix(etag, `"`) || len(etag) < 3 {
		s.found(RuleDownload, name, "no strong ETag")
		return nil
	}
	if size := s.size; size != "" && a.Header.Get("Content-Range") != "bytes 0-3/"+size {
		s.found(RuleDownload, name, "Content-Range %q, but Downlink-Package-Size %s", a.Header.Get("Content-Range"), size)
	}
	if a, err = get(http.MethodGet, etag); err != nil || a == nil {
		return err
	}
	if a.StatusCode != http.StatusPartialContent || a.Header.Get("ETag") != etag {
		s.found(RuleDownload, name, "status %d for a range with the If-Range of the package, want 206 with the same ETag", a.StatusCode)
	}
	if a, err = get(http.MethodHead, ""); err != nil || a == nil {
		return err
	}
	if a.StatusCode != http.StatusOK || a.Header.Get("ETag") != etag || s.size != "" && strconv.FormatInt(a.ContentLength, 10) != s.size {
		s.found(RuleDownload, name, "HEAD answers %d with the length %d, want 200 with that of the package and its ETag", a.StatusCode, a.ContentLength)
	}
	return nil
}

// Package servertest tests servers of the Download Job API, in Go or any other
// language: [Contract] runs the contract suite against one over HTTP, and
// [Check] looks at a single answer. [New] is for the other side, tests of clients:
// a server of made-up jobs that makes faults.
package servertest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// Target says what the suite may use of the server under test.
type Target struct {
	// Key is a valid API key.
	Key string
	// WorkflowID and JobID name a job that the key may download and whose package
	// is ready or will be while the suite runs.
	WorkflowID, JobID string
	// PendingJobID names a job of the same workflow that is still running, to
	// have pending answers looked at as well. Optional.
	PendingJobID string
	// FailedJobID names a job of the same workflow that failed. Optional.
	FailedJobID string
	// ForeignWorkflowID and ForeignJobID name a job that exists but that the key
	// has no permission for. Optional; without them only workflows and jobs that
	// do not exist are asked for.
	ForeignWorkflowID, ForeignJobID string
	// Client sends the requests. It must not follow redirects, and need not know
	// cookies. Defaults to a client with a timeout of 90 seconds.
	Client *http.Client
}

// Rule names a rule of the contract.
type Rule string

// The rules that findings name.
const (
	RuleConnection     Rule = "connection"       // every request has an answer
	RuleStatus         Rule = "status"           // only declared statuses, and the one that the case calls for
	RuleContentType    Rule = "content-type"     // application/json
	RuleHeader         Rule = "header"           // only declared headers, of their schemas
	RuleBody           Rule = "body"             // 200 answers match the schema, without other fields
	RuleEnvelope       Rule = "envelope"         // errors match the schema, with a code of their status
	RuleRequestID      Rule = "request-id"       // X-Request-Id on every answer, another one each time
	RuleRetryAfter     Rule = "retry-after"      // whole seconds, with pending, 429 and 503
	RuleAuthenticate   Rule = "www-authenticate" // on 401
	RuleAllow          Rule = "allow"            // on 405, with PUT
	RuleState          Rule = "state"            // what belongs to ready and what to pending
	RuleAuthentication Rule = "authentication"   // valid keys work in each form, nothing else does, before anything else is looked at
	RuleIdentifier     Rule = "identifier"       // malformed ones are 400 with the field, well-formed ones are not
	RulePermission     Rule = "permission"       // unknown and forbidden are told apart by nothing
	RuleIgnored        Rule = "ignored"          // bodies, queries and headers that the contract does not know
	RulePrefer         Rule = "prefer"           // wait=N up to 60, malformed preferences ignored
	RuleIdempotent     Rule = "idempotent"       // the same assets have the same id
	RuleDownload       Rule = "download"         // signed_url answers GET, HEAD and ranges without a key
)

// Finding is one thing that is against the contract.
type Finding struct {
	Rule    Rule
	Request string // the method, the path, and what is special about the request
	Message string
}

func (f Finding) String() string { return fmt.Sprintf("[%s] %s: %s", f.Rule, f.Request, f.Message) }

// errStopped ends a suite whose server does not let it go on.
var errStopped = errors.New("stopped")

// tooMany findings are enough to see what is wrong.
const tooMany = 200

// Contract runs the contract suite against the server at a base URL, such as
// https://api.example.com, and returns what it found: nothing if the server keeps
// to the contract. It validates each answer against the embedded
// api/openapi.yaml and against what its texts say beyond the schemas.
//
// Requests, about 250 of them and the same each time, are made from the schemas
// of the parameters: valid, on the boundary and invalid. They change nothing on the server
// but that the target's packages are prepared. Answers with 429 are waited for,
// as long as they say, a minute at most each. Some 20 requests carry invalid keys.
//
// The error says that the suite could not be run: the target is not usable or
// the context has ended. Findings then tell what was seen until there. Neither
// shows the key or a signed URL.
func Contract(ctx context.Context, baseURL string, target Target) ([]Finding, error) {
	u, err := url.Parse(baseURL)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.RawQuery != "" || u.Fragment != "" {
		return nil, errors.New("base URL: want http or https with a host, such as https://api.example.com")
	}
	for name, value := range map[string]string{"Key": target.Key, "WorkflowID": target.WorkflowID, "JobID": target.JobID} {
		if value == "" {
			return nil, fmt.Errorf("target: %s is missing", name)
		}
	}
	if (target.ForeignWorkflowID == "") != (target.ForeignJobID == "") {
		return nil, errors.New("target: ForeignWorkflowID and ForeignJobID go together")
	}
	s := &suite{
		ctx: ctx, target: target, client: target.Client,
		host: u.Scheme + "://" + u.Host, prefix: strings.TrimSuffix(u.EscapedPath(), "/"),
		requestIDs: map[string]bool{},
	}
	if s.client == nil {
		s.client = &http.Client{
			Timeout:       90 * time.Second,
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		}
		defer s.client.CloseIdleConnections()
	}
	for _, part := range []func(*suite) error{
		(*suite).states, (*suite).download, (*suite).authentication, (*suite).identifiers,
		(*suite).permission, (*suite).preferences, (*suite).ignored, (*suite).routes,
	} {
		if err := part(s); errors.Is(err, errStopped) {
			break
		} else if err != nil {
			return s.findings, err
		}
	}
	return s.findings, nil
}

// suite is one run of Contract. It holds the context of that one call.
type suite struct {
	ctx          context.Context
	client       *http.Client
	target       Target
	host, prefix string
	findings     []Finding
	requestIDs   map[string]bool
	link         string // a signed URL, once there is one
	size         string // the size that came with it
}

// call is one request of the suite. Its zero value is the PUT of the target's job
// with its key.
type call struct {
	method      string
	path        string // escaped; the target's job if empty
	note        string // what is special, for findings
	noKey       bool
	header      http.Header
	body        string
	contentType string
}

// answer is what came back, and what the call was called.
type answer struct {
	*http.Response
	body []byte
	name string
}

func (s *suite) found(rule Rule, request, format string, args ...any) {
	s.findings = append(s.findings, Finding{Rule: rule, Request: request, Message: fmt.Sprintf(format, args...)})
}

// send makes a call and checks the answer for itself. It waits where it is told
// to come later. Without an answer, which is a finding, the answer is nil.
func (s *suite) send(c call) (*answer, error) {
	for range 5 {
		a, err := s.once(c)
		if err != nil || a == nil || a.StatusCode != http.StatusTooManyRequests {
			return a, err
		}
		wait, err := strconv.Atoi(a.Header.Get("Retry-After"))
		if err != nil || wait < 1 || wait > 60 {
			return nil, errStopped // a finding already, or pointless
		}
		if err := s.sleep(time.Duration(wait) * time.Second); err != nil {
			return nil, err
		}
	}
	return nil, errors.New("the server goes on answering 429: allow the key more calls")
}

func (s *suite) sleep(d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-s.ctx.Done():
		return s.ctx.Err()
	case <-t.C:
		return nil
	}
}

func (s *suite) once(c call) (*answer, error) {
	if len(s.findings) > tooMany {
		return nil, errStopped
	}
	if c.method == "" {
		c.method = http.MethodPut
	}
	if c.path == "" {
		c.path = jobPath(s.target.WorkflowID, s.target.JobID)
	}
	var body io.Reader
	if c.body != "" {
		body = strings.NewReader(c.body)
	}
	r, err := http.NewRequestWithContext(s.ctx, c.method, s.host, body)
	if err != nil {
		return nil, err
	}
	r.URL.Opaque = "//" + r.URL.Host + s.prefix + c.path // sent as it is
	if c.header != nil {
		r.Header = c.header.Clone()
	}
	if _, ok := r.Header["Authorization"]; !ok && !c.noKey {
		r.Header.Set("Authorization", s.target.Key)
	}
	if c.contentType != "" {
		r.Header.Set("Content-Type", c.contentType)
	}
	a, err := s.do(r, c.note)
	if a == nil || err != nil {
		return nil, err
	}
	for _, f := range Check(r, a.Response, a.body) {
		s.found(f.Rule, a.name, "%s", f.Message)
	}
	if id := a.Header.Get("X-Request-Id"); id != "" && s.requestIDs[id] {
		s.found(RuleRequestID, a.name, "the X-Request-Id was that of an earlier answer")
	} else {
		s.requestIDs[id] = true
	}
	return a, nil
}

// largest is how much of an answer is read.
const largest = 1 << 20

// do sends a request and reads its answer.
func (s *suite) do(r *http.Request, note string) (*answer, error) {
	name := describe(r)
	if note != "" {
		name += " (" + note + ")"
	}
	response, err := s.client.Do(r)
	if err == nil {
		defer response.Body.Close()
		var body []byte
		if body, err = io.ReadAll(io.LimitReader(response.Body, largest)); err == nil {
			return &answer{Response: response, body: body, name: name}, nil
		}
	}
	if ctxErr := s.ctx.Err(); ctxErr != nil {
		return nil, ctxErr
	}
	if e, ok := errors.AsType[*url.Error](err); ok {
		err = e.Err // its URL may be a signed one
	}
	s.found(RuleConnection, name, "no answer: %v", err)
	return nil, nil
}

// jobPath is the operation's path for a job.
func jobPath(workflowID, jobID string) string {
	return strings.NewReplacer("{workflow_id}", workflowID, "{job_id}", jobID).Replace(contract().path)
}

// want makes a call and a finding if its status is none of these.
func (s *suite) want(rule Rule, c call, statuses ...int) (*answer, error) {
	a, err := s.send(c)
	if err != nil || a == nil {
		return a, err
	}
	for _, status := range statuses {
		if a.StatusCode == status {
			return a, nil
		}
	}
	s.found(rule, a.name, "status %d, want %s", a.StatusCode, strings.Trim(fmt.Sprint(statuses), "[]"))
	return nil, nil
}

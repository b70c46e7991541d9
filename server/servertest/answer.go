package servertest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/getkin/kin-openapi/openapi3"

	"github.com/downlink-go/downlink/api"
)

// operation is downloadJob as api/openapi.yaml has it.
type operation struct {
	path      string
	responses map[int]*openapi3.Response
	schemas   map[string]*openapi3.Schema // of the parameters, by name
	headers   []string                    // that some answer declares
}

// contract is loaded once. The document is embedded and tested, so that it
// cannot fail in a program that was built from it.
var contract = sync.OnceValue(func() *operation {
	loader := openapi3.NewLoader()
	doc, err := loader.LoadFromData(api.OpenAPI)
	if err != nil {
		panic("openapi.yaml: " + err.Error())
	}
	for path, item := range doc.Paths.Map() {
		if item.Put == nil || item.Put.OperationID != "downloadJob" {
			continue
		}
		o := &operation{path: path, responses: map[int]*openapi3.Response{}, schemas: map[string]*openapi3.Schema{}}
		for status, ref := range item.Put.Responses.Map() {
			code, err := strconv.Atoi(status)
			if err != nil {
				panic("openapi.yaml: status " + status)
			}
			o.responses[code] = ref.Value
			for name := range ref.Value.Headers {
				if !slices.Contains(o.headers, name) {
					o.headers = append(o.headers, name)
				}
			}
		}
		slices.Sort(o.headers)
		for _, p := range item.Put.Parameters {
			o.schemas[p.Value.Name] = p.Value.Schema.Value
		}
		return o
	}
	panic("openapi.yaml: no operation downloadJob")
})

var (
	positiveInteger = regexp.MustCompile(`^[1-9][0-9]{0,9}$`)
	appliedWait     = regexp.MustCompile(`^wait=[0-9]+$`)
)

// Check returns what is against the contract in one answer of the API, taken for
// itself. The answer may be that to any method and any path: also those that do
// not exist have an answer that is declared. The body is the whole of it.
//
// Findings quote neither the request's header nor the answer's body, which have
// secrets.
func Check(request *http.Request, response *http.Response, body []byte) []Finding {
	c := &checker{request: describe(request), method: request.Method}
	c.answer(response, body)
	return c.findings
}

// describe names a request by what is no secret.
func describe(r *http.Request) string {
	path := r.URL.EscapedPath()
	if r.URL.Opaque != "" {
		path = strings.TrimPrefix(r.URL.Opaque, "//"+r.URL.Host)
	}
	if len(path) > 200 {
		path = path[:200] + "..."
	}
	return r.Method + " " + path
}

// checker collects the findings of one answer.
type checker struct {
	request, method string
	findings        []Finding
}

func (c *checker) found(rule Rule, format string, args ...any) {
	c.findings = append(c.findings, Finding{Rule: rule, Request: c.request, Message: fmt.Sprintf(format, args...)})
}

func (c *checker) answer(r *http.Response, body []byte) {
	if r.Header.Get("X-Request-Id") == "" {
		c.found(RuleRequestID, "the answer (status %d) has no X-Request-Id", r.StatusCode)
	}
	declared := contract().responses[r.StatusCode]
	if declared == nil {
		c.found(RuleStatus, "status %d is not declared", r.StatusCode)
		return
	}
	c.headers(r, declared)
	if c.method == http.MethodHead {
		if len(body) > 0 {
			c.found(RuleBody, "the answer to HEAD has a body")
		}
		return
	}
	if value, ok := c.body(r, declared, body); ok {
		if r.StatusCode == http.StatusOK {
			c.download(r, value)
		} else {
			c.errorCode(r.StatusCode, value)
		}
	}
}

// headers checks those that the contract knows: each has to be declared for this
// status, there if it is required, there once, and of its schema.
func (c *checker) headers(r *http.Response, declared *openapi3.Response) {
	for _, name := range contract().headers {
		values := r.Header.Values(name)
		ref := declared.Headers[name]
		switch {
		case ref == nil && len(values) > 0:
			c.found(RuleHeader, "%s is not declared for status %d", name, r.StatusCode)
		case ref == nil:
		case len(values) == 0 && ref.Value.Required:
			c.found(headerRule(name), "status %d without %s", r.StatusCode, name)
		case len(values) > 1 && name != "Allow" && name != "WWW-Authenticate":
			c.found(headerRule(name), "%d lines of %s, want one", len(values), name)
		case len(values) > 0:
			if err := checkHeader(name, values[0], ref.Value.Schema.Value); err != nil {
				c.found(headerRule(name), "%s: %v", name, err)
			}
		}
	}
	for name := range r.Header {
		if strings.HasPrefix(name, "Downlink-") && !slices.Contains(contract().headers, name) {
			c.found(RuleHeader, "%s is not declared", name)
		}
	}
}

// headerRule is the rule that a header has of its own, or that of all.
func headerRule(name string) Rule {
	switch name {
	case "Retry-After":
		return RuleRetryAfter
	case "WWW-Authenticate":
		return RuleAuthenticate
	case "Allow":
		return RuleAllow
	case "X-Request-Id":
		return RuleRequestID
	}
	return RuleHeader
}

func checkHeader(name, text string, schema *openapi3.Schema) error {
	switch {
	case name == "Retry-After":
		if !positiveInteger.MatchString(text) {
			return fmt.Errorf("%q is not a positive whole number of seconds", text)
		}
		return nil
	case name == "Preference-Applied" && !appliedWait.MatchString(text):
		return fmt.Errorf("%q is not of the form wait=N", text)
	case schema.Format == "date-time":
		if _, err := time.Parse(time.RFC3339, text); err != nil {
			return fmt.Errorf("%q is no time of RFC 3339", text)
		}
	case text == "":
		return errors.New("is empty")
	}
	var value any = text
	if schema.Type.Is("integer") || schema.Type.Is("number") {
		number, err := strconv.ParseFloat(text, 64)
		if err != nil || schema.Type.Is("integer") && strings.ContainsAny(text, ".eE+xX") {
			return fmt.Errorf("%q is no %s", text, schema.Type.Slice()[0])
		}
		value = number
	}
	return visit(schema, value)
}

// body checks the content type and the schema, and returns the JSON.
func (c *checker) body(r *http.Response, declared *openapi3.Response, body []byte) (map[string]any, bool) {
	rule := RuleEnvelope
	if r.StatusCode == http.StatusOK {
		rule = RuleBody
	}
	mediaType, params, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	content := declared.Content[mediaType]
	if err != nil || content == nil {
		c.found(RuleContentType, "status %d with Content-Type %q, want application/json", r.StatusCode, r.Header.Get("Content-Type"))
		content = declared.Content["application/json"]
	}
	if charset := params["charset"]; charset != "" && !strings.EqualFold(charset, "utf-8") {
		c.found(RuleContentType, "charset %q: JSON is UTF-8", charset)
	}
	var value any
	decoder := json.NewDecoder(bytes.NewReader(body))
	if err := decoder.Decode(&value); err != nil {
		c.found(rule, "status %d with a body that is not JSON", r.StatusCode)
		return nil, false
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		c.found(rule, "status %d with something after the JSON", r.StatusCode)
	}
	if err := visit(content.Schema.Value, value); err != nil {
		c.found(rule, "status %d: %v", r.StatusCode, err)
		return nil, false
	}
	object, ok := value.(map[string]any)
	return object, ok
}

// visit validates against a schema, with an error that does not quote the value.
func visit(schema *openapi3.Schema, value any) error {
	var findings []string
	var collect func(err error)
	collect = func(err error) {
		if all, ok := errors.AsType[openapi3.MultiError](err); ok {
			for _, e := range all {
				collect(e)
			}
			return
		}
		e, ok := errors.AsType[*openapi3.SchemaError](err)
		if !ok {
			findings = append(findings, "does not match its schema")
			return
		}
		at := ""
		if p := e.JSONPointer(); len(p) > 0 {
			at = "/" + strings.Join(p, "/") + ": "
		}
		findings = append(findings, at+e.Reason)
	}
	if err := schema.VisitJSON(value, openapi3.VisitAsResponse(), openapi3.MultiErrors()); err != nil {
		collect(err)
		return errors.New(strings.Join(findings, "; "))
	}
	return nil
}

// codes are those that belong to each status, as the texts of ErrorCode have it.
var codes = map[int][]string{
	http.StatusBadRequest:          {"invalid_parameter", "job_failed", "asset_missing", "package_too_large"},
	http.StatusUnauthorized:        {"unauthenticated"},
	http.StatusForbidden:           {"permission_denied"},
	http.StatusNotFound:            {"not_found"},
	http.StatusMethodNotAllowed:    {"method_not_allowed"},
	http.StatusTooManyRequests:     {"rate_limited"},
	http.StatusInternalServerError: {"internal"},
	http.StatusServiceUnavailable:  {"unavailable"},
}

func (c *checker) errorCode(status int, envelope map[string]any) {
	e, _ := envelope["error"].(map[string]any)
	code, _ := e["code"].(string)
	if !slices.Contains(codes[status], code) {
		c.found(RuleEnvelope, "status %d with the code %q, want one of %q", status, code, codes[status])
	}
}

// download checks what the contract says of a state beyond the schema.
func (c *checker) download(r *http.Response, d map[string]any) {
	link, _ := d["signed_url"].(string)
	ready := d["status"] == "ready"
	if u, err := url.Parse(link); ready && (err != nil || !u.IsAbs() || u.Host == "") {
		c.found(RuleState, "ready without an absolute URL in signed_url")
	}
	if _, there := d["signed_url"]; there && !ready {
		c.found(RuleState, "pending with a signed_url")
	}
	for name, when := range map[string]bool{
		"Downlink-Expires": true, "Downlink-Package-Size": true,
		"Downlink-Pending-Reason": false, "Downlink-Progress": false, "Retry-After": false,
	} {
		if r.Header.Get(name) != "" && ready != when {
			c.found(RuleState, "%s with the status %v", name, d["status"])
		}
	}
	if !ready && r.Header.Get("Retry-After") == "" {
		c.found(RuleRetryAfter, "pending without Retry-After")
	}
	if at, err := time.Parse(time.RFC3339, r.Header.Get("Downlink-Expires")); ready && err == nil && !at.After(time.Now()) {
		c.found(RuleState, "Downlink-Expires is in the past")
	}
}

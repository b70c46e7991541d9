package server_test

import (
	"bytes"
	"io"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/downlink-go/downlink/server"
	"github.com/downlink-go/downlink/server/servertest"
)

// contractTarget deploys a server with a job in each state.
func contractTarget(t *testing.T) (*deployment, servertest.Target) {
	d := deploy(t, func(c *server.Config) { c.Limits.FailuresPerMinute = -1 })
	d.Write(smallJob)
	d.Write(map[string]string{
		"W1/running/job.json": `{"status": "running"}`,
		"W1/failed/job.json":  `{"status": "failed"}`,
		"W2/J1/inputs/a":      "of somebody else",
	})
	return d, servertest.Target{
		Key: d.Key, WorkflowID: "W1", JobID: "J1", PendingJobID: "running", FailedJobID: "failed",
		ForeignWorkflowID: "W2", ForeignJobID: "J1",
	}
}

func TestContract(t *testing.T) {
	t.Parallel()
	d, target := contractTarget(t)
	findings, err := servertest.Contract(t.Context(), d.URL, target)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range findings {
		t.Error(f)
	}
}

// TestContractWithLimits: a server that has the default limits passes as well.
func TestContractWithLimits(t *testing.T) {
	t.Parallel()
	d := deploy(t, func(c *server.Config) { c.Limits = server.Limits{} })
	d.Write(smallJob)
	findings, err := servertest.Contract(t.Context(), d.URL+"/", servertest.Target{Key: d.Key, WorkflowID: "W1", JobID: "J1"})
	if err != nil || len(findings) > 0 {
		t.Errorf("findings %v, error %v", findings, err)
	}
}

func TestContractTarget(t *testing.T) {
	t.Parallel()
	good := servertest.Target{Key: "dl_secret", WorkflowID: "W1", JobID: "J1"}
	for name, tt := range map[string]struct {
		url    string
		change func(*servertest.Target)
		want   string
	}{
		"no scheme":    {"localhost:8080", func(*servertest.Target) {}, "base URL"},
		"a query":      {"http://localhost/?a", func(*servertest.Target) {}, "base URL"},
		"no key":       {"http://localhost", func(c *servertest.Target) { c.Key = "" }, "Key"},
		"no job":       {"http://localhost", func(c *servertest.Target) { c.JobID = "" }, "JobID"},
		"half foreign": {"http://localhost", func(c *servertest.Target) { c.ForeignJobID = "J" }, "ForeignWorkflowID"},
	} {
		target := good
		tt.change(&target)
		if _, err := servertest.Contract(t.Context(), tt.url, target); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: error %v, want one about %s", name, err, tt.want)
		}
	}
}

// reply is an answer of the real server on its way out.
type reply struct {
	status int
	header http.Header
	body   string
}

// set replaces in the body.
func (r *reply) set(old, new string) { r.body = strings.Replace(r.body, old, new, 1) }

// planted is a fault that a server might have.
type planted struct {
	name string
	want servertest.Rule
	// before changes a request. Answering true means that it has been answered.
	before func(w http.ResponseWriter, r *http.Request) bool
	// after changes an answer of the API.
	after func(r *http.Request, a *reply)
}

func (f planted) wrap(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if f.before != nil && f.before(w, r) {
			return
		}
		if f.after == nil {
			next.ServeHTTP(w, r)
			return
		}
		recorder := httptest.NewRecorder()
		next.ServeHTTP(recorder, r)
		a := &reply{recorder.Code, recorder.Header(), recorder.Body.String()}
		f.after(r, a)
		for name, values := range a.header {
			if name != "Content-Length" {
				w.Header()[name] = values
			}
		}
		w.WriteHeader(a.status)
		_, _ = io.WriteString(w, a.body)
	})
}

// at makes a change to the answers of one status.
func at(status int, change func(*reply)) func(*http.Request, *reply) {
	return func(_ *http.Request, a *reply) {
		if a.status == status {
			change(a)
		}
	}
}

// header sets one in the answers of a status.
func header(status int, name, value string) func(*http.Request, *reply) {
	return at(status, func(a *reply) { a.header.Set(name, value) })
}

// instead replaces in the bodies of a status.
func instead(status int, old, new string) func(*http.Request, *reply) {
	return at(status, func(a *reply) { a.set(old, new) })
}

func isPending(a *reply) bool { return strings.Contains(a.body, `"status":"pending"`) }

// TestContractFindsFaults plants faults in the real server, one at a time. The
// suite has to find each of them, under the rule that it breaks.
func TestContractFindsFaults(t *testing.T) {
	t.Parallel()
	d, target := contractTarget(t)
	foreign := func(r *http.Request, a *reply) bool { return a.status == 403 && strings.Contains(r.URL.Path, "/W2/") }
	plain := func(w http.ResponseWriter, status int) bool {
		w.Header().Set("X-Request-Id", "1")
		http.Error(w, "oh", status)
		return true
	}
	for _, f := range []planted{
		{name: "wrong status: 201", want: servertest.RuleStatus, after: at(200, func(a *reply) { a.status = 201 })},
		{name: "wrong status: 404 for an unknown job", want: servertest.RulePermission, after: at(403, func(a *reply) {
			a.status = 404
			a.set("permission_denied", "not_found")
		})},
		{name: "missing field: id", want: servertest.RuleBody, after: instead(200, `"id":`, `"_":`)},
		{name: "missing field: details", want: servertest.RuleEnvelope, after: instead(403, `"details":[],`, ``)},
		{name: "wrong type: number for a string", want: servertest.RuleBody, after: instead(200, `"workflowId":"W1"`, `"workflowId":1`)},
		{name: "wrong type: null for a list", want: servertest.RuleEnvelope, after: instead(403, `"details":[]`, `"details":null`)},
		{name: "null for a URL that is not there", want: servertest.RuleBody, after: instead(200, `"status":"pending"`, `"status":"pending","signed_url":null`)},
		{name: "undeclared value", want: servertest.RuleBody, after: instead(200, `"ready"`, `"READY"`)},
		{name: "another workflow", want: servertest.RuleBody, after: instead(200, `"workflowId":"W1"`, `"workflowId":"w1"`)},
		{name: "wrong content type", want: servertest.RuleContentType, after: header(200, "Content-Type", "text/plain; charset=utf-8")},
		{name: "wrong content type of an error", want: servertest.RuleContentType, after: header(403, "Content-Type", "application/problem+json")},
		{name: "undeclared header value", want: servertest.RuleHeader, after: at(200, func(a *reply) {
			if isPending(a) {
				a.header.Set("Downlink-Pending-Reason", "lunch")
			}
		})},
		{name: "undeclared header", want: servertest.RuleHeader, after: header(200, "Downlink-Mood", "good")},
		{name: "time that is no RFC 3339", want: servertest.RuleHeader, after: at(200, func(a *reply) {
			if !isPending(a) {
				a.header.Set("Downlink-Expires", "Tue, 24 Nov 2026 12:00:00 GMT")
			}
		})},
		{name: "500 on odd input", want: servertest.RuleIdentifier, after: func(r *http.Request, a *reply) {
			if strings.Contains(r.URL.Path, "\x00") && a.status == 400 {
				a.status, a.body = 500, strings.Replace(a.body, "invalid_parameter", "internal", 1)
			}
		}},
		{name: "500 on an odd header", want: servertest.RulePrefer, before: func(w http.ResponseWriter, r *http.Request) bool {
			return strings.Contains(r.Header.Get("Prefer"), "\xff") && plain(w, 500)
		}},
		{name: "connection cut on odd input", want: servertest.RuleConnection, before: func(_ http.ResponseWriter, r *http.Request) bool {
			if len(r.URL.Path) > 400 {
				panic(http.ErrAbortHandler)
			}
			return false
		}},
		{name: "key not checked", want: servertest.RuleAuthentication, before: func(_ http.ResponseWriter, r *http.Request) bool {
			r.Header.Set("Authorization", d.Key)
			return false
		}},
		{name: "key not checked where there is one", want: servertest.RuleAuthentication, before: func(_ http.ResponseWriter, r *http.Request) bool {
			if r.Header.Get("Authorization") != "" {
				r.Header.Set("Authorization", d.Key)
			}
			return false
		}},
		{name: "only the beginning of the key is checked", want: servertest.RuleAuthentication, before: func(_ http.ResponseWriter, r *http.Request) bool {
			if k := r.Header.Get("Authorization"); strings.HasPrefix(k, d.Key) {
				r.Header.Set("Authorization", k[:len(d.Key)])
			}
			return false
		}},
		{name: "scheme in one case only", want: servertest.RuleAuthentication, before: func(_ http.ResponseWriter, r *http.Request) bool {
			if strings.HasPrefix(r.Header.Get("Authorization"), "bEARER") {
				r.Header.Del("Authorization")
			}
			return false
		}},
		{name: "401 without WWW-Authenticate", want: servertest.RuleAuthenticate, after: at(401, func(a *reply) { a.header.Del("WWW-Authenticate") })},
		{name: "parameters checked before the key", want: servertest.RuleAuthentication, after: func(r *http.Request, a *reply) {
			if strings.Contains(r.URL.Path, "/-/") {
				a.status, a.body = 400, strings.Replace(a.body, "unauthenticated", "invalid_parameter", 1)
				a.header.Del("WWW-Authenticate")
			}
		}},
		{name: "403 that differs in its message", want: servertest.RulePermission, after: func(r *http.Request, a *reply) {
			if foreign(r, a) {
				a.set("no such workflow or job", "no such job")
			}
		}},
		{name: "403 that differs in a space", want: servertest.RulePermission, after: func(r *http.Request, a *reply) {
			if foreign(r, a) {
				a.body = strings.TrimSpace(a.body)
			}
		}},
		{name: "403 that differs in a header", want: servertest.RulePermission, after: func(r *http.Request, a *reply) {
			if foreign(r, a) {
				a.header.Set("X-Cache", "hit")
			}
		}},
		{name: "envelope missing on 404", want: servertest.RuleEnvelope, after: at(404, func(a *reply) { a.body = `{"message":"Not Found"}` })},
		{name: "404 in plain text", want: servertest.RuleContentType, before: func(w http.ResponseWriter, r *http.Request) bool {
			return strings.HasSuffix(r.URL.Path, "/no-such-route") && plain(w, 404)
		}},
		{name: "404 for a method", want: servertest.RuleStatus, before: func(_ http.ResponseWriter, r *http.Request) bool {
			if r.Method == "BREW" {
				r.URL.Path, r.URL.RawPath = "/nowhere", ""
			}
			return false
		}},
		{name: "405 without Allow", want: servertest.RuleAllow, after: at(405, func(a *reply) { a.header.Del("Allow") })},
		{name: "405 that allows something else", want: servertest.RuleAllow, after: header(405, "Allow", "POST")},
		{name: "redirect of a slash", want: servertest.RuleStatus, before: func(w http.ResponseWriter, r *http.Request) bool {
			if strings.HasSuffix(r.URL.Path, "/download/") {
				w.Header().Set("X-Request-Id", "1")
				http.Redirect(w, r, strings.TrimSuffix(r.URL.Path, "/"), http.StatusPermanentRedirect)
				return true
			}
			return false
		}},
		{name: "Retry-After is not an integer", want: servertest.RuleRetryAfter, after: at(200, func(a *reply) {
			if isPending(a) {
				a.header.Set("Retry-After", "2.5")
			}
		})},
		{name: "Retry-After is a date", want: servertest.RuleRetryAfter, before: func(w http.ResponseWriter, _ *http.Request) bool {
			h := w.Header()
			h.Set("X-Request-Id", "1")
			h.Set("Content-Type", "application/json")
			h.Set("Retry-After", "Tue, 24 Nov 2026 12:00:00 GMT")
			w.WriteHeader(429)
			_, _ = io.WriteString(w, `{"error":{"code":"rate_limited","message":"slower","details":[]}}`)
			return true
		}},
		{name: "pending without Retry-After", want: servertest.RuleRetryAfter, after: at(200, func(a *reply) { a.header.Del("Retry-After") })},
		{name: "Retry-After where it is not declared", want: servertest.RuleHeader, after: header(403, "Retry-After", "1")},
		{name: "extra field", want: servertest.RuleBody, after: instead(200, `{`, `{"progress":1,`)},
		{name: "extra field of an error", want: servertest.RuleEnvelope, after: instead(403, `"code"`, `"trace":"x","code"`)},
		{name: "something after the JSON", want: servertest.RuleBody, after: at(200, func(a *reply) { a.body += "{}" })},
		{name: "code of another status", want: servertest.RuleEnvelope, after: instead(403, "permission_denied", "not_found")},
		{name: "lax pattern", want: servertest.RuleIdentifier, before: func(_ http.ResponseWriter, r *http.Request) bool {
			r.URL.Path = strings.Replace(r.URL.Path, ":", "_", 1)
			r.URL.RawPath = ""
			return false
		}},
		{name: "lax length", want: servertest.RuleIdentifier, before: func(_ http.ResponseWriter, r *http.Request) bool {
			r.URL.Path = strings.Replace(r.URL.Path, strings.Repeat("Z", 129), "Z", 1)
			return false
		}},
		{name: "strict length", want: servertest.RuleIdentifier, before: func(_ http.ResponseWriter, r *http.Request) bool {
			if p := strings.Repeat("Z", 128); strings.Contains(r.URL.Path, "/"+p+"/") {
				r.URL.Path = strings.Replace(r.URL.Path, p, p+"Z", 1)
			}
			return false
		}},
		{name: "detail without its field", want: servertest.RuleIdentifier, after: func(_ *http.Request, a *reply) {
			a.set(`"field":"job_id",`, "")
		}},
		{name: "415 for a body", want: servertest.RuleIgnored, before: func(w http.ResponseWriter, r *http.Request) bool {
			return r.Header.Get("Content-Type") == "text/csv" && plain(w, 415)
		}},
		{name: "400 for a body", want: servertest.RuleIgnored, after: func(r *http.Request, a *reply) {
			if r.ContentLength > 0 && a.status == 200 {
				a.status, a.body = 400, `{"error":{"code":"invalid_parameter","message":"not JSON","details":[]}}`
			}
		}},
		{name: "no X-Request-Id", want: servertest.RuleRequestID, after: at(404, func(a *reply) { a.header.Del("X-Request-Id") })},
		{name: "one X-Request-Id", want: servertest.RuleRequestID, after: func(_ *http.Request, a *reply) { a.header.Set("X-Request-Id", "1") }},
		{name: "preference beyond the cap", want: servertest.RulePrefer, after: func(r *http.Request, a *reply) {
			if a.header.Get("Preference-Applied") != "" {
				a.header.Set("Preference-Applied", "wait="+strings.TrimPrefix(r.Header.Get("Prefer"), "wait="))
			}
		}},
		{name: "ready without a URL", want: servertest.RuleState, after: at(200, func(a *reply) {
			a.body = regexp.MustCompile(`"signed_url":"[^"]*",`).ReplaceAllString(a.body, "")
		})},
		{name: "relative URL", want: servertest.RuleState, after: instead(200, `"signed_url":"http:`, `"signed_url":"`)},
		{name: "another id each time", want: servertest.RuleIdempotent, after: at(200, func(a *reply) {
			a.set(`"id":"`, `"id":"`+a.header.Get("X-Request-Id"))
		})},
		{name: "no ranges", want: servertest.RuleDownload, before: func(_ http.ResponseWriter, r *http.Request) bool {
			r.Header.Del("Range")
			return false
		}},
		{name: "weak ETag", want: servertest.RuleDownload, after: at(206, func(a *reply) { a.header.Set("ETag", "W/"+a.header.Get("ETag")) })},
	} {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			faulty := httptest.NewServer(f.wrap(d.Handler))
			defer faulty.Close()
			findings, err := servertest.Contract(t.Context(), faulty.URL, target)
			if err != nil {
				t.Fatal(err)
			}
			if !slices.ContainsFunc(findings, func(got servertest.Finding) bool { return got.Rule == f.want }) {
				t.Errorf("not found under %q; findings: %v", f.want, findings)
			}
			for _, got := range findings {
				d.Secrets.check(t, "a finding", got.String())
			}
		})
	}
}

// TestContractCannotRun: what is no server is an error or a finding, and shows
// no key.
func TestContractCannotRun(t *testing.T) {
	t.Parallel()
	gone := httptest.NewServer(http.NotFoundHandler())
	gone.Close()
	findings, err := servertest.Contract(t.Context(), gone.URL, servertest.Target{Key: "dl_x_secret", WorkflowID: "W1", JobID: "J1"})
	if err != nil || len(findings) == 0 || findings[0].Rule != servertest.RuleConnection {
		t.Errorf("findings %v, error %v, want no connection", findings, err)
	}
	for _, f := range findings {
		if bytes.Contains([]byte(f.String()), []byte("secret")) {
			t.Error("a finding shows the key")
		}
	}
}

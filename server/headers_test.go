package server_test

import (
	"net/http"
	"strings"
	"testing"

	"github.com/downlink-go/downlink/server"
)

func TestSecurityHeaders(t *testing.T) {
	t.Parallel()
	for name, d := range map[string]*deployment{"HTTP": deploy(t), "HTTPS": deployTLS(t, true)} {
		d.Write(smallJob)
		path, _ := d.ready("W1", "J1")
		for what, a := range map[string]answer{
			"an answer":     d.put("W1", "J1"),
			"a package":     d.get(path),
			"a range of it": d.get(path, "Range", "bytes=0-9"),
			"no such route": d.do(http.MethodGet, "/nowhere", nil),
			"a bad method":  d.do(http.MethodPost, path, nil),
			"no key":        d.do(http.MethodPut, apiPath("W1", "J1"), nil),
			"a bad range":   d.get(path, "Range", "bytes=9999999-"),
			"a large header": d.do(http.MethodPut, apiPath("W1", "J1"), http.Header{
				"Authorization": {d.Key}, "X-Large": {strings.Repeat("x", 17<<10)}}),
		} {
			for header, want := range map[string]string{
				"X-Content-Type-Options":    "nosniff",
				"Referrer-Policy":           "no-referrer",
				"Content-Security-Policy":   "default-src 'none'; frame-ancestors 'none'",
				"Strict-Transport-Security": map[string]string{"HTTPS": "max-age=31536000"}[name],
			} {
				if got := a.Header.Values(header); strings.Join(got, "|") != want {
					t.Errorf("%s, %s: %s %q, want %q", name, what, header, got, want)
				}
			}
		}
	}
}

// TestMethodNotAllowed: OPTIONS is no method of a route either.
func TestMethodNotAllowed(t *testing.T) {
	t.Parallel()
	d := deploy(t)
	d.Write(smallJob)
	path, _ := d.ready("W1", "J1")
	for _, method := range []string{http.MethodOptions, http.MethodPost, http.MethodDelete} {
		for route, allow := range map[string]string{apiPath("W1", "J1"): "PUT", path: "GET, HEAD"} {
			a := d.do(method, route, http.Header{"Origin": {"https://maps.example.com"}, "Access-Control-Request-Method": {"PUT"}})
			a.wantError(t, 405, "method_not_allowed")
			if got := a.Header.Get("Allow"); got != allow {
				t.Errorf("%s: Allow %q, want %q", method, got, allow)
			}
		}
	}
}

func TestCORS(t *testing.T) {
	t.Parallel()
	const origin = "https://maps.example.com"
	none := deploy(t)
	some := deploy(t, func(c *server.Config) { c.CORSOrigins = []string{origin, "http://localhost:3000"} })
	all := deploy(t, func(c *server.Config) { c.CORSOrigins = []string{"*"} })
	send := func(d *deployment, method, path, origin string, header ...string) *http.Response {
		r, err := http.NewRequestWithContext(t.Context(), method, d.URL+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Authorization", d.Key)
		r.Header.Set("Origin", origin)
		for i := 0; i < len(header); i += 2 {
			r.Header.Set(header[i], header[i+1])
		}
		response, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(redacted(err))
		}
		response.Body.Close()
		return response
	}
	for _, tt := range []struct {
		name, origin string
		d            *deployment
		want         string // Access-Control-Allow-Origin
	}{
		{"off", origin, none, ""},
		{"allowed", origin, some, origin},
		{"allowed, with a port", "http://localhost:3000", some, "http://localhost:3000"},
		{"another scheme", "http://maps.example.com", some, ""},
		{"another host", "https://maps.example.com.evil.example", some, ""},
		{"null", "null", some, ""},
		{"everyone", "https://anybody.example", all, "*"},
	} {
		tt.d.Write(smallJob)
		path, _ := tt.d.ready("W1", "J1")
		for route, methods := range map[string][2]string{
			apiPath("W1", "J1"): {"PUT", "authorization,prefer"},
			path:                {"GET", "range,if-range"},
		} {
			preflight := send(tt.d, http.MethodOptions, route, tt.origin,
				"Access-Control-Request-Method", methods[0], "Access-Control-Request-Headers", methods[1])
			wantStatus := http.StatusMethodNotAllowed
			if tt.want != "" {
				wantStatus = http.StatusNoContent
			}
			h := preflight.Header
			if preflight.StatusCode != wantStatus || h.Get("Access-Control-Allow-Origin") != tt.want {
				t.Errorf("%s: preflight of %s answers %d for %q, want %d for %q", tt.name, methods[0],
					preflight.StatusCode, h.Get("Access-Control-Allow-Origin"), wantStatus, tt.want)
			}
			if tt.want != "" {
				if !listed(h.Get("Access-Control-Allow-Methods"), methods[0]) {
					t.Errorf("%s: allows the methods %q", tt.name, h.Get("Access-Control-Allow-Methods"))
				}
				for _, name := range strings.Split(methods[1], ",") {
					if !listed(h.Get("Access-Control-Allow-Headers"), name) {
						t.Errorf("%s: allows the headers %q", tt.name, h.Get("Access-Control-Allow-Headers"))
					}
				}
			}
			// The request itself works in any case: it is the browser that keeps
			// the answer from the page.
			real := send(tt.d, methods[0], route, tt.origin).Header
			if real.Get("Access-Control-Allow-Origin") != tt.want {
				t.Errorf("%s: %s allows %q, want %q", tt.name, methods[0], real.Get("Access-Control-Allow-Origin"), tt.want)
			}
			if tt.d == some && !listed(strings.Join(real.Values("Vary"), ","), "Origin") {
				t.Errorf("%s: Vary %q: caches would mix the origins", tt.name, real.Values("Vary"))
			}
			for _, name := range []string{"ETag", "Content-Range", "Accept-Ranges", "Content-Length", "X-Request-Id", "Retry-After"} {
				if tt.want != "" && !listed(real.Get("Access-Control-Expose-Headers"), name) {
					t.Errorf("%s: does not expose %s", tt.name, name)
				}
			}
			if real.Get("Access-Control-Allow-Credentials") != "" {
				t.Errorf("%s: allows credentials", tt.name)
			}
		}
		if r := send(tt.d, http.MethodOptions, "/nowhere", tt.origin, "Access-Control-Request-Method", "PUT"); r.StatusCode != http.StatusNotFound {
			t.Errorf("%s: preflight of no route answers %d", tt.name, r.StatusCode)
		}
	}
}

// listed reports whether a comma-separated header has the name, in any case.
func listed(header, name string) bool {
	for entry := range strings.SplitSeq(header, ",") {
		if strings.EqualFold(strings.TrimSpace(entry), name) {
			return true
		}
	}
	return false
}

package server

import (
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/labstack/echo/v4"
)

// secureHeaders puts on every answer what keeps browsers from doing more with it
// than they are asked to: URLs carry tokens, so they must not get into a
// Referer. A route with pages of its own sets another Content-Security-Policy.
func secureHeaders(next echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) error {
		h := c.Response().Header()
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
		if c.Request().TLS != nil {
			h.Set("Strict-Transport-Security", "max-age=31536000")
		}
		return next(c)
	}
}

// What scripts of another origin may send, and may see of an answer beyond what
// every browser shows them.
const (
	corsRequestHeaders = "Authorization, Prefer, Content-Type, Range, If-Range, If-Match, If-None-Match"
	corsAnswerHeaders  = "ETag, Content-Range, Accept-Ranges, Content-Length, Content-Disposition, " +
		"Downlink-Expires, Downlink-Package-Size, Downlink-Pending-Reason, Downlink-Progress, " +
		"Preference-Applied, X-Request-Id, Retry-After, RateLimit, RateLimit-Policy, WWW-Authenticate"
)

// allowOrigins lets scripts of these origins use the server (CORS, as the Fetch
// standard has it), and answers their preflight requests for every route with
// the methods of the route. No cookies are involved, so that no credentials are
// allowed beyond the API key that a script brings itself. OPTIONS is good for
// nothing else, and a method that no route has.
func allowOrigins(origins []string) echo.MiddlewareFunc {
	anyone := slices.Contains(origins, "*")
	return func(next echo.HandlerFunc) echo.HandlerFunc {
		return func(c echo.Context) error {
			r, h := c.Request(), c.Response().Header()
			allowed := originAllowed(origins, r.Header.Get("Origin"))
			if len(origins) > 0 && !anyone {
				h.Add("Vary", "Origin")
			}
			if allowed != "" {
				h.Set("Access-Control-Allow-Origin", allowed)
			}
			// The router has set this where the route does not have the method.
			methods, mismatch := c.Get(echo.ContextKeyHeaderAllow).(string)
			if mismatch {
				methods = strings.TrimPrefix(methods, http.MethodOptions+", ")
				c.Set(echo.ContextKeyHeaderAllow, methods)
			}
			switch {
			case mismatch && r.Method == http.MethodOptions && allowed != "" && r.Header.Get("Access-Control-Request-Method") != "":
				h.Set("Access-Control-Allow-Methods", methods)
				h.Set("Access-Control-Allow-Headers", corsRequestHeaders)
				h.Set("Access-Control-Max-Age", "7200")
				return c.NoContent(http.StatusNoContent)
			case mismatch && r.Method == http.MethodOptions:
				return echo.MethodNotAllowedHandler(c)
			case allowed != "":
				h.Set("Access-Control-Expose-Headers", corsAnswerHeaders)
			}
			return next(c)
		}
	}
}

// originAllowed returns what to tell a browser about its page's origin: nothing
// if the origin is not one of these.
func originAllowed(origins []string, origin string) string {
	switch {
	case origin == "":
		return ""
	case slices.Contains(origins, "*"):
		return "*"
	case slices.Contains(origins, strings.ToLower(origin)):
		return origin
	}
	return ""
}

// checkOrigins returns the origins in the form that browsers send.
func checkOrigins(origins []string) ([]string, error) {
	checked := make([]string, len(origins))
	for i, o := range origins {
		checked[i] = strings.ToLower(strings.TrimSpace(o))
		if checked[i] == "*" {
			continue
		}
		u, err := url.Parse(checked[i])
		if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.Scheme+"://"+u.Host != checked[i] {
			return nil, fmt.Errorf("CORS origin %q: want a scheme and a host without a path, such as https://maps.example.com, or *", o)
		}
	}
	return checked, nil
}

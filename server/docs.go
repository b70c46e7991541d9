package server

import (
	"bytes"
	"compress/gzip"
	_ "embed"
	"encoding/json"
	"fmt"
	"io"
	"mime"
	"net/http"
	"path"
	"strings"

	"github.com/labstack/echo/v4"
	"github.com/swaggest/swgui/v5/static"
	"go.yaml.in/yaml/v3"

	"github.com/downlink-go/downlink/api"
)

// The routes of the contract itself. They need no key: it is public.
const (
	yamlRoute = "/openapi.yaml"
	jsonRoute = "/openapi.json"
	docsRoute = "/docs"
)

// The page is Swagger UI. Its paths are relative, so that a proxy may serve it
// below another path.
var (
	//go:embed docs/index.html
	docsPage []byte
	//go:embed docs/docs.js
	docsScript []byte
)

// docsPolicy lets the page run what comes from its server, and talk to that.
// Swagger UI sets styles on elements and draws icons from data URLs.
const docsPolicy = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; " +
	"connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

// addDocs adds routes for the contract, and a page that shows it and can make
// calls. All of the page comes from this server.
func addDocs(e *echo.Echo) error {
	var document any
	if err := yaml.Unmarshal(api.OpenAPI, &document); err != nil {
		return fmt.Errorf("openapi.yaml: %w", err)
	}
	asJSON, err := json.MarshalIndent(document, "", "  ")
	if err != nil {
		return fmt.Errorf("openapi.yaml: %w", err)
	}
	serve := func(route string, handle echo.HandlerFunc) {
		e.GET(route, handle)
		e.HEAD(route, handle)
	}
	blob := func(route, mediaType string, content []byte) {
		serve(route, func(c echo.Context) error { return c.Blob(http.StatusOK, mediaType, content) })
	}
	blob(yamlRoute, "application/yaml", api.OpenAPI)
	blob(jsonRoute, "application/json", asJSON)
	blob(docsRoute+"/docs.js", "text/javascript; charset=utf-8", docsScript)
	serve(docsRoute, func(c echo.Context) error {
		c.Response().Header().Set("Content-Security-Policy", docsPolicy)
		return c.HTMLBlob(http.StatusOK, docsPage)
	})
	serve(docsRoute+"/", func(c echo.Context) error { return c.Redirect(http.StatusPermanentRedirect, "../docs") })
	for _, name := range []string{"swagger-ui.css.gz", "swagger-ui-bundle.js.gz", "favicon-32x32.png"} {
		content, err := static.FS.ReadFile(name)
		if err != nil {
			return fmt.Errorf("swagger UI: %w", err)
		}
		route, compressed := strings.CutSuffix(docsRoute+"/"+name, ".gz")
		mediaType := mime.TypeByExtension(path.Ext(route))
		if compressed {
			serve(route, func(c echo.Context) error { return sendGzip(c, mediaType, content) })
		} else {
			blob(route, mediaType, content)
		}
	}
	return nil
}

// sendGzip sends what is kept compressed, unpacked to the few that want it so.
func sendGzip(c echo.Context, mediaType string, content []byte) error {
	h := c.Response().Header()
	h.Add("Vary", "Accept-Encoding")
	if strings.Contains(c.Request().Header.Get("Accept-Encoding"), "gzip") {
		h.Set("Content-Encoding", "gzip")
		return c.Blob(http.StatusOK, mediaType, content)
	}
	z, err := gzip.NewReader(bytes.NewReader(content))
	if err != nil {
		return fmt.Errorf("swagger UI: %w", err)
	}
	plain, err := io.ReadAll(z)
	if err != nil {
		return fmt.Errorf("swagger UI: %w", err)
	}
	return c.Blob(http.StatusOK, mediaType, plain)
}

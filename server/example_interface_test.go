package server_test

import (
	"archive/zip"
	"bytes"
	"context"
	"crypto/rand"
	"crypto/subtle"
	"fmt"
	"log"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"time"

	"github.com/labstack/echo/v4"

	"github.com/downlink-go/downlink/gen/apiserver"
	"github.com/downlink-go/downlink/gen/apitypes"
	"github.com/downlink-go/downlink/server/servertest"
)

// backend is a whole server of the API with nothing of Downlink but the generated
// interface. It has one key and one job, whose package is built in memory.
type backend struct {
	key      string
	url      string
	packages map[[2]string][]byte // by workflow and job
}

var _ apiserver.StrictServerInterface = (*backend)(nil)

// problem is an error with its answer.
type problem struct {
	status  int
	code    apitypes.ErrorCode
	message string
	field   string
}

func (p *problem) Error() string { return p.message }

var identifier = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._~-]{0,127}$`)

// DownloadJob implements the one operation. The generated code decodes the
// request and encodes the answer; it does not check patterns.
func (b *backend) DownloadJob(ctx context.Context, r apiserver.DownloadJobRequestObject) (apiserver.DownloadJobResponseObject, error) {
	for field, id := range map[string]string{"workflow_id": r.WorkflowID, "job_id": r.JobID} {
		if !identifier.MatchString(id) {
			return nil, &problem{400, apitypes.ErrorCodeInvalidParameter, field + " is malformed", field}
		}
	}
	content, ok := b.packages[[2]string{r.WorkflowID, r.JobID}]
	if !ok { // one answer for no workflow, no job and no permission
		return nil, &problem{403, apitypes.ErrorCodePermissionDenied, "no such workflow or job, or no permission for it", ""}
	}
	size, expires := int64(len(content)), time.Now().Add(time.Hour).UTC().Format(time.RFC3339)
	return apiserver.DownloadJob200JSONResponse{DownloadJSONResponse: apiserver.DownloadJSONResponse{
		Body: apitypes.Download{
			ID: r.WorkflowID + "-" + r.JobID, Status: apitypes.DownloadStatusReady, WorkflowID: r.WorkflowID,
			SignedURL: b.url + "/signed/" + r.WorkflowID + "/" + r.JobID, // sign it, or have the object store do so
		},
		Headers: apiserver.DownloadResponseHeaders{
			XRequestID: ctx.Value(requestIDKey{}).(string), DownlinkExpires: &expires, DownlinkPackageSize: &size,
		},
	}}, nil
}

type requestIDKey struct{}

// number gives each request the ID that its answer has to carry, whatever
// becomes of it.
func number(next echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) error {
		id := rand.Text()
		c.Response().Header().Set("X-Request-Id", id)
		c.SetRequest(c.Request().WithContext(context.WithValue(c.Request().Context(), requestIDKey{}, id)))
		return next(c)
	}
}

// authenticate comes before the generated code, which would check parameters
// first.
func (b *backend) authenticate(next echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) error {
		key := c.Request().Header.Get("Authorization")
		if scheme, token, ok := strings.Cut(key, " "); ok && strings.EqualFold(scheme, "Bearer") {
			key = token
		}
		if subtle.ConstantTimeCompare([]byte(key), []byte(b.key)) != 1 {
			return &problem{401, apitypes.ErrorCodeUnauthenticated, "a valid API key is required", ""}
		}
		return next(c)
	}
}

// firstPrefer drops further Prefer lines: the generated code takes one.
func firstPrefer(next echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) error {
		if lines := c.Request().Header.Values("Prefer"); len(lines) > 1 {
			c.Request().Header.Set("Prefer", lines[0])
		}
		return next(c)
	}
}

// fail answers every error in the envelope, those of the router included.
func fail(err error, c echo.Context) {
	p := &problem{500, apitypes.ErrorCodeInternal, "internal error", ""}
	switch e := err.(type) { //nolint:errorlint // nothing wraps them here
	case *problem:
		p = e
	case *echo.HTTPError:
		switch e.Code {
		case http.StatusNotFound:
			p = &problem{404, apitypes.ErrorCodeNotFound, "no such route", ""}
		case http.StatusMethodNotAllowed: // Echo has set Allow
			p = &problem{405, apitypes.ErrorCodeMethodNotAllowed, "no such method", ""}
		case http.StatusBadRequest: // a parameter that could not be decoded
			p = &problem{400, apitypes.ErrorCodeInvalidParameter, "a parameter is malformed", ""}
		}
	}
	body := apitypes.ErrorResponse{Error: apitypes.Error{Code: p.code, Message: p.message, Details: []apitypes.ErrorDetail{}}}
	if p.field != "" {
		body.Error.Details = append(body.Error.Details, apitypes.ErrorDetail{Field: p.field, Message: "see the pattern"})
	}
	if p.status == http.StatusUnauthorized {
		c.Response().Header().Set("WWW-Authenticate", "Bearer")
	}
	if c.Request().Method == http.MethodHead {
		_ = c.NoContent(p.status)
		return
	}
	_ = c.JSON(p.status, body)
}

// signed serves a package, ranges included.
func (b *backend) signed(c echo.Context) error {
	content, ok := b.packages[[2]string{c.Param("workflow"), c.Param("job")}]
	if !ok {
		return echo.ErrNotFound
	}
	c.Response().Header().Set("ETag", `"1"`) // of these bytes and no others
	http.ServeContent(c.Response(), c.Request(), "job.zip", time.Time{}, bytes.NewReader(content))
	return nil
}

// A backend of its own implements the generated interface. What the generated
// code leaves to it are the patterns of parameters, authentication, the envelope
// of errors and request IDs; the contract suite tells whether all of that is
// right.
func Example_interface() {
	var content bytes.Buffer
	z := zip.NewWriter(&content)
	f, err := z.Create("outputs/a.txt")
	if err != nil {
		log.Fatal(err)
	}
	if _, err := f.Write([]byte("alpha")); err != nil {
		log.Fatal(err)
	}
	if err := z.Close(); err != nil {
		log.Fatal(err)
	}
	b := &backend{key: "secret-key", packages: map[[2]string][]byte{{"W1", "J1"}: content.Bytes()}}

	e := echo.New()
	e.HTTPErrorHandler = fail
	e.Use(number)
	apiserver.RegisterHandlersWithOptions(e, apiserver.NewStrictHandler(b, nil), apiserver.RegisterHandlersOptions{
		OperationMiddlewares: map[string][]echo.MiddlewareFunc{"downloadJob": {b.authenticate, firstPrefer}},
	})
	e.GET("/signed/:workflow/:job", b.signed)
	e.HEAD("/signed/:workflow/:job", b.signed)
	hs := httptest.NewServer(e)
	defer hs.Close()
	b.url = hs.URL

	findings, err := servertest.Contract(context.Background(), hs.URL, servertest.Target{
		Key: "secret-key", WorkflowID: "W1", JobID: "J1",
	})
	if err != nil {
		log.Fatal(err)
	}
	for _, f := range findings {
		fmt.Println(f)
	}
	fmt.Println(len(findings), "findings")
	// Output: 0 findings
}

package server

import (
	"errors"
	"strings"

	"github.com/labstack/echo/v4"

	"github.com/downlink-go/downlink/server/internal/catalog"
	"github.com/downlink-go/downlink/server/internal/download"
)

// authenticate lets a request through that carries a valid API key, and notes
// whose it is. It runs before the parameters are looked at, so that strangers
// learn nothing.
func (s *Server) authenticate(next echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) error {
		key, ok := presentedKey(c.Request().Header.Values("Authorization"))
		if !ok {
			return errKeyMissing
		}
		ctx := c.Request().Context()
		var identity catalog.Identity
		if err := s.failures.guard(c, key, func() (err error) {
			identity, err = s.keys.Authenticate(ctx, catalog.APIKey(key))
			return err
		}); err != nil {
			return err
		}
		info := requestInfo(ctx)
		info.organizationID, info.keyID = identity.OrganizationID, identity.KeyID
		return next(c)
	}
}

var errKeyMissing = &download.Error{
	Code:    download.Unauthenticated,
	Message: "an API key is required in the Authorization header",
}

func isUnauthenticated(err error) bool {
	e, ok := errors.AsType[*download.Error](err)
	return ok && e.Code == download.Unauthenticated
}

// presentedKey takes the API key from the values of Authorization: the key
// itself, or the key as a bearer token.
func presentedKey(values []string) (string, bool) {
	if len(values) != 1 {
		return "", false
	}
	key := strings.TrimSpace(values[0])
	if scheme, token, ok := strings.Cut(key, " "); ok {
		if !strings.EqualFold(scheme, "Bearer") {
			return "", false
		}
		key = strings.TrimSpace(token)
	}
	return key, key != ""
}

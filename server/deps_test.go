package server_test

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/downlink-go/downlink"

// dependencies returns the packages that a package is built from.
func dependencies(t *testing.T, pkg string) []string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "go", "list", "-deps", module+"/"+pkg).Output()
	if err != nil {
		t.Fatalf("go list %s: %v", pkg, err)
	}
	return strings.Fields(string(out))
}

// TestImportsPointDownwards guards the boundaries that the layers rest on.
func TestImportsPointDownwards(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		pkg    string
		denied []string // packages, or everything below where there is a slash at the end
		reason string
	}{
		{"server/internal/vzip", []string{module + "/gen/", module + "/client/", "net/http", "golang.org/", "github.com/google/"},
			"the format stands on the standard library alone"},
		{"server/internal/download", []string{module + "/gen/", module + "/server/internal/catalog", module + "/server/internal/packager",
			"net/http", "database/sql", "gocloud.dev/", "github.com/aws/", "github.com/riverqueue/", "github.com/labstack/"},
			"what a download is does not depend on how it is stored, queued or served"},
		{"server/internal/catalog", []string{module + "/gen/", "github.com/riverqueue/", "github.com/labstack/", "gocloud.dev/", "github.com/aws/"},
			"state knows no queue, no HTTP and no store"},
		{"server/internal/packager", []string{module + "/gen/", "github.com/labstack/", "gocloud.dev/", "github.com/aws/"},
			"work knows no HTTP and no store"},
		{"server", []string{module + "/client/"}, "the two sides meet in tests alone"},
	} {
		for _, dep := range dependencies(t, tt.pkg) {
			if slices.ContainsFunc(tt.denied, func(d string) bool {
				return dep == d || strings.HasSuffix(d, "/") && strings.HasPrefix(dep, d)
			}) {
				t.Errorf("%s depends on %s: %s", tt.pkg, dep, tt.reason)
			}
		}
	}
}

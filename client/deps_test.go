package client_test

import (
	"os/exec"
	"strings"
	"testing"
)

const module = "github.com/downlink-go/downlink"

// listed returns what go list says of packages.
func listed(t *testing.T, args ...string) []string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "go", append([]string{"list"}, args...)...).Output()
	if err != nil {
		t.Fatalf("go list %s: %v", strings.Join(args, " "), err)
	}
	return strings.Fields(string(out))
}

// dependencies returns the packages outside of the standard library that others
// are built from.
func dependencies(t *testing.T, packages ...string) []string {
	t.Helper()
	return listed(t, append([]string{"-deps", "-f", "{{if not .Standard}}{{.ImportPath}}{{end}}"}, packages...)...)
}

// TestDependencies guards what a consumer of the package gets along with it.
func TestDependencies(t *testing.T) {
	t.Parallel()
	allowed := map[string]string{
		module + "/client":                      "the package itself",
		module + "/client/internal/transfer":    "fetches",
		module + "/gen/apiclient":               "builds the request, as the contract has it",
		module + "/gen/apitypes":                "the types of the contract",
		"github.com/oapi-codegen/runtime":       "what the generated client puts parameters into a URL with",
		"github.com/oapi-codegen/runtime/types": "belongs to it",
		"github.com/google/uuid":                "belongs to it",
		"github.com/apapsch/go-jsonmerge/v2":    "belongs to it",
		"github.com/bmatcuk/doublestar/v4":      "matches the ** of WithInclude",
	}
	for _, dep := range dependencies(t, module+"/client") {
		if _, ok := allowed[dep]; !ok {
			t.Errorf("the client depends on %s, and so does everyone who uses it", dep)
		}
	}
}

func TestTransferStandsAlone(t *testing.T) {
	t.Parallel()
	for _, dep := range dependencies(t, module+"/client/internal/transfer") {
		if dep != module+"/client/internal/transfer" {
			t.Errorf("transfer depends on %s", dep)
		}
	}
}

// TestTestsKnowNoServer: what tests import is in the go.sum of every consumer.
func TestTestsKnowNoServer(t *testing.T) {
	t.Parallel()
	imports := listed(t, "-test", "-deps", "-f", "{{.ImportPath}}", module+"/client/...")
	for _, dep := range imports {
		for _, denied := range []string{module + "/server", "github.com/labstack/", "github.com/getkin/", "gocloud.dev/", "modernc.org/"} {
			if strings.HasPrefix(dep, denied) {
				t.Errorf("something below client, or a test of it, depends on %s", dep)
			}
		}
	}
}

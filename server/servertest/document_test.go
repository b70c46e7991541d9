package servertest

import (
	"os"
	"regexp"
	"slices"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"

	"github.com/downlink-go/downlink/api"
)

// TestDocument checks that openapi.yaml is valid, with its examples, and that
// nothing in it goes without a description or an example.
func TestDocument(t *testing.T) {
	t.Parallel()
	loader := openapi3.NewLoader()
	doc, err := loader.LoadFromData(api.OpenAPI)
	if err != nil {
		t.Fatal(err)
	}
	if err := doc.Validate(t.Context(), openapi3.EnableExamplesValidation()); err != nil {
		t.Fatal(err)
	}
	want := func(ok bool, what, name string) {
		t.Helper()
		if !ok {
			t.Errorf("no %s: %s", what, name)
		}
	}
	info := doc.Info
	want(info.Title != "" && info.Version != "" && info.Description != "", "title, version or description", "info")
	want(info.Contact != nil && info.Contact.Name != "" && info.Contact.URL != "", "name or URL", "contact")
	want(info.License != nil && info.License.URL != "", "URL", "license")
	for _, tag := range doc.Tags {
		want(tag.Description != "", "description", "tag "+tag.Name)
	}
	for path, item := range doc.Paths.Map() {
		for method, operation := range item.Operations() {
			name := method + " " + path
			want(operation.OperationID != "" && operation.Summary != "" && operation.Description != "" && len(operation.Tags) > 0,
				"operationId, summary, description or tag", name)
			for status := range codes {
				want(operation.Responses.Status(status) != nil, "answer for a status that has codes", name)
			}
		}
	}
	for name, p := range doc.Components.Parameters {
		want(p.Value.Description != "" && p.Value.Example != nil, "description or example", "parameter "+name)
	}
	for name, h := range doc.Components.Headers {
		want(h.Value.Description != "" && h.Value.Example != nil, "description or example", "header "+name)
	}
	for name, s := range doc.Components.SecuritySchemes {
		want(s.Value.Description != "", "description", "security scheme "+name)
	}
	for name, r := range doc.Components.Responses {
		want(r.Value.Description != nil && *r.Value.Description != "", "description", "response "+name)
		for header, h := range r.Value.Headers {
			want(h.Value.Description != "" && h.Value.Example != nil, "description or example", "header "+header+" of "+name)
		}
		want(r.Value.Headers["X-Request-Id"] != nil, "X-Request-Id", "response "+name)
		content := r.Value.Content["application/json"]
		want(content != nil && len(content.Examples) > 0, "JSON with an example", "response "+name)
		for example, e := range content.Examples {
			want(e.Value.Summary != "" || len(content.Examples) == 1, "summary", "example "+example)
		}
	}
	for name, s := range doc.Components.Schemas {
		want(s.Value.Description != "", "description", "schema "+name)
		for property, p := range s.Value.Properties {
			want(p.Value.Description != "", "description", "property "+property+" of "+name)
		}
	}
}

// TestDocumentChanges: the version that openapi.yaml has is the newest in its list
// of changes.
func TestDocumentChanges(t *testing.T) {
	t.Parallel()
	doc, err := openapi3.NewLoader().LoadFromData(api.OpenAPI)
	if err != nil {
		t.Fatal(err)
	}
	changes, err := os.ReadFile("../../api/CHANGELOG.md")
	if err != nil {
		t.Fatal(err)
	}
	newest := regexp.MustCompile(`(?m)^## (\S+)`).FindSubmatch(changes)
	if newest == nil || string(newest[1]) != doc.Info.Version {
		t.Errorf("the newest version in api/CHANGELOG.md is %q, that of openapi.yaml %q", newest, doc.Info.Version)
	}
}

// TestDocumentParameters: the suite makes values for each parameter that there is.
func TestDocumentParameters(t *testing.T) {
	t.Parallel()
	for name := range contract().schemas {
		if !slices.Contains([]string{"workflow_id", "job_id", "Prefer"}, name) {
			t.Errorf("the suite has no values for the parameter %s", name)
		}
	}
}

// TestDocumentBoundaries: the values for the path parameters are on both sides
// of each boundary of their schema.
func TestDocumentBoundaries(t *testing.T) {
	t.Parallel()
	for _, parameter := range []string{"workflow_id", "job_id"} {
		schema := contract().schemas[parameter]
		seen := map[int]bool{}
		valid, invalid := 0, 0
		for _, v := range identifiers(schema) {
			seen[len(v.escaped)] = true
			if v.valid {
				valid++
			} else {
				invalid++
			}
		}
		for _, length := range []int{int(schema.MinLength) - 1, int(schema.MinLength), int(*schema.MaxLength), int(*schema.MaxLength) + 1} {
			if !seen[length] {
				t.Errorf("%s: no value of the length %d", parameter, length)
			}
		}
		if valid < 30 || invalid < 50 {
			t.Errorf("%s: %d valid values and %d invalid ones", parameter, valid, invalid)
		}
	}
}

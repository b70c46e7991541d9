//go:build tools

// Package downlink pins the code generator, so that go generate needs nothing but the Go module.
package downlink

import _ "github.com/oapi-codegen/oapi-codegen/v2/cmd/oapi-codegen"

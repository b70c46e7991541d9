// Package downlink holds the directives that write gen/ from the contract in api/openapi.yaml.
// Run them with: go generate ./...
package downlink

//go:generate go run github.com/oapi-codegen/oapi-codegen/v2/cmd/oapi-codegen --config api/types.cfg.yaml api/openapi.yaml
//go:generate go run github.com/oapi-codegen/oapi-codegen/v2/cmd/oapi-codegen --config api/client.cfg.yaml api/openapi.yaml
//go:generate go run github.com/oapi-codegen/oapi-codegen/v2/cmd/oapi-codegen --config api/server.cfg.yaml api/openapi.yaml

// Package api publishes the contract: the OpenAPI document of the Download Job
// call and the JSON Schema of a job's manifest, as files of this folder and as
// bytes for programs that serve or check them.
package api

import _ "embed"

// OpenAPI is openapi.yaml, the OpenAPI 3.0.3 document that the client and the
// server are generated from. Callers must not change it.
//
//go:embed openapi.yaml
var OpenAPI []byte

// JobSchema is job.schema.json, the JSON Schema (draft 2020-12) of the optional
// job.json in a job's folder. Callers must not change it.
//
//go:embed job.schema.json
var JobSchema []byte

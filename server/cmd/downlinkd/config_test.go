package main

import (
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/spf13/pflag"
)

// TestConfig: every setting of serve is printed with where it comes from, and no
// secret is.
func TestConfig(t *testing.T) {
	t.Setenv("DOWNLINK_MAX_ENTRIES", "5")
	t.Setenv("DOWNLINK_MAX_BYTES", "6")
	t.Setenv("DOWNLINK_DATABASE", "postgres://user:sesame@db/downlink?sslmode=require&password=sesame")
	t.Setenv("DOWNLINK_SIGNING_KEYS", "c2VzYW1lc2VzYW1lc2VzYW1lc2VzYW1lc2VzYW1lc2U=")
	t.Setenv("DOWNLINK_CORS_ORIGIN", "https://maps.example.com,https://u:sesame@example.com")
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://u:sesame@localhost:4318")
	t.Setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-api-key=sesame")
	t.Setenv("OTEL_SERVICE_NAME", "packages")
	got := mustRun(t, "config", "--data-dir", "/state", "--max-bytes", "7", "--bucket", "s3://assets?region=eu-central-1&endpoint=https://u:sesame@s3.example.com")
	for _, want := range []string{
		`max-entries +5 +DOWNLINK_MAX_ENTRIES`,
		`max-bytes +7 +flag`,
		`ready-wait +1s +default`,
		`database +postgres://user:xxxxx@db/downlink\?password=xxxxx&sslmode=require +DOWNLINK_DATABASE`,
		`bucket +s3://assets\?endpoint=https://u:xxxxx@s3.example.com&region=eu-central-1 +flag`,
		`cors-origin +https://maps.example.com,https://u:xxxxx@example.com +DOWNLINK_CORS_ORIGIN`,
		`trusted-proxies +default`,
		`\(traces\) +http://u:xxxxx@localhost:4318 +OTEL_EXPORTER_OTLP_ENDPOINT`,
		`\(traces\) +not shown +OTEL_EXPORTER_OTLP_HEADERS`,
		`\(traces\) +packages +OTEL_SERVICE_NAME`,
		`\(signing keys\) +1, not shown +DOWNLINK_SIGNING_KEYS`,
	} {
		if !regexp.MustCompile(`(?m)^` + want + `$`).MatchString(got) {
			t.Errorf("missing %s in:\n%s", want, got)
		}
	}
	for _, secret := range []string{"sesame", "c2VzYW1l"} {
		if strings.Contains(got, secret) {
			t.Error("a secret is printed")
		}
	}
	newServeCommand().Flags().VisitAll(func(f *pflag.Flag) {
		if !regexp.MustCompile(`(?m)^` + f.Name + ` `).MatchString(got) {
			t.Errorf("no %s", f.Name)
		}
	})
	for setting, value := range map[string]string{
		"DATABASE":    "host=db user=user password=sesame",
		"BUCKET":      "s3:assets?secret=sesame",
		"PUBLIC_URL":  "https://user:12/sesame@host",
		"CORS_ORIGIN": "https://user:12?sesame@host",
		"TLS_KEY":     "user:sesame@host",
		"LISTEN":      "https://user:12#sesame@host",
	} {
		t.Setenv("DOWNLINK_"+setting, value)
		if strings.Contains(mustRun(t, "config"), "sesame") {
			t.Errorf("%s: a secret is printed of a value that is malformed", setting)
		}
	}
	t.Setenv("DOWNLINK_SIGNING_KEYS", "")
	t.Setenv("DOWNLINK_DATABASE", "")
	for _, want := range []string{`database +/state/downlink.db +default`, `signing-keys-file +/state/signing-keys +default`} {
		if got := filepath.ToSlash(mustRun(t, "config", "--data-dir", "/state")); !regexp.MustCompile(`(?m)^` + want + `$`).MatchString(got) {
			t.Errorf("missing %s in:\n%s", want, got)
		}
	}
	if _, stderr, code := command(t, "config", "--max-bytes", "many"); code != exitUsage || !strings.Contains(stderr, "max-bytes") {
		t.Errorf("a malformed flag: exit code %d: %s", code, stderr)
	}
}

package main

import (
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
	got := mustRun(t, "config", "--max-bytes", "7", "--bucket", "s3://assets?region=eu-central-1&endpoint=https://u:sesame@s3.example.com")
	for _, want := range []string{
		`max-entries +5 +DOWNLINK_MAX_ENTRIES`,
		`max-bytes +7 +flag`,
		`ready-wait +1s +default`,
		`database +postgres://user:xxxxx@db/downlink\?password=xxxxx&sslmode=require +DOWNLINK_DATABASE`,
		`bucket +s3://assets\?\S+region=eu-central-1 +flag`,
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
	if _, stderr, code := command(t, "config", "--max-bytes", "many"); code != exitUsage || !strings.Contains(stderr, "max-bytes") {
		t.Errorf("a malformed flag: exit code %d: %s", code, stderr)
	}
}

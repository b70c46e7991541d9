package main

import (
	"cmp"
	"fmt"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/downlink-go/downlink/server"
)

// newConfigCommand returns the command that has the flags of serve, whatever
// they are, and prints them.
func newConfigCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "config",
		Short: "Print the configuration that serve would run with, without secrets",
		Long: `Prints every setting of serve with its value and where that comes from: a flag,
the environment or the default. It takes the flags of serve. OpenTelemetry's
variables (OTEL_...) follow, where there are any. Passwords, signing keys and the
headers of a collector are not printed.`,
		Args: cobra.NoArgs,
	}
	cmd.Flags().AddFlagSet(newServeCommand().Flags())
	given := map[string]bool{}
	cmd.PersistentPreRunE = func(cmd *cobra.Command, _ []string) error {
		cmd.Flags().Visit(func(f *pflag.Flag) { given[f.Name] = true })
		return fromEnvironment(cmd.Flags())
	}
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		keys, err := server.ParseSigningKeys(os.Getenv(signingKeysVariable))
		if err != nil {
			return fmt.Errorf("%s: %w", signingKeysVariable, err)
		}
		dataDir := cmd.Flags().Lookup("data-dir").Value.String()
		inDataDir := map[string]string{"database": filepath.Join(dataDir, "downlink.db")}
		if len(keys) == 0 {
			inDataDir["signing-keys-file"] = filepath.Join(dataDir, "signing-keys")
		}
		t := newTable(cmd.OutOrStdout(), "SETTING", "VALUE", "FROM")
		cmd.Flags().VisitAll(func(f *pflag.Flag) {
			from := "default"
			switch {
			case f.Name == "help":
				return
			case given[f.Name]:
				from = "flag"
			case f.Changed:
				from = variable(f.Name)
			}
			t.row(f.Name, cmp.Or(settingWithoutSecrets(f.Value), inDataDir[f.Name]), from)
		})
		if len(keys) > 0 {
			t.row("(signing keys)", fmt.Sprintf("%d, not shown", len(keys)), signingKeysVariable)
		}
		for _, v := range slices.Sorted(slices.Values(os.Environ())) {
			name, value, _ := strings.Cut(v, "=")
			switch {
			case !strings.HasPrefix(name, "OTEL_") || value == "":
			case strings.HasSuffix(name, "_HEADERS"):
				t.row("(traces)", "not shown", name)
			default:
				t.row("(traces)", withoutSecrets(value), name)
			}
		}
		return t.flush()
	}
	return cmd
}

// settingWithoutSecrets returns the value of a flag as one text.
func settingWithoutSecrets(v pflag.Value) string {
	list, ok := v.(pflag.SliceValue)
	if !ok {
		return withoutSecrets(v.String())
	}
	values := list.GetSlice()
	for i := range values {
		values[i] = withoutSecrets(values[i])
	}
	return strings.Join(values, ",")
}

// notShown is for what looks as if it held a secret and cannot be taken apart.
const notShown = "(not shown: malformed)"

// secretLike matches what is not a URL, but may be meant to be one, or what other
// programs take: user:password@host, and host=... password=....
var secretLike = regexp.MustCompile(`(?i)\?|:.*@|(password|secret|token|key)\s*=`)

// withoutSecrets returns the value of a setting with the password out of it, if
// it is a URL, and whatever its parameters may hold but for those of a bucket
// that are known to be harmless.
func withoutSecrets(value string) string {
	if !strings.Contains(value, "://") {
		if secretLike.MatchString(value) {
			return notShown
		}
		return value
	}
	u, err := url.Parse(value)
	// A password with a / or # that is not encoded ends what is parsed as the host.
	if err != nil || u.User == nil && u.Host != "" && strings.Contains(u.Path+u.Fragment, "@") {
		return notShown
	}
	var parameters []string
	q := u.Query()
	for _, name := range slices.Sorted(maps.Keys(q)) {
		if strings.Contains(name, "@") { // the same with a ?
			return notShown
		}
		for _, v := range q[name] {
			switch name {
			case "region", "prefix", "use_path_style", "sslmode", "profile", "anonymous", "dualstack", "fips", "rate_limiter_capacity":
			case "endpoint", "public_endpoint":
				v = withoutSecrets(v)
			default:
				v = "xxxxx"
			}
			parameters = append(parameters, name+"="+v)
		}
	}
	// As people write it: url.Values would encode the address of an endpoint.
	u.RawQuery = strings.Join(parameters, "&")
	return u.Redacted()
}

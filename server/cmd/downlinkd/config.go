package main

import (
	"fmt"
	"net/url"
	"os"
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
the environment or the default. It takes the flags of serve. Passwords and
signing keys are not printed.`,
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
			t.row(f.Name, withoutSecrets(f.Value.String()), from)
		})
		if len(keys) > 0 {
			t.row("(signing keys)", fmt.Sprintf("%d, not shown", len(keys)), signingKeysVariable)
		}
		return t.flush()
	}
	return cmd
}

// withoutSecrets returns the value of a setting with the password out of it, if
// it is a URL, and whatever its parameters may hold but for those of a bucket
// that are known to be harmless.
func withoutSecrets(value string) string {
	if !strings.Contains(value, "://") {
		return value
	}
	u, err := url.Parse(value)
	if err != nil {
		return "(not a URL)"
	}
	q := u.Query()
	for name, values := range q {
		switch name {
		case "region", "prefix", "use_path_style", "sslmode", "profile", "anonymous", "dualstack", "fips", "rate_limiter_capacity":
		case "endpoint", "public_endpoint":
			for i := range values {
				values[i] = withoutSecrets(values[i])
			}
		default:
			q.Set(name, "xxxxx")
		}
	}
	u.RawQuery = q.Encode()
	return u.Redacted()
}

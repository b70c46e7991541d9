// Command downlinkd serves the Download Job call: it packages the assets of a
// satellite-imagery job as one ZIP that is streamed and never built. It also
// administers who may call it. Run downlinkd --help.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the process
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// The exit codes, as the help text has them.
const (
	exitOK      = 0
	exitFailure = 1
	exitUsage   = 2
)

// failure is what went wrong while a command did its work. Any other error is
// one of usage.
type failure struct{ err error }

func (f *failure) Error() string { return f.err.Error() }
func (f *failure) Unwrap() error { return f.err }

// run executes one command and returns the exit code. Results go to stdout,
// everything else to stderr.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	root := newRootCommand()
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return exitOK
	}
	fmt.Fprintln(stderr, "downlinkd:", err)
	if _, ok := errors.AsType[*failure](err); ok {
		return exitFailure
	}
	fmt.Fprintf(stderr, "Run '%s --help' for usage.\n", cmd.CommandPath())
	return exitUsage
}

func newRootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "downlinkd",
		Short: "Serve the assets of satellite-imagery jobs as ZIP packages that are never built",
		Long: `downlinkd answers PUT /v0/workflows/{workflow_id}/jobs/{job_id}/download with a
signed URL of one ZIP that holds the job's input and output assets. The ZIP is
never built: it is laid out in milliseconds and streamed from the assets.

A first server, for the jobs in /data/<workflow>/<job>/{inputs,outputs}/:

  downlinkd serve --bucket file:///data
  downlinkd org create acme
  downlinkd key create --org acme
  downlinkd grant acme W1

Every flag can also be given in the environment, as DOWNLINK_ and its name in
capitals with underscores: --data-dir is DOWNLINK_DATA_DIR. A flag wins.

Exit codes: 0 success, 1 failure, 2 wrong usage.`,
		SilenceUsage:      true,
		SilenceErrors:     true,
		Args:              cobra.NoArgs,
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error { return fromEnvironment(cmd.Flags()) },
		RunE:              func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.AddCommand(
		newServeCommand(),
		newConfigCommand(),
		newMockCommand(),
		newOrgCommand(),
		newKeyCommand(),
		newGrantCommand(),
		newRevokeGrantCommand(),
		newGrantsCommand(),
		newSigningKeyCommand(),
		newWarmCommand(),
		newPackagesCommand(),
		newMigrateCommand(),
		newHealthCommand(),
		newManCommand(),
		newVersionCommand(),
	)
	return root
}

// newGroup returns a command that only holds others.
func newGroup(use, short string, commands ...*cobra.Command) *cobra.Command {
	group := &cobra.Command{
		Use:   use,
		Short: short,
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var names []string
			for _, c := range cmd.Commands() {
				names = append(names, c.Name())
			}
			return fmt.Errorf("%s: name one of its commands: %s", use, strings.Join(names, ", "))
		},
	}
	group.AddCommand(commands...)
	return group
}

// variable is the environment variable of a flag.
func variable(flag string) string {
	return "DOWNLINK_" + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

// fromEnvironment sets the flags that were not given from their variables.
func fromEnvironment(flags *pflag.FlagSet) error {
	var errs []error
	flags.VisitAll(func(f *pflag.Flag) {
		name := variable(f.Name)
		value, ok := os.LookupEnv(name)
		if f.Changed || !ok || value == "" || f.Name == "help" {
			return
		}
		if err := flags.Set(f.Name, value); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", name, err))
		}
	})
	return errors.Join(errs...)
}

// completeFlag has shells complete the values of a flag that takes one of a few.
func completeFlag(cmd *cobra.Command, flag string, values ...string) {
	err := cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp))
	if err != nil {
		panic(err) // there is no such flag
	}
}

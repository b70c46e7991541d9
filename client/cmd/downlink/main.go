// Command downlink downloads the packages of satellite-imagery jobs. Run
// downlink --help.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/downlink-go/downlink/client"
)

func main() {
	if os.Getenv("GOGC") == "" {
		// What is alive is small, but for packages of very many files: collecting
		// more often costs little and keeps the memory of those in bounds too.
		debug.SetGCPercent(40)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the process
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// The exit codes, as the help text has them.
const (
	exitOK           = 0
	exitFailure      = 1
	exitUsage        = 2
	exitAuth         = 3
	exitPermission   = 4
	exitNotReady     = 5
	exitVerification = 6
	exitNetwork      = 7
	exitInterrupted  = 130
)

const rootHelp = `downlink downloads the assets of satellite-imagery jobs: one ZIP for each job,
verified file by file, resumed where it stopped.

  export DOWNLINK_API_KEY=...
  downlink get W1 J1                     the whole package, as W1_J1.zip
  downlink get W1 J1 --extract results   its files instead
  downlink ls W1 J1                      what is in it, without downloading it

The API key comes from DOWNLINK_API_KEY, or from the file that
DOWNLINK_API_KEY_FILE or --api-key-file names; never from an argument, which
other users of the machine could see. The API is that of --url or DOWNLINK_URL,
by default ` + client.DefaultBaseURL + `.

Results go to standard output, everything else to standard error. With --json
both are JSON, a line for each event.

Exit codes:
    0  success
    1  another failure, such as a full disk
    2  wrong usage
    3  no valid API key
    4  no such workflow or job, or no permission for it
    5  the package was not ready in time
    6  verification failed: what came is not what was promised
    7  the network or the server failed
  130  interrupted; run the same command again to go on`

// app is one run of the command.
type app struct {
	stdout, stderr io.Writer

	url     string
	keyFile string
	json    bool
	quiet   bool

	wait, retryFor, stall time.Duration
}

// run executes one command line and returns the exit code.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	a := &app{stdout: stdout, stderr: stderr}
	root := a.command()
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	code := exitCode(ctx, err)
	if err != nil {
		a.report(err, code)
	}
	return code
}

// report tells what went wrong, once.
func (a *app) report(err error, code int) {
	if a.json {
		_ = json.NewEncoder(a.stderr).Encode(map[string]any{"event": "error", "error": err.Error(), "exit_code": code})
		return
	}
	fmt.Fprintln(a.stderr, "downlink:", err)
	if _, ok := errors.AsType[*client.FileExistsError](err); ok {
		fmt.Fprintln(a.stderr, "Give another name with --output, or replace it with --force.")
	}
	switch code {
	case exitUsage:
		fmt.Fprintln(a.stderr, "Run 'downlink --help' for usage.")
	case exitAuth:
		fmt.Fprintln(a.stderr, "Set DOWNLINK_API_KEY to a valid API key.")
	case exitInterrupted:
		fmt.Fprintln(a.stderr, "Run the same command again to go on.")
	}
}

// usageError is a command line that cannot be meant.
type usageError struct{ err error }

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

// failure is what went wrong while a command did its work. Any other error is
// one of cobra's, of usage.
type failure struct{ err error }

func (e *failure) Error() string { return e.err.Error() }
func (e *failure) Unwrap() error { return e.err }

// work returns a command's RunE whose errors are failures, unless they are of
// usage.
func work(f func(ctx context.Context, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		if err := f(cmd.Context(), args); err != nil {
			return &failure{err}
		}
		return nil
	}
}

func exitCode(ctx context.Context, err error) int {
	if err == nil {
		return exitOK
	}
	_, worked := errors.AsType[*failure](err)
	_, misused := errors.AsType[*usageError](err)
	_, wrongOption := errors.AsType[*client.OptionError](err)
	if !worked || misused || wrongOption {
		return exitUsage
	}
	if ctx.Err() != nil {
		return exitInterrupted
	}
	if _, ok := errors.AsType[*client.NotReadyError](err); ok {
		return exitNotReady
	}
	_, wrong := errors.AsType[*client.VerifyError](err)
	_, malformed := errors.AsType[*client.FormatError](err)
	_, problem := errors.AsType[client.Problem](err)
	if wrong || malformed || problem {
		return exitVerification
	}
	if e, ok := errors.AsType[*client.APIError](err); ok {
		switch {
		case e.StatusCode == http.StatusUnauthorized:
			return exitAuth
		case e.StatusCode == http.StatusForbidden:
			return exitPermission
		case e.StatusCode >= 500 || e.StatusCode == http.StatusTooManyRequests:
			return exitNetwork
		}
		return exitFailure
	}
	for _, network := range []error{client.ErrUnreachable, client.ErrTransfer, client.ErrChanged} {
		if errors.Is(err, network) {
			return exitNetwork
		}
	}
	return exitFailure
}

func (a *app) command() *cobra.Command {
	root := &cobra.Command{
		Use:           "downlink",
		Short:         "Download the assets of satellite-imagery jobs",
		Long:          rootHelp,
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          cobra.NoArgs,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.PersistentFlags().BoolVar(&a.json, "json", false, "write results and events as JSON lines")
	root.PersistentFlags().BoolVarP(&a.quiet, "quiet", "q", false, "no progress and no notes")
	root.AddCommand(a.getCommand(), a.lsCommand(), a.catCommand(), a.urlCommand(), a.verifyCommand(), a.manCommand(), a.versionCommand())
	return root
}

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			version, goVersion := "unknown", ""
			if b, ok := debug.ReadBuildInfo(); ok {
				version, goVersion = b.Main.Version, b.GoVersion
			}
			return a.result(map[string]string{"version": version, "go": goVersion}, "downlink "+version+" "+goVersion)
		},
	}
}

// result writes what a command was run for: v as JSON, or the text.
func (a *app) result(v any, text string) error {
	if a.json {
		return json.NewEncoder(a.stdout).Encode(v)
	}
	_, err := fmt.Fprintln(a.stdout, text)
	return err
}

// note tells people something, unless they want quiet.
func (a *app) note(format string, args ...any) {
	switch text := fmt.Sprintf(format, args...); {
	case a.quiet:
	case a.json:
		_ = json.NewEncoder(a.stderr).Encode(map[string]string{"event": "note", "note": text})
	default:
		fmt.Fprintln(a.stderr, text)
	}
}

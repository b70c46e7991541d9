package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"

	"github.com/spf13/cobra"

	"github.com/downlink-go/downlink/server"
)

func newMockCommand() *cobra.Command {
	var (
		config server.MockConfig
		listen string
	)
	cmd := &cobra.Command{
		Use:   "mock",
		Short: "Run a server of made-up jobs, with faults to test clients with",
		Long: `Runs a server until SIGINT or SIGTERM that needs no bucket, no database and no
organization: its jobs are made up, and it accepts any API key. Otherwise it
answers as downlinkd serve does, by the same code.

  downlinkd mock --job W1/J1=20x200MB --job W1/J2=1x5GB,3x20KB
  DOWNLINK_API_KEY=any downlink get --url http://localhost:8080 W1 J1

The bytes of an asset are always the same. They are made when they are read, so
that a job of any size is there at once. W/J=running is a job that does not end,
W/J=failed one that has failed.

Faults are those of a job, for every call:

  downlinkd mock --job W1/J1=3x1MB --fault W1/J1=pending:3,truncate:1MB

or, instead of those, of one call, by its header:

  curl -X PUT -H 'Authorization: any' -H '` + server.MockFaultHeader + `: truncate=1MB,slow=5MB' \
    http://localhost:8080/v0/workflows/W1/jobs/J1/download

They hold for the signed URL of the answer too; the next call has a URL that
begins anew. There are

` + server.MockFaults() + `
Of the first four those that are asked for together come one after the other:
429, 503, unknown-status, pending. They are counted for each job and each set of
faults. Calls that fail by themselves, such as for a failed job, have no faults.

N is in bytes, or with a unit: 20KB, 1MB, 5GB, 1MiB.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			config.Log = slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), nil))
			m, err := server.NewMock(config)
			if err != nil {
				return err
			}
			if err := serveMock(cmd.Context(), m, listen, cmd.OutOrStdout()); err != nil {
				return &failure{err}
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&listen, "listen", "localhost:8080", "address to listen on; port 0 takes a free one")
	f.StringArrayVar(&config.Jobs, "job", nil, "a job, WORKFLOW/JOB=COUNTxSIZE,... (repeatable; default W1/J1=3x1MB,20x20KB)")
	f.StringArrayVar(&config.Faults, "fault", nil, "faults of a job, WORKFLOW/JOB=FAULT:VALUE,... (repeatable, also for one job)")
	f.StringVar(&config.Key, "key", "", "the only API key to accept (default: any); not for a real key, as others can see it")
	f.DurationVar(&config.LinkLifetime, "link-lifetime", 0, "shortest life of a signed URL (default 1h)")
	return cmd
}

func serveMock(ctx context.Context, m *server.Mock, listen string, stdout io.Writer) error {
	var lc net.ListenConfig
	listener, err := lc.Listen(ctx, "tcp", listen)
	if err != nil {
		return fmt.Errorf("%w; choose another address with --listen", err)
	}
	fmt.Fprintf(stdout, "listening on http://%s\n", listener.Addr())
	return m.Serve(ctx, listener)
}

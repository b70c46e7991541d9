package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"github.com/downlink-go/downlink/server"
	"github.com/downlink-go/downlink/server/internal/catalog"
	"github.com/downlink-go/downlink/server/internal/download"
)

func newMigrateCommand() *cobra.Command {
	var dataDir, database string
	up := withCatalog(&cobra.Command{
		Use:   "up",
		Short: "Bring the schema of the database up to date",
		Long: `Brings the schema of the database up to date. A server does so by itself when it
starts, unless it is run with --skip-migrations. Any number may do so at once.`,
		Args: cobra.NoArgs,
	}, func(context.Context, *catalog.DB, []string, io.Writer) error { return nil })
	status := &cobra.Command{
		Use:   "status",
		Short: "List the steps of the schema and whether they were applied",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			db, queue, err := server.OpenDatabaseAsIs(cmd.Context(), dataDir, database)
			if err != nil {
				return &failure{err}
			}
			defer db.Close()
			steps, err := db.MigrationStatus(cmd.Context(), queue)
			if err != nil {
				return &failure{err}
			}
			t := newTable(cmd.OutOrStdout(), "STEP", "APPLIED")
			for _, s := range steps {
				applied := "no"
				if s.Applied {
					applied = "yes"
				}
				t.row(s.Name, applied)
			}
			return t.flush()
		},
	}
	stateFlags(status, &dataDir, &database)
	return newGroup("migrate", "The schema of the database", up, status)
}

func newPackagesCommand() *cobra.Command {
	var (
		filter catalog.PackageFilter
		state  string
	)
	list := withCatalog(&cobra.Command{
		Use:   "list",
		Short: "List packages, the newest first",
		Args:  cobra.NoArgs,
	}, func(ctx context.Context, db *catalog.DB, _ []string, stdout io.Writer) error {
		switch filter.State = download.State(state); filter.State {
		case "", download.Pending, download.Ready, download.Failed:
		default:
			return fmt.Errorf("--state %s: want pending, ready or failed", state)
		}
		packages, err := db.Packages(ctx, filter)
		if err != nil {
			return err
		}
		t := newTable(stdout, "ID", "WORKFLOW", "JOB", "STATE", "ENTRIES", "BYTES", "REQUESTED")
		for _, p := range packages {
			t.row(p.ID.String(), p.WorkflowID, p.JobID, describe(p), strconv.Itoa(p.Entries), strconv.FormatInt(p.Size, 10), date(p.Requested))
		}
		return t.flush()
	})
	f := list.Flags()
	f.StringVar(&filter.WorkflowID, "workflow", "", "only those of this workflow")
	f.StringVar(&filter.JobID, "job", "", "only those of this job")
	f.StringVar(&state, "state", "", "only those that are pending, ready or failed")
	completeFlag(list, "state", string(download.Pending), string(download.Ready), string(download.Failed))
	f.IntVar(&filter.Limit, "limit", 100, "how many at most")

	show := withCatalog(&cobra.Command{
		Use:   "show ID",
		Short: "Show a package and what is in it",
		Args:  cobra.ExactArgs(1),
	}, func(ctx context.Context, db *catalog.DB, args []string, stdout io.Writer) error {
		id, err := uuid.Parse(args[0])
		if err != nil {
			return fmt.Errorf("%q is not the ID of a package", args[0])
		}
		p, err := db.Package(ctx, id)
		if err != nil {
			return err
		}
		plan, err := db.Plan(ctx, id)
		if err != nil {
			return err
		}
		t := newTable(stdout)
		t.row("id", p.ID.String())
		t.row("workflow", p.WorkflowID)
		t.row("job", p.JobID)
		t.row("state", describe(p))
		t.row("bytes", strconv.FormatInt(p.Size, 10))
		t.row("digest", fmt.Sprintf("%x", p.Digest))
		t.row("created", date(p.Created))
		t.row("requested", date(p.Requested))
		if p.Failure != nil {
			t.row("failure", p.Failure.Error())
		}
		if err := t.flush(); err != nil {
			return err
		}
		fmt.Fprintln(stdout)
		t = newTable(stdout, "BYTES", "CRC32", "NAME", "OBJECT")
		for _, e := range plan.Entries {
			crc := "-"
			if e.Checksum != nil {
				crc = fmt.Sprintf("%08x", e.Checksum.CRC32)
			}
			t.row(strconv.FormatInt(e.Object.Size, 10), crc, e.Name, e.Object.Key)
		}
		return t.flush()
	})

	remove := withCatalog(&cobra.Command{
		Use:   "delete ID",
		Short: "Forget a package; it is planned again when somebody asks for it",
		Long: `Forgets a package. Signed URLs of it stop working, on a running server once it
has dropped the package from its memory. The next call plans it again, with the
same bytes.`,
		Args: cobra.ExactArgs(1),
	}, func(ctx context.Context, db *catalog.DB, args []string, _ io.Writer) error {
		id, err := uuid.Parse(args[0])
		if err != nil {
			return fmt.Errorf("%q is not the ID of a package", args[0])
		}
		return db.DeletePackage(ctx, id)
	})
	return newGroup("packages", "The packages that have been asked for", list, show, remove)
}

// describe is the state of a package with how far it is.
func describe(p download.Package) string {
	if p.State == download.Pending && p.BytesTotal > 0 {
		return fmt.Sprintf("%s %.0f%%", p.State, 100*float64(p.BytesDone)/float64(p.BytesTotal))
	}
	return string(p.State)
}

func newWarmCommand() *cobra.Command {
	var (
		config   server.Config
		workflow string
	)
	cmd := &cobra.Command{
		Use:   "warm",
		Short: "Find out all checksums ahead of time, so that every package is ready at once",
		Long: `Reads the assets of all jobs in the bucket whose checksums are not known yet, and
remembers them. Packages of these jobs are then ready as soon as they are asked
for. It may run beside the server; what was read is not read again.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			stdout, failed := cmd.OutOrStdout(), 0
			err := server.Warm(cmd.Context(), config, workflow, func(p server.WarmProgress) {
				name := fmt.Sprintf("[%d/%d] %s %s", p.Job, p.Jobs, p.WorkflowID, p.JobID)
				switch {
				case p.Finished && p.Err != nil:
					failed++
					fmt.Fprintf(stdout, "%s: %v\n", name, p.Err)
				case p.Finished:
					fmt.Fprintf(stdout, "%s: done\n", name)
				case p.Total > 0:
					fmt.Fprintf(stdout, "%s: %.0f%% of %d bytes\n", name, 100*float64(p.Done)/float64(p.Total), p.Total)
				}
			})
			if err == nil && failed > 0 {
				err = fmt.Errorf("%d jobs have no package yet", failed)
			}
			if err != nil && !errors.Is(err, context.Canceled) {
				return &failure{err}
			}
			if err != nil {
				return &failure{errors.New("interrupted; run it again to go on")}
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&config.Bucket, "bucket", "", "URL of the store of the assets, such as file:///data or s3://name (required)")
	f.StringVar(&workflow, "workflow", "", "only the jobs of this workflow")
	f.BoolVar(&config.SkipSHA256, "skip-sha256", false, "compute CRC-32 alone, which is faster")
	stateFlags(cmd, &config.DataDir, &config.Database)
	return cmd
}

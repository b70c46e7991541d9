package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime/debug"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/downlink-go/downlink/server"
	"github.com/downlink-go/downlink/server/internal/catalog"
)

// stateFlags adds the flags that say where the state is.
func stateFlags(cmd *cobra.Command, dataDir, database *string) {
	cmd.Flags().StringVar(dataDir, "data-dir", server.DefaultDataDir(), "folder for the server's own state")
	cmd.Flags().StringVar(database, "database", "", "postgres:// URL, or path of a SQLite file (default: downlink.db in the data directory)")
}

// withCatalog returns a command's RunE that opens the database, which may be in
// use by a running server, and hands it to f.
func withCatalog(cmd *cobra.Command, f func(ctx context.Context, db *catalog.DB, args []string, stdout io.Writer) error) *cobra.Command {
	var dataDir, database string
	stateFlags(cmd, &dataDir, &database)
	cmd.RunE = func(cmd *cobra.Command, args []string) (err error) {
		db, err := server.OpenDatabase(cmd.Context(), dataDir, database)
		if err != nil {
			return &failure{err}
		}
		defer func() {
			if closeErr := db.Close(); closeErr != nil && err == nil {
				err = &failure{closeErr}
			}
		}()
		if err := f(cmd.Context(), db, args, cmd.OutOrStdout()); err != nil {
			return &failure{err}
		}
		return nil
	}
	return cmd
}

func newOrgCommand() *cobra.Command {
	create := withCatalog(&cobra.Command{
		Use:   "create NAME",
		Short: "Add an organization",
		Args:  cobra.ExactArgs(1),
	}, func(ctx context.Context, db *catalog.DB, args []string, stdout io.Writer) error {
		o, err := db.CreateOrganization(ctx, args[0])
		if err != nil {
			return err
		}
		fmt.Fprintln(stdout, o.Name)
		return nil
	})
	list := withCatalog(&cobra.Command{
		Use:   "list",
		Short: "List the organizations",
		Args:  cobra.NoArgs,
	}, func(ctx context.Context, db *catalog.DB, _ []string, stdout io.Writer) error {
		organizations, err := db.Organizations(ctx)
		if err != nil {
			return err
		}
		t := newTable(stdout, "NAME", "CREATED")
		for _, o := range organizations {
			t.row(o.Name, date(o.Created))
		}
		return t.flush()
	})
	return newGroup("org", "Organizations: who keys and grants belong to", create, list)
}

func newKeyCommand() *cobra.Command {
	var (
		organization, label string
		expires             time.Duration
	)
	create := withCatalog(&cobra.Command{
		Use:   "create --org NAME",
		Short: "Make an API key and print it, this once",
		Args:  cobra.NoArgs,
	}, func(ctx context.Context, db *catalog.DB, _ []string, stdout io.Writer) error {
		if expires < 0 {
			return errors.New("--expires: must not be negative")
		}
		var until time.Time
		if expires > 0 {
			until = time.Now().Add(expires)
		}
		_, key, err := db.CreateKey(ctx, organization, label, until)
		if err != nil {
			return err
		}
		fmt.Fprintln(stdout, string(key))
		return nil
	})
	create.Flags().StringVar(&organization, "org", "", "the organization that the key belongs to (required)")
	create.Flags().StringVar(&label, "label", "", "what the key is for, shown in lists")
	create.Flags().DurationVar(&expires, "expires", 0, "how long the key is valid, such as 720h (default: for ever)")
	_ = create.MarkFlagRequired("org") // the flag exists

	list := withCatalog(&cobra.Command{
		Use:   "list [--org NAME]",
		Short: "List API keys, without their secrets",
		Args:  cobra.NoArgs,
	}, func(ctx context.Context, db *catalog.DB, _ []string, stdout io.Writer) error {
		keys, err := db.Keys(ctx)
		if err != nil {
			return err
		}
		t := newTable(stdout, "ID", "ORGANIZATION", "LABEL", "CREATED", "EXPIRES", "REVOKED")
		for _, k := range keys {
			if organization != "" && k.Organization != organization {
				continue
			}
			t.row(k.ID, k.Organization, k.Label, date(k.Created), date(k.Expires), date(k.Revoked))
		}
		return t.flush()
	})
	list.Flags().StringVar(&organization, "org", "", "only the keys of this organization")

	revoke := withCatalog(&cobra.Command{
		Use:   "revoke ID",
		Short: "Revoke an API key; it stops working within 10 seconds",
		Args:  cobra.ExactArgs(1),
	}, func(ctx context.Context, db *catalog.DB, args []string, _ io.Writer) error {
		return db.RevokeKey(ctx, args[0])
	})
	return newGroup("key", "API keys", create, list, revoke)
}

func newGrantCommand() *cobra.Command {
	return withCatalog(&cobra.Command{
		Use:   "grant ORGANIZATION WORKFLOW",
		Short: "Let an organization have the jobs of a workflow; '*' stands for all",
		Args:  cobra.ExactArgs(2),
	}, func(ctx context.Context, db *catalog.DB, args []string, _ io.Writer) error {
		return db.Grant(ctx, args[0], args[1])
	})
}

func newRevokeGrantCommand() *cobra.Command {
	return withCatalog(&cobra.Command{
		Use:   "revoke-grant ORGANIZATION WORKFLOW",
		Short: "Take a grant back; signed URLs that are out stay valid until they expire",
		Args:  cobra.ExactArgs(2),
	}, func(ctx context.Context, db *catalog.DB, args []string, _ io.Writer) error {
		return db.RevokeGrant(ctx, args[0], args[1])
	})
}

func newGrantsCommand() *cobra.Command {
	return withCatalog(&cobra.Command{
		Use:   "grants",
		Short: "List who has a grant for which workflow",
		Args:  cobra.NoArgs,
	}, func(ctx context.Context, db *catalog.DB, _ []string, stdout io.Writer) error {
		grants, err := db.Grants(ctx)
		if err != nil {
			return err
		}
		t := newTable(stdout, "ORGANIZATION", "WORKFLOW", "GRANTED")
		for _, g := range grants {
			t.row(g.Organization, g.WorkflowID, date(g.Created))
		}
		return t.flush()
	})
}

func newSigningKeyCommand() *cobra.Command {
	var dataDir string
	rotate := &cobra.Command{
		Use:   "rotate",
		Short: "Sign new URLs with a new key; those that are out stay valid",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			keys, err := server.RotateSigningKey(dataDir)
			if err != nil {
				return &failure{err}
			}
			fmt.Fprintf(cmd.OutOrStdout(), "a new key signs, %d verify\n", keys)
			return nil
		},
	}
	rotate.Flags().StringVar(&dataDir, "data-dir", server.DefaultDataDir(), "folder for the server's own state")
	return newGroup("signing-key", "The keys that sign URLs", rotate)
}

func newVersionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  cobra.NoArgs,
		Run: func(cmd *cobra.Command, _ []string) {
			version := "unknown"
			if b, ok := debug.ReadBuildInfo(); ok {
				version = b.Main.Version + " " + b.GoVersion
			}
			fmt.Fprintln(cmd.OutOrStdout(), "downlinkd", version)
		},
	}
}

// table writes aligned columns.
type table struct{ w *tabwriter.Writer }

func newTable(w io.Writer, columns ...string) *table {
	t := &table{tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)}
	if len(columns) > 0 {
		t.row(columns...)
	}
	return t
}

func (t *table) row(cells ...string) {
	for i, c := range cells {
		if i > 0 {
			fmt.Fprint(t.w, "\t")
		}
		fmt.Fprint(t.w, c)
	}
	fmt.Fprintln(t.w)
}

func (t *table) flush() error { return t.w.Flush() }

// date formats a time for a table, "-" where there is none.
func date(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.UTC().Format(time.RFC3339)
}

package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/downlink-go/downlink/client"
)

func (a *app) getCommand() *cobra.Command {
	var (
		output, extract  string
		include, exclude []string
		force, noVerify  bool
		connections      int
	)
	cmd := &cobra.Command{
		Use:   "get WORKFLOW JOB",
		Short: "Download a job's package, or its files",
		Long: `Downloads the package of a job as one ZIP, verifies every file in it, and prints
the path of the ZIP. It appears under its name when it is whole and right; an
interrupted download goes on where it stopped when the command is run again.

A file that is there already is kept if it is this package, and never replaced
by another without --force.

With --extract the files go straight into a folder, without a ZIP on the disk.
Run again, it fetches only what is missing or wrong.

  downlink get W1 J1
  downlink get W1 J1 -o results/            into a folder, as W1_J1.zip
  downlink get W1 J1 -o - | bsdtar -xf -    to a pipe, verified while it passes
  downlink get W1 J1 --extract results --include 'outputs/**/*.tif'`,
		Args: cobra.ExactArgs(2),
		RunE: work(func(ctx context.Context, args []string) error {
			workflowID, jobID := args[0], args[1]
			switch {
			case extract != "" && (output != "" || force || noVerify):
				return &usageError{errors.New("--extract goes without --output, --force and --no-verify")}
			case extract == "" && len(include)+len(exclude) > 0:
				return &usageError{errors.New("--include and --exclude go with --extract")}
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			p := a.newProgress()
			defer p.close()
			switch {
			case extract != "":
				return a.extract(ctx, c, workflowID, jobID, extract, p,
					client.WithInclude(include...), client.WithExclude(exclude...), client.WithConnections(connections), client.WithProgress(p.update))
			case output == "-":
				_, err := c.Copy(ctx, workflowID, jobID, a.stdout, client.WithProgress(p.update))
				return err
			}
			options := []client.SaveOption{client.WithConnections(connections), client.WithProgress(p.update)}
			if force {
				options = append(options, client.WithOverwrite())
			}
			if noVerify {
				a.note("warning: without verification a damaged file goes unnoticed")
				options = append(options, client.WithoutVerification())
			}
			r, err := c.Save(ctx, workflowID, jobID, target(output, workflowID, jobID), options...)
			p.close()
			if err != nil {
				return err
			}
			if r.Kept {
				a.note("%s is there already, and right", r.Path)
			}
			return a.result(map[string]any{
				"path": r.Path, "id": r.ID, "size": r.Size, "kept": r.Kept, "resumed": r.Resumed, "verified": r.Verified,
			}, r.Path)
		}),
	}
	a.apiFlags(cmd)
	f := cmd.Flags()
	f.StringVarP(&output, "output", "o", "", "file or folder to write to, - for standard output (default WORKFLOW_JOB.zip)")
	f.StringVar(&extract, "extract", "", "write the files into this folder instead of a ZIP")
	f.StringArrayVar(&include, "include", nil, "with --extract: only the files that match, such as 'outputs/**/*.tif'; may be repeated")
	f.StringArrayVar(&exclude, "exclude", nil, "with --extract: not the files that match; may be repeated")
	f.BoolVar(&force, "force", false, "replace a file that is not this package")
	f.BoolVar(&noVerify, "no-verify", false, "do not check the checksums of what came")
	f.IntVarP(&connections, "connections", "c", 4, "how many parts to fetch at a time")
	return cmd
}

// target returns the file to write to.
func target(output, workflowID, jobID string) string {
	name := workflowID + "_" + jobID + ".zip"
	if output == "" {
		return name
	}
	if info, err := os.Stat(output); err == nil && info.IsDir() || os.IsPathSeparator(output[len(output)-1]) {
		return filepath.Join(output, name)
	}
	return output
}

func (a *app) extract(ctx context.Context, c *client.Client, workflowID, jobID, dir string, p *progress, options ...client.ExtractOption) error {
	r, err := c.Extract(ctx, workflowID, jobID, dir, options...)
	p.close()
	if err != nil {
		return err
	}
	a.note("%d files written, %d kept", r.Written, r.Kept)
	return a.result(map[string]any{"path": dir, "id": r.ID, "written": r.Written, "kept": r.Kept, "fetched": r.Fetched}, dir)
}

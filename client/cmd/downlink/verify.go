package main

import (
	"context"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/downlink-go/downlink/client"
)

func (a *app) verifyCommand() *cobra.Command {
	var include, exclude []string
	cmd := &cobra.Command{
		Use:   "verify FILE|DIR",
		Short: "Check every file of a downloaded package against its checksums",
		Long: `Checks a package that was downloaded before: a ZIP against the checksums in it,
or the folder of --extract against the manifest.json in it. It needs no network.

For a folder to which only some files were extracted, name the same ones with
--include and --exclude.`,
		Args: cobra.ExactArgs(1),
		RunE: work(func(ctx context.Context, args []string) error {
			path := args[0]
			info, err := os.Stat(path)
			if err != nil {
				return err
			}
			verify := client.VerifyFile
			if info.IsDir() {
				verify = client.VerifyDir
			}
			p := a.newProgress()
			defer p.close()
			r, err := verify(ctx, path, client.WithProgress(p.update), client.WithInclude(include...), client.WithExclude(exclude...))
			p.close()
			if err != nil {
				return err
			}
			return a.result(map[string]any{"path": path, "files": r.Files, "bytes": r.Bytes},
				fmt.Sprintf("%s: right, with %s", path, count(int64(r.Files))))
		}),
	}
	cmd.Flags().StringArrayVar(&include, "include", nil, "only the files that match; may be repeated")
	cmd.Flags().StringArrayVar(&exclude, "exclude", nil, "not the files that match; may be repeated")
	return cmd
}

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"path"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/downlink-go/downlink/client"
)

func (a *app) lsCommand() *cobra.Command {
	var long, tree bool
	cmd := &cobra.Command{
		Use:   "ls WORKFLOW JOB [FOLDER]",
		Short: "List the files of a job's package, without downloading it",
		Long: `Lists the files of a package, or of a folder in it, from the package's directory:
two or three small requests, however large the package is.

With --long each line has the size in bytes, the CRC-32 and the modified time,
and the last line the totals. With --tree the lines are the folders, with the
totals of what is below them.`,
		Args: cobra.RangeArgs(2, 3),
		RunE: work(func(ctx context.Context, args []string) error {
			p, err := a.open(ctx, args)
			if err != nil {
				return err
			}
			defer p.Close()
			folder := ""
			if len(args) == 3 {
				folder = strings.Trim(args[2], "/") + "/"
			}
			if tree {
				return a.listTree(p, folder)
			}
			return a.list(p, folder, long)
		}),
	}
	a.apiFlags(cmd)
	cmd.Flags().BoolVarP(&long, "long", "l", false, "sizes, checksums, times and totals too")
	cmd.Flags().BoolVarP(&tree, "tree", "t", false, "folders and their totals instead of files")
	cmd.MarkFlagsMutuallyExclusive("long", "tree")
	return cmd
}

func (a *app) open(ctx context.Context, args []string) (*client.Package, error) {
	c, err := a.client()
	if err != nil {
		return nil, err
	}
	return c.Open(ctx, args[0], args[1])
}

// list writes the files whose path starts with the folder.
func (a *app) list(p *client.Package, folder string, long bool) error {
	var files, bytes int64
	t := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	encoder := json.NewEncoder(a.stdout)
	for e := range p.Entries() {
		if !strings.HasPrefix(e.Name, folder) {
			continue
		}
		files++
		bytes += e.Size
		var err error
		switch {
		case a.json:
			err = encoder.Encode(map[string]any{
				"path": e.Name, "size": e.Size, "crc32": fmt.Sprintf("%08x", e.CRC32), "modified": e.Modified.UTC(),
			})
		case long:
			_, err = fmt.Fprintf(t, "%d\t%08x\t%s\t  %s\n", e.Size, e.CRC32, e.Modified.UTC().Format(time.RFC3339), e.Name)
		default:
			_, err = fmt.Fprintln(a.stdout, e.Name)
		}
		if err != nil {
			return err
		}
	}
	if files == 0 && folder != "" {
		return noFolder(folder)
	}
	if long && !a.json {
		fmt.Fprintf(t, "%d\t\t\t  %s\n", bytes, count(files))
	}
	return t.Flush()
}

func count(files int64) string {
	if files == 1 {
		return "1 file"
	}
	return fmt.Sprintf("%d files", files)
}

func noFolder(folder string) error {
	return fmt.Errorf("%s: no such folder in the package", strings.TrimSuffix(folder, "/"))
}

// listTree writes the folders below one, with the files and bytes in each.
func (a *app) listTree(p *client.Package, folder string) error {
	type total struct{ files, bytes int64 }
	totals := map[string]*total{}
	for e := range p.Entries() {
		below, ok := strings.CutPrefix(e.Name, folder)
		if !ok {
			continue
		}
		for dir := path.Dir(below); ; dir = path.Dir(dir) {
			if totals[dir] == nil {
				totals[dir] = &total{}
			}
			totals[dir].files++
			totals[dir].bytes += e.Size
			if dir == "." {
				break
			}
		}
	}
	if len(totals) == 0 && folder != "" {
		return noFolder(folder)
	}
	// A slash sorts before anything else, so that a folder is above what is in it.
	names := slices.SortedFunc(maps.Keys(totals), func(a, b string) int {
		return strings.Compare(strings.ReplaceAll(a, "/", "\x00"), strings.ReplaceAll(b, "/", "\x00"))
	})
	t := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	encoder := json.NewEncoder(a.stdout)
	for _, name := range names {
		n := totals[name]
		if a.json {
			if err := encoder.Encode(map[string]any{"path": folder + name, "files": n.files, "size": n.bytes}); err != nil {
				return err
			}
			continue
		}
		indent := strings.Repeat("  ", strings.Count("/"+name, "/"))
		if name == "." {
			indent = ""
		}
		fmt.Fprintf(t, "%d\t%s\t  %s%s/\n", n.bytes, count(n.files), indent, path.Base(name))
	}
	return t.Flush()
}

func (a *app) catCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "cat WORKFLOW JOB PATH...",
		Short: "Write files of a job's package to standard output, without downloading the rest",
		Args:  cobra.MinimumNArgs(3),
		RunE: work(func(ctx context.Context, args []string) error {
			p, err := a.open(ctx, args)
			if err != nil {
				return err
			}
			defer p.Close()
			for _, name := range args[2:] {
				f, err := p.Open(strings.TrimPrefix(name, "/"))
				if err != nil {
					return err
				}
				_, err = io.CopyBuffer(a.stdout, struct{ io.Reader }{f}, make([]byte, 256<<10))
				if closeErr := f.Close(); err == nil {
					err = closeErr
				}
				if err != nil {
					return err
				}
			}
			return nil
		}),
	}
	a.apiFlags(cmd)
	return cmd
}

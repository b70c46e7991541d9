package main

import (
	"os"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
)

// newManCommand returns the command that writes the manual pages of a release.
func newManCommand() *cobra.Command {
	return &cobra.Command{
		Use:    "man DIR",
		Short:  "Write the manual pages into a folder",
		Hidden: true,
		Args:   cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := os.MkdirAll(args[0], 0o755); err != nil {
				return &failure{err}
			}
			root := cmd.Root()
			root.DisableAutoGenTag = true
			// Their date is that of SOURCE_DATE_EPOCH, if it is set.
			header := &doc.GenManHeader{Section: "1", Source: "Downlink", Manual: "Downlink"}
			if err := doc.GenManTree(root, header, args[0]); err != nil {
				return &failure{err}
			}
			return nil
		},
	}
}

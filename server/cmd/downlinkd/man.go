package main

import (
	"os"
	"strings"

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
			inMarkdown(root)
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

// inMarkdown makes the help texts of a command and of those below it what the
// writer of manual pages takes them for. Indented lines stay as they are.
func inMarkdown(cmd *cobra.Command) {
	escape := strings.NewReplacer("<", `\<`, "*", `\*`)
	lines := strings.Split(cmd.Long, "\n")
	for i, line := range lines {
		switch {
		case strings.HasPrefix(line, "  "):
			lines[i] = "  " + line // four spaces mean code
		case !strings.HasPrefix(line, "\t"): // which mean so too
			lines[i] = escape.Replace(line)
		}
	}
	cmd.Long = strings.Join(lines, "\n")
	for _, c := range cmd.Commands() {
		inMarkdown(c)
	}
}

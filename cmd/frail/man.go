// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cpuguy83/go-md2man/v2/md2man"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"frail/api"
	"frail/cmd/internal/config"
	"frail/cmd/internal/exit"
	"frail/packaging"
)

// newExitCodesCmd is a topic of frail help.
func newExitCodesCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "exit-codes",
		Short: "The exit statuses of frail and fraild",
		Long: `The exit statuses of frail and fraild:

` + exit.Table() + `
Ctrl-C ends frail trace, count, capture, alerts and top in order: it is success. A second
one kills them.`,
		Example: `  frail list >/dev/null 2>&1 || test $? != 3 || systemctl start fraild`,
	}
}

// newGenCmd makes files for "make install".
func newGenCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "gen DIR",
		Short: "Write the manual pages and the completion scripts",
		Long: `Write the manual pages of frail, fraild and frail.toml into DIR/man1, man5 and man8, and
the shells' completion scripts into DIR/completions.`,
		Example: "  frail gen build/share",
		Hidden:  true,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			files := manual(cmd.Root())
			for shell, file := range map[string]string{"bash": "frail", "zsh": "_frail", "fish": "frail.fish"} {
				var script bytes.Buffer
				if err := writeCompletion(cmd.Root(), &script, shell); err != nil {
					return err
				}
				files["completions/"+file] = script.Bytes()
			}
			for name, text := range files {
				path := filepath.Join(args[0], name)
				if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
					return fmt.Errorf("generate: %w", err)
				}
				if err := os.WriteFile(path, text, 0o644); err != nil {
					return fmt.Errorf("generate: %w", err)
				}
			}
			return nil
		},
	}
}

// manual returns all manual pages by path.
func manual(root *cobra.Command) map[string][]byte {
	pages := map[string]string{
		"man5/frail.toml.5": manHeader("frail.toml", 5) + "# NAME\n\nfrail.toml - configuration of fraild\n\n# DESCRIPTION\n\n" +
			config.Markdown() + "\n# SEE ALSO\n\n**fraild(8)**, **frail-config-check(1)**\n",
		"man8/fraild.8": manHeader("fraild", 8) + packaging.Fraild + "\n" + manExit(),
	}
	walk(root, func(cmd *cobra.Command) {
		if cmd.IsAvailableCommand() && cmd.Name() != "help" || cmd == root {
			pages["man1/"+manName(cmd)+".1"] = manPage(cmd)
		}
	})
	files := make(map[string][]byte)
	for name, text := range pages {
		files[name] = md2man.Render([]byte(text))
	}
	return files
}

// manName is the name of a command's page.
func manName(cmd *cobra.Command) string { return strings.ReplaceAll(cmd.CommandPath(), " ", "-") }

// manHeader is the title line. Pages have no date: the same sources make the same pages.
func manHeader(name string, section int) string {
	return fmt.Sprintf("%% %q \"%d\" \"\" \"frail %s\" \"Frail\"\n", strings.ToUpper(name), section, api.Version())
}

func manExit() string {
	return "# EXIT STATUS\n\n" + markdown(exit.Table())
}

// manPage describes a command in Markdown, from what its --help says.
func manPage(cmd *cobra.Command) string {
	var b bytes.Buffer
	// NAME is for indexes, which know one form.
	fmt.Fprintf(&b, "%s# NAME\n\n%s - %s\n\n# SYNOPSIS\n\n", manHeader(manName(cmd), 1), manName(cmd), config.Escape(cmd.Short))
	for use := range strings.SplitSeq(cmd.Use, " | ") {
		// "ps DOMAIN | ps --qmp SOCKET" are two; "import --btf FILE | --isf FILE" go on.
		use = strings.TrimSpace(strings.TrimPrefix(use, cmd.Name()))
		fmt.Fprintf(&b, "    %s [flags]\n", strings.TrimSpace(cmd.CommandPath()+" "+use))
	}
	if cmd.HasAvailableSubCommands() {
		fmt.Fprintf(&b, "    %s COMMAND\n", cmd.CommandPath())
	}
	fmt.Fprintf(&b, "\n# DESCRIPTION\n\n%s", markdown(cmd.Long))
	if cmd.HasAvailableSubCommands() {
		b.WriteString("\n# COMMANDS\n\n")
		for _, c := range cmd.Commands() {
			if c.IsAvailableCommand() && c.Name() != "help" {
				fmt.Fprintf(&b, "**%s(1)**\n: %s\n\n", manName(c), config.Escape(c.Short))
			}
		}
	}
	manFlags(&b, "OPTIONS", cmd.NonInheritedFlags())
	manFlags(&b, "OPTIONS OF EVERY COMMAND", cmd.InheritedFlags())
	fmt.Fprintf(&b, "\n# EXAMPLES\n\n%s", markdown(cmd.Example))
	also := []string{"**fraild(8)**", "**frail.toml(5)**"}
	if cmd.HasParent() {
		b.WriteString("\n# EXIT STATUS\n\nThe table is in **frail(1)**.\n")
		cmd.VisitParents(func(c *cobra.Command) { also = append(also, "**"+manName(c)+"(1)**") })
	} else {
		b.WriteString("\n" + manExit())
	}
	slices.Sort(also)
	fmt.Fprintf(&b, "\n# SEE ALSO\n\n%s\n", strings.Join(also, ", "))
	return b.String()
}

// manFlags describes flags below a heading.
func manFlags(b *bytes.Buffer, heading string, flags *pflag.FlagSet) {
	if !flags.HasAvailableFlags() {
		return
	}
	fmt.Fprintf(b, "\n# %s\n\n", heading)
	flags.VisitAll(func(f *pflag.Flag) {
		value, usage := pflag.UnquoteUsage(f)
		name := "**--" + f.Name + "**"
		if f.Shorthand != "" {
			name = "**-" + f.Shorthand + "**, " + name
		}
		if value != "" {
			name += " *" + value + "*"
		}
		if d := f.DefValue; d != "" && d != "false" && d != "0" && d != "[]" {
			usage += " (default " + d + ")"
		}
		fmt.Fprintf(b, "%s\n: %s\n\n", name, config.Escape(usage))
	})
}

// markdown returns plain text as Markdown: lines that are indented stay as they are, the
// others are paragraphs.
func markdown(text string) string {
	var b strings.Builder
	verbatim := false
	for line := range strings.SplitSeq(strings.Trim(text, "\n"), "\n") {
		was := verbatim
		if verbatim = strings.HasPrefix(line, "  "); verbatim != was {
			b.WriteByte('\n')
		}
		if verbatim {
			b.WriteString("  " + line + "\n") // four spaces
		} else {
			b.WriteString(config.Escape(line) + "\n")
		}
	}
	return strings.TrimLeft(b.String(), "\n")
}

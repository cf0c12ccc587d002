// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"frail/api"
	"frail/bpf"
	"frail/cmd/internal/guest"
	"frail/hooks"
	"frail/tracer/syscalls"
)

// completeTimeout bounds how long a shell waits for what fraild knows.
const completeTimeout = time.Second

func newCompletionCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "completion bash|zsh|fish",
		Short: "Print a shell's completion script",
		Long: `Print a shell's completion script. It completes commands, flags, the names of domains and
profiles that fraild knows, and system calls. Packages and "make install" put it where the
shells look for it; a new shell has it.`,
		Example: `  frail completion bash >/etc/bash_completion.d/frail
  source <(frail completion bash)
  frail completion zsh >"${fpath[1]}/_frail"
  frail completion fish >~/.config/fish/completions/frail.fish`,
		ValidArgs: []cobra.Completion{"bash", "zsh", "fish"},
		Args:      cobra.MatchAll(cobra.ExactArgs(1), cobra.OnlyValidArgs),
		RunE: func(cmd *cobra.Command, args []string) error {
			return writeCompletion(cmd.Root(), cmd.OutOrStdout(), args[0])
		},
	}
}

// writeCompletion writes the script for bash, zsh or fish.
func writeCompletion(root *cobra.Command, w io.Writer, shell string) error {
	switch shell {
	case "bash":
		return root.GenBashCompletionV2(w, true)
	case "zsh":
		return root.GenZshCompletion(w)
	default:
		return root.GenFishCompletion(w, true)
	}
}

// completeFlags says of every flag below root that takes a value how it is completed: by
// the function in values of its name, or by files or directories if its value is called so.
func completeFlags(root *cobra.Command) {
	values := map[string]cobra.CompletionFunc{
		"connect":        cobra.FixedCompletions([]cobra.Completion{"qemu:///system", "qemu:///session"}, cobra.ShellCompDirectiveNoFileComp),
		"exits":          cobra.FixedCompletions([]cobra.Completion{hooks.ExitsBoth.String(), hooks.ExitsEntry.String()}, cobra.ShellCompDirectiveNoFileComp),
		"level":          completeList(levelNames),
		"filter-syscall": completeList(syscallNames()),
		"filter-error":   completeList(slices.Collect(guest.ErrorNames())),
	}
	walk(root, func(cmd *cobra.Command) {
		add := func(flag *pflag.Flag) {
			complete := values[flag.Name]
			switch value, _ := pflag.UnquoteUsage(flag); {
			case value == "" || flag.Name == "help": // no value
				return
			case complete != nil:
			case slices.Contains([]string{"FILE", "SOCKET", "PATTERN", "PATH"}, value):
				return // files, as without a function
			case value == "DIR":
				complete = cobra.FixedCompletions(nil, cobra.ShellCompDirectiveFilterDirs)
			default:
				complete = cobra.NoFileCompletions
			}
			if err := cmd.RegisterFlagCompletionFunc(flag.Name, complete); err != nil {
				panic(err) // the flag is the command's own
			}
		}
		cmd.LocalNonPersistentFlags().VisitAll(add)
		cmd.PersistentFlags().VisitAll(add)
	})
}

// completeList completes the last of words separated by commas, which a ! may precede.
func completeList(words []string) cobra.CompletionFunc {
	return func(_ *cobra.Command, _ []string, text string) ([]cobra.Completion, cobra.ShellCompDirective) {
		before, last := "", text
		if i := strings.LastIndexAny(text, ",!"); i >= 0 {
			before, last = text[:i+1], text[i+1:]
		}
		var found []cobra.Completion
		for _, word := range words {
			if strings.HasPrefix(word, last) {
				found = append(found, before+word)
			}
		}
		return found, cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveNoSpace
	}
}

func syscallNames() []string {
	var names []string
	for _, table := range []syscalls.Table{syscalls.X86_64, syscalls.I386} {
		for nr := range int64(bpf.Syscalls) {
			if name := syscalls.Name(table, nr); name != "" {
				names = append(names, name)
			}
		}
	}
	for _, class := range syscalls.Classes() {
		names = append(names, "%"+class)
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// completeDomain completes a command's only argument, DOMAIN.
func (o *options) completeDomain(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return o.domainNames(cmd.Context()), cobra.ShellCompDirectiveNoFileComp
}

// completeDomains completes a command's arguments, each a DOMAIN.
func (o *options) completeDomains(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	given := func(c cobra.Completion) bool {
		name, _, _ := strings.Cut(c, "\t") // its description
		return slices.Contains(args, name)
	}
	return slices.DeleteFunc(o.domainNames(cmd.Context()), given), cobra.ShellCompDirectiveNoFileComp
}

// domainNames lists the domains that fraild knows, with their states: none if it does not
// answer, since a shell has no place for an error.
func (o *options) domainNames(ctx context.Context) []cobra.Completion {
	var names []cobra.Completion
	o.whileCompleting(ctx, func(ctx context.Context, d *daemon) {
		list, err := d.List(ctx, &api.ListRequest{All: true})
		if err != nil {
			return
		}
		for _, dom := range list.GetDomains() {
			if name := dom.GetName(); name == printable(name) {
				names = append(names, cobra.CompletionWithDesc(name, printable(stateText(dom))))
			}
		}
	})
	return names
}

// completeProfiles returns what completes the arguments of a command that takes up to most
// PROFILEs; after these come files. Files are PROFILEs too, if the command takes them.
func (o *options) completeProfiles(most int, files bool) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, text string) ([]cobra.Completion, cobra.ShellCompDirective) {
		other := cobra.ShellCompDirectiveNoFileComp
		if files {
			other = cobra.ShellCompDirectiveDefault
		}
		if len(args) >= most || files && isFile(text) {
			return nil, other
		}
		return o.profileNames(cmd.Context()), cobra.ShellCompDirectiveNoFileComp
	}
}

// completeImport completes FILE DOMAIN[/EXECUTABLE].
func (o *options) completeImport(cmd *cobra.Command, args []string, text string) ([]cobra.Completion, cobra.ShellCompDirective) {
	switch {
	case len(args) == 0:
		return nil, cobra.ShellCompDirectiveDefault
	case len(args) == 1 && strings.Contains(text, "/"):
		return o.profileNames(cmd.Context()), cobra.ShellCompDirectiveNoFileComp
	case len(args) == 1:
		return o.domainNames(cmd.Context()), cobra.ShellCompDirectiveNoFileComp
	default:
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
}

// profileNames lists the profiles that fraild knows, as splitProfile reads them.
func (o *options) profileNames(ctx context.Context) []cobra.Completion {
	var names []cobra.Completion
	o.whileCompleting(ctx, func(ctx context.Context, d *daemon) {
		resp, err := d.Profiles(ctx, &api.ProfilesRequest{})
		if err != nil {
			return
		}
		for _, p := range resp.GetProfiles() {
			if domain := p.GetName(); domain == printable(domain) {
				names = append(names, cobra.CompletionWithDesc(domain+quoteExecutable(p.GetExecutable()), profileState(p)))
			}
		}
	})
	return names
}

// quoteExecutable writes an executable's name, behind a domain's, as splitProfile reads it.
func quoteExecutable(exe []byte) string {
	q := strconv.Quote(string(exe))
	q = strings.ReplaceAll(q[1:len(q)-1], `\"`, `"`)
	if strings.HasPrefix(q, "/") {
		return q
	}
	return "/" + q
}

// whileCompleting calls f with a connection to fraild, if there is one.
func (o *options) whileCompleting(ctx context.Context, f func(context.Context, *daemon)) {
	ctx, cancel := context.WithTimeout(ctx, completeTimeout)
	defer cancel()
	client, err := dialDaemon(o.socket)
	if err != nil {
		return
	}
	defer client.Close()
	f(ctx, client)
}

// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"frail/api"
	"frail/cmd/internal/exit"
)

// Every command says what it is, and its examples are command lines that it takes.
func TestCommandsAreDescribed(t *testing.T) {
	walk(newRoot(), func(cmd *cobra.Command) {
		if cmd.Short == "" || cmd.Long == "" || cmd.Long == cmd.Short || cmd.Example == "" {
			t.Errorf("%s lacks a description or an example", cmd.CommandPath())
		}
		cmd.Flags().VisitAll(func(f *pflag.Flag) {
			if value, usage := pflag.UnquoteUsage(f); usage == "" || value != strings.ToUpper(value) {
				t.Errorf("%s --%s lacks a description, or a name of its value", cmd.CommandPath(), f.Name)
			}
		})
		for line := range strings.Lines(cmd.Example) {
			line, _, _ = strings.Cut(strings.TrimSpace(line), " >")
			line, _, _ = strings.Cut(line, " | ")
			line, _, _ = strings.Cut(line, " && ")
			line = strings.TrimSuffix(strings.TrimPrefix(line, "source <("), ")")
			args := strings.Fields(strings.ReplaceAll(line, "'", ""))
			if len(args) == 0 || args[0] != "frail" {
				t.Errorf("example of %s: %q", cmd.CommandPath(), line)
				continue
			}
			root := newRoot()
			root.SetOut(io.Discard)
			found, rest, err := root.Find(args[1:])
			if err == nil {
				err = found.ParseFlags(rest)
			}
			if err == nil {
				err = found.ValidateArgs(found.Flags().Args())
			}
			if err == nil {
				err = found.ValidateRequiredFlags()
			}
			if err == nil {
				err = found.ValidateFlagGroups()
			}
			if err != nil || cmd.HasParent() && found.CommandPath() != cmd.CommandPath() && !cmd.HasAvailableSubCommands() && cmd.Runnable() {
				t.Errorf("example %q of %s: it is of %s: %v", line, cmd.CommandPath(), found.CommandPath(), err)
			}
		}
	})
}

func TestExitStatuses(t *testing.T) {
	t.Setenv("LIBVIRT_DEFAULT_URI", "")
	missing := filepath.Join(t.TempDir(), "none")
	for _, tc := range []struct {
		want exit.Status
		args []string
	}{
		{exit.Success, []string{"version"}},
		{exit.Success, nil},
		{exit.Success, []string{"trace", "--help"}},
		{exit.Failure, []string{"config", "check", "--config", missing}},
		{exit.Failure, []string{"replay", os.DevNull}},
		{exit.Failure, []string{"record", "show", os.DevNull}},
		{exit.Failure, []string{"--socket", missing, "doctor"}},
		{exit.Usage, []string{"lst"}},
		{exit.Usage, []string{"profile", "lst"}},
		{exit.Usage, []string{"list", "--al"}},
		{exit.Usage, []string{"list", "guest1"}},
		{exit.Usage, []string{"trace"}},
		{exit.Usage, []string{"trace", "guest1", "--limit", "-1"}},
		{exit.Usage, []string{"capture", "guest1"}},
		{exit.Usage, []string{"record", "dump"}},
		{exit.Usage, []string{"record", "dump", "guest1", "--seconds", "86401"}},
		{exit.Usage, []string{"record", "show"}},
		{exit.Usage, []string{"enable", "guest1", "--live", "--current"}},
		{exit.Usage, []string{"enable", "guest1", "--exits", "none"}},
		{exit.Usage, []string{"trace", "--qmp", missing, "--exits", "none"}},
		{exit.Usage, []string{"trace", "--qmp", missing, "--filter-syscall", "opnat"}},
		{exit.Usage, []string{"trace", "--qmp", missing, "--filter-error", "ENOETN"}},
		{exit.Usage, []string{"trace", "--qmp", missing, "--follow"}},
		{exit.Usage, []string{"dmesg", "guest1", "--level", "loud"}},
		{exit.Usage, []string{"top", "--interval", "1ms"}},
		{exit.Usage, []string{"replay"}},
		{exit.Usage, []string{"replay", "x", "--stide", "1,20"}},
		{exit.Usage, []string{"profile", "delete", "guest1"}},
		{exit.Usage, []string{"completion", "tcsh"}},
		{exit.Unreachable, []string{"--socket", missing, "list"}},
		{exit.Unreachable, []string{"ps", "--qmp", missing}},
		{exit.Unreachable, []string{"-c", "qemu+unix:///system?socket=" + missing, "enable", "guest1"}},
		{exit.NotFound, []string{"-c", "test:///default", "enable", "guest1"}},
	} {
		wantStatus(t, tc.want, tc.args...)
	}
	// They are told where users look.
	for _, args := range [][]string{{"help", "exit-codes"}, {"exit-codes"}} {
		out, _, err := frailCmd(t, args...)
		if err != nil || !strings.Contains(out, exit.Table()) {
			t.Errorf("frail %q prints\n%s, error %v", args, out, err)
		}
	}
	out, _, err := frailCmd(t, "--help")
	if err != nil || !regexp.MustCompile(`(?m)^ +frail exit-codes `).MatchString(out) {
		t.Errorf("frail --help does not tell of exit-codes:\n%s", out)
	}
}

// docs/operating.md has the states as frail list prints them.
func TestStatesAreDocumented(t *testing.T) {
	doc, err := os.ReadFile("../../docs/operating.md")
	if err != nil {
		t.Fatal(err)
	}
	for state := range api.State_name {
		if state == int32(api.State_STATE_UNSPECIFIED) {
			continue
		}
		row := "| " + stateText(&api.Domain{State: api.State(state), Reason: "*reason*"}) + " |"
		if api.State(state) == api.State_STATE_SHUT_OFF {
			row = "| shut off |"
		}
		if !strings.Contains(string(doc), "\n"+row) {
			t.Errorf("docs/operating.md has no row %q", row)
		}
	}
}

// Values of flags, and what needs no fraild.
func TestCompletion(t *testing.T) {
	p := &daemonProcess{socket: filepath.Join(t.TempDir(), "none")}
	for _, tc := range []struct {
		args []string
		want string
	}{
		{[]string{"trace", ""}, ":4"}, // silent
		{[]string{"profile", "show", ""}, ":4"},
		{[]string{"enable", "x", "--exits", ""}, "both entry :4"},
		{[]string{"trace", "--exits=e"}, "both entry :4"}, // the shell chooses
		{[]string{"dmesg", "x", "--level", "err,w"}, "err,warn :6"},
		{[]string{"trace", "x", "--filter-syscall", "!futex,openat"}, "!futex,openat !futex,openat2 :6"},
		{[]string{"count", "x", "--filter-syscall", "%f"}, "%file :6"},
		{[]string{"trace", "x", "--filter-error", "!ENOENT,EAG"}, "!ENOENT,EAGAIN :6"},
		{[]string{"trace", "x", "--filter-exe", ""}, ":4"},
		{[]string{"trace", "x", "--limit", ""}, ":4"},
		{[]string{"trace", "--qmp", ""}, ":0"},
		{[]string{"capture", "x", "-o", ""}, ":0"},
		{[]string{"replay", "--export", ""}, ":16"},
		{[]string{"replay", ""}, ":0"},
		{[]string{"-c", ""}, "qemu:///system qemu:///session :4"},
		{[]string{"completion", ""}, "bash zsh fish :4"},
		{[]string{"config", ""}, "check :4"},
		{[]string{"gen"}, ":4"}, // hidden
	} {
		if got := p.complete(t, tc.args...); got != tc.want {
			t.Errorf("%q is completed by %q, want %q", tc.args, got, tc.want)
		}
	}
	for _, name := range []string{"/usr/sbin/nginx", "/a b", `/q"q`, `/back\slash`, `/\"`, "/bad\x01\xff", "/näme", "[nginx]", "...end"} {
		_, exe, err := splitProfile("guest1" + quoteExecutable([]byte(name)))
		if err != nil || string(exe) != name {
			t.Errorf("executable %q is read again as %q, error %v", name, exe, err)
		}
	}
}

// Scripts are of the shell that they are for.
func TestCompletionScripts(t *testing.T) {
	for shell, mark := range map[string]string{"bash": "complete -o default -F __start_frail frail", "zsh": "#compdef frail", "fish": "complete -c frail"} {
		out, _, err := frailCmd(t, "completion", shell)
		if err != nil || !strings.Contains(out, mark) {
			t.Errorf("%s: error %v, or no %q", shell, err, mark)
		}
		if _, err := exec.LookPath(shell); err != nil {
			t.Logf("%s is not installed: its script is not parsed", shell)
			continue
		}
		check := exec.CommandContext(t.Context(), shell, "-n")
		check.Stdin = strings.NewReader(out)
		if msg, err := check.CombinedOutput(); err != nil {
			t.Errorf("%s -n: %v\n%s", shell, err, msg)
		}
	}
}

// What is installed: every command has a page with all that its help has, which groff takes without a warning.
func TestManual(t *testing.T) {
	dir := t.TempDir()
	if _, _, err := frailCmd(t, "gen", dir); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"frail", "_frail", "frail.fish"} {
		if info, err := os.Stat(filepath.Join(dir, "completions", name)); err != nil || info.Size() == 0 {
			t.Errorf("completion script %s: %v", name, err)
		}
	}
	pages := map[string]string{}
	files, err := filepath.Glob(filepath.Join(dir, "man*", "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		pages[filepath.Base(file)] = string(text)
		if name := filepath.Base(file); "man"+name[len(name)-1:] != filepath.Base(filepath.Dir(file)) {
			t.Errorf("%s is in the wrong section", file)
		}
	}
	wanted := map[string][]string{"fraild.8": {"EXIT STATUS"}, "frail.toml.5": {"ring_bytes", "[sequence]"}}
	walk(newRoot(), func(cmd *cobra.Command) {
		if cmd.Hidden || cmd.IsAdditionalHelpTopicCommand() {
			return
		}
		parts := []string{cmd.CommandPath(), cmd.Short, "EXAMPLES", "EXIT STATUS", "SEE ALSO"}
		cmd.Flags().VisitAll(func(f *pflag.Flag) { parts = append(parts, "--"+f.Name) })
		wanted[manName(cmd)+".1"] = parts
	})
	for name, parts := range wanted {
		// groff escapes hyphens.
		text := strings.ReplaceAll(pages[name], `\-`, "-")
		text = strings.ReplaceAll(text, `\e`, `\`)
		for _, part := range parts {
			if !strings.Contains(text, part) {
				t.Errorf("%s does not have %q", name, part)
			}
		}
		delete(pages, name)
	}
	for name := range pages {
		t.Errorf("page %s is of no command", name)
	}

	if _, err := exec.LookPath("groff"); err != nil {
		t.Skip("groff is not installed: the pages are not formatted")
	}
	for _, file := range files {
		var text, warnings bytes.Buffer
		groff := exec.CommandContext(t.Context(), "groff", "-ww", "-man", "-K", "utf8", "-T", "utf8", "-P", "-cbou", file)
		groff.Stdout, groff.Stderr = &text, &warnings
		if err := groff.Run(); err != nil || warnings.Len() > 0 {
			t.Errorf("%s: %v\n%s", file, err, warnings.String())
		}
		if !strings.Contains(text.String(), "\nNAME\n") {
			t.Errorf("%s as it is read:\n%s", file, text.String())
		}
	}
	// What has a meaning in Markdown or roff is shown as it is written.
	page := func(name string) string {
		out, err := exec.CommandContext(t.Context(), "groff", "-man", "-K", "utf8", "-T", "ascii", "-P", "-cbou", filepath.Join(dir, name)).Output()
		if err != nil {
			t.Fatal(err)
		}
		return strings.Join(strings.Fields(string(out)), " ")
	}
	for name, want := range map[string]string{
		"man1/frail-trace.1":   `frail trace guest1 --filter-syscall '!futex' --filter-comm nginx --timestamp`,
		"man1/frail-list.1":    "traced (no identity: REASON) without it",
		"man1/frail-profile.1": `with \x escapes`,
		"man5/frail.toml.5":    "Defaults of the analysis of call sequences, for what the <frail:",
		"man8/fraild.8":        fmt.Sprintf("%d success", exit.Success),
	} {
		if got := page(name); !strings.Contains(got, want) {
			t.Errorf("%s does not show %q:\n%s", name, want, got)
		}
	}
}

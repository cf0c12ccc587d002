// SPDX-License-Identifier: Apache-2.0

// Command lab builds the lab's images and boots its emulated host. The
// Makefile's lab-* targets call it; see "lab --help".
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"sort"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"frail/lab/host"
	"frail/lab/image"
)

// keepRuns is how many runs' results stay in build/lab/runs.
const keepRuns = 10

// Exit statuses of the lab itself, as timeout(1) and env(1) have them; any
// other comes from the command that ran on the host.
const exitLab = 125

// statusError is a command's own exit status.
type statusError int

func (s statusError) Error() string { return fmt.Sprintf("exit status %d", int(s)) }

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := newRoot().ExecuteContext(ctx)
	var status statusError
	switch {
	case err == nil:
	case errors.As(err, &status):
		os.Exit(int(status))
	default:
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(exitLab)
	}
}

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:           "lab",
		Short:         "Build the lab's images and run things on its emulated hosts",
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.NoArgs,
	}
	name := root.PersistentFlags().String("host", image.DefaultHost, "the host: "+strings.Join(image.HostNames(), ", "))
	root.AddCommand(newHostImage(name), newRelease(name), newGuest(name), newModule(name), newDebian(), newRun(name), newSelftests(name), newShell(name), newSmall(name))
	return root
}

func newHostImage(name *string) *cobra.Command {
	return &cobra.Command{
		Use:   "host-image",
		Short: "Build the host's image if its inputs changed, and print where it is",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			h, err := image.BuildHost(cmd.Context(), *name, os.Stderr)
			if err != nil {
				return err
			}
			fmt.Println(filepath.Dir(h.Root))
			return nil
		},
	}
}

func newRelease(name *string) *cobra.Command {
	return &cobra.Command{
		Use:   "release",
		Short: "Print the release of the host's kernel",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			h, err := image.BuildHost(cmd.Context(), *name, os.Stderr)
			if err != nil {
				return err
			}
			fmt.Println(h.Release)
			return nil
		},
	}
}

func newGuest(name *string) *cobra.Command {
	return &cobra.Command{
		Use:   "guest OUTPUT-DIR",
		Short: "Build the host's guest if its inputs changed, put a copy into a directory, and print where the cache has it",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			h, err := image.BuildHost(cmd.Context(), *name, os.Stderr)
			if err != nil {
				return err
			}
			g, err := image.BuildGuest(cmd.Context(), h, os.Stderr)
			if err != nil {
				return err
			}
			if err := g.Install(args[0]); err != nil {
				return err
			}
			fmt.Println(filepath.Dir(g.Kernel))
			return nil
		},
	}
}

func newModule(name *string) *cobra.Command {
	return &cobra.Command{
		Use:   "module SOURCE-DIR OUTPUT-DIR",
		Short: "Build a kernel module for the host",
		Args:  cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			h, err := image.BuildHost(cmd.Context(), *name, os.Stderr)
			if err != nil {
				return err
			}
			src, err := filepath.Abs(args[0])
			if err != nil {
				return err
			}
			return h.BuildModule(cmd.Context(), src, args[1], os.Stderr)
		},
	}
}

func newDebian() *cobra.Command {
	return &cobra.Command{
		Use:   "debian NAME SUITE PACKAGE...",
		Short: "Install a Debian release with packages into a directory of the cache if it has none, and print which",
		Args:  cobra.MinimumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			root, err := image.BuildRoot(cmd.Context(), args[0], args[1], args[2:], os.Stderr)
			if err != nil {
				return err
			}
			fmt.Println(root)
			return nil
		},
	}
}

func newRun(name *string) *cobra.Command {
	var limit time.Duration
	var results, cmdline, firmware string
	var cpus int
	cmd := &cobra.Command{
		Use:   "run [flags] -- COMMAND [ARGUMENT...]",
		Short: "Boot the host, run a command on it as root, and return its exit status",
		Long: `Boot the host, run a command on it as root, and return its exit status.

The host sees build/hosts/NAME at /frail and a directory for results at /lab. With one argument, that is a shell script. The command's
output is streamed; the host's console, journal and kernel log are left in the
results directory. Nothing the command does to the host's disk survives.`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			cfg, err := prepare(cmd.Context(), *name, results)
			if err != nil {
				return err
			}
			cfg.CPUs, cfg.Cmdline, cfg.Firmware = cpus, cmdline, firmware
			script := args[0]
			if len(args) > 1 {
				script = quote(args)
			}
			status, err := host.Run(cmd.Context(), cfg, script+"\n", limit, os.Stdout, os.Stderr)
			fmt.Fprintln(os.Stderr, "lab: logs are in", cfg.Results)
			if err != nil {
				return err
			}
			if status == host.ExitTimeout {
				fmt.Fprintf(os.Stderr, "lab: the command did not end within %v\n", limit)
			}
			if status != 0 {
				return statusError(status)
			}
			return nil
		},
	}
	cmd.Flags().DurationVar(&limit, "timeout", 10*time.Minute, "end the host if the command takes longer")
	cmd.Flags().IntVar(&cpus, "cpus", 1, "CPUs of the host; more than one is unreliable under emulation")
	cmd.Flags().StringVar(&cmdline, "cmdline", "", "words for the host kernel's command line")
	cmd.Flags().StringVar(&firmware, "firmware", "", "directory with UEFI firmware, code.fd and vars.fd (default: a BIOS)")
	cmd.Flags().StringVar(&results, "results", "", "directory for results (default: a new one in build/lab/runs)")
	return cmd
}

func newShell(name *string) *cobra.Command {
	return &cobra.Command{
		Use:   "shell",
		Short: "Boot the host with a root shell on this terminal (leave with poweroff, or Ctrl-A X)",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := prepare(cmd.Context(), *name, "")
			if err != nil {
				return err
			}
			fmt.Fprintln(os.Stderr, "lab: booting the host; log out with poweroff, or end it with Ctrl-A X")
			return host.Shell(cmd.Context(), cfg)
		},
	}
}

// prepare builds the host's image if need be and returns how to boot it with
// its part of the build directory shared. An empty results means a new
// directory.
func prepare(ctx context.Context, name, results string) (host.Config, error) {
	img, err := image.BuildHost(ctx, name, os.Stderr)
	if err != nil {
		return host.Config{}, err
	}
	emulator, err := image.BuildEmulator(ctx, os.Stderr)
	if err != nil {
		return host.Config{}, err
	}
	build, err := filepath.Abs("build")
	if err != nil {
		return host.Config{}, err
	}
	share := filepath.Join(build, "hosts", name)
	if err := os.MkdirAll(share, 0o755); err != nil {
		return host.Config{}, fmt.Errorf("create the shared directory: %w", err)
	}
	results, err = resultsDir(build, name, results)
	if err != nil {
		return host.Config{}, err
	}
	return host.Config{Image: img, Emulator: emulator, Share: share, Results: results, Log: os.Stderr}, nil
}

// resultsDir creates a directory for the results of a run of the host called
// name, a new one below build if results is empty, and returns its absolute
// path.
func resultsDir(build, name, results string) (string, error) {
	if _, err := os.Stat("go.mod"); err != nil {
		return "", fmt.Errorf("run lab in the repository's top directory: %w", err)
	}
	var err error
	if results == "" {
		results, err = newRunDir(filepath.Join(build, "lab", "runs"), name)
	} else {
		err = os.MkdirAll(results, 0o755)
	}
	if err != nil {
		return "", fmt.Errorf("create the results directory: %w", err)
	}
	return filepath.Abs(results)
}

// newRunDir creates a directory for the results of one run of the host called
// name, and removes the oldest.
func newRunDir(runs, name string) (string, error) {
	if err := os.MkdirAll(runs, 0o755); err != nil {
		return "", err
	}
	entries, err := os.ReadDir(runs)
	if err != nil {
		return "", err
	}
	sort.Slice(entries, func(i, j int) bool { return entries[i].Name() < entries[j].Name() })
	for len(entries) >= keepRuns {
		if err := os.RemoveAll(filepath.Join(runs, entries[0].Name())); err != nil {
			return "", err
		}
		entries = entries[1:]
	}
	return os.MkdirTemp(runs, time.Now().UTC().Format("20060102-150405-")+name+"-")
}

// quote returns args as one line for a shell.
func quote(args []string) string {
	quoted := make([]string, len(args))
	for i, a := range args {
		quoted[i] = "'" + strings.ReplaceAll(a, "'", `'\''`) + "'"
	}
	return strings.Join(quoted, " ")
}

// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"frail/lab/host"
	"frail/lab/image"
)

func newSmall(name *string) *cobra.Command {
	cfg := host.SmallConfig{Files: map[string]string{}, Log: os.Stderr}
	var files []string
	var vendor, results string
	cmd := &cobra.Command{
		Use:   "small [flags] -- COMMAND [ARGUMENT...]",
		Short: "Boot the small host, run a command on it, and return its exit status",
		Long: `Boot the small host, run a command on it, and return its exit status.

The small host has the host's kernel, KVM and QEMU, busybox, and the files given
with --file below /frail. With one argument, the command is a shell script. Its
output is streamed; the host's console and kernel log are left in the results
directory.`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			for _, f := range files {
				src, dst, ok := strings.Cut(f, "=")
				if !ok {
					return fmt.Errorf("parse --file %s: want SOURCE=NAME", f)
				}
				cfg.Files[dst] = src
			}
			cfg.Command = args[0] + "\n"
			if len(args) > 1 {
				cfg.Command = quote(args) + "\n"
			}
			h, err := image.BuildHost(cmd.Context(), *name, os.Stderr)
			if err != nil {
				return err
			}
			if cfg.Image, err = image.BuildSmall(cmd.Context(), h, os.Stderr); err != nil {
				return err
			}
			switch vendor {
			case "amd":
				cfg.Emulator, err = image.BuildEmulator(cmd.Context(), os.Stderr)
			case "intel":
				cfg.Bochs, err = image.BuildBochs(cmd.Context(), os.Stderr)
			default:
				err = fmt.Errorf("parse --vendor %s: want amd or intel", vendor)
			}
			if err != nil {
				return err
			}
			if cfg.Results, err = resultsDir("build", *name, results); err != nil {
				return err
			}
			status, err := host.RunSmall(cmd.Context(), cfg, os.Stdout)
			fmt.Fprintln(os.Stderr, "lab: logs are in", cfg.Results)
			if err != nil {
				return err
			}
			if status != 0 {
				return statusError(status)
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&vendor, "vendor", "amd", "the host's CPU: amd (under QEMU) or intel (under Bochs)")
	cmd.Flags().StringArrayVar(&files, "file", nil, "put file or directory SOURCE on the host as /frail/NAME (SOURCE=NAME)")
	cmd.Flags().DurationVar(&cfg.Limit, "timeout", 10*time.Minute, "end the host if the command takes longer")
	cmd.Flags().BoolVar(&cfg.Icount, "icount", false, "count instructions: one takes one nanosecond of the host's time")
	cmd.Flags().IntVar(&cfg.MemoryMiB, "memory", 0, "the host's memory in MiB (default 1024)")
	cmd.Flags().StringVar(&results, "results", "", "directory for results (default: a new one in build/lab/runs)")
	return cmd
}

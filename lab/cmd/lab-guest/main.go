// SPDX-License-Identifier: Apache-2.0

// Command lab-guest starts guests on the lab's host and runs commands in them.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"frail/lab/vm"
)

// statusError is a guest command's own exit status.
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
		os.Exit(1)
	}
}

func newRoot() *cobra.Command {
	var limit time.Duration
	root := &cobra.Command{
		Use:           "lab-guest",
		Short:         "Start guests on the lab's host and run commands in them",
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.PersistentFlags().DurationVar(&limit, "timeout", 3*time.Minute, "give up after this time")
	within := func(cmd *cobra.Command) (context.Context, context.CancelFunc) {
		return context.WithTimeout(cmd.Context(), limit)
	}

	var cfg vm.Config
	var trace bool
	configure := func(cmd *cobra.Command) *cobra.Command {
		f := cmd.Flags()
		f.BoolVar(&trace, "trace", false, "ask for the guest to be traced, in its metadata")
		f.StringVar(&cfg.Metadata, "metadata", "", "XML for the domain's metadata")
		f.IntVar(&cfg.VCPUs, "vcpus", 1, "virtual CPUs")
		f.StringVar(&cfg.Cmdline, "cmdline", "", "words for the kernel's command line")
		f.StringVar(&cfg.Kernel, "kernel", "/frail/guest/vmlinuz", "the guest's kernel")
		f.StringVar(&cfg.Initrd, "initrd", "/frail/guest/initramfs.cpio.gz", "the guest's initramfs")
		return cmd
	}
	define := func(ctx context.Context, name string) (*vm.VM, error) {
		cfg.Name = name
		if trace {
			cfg.Metadata = vm.Traced
		}
		return vm.Define(ctx, cfg)
	}
	defineCmd := configure(&cobra.Command{
		Use:   "define NAME",
		Short: "Define a guest",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, cancel := within(cmd)
			defer cancel()
			_, err := define(ctx, args[0])
			return err
		},
	})
	start := configure(&cobra.Command{
		Use:   "start NAME",
		Short: "Define and start a guest and wait until it takes commands",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, cancel := within(cmd)
			defer cancel()
			v, err := define(ctx, args[0])
			if err != nil {
				return err
			}
			defer v.Close()
			if err := v.Start(ctx); err != nil {
				return err
			}
			return v.WaitReady(ctx)
		},
	})
	wait := &cobra.Command{
		Use:   "wait NAME",
		Short: "Wait until a guest that was started takes commands",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, cancel := within(cmd)
			defer cancel()
			v := vm.Find(args[0])
			defer v.Close()
			return v.WaitReady(ctx)
		},
	}

	run := &cobra.Command{
		Use:   "run NAME COMMAND...",
		Short: "Run command lines in a guest; the exit status is the first one's that is not 0",
		Args:  cobra.MinimumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, cancel := within(cmd)
			defer cancel()
			v := vm.Find(args[0])
			defer v.Close()
			failed := 0
			for _, command := range args[1:] {
				res, err := v.Run(ctx, command)
				if err != nil {
					return err
				}
				fmt.Print(res.Output)
				if failed == 0 {
					failed = res.Status
				}
			}
			if failed != 0 {
				return statusError(failed)
			}
			return nil
		},
	}

	stop := &cobra.Command{
		Use:   "stop NAME",
		Short: "End a guest and undefine it",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, cancel := within(cmd)
			defer cancel()
			v := vm.Find(args[0])
			if err := v.Destroy(ctx); err != nil {
				return err
			}
			return v.Undefine(ctx)
		},
	}
	root.AddCommand(defineCmd, start, wait, run, stop)
	return root
}

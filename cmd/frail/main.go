// SPDX-License-Identifier: Apache-2.0

// Command frail shows and controls the tracing of KVM guests' system calls.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"libvirt.org/go/libvirt"

	"frail/api"
	"frail/cmd/internal/exit"
)

func main() {
	// The first signal ends a trace in order; a second one finds the default again and
	// kills a command that does not end.
	ctx, stop := signal.NotifyContext(context.Background(), stopSignals...)
	context.AfterFunc(ctx, stop)

	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	if err != nil && !errors.Is(err, errReported) {
		fmt.Fprintln(os.Stderr, "error:", message(err))
	}
	os.Exit(int(statusOf(err)))
}

// errReported is a failure that the command has shown already.
var errReported = errors.New("reported")

// run executes the command line args.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	root := newRoot()
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	running := false
	walk(root, func(cmd *cobra.Command) {
		if inner := cmd.RunE; inner != nil {
			cmd.RunE = func(cmd *cobra.Command, args []string) error {
				running = true
				return inner(cmd, args)
			}
		}
	})
	err := root.ExecuteContext(ctx)
	if !running {
		// What fails before a command runs is about the command line.
		err = exit.With(exit.Usage, err)
	}
	return err
}

// walk calls f with cmd and all commands below it.
func walk(cmd *cobra.Command, f func(*cobra.Command)) {
	f(cmd)
	for _, c := range cmd.Commands() {
		walk(c, f)
	}
}

// statusOf returns the exit status for err.
func statusOf(err error) exit.Status {
	if st := exit.Of(err); st != exit.Failure {
		return st
	}
	if lverr, ok := errors.AsType[libvirt.Error](err); ok {
		switch lverr.Code {
		case libvirt.ERR_NO_DOMAIN:
			return exit.NotFound
		case libvirt.ERR_OPERATION_INVALID:
			return exit.WrongState
		}
	}
	var rpc interface{ GRPCStatus() *status.Status }
	if errors.As(err, &rpc) {
		switch rpc.GRPCStatus().Code() {
		case codes.NotFound:
			return exit.NotFound
		case codes.FailedPrecondition:
			return exit.WrongState
		case codes.InvalidArgument:
			return exit.Usage
		case codes.Unavailable:
			return exit.Unreachable
		}
	}
	return exit.Failure
}

// options are the flags of every command.
type options struct {
	uri    string // libvirt connection; empty: libvirt's own default
	socket string // fraild's
	quiet  bool
}

func newRoot() *cobra.Command {
	opts := new(options)
	root := &cobra.Command{
		Use:   "frail",
		Short: "Watch the system calls of KVM guests from outside",
		Long: `frail watches the system calls of KVM guests from outside: no agent in the guest,
no patched kernel on the host.

DOMAIN is a domain's name, id or UUID.`,
		Example: `  frail enable guest1 --live --config
  frail list
  frail trace guest1 --filter-syscall openat,execve`,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.NoArgs,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	flags := root.PersistentFlags()
	flags.StringVarP(&opts.uri, "connect", "c", "", "libvirt connection `URI` (default $LIBVIRT_DEFAULT_URI, else libvirt's)")
	flags.StringVar(&opts.socket, "socket", api.DefaultSocket, "`PATH` of fraild's socket")
	flags.BoolVarP(&opts.quiet, "quiet", "q", false, "no headers and no messages, only results")
	root.CompletionOptions.DisableDefaultCmd = true // it has its own
	root.AddCommand(
		newListCmd(opts),
		newDomstatsCmd(opts),
		newEnableCmd(opts),
		newDisableCmd(opts),
		newPsCmd(opts),
		newDmesgCmd(opts),
		newLayoutCmd(opts),
		newTraceCmd(opts),
		newCountCmd(opts),
		newCaptureCmd(opts),
		newReplayCmd(opts),
		newRecordCmd(opts),
		newAlertsCmd(opts),
		newTopCmd(opts),
		newProfileCmd(opts),
		newConfigCmd(),
		newDoctorCmd(opts),
		newVersionCmd(opts),
		newCompletionCmd(),
		newExitCodesCmd(),
		newGenCmd(),
	)
	completeFlags(root)
	return root
}

func newVersionCmd(opts *options) *cobra.Command {
	return &cobra.Command{
		Use:     "version",
		Short:   "Print the versions of frail and, if it runs, fraild",
		Long:    `Print the versions of frail and, if it runs, fraild. That fraild does not run is no error.`,
		Example: `  frail version`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			fmt.Fprintln(cmd.OutOrStdout(), "frail", api.Version())
			client, err := dialDaemon(opts.socket)
			if err != nil {
				return nil // a version needs no daemon
			}
			defer client.Close()
			st, err := client.Status(cmd.Context(), &api.StatusRequest{})
			if err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), "fraild", st.GetVersion())
			return nil
		},
	}
}

// message returns err's text for a terminal: libvirt's and gRPC's errors without the
// codes that are of no use there.
func message(err error) string {
	text := err.Error()
	if lverr, ok := errors.AsType[libvirt.Error](err); ok {
		text = strings.Replace(text, lverr.Error(), lverr.Message, 1)
	}
	var rpc interface{ GRPCStatus() *status.Status }
	if errors.As(err, &rpc) {
		text = rpc.GRPCStatus().Message()
	}
	return text
}

// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"frail/api"
	"frail/tracer"
	"frail/tracer/capture"
)

// syncInterval is how much of a capture may be missing when it is cut off.
const syncInterval = time.Second

func newCaptureCmd(opts *options) *cobra.Command {
	// What replays is what says who the threads are.
	t := traceOptions{who: true}
	var out string
	cmd := &cobra.Command{
		Use:   "capture DOMAIN -o FILE",
		Short: "Write a domain's system calls to a file",
		Long: `Write a domain's system calls to a file, until Ctrl-C or until the domain stops. A file
that was cut off by a crash lacks the last second. With filters of system calls or of what
they return it does not replay as it ran.

"frail replay FILE" analyses it. The file - is standard output, for a replay of what happens
now.`,
		Example: `  frail capture guest1 -o guest1.cap
  frail capture guest1 -o boot.cap --wait --limit 100000
  frail capture guest1 -o - | frail replay - --train guest1.cap --stide 6,20,12`,
		Args:              exactDomain,
		ValidArgsFunction: opts.completeDomain,
		RunE: func(cmd *cobra.Command, args []string) error {
			sink := &captureSink{path: out, stdout: cmd.OutOrStdout()}
			err := opts.withDaemon(cmd.Context(), func(d *daemon) error {
				return t.stream(cmd.Context(), d, args[0], sink, opts.noteTo(cmd.ErrOrStderr()))
			})
			err = errors.Join(err, sink.close())
			if err == nil && !opts.quiet {
				fmt.Fprintf(cmd.ErrOrStderr(), "%d events captured, %d lost\n", sink.sum.Delivered, sink.sum.Lost.Total())
			}
			return err
		},
	}
	flags := cmd.Flags()
	flags.StringVarP(&out, "output", "o", "", "the `FILE`; - is standard output")
	t.addFilters(flags, "capture")
	flags.Uint64Var(&t.start.Limit, "limit", 0, "end after `N` events; 0: no limit")
	flags.BoolVar(&t.start.Wait, "wait", false, "wait for the domain to be traced, if it is not")
	flags.StringVar(&t.readyFile, "ready-file", "", "create `FILE` when all events from then on are captured")
	if err := cmd.MarkFlagRequired("output"); err != nil {
		panic(err) // the flag is defined above
	}
	return cmd
}

// captureSink writes a trace to a file.
type captureSink struct {
	*capture.Writer
	path   string // - is stdout
	stdout io.Writer
	file   *os.File // nil for stdout
	buf    *bufio.Writer
	synced time.Time
	sum    tracer.Summary
}

// Started creates the file only now: a trace that is refused leaves an older one as it is.
func (c *captureSink) Started(s *api.TraceStarted) error {
	out := c.stdout
	var err error
	if c.path != "-" {
		if c.file, err = os.OpenFile(c.path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600); err != nil {
			return fmt.Errorf("create capture: %w", err)
		}
		out = c.file
	}
	c.buf = bufio.NewWriterSize(out, 1<<20)
	c.synced = time.Now()
	c.Writer, err = capture.NewWriter(c.buf, capture.Header{
		Domain: s.GetName(), UUID: s.GetUuid(), Started: time.Now().UTC(),
		RealtimeOffset: s.GetRealtimeOffset(), Frail: api.Version(),
	})
	return err
}

func (c *captureSink) Flush() error {
	if time.Since(c.synced) < syncInterval {
		return nil
	}
	c.synced = time.Now()
	if err := c.Sync(); err != nil {
		return err
	}
	return c.buf.Flush()
}

func (c *captureSink) Summary(s tracer.Summary) error {
	c.sum = s
	return nil
}

func (c *captureSink) close() error {
	var err error
	if c.Writer != nil {
		err = errors.Join(c.Close(), c.buf.Flush())
	}
	if c.file != nil {
		err = errors.Join(err, c.file.Close())
	}
	return err
}

// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"frail/api"
	"frail/bpf"
	"frail/tracer"
	"frail/tracer/format"
	"frail/tracer/ph"
)

// maxPending bounds the calls that are waited for: a guest has fewer threads.
const maxPending = 1 << 20

func newCountCmd(opts *options) *cobra.Command {
	var t traceOptions
	cmd := &cobra.Command{
		Use:   "count DOMAIN",
		Short: "Count a domain's system calls, errors and time in calls, like strace -c",
		Long: `Count a domain's system calls, errors and the time spent in them, until Ctrl-C or until
the domain stops, then print a table like strace -c.

Time is from a call to its return on the clock of the host. A call whose return is told only
at the thread's next call has no time, as all of a domain with exits="entry"; one whose
return value is not known has no error.`,
		Example: `  frail count guest1
  frail count guest1 --filter-comm nginx --limit 100000`,
		Args:              exactDomain,
		ValidArgsFunction: opts.completeDomain,
		RunE: func(cmd *cobra.Command, args []string) error {
			c := newCounts()
			err := opts.withDaemon(cmd.Context(), func(d *daemon) error {
				return t.stream(cmd.Context(), d, args[0], c, opts.noteTo(cmd.ErrOrStderr()))
			})
			if err != nil {
				return err
			}
			return c.write(cmd.OutOrStdout())
		},
	}
	flags := cmd.Flags()
	t.addFilters(flags, "count")
	flags.Uint64Var(&t.start.Limit, "limit", 0, "end after `N` events; 0: no limit")
	flags.BoolVar(&t.start.Wait, "wait", false, "wait for the domain to be traced, if it is not")
	flags.StringVar(&t.readyFile, "ready-file", "", "create `FILE` when all events from then on are counted")
	return cmd
}

// counts is a traceSink that counts.
type counts struct {
	calls   map[ph.Number]*callCount
	pending map[uint64]pendingCall // by task
	blind   uint32                 // entries that were not seen at some time
	sum     tracer.Summary
}

type callCount struct {
	calls, errors, timed uint64
	time                 time.Duration
}

type pendingCall struct {
	number ph.Number
	time   uint64
}

func newCounts() *counts {
	return &counts{calls: make(map[ph.Number]*callCount), pending: make(map[uint64]pendingCall)}
}

func (c *counts) Started(*api.TraceStarted) error { return nil }
func (c *counts) Flush() error                    { return nil }

func (c *counts) Event(ev *bpf.Event) error {
	switch ev.Kind {
	case bpf.EventEnter:
		c.enter(ev)
	case bpf.EventExit:
		c.exit(ev)
	case bpf.EventCoverage:
		_, blind := ev.Coverage()
		c.blind |= blind
	}
	return nil
}

func (c *counts) enter(ev *bpf.Event) {
	number := ph.NumberOf(ev.Table(), ev.Nr)
	n := c.calls[number]
	if n == nil {
		n = new(callCount)
		c.calls[number] = n
	}
	n.calls++
	if ev.Identified() && len(c.pending) < maxPending {
		c.pending[ev.Task] = pendingCall{number, ev.Time}
	}
}

func (c *counts) exit(ev *bpf.Event) {
	p, ok := c.pending[ev.Task]
	delete(c.pending, ev.Task)
	// The return must be that of the call, whose own may have been lost.
	if !ok || !ev.Identified() || !ev.NrKnown() || ph.NumberOf(ev.Table(), ev.Nr) != p.number {
		return
	}
	n := c.calls[p.number]
	if !ev.Deferred() {
		n.timed++
		n.time += time.Duration(ev.Time - p.time)
	}
	if !ev.RetKnown() {
		return
	}
	ret := ev.Ret
	if ev.Table() == bpf.Table32 {
		ret = int64(int32(ret))
	}
	if ret < 0 && ret >= -4095 {
		n.errors++
	}
}

func (c *counts) Lost(tracer.Lost) error {
	// The returns of calls made before may be missing.
	clear(c.pending)
	return nil
}

func (c *counts) Summary(s tracer.Summary) error {
	c.sum = s
	return nil
}

func (c *counts) write(w io.Writer) error {
	numbers := make([]ph.Number, 0, len(c.calls))
	var total callCount
	for n, x := range c.calls {
		numbers = append(numbers, n)
		total.calls += x.calls
		total.errors += x.errors
		total.time += x.time
	}
	slices.SortFunc(numbers, func(a, b ph.Number) int {
		x, y := c.calls[a], c.calls[b]
		return cmp.Or(cmp.Compare(y.time, x.time), cmp.Compare(y.calls, x.calls), cmp.Compare(a, b))
	})
	line := "------ ----------- ----------- --------- --------- ----------------\n"
	fmt.Fprintf(w, "%6s %11s %11s %9s %9s %s\n%s", "% time", "seconds", "usecs/call", "calls", "errors", "syscall", line)
	for _, n := range numbers {
		x := c.calls[n]
		share, per := 0.0, time.Duration(0)
		if total.time > 0 {
			share = 100 * float64(x.time) / float64(total.time)
		}
		if x.timed > 0 {
			per = x.time / time.Duration(x.timed)
		}
		fmt.Fprintf(w, "%6.2f %11.6f %11d %9d %9s %s\n", share, x.time.Seconds(), per.Microseconds(), x.calls, blankZero(x.errors), n)
	}
	_, err := fmt.Fprintf(w, "%s%6.2f %11.6f %11s %9d %9s total\n", line, 100.0, total.time.Seconds(), "", total.calls, blankZero(total.errors))
	if err == nil && c.sum.Lost.Total() > 0 {
		_, err = fmt.Fprintf(w, "%d events were lost\n", c.sum.Lost.Total())
	}
	if err == nil && c.blind != 0 {
		_, err = fmt.Fprintf(w, "calls by %s were not seen all the time\n", format.AppendEntries(nil, c.blind))
	}
	return err
}

func blankZero(n uint64) string {
	if n == 0 {
		return ""
	}
	return strconv.FormatUint(n, 10)
}

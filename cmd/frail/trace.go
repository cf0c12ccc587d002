// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"frail/api"
	"frail/bpf"
	"frail/cmd/internal/exit"
	"frail/hooks"
	"frail/tracer"
	"frail/tracer/format"
	"frail/tracer/syscalls/decode"
)

// stopTimeout bounds how long fraild may take to deliver the rest of a trace that the user
// ended.
const stopTimeout = 10 * time.Second

// defaultStringLimit is twice strace's: nobody is asked to run the program again with more.
const defaultStringLimit = 64

// traceOptions are the flags of frail trace.
type traceOptions struct {
	json      bool
	raw       bool
	decode    bool
	perfetto  string
	color     string
	who       bool
	timestamp bool
	readyFile string
	// start is the request, but for domain and identities.
	start api.TraceStart
}

func newTraceCmd(opts *options) *cobra.Command {
	var t traceOptions
	var g guestOptions
	var exits string
	cmd := &cobra.Command{
		Use:   "trace DOMAIN | trace --qmp SOCKET",
		Short: "Show a domain's system calls as they happen",
		Long: `Show a domain's system calls as they happen, until Ctrl-C or until the domain stops.
A summary closes the output: how many events were shown, and how many were lost and why.

Arguments and return values are shown as strace does. Strings, buffers and structures that
arguments point to are read when the call is made, and what it left there when it returns;
what cannot be read is an address. A return value of "?" is not known. A line between dashes says
when calls by some instruction begin to be unseen, because the guest uses its debug
registers, and when all are seen again.

Filters are applied in the host's kernel, and what is shown passes all of them. A call that is
chosen by what it returns is shown when it has returned. What a filter cannot judge, because who
made a call or what it returned is not known, is left out and counted in the summary.

With --qmp frail traces the guest of a QEMU without libvirt and fraild, and disarms it at
its end. It needs the right to trace QEMU, CAP_BPF and CAP_PERFMON.`,
		Example: `  frail trace guest1
  frail trace guest1 --filter-syscall openat,execve
  frail trace guest1 --filter-syscall '!futex' --filter-comm nginx --timestamp
  frail trace guest1 --filter-syscall %file,%process
  frail trace guest1 --filter-exe /usr/sbin/nginx --failed
  frail trace guest1 --filter-pid 312 --follow --filter-error EACCES,EPERM
  frail trace guest1 --filter-syscall execve --string-limit 1024
  frail trace guest1 --json --limit 1000
  frail trace guest1 --perfetto guest1.pftrace
  frail trace --qmp /run/vm.qmp`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkColor(t.color); err != nil {
				return err
			}
			if t.decode && !t.json {
				return errors.New("--decode is for --json: text is decoded without it")
			}
			if int(t.start.Data) > decode.MaxData {
				return exit.Usagef("--string-limit %d: at most %d", t.start.Data, decode.MaxData)
			}
			if t.raw {
				t.start.Data = 0
			}
			switch {
			case g.qmp != "" && t.start.Wait:
				return exit.Usagef("--wait is for domains")
			case g.qmp != "":
				return t.traceQMP(cmd.Context(), &g, exits, cmd.OutOrStdout(), opts.noteTo(cmd.ErrOrStderr()))
			case cmd.Flags().Changed("exits"):
				return exit.Usagef("--exits is for --qmp: frail enable sets those of a domain")
			}
			return opts.withDaemon(cmd.Context(), func(d *daemon) error {
				return t.run(cmd.Context(), d, args[0], cmd.OutOrStdout(), opts.noteTo(cmd.ErrOrStderr()))
			})
		},
	}
	g.addTo(cmd, opts)
	flags := cmd.Flags()
	flags.StringVar(&exits, "exits", hooks.ExitsBoth.String(), "with --qmp: what traps, by `MODE`: both or entry")
	flags.BoolVar(&t.json, "json", false, "print JSON, one document a line")
	flags.BoolVar(&t.raw, "raw", false, "show arguments and return values as numbers")
	flags.BoolVar(&t.decode, "decode", false, "with --json: add what arguments and return values mean")
	flags.StringVar(&t.perfetto, "perfetto", "", "write the trace into `FILE` for ui.perfetto.dev, and show only the summary")
	flags.StringVar(&t.color, "color", colorAuto, "colour the text, by `WHEN`: auto, if it goes to a terminal and NO_COLOR is not set, always or never")
	cmd.MarkFlagsMutuallyExclusive("json", "raw", "perfetto")
	t.addFilters(flags, "show")
	flags.Uint32Var(&t.start.Data, "string-limit", defaultStringLimit, "read `N` bytes of a string or buffer, and of a path 255 at least; 0: read nothing that arguments point to")
	flags.BoolVar(&t.who, "who", false, "say who a thread is before its first event, and when that has changed; --json always does")
	flags.BoolVar(&t.timestamp, "timestamp", false, "show the time of day of each event")
	flags.Uint64Var(&t.start.Limit, "limit", 0, "end after `N` events; 0: no limit")
	flags.BoolVar(&t.start.Wait, "wait", false, "wait for the domain to be traced, if it is not")
	flags.StringVar(&t.readyFile, "ready-file", "", "create `FILE` when all events from then on are shown")
	return cmd
}

// run shows a trace until ctx is done or the daemon ends it. note shows a message that is
// no part of the trace.
func (t *traceOptions) run(ctx context.Context, client api.FrailClient, domain string, w io.Writer, note func(string)) error {
	out, err := t.open(w)
	if err != nil {
		return err
	}
	defer out.close()
	return t.stream(ctx, client, domain, out, note)
}

// traceSink takes what a trace consists of. All calls come from one goroutine; an error
// ends the trace.
type traceSink interface {
	tracer.Sink
	// Started comes first.
	Started(*api.TraceStarted) error
	// Summary comes last, unless the trace fails.
	Summary(tracer.Summary) error
}

// stream gives a trace to sink until ctx is done or the daemon ends it. note shows a
// message that is no part of the trace.
func (t *traceOptions) stream(ctx context.Context, client api.FrailClient, domain string, sink traceSink, note func(string)) error {
	// Not ctx: the rest of the trace and its summary come after ctx is done.
	callCtx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	stream, err := client.Trace(callCtx)
	if err != nil {
		return err
	}
	t.start.Domain, t.start.Identities = domain, t.identities()
	if err := stream.Send(&api.TraceRequest{Request: &api.TraceRequest_Start{Start: &t.start}}); err != nil && !errors.Is(err, io.EOF) { // Recv tells what EOF hides
		return err
	}
	defer context.AfterFunc(ctx, func() {
		// A failure shows in Recv.
		_ = stream.Send(&api.TraceRequest{Request: &api.TraceRequest_Stop{Stop: &api.TraceStop{}}})
		_ = stream.CloseSend()
		time.AfterFunc(stopTimeout, cancel)
	})()

	var ev bpf.Event
	var data bpf.Data
	var process bpf.Process
	withData, _ := sink.(tracer.DataSink)
	for {
		resp, err := stream.Recv()
		if err != nil {
			if ctx.Err() != nil && callCtx.Err() != nil {
				return fmt.Errorf("fraild did not end the trace within %s", stopTimeout)
			}
			return err
		}
		switch rec := resp.GetRecord().(type) {
		case *api.TraceResponse_Started:
			if err := sink.Started(rec.Started); err != nil {
				return err
			}
			if rec.Started.GetVm() == 0 {
				note(fmt.Sprintf("waiting for domain '%s' to be traced", printable(rec.Started.GetName())))
			}
			if t.readyFile != "" {
				if err := os.WriteFile(t.readyFile, nil, 0o644); err != nil {
					return fmt.Errorf("create ready file: %w", err)
				}
			}
		case *api.TraceResponse_Events:
			for _, e := range rec.Events.GetEvents() {
				if withData != nil && len(e.GetData()) > 0 {
					e.UnpackData(&data)
					if err := withData.Data(&data); err != nil {
						return err
					}
					continue
				}
				e.Unpack(&ev)
				if err := sink.Event(&ev); err != nil {
					return err
				}
			}
		case *api.TraceResponse_Identity:
			if sink, ok := sink.(tracer.ProcessSink); ok {
				rec.Identity.Unpack(&process)
				if err := sink.Process(&process); err != nil {
					return err
				}
			}
		case *api.TraceResponse_Lost:
			if err := sink.Lost(tracer.Lost{Time: rec.Lost.GetTime(), Losses: losses(rec.Lost.GetCounts())}); err != nil {
				return err
			}
		case *api.TraceResponse_Summary:
			sum := rec.Summary
			if err := sink.Summary(tracer.Summary{
				Delivered: sum.GetEvents(), Lost: losses(sum.GetLost()), Unjudged: sum.GetUnjudged(),
			}); err != nil {
				return err
			}
			return endOf(sum.GetReason(), domain, note)
		}
		if err := sink.Flush(); err != nil {
			return err
		}
	}
}

// traceText writes a trace: as lines, or into a file.
type traceText struct {
	t    *traceOptions
	w    io.Writer
	f    format.Formatter
	text []byte
	// file is w, if the trace goes into one of its own; out then takes the summary.
	file *os.File
	out  io.Writer
}

// open returns what writes the trace to w, or to the file that the options name. The caller
// closes it.
func (t *traceOptions) open(w io.Writer) (*traceText, error) {
	if t.perfetto == "" {
		return &traceText{t: t, w: w}, nil
	}
	file, err := os.Create(t.perfetto)
	if err != nil {
		return nil, fmt.Errorf("--perfetto: %w", err)
	}
	return &traceText{t: t, w: file, file: file, out: w}, nil
}

func (x *traceText) close() {
	if x.file != nil {
		_ = x.file.Close() // after the summary there is nothing left to fail
	}
}

func (x *traceText) Started(s *api.TraceStarted) error {
	x.f = x.t.formatter(time.Duration(s.GetRealtimeOffset()), x.w)
	return nil
}

func (x *traceText) Event(ev *bpf.Event) error {
	x.text = x.f.AppendEvent(x.text, ev)
	return nil
}

// Data implements tracer.DataSink.
func (x *traceText) Data(d *bpf.Data) error {
	x.text = x.f.AppendData(x.text, d)
	return nil
}

// Process implements tracer.ProcessSink.
func (x *traceText) Process(p *bpf.Process) error {
	x.text = x.f.AppendProcess(x.text, p)
	return nil
}

func (x *traceText) Lost(l tracer.Lost) error {
	x.text = x.f.AppendLost(x.text, l)
	return nil
}

func (x *traceText) Flush() error {
	_, err := x.w.Write(x.text)
	x.text = x.text[:0]
	if err != nil {
		return fmt.Errorf("write: %w", err)
	}
	return nil
}

func (x *traceText) Summary(s tracer.Summary) error {
	x.text = x.f.AppendSummary(x.text, s)
	if err := x.Flush(); err != nil || x.file == nil {
		return err
	}
	if err := x.file.Close(); err != nil {
		return fmt.Errorf("write: %w", err)
	}
	_, err := x.out.Write(new(format.Text).AppendSummary(nil, s))
	return err
}

// noteTo returns a function that shows a message unless the user asked for quiet.
func (o *options) noteTo(w io.Writer) func(string) {
	return func(note string) {
		if !o.quiet {
			fmt.Fprintln(w, note)
		}
	}
}

// identities reports whether the trace says who the threads are.
func (t *traceOptions) identities() bool { return t.who || t.json || t.perfetto != "" }

// formatter returns how the trace is written to w. offset makes the time of day of an
// event's time.
func (t *traceOptions) formatter(offset time.Duration, w io.Writer) format.Formatter {
	switch {
	case t.json:
		return &format.JSON{Offset: offset, Decode: t.decode}
	case t.perfetto != "":
		return &format.Perfetto{Offset: offset}
	}
	return &format.Text{
		Raw: t.raw, Color: useColor(t.color, w), Timestamp: t.timestamp, Offset: offset, Location: time.Local,
	}
}

// When text has colours.
const (
	colorAuto   = "auto"
	colorAlways = "always"
	colorNever  = "never"
)

func checkColor(when string) error {
	switch when {
	case colorAuto, colorAlways, colorNever:
		return nil
	}
	return fmt.Errorf("--color %q: one of %s, %s and %s", when, colorAuto, colorAlways, colorNever)
}

// useColor reports whether text for w is to have colours: see https://no-color.org.
func useColor(when string, w io.Writer) bool {
	if when != colorAuto {
		return when == colorAlways
	}
	file, ok := w.(*os.File)
	if !ok || os.Getenv("NO_COLOR") != "" {
		return false
	}
	_, err := unix.IoctlGetTermios(int(file.Fd()), unix.TCGETS)
	return err == nil
}

// endOf says why a trace ended that the user did not end.
func endOf(reason, domain string, note func(string)) error {
	switch reason {
	case "stopped", "limit":
	case "shut off":
		note(fmt.Sprintf("domain '%s' was shut off", printable(domain)))
	case "disabled":
		note(fmt.Sprintf("domain '%s' is not traced any more", printable(domain)))
	case "armed again":
		note(fmt.Sprintf("domain '%s' was armed again with other exits: trace it again", printable(domain)))
	default:
		return fmt.Errorf("trace ended by fraild: %s", printable(reason))
	}
	return nil
}

func losses(c *api.LossCounts) tracer.Losses {
	return tracer.Losses{RingFull: c.GetRingFull(), ReadFault: c.GetReadFault(), Recursion: c.GetRecursion()}
}

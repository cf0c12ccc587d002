// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"frail/api"
	"frail/bpf"
	"frail/cmd/internal/exit"
	"frail/hooks"
	"frail/tracer"
	"frail/tracer/capture"
	"frail/tracer/profile"
)

func newRecordCmd(opts *options) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "record",
		Short: "Show and save what the flight recorder holds of domains",
		Long: `Show and save what the flight recorder holds of domains: their last seconds of system calls,
in memory, at no cost to anybody until they are wanted. A domain is recorded if its metadata has
<frail:record seconds="30"/>, or by record.seconds in fraild's configuration. An alert of the
sequence analysis writes the record to a file on its own.`,
		Example: `  frail record list
  frail record dump guest1
  frail record show guest1.frail`,
	}
	cmd.AddCommand(newRecordList(opts), newRecordDump(opts), newRecordShow())
	return cmd
}

func newRecordList(opts *options) *cobra.Command {
	var files, asJSON bool
	cmd := &cobra.Command{
		Use:   "list [DOMAIN]",
		Short: "List the domains that are recorded",
		Long: `List the domains that are recorded: how many seconds are asked for, how many are held, and how
many events. "full" says that there is no room for older ones: record.max_bytes of fraild's
configuration. The record of a domain that was shut off stays until it starts again, is
undefined, or fraild ends. --files lists the files that alerts wrote instead.`,
		Example: `  frail record list
  frail record list guest1 --files`,
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: opts.completeDomain,
		RunE: func(cmd *cobra.Command, args []string) error {
			req := new(api.RecordsRequest)
			if len(args) > 0 {
				req.Domain = args[0]
			}
			return opts.withDaemon(cmd.Context(), func(d *daemon) error {
				resp, err := d.Records(cmd.Context(), req)
				if err != nil {
					return err
				}
				return writeRecords(cmd.OutOrStdout(), resp, files, asJSON, opts.quiet)
			})
		},
	}
	cmd.Flags().BoolVar(&files, "files", false, "list the files that alerts wrote")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func writeRecords(w io.Writer, resp *api.RecordsResponse, files, asJSON, quiet bool) error {
	if asJSON {
		type file struct {
			Path  string `json:"path"`
			Bytes uint64 `json:"bytes"`
		}
		type record struct {
			Domain   string  `json:"domain"`
			UUID     string  `json:"uuid"`
			Seconds  uint32  `json:"seconds"`
			Held     float64 `json:"held_seconds"`
			Events   uint64  `json:"events"`
			Recorded uint64  `json:"recorded"`
			Full     bool    `json:"full"`
			Bytes    uint64  `json:"bytes"`
			Ended    bool    `json:"ended"`
		}
		doc := struct {
			Records []record `json:"records"`
			Files   []file   `json:"files"`
		}{[]record{}, []file{}}
		for _, r := range resp.GetRecords() {
			doc.Records = append(doc.Records, record{
				printable(r.GetName()), r.GetUuid(), r.GetSeconds(), time.Duration(r.GetHeldNs()).Seconds(), r.GetHeld(),
				r.GetRecorded(), r.GetRecorded() > r.GetHeld(), r.GetBytes(), r.GetEnded(),
			})
		}
		for _, f := range resp.GetFiles() {
			doc.Files = append(doc.Files, file{printable(f.GetPath()), f.GetBytes()})
		}
		return json.NewEncoder(w).Encode(&doc)
	}
	var header []string
	var rows [][]string
	if files {
		header = []string{"File", "Bytes"}
		for _, f := range resp.GetFiles() {
			rows = append(rows, []string{f.GetPath(), strconv.FormatUint(f.GetBytes(), 10)})
		}
	} else {
		header = []string{"Name", "Seconds", "Held", "Events", "MiB", "State"}
		for _, r := range resp.GetRecords() {
			state := "recording"
			if r.GetEnded() {
				state = "ended"
			}
			if r.GetRecorded() > r.GetHeld() {
				state += ", full"
			}
			rows = append(rows, []string{
				r.GetName(), strconv.FormatUint(uint64(r.GetSeconds()), 10),
				strconv.FormatFloat(time.Duration(r.GetHeldNs()).Seconds(), 'f', 1, 64),
				strconv.FormatUint(r.GetHeld(), 10), strconv.FormatUint(r.GetBytes()>>20, 10), state,
			})
		}
	}
	if quiet {
		header = nil
	}
	return writeTable(w, header, rows)
}

func newRecordDump(opts *options) *cobra.Command {
	var out string
	var seconds uint32
	cmd := &cobra.Command{
		Use:   "dump DOMAIN",
		Short: "Save what is recorded of a domain",
		Long: `Save what is recorded of a domain to a file, as "frail capture" writes it: "frail replay" and
"frail record show" read it. The recording goes on. The file appears when it is complete.`,
		Example: `  frail record dump guest1
  frail record dump guest1 --seconds 5 -o crash.frail
  frail record dump guest1 -o - | frail replay -`,
		Args:              exactDomain,
		ValidArgsFunction: opts.completeDomain,
		RunE: func(cmd *cobra.Command, args []string) error {
			if seconds > hooks.MaxRecordSeconds {
				return exit.Usagef("--seconds is at most %d", hooks.MaxRecordSeconds)
			}
			path := out
			if path == "" {
				path = args[0] + "-" + time.Now().UTC().Format("20060102T150405Z") + ".frail"
			}
			return opts.withDaemon(cmd.Context(), func(d *daemon) error {
				req := &api.DumpRecordRequest{Domain: args[0], Seconds: seconds}
				data, sum, err := dumpRecord(cmd.Context(), d, req)
				if err != nil {
					return err
				}
				if path == "-" {
					_, err = cmd.OutOrStdout().Write(data)
				} else {
					err = profile.WriteFile(path, data)
				}
				if err != nil {
					return fmt.Errorf("write record: %w", err)
				}
				note := opts.noteTo(cmd.ErrOrStderr())
				note(fmt.Sprintf("%d events of %.1f seconds written to %s, %d lost", sum.GetEvents(),
					time.Duration(sum.GetSpanNs()).Seconds(), printable(path), losses(sum.GetLost()).Total()))
				if sum.GetFull() {
					note(fmt.Sprintf("there was no room for %d seconds: raise record.max_bytes of fraild's configuration", sum.GetSeconds()))
				}
				return nil
			})
		},
	}
	cmd.Flags().StringVarP(&out, "output", "o", "", "the `FILE`; - is standard output (default DOMAIN-TIME.frail)")
	cmd.Flags().Uint32Var(&seconds, "seconds", 0, "save the last `N` seconds; 0: as many as are asked for")
	return cmd
}

// dumpRecord returns a record's bytes and what is in it.
func dumpRecord(ctx context.Context, client api.FrailClient, req *api.DumpRecordRequest) ([]byte, *api.RecordSummary, error) {
	stream, err := client.DumpRecord(ctx, req)
	if err != nil {
		return nil, nil, err
	}
	var data []byte
	for {
		resp, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			err = errors.New("fraild sent no whole record")
		}
		if err != nil {
			return nil, nil, err
		}
		if sum := resp.GetSummary(); sum != nil {
			return data, sum, nil
		}
		data = append(data, resp.GetData()...)
	}
}

func newRecordShow() *cobra.Command {
	var t traceOptions
	cmd := &cobra.Command{
		Use:   "show FILE",
		Short: "Show the system calls in a file",
		Long: `Show the system calls in a file of "frail record dump", of an alert or of "frail capture", as
"frail trace" shows them.`,
		Example: `  frail record show guest1.frail --timestamp
  frail record show /var/lib/frail/records/guest1-20261126T170140.000Z.frail --json`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkColor(t.color); err != nil {
				return exit.With(exit.Usage, err)
			}
			return t.show(args[0], cmd.OutOrStdout())
		},
	}
	flags := cmd.Flags()
	flags.BoolVar(&t.json, "json", false, "print JSON, one document a line")
	flags.BoolVar(&t.raw, "raw", false, "show arguments and return values as numbers")
	flags.StringVar(&t.color, "color", colorAuto, "colour the text, by `WHEN`: auto, always or never")
	flags.BoolVar(&t.who, "who", false, "say who a thread is before its first event, and when that has changed; --json always does")
	flags.BoolVar(&t.timestamp, "timestamp", false, "show the time of day of each event")
	cmd.MarkFlagsMutuallyExclusive("json", "raw")
	return cmd
}

// show writes the calls of a capture as a trace.
func (t *traceOptions) show(path string, w io.Writer) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	r, err := capture.NewReader(file)
	if err != nil {
		return err
	}
	defer r.Close()
	text, err := t.open(w)
	if err != nil {
		return err
	}
	if err := text.Started(&api.TraceStarted{RealtimeOffset: r.Header.RealtimeOffset}); err != nil {
		return err
	}
	shown := &shownSink{traceText: text, who: t.identities(), said: make(map[threadWho]bool)}
	if err := r.Run(shown); err != nil {
		return err
	}
	if err := text.Summary(shown.sum); err != nil {
		return err
	}
	if r.Truncated {
		return fmt.Errorf("%s is cut off", printable(path))
	}
	return nil
}

// threadWho names a description of a thread.
type threadWho struct {
	vm  uint32
	who uint64
}

// shownSink counts what is shown. A capture says in each block who the threads are: it is shown
// once.
type shownSink struct {
	*traceText
	sum  tracer.Summary
	who  bool
	said map[threadWho]bool
}

func (s *shownSink) Event(ev *bpf.Event) error {
	s.sum.Delivered++
	return s.traceText.Event(ev)
}

func (s *shownSink) Lost(l tracer.Lost) error {
	s.sum.Lost = s.sum.Lost.Plus(l.Losses)
	return s.traceText.Lost(l)
}

// Process implements tracer.ProcessSink.
func (s *shownSink) Process(p *bpf.Process) error {
	key := threadWho{p.Head.Vm, p.Head.Who}
	if !s.who || s.said[key] {
		return nil
	}
	s.said[key] = true
	return s.traceText.Process(p)
}

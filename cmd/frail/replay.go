// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"frail/bpf"
	"frail/cmd/internal/exit"
	"frail/hooks"
	"frail/tracer"
	"frail/tracer/capture"
	"frail/tracer/ph"
	"frail/tracer/profile"
)

// replayOptions are the flags of frail replay.
type replayOptions struct {
	unm      bool
	adfa     string
	train    []string
	profiles []string
	export   string
	score    bool
	json     bool
	stide    string
	wait     string
	settings ph.Settings
}

func newReplayCmd(opts *options) *cobra.Command {
	var r replayOptions
	cmd := &cobra.Command{
		Use:   "replay FILE | --unm FILE... | --adfa DIR",
		Short: "Analyse recorded system calls as if they were live",
		Long: `Analyse recorded system calls by the same rules as live ones, and show the alerts. FILE
was written by "frail capture", and - is standard input, which may be a capture that goes on;
--unm takes traces of the University of New Mexico, --adfa
the directory of the ADFA Linux data set.

What is known before is nothing, or the profiles of --profile, or what the recordings of
--train teach: after these, the profiles judge, and learn no more. With --adfa the data
set's own training part is learnt first. A profile that drifts judges no more: to score every
process, raise --anomaly.

--stide judges by exact sequences too: a call is a miss if the executable never made it after
just the calls before it. It learns from --train alone. With a LIMIT, more misses among a thread's
last FRAME calls are an alert of the kind "stide".`,
		Example: `  frail replay guest.cap --profile ./nginx.profile
  frail replay --unm --train 'normal/*' --score intrusion/*
  frail replay --adfa ADFA-LD --score`,
		Args: cobra.ArbitraryArgs, // files
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case r.adfa != "" && (r.unm || len(args) > 0 || len(r.train) > 0):
				return exit.Usagef("--adfa takes no other recordings")
			case r.adfa == "" && len(args) == 0:
				return exit.Usagef("nothing to replay: give a FILE, --unm FILE... or --adfa DIR")
			}
			var err error
			if r.settings.NormalWait, err = hooks.ParseDuration(r.wait); err != nil {
				return exit.Usagef("--normal-wait %q: %w", r.wait, err)
			}
			if r.settings.TolerizeLimit >= ph.Frame || r.settings.ProcessLimit >= ph.MaxProcessLimit {
				return exit.Usagef("--tolerize is at most %d, --processes %d", ph.Frame-1, ph.MaxProcessLimit-1)
			}
			return r.run(cmd.OutOrStdout(), opts.noteTo(cmd.ErrOrStderr()), args)
		},
	}
	flags := cmd.Flags()
	defaults := ph.DefaultSettings()
	flags.BoolVar(&r.unm, "unm", false, "the files are traces of the University of New Mexico")
	flags.StringVar(&r.adfa, "adfa", "", "analyse the ADFA Linux data set in `DIR`")
	flags.StringArrayVar(&r.train, "train", nil, "learn these recordings first, then only judge: a `PATTERN` of files; may be repeated")
	flags.StringArrayVar(&r.profiles, "profile", nil, "begin with the profile in `FILE`; may be repeated")
	flags.StringVar(&r.export, "export", "", "write the profiles as they are at the end into `DIR`")
	flags.BoolVar(&r.score, "score", false, "show what each process came to")
	flags.BoolVar(&r.json, "json", false, "print alerts as JSON, one document a line")
	flags.StringVar(&r.stide, "stide", "", "score exact sequences too, of `WINDOW,FRAME[,LIMIT]`, such as 6,20,12: of WINDOW calls, by the last FRAME")
	flags.BoolVar(&r.settings.Learn, "learn", defaults.Learn, "let profiles grow")
	flags.Uint32Var(&r.settings.TolerizeLimit, "tolerize", defaults.TolerizeLimit, "allow `N` anomalous calls among a thread's last 128")
	flags.Uint32Var(&r.settings.AnomalyLimit, "anomaly", defaults.AnomalyLimit, "allow `N` anomalous calls of an executable")
	flags.Uint32Var(&r.settings.ProcessLimit, "processes", defaults.ProcessLimit, "allow `N` anomalous processes of an executable")
	flags.StringVar(&r.wait, "normal-wait", "7d", "the `TIME` that a frozen profile waits before it judges")
	return cmd
}

// replay is an analysis of recordings. It is a tracer.ProcessSink.
type replay struct {
	*replayOptions
	w        io.Writer
	analyzer *ph.Analyzer
	stide    *ph.Stide
	namer    *ph.Namer // of a recording that does not say who the threads are
	header   capture.Header
	followed map[uint32]bool
	loaded   []*profile.File
	training bool
	calls    uint64
	lost     uint64
	alerts   int
	err      error

	trace   string
	order   []scoreKey
	results map[scoreKey]*score
}

type scoreKey struct {
	trace string
	vm    uint32
	pid   int32
	task  uint64
}

// score is what a process came to.
type score struct {
	comm                      string
	calls, anomalies, alert   int
	lfc                       uint8
	stideMisses, stideHighest int
}

func (r *replayOptions) run(w io.Writer, note func(string), files []string) error {
	x := &replay{
		replayOptions: r, w: w, analyzer: ph.New(ph.DefaultLimits()),
		followed: make(map[uint32]bool), results: make(map[scoreKey]*score),
	}
	if r.stide != "" {
		if err := x.openStide(); err != nil {
			return err
		}
	}
	for _, path := range r.profiles {
		f, err := readProfileFile(path)
		if err != nil {
			return err
		}
		x.loaded = append(x.loaded, f)
	}
	x.analyzer.Tell = func(rec *bpf.PhRecord) {
		for _, a := range ph.AlertsOf(nil, rec) {
			x.alert(&a)
		}
	}

	start := time.Now()
	if err := x.replayAll(files); err != nil {
		return err
	}
	if r.score {
		if err := x.writeScores(); err != nil {
			return err
		}
	}
	if r.export != "" {
		if err := x.exportAll(); err != nil {
			return err
		}
	}
	text := fmt.Sprintf("%d calls, %d alerts, %.1f million calls/s", x.calls, x.alerts, float64(x.calls)/time.Since(start).Seconds()/1e6)
	if x.lost > 0 {
		text += fmt.Sprintf("; %d events were lost when this was recorded", x.lost)
	}
	note(text)
	return nil
}

// openStide makes the scorer of --stide.
func (x *replay) openStide() error {
	var n [3]int
	parts := strings.Split(x.replayOptions.stide, ",")
	for i, part := range parts {
		var err error
		if len(parts) < 2 || len(parts) > len(n) {
			err = strconv.ErrSyntax
		} else {
			n[i], err = strconv.Atoi(part)
		}
		if err != nil {
			return exit.Usagef("--stide %q: want WINDOW,FRAME[,LIMIT], such as 6,20,12", x.replayOptions.stide)
		}
	}
	var err error
	if x.stide, err = ph.NewStide(n[0], n[1]); err != nil {
		return exit.Usagef("--stide: %w", err)
	}
	if len(parts) == len(n) {
		if n[2] < 0 || n[2] >= n[1] {
			return exit.Usagef("--stide: limit %d: want 0 to %d, below the frame", n[2], n[1]-1)
		}
		x.stide.Tell, x.stide.AlertLimit = x.alert, n[2]
	}
	return nil
}

// alert shows an alert, unless it is of what is taught.
func (x *replay) alert(a *ph.Alert) {
	if x.training || x.err != nil {
		return
	}
	x.alerts++
	at := time.Unix(0, int64(a.Time)+x.header.RealtimeOffset)
	x.err = writeAlert(x.w, x.domain(), x.header.UUID, at, a, x.json)
}

// domain returns the name alerts are shown with.
func (x *replay) domain() string {
	if x.header.Domain != "" {
		return x.header.Domain
	}
	return x.trace
}

// replayAll trains and then judges.
func (x *replay) replayAll(files []string) error {
	if x.adfa != "" {
		data, err := ph.ReadADFA(x.adfa)
		if err != nil {
			return err
		}
		x.training = true
		if err := x.traces(data.Training, "adfa", 0); err != nil {
			return err
		}
		x.judge()
		return x.traces(append(data.Validation, data.Attack...), "adfa", 0)
	}
	if len(x.train) > 0 {
		x.training = true
		for _, pattern := range x.train {
			paths, err := filepath.Glob(pattern)
			if err != nil || len(paths) == 0 {
				return fmt.Errorf("--train %q: no such file", pattern)
			}
			for _, path := range paths {
				if err := x.file(path); err != nil {
					return err
				}
			}
		}
		x.judge()
	}
	for _, path := range files {
		if err := x.file(path); err != nil {
			return err
		}
	}
	return nil
}

// judge ends the training.
func (x *replay) judge() {
	x.training = false
	for _, exe := range x.analyzer.Executables() {
		x.analyzer.Control(exe, ph.Normalize)
	}
	x.settings.Learn = false
	for vm := range x.followed {
		x.analyzer.AddVM(vm, x.settings)
	}
}

func (x *replay) file(path string) error {
	if x.unm {
		t, err := ph.ReadUNM(path)
		if err != nil {
			return err
		}
		return x.traces([]*ph.Trace{t}, "unm", ph.ForeignBase)
	}
	f := os.Stdin
	if path != "-" {
		var err error
		if f, err = os.Open(path); err != nil {
			return fmt.Errorf("replay: %w", err)
		}
		defer f.Close()
	}
	r, err := capture.NewReader(f)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	defer r.Close()
	x.header, x.trace = r.Header, filepath.Base(path)
	x.namer = nil
	if !r.Described {
		x.namer = new(ph.Namer)
	}
	if err := r.Run(x); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

// traces analyses the traces of a data set.
func (x *replay) traces(ts []*ph.Trace, comm string, base int64) error {
	x.namer = new(ph.Namer)
	for _, t := range ts {
		x.trace = t.Name
		var err error
		t.Events(1, comm, base, uint32(len(x.order))+uint32(x.calls), func(ev *bpf.Event) bool {
			err = x.Event(ev)
			return err == nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// follow makes the analyser follow a VM when it is first seen.
func (x *replay) follow(vm uint32) error {
	if x.followed[vm] {
		return nil
	}
	x.followed[vm] = true
	s := x.settings
	if x.training {
		// What is taught is not to be judged or forgotten on the way.
		s.Learn, s.NormalWait = true, 1<<62
	}
	x.analyzer.AddVM(vm, s)
	for _, f := range x.loaded {
		p := f.Profile
		p.NormalTime = uint64(max(1, f.NormalAt.UnixNano()-x.header.RealtimeOffset))
		if !x.analyzer.Load(ph.NewExecutable(vm, f.Name), &p) {
			return fmt.Errorf("load profile of %q: a limit is reached", f.Name)
		}
	}
	return nil
}

// Process implements tracer.ProcessSink.
func (x *replay) Process(p *bpf.Process) error {
	if err := x.follow(p.Head.Vm); err != nil {
		return err
	}
	x.analyzer.Process(p)
	if x.stide != nil {
		x.stide.Process(p)
	}
	return nil
}

// Event implements tracer.Sink.
func (x *replay) Event(ev *bpf.Event) error {
	if ev.Kind != bpf.EventEnter {
		return nil
	}
	if err := x.follow(ev.Vm); err != nil {
		return err
	}
	if x.namer != nil {
		if p := x.namer.Describe(ev); p != nil {
			if err := x.Process(p); err != nil {
				return err
			}
		}
	}
	x.calls++
	v := x.analyzer.Call(ev)
	var sv ph.StideVerdict
	if x.stide != nil {
		sv = x.stide.Call(ev, x.training)
	}
	if x.err != nil {
		return x.err
	}
	if !x.score || x.training {
		return nil
	}
	key := scoreKey{x.trace, ev.Vm, ev.Pid, ev.Task}
	s := x.results[key]
	if s == nil {
		s = &score{}
		x.results[key] = s
		x.order = append(x.order, key)
	}
	s.comm = string(ev.CommBytes())
	s.calls++
	s.lfc = max(s.lfc, v.LFC)
	if v.Miss != 0 {
		s.anomalies++
	}
	if s.alert == 0 && v.Flags&ph.Alerts != 0 {
		s.alert = s.calls
	}
	if sv.Miss {
		s.stideMisses++
	}
	s.stideHighest = max(s.stideHighest, sv.LFC)
	return nil
}

// Lost implements tracer.Sink.
func (x *replay) Lost(l tracer.Lost) error {
	x.lost += l.Total()
	return nil
}

// Flush implements tracer.Sink.
func (x *replay) Flush() error { return nil }

func (x *replay) writeScores() error {
	header := []string{"Trace", "Process", "PID", "Calls", "Anomalies", "Max LFC", "First alert"}
	if x.stide != nil {
		header = append(header, "Stide misses", "Stide LFC")
	}
	rows := make([][]string, 0, len(x.order))
	for _, key := range x.order {
		s := x.results[key]
		first := "-"
		if s.alert > 0 {
			first = strconv.Itoa(s.alert)
		}
		row := []string{
			key.trace, s.comm, strconv.Itoa(int(key.pid)), strconv.Itoa(s.calls), strconv.Itoa(s.anomalies),
			strconv.Itoa(int(s.lfc)), first,
		}
		if x.stide != nil {
			row = append(row, strconv.Itoa(s.stideMisses), strconv.Itoa(s.stideHighest))
		}
		rows = append(rows, row)
	}
	return writeTable(x.w, header, rows)
}

// exportAll writes all profiles into the directory of --export.
func (x *replay) exportAll() error {
	if err := os.MkdirAll(x.export, 0o755); err != nil {
		return fmt.Errorf("export profiles: %w", err)
	}
	names := make(map[string]int)
	for _, exe := range x.analyzer.Executables() {
		f := &profile.File{Profile: *x.analyzer.Profile(exe), Domain: x.header.UUID, Saved: time.Now().UTC()}
		if f.Frozen {
			f.NormalAt = time.Unix(0, int64(f.NormalTime)+x.header.RealtimeOffset)
		}
		text, err := profile.Encode(f)
		if err != nil {
			return err
		}
		// The guest chose the name.
		name := strings.Map(func(c rune) rune {
			if c == '-' || c == '_' || c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' {
				return c
			}
			return '_'
		}, strings.TrimPrefix(exe.Name(), "/"))
		if n := names[name]; n > 0 {
			name += "." + strconv.Itoa(n)
		}
		names[name]++
		if err := profile.WriteFile(filepath.Join(x.export, name+".profile"), text); err != nil {
			return fmt.Errorf("export profiles: %w", err)
		}
	}
	return nil
}

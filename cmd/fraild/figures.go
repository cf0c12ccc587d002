// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"errors"
	"maps"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"frail/api"
	"frail/bpf"
	"frail/qmp/layout"
	"frail/tracer"
	"frail/tracer/ph"
	"frail/tracer/sequence"
)

// figure is something that is measured of an S: the only place that knows what it is called,
// what it means and where it comes from. docs/metrics.md is made of the figures.
type figure[S any] struct {
	// name is that of the metric. It ends in _total if it only rises.
	name string
	help string
	// labels are those that the figure has besides its S's own.
	labels []label
	// read tells the values that are known now, with the labels' values.
	read func(S, emit)
}

// label is a label of a figure, and which values it has.
type label struct{ name, values string }

// emit takes a value of a figure and the values of its labels.
type emit func(value float64, labels ...string)

// counter says whether the figure only rises, but for a new start.
func (f *figure[S]) counter() bool { return strings.HasSuffix(f.name, "_total") }

// key returns what "frail domstats" calls the value with these labels.
func (f *figure[S]) key(labels []string) string {
	name := strings.TrimSuffix(strings.TrimPrefix(f.name, "frail_"), "_total")
	return strings.Join(append([]string{name}, labels...), ".")
}

// domainLabels are the names of the labels that all figures of a domain have.
var domainLabels = []string{"domain", "uuid"}

// domainSource is what the figures of a domain are read from.
type domainSource struct {
	name, uuid string

	state  api.State
	layout *layout.Layout // nil while it is not known
	vm     *bpf.Status    // nil while the domain is not armed
	alerts map[ph.AlertKind]uint64
	traces map[uint64]tracer.Summary // those that run, by number
	total  tracer.Summary            // of all traces
}

var domainFigures = []figure[*domainSource]{
	{
		name: "frail_armed",
		help: "1 while the domain's system calls trap, else 0.",
		read: func(d *domainSource, emit emit) { emit(oneIf(d.vm != nil)) },
	},
	{
		name: "frail_vm_exits_total",
		help: "VM exits that tracing took since the domain was armed: system calls seen, returns by SYSRET seen, " +
			"instructions that could not be read and were run again.",
		labels: []label{{"cause", "syscall, sysret, refetch"}},
		read: ofVM(func(vm *bpf.Status, emit emit) {
			emit(float64(vm.Enters), "syscall")
			emit(float64(vm.Exits), "sysret")
			emit(float64(vm.Refetches), "refetch")
		}),
	},
	{
		name:   "frail_deferred_returns_total",
		help:   "Returns told at their thread's next call since the domain was armed, by whether their value is known.",
		labels: []label{{"value", "known, unknown"}},
		read: ofVM(func(vm *bpf.Status, emit emit) {
			emit(float64(vm.RetsKnown), "known")
			emit(float64(vm.RetsUnknown), "unknown")
		}),
	},
	{
		name: "frail_identity_misses_total",
		help: "Events without the process that made them although the layout is known, since the domain was armed.",
		read: ofVM(func(vm *bpf.Status, emit emit) { emit(float64(vm.IdentityMisses)) }),
	},
	{
		name: "frail_entry_blind",
		help: "1 while calls by this way into the guest's kernel are not seen because the guest uses its debug " +
			"registers, else 0.",
		labels: []label{{"entry", "syscall, int80, sysenter"}},
		read: ofVM(func(vm *bpf.Status, emit emit) {
			emit(oneIf(vm.Blind&bpf.EntrySyscall != 0), "syscall")
			emit(oneIf(vm.Blind&bpf.EntryInt80 != 0), "int80")
			emit(oneIf(vm.Blind&bpf.EntrySysenter != 0), "sysenter")
		}),
	},
	{
		name: "frail_layout_state",
		help: "1 for what is so of the guest kernel's layout, 0 for the others: it is looked for, it is known, or it " +
			"was not found and events have no identity.",
		labels: []label{{"state", "looking, known, failed"}},
		read: func(d *domainSource, emit emit) {
			if d.vm != nil {
				emit(oneIf(d.state == api.State_STATE_RESOLVING), "looking")
				emit(oneIf(d.state == api.State_STATE_TRACED), "known")
				emit(oneIf(d.state == api.State_STATE_NO_IDENTITY), "failed")
			}
		},
	},
	{
		name: "frail_layout_resolve_seconds",
		help: "How long the layout that is known took to find in the guest's memory.",
		read: func(d *domainSource, emit emit) {
			if d.vm != nil && d.layout != nil {
				emit(d.layout.Timing.Total().Seconds())
			}
		},
	},
	{
		name:   "frail_alerts_total",
		help:   "Alerts of the analysis of call sequences.",
		labels: []label{{"kind", "attack, processes, drift, limit"}},
		read: func(d *domainSource, emit emit) {
			for _, kind := range []ph.AlertKind{ph.AlertAttack, ph.AlertProcesses, ph.AlertDrift, ph.AlertLimit} {
				emit(float64(d.alerts[kind]), kind.String())
			}
		},
	},
	{
		name: "frail_events_total",
		help: "Events delivered to the domain's traces.",
		read: func(d *domainSource, emit emit) { emit(float64(d.total.Delivered)) },
	},
	{
		name: "frail_events_lost_total",
		help: "Events lost to the domain's traces: a client was too slow, the event could not be read, the kernel did " +
			"not run the program (some of these may be of other domains).",
		labels: []label{{"cause", "ring_full, read_fault, recursion"}},
		read:   func(d *domainSource, emit emit) { emitLosses(emit, d.total.Lost) },
	},
	{
		name:   "frail_session_events_total",
		help:   "Events delivered to one trace, while it runs.",
		labels: []label{{"session", "the trace's number, from 1 when fraild starts"}},
		read: func(d *domainSource, emit emit) {
			for _, n := range slices.Sorted(maps.Keys(d.traces)) {
				emit(float64(d.traces[n].Delivered), strconv.FormatUint(n, 10))
			}
		},
	},
	{
		name:   "frail_session_events_lost_total",
		help:   "Events lost to one trace, while it runs.",
		labels: []label{{"session", "likewise"}, {"cause", "ring_full, read_fault, recursion"}},
		read: func(d *domainSource, emit emit) {
			for _, n := range slices.Sorted(maps.Keys(d.traces)) {
				emitLosses(emit, d.traces[n].Lost, strconv.FormatUint(n, 10))
			}
		},
	},
}

// daemonSource is what the figures of fraild itself are read from.
type daemonSource struct {
	domains  []*domainSource
	sessions int
	// programs are by the object they are in: trace or sequence.
	programs map[string][]tracer.ProgramStats
	analysis *sequence.Counters // nil while no domain asks for it
}

var daemonFigures = []figure[*daemonSource]{
	{
		name:   "frail_build_info",
		help:   "1; the labels say which fraild it is.",
		labels: []label{{"version", "fraild's"}, {"goversion", "the compiler's"}},
		read:   func(_ *daemonSource, emit emit) { emit(1, api.Version(), runtime.Version()) },
	},
	{
		name:   "frail_domains",
		help:   "Domains that libvirt has, by what fraild does with them.",
		labels: []label{{"state", "shut_off, not_traced, arming, resolving, traced, no_identity, error"}},
		read: func(d *daemonSource, emit emit) {
			count := make(map[api.State]int)
			for _, dom := range d.domains {
				count[dom.state]++
			}
			for state := api.State_STATE_SHUT_OFF; state <= api.State_STATE_ERROR; state++ {
				emit(float64(count[state]), strings.ToLower(strings.TrimPrefix(state.String(), "STATE_")))
			}
		},
	},
	{
		name: "frail_sessions",
		help: "Traces that run now.",
		read: func(d *daemonSource, emit emit) { emit(float64(d.sessions)) },
	},
	{
		name: "frail_bpf_run_seconds_total",
		help: "Time that fraild's BPF programs ran on all CPUs. The kernel measures it while the sysctl " +
			"kernel.bpf_stats_enabled is 1; absent if it never did.",
		labels: []label{{"object", "trace, sequence"}, {"program", "the program's name"}},
		read:   ofPrograms(func(p tracer.ProgramStats) float64 { return p.RunTime.Seconds() }),
	},
	{
		name:   "frail_bpf_runs_total",
		help:   "How often fraild's BPF programs ran, while the kernel measured that.",
		labels: []label{{"object", "trace, sequence"}, {"program", "the program's name"}},
		read:   ofPrograms(func(p tracer.ProgramStats) float64 { return float64(p.Runs) }),
	},
	{
		name: "frail_sequence_lost_total",
		help: "What the analysis of call sequences lost: records that fraild was too slow for, calls that could not be " +
			"read, calls for which the kernel did not run the program. Absent while no domain asked for it.",
		labels: []label{{"cause", "ring_full, read_fault, recursion"}},
		read: func(d *daemonSource, emit emit) {
			if c := d.analysis; c != nil {
				emitLosses(emit, tracer.Losses{RingFull: c.RingFull, ReadFault: c.ReadFault, Recursion: c.Recursion})
			}
		},
	},
}

func oneIf(is bool) float64 {
	if is {
		return 1
	}
	return 0
}

// ofVM makes a figure of what the module tells: it has no value while the domain is not armed.
func ofVM(read func(*bpf.Status, emit)) func(*domainSource, emit) {
	return func(d *domainSource, emit emit) {
		if d.vm != nil {
			read(d.vm, emit)
		}
	}
}

// ofPrograms makes a figure of what the kernel measured of BPF programs: it has no value for
// those that were not measured.
func ofPrograms(value func(tracer.ProgramStats) float64) func(*daemonSource, emit) {
	return func(d *daemonSource, emit emit) {
		for object, programs := range d.programs {
			for _, p := range programs {
				if p.Runs > 0 {
					emit(value(p), object, p.Name)
				}
			}
		}
	}
}

func emitLosses(emit emit, l tracer.Losses, labels ...string) {
	emit(float64(l.RingFull), append(labels, "ring_full")...)
	emit(float64(l.ReadFault), append(labels, "read_fault")...)
	emit(float64(l.Recursion), append(labels, "recursion")...)
}

// domainSources reads what the figures of domains are made of: an ioctl and look-ups in maps,
// none of which waits for a guest, a client or a file.
func (h *host) domainSources(domains []*domain) ([]*domainSource, error) {
	traces, err := h.traces.sums()
	if err != nil {
		return nil, err
	}
	all := make([]*domainSource, 0, len(domains))
	for _, d := range domains {
		snap, _ := d.snapshot()
		from := &domainSource{
			name: snap.Name, uuid: snap.UUID, state: snap.state, layout: snap.layout,
			alerts: h.sequences.alerts.count(snap.UUID), traces: traces.running[snap.UUID], total: traces.total[snap.UUID],
		}
		if snap.vm != nil {
			// The VM may be disarmed at any moment: then the domain is not armed.
			if st, err := snap.vm.Status(); err == nil {
				d.observe(st)
				from.vm = &st
			}
		}
		all = append(all, from)
	}
	return all, nil
}

// daemonSource reads what the figures of fraild itself are made of, likewise; domains are all
// there are.
func (s *server) daemonSource(domains []*domainSource) (*daemonSource, error) {
	h := s.manager.host
	traces, err := h.traces.sums()
	if err != nil {
		return nil, err
	}
	d := &daemonSource{
		domains: domains, sessions: len(s.sessions),
		programs: map[string][]tracer.ProgramStats{"trace": slices.Collect(maps.Values(traces.programs))},
	}
	a := h.sequences.measured.Load()
	if a == nil {
		return d, nil
	}
	programs, perr := a.Programs()
	counters, cerr := a.Counters()
	switch err := cmp.Or(perr, cerr); {
	case errors.Is(err, os.ErrClosed): // fraild stops
	case err != nil:
		return nil, err
	default:
		d.programs["sequence"], d.analysis = programs, &counters
	}
	return d, nil
}

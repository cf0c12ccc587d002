// SPDX-License-Identifier: Apache-2.0

package ph

import (
	"fmt"
	"strings"

	"frail/bpf"
)

// AlertKind is what an alert means.
type AlertKind uint8

const (
	// AlertDrift: an executable made more anomalous calls than its limit since it was
	// normal: the program changed, or its training was too short. It is not judged any
	// more until it is normal again.
	AlertDrift AlertKind = 1 + iota
	// AlertAttack: a thread made more anomalous calls among its last 128 than the limit.
	AlertAttack
	// AlertProcesses: many of the threads of an executable that started lately made
	// anomalous calls: an attack on, or with, short-lived processes.
	AlertProcesses
	// AlertLimit: the analysis reached a limit and left calls out.
	AlertLimit
	// AlertStide: more of a thread's last calls than the limit ended a sequence that its
	// executable never made. [Stide] alone tells it.
	AlertStide
)

// String returns the name alerts have in output: "drift", "attack", "processes", "limit",
// "stide".
func (k AlertKind) String() string {
	switch k {
	case AlertDrift:
		return "drift"
	case AlertAttack:
		return "attack"
	case AlertProcesses:
		return "processes"
	case AlertLimit:
		return "limit"
	case AlertStide:
		return "stide"
	default:
		return fmt.Sprintf("alert%d", uint8(k))
	}
}

// Alert is something an operator should look at.
type Alert struct {
	Kind AlertKind
	// Time is CLOCK_BOOTTIME of the host in nanoseconds.
	Time      uint64
	VM        uint32
	PID, TGID int32
	// Executable is the program, as [Executable.Name] has it, and Comm the thread's name.
	// The guest chose both: they may hold any byte.
	Executable, Comm string
	// Calls are the sequence: the call that raised the alert, and the eight before it,
	// the newest first.
	Calls [Window]Number
	// Miss are the pairs that were missing: bit i-1 is that of Calls[0] and Calls[i].
	Miss uint8
	// LFC is how many of the thread's last 128 calls were anomalous, MaxLFC the most
	// there ever were, Frame each of the 128, the newest in bit 0 of Frame[0].
	LFC, MaxLFC uint8
	Frame       [2]uint64
	// Anomalies of the executable since it was normal.
	Anomalies uint64
	// Limit is what was reached, by an index of [bpf.PhCounters], and Count how often:
	// of an AlertLimit only.
	Limit int
	Count uint64
	// Misses is how many of the thread's last calls, as many as stide's frame has, ended an
	// unknown sequence: of an AlertStide only.
	Misses int
}

// limitNames are by index of the analysis' counters.
var limitNames = [bpf.PhCounters]string{
	bpf.PhFullProfiles: "profiles",
	bpf.PhFullRows:     "rows",
	bpf.PhFullThreads:  "threads",
	bpf.PhFullSymbols:  "system calls of one program",
	bpf.PhNoIdentity:   "calls without identity",
	bpf.PhSignalDepth:  "nested signal handlers",
	bpf.PhSignalLost:   "signal handlers whose start was not found",
	bpf.PhRingFull:     "records lost",
	bpf.PhReadFault:    "events that could not be read",
	bpf.PhNoProgram:    "calls of threads that were not described",
}

// LimitName says what a limit is about.
func LimitName(limit int) string {
	if limit < 0 || limit >= len(limitNames) {
		return fmt.Sprintf("limit %d", limit)
	}
	return limitNames[limit]
}

// VerdictOf returns the verdict of a record.
func VerdictOf(rec *bpf.PhRecord) Verdict {
	v := rec.Verdict
	return Verdict{New: uint8(v), Miss: uint8(v >> 8), LFC: uint8(v >> 16), Flags: Flags(v >> 24)}
}

// AlertsOf appends to dst the alerts that a record holds: most hold none, and one call can
// raise several. A guest kernel that is not resolved yet gives calls without identity, and
// one that is, for a moment, calls of threads that are not described yet: both are no alerts.
func AlertsOf(dst []Alert, rec *bpf.PhRecord) []Alert {
	a := Alert{
		Time: rec.Time, VM: rec.Exe.Vm, PID: rec.Pid, TGID: rec.Tgid, Comm: string(rec.CommBytes()),
	}
	if rec.Counter != 0 {
		a.Kind, a.Limit, a.Count = AlertLimit, int(rec.Counter)-1, rec.Train
		for i := range a.Calls {
			a.Calls[i] = NoNumber
		}
		switch a.Limit {
		case bpf.PhNoIdentity, bpf.PhNoProgram, bpf.PhSignalLost:
			return dst
		}
		return append(dst, a)
	}
	a.Executable = FromBPF(&rec.Exe).Name()
	v := VerdictOf(rec)
	a.Miss, a.LFC, a.MaxLFC, a.Frame, a.Anomalies = v.Miss, v.LFC, rec.MaxLfc, rec.Frame, rec.Anomalies
	for i, n := range rec.Calls {
		a.Calls[i] = Number(n)
	}
	for _, k := range []struct {
		flag Flags
		kind AlertKind
	}{{Attack, AlertAttack}, {ManyProcesses, AlertProcesses}, {Drift, AlertDrift}} {
		if v.Flags&k.flag != 0 {
			a.Kind = k.kind
			dst = append(dst, a)
		}
	}
	return dst
}

// History returns the LFC's history as text: the last 128 calls in groups of eight, the
// newest last, each group as how many of it were anomalous, "." for none.
func (a *Alert) History() string {
	var b strings.Builder
	for word := 1; word >= 0; word-- {
		for shift := 56; shift >= 0; shift -= 8 {
			n := 0
			for v := uint8(a.Frame[word] >> shift); v != 0; v &= v - 1 {
				n++
			}
			if n == 0 {
				b.WriteByte('.')
			} else {
				b.WriteByte('0' + byte(n))
			}
		}
	}
	return b.String()
}

// Sequence returns the calls by name, the newest last, with "!" before each that makes a
// pair with the newest that was missing.
func (a *Alert) Sequence() string {
	var b strings.Builder
	for i := Pairs; i >= 0; i-- {
		if i > 0 && a.Miss>>(i-1)&1 != 0 {
			b.WriteByte('!')
		}
		b.WriteString(a.Calls[i].String())
		if i > 0 {
			b.WriteByte(' ')
		}
	}
	return b.String()
}

// String returns the alert as one line without its time, safe to print.
func (a *Alert) String() string {
	switch a.Kind {
	case AlertLimit:
		return fmt.Sprintf("limit: %s (%d times), at %q[%d/%d]", LimitName(a.Limit), a.Count, a.Comm, a.PID, a.TGID)
	case AlertStide:
		return fmt.Sprintf("stide: %q[%d/%d] comm=%q misses=%d: %s", a.Executable, a.PID, a.TGID, a.Comm, a.Misses, a.Sequence())
	default:
		return fmt.Sprintf("%s: %q[%d/%d] comm=%q lfc=%d max=%d anomalies=%d history=%s: %s",
			a.Kind, a.Executable, a.PID, a.TGID, a.Comm, a.LFC, a.MaxLFC, a.Anomalies, a.History(), a.Sequence())
	}
}

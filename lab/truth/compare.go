// SPDX-License-Identifier: Apache-2.0

package truth

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"frail/bpf"
)

// Marker is the number of the call that ends a comparison. No kernel has it.
const Marker = 1022

// Linux's errors of a call that is to be run again; no program ever sees one.
const (
	restartFirst = -516
	restartLast  = -512
)

// Report is what a comparison found. A comparison that found the records equal
// has an empty First.
type Report struct {
	Tasks int // that made a call
	Calls int // that the guest recorded

	// Of the calls: those that the host had seen before it knew the guest's kernel.
	Anonymous int

	Missing   int // calls that only the guest has
	Extra     int // calls that only the host has
	Differing int // calls in whose number or arguments they differ

	Returns int // calls whose return the guest recorded, the anonymous left out
	Known   int // of them: the host has the value
	Unknown int // of them: the host says that it does not know
	Wrong   int // returns of the host that are not the guest's

	// First is the first difference, in words.
	First string
}

// Equal reports whether there is no difference.
func (r *Report) Equal() bool { return r.First == "" }

const reportFormat = "tasks %d, calls %d (%d before identity), missing %d, extra %d, differing %d; " +
	"returns %d, known %d (%s %%), unknown %d, not told %d, wrong %d"

// String is the report in one line.
func (r *Report) String() string {
	return fmt.Sprintf(reportFormat,
		r.Tasks, r.Calls, r.Anonymous, r.Missing, r.Extra, r.Differing,
		r.Returns, r.Known, fmt.Sprintf("%.2f", r.KnownPercent()), r.Unknown, r.Returns-r.Known-r.Unknown, r.Wrong)
}

// ParseReport returns the report that a line of a log ends with, as String has it: without First.
func ParseReport(line string) (*Report, bool) {
	i := strings.Index(line, "tasks ")
	if i < 0 {
		return nil, false
	}
	r := new(Report)
	var percent string
	var untold int
	_, err := fmt.Sscanf(line[i:], reportFormat,
		&r.Tasks, &r.Calls, &r.Anonymous, &r.Missing, &r.Extra, &r.Differing,
		&r.Returns, &r.Known, &percent, &r.Unknown, &untold, &r.Wrong)
	return r, err == nil
}

// KnownPercent is how many percent of the returns the host knows.
func (r *Report) KnownPercent() float64 {
	if r.Returns == 0 {
		return 0
	}
	return 100 * float64(r.Known) / float64(r.Returns)
}

// differ notes a difference.
func (r *Report) differ(count *int, n int, format string, args ...any) {
	*count += n
	if r.First == "" {
		r.First = fmt.Sprintf(format, args...)
	}
}

// call is a call on either side.
type call struct {
	nr   int64
	args [6]uint64

	// returned says that its return is in the record, and other that it is in the
	// name of another call: rt_sigreturn's in the guest's, a mistake in the host's.
	returned, other bool
	ret             int64

	// Of the host's alone.
	table int
	known bool // ret is what it returned
}

// Compare compares the record of a guest with the host's events of its VM.
// An error means that there is nothing to compare.
func Compare(guest []GuestEvent, host []bpf.Event) (*Report, error) {
	g, err := guestCalls(guest)
	if err != nil {
		return nil, err
	}
	h, err := hostCalls(host)
	if err != nil {
		return nil, err
	}
	r := new(Report)
	for _, calls := range g.tasks {
		r.Tasks++
		r.Calls += len(calls)
	}
	r.compareAnonymous(g, h)
	for _, task := range union(g.tasks, h.tasks) {
		r.compareTask(task, g.tasks[task], h.tasks[task])
	}
	return r, nil
}

// guestRecord has the guest's calls before the marker, as often as they are
// looked at: by task, and by CPU.
type guestRecord struct {
	tasks map[int32][]*call
	cpus  map[int][]located
}

// located is a call of a guest's CPU.
type located struct {
	task int32
	*call
}

func guestCalls(events []GuestEvent) (*guestRecord, error) {
	g := &guestRecord{map[int32][]*call{}, map[int][]located{}}
	open := map[int32]*call{}
	for i := range events {
		ev := &events[i]
		switch {
		case !ev.Exit && ev.Nr == Marker:
			return g, nil
		case !ev.Exit:
			c := &call{nr: ev.Nr, args: ev.Args}
			open[ev.Task] = c
			g.tasks[ev.Task] = append(g.tasks[ev.Task], c)
			g.cpus[ev.CPU] = append(g.cpus[ev.CPU], located{ev.Task, c})
		case open[ev.Task] != nil:
			c := open[ev.Task]
			c.returned, c.other, c.ret = true, ev.Nr != c.nr, ev.Ret
			delete(open, ev.Task)
		}
	}
	return nil, errors.New("the guest's record has no marker")
}

// hostRecord has the host's calls before the marker: those with identity by
// task, the others by vCPU.
type hostRecord struct {
	tasks     map[int32][]*call
	anonymous map[int][]*call
	late      string // not "": an event without identity after others had one
}

func hostCalls(events []bpf.Event) (*hostRecord, error) {
	h := &hostRecord{tasks: map[int32][]*call{}, anonymous: map[int][]*call{}}
	open := map[int32]*call{}
	identified := false
	for i := range events {
		ev := &events[i]
		switch {
		case ev.Kind == bpf.EventEnter && ev.Nr == Marker:
			return h, nil
		case ev.Kind == bpf.EventEnter:
			c := &call{nr: ev.Nr, args: ev.Args, table: ev.Table()}
			if !ev.Identified() {
				if identified {
					h.late = fmt.Sprintf("event %d, %v, has no identity although those before it have", i, c)
				}
				h.anonymous[int(ev.Vcpu)] = append(h.anonymous[int(ev.Vcpu)], c)
				continue
			}
			identified = true
			open[ev.Pid] = c
			h.tasks[ev.Pid] = append(h.tasks[ev.Pid], c)
		case ev.Kind == bpf.EventExit && ev.Identified() && ev.NrKnown() && open[ev.Pid] != nil:
			c := open[ev.Pid]
			c.returned, c.other, c.ret = true, ev.Nr != c.nr, ev.Ret
			c.known = ev.RetKnown()
			delete(open, ev.Pid)
		}
	}
	return nil, errors.New("the host's record has no marker")
}

// compareAnonymous compares the host's calls without identity with the first
// of each CPU, which are then done with in their tasks.
func (r *Report) compareAnonymous(g *guestRecord, h *hostRecord) {
	if h.late != "" {
		r.differ(&r.Differing, 1, "%s", h.late)
	}
	for _, cpu := range union(g.cpus, h.anonymous) {
		seen, calls := h.anonymous[cpu], g.cpus[cpu]
		if extra := len(seen) - len(calls); extra > 0 {
			r.differ(&r.Extra, extra, "vCPU %d: the host has %d calls without identity, the guest %d on that CPU in all",
				cpu, len(seen), len(calls))
			seen = seen[:len(calls)]
		}
		r.Anonymous += len(seen)
		for i, c := range seen {
			if !same(calls[i].call, c) {
				r.differ(&r.Differing, 1, "vCPU %d, call %d, before identity: guest %v of task %d, host %v",
					cpu, i, calls[i].call, calls[i].task, c)
			}
			task := calls[i].task
			at := slices.Index(g.tasks[task], calls[i].call)
			g.tasks[task] = slices.Delete(g.tasks[task], at, at+1)
		}
	}
}

// compareTask compares one task's calls, in order.
func (r *Report) compareTask(task int32, guest, host []*call) {
	for _, c := range guest {
		if c.returned && !c.other {
			r.Returns++
		}
	}
	gi, hi := 0, 0
	for gi < len(guest) || hi < len(host) {
		if gi < len(guest) && hi < len(host) && same(guest[gi], host[hi]) {
			r.compareReturn(task, gi, guest[gi], host[hi])
			gi++
			hi++
			continue
		}
		missing, extra := resync(guest[gi:], host[hi:])
		where := func() string {
			return fmt.Sprintf("task %d, call %d:%s", task, gi, context(guest, gi, host, hi))
		}
		both := min(missing, extra)
		if both > 0 {
			r.differ(&r.Differing, both, "%s", where())
		}
		if missing > both {
			r.differ(&r.Missing, missing-both, "%s", where())
		}
		if extra > both {
			r.differ(&r.Extra, extra-both, "%s", where())
		}
		gi += missing
		hi += extra
	}
}

// compareReturn compares what both sides say that a call returned.
func (r *Report) compareReturn(task int32, at int, guest, host *call) {
	wrong := ""
	switch {
	case !host.returned:
		return
	case host.other:
		wrong = "in the name of another call"
	case !host.known:
		if guest.returned && !guest.other {
			r.Unknown++
		}
		return
	case !guest.returned:
		wrong = "but it has not returned in the guest"
	case guest.ret != host.ret:
		wrong = fmt.Sprintf("but %d in the guest", guest.ret)
	case guest.ret >= restartFirst && guest.ret <= restartLast:
		wrong = "but the guest's kernel runs it again or returns -EINTR"
	}
	if wrong != "" {
		r.differ(&r.Wrong, 1, "task %d, call %d, %v: it returned %d, says the host, %s", task, at, host, host.ret, wrong)
		return
	}
	if !guest.other {
		r.Known++
	}
}

// resyncWindow is how far behind a difference equal calls are looked for.
const resyncWindow = 200

// resync returns how many calls of both sides to pass over, not none of both,
// so that what follows is equal again: the fewest.
func resync(guest, host []*call) (missing, extra int) {
	for n := 1; n <= resyncWindow; n++ {
		for missing := 0; missing <= n; missing++ {
			extra := n - missing
			if missing <= len(guest) && extra <= len(host) && follows(guest[missing:], host[extra:]) {
				return missing, extra
			}
		}
	}
	return len(guest), len(host)
}

// follows reports whether both go on the same: the next two calls, or to the end.
func follows(guest, host []*call) bool {
	const enough = 2
	for i := range enough {
		if i == len(guest) || i == len(host) {
			return len(guest) == len(host)
		}
		if !same(guest[i], host[i]) {
			return false
		}
	}
	return true
}

// same reports whether the host's call is the guest's.
func same(guest, host *call) bool {
	if guest.nr != host.nr {
		return false
	}
	mask := ^uint64(0)
	if host.table == bpf.Table32 {
		mask = 1<<32 - 1
	}
	for i := range guest.args {
		if guest.args[i]&mask != host.args[i]&mask {
			return false
		}
	}
	return true
}

// union returns the keys of both maps in order.
func union[K int | int32, A, B any](a map[K]A, b map[K]B) []K {
	var keys []K
	for k := range a {
		keys = append(keys, k)
	}
	for k := range b {
		if _, ok := a[k]; !ok {
			keys = append(keys, k)
		}
	}
	slices.Sort(keys)
	return keys
}

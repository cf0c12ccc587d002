// SPDX-License-Identifier: Apache-2.0

package truth

import (
	"slices"
	"strings"
	"testing"

	"frail/bpf"
)

// step is what happens next in a guest that both sides watch.
type step struct {
	task int32
	cpu  int
	exit bool
	nr   int64
	arg  uint64
	ret  int64
}

const (
	nrRead, nrClose, nrSigreturn, nrExitGroup, nrClone = 0, 3, 15, 231, 56

	shell, worker = 1, 50
)

func enters(task int32, cpu int, nr int64, arg uint64) step {
	return step{task: task, cpu: cpu, nr: nr, arg: arg}
}

func returns(task int32, nr, ret int64) step {
	return step{task: task, exit: true, nr: nr, ret: ret}
}

// history is two tasks on two CPUs; of the first three calls the host does not
// know whose they are.
var history = []step{
	enters(shell, 0, nrRead, 5), returns(shell, nrRead, 100),
	enters(worker, 1, nrRead, 6), enters(shell, 0, nrClose, 5), returns(worker, nrRead, -4),
	returns(shell, nrClose, 0),
	// From here on with identity.
	enters(shell, 0, nrRead, 7), returns(shell, nrRead, 1),
	enters(worker, 0, nrClose, 8), returns(worker, nrClose, 0),
	enters(worker, 0, nrClose, 9), returns(worker, nrClose, -9),
	enters(shell, 1, nrRead, 7), returns(shell, nrRead, 2),
	returns(worker+1, nrClone, 0), // a new task, which made no call yet
	enters(worker, 1, nrSigreturn, 0), returns(worker, -1, 77),
	enters(worker, 1, nrExitGroup, 0),
	enters(shell, 1, Marker, 0), returns(shell, Marker, -38),
	enters(shell, 1, nrClose, 1), returns(shell, nrClose, 0),
}

const anonymousSteps = 6

func guestSide() []GuestEvent {
	var events []GuestEvent
	for i, s := range history {
		ev := GuestEvent{Seq: uint64(i), CPU: s.cpu, Task: s.task, Exit: s.exit, Nr: s.nr, Ret: s.ret}
		ev.Args[0] = s.arg
		events = append(events, ev)
	}
	return events
}

func hostSide() []bpf.Event {
	var events []bpf.Event
	for i, s := range history {
		ev := bpf.Event{
			Vcpu: uint32(s.cpu), Kind: bpf.EventEnter, Insn: bpf.InsnSyscall64, Flags: bpf.EventNr, Nr: s.nr,
		}
		ev.Args[0] = s.arg
		if s.exit {
			if s.nr < 0 || s.nr == nrClone {
				continue
			}
			ev.Kind, ev.Ret = bpf.EventExit, s.ret
			ev.Flags |= bpf.EventRet
		}
		if i >= anonymousSteps {
			ev.Flags |= bpf.EventIdentity
			ev.Pid = s.task
		}
		events = append(events, ev)
	}
	return events
}

// at returns the host's nth event that want accepts.
func at(events []bpf.Event, n int, want func(*bpf.Event) bool) *bpf.Event {
	for i := range events {
		if want(&events[i]) {
			if n == 0 {
				return &events[i]
			}
			n--
		}
	}
	return nil
}

func closes(ev *bpf.Event) bool {
	return ev.Kind == bpf.EventEnter && ev.Nr == nrClose && ev.Identified()
}

func closed(ev *bpf.Event) bool {
	return ev.Kind == bpf.EventExit && ev.Nr == nrClose && ev.Identified()
}

func TestEqual(t *testing.T) {
	r, err := Compare(guestSide(), hostSide())
	if err != nil {
		t.Fatal(err)
	}
	want := Report{Tasks: 2, Calls: 9, Anonymous: 3, Returns: 4, Known: 4}
	if *r != want {
		t.Errorf("got  %+v\nwant %+v", *r, want)
	}
}

func TestDifferences(t *testing.T) {
	for _, test := range []struct {
		name   string
		change func([]bpf.Event) []bpf.Event
		count  func(*Report) *int
		first  string
	}{
		{
			"a call without identity is missing",
			func(h []bpf.Event) []bpf.Event { return Drop(h, 1) },
			func(r *Report) *int { return &r.Differing }, "before identity",
		},
		{
			"the last call without identity is missing",
			func(h []bpf.Event) []bpf.Event { return Drop(h, 3) },
			func(r *Report) *int { return &r.Missing }, "close(0x5",
		},
		{
			"a call is missing",
			func(h []bpf.Event) []bpf.Event { return Drop(h, 5) },
			func(r *Report) *int { return &r.Missing }, "close(0x8",
		},
		{
			"a task's last call is missing",
			func(h []bpf.Event) []bpf.Event { return Drop(h, 9) },
			func(r *Report) *int { return &r.Missing }, "exit_group",
		},
		{
			"a call is told twice",
			func(h []bpf.Event) []bpf.Event {
				i := slices.IndexFunc(h, func(ev bpf.Event) bool { return closes(&ev) })
				return slices.Insert(h, i, h[i])
			},
			func(r *Report) *int { return &r.Extra }, "close(0x8",
		},
		{
			"an argument differs",
			func(h []bpf.Event) []bpf.Event { at(h, 1, closes).Args[0]++; return h },
			func(r *Report) *int { return &r.Differing }, "close(0x9",
		},
		{
			"another number",
			func(h []bpf.Event) []bpf.Event { at(h, 1, closes).Nr = nrRead; return h },
			func(r *Report) *int { return &r.Differing }, "close(0x9",
		},
		{
			"a value is wrong",
			func(h []bpf.Event) []bpf.Event { at(h, 1, closed).Ret = 9; return h },
			func(r *Report) *int { return &r.Wrong }, "it returned 9, says the host, but -9 in the guest",
		},
		{
			"a call that does not return",
			func(h []bpf.Event) []bpf.Event {
				i := slices.IndexFunc(h, func(ev bpf.Event) bool { return ev.Nr == nrExitGroup })
				exit := h[i]
				exit.Kind = bpf.EventExit
				exit.Flags |= bpf.EventRet
				return slices.Insert(h, i+1, exit)
			},
			func(r *Report) *int { return &r.Wrong }, "it has not returned",
		},
		{
			"an event loses its identity",
			func(h []bpf.Event) []bpf.Event {
				ev := at(h, 1, closes)
				ev.Flags &^= bpf.EventIdentity
				return h
			},
			func(r *Report) *int { return &r.Missing }, "has no identity",
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			r, err := Compare(guestSide(), test.change(hostSide()))
			if err != nil {
				t.Fatal(err)
			}
			if r.Equal() || *test.count(r) != 1 || !strings.Contains(r.First, test.first) {
				t.Errorf("want one such difference with %q, got %v\n%s", test.first, r, r.First)
			}
		})
	}
}

// A return that the host says it does not know is not wrong, whatever it holds.
func TestUnknown(t *testing.T) {
	h := hostSide()
	ev := at(h, 1, closed)
	ev.Flags &^= bpf.EventRet
	ev.Ret = 12345
	r, err := Compare(guestSide(), h)
	if err != nil {
		t.Fatal(err)
	}
	if !r.Equal() || r.Known != 3 || r.Unknown != 1 || r.KnownPercent() != 75 {
		t.Errorf("got %v\n%s", r, r.First)
	}
}

// A call that the guest's kernel will run again has no value that a program sees.
func TestRestart(t *testing.T) {
	const erestartsys = -512
	g, h := guestSide(), hostSide()
	for i := range g {
		if g[i].Exit && g[i].Ret == -9 {
			g[i].Ret = erestartsys
		}
	}
	at(h, 1, closed).Ret = erestartsys
	r, err := Compare(g, h)
	if err != nil {
		t.Fatal(err)
	}
	if r.Wrong != 1 {
		t.Errorf("got %v", r)
	}
}

// INT 0x80 in 64-bit code passes 32 bits of each register.
func TestArguments32(t *testing.T) {
	g, h := guestSide(), hostSide()
	for i := range g {
		if !g[i].Exit && g[i].Args[0] == 9 {
			g[i].Args[0] |= 0xabcd << 32
		}
	}
	at(h, 1, closes).Insn = bpf.InsnInt80In64
	r, err := Compare(g, h)
	if err != nil {
		t.Fatal(err)
	}
	if !r.Equal() {
		t.Errorf("got %v\n%s", r, r.First)
	}
}

// Without the marker nobody knows how far the records go.
func TestNoMarker(t *testing.T) {
	unmarked := func(ev bpf.Event) bool { return ev.Nr == Marker }
	if _, err := Compare(guestSide(), slices.DeleteFunc(hostSide(), unmarked)); err == nil {
		t.Error("a host's record without marker was compared")
	}
	if _, err := Compare(guestSide()[:anonymousSteps], hostSide()); err == nil {
		t.Error("a guest's record without marker was compared")
	}
}

// A report is read back from a line of a test's log.
func TestParseReport(t *testing.T) {
	want := Report{Tasks: 97, Calls: 3583, Anonymous: 1, Missing: 2, Extra: 3, Differing: 4, Returns: 3382, Known: 3236, Unknown: 145, Wrong: 5}
	for _, r := range []Report{want, {}} {
		if got, ok := ParseReport("    truth_test.go:40: " + r.String()); !ok || *got != r {
			t.Errorf("%v was read as %v", &r, got)
		}
	}
	for _, line := range []string{"", "tasks", "    x_test.go:1: tasks 97, calls many", "=== RUN   TestTruth", want.String()[:90]} {
		if got, ok := ParseReport(line); ok {
			t.Errorf("%q was read as %v", line, got)
		}
	}
}

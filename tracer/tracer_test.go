// SPDX-License-Identifier: Apache-2.0

package tracer

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"

	"frail/bpf"
	"frail/bpf/bpftest"
	"frail/tracer/syscalls"
)

// testDeadline bounds every wait for something that takes microseconds.
const testDeadline = 30 * time.Second

// fire runs the tracer's program for the kind of event i of k, as the tracepoint would.
func fire(tb testing.TB, t *Tracer, k *bpftest.Events, i int) {
	tb.Helper()
	prog := t.objs.Enter
	switch k.At(i).Kind {
	case bpf.EventExit:
		prog = t.objs.Exit
	case bpf.EventCoverage:
		prog = t.objs.Coverage
	}
	k.Fire(tb, prog, i)
}

// fireAt runs a program on an event of VM 7 whose address is wrong.
func fireAt(tb testing.TB, prog *ebpf.Program, addr uint64) {
	tb.Helper()
	_, err := prog.Run(&ebpf.RunOptions{Context: bpf.EventArgs{Event: addr, Vm: 7, Kind: bpf.EventEnter}})
	must(tb, err)
}

// recorder is a sink that keeps everything.
type recorder struct {
	mu     sync.Mutex
	events []bpf.Event
	lost   []Lost
	stream []string // "event NR", "process WHO" and "lost N" in order
	known  []bpf.Process
	on     chan struct{}
}

func newRecorder() *recorder { return &recorder{on: make(chan struct{}, 1)} }

func (r *recorder) Event(ev *bpf.Event) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = append(r.events, *ev)
	r.stream = append(r.stream, fmt.Sprintf("event %d", ev.Nr))
	return nil
}

func (r *recorder) Process(p *bpf.Process) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.known = append(r.known, *p)
	r.stream = append(r.stream, fmt.Sprintf("process %d", p.Head.Who))
	return nil
}

func (r *recorder) Lost(l Lost) error {
	r.mu.Lock()
	r.lost = append(r.lost, l)
	r.stream = append(r.stream, fmt.Sprintf("lost %d", l.Total()))
	r.mu.Unlock()
	return r.Flush()
}

func (r *recorder) Flush() error {
	select {
	case r.on <- struct{}{}:
	default:
	}
	return nil
}

// wait returns when cond holds, which it looks at after each flush.
func (r *recorder) wait(tb testing.TB, what string, cond func() bool) {
	tb.Helper()
	timeout := time.After(testDeadline)
	for {
		r.mu.Lock()
		ok := cond()
		r.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-r.on:
		case <-timeout:
			tb.Fatalf("timed out waiting for %s", what)
		}
	}
}

// drain runs t until all it holds is delivered.
func drain(tb testing.TB, t *Tracer) *recorder {
	tb.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	r := newRecorder()
	must(tb, t.Run(ctx, r))
	return r
}

func newTracer(tb testing.TB, opts Options) *Tracer {
	tb.Helper()
	t, err := New(opts)
	must(tb, err)
	tb.Cleanup(func() { must(tb, t.Close()) })
	return t
}

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

func comm(s string) (c [bpf.CommLen]byte) {
	copy(c[:], s)
	return c
}

func enter(nr int64, name string) bpf.Event {
	return bpf.Event{
		Vm: 7, Kind: bpf.EventEnter, Insn: bpf.InsnSyscall64,
		Flags: bpf.EventNr | bpf.EventIdentity, Nr: nr, Comm: comm(name), Pid: 11, Tgid: 10,
	}
}

func with(ev bpf.Event, change func(*bpf.Event)) bpf.Event {
	change(&ev)
	return ev
}

func filterOf(tb testing.TB, s string) syscalls.Filter {
	tb.Helper()
	f, err := syscalls.ParseFilter(s)
	must(tb, err)
	return f
}

func TestFilter(t *testing.T) {
	exit := func(ev *bpf.Event) { ev.Kind, ev.Insn = bpf.EventExit, bpf.InsnSysret64 }
	exit32 := func(ev *bpf.Event) { ev.Kind, ev.Insn = bpf.EventExit, bpf.InsnSysret32 }
	exitUnknown := func(ev *bpf.Event) {
		exit(ev)
		ev.Nr, ev.Flags = -1, ev.Flags&^bpf.EventNr
	}
	call32 := func(ev *bpf.Event) { ev.Insn = bpf.InsnSyscall32 }
	by := func(insn uint16) func(*bpf.Event) { return func(ev *bpf.Event) { ev.Insn = insn } }
	deferred := func(ev *bpf.Event) { ev.Kind, ev.Flags = bpf.EventExit, ev.Flags|bpf.EventDeferred }
	coverage := bpf.Event{
		Vm: 7, Kind: bpf.EventCoverage, Nr: -1,
		Args: [6]uint64{uint64(bpf.EntrySyscall), uint64(bpf.EntryInt80 | bpf.EntrySysenter)},
	}
	noIdentity := func(ev *bpf.Event) { ev.Flags, ev.Comm = ev.Flags&^bpf.EventIdentity, comm("") }

	const (
		openat64, openat32 = 257, 295
		execve64, execve32 = 59, 11
		execveX32          = 520
		futex64            = 202
		x32                = bpf.X32Bit
	)

	for _, tc := range []struct {
		name   string
		filter Filter
		event  bpf.Event
		pass   bool
		// unjudged is whether that could not be known.
		unjudged uint64
	}{
		{"no filter passes an enter", Filter{}, enter(openat64, "sh"), true, 0},
		{"no filter passes an exit", Filter{}, with(enter(openat64, "sh"), exit), true, 0},
		{"no filter passes an exit of unknown number", Filter{}, with(enter(0, "sh"), exitUnknown), true, 0},
		{"no filter passes an event without identity", Filter{}, with(enter(0, ""), noIdentity), true, 0},
		{"no filter passes any number", Filter{}, enter(1<<40, "sh"), true, 0},
		{"another VM", Filter{}, with(enter(1, "sh"), func(ev *bpf.Event) { ev.Vm = 8 }), false, 0},
		{"VM 0", Filter{}, with(enter(1, "sh"), func(ev *bpf.Event) { ev.Vm = 0 }), false, 0},
		{"an event of unknown kind", Filter{}, with(enter(1, "sh"), func(ev *bpf.Event) { ev.Kind = 4 }), false, 0},
		{"an event of a kind beyond the filter's bits", Filter{}, with(enter(1, "sh"), func(ev *bpf.Event) { ev.Kind = 33 }), false, 0},

		{"enters only, an enter", Filter{Kinds: Enter}, enter(1, "sh"), true, 0},
		{"enters only, an exit", Filter{Kinds: Enter}, with(enter(1, "sh"), exit), false, 0},
		{"exits only, an enter", Filter{Kinds: Exit}, enter(1, "sh"), false, 0},
		{"exits only, an exit", Filter{Kinds: Exit}, with(enter(1, "sh"), exit), true, 0},

		{"no filter passes coverage", Filter{}, coverage, true, 0},
		{"coverage only, coverage", Filter{Kinds: Coverage}, coverage, true, 0},
		{"coverage only, an enter", Filter{Kinds: Coverage}, enter(1, "sh"), false, 0},
		{"enters and exits only, coverage", Filter{Kinds: Enter | Exit}, coverage, false, 0},
		{"coverage with a list", Filter{Syscalls: filterOf(t, "openat")}, coverage, true, 0},
		{"coverage with a listed name", Filter{Comms: Set[string]{Values: []string{"sh"}}}, coverage, true, 0},
		{"coverage of another VM", Filter{}, with(coverage, func(ev *bpf.Event) { ev.Vm = 8 }), false, 0},

		{"listed call", Filter{Syscalls: filterOf(t, "openat,execve")}, enter(openat64, "sh"), true, 0},
		{"second listed call", Filter{Syscalls: filterOf(t, "openat,execve")}, enter(execve64, "sh"), true, 0},
		{"call not listed", Filter{Syscalls: filterOf(t, "openat,execve")}, enter(futex64, "sh"), false, 0},
		{"listed call's exit", Filter{Syscalls: filterOf(t, "openat")}, with(enter(openat64, "sh"), exit), true, 0},
		{"exit of a call not listed", Filter{Syscalls: filterOf(t, "openat")}, with(enter(futex64, "sh"), exit), false, 0},
		{"exit of unknown number with a list", Filter{Syscalls: filterOf(t, "openat")}, with(enter(0, "sh"), exitUnknown), false, 1},
		{"exit of unknown number with an exclusion", Filter{Syscalls: filterOf(t, "!openat")}, with(enter(0, "sh"), exitUnknown), false, 1},
		{"excluded call", Filter{Syscalls: filterOf(t, "!futex")}, enter(futex64, "sh"), false, 0},
		{"call not excluded", Filter{Syscalls: filterOf(t, "!futex")}, enter(openat64, "sh"), true, 0},
		{"number no filter can name, with a list", Filter{Syscalls: filterOf(t, "openat")}, enter(5000, "sh"), false, 0},
		{"number no filter can name, with an exclusion", Filter{Syscalls: filterOf(t, "!openat")}, enter(5000, "sh"), true, 0},
		{"negative number with a list", Filter{Syscalls: filterOf(t, "openat")}, enter(-1, "sh"), false, 0},
		{"negative number with an exclusion", Filter{Syscalls: filterOf(t, "!openat")}, enter(-1, "sh"), true, 0},
		{"highest number", Filter{Syscalls: filterOf(t, "1023")}, enter(1023, "sh"), true, 0},
		{"number 0", Filter{Syscalls: filterOf(t, "read")}, enter(0, "sh"), true, 0},
		{"high bits of RAX do not hide a call", Filter{Syscalls: filterOf(t, "openat")}, enter(1<<32|openat64, "sh"), true, 0},

		{"listed 32-bit call", Filter{Syscalls: filterOf(t, "openat")}, with(enter(openat32, "sh"), call32), true, 0},
		{"listed 32-bit call's exit", Filter{Syscalls: filterOf(t, "openat")}, with(enter(openat32, "sh"), exit32), true, 0},
		{"64-bit number in a 32-bit call", Filter{Syscalls: filterOf(t, "openat")}, with(enter(openat64, "sh"), call32), false, 0},
		{"32-bit number in a 64-bit call", Filter{Syscalls: filterOf(t, "openat")}, enter(openat32, "sh"), false, 0},
		{"64-bit call, other table listed", Filter{Syscalls: filterOf(t, "execve@32")}, enter(execve64, "sh"), false, 0},
		{"32-bit call, its table listed", Filter{Syscalls: filterOf(t, "execve@32")}, with(enter(execve32, "sh"), call32), true, 0},
		{"excluded 32-bit call", Filter{Syscalls: filterOf(t, "!execve")}, with(enter(execve32, "sh"), call32), false, 0},

		{"listed call by SYSENTER", Filter{Syscalls: filterOf(t, "openat")}, with(enter(openat32, "sh"), by(bpf.InsnSysenter)), true, 0},
		{"listed call by INT 0x80 of 32-bit code", Filter{Syscalls: filterOf(t, "openat")}, with(enter(openat32, "sh"), by(bpf.InsnInt80In32)), true, 0},
		{"listed call by INT 0x80 of 64-bit code", Filter{Syscalls: filterOf(t, "openat")}, with(enter(openat32, "sh"), by(bpf.InsnInt80In64)), true, 0},
		{"64-bit number by INT 0x80 of 64-bit code", Filter{Syscalls: filterOf(t, "openat")}, with(enter(openat64, "sh"), by(bpf.InsnInt80In64)), false, 0},
		{"excluded call by INT 0x80", Filter{Syscalls: filterOf(t, "!execve")}, with(enter(execve32, "sh"), by(bpf.InsnInt80In32)), false, 0},
		{"x32's bit by INT 0x80 of 64-bit code", Filter{Syscalls: filterOf(t, "execve@x32")}, with(enter(x32|execveX32, "sh"), by(bpf.InsnInt80In64)), false, 0},
		{"listed call's deferred exit", Filter{Syscalls: filterOf(t, "openat")}, with(enter(openat64, "sh"), deferred), true, 0},
		{"deferred exit of a call not listed", Filter{Syscalls: filterOf(t, "openat")}, with(enter(futex64, "sh"), deferred), false, 0},

		{"negative number, 64-bit table excluded", Filter{Syscalls: filterOf(t, "!1023@x32")}, enter(-1, "sh"), true, 0},
		{"listed x32 call of a common number", Filter{Syscalls: filterOf(t, "openat")}, enter(x32|openat64, "sh"), true, 0},
		{"listed x32 call of its own number", Filter{Syscalls: filterOf(t, "execve")}, enter(x32|execveX32, "sh"), true, 0},
		{"64-bit number x32 does not use", Filter{Syscalls: filterOf(t, "execve")}, enter(x32|execve64, "sh"), false, 0},
		{"x32 number without its bit, as old kernels take", Filter{Syscalls: filterOf(t, "execve")}, enter(execveX32, "sh"), true, 0},
		{"x32 call, 64-bit table listed", Filter{Syscalls: filterOf(t, "openat@64")}, enter(x32|openat64, "sh"), false, 0},
		{"excluded x32 call", Filter{Syscalls: filterOf(t, "!execve")}, enter(x32|execveX32, "sh"), false, 0},

		{"listed name", Filter{Comms: Set[string]{Values: []string{"sh", "cat"}}}, enter(1, "cat"), true, 0},
		{"name not listed", Filter{Comms: Set[string]{Values: []string{"sh", "cat"}}}, enter(1, "init"), false, 0},
		{"longer name than listed", Filter{Comms: Set[string]{Values: []string{"sh"}}}, enter(1, "sh2"), false, 0},
		{"shorter name than listed", Filter{Comms: Set[string]{Values: []string{"sh"}}}, enter(1, "s"), false, 0},
		{"longest name", Filter{Comms: Set[string]{Values: []string{"fifteen-letters"}}}, enter(1, "fifteen-letters"), true, 0},
		{"excluded name", Filter{Comms: Set[string]{Values: []string{"sh"}, Except: true}}, enter(1, "sh"), false, 0},
		{"name not excluded", Filter{Comms: Set[string]{Values: []string{"sh"}, Except: true}}, enter(1, "cat"), true, 0},
		{"no identity with a listed name", Filter{Comms: Set[string]{Values: []string{"sh"}}}, with(enter(1, "sh"), noIdentity), false, 1},
		{"no identity with an excluded name", Filter{Comms: Set[string]{Values: []string{"sh"}, Except: true}}, with(enter(1, "sh"), noIdentity), false, 1},
		{"bytes after the name's NUL", Filter{Comms: Set[string]{Values: []string{"sh"}}}, enter(1, "sh\x00garbage"), true, 0},
		{"excluded name with bytes after its NUL", Filter{Comms: Set[string]{Values: []string{"sh"}, Except: true}}, enter(1, "sh\x00garbage"), false, 0},
		{"name without NUL", Filter{Comms: Set[string]{Values: []string{"fifteen-letters"}}}, enter(1, "fifteen-letters!"), false, 0},

		{"both parts pass", Filter{Syscalls: filterOf(t, "openat"), Comms: Set[string]{Values: []string{"sh"}}}, enter(openat64, "sh"), true, 0},
		{"only the call passes", Filter{Syscalls: filterOf(t, "openat"), Comms: Set[string]{Values: []string{"sh"}}}, enter(openat64, "cat"), false, 0},
		{"only the name passes", Filter{Syscalls: filterOf(t, "openat"), Comms: Set[string]{Values: []string{"sh"}}}, enter(futex64, "sh"), false, 0},

		{"a listed process", Filter{Processes: ids(9, 10)}, enter(1, "sh"), true, 0},
		{"a listed thread's id as a process", Filter{Processes: ids(11)}, enter(1, "sh"), false, 0},
		{"a process of the same word", Filter{Processes: ids(12)}, enter(1, "sh"), false, 0},
		{"an excluded process", Filter{Processes: Set[int32]{Values: []int32{10}, Except: true}}, enter(1, "sh"), false, 0},
		{"a process not excluded", Filter{Processes: Set[int32]{Values: []int32{11}, Except: true}}, enter(1, "sh"), true, 0},
		{"the highest process", Filter{Processes: ids(bpf.PIDs - 1)}, with(enter(1, "sh"), func(ev *bpf.Event) { ev.Tgid = bpf.PIDs - 1 }), true, 0},
		{"a process beyond all", Filter{Processes: ids(1)}, with(enter(1, "sh"), func(ev *bpf.Event) { ev.Tgid = bpf.PIDs + 1 }), false, 0},
		{"a negative process", Filter{Processes: Set[int32]{Values: []int32{1}, Except: true}}, with(enter(1, "sh"), func(ev *bpf.Event) { ev.Tgid = -1 }), true, 0},
		{"a listed thread", Filter{Threads: ids(11)}, enter(1, "sh"), true, 0},
		{"a thread not listed", Filter{Threads: ids(10)}, enter(1, "sh"), false, 0},
		{"process and thread", Filter{Processes: ids(10), Threads: ids(11)}, enter(1, "sh"), true, 0},
		{"process and another thread", Filter{Processes: ids(10), Threads: ids(12)}, enter(1, "sh"), false, 0},
		{"no identity with a listed process", Filter{Processes: ids(10)}, with(enter(1, "sh"), noIdentity), false, 1},
		{"no identity with a listed process, and the unknown", Filter{Processes: ids(10), Unknown: true}, with(enter(1, "sh"), noIdentity), true, 1},
		{"a system call that does not pass, of no identity", Filter{Syscalls: filterOf(t, "openat"), Processes: ids(10)}, with(enter(1, "sh"), noIdentity), false, 0},
		{"unknown number with a list, and the unknown", Filter{Syscalls: filterOf(t, "openat"), Unknown: true}, with(enter(0, "sh"), exitUnknown), true, 1},
		{"coverage with all filters", Filter{
			Processes: ids(1), UIDs: Set[uint32]{Values: []uint32{1}}, Follow: true, Errors: Set[unix.Errno]{Values: []unix.Errno{2}},
		}, coverage, true, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tr := newTracer(t, Options{VMs: []uint32{7}, Filter: tc.filter, RingBytes: 4096})
			k := bpftest.New(t, 1)
			*k.At(0) = tc.event

			before := BootTime()
			fire(t, tr, k, 0)
			after := BootTime()
			r := drain(t, tr)

			if !tc.pass {
				if len(r.events) != 0 {
					t.Fatalf("delivered %+v", r.events)
				}
			} else {
				if len(r.events) != 1 {
					t.Fatalf("delivered %d events, want 1", len(r.events))
				}
				got := r.events[0]
				if got.Time < before || got.Time > after {
					t.Errorf("time %d is not between %d and %d", got.Time, before, after)
				}
				got.Time = 0
				if got != tc.event {
					t.Errorf("delivered %+v\nwant      %+v", got, tc.event)
				}
			}
			if len(r.lost) != 0 {
				t.Errorf("lost %+v", r.lost)
			}
			s, err := tr.Summary()
			must(t, err)
			if want := (Summary{Delivered: uint64(len(r.events)), Unjudged: tc.unjudged}); s != want {
				t.Errorf("summary %+v, want %+v", s, want)
			}
		})
	}
}

func TestEveryFieldArrives(t *testing.T) {
	tr := newTracer(t, Options{VMs: []uint32{7}})
	k := bpftest.New(t, 1)
	want := bpf.Event{
		Time: 1, Vm: 7, Vcpu: 3, Kind: bpf.EventEnter, Insn: bpf.InsnSyscall64, Flags: 3, Nr: 257,
		Args: [6]uint64{1 << 63, 2, 3, 4, 5, 6}, Ret: -2, Ip: 0x401000, Sp: 0x7ffd00000000,
		Cr3: 0x1001, Task: 0xffff888000000000, Pid: 12, Tgid: 11, Comm: comm("name"),
	}
	*k.At(0) = want
	fire(t, tr, k, 0)
	r := drain(t, tr)
	if len(r.events) != 1 {
		t.Fatalf("delivered %d events, want 1", len(r.events))
	}
	if r.events[0].Time == want.Time {
		t.Error("time was not stamped")
	}
	want.Time = r.events[0].Time
	if r.events[0] != want {
		t.Errorf("delivered %+v\nwant      %+v", r.events[0], want)
	}
}

func TestAddAndRemoveVM(t *testing.T) {
	tr := newTracer(t, Options{})
	k := bpftest.New(t, 1)
	*k.At(0) = enter(1, "sh")

	fire(t, tr, k, 0)
	must(t, tr.AddVM(7))
	must(t, tr.AddVM(7))
	k.At(0).Nr = 2
	fire(t, tr, k, 0)
	must(t, tr.RemoveVM(7))
	must(t, tr.RemoveVM(7))
	k.At(0).Nr = 3
	fire(t, tr, k, 0)
	must(t, tr.AddVM(7))
	k.At(0).Nr = 4
	fire(t, tr, k, 0)

	// Its slot is another's now.
	must(t, tr.AddVM(7+bpf.VMSlots))
	must(t, tr.RemoveVM(7))
	k.At(0).Nr = 5
	fire(t, tr, k, 0)
	k.At(0).Vm = 7 + bpf.VMSlots
	k.At(0).Nr = 6
	fire(t, tr, k, 0)

	if r := drain(t, tr); !slices.Equal(r.stream, []string{"event 2", "event 4", "event 6"}) {
		t.Errorf("stream %q", r.stream)
	}
}

// A gap stands between the last event before it and the first one after it.
func TestRingFull(t *testing.T) {
	const room = 4096 / (8 + 152) // the ring's bytes by a record's
	tr := newTracer(t, Options{VMs: []uint32{7}, RingBytes: 4096})
	k := bpftest.New(t, 1)
	*k.At(0) = enter(0, "sh")
	next := func() {
		k.At(0).Nr++
		fire(t, tr, k, 0)
	}
	for range room + 3 {
		next()
	}

	r := newRecorder()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- tr.Run(ctx, r) }()
	r.wait(t, "a full ring of events", func() bool { return len(r.events) == room })
	next()
	next()
	r.wait(t, "the events after the gap", func() bool { return len(r.events) == room+2 })
	cancel()
	must(t, <-done)

	var want []string
	for i := range room {
		want = append(want, fmt.Sprintf("event %d", i+1))
	}
	want = append(want, "lost 3", fmt.Sprintf("event %d", room+4), fmt.Sprintf("event %d", room+5))
	if !slices.Equal(r.stream, want) {
		t.Errorf("stream %q\nwant   %q", r.stream, want)
	}
	if got := r.lost[0].Losses; got != (Losses{RingFull: 3}) {
		t.Errorf("lost %+v", got)
	}
	if at := r.lost[0].Time; at != r.events[room].Time {
		t.Errorf("gap at %d, the event after it at %d", at, r.events[room].Time)
	}
	s, err := tr.Summary()
	must(t, err)
	if want := (Summary{Delivered: room + 2, Lost: Losses{RingFull: 3}}); s != want {
		t.Errorf("summary %+v, want %+v", s, want)
	}
}

// Losses after the last event are told of although no event follows.
func TestLossWithoutFollowingEvent(t *testing.T) {
	tr := newTracer(t, Options{VMs: []uint32{7}})
	r := newRecorder()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- tr.Run(ctx, r) }()
	fireAt(t, tr.objs.Enter, 8)
	r.wait(t, "the loss", func() bool { return len(r.lost) == 1 })
	cancel()
	must(t, <-done)
	if r.lost[0].Losses != (Losses{ReadFault: 1}) || len(r.lost) != 1 {
		t.Errorf("lost %+v", r.lost)
	}
}

func TestReadFault(t *testing.T) {
	for _, tc := range []struct {
		name string
		addr uint64
	}{
		{"null pointer", 0},
		{"user address", 0x401000},
		{"address that is not canonical", 0x8000_0000_0000_0000},
		{"kernel address nothing is mapped at", 0xffff_fe00_dead_0000},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tr := newTracer(t, Options{VMs: []uint32{7}})
			fireAt(t, tr.objs.Enter, tc.addr)
			fireAt(t, tr.objs.Exit, tc.addr)
			r := drain(t, tr)
			if !slices.Equal(r.stream, []string{"lost 2"}) || r.lost[0].Losses != (Losses{ReadFault: 2}) {
				t.Errorf("stream %q, lost %+v", r.stream, r.lost)
			}
			s, err := tr.Summary()
			must(t, err)
			if want := (Summary{Lost: Losses{ReadFault: 2}}); s != want {
				t.Errorf("summary %+v, want %+v", s, want)
			}
		})
	}
}

// Every event is either delivered or counted as lost, whatever the load, and the records
// in the stream add up to the summary.
func TestNothingIsLostUncounted(t *testing.T) {
	const (
		producers = 4
		each      = 20000
	)
	tr := newTracer(t, Options{VMs: []uint32{7}, RingBytes: 8192})
	k := bpftest.New(t, producers)
	r := newRecorder()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- tr.Run(ctx, r) }()

	var wg sync.WaitGroup
	for p := range producers {
		wg.Go(func() {
			*k.At(p) = enter(0, "sh")
			k.At(p).Vcpu = uint32(p)
			for i := range each {
				k.At(p).Nr = int64(i)
				if _, err := tr.objs.Enter.Run(&ebpf.RunOptions{Context: k.Args(p)}); err != nil {
					t.Errorf("producer %d: %v", p, err)
					return
				}
			}
		})
	}
	wg.Wait()
	cancel()
	must(t, <-done)

	s, err := tr.Summary()
	must(t, err)
	var told Losses
	for _, l := range r.lost {
		told.RingFull += l.RingFull
		told.ReadFault += l.ReadFault
		told.Recursion += l.Recursion
	}
	if told != s.Lost {
		t.Errorf("records say %+v, the summary %+v", told, s.Lost)
	}
	if s.Delivered != uint64(len(r.events)) {
		t.Errorf("summary says %d events, delivered %d", s.Delivered, len(r.events))
	}
	if got := s.Delivered + s.Lost.Total(); got != producers*each {
		t.Errorf("%d delivered and %d lost are not %d", s.Delivered, s.Lost.Total(), producers*each)
	}
	if s.Lost.Total() == 0 {
		t.Error("nothing was lost: the ring is too large for this test")
	}
	last := make(map[uint32]int64)
	for _, ev := range r.events {
		if prev, ok := last[ev.Vcpu]; ok && ev.Nr <= prev {
			t.Fatalf("producer %d: event %d after %d", ev.Vcpu, ev.Nr, prev)
		}
		last[ev.Vcpu] = ev.Nr
	}
}

// The kernel does not run a program inside itself: here one that faults, at the tracepoint
// of faults, takes the place of the tracer's.
func TestRecursionMissIsCounted(t *testing.T) {
	const unmapped = 0xffff_fe00_dead_0000
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.RawTracepoint, License: "GPL",
		Instructions: asm.Instructions{
			asm.Mov.Imm(asm.R1, 0),
			asm.StoreMem(asm.RFP, -8, asm.R1, asm.DWord),
			asm.Mov.Reg(asm.R1, asm.RFP),
			asm.Add.Imm(asm.R1, -8),
			asm.Mov.Imm(asm.R2, 8),
			asm.LoadImm(asm.R3, int64(unmapped-(1<<64)), asm.DWord),
			asm.FnProbeReadKernel.Call(),
			asm.Mov.Imm(asm.R0, 0),
			asm.Return(),
		},
	})
	must(t, err)
	tr := newTracer(t, Options{})
	must(t, tr.objs.Enter.Close())
	tr.objs.Enter = prog
	must(t, tr.attach("page_fault_kernel", "sched_switch", "sched_switch", "sched_switch"))

	// Its first fault is outside of the tracepoint.
	_, err = prog.Run(&ebpf.RunOptions{})
	must(t, err)

	r := drain(t, tr)
	s, err := tr.Summary()
	must(t, err)
	if s.Lost.Recursion == 0 {
		t.Errorf("summary %+v: no recursion miss", s)
	}
	if len(r.lost) != 1 || r.lost[0].Losses != s.Lost {
		t.Errorf("lost %+v, summary %+v", r.lost, s)
	}
}

// What the kernel measured of the programs is told while it measures, and after Close.
func TestPrograms(t *testing.T) {
	k := bpftest.New(t, 1)
	*k.At(0) = enter(1, "sh")
	tr := newTracer(t, Options{VMs: []uint32{7}})
	stats, err := ebpf.EnableStats(uint32(unix.BPF_STATS_RUN_TIME))
	must(t, err)
	defer stats.Close()
	for range 3 {
		fire(t, tr, k, 0)
	}
	for _, when := range []string{"open", "closed"} {
		all, err := tr.Programs()
		must(t, err)
		for _, p := range all {
			if p.Name == bpf.TracepointEnter && p.Runs == 3 && p.RunTime > 0 {
				continue
			}
			if p.Name == bpf.TracepointEnter || p.Runs != 0 || p.RunTime != 0 {
				t.Errorf("%s: %+v after 3 runs of %s", when, p, bpf.TracepointEnter)
			}
		}
		if len(all) != 4 {
			t.Errorf("%s: %d programs", when, len(all))
		}
		must(t, tr.Close())
	}
}

// Who a thread is comes in the order of its events, of VMs that are followed, whatever the
// filter; and to no sink that does not want it.
func TestProcesses(t *testing.T) {
	k := bpftest.New(t, 10)
	describe := func(i int, vm uint32, who uint64, exe string) {
		p := k.Process(i)
		*p = bpf.Process{
			Head:  bpf.Event{Vm: vm, Kind: bpf.EventProcess, Flags: bpf.EventIdentity, Task: 0xffff888000001000, Who: who, Pid: 3},
			Known: bpf.ProcessExe, Ppid: 1,
		}
		copy(p.Exe[:], exe)
	}
	tr := newTracer(t, Options{VMs: []uint32{7}, Filter: Filter{Comms: Set[string]{Values: []string{"sh"}}}, Processes: true})
	for _, s := range []struct {
		vm  uint32
		who uint64
	}{{7, 1}, {8, 2}, {7, 3}} {
		describe(0, s.vm, s.who, "/bin/sh")
		k.Fire(t, tr.objs.Process, 0)
		*k.At(0) = enter(int64(s.who), "sh")
		k.At(0).Vm, k.At(0).Who = s.vm, s.who
		fire(t, tr, k, 0)
	}
	r := drain(t, tr)
	if want := []string{"process 1", "event 1", "process 3", "event 3"}; !slices.Equal(r.stream, want) {
		t.Errorf("stream %q, want %q", r.stream, want)
	}
	if len(r.known) != 2 || string(r.known[1].ExeBytes()) != "/bin/sh" || r.known[1].Ppid != 1 || r.known[1].Head.Time == 0 {
		t.Errorf("described %+v", r.known)
	}
	if s, err := tr.Summary(); err != nil || s.Delivered != 2 {
		t.Errorf("summary %+v, %v", s, err)
	}
}

// A description that does not fit is lost and counted; its events say whose they are all the same.
func TestProcessLost(t *testing.T) {
	tr := newTracer(t, Options{VMs: []uint32{7}, RingBytes: 4096, Processes: true})
	k := bpftest.New(t, 10)
	const n = 10
	for range n {
		*k.Process(0) = bpf.Process{Head: bpf.Event{Vm: 7, Kind: bpf.EventProcess}}
		k.Fire(t, tr.objs.Process, 0)
	}
	r := drain(t, tr)
	if len(r.known) >= n || len(r.lost) != 1 || len(r.known)+int(r.lost[0].RingFull) != n {
		t.Errorf("%d described, lost %+v", len(r.known), r.lost)
	}
}

func TestProcessTable(t *testing.T) {
	var s Processes
	of := func(vm uint32, task, who uint64) *bpf.Process {
		return s.Of(&bpf.Event{Vm: vm, Task: task, Who: who})
	}
	add := func(vm uint32, task, who uint64, ppid int32) {
		s.Add(&bpf.Process{Head: bpf.Event{Vm: vm, Task: task, Who: who}, Ppid: ppid})
	}
	if of(7, 1, 1) != nil {
		t.Error("an empty table knows a thread")
	}
	add(7, 1, 1, 10)
	add(8, 1, 1, 11)
	if a, b := of(7, 1, 1), of(8, 1, 1); a == nil || b == nil || a.Ppid != 10 || b.Ppid != 11 {
		t.Errorf("got %+v and %+v", a, b)
	}
	if of(7, 1, 2) != nil {
		t.Error("a thread whose description was lost is taken for the one before it")
	}
	add(7, 1, 2, 12)
	if of(7, 1, 1) != nil || of(7, 1, 2) == nil || of(7, 1, 0) != nil {
		t.Error("a new description does not replace the old one")
	}
	for i := range uint64(2 * maxProcesses) {
		add(7, i, i+1, 0)
	}
	if len(s.byTask) > maxProcesses {
		t.Errorf("%d threads are remembered", len(s.byTask))
	}
}

// A tracer whose ring is full takes nothing from another one.
func TestTracersAreIndependent(t *testing.T) {
	slow := newTracer(t, Options{VMs: []uint32{7}, RingBytes: 4096})
	fast := newTracer(t, Options{VMs: []uint32{7}})
	k := bpftest.New(t, 1)
	*k.At(0) = enter(1, "sh")
	for range 100 {
		fire(t, slow, k, 0)
		fire(t, fast, k, 0)
	}
	rs, rf := drain(t, slow), drain(t, fast)
	if len(rf.events) != 100 || len(rf.lost) != 0 {
		t.Errorf("fast tracer: %d events, lost %+v", len(rf.events), rf.lost)
	}
	if len(rs.events) >= 100 || len(rs.lost) != 1 || rs.lost[0].RingFull+uint64(len(rs.events)) != 100 {
		t.Errorf("slow tracer: %d events, lost %+v", len(rs.events), rs.lost)
	}
}

// Programs attached to a tracepoint of the running kernel run, and no more once detached.
func TestAttachAndDetach(t *testing.T) {
	stats, err := ebpf.EnableStats(unix.BPF_STATS_RUN_TIME)
	must(t, err)
	defer stats.Close()
	tr := newTracer(t, Options{Processes: true})
	must(t, tr.attach("sched_switch", "sched_switch", "sched_switch", "sched_switch"))
	if err := tr.attach("sched_switch", "sched_switch", "sched_switch", "sched_switch"); err == nil {
		t.Error("attached twice")
	}
	// Clones of the descriptors, for the tracer's are closed with it.
	var progs []*ebpf.Program
	for _, p := range []*ebpf.Program{tr.objs.Enter, tr.objs.Exit, tr.objs.Coverage, tr.objs.Process} {
		clone, err := p.Clone()
		must(t, err)
		defer clone.Close()
		progs = append(progs, clone)
	}
	runs := func() []uint64 {
		var n []uint64
		for _, p := range progs {
			s, err := p.Stats()
			must(t, err)
			n = append(n, s.RunCount)
		}
		return n
	}
	deadline := time.Now().Add(testDeadline)
	for slices.Contains(runs(), 0) {
		if time.Now().After(deadline) {
			t.Fatalf("attached programs ran %d times", runs())
		}
		switchThreads(t)
	}
	drain(t, tr) // detaches
	n := runs()
	// Reading from an empty pipe switches to another thread, each time.
	for range 100 {
		switchThreads(t)
	}
	if got := runs(); !slices.Equal(got, n) {
		t.Errorf("ran %d times, and %d times once detached", n, got)
	}
}

// switchThreads makes the scheduler switch from one thread to another and back.
func switchThreads(t *testing.T) {
	t.Helper()
	var p [2]int
	must(t, unix.Pipe2(p[:], unix.O_CLOEXEC))
	defer unix.Close(p[0])
	defer unix.Close(p[1])
	done := make(chan error, 1)
	go func() {
		_, err := unix.Read(p[0], make([]byte, 1))
		done <- err
	}()
	_, err := unix.Write(p[1], []byte{1})
	must(t, err)
	must(t, <-done)
}

func TestAttachWithoutModule(t *testing.T) {
	tr := newTracer(t, Options{})
	const no = "frail_no_such_tracepoint"
	err := tr.attach(no, no, no, no)
	if !errors.Is(err, ErrNoTracepoint) || err.Error() != "load frail.ko: tracepoint frail_no_such_tracepoint not found" {
		t.Errorf("error %v", err)
	}
	// A module from before changes of coverage were told of.
	err = tr.attach("sched_switch", "sched_switch", no, no)
	if err == nil || !strings.Contains(err.Error(), no+": frail.ko is of another version than this program") {
		t.Errorf("error %v", err)
	}
}

// blocker is a sink that closes the tracer, or does not take events at all.
type blocker struct {
	event func() error
	got   chan struct{}
	once  sync.Once
}

func (b *blocker) Event(*bpf.Event) error {
	b.once.Do(func() { close(b.got) })
	return b.event()
}
func (b *blocker) Lost(Lost) error { return nil }
func (b *blocker) Flush() error    { return nil }

func TestCloseDuringRun(t *testing.T) {
	t.Run("waiting for events", func(t *testing.T) {
		tr := newTracer(t, Options{VMs: []uint32{7}})
		k := bpftest.New(t, 1)
		*k.At(0) = enter(1, "sh")
		fire(t, tr, k, 0)
		r := newRecorder()
		done := make(chan error, 1)
		go func() { done <- tr.Run(context.Background(), r) }()
		r.wait(t, "the event", func() bool { return len(r.events) == 1 })
		must(t, tr.Close())
		select {
		case err := <-done:
			if !errors.Is(err, os.ErrClosed) {
				t.Errorf("Run returned %v", err)
			}
		case <-time.After(testDeadline):
			t.Fatal("Run did not return")
		}
		checkClosed(t, tr, Summary{Delivered: 1})
	})
	t.Run("sink that hangs", func(t *testing.T) {
		tr := newTracer(t, Options{VMs: []uint32{7}})
		k := bpftest.New(t, 1)
		*k.At(0) = enter(1, "sh")
		fire(t, tr, k, 0)
		hang := make(chan struct{})
		b := &blocker{got: make(chan struct{}), event: func() error { <-hang; return nil }}
		done := make(chan error, 1)
		go func() { done <- tr.Run(context.Background(), b) }()
		<-b.got
		must(t, tr.Close()) // does not wait for the sink
		close(hang)
		if err := <-done; !errors.Is(err, os.ErrClosed) {
			t.Errorf("Run returned %v", err)
		}
		checkClosed(t, tr, Summary{Delivered: 1})
	})
	t.Run("from the sink", func(t *testing.T) {
		tr := newTracer(t, Options{VMs: []uint32{7}})
		k := bpftest.New(t, 1)
		*k.At(0) = enter(1, "sh")
		fire(t, tr, k, 0)
		fire(t, tr, k, 0)
		b := &blocker{got: make(chan struct{}), event: tr.Close}
		if err := tr.Run(context.Background(), b); !errors.Is(err, os.ErrClosed) {
			t.Errorf("Run returned %v", err)
		}
		checkClosed(t, tr, Summary{Delivered: 1})
	})
}

// checkClosed checks what a closed tracer answers.
func checkClosed(t *testing.T, tr *Tracer, want Summary) {
	t.Helper()
	must(t, tr.Close())
	if s, err := tr.Summary(); err != nil || s != want {
		t.Errorf("summary %+v, %v, want %+v", s, err, want)
	}
	for name, err := range map[string]error{
		"Run":      tr.Run(context.Background(), newRecorder()),
		"Attach":   tr.Attach(),
		"AddVM":    tr.AddVM(1),
		"RemoveVM": tr.RemoveVM(1),
	} {
		if !errors.Is(err, os.ErrClosed) {
			t.Errorf("%s of a closed tracer returned %v", name, err)
		}
	}
}

func TestSinkErrorEndsRun(t *testing.T) {
	tr := newTracer(t, Options{VMs: []uint32{7}})
	k := bpftest.New(t, 1)
	*k.At(0) = enter(1, "sh")
	fire(t, tr, k, 0)
	want := errors.New("client is gone")
	b := &blocker{got: make(chan struct{}), event: func() error { return want }}
	if err := tr.Run(context.Background(), b); err != want {
		t.Errorf("Run returned %v", err)
	}
	if err := tr.Run(context.Background(), b); err == nil || errors.Is(err, os.ErrClosed) {
		t.Errorf("second Run returned %v", err)
	}
}

func TestOptionErrors(t *testing.T) {
	for _, tc := range []struct {
		name string
		opts Options
		want string
	}{
		{"ring too large", Options{RingBytes: MaxRingBytes + 1}, "at most"},
		{"negative ring", Options{RingBytes: -1}, "must not be negative"},
		{"empty name", Options{Filter: Filter{Comms: Set[string]{Values: []string{""}}}}, "empty thread name"},
		{"name too long", Options{Filter: Filter{Comms: Set[string]{Values: []string{"sixteen-letters!"}}}}, `filter by "sixteen-letters"`},
		{"name with NUL", Options{Filter: Filter{Comms: Set[string]{Values: []string{"a\x00b"}}}}, "NUL"},
		{"too many names", Options{Filter: Filter{Comms: Set[string]{Values: make([]string, MaxComms+1)}}}, "at most 64"},
		{"unknown kind", Options{Filter: Filter{Kinds: 1}}, "unknown event kinds"},
		{"unknown match", Options{Filter: Filter{Syscalls: syscalls.Filter{Match: [bpf.Tables]uint32{9}}}}, "unknown system call match"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tr, err := New(tc.opts)
			if err == nil {
				tr.Close()
				t.Fatal("no error")
			}
			if !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %q does not say %q", err, tc.want)
			}
		})
	}
}

func TestRingBytes(t *testing.T) {
	for _, tc := range []struct{ in, want int }{
		{0, DefaultRingBytes}, {1, os.Getpagesize()}, {4096, 4096}, {4097, 8192},
		{MaxRingBytes, MaxRingBytes}, {1<<20 + 1, 2 << 20},
	} {
		if got, err := ringBytes(tc.in); err != nil || got != tc.want {
			t.Errorf("ringBytes(%d) = %d, %v, want %d", tc.in, got, err, tc.want)
		}
	}
}

// counter is a sink that does nothing but count, and ends Run at the last event.
type counter struct {
	n, last int
	start   func()
}

var errEnough = errors.New("enough events")

func (c *counter) Event(*bpf.Event) error {
	if c.n++; c.n == 1 && c.start != nil {
		c.start()
	}
	if c.n == c.last {
		return errEnough
	}
	return nil
}
func (c *counter) Lost(Lost) error { return nil }
func (c *counter) Flush() error    { return nil }

// Between the first and the last event of a full ring nothing is allocated.
func TestNoAllocationPerEvent(t *testing.T) {
	const events = 5000
	tr := newTracer(t, Options{VMs: []uint32{7}, RingBytes: 1 << 20})
	k := bpftest.New(t, 1)
	*k.At(0) = enter(1, "sh")
	for range events {
		fire(t, tr, k, 0)
	}
	var before, after runtime.MemStats
	c := &counter{last: events, start: func() { runtime.ReadMemStats(&before) }}
	err := tr.Run(context.Background(), c)
	runtime.ReadMemStats(&after)
	if err != errEnough || c.n != events {
		t.Fatalf("Run returned %v after %d events", err, c.n)
	}
	// The rest of the process and the end of Run may allocate; an allocation per event,
	// or per ten, would be far more.
	if n := after.Mallocs - before.Mallocs; n > 50 {
		t.Errorf("%d allocations for %d events", n, events)
	}
}

func BenchmarkRun(b *testing.B) {
	b.ReportAllocs()
	k := bpftest.New(b, 1)
	*k.At(0) = enter(1, "sh")
	const batch = 100000
	for left := b.N; left > 0; {
		n := min(left, batch)
		left -= n
		b.StopTimer()
		tr, err := New(Options{VMs: []uint32{7}, RingBytes: 16 << 20})
		must(b, err)
		for range n {
			fire(b, tr, k, 0)
		}
		c := &counter{last: n}
		b.StartTimer()
		if err := tr.Run(context.Background(), c); err != errEnough {
			b.Fatalf("Run returned %v after %d of %d events", err, c.n, n)
		}
		b.StopTimer()
		must(b, tr.Close())
		b.StartTimer()
	}
}

// SPDX-License-Identifier: Apache-2.0

package record

import (
	"fmt"
	"slices"
	"sync"
	"testing"

	"github.com/cilium/ebpf"

	"frail/bpf"
	"frail/bpf/bpftest"
	"frail/tracer"
)

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

func newRecorder(tb testing.TB) *Recorder {
	tb.Helper()
	r, err := New(Options{Bytes: MinBytes})
	must(tb, err)
	tb.Cleanup(func() { must(tb, r.Close()) })
	return r
}

func newRecord(tb testing.TB, r *Recorder, vm uint32) *Record {
	tb.Helper()
	rec, err := r.Record(vm)
	must(tb, err)
	tb.Cleanup(func() { must(tb, rec.Close()) })
	return rec
}

// sink keeps what it is given: "NR" of events, "who N" and "lost N".
type sink struct {
	stream []string
	events []bpf.Event
	known  []bpf.Process
	each   func()
}

func (s *sink) Event(ev *bpf.Event) error {
	s.stream = append(s.stream, fmt.Sprint(ev.Nr))
	s.events = append(s.events, *ev)
	if s.each != nil {
		s.each()
	}
	return nil
}

func (s *sink) Process(p *bpf.Process) error {
	s.stream = append(s.stream, fmt.Sprint("who ", p.Head.Who))
	s.known = append(s.known, *p)
	return nil
}

func (s *sink) Lost(l tracer.Lost) error {
	s.stream = append(s.stream, fmt.Sprint("lost ", l.Total()))
	return nil
}

func (s *sink) Flush() error { return nil }

func read(tb testing.TB, rec *Record, from uint64) (*sink, Reading) {
	tb.Helper()
	s := new(sink)
	got, err := rec.Read(from, s)
	must(tb, err)
	return s, got
}

func fire(tb testing.TB, r *Recorder, k *bpftest.Events, ev bpf.Event) {
	tb.Helper()
	*k.At(0) = ev
	k.Fire(tb, r.Program(ev.Kind), 0)
}

func enter(nr int64) bpf.Event {
	return bpf.Event{Vm: 7, Kind: bpf.EventEnter, Insn: bpf.InsnSyscall64, Nr: nr}
}

// All kinds of events of the recorded VM are held as they are, with who made them, and no other's.
func TestRecordHoldsEvents(t *testing.T) {
	r := newRecorder(t)
	rec, k := newRecord(t, r, 7), bpftest.New(t, 5)
	other := enter(9)
	other.Vm = 7 + bpf.VMSlots
	who := bpf.Process{Head: bpf.Event{Vm: 7, Kind: bpf.EventProcess, Who: 5, Task: 1 << 40}, Uid: 1000}
	copy(who.Exe[:], "/bin/sh")
	k.FireProcess(t, r.Program(bpf.EventProcess), 0, &who)
	want := bpf.Event{
		Vm: 7, Vcpu: 3, Kind: bpf.EventEnter, Insn: bpf.InsnSyscall64, Flags: 3, Nr: 257, Args: [6]uint64{1 << 63, 2, 3, 4, 5, 6},
		Ret: -2, Ip: 1, Sp: 2, Cr3: 3, Task: 1 << 40, Who: 5, Pid: 12, Tgid: 11, Comm: [16]byte{'s', 'h'},
	}
	before := tracer.BootTime()
	fire(t, r, k, want)
	fire(t, r, k, other)
	exit, coverage := enter(2), enter(3)
	exit.Kind, coverage.Kind = bpf.EventExit, bpf.EventCoverage
	fire(t, r, k, exit)
	fire(t, r, k, coverage)
	after := tracer.BootTime()

	s, got := read(t, rec, 0)
	if !slices.Equal(s.stream, []string{"who 5", "257", "2", "3"}) {
		t.Fatalf("stream %q", s.stream)
	}
	if at := s.events[0].Time; at < before || at > after || at != got.First || s.events[2].Time != got.Last {
		t.Errorf("times %d to %d, read %+v", before, after, got)
	}
	s.events[0].Time, s.known[0].Head.Time = 0, 0
	if s.events[0] != want {
		t.Errorf("held %+v\nwant %+v", s.events[0], want)
	}
	if s.known[0] != who {
		t.Errorf("held %+v\nwant %+v", s.known[0], who)
	}
	if got.Events != 3 || got.Lost.Total() != 0 || got.Forgotten != 0 {
		t.Errorf("read %+v", got)
	}

	s, _ = read(t, rec, s.events[1].Time)
	if !slices.Equal(s.stream, []string{"2", "3"}) {
		t.Errorf("of the last two: %q", s.stream)
	}
	if s, _ = read(t, rec, after); len(s.stream) != 0 {
		t.Errorf("of later: %q", s.stream)
	}
}

// A full record holds the newest, and says how many it does not hold.
func TestRecordIsBounded(t *testing.T) {
	const room, more = MinBytes/160 - 1, 100
	r := newRecorder(t)
	rec, k := newRecord(t, r, 7), bpftest.New(t, 1)
	for i := range int64(room + more) {
		fire(t, r, k, enter(i))
	}
	s, got := read(t, rec, 0)
	if len(s.events) != room || s.events[0].Nr != more || got.Forgotten != more || got.Lost.Total() != 0 {
		t.Fatalf("%d events from %d on, read %+v", len(s.events), s.events[0].Nr, got)
	}
	if i := rec.Info(); i.Recorded != room+more || i.Held != room || i.Oldest != s.events[0].Time || i.Ended != 0 || i.Forgotten() != more {
		t.Errorf("info %+v", i)
	}

	// What is overwritten before the first is read is not lost, but older. Later it is lost.
	s = &sink{}
	s.each = func() {
		if len(s.events) == 1 {
			for i := range int64(10) {
				fire(t, r, k, enter(1000+i))
			}
		}
	}
	got, err := rec.Read(0, s)
	must(t, err)
	if s.stream[1] != "lost 9" || len(s.events) != room-9 || got.Lost.RingFull != 9 {
		t.Errorf("overwritten while it is read: %q..., %d events, %+v", s.stream[:3], len(s.events), got)
	}
}

// An event that cannot be read is missing where it was.
func TestRecordTellsOfLosses(t *testing.T) {
	r := newRecorder(t)
	rec, k := newRecord(t, r, 7), bpftest.New(t, 1)
	fire(t, r, k, enter(1))
	bad := k.Args(0)
	bad.Event = 1 << 63
	_, err := r.Program(bpf.EventEnter).Run(&ebpf.RunOptions{Context: bad})
	must(t, err)
	fire(t, r, k, enter(2))
	s, got := read(t, rec, 0)
	if !slices.Equal(s.stream, []string{"1", "lost 1", "2"}) || got.Lost.ReadFault != 1 {
		t.Errorf("stream %q, %+v", s.stream, got)
	}
}

// A record that ended can be read, also when the recorder is no more.
func TestRecordAfterItsEnd(t *testing.T) {
	r := newRecorder(t)
	rec, k := newRecord(t, r, 7), bpftest.New(t, 1)
	fire(t, r, k, enter(1))
	must(t, rec.Stop())
	must(t, rec.Stop())
	fire(t, r, k, enter(2))
	next := newRecord(t, r, 7+bpf.VMSlots)
	must(t, r.Close())
	if s, _ := read(t, rec, 0); !slices.Equal(s.stream, []string{"1"}) || rec.Info().Ended == 0 {
		t.Errorf("stream %q", s.stream)
	}
	must(t, rec.Close())
	must(t, rec.Close())
	if _, err := rec.Read(0, new(sink)); err == nil {
		t.Error("a closed record was read")
	}
	must(t, next.Close())
	if _, err := r.Record(1); err == nil {
		t.Error("a closed recorder records")
	}
}

// Reading while the guest goes on gives no event twice, none torn and none out of place.
func TestReadWhileRecording(t *testing.T) {
	r := newRecorder(t)
	rec := newRecord(t, r, 7)
	var writers sync.WaitGroup
	stop := make(chan struct{})
	for vcpu := range uint32(2) {
		k := bpftest.New(t, 1)
		writers.Go(func() {
			for nr := int64(0); ; nr++ {
				select {
				case <-stop:
					return
				default:
				}
				ev := enter(nr)
				ev.Vcpu, ev.Args, ev.Ip = vcpu, [6]uint64{uint64(nr), uint64(nr), uint64(nr), 0, 0, uint64(nr)}, uint64(nr)
				fire(t, r, k, ev)
			}
		})
	}
	read := 0
	for range 2000 {
		s := new(sink)
		got, err := rec.Read(0, s)
		must(t, err)
		read += len(s.events)
		last := [2]int64{-1, -1}
		for _, ev := range s.events {
			if ev.Args != [6]uint64{ev.Ip, ev.Ip, ev.Ip, 0, 0, ev.Ip} || int64(ev.Ip) != ev.Nr {
				t.Fatalf("torn: %+v", ev)
			}
			if ev.Nr <= last[ev.Vcpu] {
				t.Fatalf("event %d comes after %d", ev.Nr, last[ev.Vcpu])
			}
			if gap := ev.Nr - last[ev.Vcpu] - 1; last[ev.Vcpu] >= 0 && gap > int64(got.Lost.Total()) {
				t.Fatalf("%d events are missing before %d, told %+v", gap, ev.Nr, got.Lost)
			}
			last[ev.Vcpu] = ev.Nr
		}
	}
	close(stop)
	writers.Wait()
	if read == 0 {
		t.Error("nothing was read")
	}
}

// SPDX-License-Identifier: Apache-2.0

package sequence

import (
	"bytes"
	"context"
	"math/rand/v2"
	"reflect"
	"testing"

	"frail/bpf"
	"frail/bpf/bpftest"
	"frail/tracer"
	"frail/tracer/capture"
	"frail/tracer/ph"
)

// replayed is a sink that analyses what was captured.
type replayed struct{ a *ph.Analyzer }

func (r *replayed) Event(ev *bpf.Event) error    { r.a.Call(ev); return nil }
func (r *replayed) Process(p *bpf.Process) error { r.a.Process(p); return nil }
func (r *replayed) Lost(tracer.Lost) error       { return nil }
func (r *replayed) Flush() error                 { return nil }

// What is captured while the kernel analyses gives, replayed, the same alerts.
func TestReplayGivesTheLiveAlerts(t *testing.T) {
	s := ph.DefaultSettings()
	s.NormalWait, s.AnomalyLimit, s.TolerizeLimit, s.ProcessLimit = 0, 3, 2, 3
	live := newAnalyzer(t, Options{RingBytes: 32 << 20})
	ref := ph.New(ph.DefaultLimits())
	for vm := range uint32(2) {
		must(t, live.AddVM(vm+1, s))
		ref.AddVM(vm+1, s)
	}
	k := bpftest.New(t, 5)
	var file bytes.Buffer
	w, err := capture.NewWriter(&file, capture.Header{})
	must(t, err)
	guest := &world{Rand: rand.New(rand.NewPCG(3, 1)), mm: 1 << 20, names: []string{"/bin/sh", "/bin/cat", "/nginx"}}
	var last, begin uint64 // times
	for i := range 40000 {
		d, ev := guest.next()
		last = ev.Time
		if d != nil {
			k.FireProcess(t, live.ProcessProgram(), 0, d)
			// Who the threads are is told again when a capture begins.
			must(t, w.Process(d))
			if i < 20000 {
				ref.Process(d)
			}
		}
		*k.At(0) = *ev
		k.Fire(t, live.Program(), 0)
		if i >= 20000 {
			must(t, w.Event(ev))
			continue
		}
		// Before the capture both learn, and are then told to judge.
		ref.Call(ev)
		if begin = ev.Time; i == 19999 {
			for _, exe := range ref.Executables() {
				ref.Control(exe, ph.Normalize)
				must(t, live.Control(exe, ph.Normalize))
			}
		}
	}
	must(t, w.Close())

	var want, got []ph.Alert
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	// A call that is an alert itself, to know that all before it were read.
	end := bpf.Event{Vm: 1, Kind: bpf.EventEnter, Insn: bpf.InsnSyscall64, Flags: bpf.EventIdentity, Pid: 1000, Tgid: 1000, Who: 1 << 60, Time: last + 1}
	k.FireProcess(t, live.ProcessProgram(), 0, described(end, "/end"))
	*k.At(0) = end
	k.Fire(t, live.Program(), 0)
	must(t, live.Run(ctx, func(rec *bpf.PhRecord) error {
		if rec.Pid == end.Pid {
			cancel()
			return nil
		}
		if rec.Time > begin {
			want = ph.AlertsOf(want, rec)
		}
		return nil
	}))

	r, err := capture.NewReader(bytes.NewReader(file.Bytes()))
	must(t, err)
	defer r.Close()
	ref.Tell = func(rec *bpf.PhRecord) { got = ph.AlertsOf(got, rec) }
	must(t, r.Run(&replayed{ref}))

	kinds := make(map[ph.AlertKind]int)
	for _, a := range want {
		kinds[a.Kind]++
	}
	t.Logf("alerts: %v", kinds)
	for _, kind := range []ph.AlertKind{ph.AlertAttack, ph.AlertDrift, ph.AlertProcesses} {
		if kinds[kind] == 0 {
			t.Errorf("no alert of kind %s", kind)
		}
	}
	if !reflect.DeepEqual(got, want) {
		for i := range min(len(want), len(got)) {
			if got[i] != want[i] {
				t.Errorf("alert %d: live\n%+v\nreplayed\n%+v", i, want[i], got[i])
				break
			}
		}
		t.Errorf("%d alerts live, %d replayed, or other ones", len(want), len(got))
	}
}

// Threads that made no call for long are candidates, and only the dead are freed.
func TestFree(t *testing.T) {
	a := newAnalyzer(t, Options{})
	must(t, a.AddVM(1, ph.DefaultSettings()))
	k := bpftest.New(t, 5)
	call := func(pid int32) {
		*k.At(0) = bpf.Event{
			Vm: 1, Kind: bpf.EventEnter, Insn: bpf.InsnSyscall64, Flags: bpf.EventIdentity, Pid: pid, Tgid: 1, Task: uint64(pid), Who: uint64(pid),
		}
		k.Fire(t, a.Program(), 0)
	}
	for pid := range int32(3) {
		pid++
		k.FireProcess(t, a.ProcessProgram(), 0, described(bpf.Event{Vm: 1, Pid: pid, Tgid: 1, Task: uint64(pid), Who: uint64(pid)}, "/a"))
		call(pid)
	}
	idle, err := a.Idle()
	must(t, err)
	if len(idle) != 0 {
		t.Errorf("idle at once: %+v", idle)
	}
	call(1)
	idle, err = a.Idle()
	must(t, err)
	if len(idle) != 2 {
		t.Fatalf("idle: %+v, want 2 and 3", idle)
	}
	call(3)
	n, err := a.Free(idle)
	must(t, err)
	if n != 1 {
		t.Errorf("%d freed, want the one that made no call since", n)
	}
	threads, err := a.Threads()
	must(t, err)
	if len(threads) != 2 {
		t.Errorf("left: %+v", threads)
	}
	must(t, a.RemoveVM(1))
	must(t, a.RemoveVM(1))
	if threads, err := a.Threads(); err != nil || len(threads) != 0 {
		t.Errorf("after RemoveVM %+v, %v", threads, err)
	}
}

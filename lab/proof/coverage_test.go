// SPDX-License-Identifier: Apache-2.0

//go:build lab

package proof

import (
	"testing"

	"frail/bpf"
	"frail/lab/direct"
)

const debugRounds = 5 // t-debug's

// TestDebugRegisters runs a process for which another sets a breakpoint. It gets the
// breakpoint in every case. On Intel, where Frail needs the debug registers too, the host
// is told while it is blind, and of everything that it is not blind for.
func TestDebugRegisters(t *testing.T) {
	const want = "stopped=1\naddress=0\nenable=0\ntrapped=1\nwhich=1\ndisable=0\nstatus=5\n"
	tr, err := direct.Trace(testContext(t), guest(direct.Config{Script: "t-debug"}), bpf.ExitsBoth)
	if err != nil {
		t.Fatal(err)
	}
	if tr.Output != want {
		t.Errorf("output:\n%swant:\n%s", tr.Output, want)
	}

	const getppid, gettid = 64, 224 // i386's
	made := map[int64]int{}         // by number, of INT 0x80
	var blind uint32                // now
	var changes []uint32
	for _, ev := range tr.Events {
		switch {
		case ev.Kind == bpf.EventCoverage:
			covered, b := ev.Coverage()
			if covered&b != 0 || covered&bpf.EntrySyscall == 0 {
				t.Errorf("covered are %#x and blind is %#x", covered, b)
			}
			blind = b
			changes = append(changes, b)
		case ev.Kind == bpf.EventEnter && ev.Insn == bpf.InsnInt80In64:
			if blind&bpf.EntryInt80 != 0 {
				t.Errorf("call %d by INT 0x80 is seen while that is said to be unseen", ev.Nr)
			}
			made[ev.Nr]++
		}
	}
	if made[gettid] != debugRounds {
		t.Errorf("of %d calls after the breakpoint was gone %d are seen", debugRounds, made[gettid])
	}
	if blind != 0 || tr.Status.Blind != 0 {
		t.Errorf("blind for %#x at the end, %#x by the status", blind, tr.Status.Blind)
	}
	switch v := vendor(t); v {
	case "GenuineIntel":
		if len(changes) < 2 || changes[0] != bpf.EntrySysenter|bpf.EntryInt80 {
			t.Errorf("blind for %#x one after the other, want SYSENTER and INT 0x80 first, then none", changes)
		}
		if made[getppid] != 0 {
			t.Errorf("%d calls are seen that the breakpoint hides", made[getppid])
		}
	default:
		if len(changes) != 0 || made[getppid] != debugRounds {
			t.Errorf("on %s: blind for %#x one after the other, %d of %d calls seen under the breakpoint",
				v, changes, made[getppid], debugRounds)
		}
	}
}

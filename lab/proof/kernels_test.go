// SPDX-License-Identifier: Apache-2.0

//go:build lab

package proof

import (
	"fmt"
	"slices"
	"testing"

	"frail/bpf"
	"frail/lab/direct"
)

// replaceScript runs a program, has %s put another kernel into the machine, and runs
// the program again: a mark on the disk, behind all else, says which kernel this is.
const replaceScript = `
mark() { dd if=/dev/vda bs=1M skip=63 count=1 2>/dev/null | head -c 4; }
if [ "$(mark)" != mark ]; then
	t-opens
	echo mark | dd of=/dev/vda bs=1M seek=63 conv=fsync
	%s
	exit 1
fi
t-opens
`

// TestNewKernel has a traced guest's kernel replaced by another one, also by itself at
// the same address: its calls are traced too, a new generation is told, and nothing
// that was found out of the old kernel is used for it.
func TestNewKernel(t *testing.T) {
	const kexec = `t-kexec vmlinuz initrd "$(cat /proc/cmdline) again" && t-kexec`
	for _, tt := range []struct {
		name, replace string
		vcpus         int
		boot          func(direct.Config) direct.Config
	}{
		// Not to the same address: without KASLR a guest of an emulated host does not
		// come back, untraced neither.
		{"reset", "reboot -f", 2, guest},
		// A second vCPU is started by INIT, which tells of a new kernel, too.
		{"kexec to the same address", kexec, 1, fixedGuest},
		{"kexec to another address", kexec, 2, guest},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tr, err := direct.Trace(testContext(t), tt.boot(direct.Config{
				VCPUs:  tt.vcpus,
				Reboot: true,
				Files:  map[string]string{"vmlinuz": direct.DefaultKernel, "initrd": *initrd},
				Script: fmt.Sprintf(replaceScript, tt.replace),
			}), bpf.ExitsEntry)
			if err != nil {
				t.Fatal(err)
			}
			if tr.Result.Status != 0 {
				t.Fatalf("status %d, output:\n%s", tr.Result.Status, tr.Output)
			}
			if tr.Status.Generation != 2 {
				t.Errorf("generation %d, want 2", tr.Status.Generation)
			}
			checkReplaced(t, tr.Events)
		})
	}
}

// checkReplaced checks the events of a guest whose kernel was replaced once.
func checkReplaced(t *testing.T, events []bpf.Event) {
	t.Helper()
	const reboot = 169
	last := slices.IndexFunc(events, func(ev bpf.Event) bool { return ev.Kind == bpf.EventEnter && ev.Nr == reboot })
	if last < 0 || last+1 == len(events) {
		t.Fatalf("the last call of the first kernel is event %d of %d", last, len(events))
	}
	before, after := events[:last], events[last+1:]
	if first := after[0]; first.Flags&bpf.EventIdentity != 0 {
		t.Errorf("the new kernel's first event has an identity before anybody found it: %+v", first)
	}
	program := callsOf(before, "t-opens")
	if again := callsOf(after, "t-opens"); len(program) == 0 || !slices.Equal(program, again) {
		t.Errorf("t-opens made the calls %d, and %d under the new kernel", program, again)
	}
	// A call that ends has begun.
	type call struct {
		task uint64
		nr   int64
	}
	begun := map[call]bool{}
	for _, ev := range after {
		c := call{ev.Task, ev.Nr}
		switch {
		case ev.Flags&bpf.EventIdentity == 0 || ev.Flags&bpf.EventNr == 0:
		case ev.Kind == bpf.EventEnter:
			begun[c] = true
		case ev.Kind == bpf.EventExit && !begun[c]:
			t.Errorf("the end of a call that the new kernel has not seen: %+v", ev)
		}
	}
}

// callsOf returns the numbers of the calls that threads of a name made.
func callsOf(events []bpf.Event, comm string) []int64 {
	var calls []int64
	for i := range events {
		if ev := &events[i]; ev.Kind == bpf.EventEnter && string(ev.CommBytes()) == comm {
			calls = append(calls, ev.Nr)
		}
	}
	return calls
}

// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
)

// Regenerating changes nothing: what is checked in is what the C sources say.
func TestGeneratedCodeIsCurrent(t *testing.T) {
	dir := t.TempDir()
	cmd := exec.Command("sh", "generate.sh", dir)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("generate.sh: %v\n%s", err, out)
	}
	for _, name := range []string{"trace_x86_bpfel.go", "trace_x86_bpfel.o", "ph_x86_bpfel.go", "ph_x86_bpfel.o", "record_x86_bpfel.go", "record_x86_bpfel.o"} {
		want, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%s is not what go generate makes of the sources (clang 14 of Debian 12)", name)
		}
	}
}

// The sizes the kernel module has: it checks them in every ioctl.
func TestSizes(t *testing.T) {
	for _, tc := range []struct {
		name      string
		got, want uintptr
	}{
		{"Event", unsafe.Sizeof(Event{}), 152},
		{"Process", unsafe.Sizeof(Process{}), 704},
		{"Arm", unsafe.Sizeof(Arm{}), 24},
		{"Layout", unsafe.Sizeof(Layout{}), 184},
		{"Status", unsafe.Sizeof(Status{}), 112},
	} {
		if tc.got != tc.want {
			t.Errorf("%s has %d bytes, want %d", tc.name, tc.got, tc.want)
		}
	}
}

// An ioctl number holds the size of its argument, so a changed struct changes it.
func TestIoctlNumbers(t *testing.T) {
	const write, read = 1, 2
	number := func(dir, nr uint32, size uintptr) uint32 {
		return dir<<30 | uint32(size)<<16 | 'F'<<8 | nr
	}
	for _, tc := range []struct {
		name      string
		got, want uint32
	}{
		{"IocArm", IocArm, number(read|write, 1, unsafe.Sizeof(Arm{}))},
		{"IocSetLayout", IocSetLayout, number(write, 2, unsafe.Sizeof(Layout{}))},
		{"IocStatus", IocStatus, number(read|write, 3, unsafe.Sizeof(Status{}))},
	} {
		if tc.got != tc.want {
			t.Errorf("%s is %#x, want %#x", tc.name, tc.got, tc.want)
		}
	}
}

// No structure that crosses a boundary has padding the compiler chose.
func TestNoImplicitPadding(t *testing.T) {
	for _, tc := range []struct {
		load  func() (*ebpf.CollectionSpec, error)
		names []string
	}{
		{Load, []string{
			"frail_event", "frail_arm", "frail_layout", "frail_status",
			"frail_filter", "frail_gap", "frail_gap_event",
		}},
		{LoadPh, []string{
			"frail_ph_vm", "frail_ph_executable", "frail_ph_profile", "frail_ph_row",
			"frail_ph_thread_key", "frail_ph_moment", "frail_ph_thread",
			"frail_ph_space_key", "frail_ph_fork", "frail_ph_record",
		}},
		{LoadRecord, []string{"frail_record_slot"}},
	} {
		spec, err := tc.load()
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range tc.names {
			checkPadding(t, spec, name)
		}
	}
}

func checkPadding(t *testing.T, spec *ebpf.CollectionSpec, name string) {
	t.Helper()
	var s *btf.Struct
	if err := spec.Types.TypeByName(name, &s); err != nil {
		t.Errorf("%s: %v", name, err)
		return
	}
	end := uint32(0)
	for _, m := range s.Members {
		if m.Offset.Bytes() != end {
			t.Errorf("%s has %d bytes of padding before %s", name, m.Offset.Bytes()-end, m.Name)
		}
		size, err := btf.Sizeof(m.Type)
		if err != nil {
			t.Fatalf("%s.%s: %v", name, m.Name, err)
		}
		end = m.Offset.Bytes() + uint32(size)
	}
	if end != s.Size {
		t.Errorf("%s has %d bytes of padding at its end", name, s.Size-end)
	}
}

func TestPrograms(t *testing.T) {
	spec, err := Load()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{TracepointEnter, TracepointExit, TracepointCoverage, TracepointProcess} {
		p := spec.Programs[name]
		if p == nil {
			t.Fatalf("no program %s", name)
		}
		if p.Type != ebpf.RawTracepoint || p.AttachTo != name {
			t.Errorf("program %s is a %s of %s", name, p.Type, p.AttachTo)
		}
	}
}

func TestEventMethods(t *testing.T) {
	for _, tc := range []struct {
		name  string
		event Event
		table int
		known bool
	}{
		{"64-bit enter", Event{Kind: EventEnter, Insn: InsnSyscall64, Nr: 1}, Table64, true},
		{"32-bit enter", Event{Kind: EventEnter, Insn: InsnSyscall32, Nr: 1}, Table32, true},
		{"x32 enter", Event{Kind: EventEnter, Insn: InsnSyscall64, Nr: X32Bit | 1}, TableX32, true},
		{"32-bit enter with x32's bit", Event{Kind: EventEnter, Insn: InsnSyscall32, Nr: X32Bit | 1}, Table32, true},
		{"negative number", Event{Kind: EventEnter, Insn: InsnSyscall64, Nr: -1}, Table64, true},
		{"64-bit exit", Event{Kind: EventExit, Insn: InsnSysret64, Nr: 1, Flags: EventNr}, Table64, true},
		{"32-bit exit", Event{Kind: EventExit, Insn: InsnSysret32, Nr: 1, Flags: EventNr}, Table32, true},
		{"unknown exit", Event{Kind: EventExit, Insn: InsnSysret64, Nr: -1}, Table64, false},
		{"SYSENTER", Event{Kind: EventEnter, Insn: InsnSysenter, Nr: 1}, Table32, true},
		{"INT 0x80 of 32-bit code", Event{Kind: EventEnter, Insn: InsnInt80In32, Nr: 1}, Table32, true},
		{"INT 0x80 of 64-bit code with x32's bit", Event{Kind: EventEnter, Insn: InsnInt80In64, Nr: X32Bit | 1}, Table32, true},
		{"deferred 64-bit exit", Event{Kind: EventExit, Insn: InsnSyscall64, Nr: 1, Flags: EventNr | EventDeferred}, Table64, true},
		{"deferred x32 exit", Event{Kind: EventExit, Insn: InsnSyscall64, Nr: X32Bit | 1, Flags: EventNr | EventDeferred}, TableX32, true},
		{"deferred exit of INT 0x80", Event{Kind: EventExit, Insn: InsnInt80In64, Nr: 1, Flags: EventNr | EventDeferred}, Table32, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := tc.event.Table(); got != tc.table {
				t.Errorf("table %d, want %d", got, tc.table)
			}
			if got := tc.event.NrKnown(); got != tc.known {
				t.Errorf("number known: %v, want %v", got, tc.known)
			}
		})
	}
	for in, want := range map[string]string{"": "", "sh": "sh", "sh\x00x": "sh", "sixteen-letters!": "sixteen-letters!"} {
		var ev Event
		copy(ev.Comm[:], in)
		if got := string(ev.CommBytes()); got != want {
			t.Errorf("comm %q is %q, want %q", in, got, want)
		}
	}
}

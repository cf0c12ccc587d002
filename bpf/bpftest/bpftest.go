// SPDX-License-Identifier: Apache-2.0

// Package bpftest puts events where the kernel's tracepoints would have them, so that tests
// run Frail's BPF programs on them.
package bpftest

import (
	"os"
	"testing"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"

	"frail/bpf"
)

const eventSize = int(unsafe.Sizeof(bpf.Event{}))

// Events are events at addresses of the kernel.
type Events struct {
	mem   *ebpf.Map
	bytes []byte
	addr  uint64
}

// New makes room for n events in a map, and asks a BPF program of its own for the address
// the kernel has it at. The test frees it.
func New(tb testing.TB, n int) *Events {
	tb.Helper()
	size := n * eventSize
	mem, err := ebpf.NewMap(&ebpf.MapSpec{
		Type: ebpf.Array, KeySize: 4, ValueSize: uint32(size), MaxEntries: 1, Flags: unix.BPF_F_MMAPABLE,
	})
	must(tb, err)
	tb.Cleanup(func() { mem.Close() })
	out, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 1})
	must(tb, err)
	defer out.Close()

	lookup := func(m *ebpf.Map) asm.Instructions {
		return asm.Instructions{
			asm.StoreImm(asm.RFP, -4, 0, asm.Word),
			asm.Mov.Reg(asm.R2, asm.RFP),
			asm.Add.Imm(asm.R2, -4),
			asm.LoadMapPtr(asm.R1, m.FD()),
			asm.FnMapLookupElem.Call(),
			asm.JEq.Imm(asm.R0, 0, "exit"),
		}
	}
	insns := lookup(mem)
	insns = append(insns, asm.Mov.Reg(asm.R6, asm.R0))
	insns = append(insns, lookup(out)...)
	insns = append(insns,
		asm.StoreMem(asm.R0, 0, asm.R6, asm.DWord),
		asm.Mov.Imm(asm.R0, 0).WithSymbol("exit"),
		asm.Return(),
	)
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.RawTracepoint, License: "GPL", Instructions: insns})
	must(tb, err)
	defer prog.Close()
	_, err = prog.Run(&ebpf.RunOptions{})
	must(tb, err)

	e := &Events{mem: mem}
	must(tb, out.Lookup(uint32(0), &e.addr))
	if e.addr>>47 == 0 {
		tb.Fatalf("map value is at %#x, not a kernel address", e.addr)
	}
	length := (size + os.Getpagesize() - 1) &^ (os.Getpagesize() - 1)
	e.bytes, err = unix.Mmap(mem.FD(), 0, length, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	must(tb, err)
	tb.Cleanup(func() { must(tb, unix.Munmap(e.bytes)) })
	return e
}

// At returns event i for writing.
func (e *Events) At(i int) *bpf.Event {
	return (*bpf.Event)(unsafe.Pointer(&e.bytes[i*eventSize]))
}

// Process returns the room of event i and of those that follow it as a description of a
// thread: five events have room for one.
func (e *Events) Process(i int) *bpf.Process {
	room := e.bytes[i*eventSize:][:unsafe.Sizeof(bpf.Process{})]
	return (*bpf.Process)(unsafe.Pointer(&room[0]))
}

// Data returns the room of event i and of those that follow it as an event with what arguments
// point to: eight events have room for one.
func (e *Events) Data(i int) *bpf.Data {
	room := e.bytes[i*eventSize:][:unsafe.Sizeof(bpf.Data{})]
	return (*bpf.Data)(unsafe.Pointer(&room[0]))
}

// Address returns the kernel's address of event i.
func (e *Events) Address(i int) uint64 { return e.addr + uint64(i*eventSize) }

// Args returns event i as its tracepoint's arguments.
func (e *Events) Args(i int) bpf.EventArgs {
	ev := e.At(i)
	return bpf.EventArgs{
		Event: e.Address(i),
		Vm:    ev.Vm,
		Vcpu:  ev.Vcpu,
		Kind:  ev.Kind,
		Insn:  ev.Insn,
		Flags: ev.Flags,
		Nr:    ev.Nr,
		Comm:  *(*[2]uint64)(unsafe.Pointer(&ev.Comm)),
		Ret:   ev.Ret,
		Task:  ev.Task,
		Who:   ev.Who,
		Pid:   ev.Pid,
		Tgid:  ev.Tgid,
	}
}

// Fire runs a program on event i as its tracepoint would and returns what it returned.
func (e *Events) Fire(tb testing.TB, prog *ebpf.Program, i int) uint32 {
	ret, err := prog.Run(&ebpf.RunOptions{Context: e.Args(i)})
	must(tb, err)
	return ret
}

// FireProcess puts a description of a thread into the room of event i and of the four that
// follow, and runs a program on it likewise.
func (e *Events) FireProcess(tb testing.TB, prog *ebpf.Program, i int, p *bpf.Process) uint32 {
	tb.Helper()
	*e.Process(i) = *p
	return e.Fire(tb, prog, i)
}

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

// SPDX-License-Identifier: Apache-2.0

package layout

import (
	"errors"
	"iter"
	"time"
)

var (
	// ErrNotReady is returned when no kernel describes itself in the guest's
	// memory yet. It does as soon as it starts user space; try again.
	ErrNotReady = errors.New("guest kernel not found in memory yet")

	// ErrRejected is returned when a kernel was found but what it says of
	// itself is unusable or contradicts the facts.
	ErrRejected = errors.New("layout rejected")
)

// Hint is what the host knows of the guest's kernel from its registers. Each
// value may be zero: not known.
type Hint struct {
	// LSTAR is MSR_LSTAR: the address of entry_SYSCALL_64. A layout of
	// another kernel, such as one before a reset, is then rejected.
	LSTAR uint64

	// CR3 is CR3 at a system call. It anchors the layout in page tables that
	// only the guest's kernel can write; see Layout.Anchored.
	CR3 uint64
}

// Layout is where a guest's kernel keeps what Frail reads. It belongs to one
// boot of one kernel and is immutable.
type Layout struct {
	// Release is the kernel's release, such as "6.1.0-56-amd64".
	Release string

	// BuildID is the kernel's build id in hexadecimal, or empty.
	BuildID string

	// Source is how the kernel was found.
	Source Source

	// SymbolSource is where its symbols come from, TypeSource its types.
	SymbolSource, TypeSource Origin

	// Rebased reports that the kernel was known from an earlier Resolve of the
	// same Resolver, and only its addresses are new.
	Rebased bool

	// LSTAR is the address of entry_SYSCALL_64: the boot this layout is of.
	LSTAR uint64

	// KASLR is how far the kernel moved from the address it was linked for.
	KASLR uint64

	// PhysBase turns an address of the kernel's image into a physical one:
	// physical = virtual - 0xffffffff80000000 + PhysBase, modulo 2^64.
	PhysBase uint64

	// PageTable is the physical address of the kernel's own top-level page
	// table.
	PageTable uint64

	// Levels is the depth of the page tables: 4 or 5.
	Levels int

	// DirectMap is the first virtual address of the map of all physical
	// memory, and DirectMapSize the bytes of physical address space that the
	// map may cover.
	DirectMap, DirectMapSize uint64

	// CurrentTask is the per-CPU address of the running task: the pointer to
	// its task_struct lies at KERNEL_GS_BASE + CurrentTask, modulo 2^64.
	CurrentTask uint64

	// InitTask is the virtual address of the first task_struct.
	InitTask uint64

	// Offsets in struct task_struct, in bytes.
	TaskPID, TaskTGID, TaskComm, TaskStack uint32

	// ThreadSize is the size of a kernel stack in bytes. StackPadding is how
	// many bytes at its top stay unused: struct pt_regs lies at
	// stack + ThreadSize - StackPadding - PtRegsSize.
	ThreadSize, StackPadding uint32

	// PtRegsSize is the size of struct pt_regs, PtRegsOrigAx and PtRegsAx the
	// offsets of its members orig_ax and ax.
	PtRegsSize, PtRegsOrigAx, PtRegsAx uint32

	// Anchored reports that Hint.CR3's page tables map the kernel where the
	// layout says, so that no process of the guest can have forged it.
	Anchored bool

	// Timing is how long each step took.
	Timing Timing

	tasks   taskOffsets
	members map[string]Member
	symbols *symbols
}

// Source is a way to find a guest's kernel.
type Source string

const (
	// SourceCPU is the page tables of a CPU at a system call, Hint.CR3: nothing
	// has to be searched for.
	SourceCPU Source = "CPU's page tables"
	// SourceNote is the VMCOREINFO note.
	SourceNote Source = "VMCOREINFO"
	// SourceScan is the symbol tables, found by a search of all memory.
	SourceScan Source = "memory scan"
)

// Origin is where symbols or types come from.
type Origin string

const (
	// OriginNote is the guest's memory at the place that VMCOREINFO names.
	OriginNote Origin = "VMCOREINFO"
	// OriginImage is the guest's memory, where a search found them.
	OriginImage Origin = "kernel image"
	// OriginBTF is the BTF in the guest's memory.
	OriginBTF Origin = "BTF"
	// OriginImport is a file that the operator gave.
	OriginImport Origin = "import"
)

// Timing is the time spent in the steps of Resolve: to find the kernel, and to
// read and check it.
type Timing struct {
	Find, Symbols, Types, Checks time.Duration
}

// Total returns the sum of the steps.
func (t Timing) Total() time.Duration { return t.Find + t.Symbols + t.Types + t.Checks }

// Symbol is one of the kernel's symbols.
type Symbol struct {
	// Addr is its virtual address, or a per-CPU offset or other constant.
	Addr uint64
	// Type is the letter that nm gives it.
	Type byte
	Name string
}

// Symbol returns the first symbol of that name in the kernel's own order, as
// kallsyms_lookup_name does. Modules' symbols are not among them.
func (l *Layout) Symbol(name string) (Symbol, bool) { return l.symbols.lookup(name) }

// Symbols returns every symbol in the kernel's order.
func (l *Layout) Symbols() iter.Seq[Symbol] { return l.symbols.all() }

// NumSymbols returns how many symbols there are.
func (l *Layout) NumSymbols() int { return l.symbols.len() }

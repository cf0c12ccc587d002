// SPDX-License-Identifier: Apache-2.0

package layout

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"time"

	"frail/qmp"
)

var (
	// ErrNotReady is returned when no kernel describes itself in the guest's
	// memory yet. It does as soon as it starts user space; try again.
	ErrNotReady = errors.New("guest kernel not found in memory yet")

	// ErrRejected is returned when a kernel was found but what it says of
	// itself is unusable or contradicts the facts.
	ErrRejected = errors.New("layout rejected")
)

const (
	// resolveTimeout bounds Resolve where ctx does not: the slowest path to
	// memory reads 100 MB/s.
	resolveTimeout = 2 * time.Minute

	// maxCandidates bounds how many kernels of one guest are examined. A
	// guest leaves one stale note behind with each warm reset; a note costs a
	// hostile guest one page.
	maxCandidates = 16
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

// Timing is the time spent in the steps of Resolve.
type Timing struct {
	Note, Symbols, Types, Checks time.Duration
}

// Total returns the sum of the steps.
func (t Timing) Total() time.Duration { return t.Note + t.Symbols + t.Types + t.Checks }

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

// Resolve finds the layout of the kernel that runs in the guest. mem is the
// guest's physical memory and ranges its RAM, ascending.
//
// It fails with ErrNotReady when no kernel is there yet and with ErrRejected
// when none that is there is acceptable; the error then says why.
func Resolve(ctx context.Context, mem io.ReaderAt, ranges []qmp.Range, hint Hint) (*Layout, error) {
	ctx, cancel := context.WithTimeout(ctx, resolveTimeout)
	defer cancel()

	var (
		rejected   []error
		unanchored *Layout
		candidates int
		started    = time.Now()
	)
	for n, err := range scanNotes(ctx, mem, ranges) {
		if err != nil {
			return nil, fmt.Errorf("search VMCOREINFO: %w", err)
		}
		if candidates++; candidates > maxCandidates {
			rejected = append(rejected, fmt.Errorf("gave up after %d VMCOREINFO notes", maxCandidates))
			break
		}
		l := &Layout{Timing: Timing{Note: time.Since(started)}}
		err := l.resolve(ctx, mem, n, hint)
		if ctxErr := ctx.Err(); ctxErr != nil {
			return nil, fmt.Errorf("resolve layout: %w", ctxErr)
		}
		switch {
		case err != nil:
			rejected = append(rejected, fmt.Errorf("kernel %q described at %#x: %w", n.release, n.addr, err))
		case hint.CR3 != 0 && !l.Anchored:
			// Perhaps the process whose CR3 it was has ended. Prefer another.
			if unanchored == nil {
				unanchored = l
			}
		default:
			return l, nil
		}
		started = time.Now()
	}
	switch {
	case unanchored != nil:
		return unanchored, nil
	case len(rejected) > 0:
		return nil, fmt.Errorf("%w: %w", ErrRejected, errors.Join(rejected...))
	default:
		return nil, ErrNotReady
	}
}

// resolve fills the layout from a note, or says what is wrong with it.
func (l *Layout) resolve(ctx context.Context, mem io.ReaderAt, n *note, hint Hint) error {
	l.Release = n.release
	l.BuildID = n.buildID
	l.KASLR = n.kernelOffset
	l.PhysBase = n.physBase
	l.Levels = n.levels

	root, err := imagePhysical(n.initTopPgt, n.physBase)
	if err != nil {
		return fmt.Errorf("locate init_top_pgt: %w", err)
	}
	l.PageTable = root
	space := newSpace(mem, root, n.levels)
	if err := l.anchor(mem, space, n, hint); err != nil {
		return err
	}

	step := time.Now()
	lap := func(d *time.Duration) {
		*d = time.Since(step)
		step = time.Now()
	}
	if l.symbols, err = readSymbols(ctx, space, n); err != nil {
		return fmt.Errorf("read kallsyms: %w", err)
	}
	lap(&l.Timing.Symbols)
	if err := l.readTypes(ctx, space); err != nil {
		return fmt.Errorf("read BTF: %w", err)
	}
	lap(&l.Timing.Types)
	if err := l.readVariables(space); err != nil {
		return err
	}
	if err := l.check(space, hint); err != nil {
		return err
	}
	lap(&l.Timing.Checks)
	return nil
}

// anchor checks that the kernel's page tables map its image where the note
// says, and whether the running process's page tables agree.
func (l *Layout) anchor(mem io.ReaderAt, kernel *space, n *note, hint Hint) error {
	if err := kernel.checkImage(n.stext, n.physBase); err != nil {
		return fmt.Errorf("page table at %#x: %w", l.PageTable, err)
	}
	if hint.LSTAR == 0 || hint.CR3 == 0 {
		return nil
	}
	// Under page table isolation CR3 names the user's half, which maps the
	// entry code as the kernel's half does.
	user := newSpace(mem, hint.CR3&pageMask, n.levels)
	l.Anchored = user.checkImage(hint.LSTAR, n.physBase) == nil
	return nil
}

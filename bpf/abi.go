// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"bytes"
	"fmt"

	"github.com/cilium/ebpf"
)

// Event is one system call entry or return of a guest thread, as struct
// frail_event of frail_abi.h, which says what each field means.
type Event = traceFrailEvent

// EventArgs are the arguments that a BPF program on a tracepoint of frail.ko has in its context.
type EventArgs = traceFrailEventArgs

// Process says who a guest thread is, as struct frail_process of frail_abi.h.
type Process = traceFrailProcess

// Arm is the argument of [IocArm].
type Arm = traceFrailArm

// Layout is the argument of [IocSetLayout]: where a guest kernel keeps the
// identity of the running thread.
type Layout = traceFrailLayout

// Status is the result of [IocStatus].
type Status = traceFrailStatus

// Filter is what a tracer's programs let pass, as struct frail_filter of
// trace.h. The zero value lets nothing pass.
type Filter = traceFrailFilter

// ExePrefix is what the paths of executables begin with that a filter is by.
type ExePrefix = traceFrailExePrefix

// GroupPrefix is what the names of control groups begin with, likewise.
type GroupPrefix = traceFrailGroupPrefix

// Gap counts events that were lost, by cause.
type Gap = traceFrailGap

// GapEvent is the ring buffer's record of the first event after a loss. All other
// records are an [Event] or a [Process].
type GapEvent = traceFrailGapEvent

// VMSlots is how many VMs can be armed at once. No two of them have ids that are equal
// modulo this.
const VMSlots = uint32(traceFrailLimitsFRAIL_VM_SLOTS)

// Values of [Event].Kind.
const (
	EventEnter = uint16(traceFrailEventKindFRAIL_EVENT_ENTER)
	EventExit  = uint16(traceFrailEventKindFRAIL_EVENT_EXIT)
	// EventCoverage says that the ways into the guest's kernel that trap have changed.
	EventCoverage = uint16(traceFrailEventKindFRAIL_EVENT_COVERAGE)
	// EventProcess is the kind of a [Process].Head.
	EventProcess = uint16(traceFrailEventKindFRAIL_EVENT_PROCESS)
)

// Values of [Event].Insn.
const (
	InsnSyscall64 = uint16(traceFrailInsnFRAIL_INSN_SYSCALL64)
	InsnSyscall32 = uint16(traceFrailInsnFRAIL_INSN_SYSCALL32)
	InsnSysret64  = uint16(traceFrailInsnFRAIL_INSN_SYSRET64)
	InsnSysret32  = uint16(traceFrailInsnFRAIL_INSN_SYSRET32)
	InsnSysenter  = uint16(traceFrailInsnFRAIL_INSN_SYSENTER)
	InsnInt80In32 = uint16(traceFrailInsnFRAIL_INSN_INT8032)
	InsnInt80In64 = uint16(traceFrailInsnFRAIL_INSN_INT8064)
)

// Ways into a guest's kernel: bits of [Status].Covered and [Status].Blind.
const (
	EntrySyscall  = uint32(traceFrailEntryFRAIL_ENTRY_SYSCALL)
	EntrySysenter = uint32(traceFrailEntryFRAIL_ENTRY_SYSENTER)
	EntryInt80    = uint32(traceFrailEntryFRAIL_ENTRY_INT80)
)

// Bits of [Event].Flags.
const (
	// EventIdentity is set when Task, Pid, Tgid and Comm are the guest's own.
	EventIdentity = uint32(traceFrailEventFlagsFRAIL_EVENT_IDENTITY)
	// EventNr is set when Nr is known.
	EventNr = uint32(traceFrailEventFlagsFRAIL_EVENT_NR)
	// EventRet is set in a return when Ret is known.
	EventRet = uint32(traceFrailEventFlagsFRAIL_EVENT_RET)
	// EventDeferred is set in a return that is told at its thread's next call.
	EventDeferred = uint32(traceFrailEventFlagsFRAIL_EVENT_DEFERRED)
	// EventHasData is set in the Head of a [Data], and in no other event that Go has.
	EventHasData = uint32(traceFrailEventFlagsFRAIL_EVENT_DATA)
)

// Bits of [Process].Known: which of its fields are, and how.
const (
	ProcessParent = uint32(traceFrailProcessFlagsFRAIL_PROCESS_PARENT)
	ProcessCred   = uint32(traceFrailProcessFlagsFRAIL_PROCESS_CRED)
	ProcessStart  = uint32(traceFrailProcessFlagsFRAIL_PROCESS_START)
	ProcessNsPid  = uint32(traceFrailProcessFlagsFRAIL_PROCESS_NS_PID)
	ProcessExe    = uint32(traceFrailProcessFlagsFRAIL_PROCESS_EXE)
	// ProcessExeCut: of a path that is too long only its end is there.
	ProcessExeCut = uint32(traceFrailProcessFlagsFRAIL_PROCESS_EXE_CUT)
	// ProcessExeDeleted: the executable has no name any more, or never had one.
	ProcessExeDeleted = uint32(traceFrailProcessFlagsFRAIL_PROCESS_EXE_DELETED)
	ProcessCgroup     = uint32(traceFrailProcessFlagsFRAIL_PROCESS_CGROUP)
	ProcessCgroupCut  = uint32(traceFrailProcessFlagsFRAIL_PROCESS_CGROUP_CUT)
)

// What arguments of system calls point to, as the structs of these names of frail_abi.h.
type (
	// Data is an [Event] with what arguments of its call lead to.
	Data = traceFrailData
	// DataSpec says which arguments of which calls are followed.
	DataSpec = traceFrailDataSpec
	// Reads are those of one call.
	Reads = traceFrailReads
	// Read is an argument that points to memory, and how much there is.
	Read = traceFrailRead
	// Piece is what one argument leads to.
	Piece = traceFrailPiece
)

// Kinds of a [Read], and of the [Piece] it gives.
const (
	ReadNone     = uint8(traceFrailReadKindFRAIL_READ_NONE)
	ReadString   = uint8(traceFrailReadKindFRAIL_READ_STRING)
	ReadBytes    = uint8(traceFrailReadKindFRAIL_READ_BYTES)
	ReadCounted  = uint8(traceFrailReadKindFRAIL_READ_COUNTED)
	ReadReturned = uint8(traceFrailReadKindFRAIL_READ_RETURNED)
	ReadPointed  = uint8(traceFrailReadKindFRAIL_READ_POINTED)
	ReadStrings  = uint8(traceFrailReadKindFRAIL_READ_STRINGS)
	ReadVector   = uint8(traceFrailReadKindFRAIL_READ_VECTOR)
)

// Bits of [Piece].Flags.
const (
	// PieceCut: there was more.
	PieceCut = uint16(traceFrailPieceFlagsFRAIL_PIECE_CUT)
	// PieceFault: it ends where memory could not be read.
	PieceFault = uint16(traceFrailPieceFlagsFRAIL_PIECE_FAULT)
)

// How much of a [Data].Bytes records of the ring buffer have.
const (
	DataSmall  = int(traceFrailDataRoomFRAIL_DATA_SMALL)
	DataMedium = int(traceFrailDataRoomFRAIL_DATA_MEDIUM)
	DataLarge  = int(traceFrailDataRoomFRAIL_DATA_LARGE)
)

// PathLen is what is kept of a path in a [Process].
const PathLen = len(Process{}.Exe)

// NoOffset is an offset of a [Layout] that is not known.
const NoOffset = 1<<32 - 1

// Values of [Arm].Exits.
const (
	// ExitsBoth makes both SYSCALL and SYSRET trap.
	ExitsBoth = uint32(traceFrailExitsFRAIL_EXITS_BOTH)
	// ExitsEntry makes SYSCALL alone trap; returns are deferred.
	ExitsEntry = uint32(traceFrailExitsFRAIL_EXITS_ENTRY)
)

// Values of [Arm].Refusal.
const (
	RefusalEncrypted = uint32(traceFrailRefusalFRAIL_REFUSAL_ENCRYPTED)
	RefusalFRED      = uint32(traceFrailRefusalFRAIL_REFUSAL_FRED)
	// RefusalShadowStack: SYSCALL and SYSRET switch shadow stacks, which frail.ko does not.
	RefusalShadowStack = uint32(traceFrailRefusalFRAIL_REFUSAL_SHADOW_STACK)
)

// Requests of frail.ko's descriptors: IocArm of /dev/frail, the others of a
// VM descriptor.
const (
	IocArm       = uint32(traceFrailIoctlFRAIL_IOC_ARM)
	IocSetLayout = uint32(traceFrailIoctlFRAIL_IOC_SET_LAYOUT)
	IocStatus    = uint32(traceFrailIoctlFRAIL_IOC_STATUS)
	IocDescribe  = uint32(traceFrailIoctlFRAIL_IOC_DESCRIBE)
	IocSetData   = uint32(traceFrailIoctlFRAIL_IOC_SET_DATA)
)

// Causes of loss: indices of [Gap].Lost and of the losses map.
const (
	// LossRingFull: the reader was too slow for its ring buffer.
	LossRingFull = int(traceFrailLossFRAIL_LOSS_RING_FULL)
	// LossReadFault: the tracepoint's event could not be read.
	LossReadFault = int(traceFrailLossFRAIL_LOSS_READ_FAULT)
	// LossCauses is how many causes there are.
	LossCauses = int(traceFrailLossFRAIL_LOSS_CAUSES)
)

// The system call tables of an x86-64 Linux guest: indices of
// [Filter].SyscallMatch and [Filter].Syscalls.
const (
	Table64  = int(traceFrailTableFRAIL_TABLE_64)
	Table32  = int(traceFrailTableFRAIL_TABLE_32)
	TableX32 = int(traceFrailTableFRAIL_TABLE_X32)
	Tables   = int(traceFrailTableFRAIL_TABLES)
)

// Values of [Filter].SyscallMatch and the other members of such names.
const (
	MatchAll    = uint32(traceFrailMatchFRAIL_MATCH_ALL)
	MatchOnly   = uint32(traceFrailMatchFRAIL_MATCH_ONLY)
	MatchExcept = uint32(traceFrailMatchFRAIL_MATCH_EXCEPT)
)

// CommLen is the size of a thread's name, its closing NUL included.
const CommLen = len(Event{}.Comm)

// MaxComms is how many thread names one filter can hold.
const MaxComms = len(Filter{}.Comms)

// MaxUIDs is how many user ids one filter can hold.
const MaxUIDs = len(Filter{}.Uids)

// MaxReturns is how many ranges of return values one filter can hold.
const MaxReturns = len(Filter{}.Returns)

// Errors is how many error numbers there are, with 0 for none.
const Errors = len(Filter{}.Errors) * 64

// PIDs is above all ids that processes and threads have.
const PIDs = 1 << 22

// Syscalls is how many numbers of one table a filter can name.
const Syscalls = len(Filter{}.Syscalls[0]) * 64

// X32Bit is set in the number of an x32 system call, which is not negative.
const X32Bit = 0x40000000

// Tracepoints of frail.ko; the programs have the same names.
const (
	TracepointEnter    = traceProgGuestSysEnter
	TracepointExit     = traceProgGuestSysExit
	TracepointCoverage = traceProgGuestCoverage
	TracepointProcess  = traceProgGuestProcess
)

// Load parses the compiled programs. It allocates nothing in the kernel.
func Load() (*ebpf.CollectionSpec, error) {
	spec, err := loadTrace()
	if err != nil {
		return nil, fmt.Errorf("parse BPF programs: %w", err)
	}
	return spec, nil
}

// CommBytes returns the thread's name up to its closing NUL. It is the guest's
// own choice and may hold any byte. The slice aliases ev.
func (ev *traceFrailEvent) CommBytes() []byte { return untilNUL(ev.Comm[:]) }

// ExeBytes returns the executable's path. It may hold any byte. The slice aliases p.
func (p *traceFrailProcess) ExeBytes() []byte { return untilNUL(p.Exe[:]) }

// CgroupBytes returns the cgroup's path, likewise.
func (p *traceFrailProcess) CgroupBytes() []byte { return untilNUL(p.Cgroup[:]) }

func untilNUL(b []byte) []byte {
	if i := bytes.IndexByte(b, 0); i >= 0 {
		return b[:i]
	}
	return b
}

// Identified reports whether the event carries the guest's own task, pid,
// tgid and comm.
func (ev *traceFrailEvent) Identified() bool {
	return ev.Flags&EventIdentity != 0
}

// Table returns the system call table Nr belongs to: [Table64], [Table32] or
// [TableX32].
func (ev *traceFrailEvent) Table() int {
	switch {
	case ev.Insn != InsnSyscall64 && ev.Insn != InsnSysret64:
		return Table32
	case ev.NrKnown() && int32(ev.Nr) >= X32Bit:
		return TableX32
	default:
		return Table64
	}
}

// Coverage returns, of an [EventCoverage], the ways into the guest's kernel that trap now and
// those that do not: bits of [EntrySyscall] and so on.
func (ev *traceFrailEvent) Coverage() (covered, blind uint32) {
	return uint32(ev.Args[0]), uint32(ev.Args[1])
}

// Deferred reports whether a return is told at its thread's next call. Time is then that
// call's.
func (ev *traceFrailEvent) Deferred() bool {
	return ev.Flags&EventDeferred != 0
}

// RetKnown reports whether Ret is what the call returned.
func (ev *traceFrailEvent) RetKnown() bool {
	return ev.Flags&EventRet != 0
}

// NrKnown reports whether Nr is the number of the call. It is not for a return
// whose call was forgotten or never seen.
func (ev *traceFrailEvent) NrKnown() bool {
	return ev.Kind == EventEnter || ev.Flags&EventNr != 0
}

// Pieces calls f with each piece of d and the bytes that it has, which are d's own.
func (d *traceFrailData) Pieces(f func(p Piece, bytes []byte)) {
	at := 0
	for _, p := range d.Piece {
		end := at + int(p.Len)
		if p.Kind == ReadNone || end > len(d.Bytes) {
			return
		}
		f(p, d.Bytes[at:end])
		at = end
	}
}

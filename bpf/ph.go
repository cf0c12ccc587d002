// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"fmt"

	"github.com/cilium/ebpf"
)

// Structures of ph.h, which says what each field means.
type (
	// PhVM are the settings of the sequence analysis of one VM.
	PhVM = phFrailPhVm
	// PhExecutable is what a profile is about.
	PhExecutable = phFrailPhExecutable
	// PhProfile is what is known of one executable, but for its rows.
	PhProfile = phFrailPhProfile
	// PhRow are the pairs of one current call of a profile.
	PhRow = phFrailPhRow
	// PhThreadKey names a thread.
	PhThreadKey = phFrailPhThreadKey
	// PhThread is what is kept of one guest thread.
	PhThread = phFrailPhThread
	// PhRecord tells of a call that user space should know of.
	PhRecord = phFrailPhRecord
)

// EventSignal is set in [Event].Flags when a signal was delivered to the thread since its
// last call. frail.ko does not set it.
const EventSignal = uint32(phFrailPhEventFlagsFRAIL_EVENT_SIGNAL)

// Bits of the flags in a verdict.
const (
	PhFrozen        = uint8(phFrailPhFlagsFRAIL_PH_FROZEN)
	PhNormal        = uint8(phFrailPhFlagsFRAIL_PH_NORMAL)
	PhNewThread     = uint8(phFrailPhFlagsFRAIL_PH_NEW_THREAD)
	PhNewProgram    = uint8(phFrailPhFlagsFRAIL_PH_NEW_PROGRAM)
	PhDrift         = uint8(phFrailPhFlagsFRAIL_PH_DRIFT)
	PhAttack        = uint8(phFrailPhFlagsFRAIL_PH_ATTACK)
	PhManyProcesses = uint8(phFrailPhFlagsFRAIL_PH_MANY_PROCESSES)
	PhForgot        = uint8(phFrailPhFlagsFRAIL_PH_FORGOT)
)

// Operations of the control program.
const (
	PhNormalize = uint64(phFrailPhControlFRAIL_PH_NORMALIZE)
	PhTolerize  = uint64(phFrailPhControlFRAIL_PH_TOLERIZE)
	PhSensitize = uint64(phFrailPhControlFRAIL_PH_SENSITIZE)
	PhTake      = uint64(phFrailPhControlFRAIL_PH_TAKE)
	PhTakeRow   = uint64(phFrailPhControlFRAIL_PH_TAKE_ROW)
	PhRetire    = uint64(phFrailPhControlFRAIL_PH_RETIRE)
)

// Indices of the analysis' counters.
const (
	PhFullProfiles = int(phFrailPhCounterFRAIL_PH_FULL_PROFILES)
	PhFullRows     = int(phFrailPhCounterFRAIL_PH_FULL_ROWS)
	PhFullThreads  = int(phFrailPhCounterFRAIL_PH_FULL_THREADS)
	PhFullSymbols  = int(phFrailPhCounterFRAIL_PH_FULL_SYMBOLS)
	PhNoIdentity   = int(phFrailPhCounterFRAIL_PH_NO_IDENTITY)
	PhSignalDepth  = int(phFrailPhCounterFRAIL_PH_SIGNAL_DEPTH)
	PhSignalLost   = int(phFrailPhCounterFRAIL_PH_SIGNAL_LOST)
	PhRingFull     = int(phFrailPhCounterFRAIL_PH_RING_FULL)
	PhReadFault    = int(phFrailPhCounterFRAIL_PH_READ_FAULT)
	PhNoProgram    = int(phFrailPhCounterFRAIL_PH_NO_PROGRAM)
	PhCounters     = int(phFrailPhCounterFRAIL_PH_COUNTERS)
)

// Values of [PhExecutable].KnownBy.
const (
	PhByPath    = uint32(phFrailPhKnownByFRAIL_PH_BY_PATH)
	PhByPathEnd = uint32(phFrailPhKnownByFRAIL_PH_BY_PATH_END)
	PhByComm    = uint32(phFrailPhKnownByFRAIL_PH_BY_COMM)
)

// PhClock is how often the clock is looked at for a frozen profile: once in so many of its
// calls.
const PhClock = uint64(phFrailPhClockFRAIL_PH_CLOCK)

// Bits of [PhVM].Flags.
const (
	PhVMUsed  = 1
	PhVMLearn = 2
)

// LoadPh parses the compiled sequence analysis. It allocates nothing in the kernel.
func LoadPh() (*ebpf.CollectionSpec, error) {
	spec, err := loadPh()
	if err != nil {
		return nil, fmt.Errorf("parse BPF programs: %w", err)
	}
	return spec, nil
}

// CommBytes returns the thread's name up to its closing NUL. It is the guest's own choice
// and may hold any byte. The slice aliases r.
func (r *phFrailPhRecord) CommBytes() []byte { return untilNUL(r.Comm[:]) }

// SPDX-License-Identifier: Apache-2.0

package ph

import (
	"frail/bpf"
	"frail/tracer/syscalls"
)

// Number is a system call and the table it belongs to: the table times [tableSize], plus
// the number in the table without x32's bit.
type Number uint16

const (
	// tableSize is how many numbers of one table can be told apart. Linux uses 470.
	tableSize = bpf.Syscalls
	// numbers is how many values a Number of a known call has.
	numbers = bpf.Tables * tableSize

	// OtherNumber stands for a call that has no symbol: its number is beyond the
	// tables, or its program made too many different calls.
	OtherNumber = Number(numbers)
	// NoNumber stands for "no call yet".
	NoNumber = Number(numbers + 1)
)

// NumberOf returns the number of nr in table. A number the tables do not have is
// [OtherNumber].
func NumberOf(table int, nr int64) Number {
	n := uint32(nr)
	if table == bpf.TableX32 {
		n &^= bpf.X32Bit
	}
	if n >= uint32(tableSize) || table < 0 || table >= bpf.Tables {
		return OtherNumber
	}
	return Number(table*tableSize + int(n))
}

// Table returns the number's system call table.
func (n Number) Table() int { return int(n) / tableSize }

// Nr returns the number in its table.
func (n Number) Nr() int { return int(n) % tableSize }

// String returns the call's name, with "@32" or "@x32" outside the 64-bit table, "-" for
// [NoNumber] and "?" for [OtherNumber].
func (n Number) String() string {
	switch {
	case n == NoNumber:
		return "-"
	case n >= OtherNumber:
		return "?"
	}
	t := syscalls.Table(n.Table())
	name := syscalls.Name(t, int64(n.Nr()))
	if name == "" {
		name = itoa(n.Nr())
	}
	if t != syscalls.X86_64 {
		name += "@" + t.String()
	}
	return name
}

func itoa(n int) string {
	if n < 10 {
		return string(rune('0' + n))
	}
	return itoa(n/10) + string(rune('0'+n%10))
}

// Symbol is how a profile's rows and windows name a call: profiles hand them out from 1 as
// calls are first seen, so that 8 bits suffice for every system call table.
type Symbol uint8

const (
	// maxSymbol is the last symbol that stands for one call.
	maxSymbol = Symbol(253)
	// other stands for all calls beyond.
	other = Symbol(254)
	// none stands for "no call yet". It is learnt like a call.
	none = Symbol(255)
)

// action is what a call does to its thread's windows beyond being appended.
type action uint8

const (
	actNone action = iota
	actFork
	actSigreturn
	actExit
)

// actionOf returns what a call does.
func actionOf(n Number) action {
	if n >= OtherNumber {
		return actNone
	}
	nr := n.Nr()
	if n.Table() == bpf.Table32 {
		switch nr {
		case 2, 120, 190, 435: // fork clone vfork clone3
			return actFork
		case 119, 173: // sigreturn rt_sigreturn
			return actSigreturn
		case 1, 252: // exit exit_group
			return actExit
		}
		return actNone
	}
	switch {
	case nr >= 56 && nr <= 58, nr == 435: // clone fork vfork clone3
		return actFork
	case nr == 15, nr == 513: // rt_sigreturn, 513 with or without x32's bit
		return actSigreturn
	case nr == 60, nr == 231: // exit exit_group
		return actExit
	}
	return actNone
}

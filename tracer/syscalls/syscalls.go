// SPDX-License-Identifier: Apache-2.0

package syscalls

import (
	"strconv"

	"frail/bpf"
)

// Table is one of the system call tables of x86-64 Linux. Its values are those of
// [bpf.Event.Table]; the zero value is the 64-bit table.
type Table int

const (
	X86_64 = Table(bpf.Table64)
	I386   = Table(bpf.Table32)
	X32    = Table(bpf.TableX32)
)

// String returns what strace calls the table: "64", "32" or "x32".
func (t Table) String() string {
	switch t {
	case X86_64:
		return "64"
	case I386:
		return "32"
	case X32:
		return "x32"
	default:
		return "table" + strconv.Itoa(int(t))
	}
}

// names returns the table's names by number, with holes.
func (t Table) names() []string {
	switch t {
	case X86_64:
		return names64[:]
	case I386:
		return names32[:]
	case X32:
		return namesX32[:]
	default:
		return nil
	}
}

// Name returns the name of a system call, or "" when the table has none by that number.
// An x32 number may have its bit 30 set or not. It allocates nothing.
func Name(t Table, nr int64) string {
	if t == X32 {
		nr &^= bpf.X32Bit
	}
	if names := t.names(); nr >= 0 && nr < int64(len(names)) {
		return names[nr]
	}
	return ""
}

// Number returns the number of a named system call, for x32 without bit 30, and whether
// the table has it.
func Number(t Table, name string) (int, bool) {
	if name == "" {
		return 0, false
	}
	for nr, n := range t.names() {
		if n == name {
			return nr, true
		}
	}
	return 0, false
}

// maxArgs is how many arguments a system call can have.
const maxArgs = 6

// Args returns how many arguments a system call takes: 6, all there can be, when that is
// not known.
func Args(t Table, nr int64) int {
	if t == X32 {
		nr &^= bpf.X32Bit
	}
	var counts string
	switch t {
	case X86_64:
		counts = args64
	case I386:
		counts = args32
	case X32:
		counts = argsX32
	}
	if nr < 0 || nr >= int64(len(counts)) {
		return maxArgs
	}
	return int(counts[nr] - '0')
}

// SPDX-License-Identifier: Apache-2.0

package format

import "frail/bpf"

// insnName returns the name of the instruction an event entered the guest's kernel by, empty
// for one that does not enter.
func insnName(insn uint16) string {
	switch insn {
	case bpf.InsnSyscall64:
		return "syscall64"
	case bpf.InsnSyscall32:
		return "syscall32"
	case bpf.InsnSysenter:
		return "sysenter"
	case bpf.InsnInt80In32:
		return "int80_32"
	case bpf.InsnInt80In64:
		return "int80_64"
	default:
		return ""
	}
}

// insnMark returns what text shows after a call that did not enter by SYSCALL.
func insnMark(insn uint16) string {
	switch insn {
	case bpf.InsnSysenter:
		return ":sysenter"
	case bpf.InsnInt80In32:
		return ":int80"
	case bpf.InsnInt80In64:
		return ":int80_64"
	default:
		return ""
	}
}

// entries are the ways into a guest's kernel, in the order they are shown.
var entries = [...]struct {
	bit        uint32
	name, text string
}{
	{bpf.EntrySyscall, "syscall", "SYSCALL"},
	{bpf.EntryInt80, "int80", "INT 0x80"},
	{bpf.EntrySysenter, "sysenter", "SYSENTER"},
}

// AppendEntries appends the ways into a guest's kernel in mask, bits of [bpf.EntrySyscall]
// and so on, as text: "INT 0x80 and SYSENTER".
func AppendEntries(dst []byte, mask uint32) []byte {
	sep := ""
	for _, e := range entries {
		if mask&e.bit == 0 {
			continue
		}
		mask &^= e.bit
		dst = append(append(dst, sep...), e.text...)
		if sep = ", "; mask&(mask-1) == 0 {
			sep = " and "
		}
	}
	return dst
}

// appendJSONEntries appends a field that lists the ways in mask.
func appendJSONEntries(dst []byte, field string, mask uint32) []byte {
	dst = append(append(append(dst, `,"`...), field...), `":[`...)
	sep := `"`
	for _, e := range entries {
		if mask&e.bit != 0 {
			dst = append(append(append(dst, sep...), e.name...), '"')
			sep = `,"`
		}
	}
	return append(dst, ']')
}

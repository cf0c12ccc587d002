// SPDX-License-Identifier: Apache-2.0

package decode

import (
	"strconv"

	"golang.org/x/sys/unix"

	"frail/bpf"
	"frail/tracer/syscalls"
)

// Call is a system call as its registers tell it.
type Call struct {
	Table syscalls.Table
	// Nr is the call's number, for x32 with bit 30 or without.
	Nr   int64
	Args [6]uint64
	// Pieces are what arguments point to, as far as that is known.
	Pieces []Piece
}

// argument appends the text of the i-th argument of a call, or nothing if the call does not
// have that argument. Those that the kernel takes 32 bits of have no more.
type argument interface {
	append(dst []byte, c *Call, i int) []byte
}

// signature returns the arguments of a call, nil if they are not known.
func signature(t syscalls.Table, nr int64) []argument {
	name := syscalls.Name(t, nr)
	switch t {
	case syscalls.I386:
		if args := calls32[name]; args != nil {
			return args
		}
	case syscalls.X32:
		switch name {
		case "preadv", "pwritev", "preadv2", "pwritev2":
			return nil // their position is in one register, not in two halves
		}
	}
	return calls64[name]
}

// firstX32 is the first of x32's calls that it shares with i386.
const firstX32 = 512

// narrow reports whether the kernel takes 32 bits of each argument.
func (c *Call) narrow() bool {
	return c.Table == syscalls.I386 || c.Table == syscalls.X32 && c.Nr&^bpf.X32Bit >= firstX32
}

// AppendArgs appends the call's arguments, separated by commas. Those of a call that this
// package does not know are numbers in hexadecimal, as many as the call takes. Bits of
// Args that the kernel does not look at are cleared.
func (c *Call) AppendArgs(dst []byte) []byte {
	if c.narrow() {
		for i, v := range c.Args {
			c.Args[i] = uint64(uint32(v))
		}
	}
	args := signature(c.Table, c.Nr)
	if args == nil {
		for i, v := range c.Args[:syscalls.Args(c.Table, c.Nr)] {
			if i > 0 {
				dst = append(dst, ", "...)
			}
			dst = strconv.AppendUint(append(dst, "0x"...), v, 16)
		}
		return dst
	}
	start := len(dst)
	for i, arg := range args {
		before := len(dst)
		if before > start {
			dst = append(dst, ", "...)
		}
		after := len(dst)
		if dst = arg.append(dst, c, i); len(dst) == after {
			dst = dst[:before]
		}
	}
	return dst
}

// ReturnNeedsArgs reports whether [Call.AppendReturn] makes use of the call's arguments.
func ReturnNeedsArgs(t syscalls.Table, nr int64) bool {
	name := syscalls.Name(t, nr)
	return name == "fcntl" || name == "fcntl64"
}

// AppendReturn appends what the call returned. If the arguments are not known, they are to
// be zero, and a return value that depends on them is a plain number.
func (c *Call) AppendReturn(dst []byte, ret int64) []byte {
	if ret < 0 && ret >= -maxErrno {
		return appendErrno(dst, unix.Errno(-ret))
	}
	u := uint64(ret)
	if c.narrow() {
		u = uint64(uint32(ret))
	}
	switch syscalls.Name(c.Table, c.Nr) {
	case "mmap", "mmap2", "brk", "mremap", "shmat":
		return appendHex(dst, u)
	case "umask":
		return appendMode(dst, u)
	case "poll", "ppoll", "ppoll_time64", "_newselect", "pselect6", "pselect6_time64":
		if ret == 0 {
			return append(dst, "0 (Timeout)"...)
		}
	case "select":
		if ret == 0 && c.Table != syscalls.I386 { // whose arguments are in memory
			return append(dst, "0 (Timeout)"...)
		}
	case "fcntl", "fcntl64":
		return c.appendFcntlReturn(dst, u)
	}
	return strconv.AppendInt(dst, ret, 10)
}

func (c *Call) appendFcntlReturn(dst []byte, ret uint64) []byte {
	switch uint32(c.Args[1]) {
	case unix.F_GETFL:
		return appendReturned(dst, "flags", openFlags, ret)
	case unix.F_GETFD:
		return appendReturned(dst, "flags", descriptorFlags, ret)
	case unix.F_GET_SEALS:
		return appendReturned(dst, "seals", seals, ret)
	case unix.F_GETLEASE:
		dst = appendHex(dst, ret)
		if name := leaseTypes.find(ret); name != "" {
			dst = append(append(append(dst, " ("...), name...), ')')
		}
		return dst
	}
	dst = strconv.AppendInt(dst, int64(ret), 10)
	if uint32(c.Args[1]) == unix.F_GETSIG && ret > 0 && ret <= lastSignal {
		dst = append(signal(append(dst, " ("...), ret), ')')
	}
	return dst
}

// appendReturned appends a number and its names, if it has any.
func appendReturned(dst []byte, what string, s *set, ret uint64) []byte {
	dst = appendHex(dst, ret)
	if ret == 0 && len(s.values) == 0 {
		return dst
	}
	bare := *s
	bare.unknown = ""
	dst = append(append(append(dst, " ("...), what...), ' ')
	return append(bare.appendNames(dst, ret), ')')
}

// maxErrno is the largest error number that Linux returns.
const maxErrno = 4095

func appendErrno(dst []byte, e unix.Errno) []byte {
	dst = append(dst, "-1 "...)
	name, meaning := unix.ErrnoName(e), e.Error()
	switch e { // of two names of a number the one that Linux itself uses
	case unix.EOPNOTSUPP:
		name = "EOPNOTSUPP"
	case unix.EUCLEAN:
		name = "EUCLEAN"
	case unix.EHWPOISON:
		meaning = "Memory page has hardware error"
	}
	if name == "" {
		return append(strconv.AppendInt(append(dst, "(errno "...), int64(e), 10), ')')
	}
	dst = append(append(append(dst, name...), " ("...), meaning...)
	// Go's texts begin with a small letter, those of the C library with a capital one.
	if first := &dst[len(dst)-len(meaning)]; *first >= 'a' && *first <= 'z' {
		*first -= 'a' - 'A'
	}
	return append(dst, ')')
}

// name is a value or a flag by its name.
type name struct {
	value int64
	name  string
}

// everyBit is the mask of a set that has values only.
const everyBit = 1<<64 - 1

// set names what an argument can be. It is an [argument].
type set struct {
	// mask are the bits that together hold one of values; all others are flags. If it is
	// zero, values has the name of no flags at all, or nothing.
	mask   uint64
	values []name
	flags  []name
	// unknown is what strace writes after a number that has no name.
	unknown string
	// long is set if the argument has 64 bits, not 32.
	long bool
}

func (s *set) append(dst []byte, c *Call, i int) []byte {
	return s.appendNames(dst, c.Args[i])
}

// find returns the name of a value, or "".
func (s *set) find(v uint64) string {
	for _, n := range s.values {
		if s.cut(uint64(n.value)) == v {
			return n.name
		}
	}
	return ""
}

func (s *set) cut(v uint64) uint64 {
	if s.long {
		return v
	}
	return uint64(uint32(v))
}

func (s *set) appendNames(dst []byte, v uint64) []byte {
	v = s.cut(v)
	start := len(dst)
	if s.mask != 0 || v == 0 {
		if name := s.find(v & s.mask); name != "" {
			dst = append(dst, name...)
			v &^= s.mask
		}
	}
	for _, f := range s.flags {
		if bits := s.cut(uint64(f.value)); v&bits == bits {
			dst = append(appendOr(dst, start), f.name...)
			v &^= bits
		}
	}
	named := len(dst) > start
	if v != 0 || !named {
		dst = appendHex(appendOr(dst, start), v)
	}
	if !named && s.unknown != "" && (v != 0 || s.mask == everyBit) {
		dst = append(append(append(dst, " /* "...), s.unknown...), " */"...)
	}
	return dst
}

// appendOr appends a bar if something was appended since start.
func appendOr(dst []byte, start int) []byte {
	if len(dst) > start {
		dst = append(dst, '|')
	}
	return dst
}

// appendHex appends a number as C's %#x does.
func appendHex(dst []byte, v uint64) []byte {
	if v == 0 {
		return append(dst, '0')
	}
	return strconv.AppendUint(append(dst, "0x"...), v, 16)
}

// appendMode appends a file's mode in octal, with three digits at least.
func appendMode(dst []byte, mode uint64) []byte {
	dst = append(dst, '0')
	if mode < 0o10 {
		dst = append(dst, '0')
	}
	return strconv.AppendUint(dst, mode, 8)
}

// plain is an argument that is written by itself.
type plain func(dst []byte, v uint64) []byte

func (f plain) append(dst []byte, c *Call, i int) []byte { return f(dst, c.Args[i]) }

// dependent is an argument that is written according to others.
type dependent func(dst []byte, c *Call, i int) []byte

func (f dependent) append(dst []byte, c *Call, i int) []byte { return f(dst, c, i) }

// pointer is the address of something in the guest's memory.
type pointer struct{}

func (pointer) append(dst []byte, c *Call, i int) []byte {
	if c.Args[i] == 0 {
		return append(dst, "NULL"...)
	}
	return appendHex(dst, c.Args[i])
}

var ptr pointer

// SPDX-License-Identifier: Apache-2.0

package decode

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/bits"
	"net/netip"
	"strconv"

	"golang.org/x/sys/unix"

	"frail/bpf"
)

// Strings and buffers.
var (
	// str is a string: a path, or a name.
	str = in(memory{read: bpf.Read{Kind: bpf.ReadString}, least: maxPath, show: showString})
	// strs are strings by an array of pointers.
	strs = in(memory{read: bpf.Read{Kind: bpf.ReadStrings}, show: showStrings})
	// left is what a call returned the length of.
	left = out(memory{read: bpf.Read{Kind: bpf.ReadReturned, Unit: 1}, show: showString})
	// leftRandom is the same, in which no text is to be expected.
	leftRandom = out(memory{read: bpf.Read{Kind: bpf.ReadReturned, Unit: 1}, show: showRandom})
	// leftString is the same, where the length counts the NUL at its end.
	leftString = out(memory{read: bpf.Read{Kind: bpf.ReadReturned, Unit: 1}, least: maxPath, show: showTerminated})
	// leftPath is a path of which the length was returned.
	leftPath = out(memory{read: bpf.Read{Kind: bpf.ReadReturned, Unit: 1}, least: maxPath, show: showString})
)

// buffer has as many bytes as argument count says.
func buffer(count uint8) *memory {
	return in(memory{read: bpf.Read{Kind: bpf.ReadCounted, Count: count, Unit: 1}, show: showString})
}

// buffers are as many struct iovec as argument count says.
func buffers(count uint8) *memory {
	return in(memory{read: bpf.Read{Kind: bpf.ReadVector, Count: count}, show: showVector})
}

// structure is one of this many bytes.
func structure(size uint16, wide bool, show func(dst []byte, c *Call, p *Piece) []byte) memory {
	return memory{read: bpf.Read{Kind: bpf.ReadBytes, Unit: size, Max: size}, wide: wide, show: func(dst []byte, c *Call, p *Piece) []byte {
		if len(p.Bytes) != int(size) {
			return nil
		}
		return show(dst, c, p)
	}}
}

// elements are as many of this many bytes as argument count says.
func elements(count uint8, size uint16, show func(dst, element []byte) []byte) memory {
	return memory{read: bpf.Read{Kind: bpf.ReadCounted, Count: count, Unit: size, Max: uint16(maxElements) * size}, show: showElements(size, show)}
}

// maxElements is how many elements of an array are shown: as many as by strace.
const maxElements = 32

func showElements(size uint16, show func(dst, element []byte) []byte) func(dst []byte, c *Call, p *Piece) []byte {
	return func(dst []byte, c *Call, p *Piece) []byte {
		dst = append(dst, '[')
		sep := ""
		for b := p.Bytes; len(b) >= int(size); b = b[size:] {
			dst = show(append(dst, sep...), b[:size])
			sep = ", "
		}
		if p.Cut {
			dst = append(append(dst, sep...), "..."...)
		}
		return append(dst, ']')
	}
}

// Structures.
var (
	timespec   = structure(16, true, showTimespec)
	timeval    = structure(16, true, showTimeval)
	itimerspec = structure(32, true, showTimerspec)
	itimerval  = structure(32, true, showTimerval)
	stat       = structure(144, true, showStat)
	utsname    = structure(390, false, showUtsname)
	rlimit     = structure(16, true, showRlimit)
	rlimit64   = structure(16, false, showRlimit)
	sigaction  = structure(32, true, showSigaction)
	waitStatus = structure(4, false, showWaitStatus)
	fdPair     = structure(8, false, showPair)
	epollEvent = structure(12, false, func(dst []byte, _ *Call, p *Piece) []byte { return showEpollEvent(dst, p.Bytes) })

	polled = elements(1, 8, showPoll)
	groups = elements(0, 4, showUnsigned)

	epollEvents = out(memory{
		read: bpf.Read{Kind: bpf.ReadReturned, Unit: 12, Max: 12 * maxElements}, show: showElements(12, showEpollEvent),
	})
)

// address is a socket's, of as many bytes as argument count says, when the call is made.
func address(count uint8) *memory {
	return in(memory{read: bpf.Read{Kind: bpf.ReadCounted, Count: count, Unit: 1, Max: maxAddress}, show: showAddress})
}

// leftAddress is one of as many bytes as argument count points to, when it has returned.
func leftAddress(count uint8) *memory {
	return out(memory{read: bpf.Read{Kind: bpf.ReadPointed, Count: count, Max: maxAddress}, show: showAddress})
}

// maxAddress is sizeof(struct sockaddr_storage).
const maxAddress = 128

// sigset is a set of signals, of as many bytes as argument count says.
func sigset(count uint8) memory {
	return memory{read: bpf.Read{Kind: bpf.ReadCounted, Count: count, Unit: 1, Max: 8}, show: func(dst []byte, _ *Call, p *Piece) []byte {
		if len(p.Bytes) != 8 {
			return nil
		}
		return appendSigset(dst, word64(p.Bytes, 0))
	}}
}

func word64(b []byte, at int) uint64 { return binary.LittleEndian.Uint64(b[at:]) }
func word32(b []byte, at int) uint32 { return binary.LittleEndian.Uint32(b[at:]) }

// appendQuoted appends bytes as a string of C.
func appendQuoted(dst, s []byte) []byte {
	dst = append(dst, '"')
	for i, b := range s {
		switch b {
		case '"', '\\':
			dst = append(dst, '\\', b)
		case '\f':
			dst = append(dst, `\f`...)
		case '\n':
			dst = append(dst, `\n`...)
		case '\r':
			dst = append(dst, `\r`...)
		case '\t':
			dst = append(dst, `\t`...)
		case '\v':
			dst = append(dst, `\v`...)
		default:
			if b >= ' ' && b <= '~' {
				dst = append(dst, b)
				continue
			}
			dst = append(dst, '\\')
			// A digit after it would be taken for a part of the number.
			digit := i+1 < len(s) && s[i+1] >= '0' && s[i+1] <= '7'
			if digit || b>>6 != 0 {
				dst = append(dst, '0'+b>>6)
			}
			if digit || b>>3 != 0 {
				dst = append(dst, '0'+b>>3&7)
			}
			dst = append(dst, '0'+b&7)
		}
	}
	return append(dst, '"')
}

func appendCut(dst []byte, cut bool) []byte {
	if cut {
		return append(dst, "..."...)
	}
	return dst
}

func showString(dst []byte, _ *Call, p *Piece) []byte {
	return appendCut(appendQuoted(dst, p.Bytes), p.Cut)
}

func showRandom(dst []byte, _ *Call, p *Piece) []byte {
	const digits = "0123456789abcdef"
	dst = append(dst, '"')
	for _, b := range p.Bytes {
		dst = append(dst, '\\', 'x', digits[b>>4], digits[b&15])
	}
	return appendCut(append(dst, '"'), p.Cut)
}

func showTerminated(dst []byte, c *Call, p *Piece) []byte {
	whole := *p
	whole.Bytes = bytes.TrimSuffix(p.Bytes, []byte{0})
	return showString(dst, c, &whole)
}

func showStrings(dst []byte, _ *Call, p *Piece) []byte {
	dst = append(dst, '[')
	sep := ""
	for b := p.Bytes; ; {
		end := bytes.IndexByte(b, 0)
		if end < 0 || end+1 == len(b) {
			break
		}
		dst = appendCut(appendQuoted(append(dst, sep...), b[:end]), b[end+1] != 0)
		b, sep = b[end+2:], ", "
	}
	if p.Cut {
		dst = append(append(dst, sep...), "..."...)
	}
	return append(dst, ']')
}

func showVector(dst []byte, _ *Call, p *Piece) []byte {
	const head = 24
	dst = append(dst, '[')
	sep := ""
	for b := p.Bytes; len(b) >= head; {
		base, size, told := word64(b, 0), word64(b, 8), word64(b, 16)
		b = b[head:]
		if told > uint64(len(b)) {
			return nil
		}
		dst = append(append(dst, sep...), "{iov_base="...)
		switch {
		case base == 0:
			dst = append(dst, "NULL"...)
		case told == 0 && size != 0:
			dst = appendHex(dst, base)
		default:
			dst = appendCut(appendQuoted(dst, b[:told]), told < size)
		}
		dst = append(strconv.AppendUint(append(dst, ", iov_len="...), size, 10), '}')
		b, sep = b[told:], ", "
	}
	if p.Cut {
		dst = append(append(dst, sep...), "..."...)
	}
	return append(dst, ']')
}

func appendField(dst []byte, name string, v int64) []byte {
	return strconv.AppendInt(append(dst, name...), v, 10)
}

func appendTime(dst, b []byte, fraction string) []byte {
	dst = appendField(dst, "{tv_sec=", int64(word64(b, 0)))
	return append(appendField(dst, fraction, int64(word64(b, 8))), '}')
}

func showTimespec(dst []byte, _ *Call, p *Piece) []byte {
	return appendTime(dst, p.Bytes, ", tv_nsec=")
}
func showTimeval(dst []byte, _ *Call, p *Piece) []byte { return appendTime(dst, p.Bytes, ", tv_usec=") }

func appendTimer(dst, b []byte, fraction string) []byte {
	dst = appendTime(append(dst, "{it_interval="...), b, fraction)
	return append(appendTime(append(dst, ", it_value="...), b[16:], fraction), '}')
}

func showTimerspec(dst []byte, _ *Call, p *Piece) []byte {
	return appendTimer(dst, p.Bytes, ", tv_nsec=")
}
func showTimerval(dst []byte, _ *Call, p *Piece) []byte {
	return appendTimer(dst, p.Bytes, ", tv_usec=")
}

// showStat shows a struct stat of x86-64 as far as strace does.
func showStat(dst []byte, _ *Call, p *Piece) []byte {
	mode := uint64(word32(p.Bytes, 24))
	dst = append(dst, "{st_mode="...)
	dst = fileModes.appendNames(dst, mode&^0o777)
	dst = appendMode(append(dst, '|'), mode&0o777)
	switch mode & unix.S_IFMT {
	case unix.S_IFCHR, unix.S_IFBLK:
		rdev := word64(p.Bytes, 40)
		dst = appendHex(append(dst, ", st_rdev=makedev("...), uint64(unix.Major(rdev)))
		dst = append(appendHex(append(dst, ", "...), uint64(unix.Minor(rdev))), ')')
	default:
		dst = appendField(dst, ", st_size=", int64(word64(p.Bytes, 48)))
	}
	return append(dst, ", ...}"...)
}

func showUtsname(dst []byte, _ *Call, p *Piece) []byte {
	const fieldLen = 65
	for i, field := range []string{"{sysname=", ", nodename="} {
		name, _, _ := bytes.Cut(p.Bytes[i*fieldLen:][:fieldLen], []byte{0})
		dst = appendQuoted(append(dst, field...), name)
	}
	return append(dst, ", ...}"...)
}

func showRlimit(dst []byte, _ *Call, p *Piece) []byte {
	for i, field := range []string{"{rlim_cur=", ", rlim_max="} {
		dst = append(dst, field...)
		switch v := word64(p.Bytes, 8*i); {
		case v == unix.RLIM_INFINITY&(1<<64-1):
			dst = append(dst, "RLIM64_INFINITY"...)
		case v > 1024 && v%1024 == 0:
			dst = append(strconv.AppendUint(dst, v/1024, 10), "*1024"...)
		default:
			dst = strconv.AppendUint(dst, v, 10)
		}
	}
	return append(dst, '}')
}

// appendSigset appends a set of signals: of one that has most, those that it has not.
func appendSigset(dst []byte, set uint64) []byte {
	const most = 64 * 2 / 3
	if bits.OnesCount64(set) >= most {
		dst, set = append(dst, '~'), ^set
	}
	dst = append(dst, '[')
	start := len(dst)
	for n := uint64(1); n <= lastSignal; n++ {
		if set>>(n-1)&1 == 0 {
			continue
		}
		if len(dst) > start {
			dst = append(dst, ' ')
		}
		dst = append(dst, bytes.TrimPrefix(signal(nil, n), []byte("SIG"))...)
	}
	return append(dst, ']')
}

// showSigaction shows the kernel's struct sigaction of x86-64.
func showSigaction(dst []byte, _ *Call, p *Piece) []byte {
	handler, flags, restorer, mask := word64(p.Bytes, 0), word64(p.Bytes, 8), word64(p.Bytes, 16), word64(p.Bytes, 24)
	dst = append(dst, "{sa_handler="...)
	switch handler {
	case 0:
		dst = append(dst, "SIG_DFL"...)
	case 1:
		dst = append(dst, "SIG_IGN"...)
	default:
		dst = appendHex(dst, handler)
	}
	dst = appendSigset(append(dst, ", sa_mask="...), mask)
	dst = sigactionFlags.appendNames(append(dst, ", sa_flags="...), flags)
	if flags&saRestorer != 0 {
		dst = appendHex(append(dst, ", sa_restorer="...), restorer)
	}
	return append(dst, '}')
}

func showWaitStatus(dst []byte, _ *Call, p *Piece) []byte {
	status := unix.WaitStatus(word32(p.Bytes, 0))
	dst = append(dst, "[{"...)
	switch {
	case status.Exited():
		dst = appendField(dst, "WIFEXITED(s) && WEXITSTATUS(s) == ", int64(status.ExitStatus()))
	case status.Signaled():
		dst = signal(append(dst, "WIFSIGNALED(s) && WTERMSIG(s) == "...), uint64(status.Signal()))
		if status.CoreDump() {
			dst = append(dst, " && WCOREDUMP(s)"...)
		}
	case status.Stopped():
		dst = signal(append(dst, "WIFSTOPPED(s) && WSTOPSIG(s) == "...), uint64(status.StopSignal()))
	case status.Continued():
		dst = append(dst, "WIFCONTINUED(s)"...)
	default:
		return nil
	}
	return append(dst, "}]"...)
}

func showPair(dst []byte, _ *Call, p *Piece) []byte {
	dst = appendField(dst, "[", int64(int32(word32(p.Bytes, 0))))
	return append(appendField(dst, ", ", int64(int32(word32(p.Bytes, 4)))), ']')
}

func showPoll(dst, b []byte) []byte {
	dst = appendField(dst, "{fd=", int64(int32(word32(b, 0))))
	if int32(word32(b, 0)) >= 0 {
		dst = pollEvents.appendNames(append(dst, ", events="...), uint64(word32(b, 4)&0xffff))
	}
	return append(dst, '}')
}

func showEpollEvent(dst, b []byte) []byte {
	dst = epollFlags.appendNames(append(dst, "{events="...), uint64(word32(b, 0)))
	dst = strconv.AppendUint(append(dst, ", data={u32="...), uint64(word32(b, 4)), 10)
	return append(strconv.AppendUint(append(dst, ", u64="...), word64(b, 4), 10), "}}"...)
}

func showUnsigned(dst, b []byte) []byte { return strconv.AppendUint(dst, uint64(word32(b, 0)), 10) }

// showAddress shows a socket's address of the usual families.
func showAddress(dst []byte, _ *Call, p *Piece) []byte {
	b := p.Bytes
	if len(b) < 2 {
		return nil
	}
	family := uint64(binary.LittleEndian.Uint16(b))
	port := func() uint64 { return uint64(binary.BigEndian.Uint16(b[2:])) }
	dst = families.appendNames(append(dst, "{sa_family="...), family)
	switch {
	case family == unix.AF_UNIX && len(b) > 2 && b[2] == 0:
		dst = appendQuoted(append(dst, ", sun_path=@"...), b[3:])
	case family == unix.AF_UNIX && len(b) > 2:
		name, _, _ := bytes.Cut(b[2:], []byte{0})
		dst = appendQuoted(append(dst, ", sun_path="...), name)
	case family == unix.AF_UNIX:
	case family == unix.AF_INET && len(b) >= 16:
		dst = strconv.AppendUint(append(dst, ", sin_port=htons("...), port(), 10)
		dst = netip.AddrFrom4([4]byte(b[4:])).AppendTo(append(dst, `), sin_addr=inet_addr("`...))
		dst = append(dst, `")`...)
	case family == unix.AF_INET6 && len(b) >= 28:
		dst = strconv.AppendUint(append(dst, ", sin6_port=htons("...), port(), 10)
		dst = strconv.AppendUint(append(dst, "), sin6_flowinfo=htonl("...), uint64(binary.BigEndian.Uint32(b[4:])), 10)
		dst = netip.AddrFrom16([16]byte(b[8:])).AppendTo(append(dst, `), inet_pton(AF_INET6, "`...))
		dst = strconv.AppendUint(append(dst, `", &sin6_addr), sin6_scope_id=`...), uint64(word32(b, 24)), 10)
	case family == unix.AF_NETLINK && len(b) >= 12:
		dst = strconv.AppendUint(append(dst, ", nl_pid="...), uint64(word32(b, 4)), 10)
		dst = append(dst, ", nl_groups="...)
		if groups := word32(b, 8); groups == 0 { // C's %#08x
			dst = append(dst, "00000000"...)
		} else {
			dst = fmt.Appendf(dst, "0x%06x", groups)
		}
	default:
		dst = appendQuoted(append(dst, ", sa_data="...), b[2:])
	}
	return append(dst, '}')
}

// SPDX-License-Identifier: Apache-2.0

package format

import (
	"fmt"
	"strconv"
	"time"
	"unicode"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"frail/bpf"
	"frail/tracer"
	"frail/tracer/syscalls"
)

// maxErrno is the largest error number Linux returns from a system call.
const maxErrno = 4095

// Formatter appends records to a buffer, each with its line end, and returns the extended
// buffer. Events are appended without an allocation if the buffer has room.
type Formatter interface {
	AppendEvent(dst []byte, ev *bpf.Event) []byte
	// AppendData appends an event with what its call's arguments point to.
	AppendData(dst []byte, d *bpf.Data) []byte
	AppendProcess(dst []byte, p *bpf.Process) []byte
	AppendLost(dst []byte, l tracer.Lost) []byte
	AppendSummary(dst []byte, s tracer.Summary) []byte
}

// WallOffset returns what to add to a CLOCK_BOOTTIME of this host to get the time of day.
// It changes when the clock is set.
func WallOffset() (time.Duration, error) {
	var boot unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &boot); err != nil {
		return 0, fmt.Errorf("read boot-time clock: %w", err)
	}
	return time.Duration(time.Now().UnixNano() - boot.Nano()), nil
}

// wall returns the time of day of a CLOCK_BOOTTIME.
func wall(boot uint64, offset time.Duration) time.Time {
	return time.Unix(0, int64(boot)+int64(offset))
}

// returned returns an exit's value as its system call table has it.
func returned(ev *bpf.Event) int64 {
	if ev.Table() == bpf.Table32 {
		return int64(int32(ev.Ret))
	}
	return ev.Ret
}

// errno returns the error that a return value is, if it is one.
func errno(ret int64) (unix.Errno, bool) {
	if ret < 0 && ret >= -maxErrno {
		return unix.Errno(-ret), true
	}
	return 0, false
}

// nr returns the event's number without x32's bit. Linux looks at the low 32 bits alone.
func nr(ev *bpf.Event, t syscalls.Table) int64 {
	n := int64(int32(ev.Nr))
	if t == syscalls.X32 {
		n &^= bpf.X32Bit
	}
	return n
}

// appendName appends a guest-chosen name so that it cannot do anything to a terminal or
// break a line.
func appendName(dst, name []byte) []byte {
	const hex = "0123456789abcdef"
	for len(name) > 0 {
		r, n := utf8.DecodeRune(name)
		switch {
		case r == '\\':
			dst = append(dst, `\\`...)
		case r == utf8.RuneError && n == 1 || !unicode.IsPrint(r):
			for _, b := range name[:n] {
				dst = append(dst, '\\', 'x', hex[b>>4], hex[b&15])
			}
		default:
			dst = append(dst, name[:n]...)
		}
		name = name[n:]
	}
	return dst
}

func appendHex(dst []byte, v uint64) []byte {
	return strconv.AppendUint(append(dst, "0x"...), v, 16)
}

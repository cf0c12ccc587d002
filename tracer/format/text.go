// SPDX-License-Identifier: Apache-2.0

package format

import (
	"strconv"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"frail/bpf"
	"frail/qmp/container"
	"frail/tracer"
	"frail/tracer/syscalls"
)

const (
	// whoWidth is the width of the column of thread names and ids: a name of 15 letters
	// with two ids of six digits just fits.
	whoWidth = 32

	// timeLayout is virsh's, with microseconds.
	timeLayout = "2006-01-02 15:04:05.000000-0700: "
)

// Text formats for people. The zero value is ready. It is not safe for concurrent use.
type Text struct {
	// Raw shows arguments and return values as numbers, in place of what they mean.
	Raw bool
	// Color makes names, errors and records that are not calls stand out on a terminal.
	Color bool
	// Timestamp puts the time before each line.
	Timestamp bool
	// Offset is added to an event's time to get the time of day: see [WallOffset].
	Offset time.Duration
	// Location is the time zone of timestamps; nil: UTC.
	Location *time.Location

	decoder decoder
}

// Escape sequences of a terminal.
const (
	colorCall   = "\x1b[36m" // cyan
	colorError  = "\x1b[31m" // red
	colorNotice = "\x1b[33m" // yellow
	colorOff    = "\x1b[0m"
)

var _ Formatter = (*Text)(nil)

// AppendEvent appends one line.
func (f *Text) AppendEvent(dst []byte, ev *bpf.Event) []byte {
	dst = f.appendTime(dst, ev.Time)
	switch ev.Kind {
	case bpf.EventCoverage:
		_, blind := ev.Coverage()
		dst = append(f.paint(dst, colorNotice), "--- "...)
		dst = append(appendCoverage(dst, blind), " ---"...)
		return append(f.paint(dst, colorOff), '\n')
	case bpf.EventExit:
		dst = appendWho(dst, ev)
		dst = append(dst, "... "...)
		dst = f.appendCall(dst, ev)
		dst = f.decoder.appendLeft(dst, ev)
		dst = append(dst, " = "...)
		if !ev.RetKnown() {
			return append(dst, "?\n"...)
		}
		ret := returned(ev)
		_, failed := errno(ret)
		if failed {
			dst = f.paint(dst, colorError)
		}
		if f.Raw {
			dst = appendReturn(dst, ret)
		} else {
			dst = f.decoder.appendReturn(dst, ev)
		}
		if failed {
			dst = f.paint(dst, colorOff)
		}
		return append(dst, '\n')
	}
	dst = appendWho(dst, ev)
	dst = f.appendCall(dst, ev)
	dst = append(dst, '(')
	if f.Raw {
		dst = appendRawArgs(dst, ev)
	} else {
		dst = f.decoder.appendArgs(dst, ev)
	}
	return append(dst, ")\n"...)
}

// AppendData appends one line.
func (f *Text) AppendData(dst []byte, d *bpf.Data) []byte {
	return f.decoder.with(d, dst, f.AppendEvent)
}

// appendRawArgs appends as many arguments as the call takes, as numbers.
func appendRawArgs(dst []byte, ev *bpf.Event) []byte {
	t := syscalls.Table(ev.Table())
	for i, arg := range ev.Args[:syscalls.Args(t, nr(ev, t))] {
		if i > 0 {
			dst = append(dst, ", "...)
		}
		if t == syscalls.I386 {
			arg = uint64(uint32(arg))
		}
		dst = appendHex(dst, arg)
	}
	return dst
}

// paint appends an escape sequence if there is to be colour.
func (f *Text) paint(dst []byte, color string) []byte {
	if !f.Color {
		return dst
	}
	return append(dst, color...)
}

// appendCall appends the call's name.
func (f *Text) appendCall(dst []byte, ev *bpf.Event) []byte {
	return f.paint(appendCall(f.paint(dst, colorCall), ev), colorOff)
}

// AppendProcess appends one line.
func (f *Text) AppendProcess(dst []byte, p *bpf.Process) []byte {
	dst = appendWho(f.appendTime(dst, p.Head.Time), &p.Head)
	dst = append(dst, "--- "...)
	sep := ""
	part := func(bit uint32, text string) bool {
		if p.Known&bit == 0 {
			return false
		}
		dst = append(append(dst, sep...), text...)
		sep = ", "
		return true
	}
	if part(bpf.ProcessExe, "") {
		if p.Known&bpf.ProcessExeCut != 0 {
			dst = append(dst, "..."...)
		}
		dst = appendName(dst, p.ExeBytes())
		if p.Known&bpf.ProcessExeDeleted != 0 {
			dst = append(dst, " (deleted)"...)
		}
	}
	if part(bpf.ProcessParent, "child of ") {
		dst = strconv.AppendInt(dst, int64(p.Ppid), 10)
	}
	if part(bpf.ProcessCred, "uid ") {
		dst = strconv.AppendUint(dst, uint64(p.Uid), 10)
		if p.Euid != p.Uid {
			dst = strconv.AppendUint(append(dst, " as "...), uint64(p.Euid), 10)
		}
	}
	if p.NsPid != p.Head.Pid && part(bpf.ProcessNsPid, "pid ") {
		dst = append(strconv.AppendInt(dst, int64(p.NsPid), 10), " in its namespace"...)
	}
	if in := container.Of(string(p.CgroupBytes())); in.ID != "" && part(bpf.ProcessCgroup, "in container ") {
		dst = appendName(dst, []byte(in.ID))
	}
	if sep == "" {
		dst = append(dst, "not known"...)
	}
	return append(dst, " ---\n"...)
}

// AppendLost appends one line.
func (f *Text) AppendLost(dst []byte, l tracer.Lost) []byte {
	dst = append(f.paint(f.appendTime(dst, l.Time), colorNotice), "--- "...)
	dst = append(appendLosses(dst, l.Losses), " ---"...)
	return append(f.paint(dst, colorOff), '\n')
}

// AppendSummary appends one line.
func (f *Text) AppendSummary(dst []byte, s tracer.Summary) []byte {
	dst = append(dst, "--- "...)
	dst = appendCount(dst, s.Delivered, "event")
	dst = append(dst, ", "...)
	dst = appendLosses(dst, s.Lost)
	if s.Unjudged > 0 {
		dst = append(dst, ", "...)
		dst = appendCount(dst, s.Unjudged, "event")
		dst = append(dst, " not known well enough to be filtered"...)
	}
	return append(dst, " ---\n"...)
}

func (f *Text) appendTime(dst []byte, boot uint64) []byte {
	if !f.Timestamp {
		return dst
	}
	loc := f.Location
	if loc == nil {
		loc = time.UTC
	}
	return wall(boot, f.Offset).In(loc).AppendFormat(dst, timeLayout)
}

// appendWho appends the thread, padded to its column.
func appendWho(dst []byte, ev *bpf.Event) []byte {
	start := len(dst)
	if ev.Identified() {
		dst = appendName(dst, ev.CommBytes())
		dst = append(dst, '[')
		dst = strconv.AppendInt(dst, int64(ev.Tgid), 10)
		dst = append(dst, '/')
		dst = strconv.AppendInt(dst, int64(ev.Pid), 10)
		dst = append(dst, ']')
	} else {
		dst = append(dst, "[no identity]"...)
	}
	for n := utf8.RuneCount(dst[start:]); n < whoWidth; n++ {
		dst = append(dst, ' ')
	}
	return append(dst, ' ')
}

// appendCall appends the call's name, or number where it has none.
func appendCall(dst []byte, ev *bpf.Event) []byte {
	t := syscalls.Table(ev.Table())
	if !ev.NrKnown() {
		dst = append(dst, '?')
	} else if name := syscalls.Name(t, nr(ev, t)); name != "" {
		dst = append(dst, name...)
	} else {
		dst = append(dst, "syscall_"...)
		dst = strconv.AppendInt(dst, nr(ev, t), 10)
	}
	if t != syscalls.X86_64 {
		dst = append(dst, '@')
		dst = append(dst, t.String()...)
	}
	return append(dst, insnMark(ev.Insn)...)
}

// appendCoverage appends which ways into the guest's kernel are not seen.
func appendCoverage(dst []byte, blind uint32) []byte {
	if blind == 0 {
		return append(dst, "all entries are seen again"...)
	}
	dst = AppendEntries(dst, blind)
	if blind&(blind-1) == 0 {
		dst = append(dst, " is"...)
	} else {
		dst = append(dst, " are"...)
	}
	return append(dst, " not seen now: the guest uses its debug registers"...)
}

// appendReturn appends an error with its meaning, a small number, or an address.
func appendReturn(dst []byte, ret int64) []byte {
	if e, ok := errno(ret); ok {
		dst = strconv.AppendInt(dst, ret, 10)
		if name := unix.ErrnoName(e); name != "" {
			dst = append(append(dst, ' '), name...)
			dst = append(append(append(dst, " ("...), e.Error()...), ')')
		}
		return dst
	}
	// Larger than any file size or count is likely to be: an address.
	const address = 1 << 32
	if ret < 0 || ret >= address {
		return appendHex(dst, uint64(ret))
	}
	return strconv.AppendInt(dst, ret, 10)
}

func appendLosses(dst []byte, l tracer.Losses) []byte {
	dst = appendCount(dst, l.Total(), "event")
	dst = append(dst, " lost"...)
	sep := ": "
	for _, cause := range []struct {
		n    uint64
		text string
	}{
		{l.RingFull, " because the reader was too slow"},
		{l.ReadFault, " because the tracepoint could not be read"},
		{l.Recursion, " because the BPF program was running already"},
	} {
		if cause.n == 0 {
			continue
		}
		dst = append(dst, sep...)
		dst = strconv.AppendUint(dst, cause.n, 10)
		dst = append(dst, cause.text...)
		sep = ", "
	}
	return dst
}

func appendCount(dst []byte, n uint64, what string) []byte {
	dst = strconv.AppendUint(dst, n, 10)
	dst = append(append(dst, ' '), what...)
	if n != 1 {
		dst = append(dst, 's')
	}
	return dst
}

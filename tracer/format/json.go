// SPDX-License-Identifier: Apache-2.0

package format

import (
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"frail/bpf"
	"frail/tracer"
	"frail/tracer/syscalls"
)

// JSON formats for programs, one object per line; the package's documentation lists the
// fields. The zero value is ready. It is safe for concurrent use.
type JSON struct {
	// Offset is added to an event's time to get the time of day: see [WallOffset].
	Offset time.Duration
}

var _ Formatter = (*JSON)(nil)

// AppendEvent appends an "enter", "exit" or "coverage" record.
func (f *JSON) AppendEvent(dst []byte, ev *bpf.Event) []byte {
	kind := "enter"
	switch ev.Kind {
	case bpf.EventExit:
		kind = "exit"
	case bpf.EventCoverage:
		kind = "coverage"
	}
	dst = f.appendHead(dst, kind, ev.Time)
	dst = strconv.AppendUint(append(dst, `,"vm":`...), uint64(ev.Vm), 10)
	dst = strconv.AppendUint(append(dst, `,"vcpu":`...), uint64(ev.Vcpu), 10)
	if ev.Kind == bpf.EventCoverage {
		covered, blind := ev.Coverage()
		dst = appendJSONEntries(dst, "covered", covered)
		dst = appendJSONEntries(dst, "blind", blind)
		return append(dst, "}\n"...)
	}

	dst = strconv.AppendBool(append(dst, `,"identity":`...), ev.Identified())
	if ev.Identified() {
		dst = append(dst, `,"comm":"`...)
		dst = appendJSONName(dst, ev.CommBytes())
		dst = strconv.AppendInt(append(dst, `","pid":`...), int64(ev.Pid), 10)
		dst = strconv.AppendInt(append(dst, `,"tgid":`...), int64(ev.Tgid), 10)
		dst = appendHexField(dst, `,"task":"`, ev.Task)
	}

	t := syscalls.Table(ev.Table())
	dst = append(append(append(dst, `,"table":"`...), t.String()...), '"')
	if ev.NrKnown() {
		n := nr(ev, t)
		dst = strconv.AppendInt(append(dst, `,"nr":`...), n, 10)
		if name := syscalls.Name(t, n); name != "" {
			dst = append(append(append(dst, `,"syscall":"`...), name...), '"')
		}
	}
	if name := insnName(ev.Insn); name != "" {
		dst = append(append(append(dst, `,"entry":"`...), name...), '"')
	}
	if ev.Kind == bpf.EventExit {
		dst = appendJSONReturn(dst, ev)
	} else {
		sep := `,"args":["`
		for _, arg := range ev.Args {
			dst = appendHexField(dst, sep, arg)
			sep = `,"`
		}
		dst = append(dst, ']')
	}
	dst = appendHexField(dst, `,"ip":"`, ev.Ip)
	dst = appendHexField(dst, `,"sp":"`, ev.Sp)
	dst = appendHexField(dst, `,"cr3":"`, ev.Cr3)
	return append(dst, "}\n"...)
}

// appendJSONReturn appends what is known of a call's return.
func appendJSONReturn(dst []byte, ev *bpf.Event) []byte {
	if ev.Deferred() {
		dst = append(dst, `,"deferred":true`...)
	}
	if !ev.RetKnown() {
		return dst
	}
	ret := returned(ev)
	dst = strconv.AppendInt(append(dst, `,"ret":`...), ret, 10)
	if e, ok := errno(ret); ok {
		if name := unix.ErrnoName(e); name != "" {
			dst = append(append(append(dst, `,"errno":"`...), name...), '"')
		}
	}
	return dst
}

// AppendLost appends a "lost" record.
func (f *JSON) AppendLost(dst []byte, l tracer.Lost) []byte {
	dst = f.appendHead(dst, "lost", l.Time)
	dst = appendJSONLosses(dst, l.Losses)
	return append(dst, "}\n"...)
}

// AppendSummary appends a "summary" record.
func (f *JSON) AppendSummary(dst []byte, s tracer.Summary) []byte {
	dst = append(dst, `{"type":"summary","delivered":`...)
	dst = strconv.AppendUint(dst, s.Delivered, 10)
	dst = appendJSONLosses(dst, s.Lost)
	return append(dst, "}\n"...)
}

func (f *JSON) appendHead(dst []byte, kind string, boot uint64) []byte {
	dst = append(append(append(dst, `{"type":"`...), kind...), `","time":"`...)
	dst = wall(boot, f.Offset).UTC().AppendFormat(dst, "2006-01-02T15:04:05.000000000Z")
	return strconv.AppendUint(append(dst, `","boot_ns":`...), boot, 10)
}

func appendJSONLosses(dst []byte, l tracer.Losses) []byte {
	dst = strconv.AppendUint(append(dst, `,"lost":{"total":`...), l.Total(), 10)
	dst = strconv.AppendUint(append(dst, `,"ring_full":`...), l.RingFull, 10)
	dst = strconv.AppendUint(append(dst, `,"read_fault":`...), l.ReadFault, 10)
	dst = strconv.AppendUint(append(dst, `,"recursion":`...), l.Recursion, 10)
	return append(dst, '}')
}

// appendHexField appends before, v and a closing quote.
func appendHexField(dst []byte, before string, v uint64) []byte {
	return append(appendHex(append(dst, before...), v), '"')
}

// appendJSONName appends a name as the inside of a JSON string: appendName leaves only
// backslashes and quotes to be escaped.
func appendJSONName(dst, name []byte) []byte {
	// Every byte of a name becomes at most four, so this never allocates.
	var room [4 * bpf.CommLen]byte
	for _, b := range appendName(room[:0], name) {
		if b == '\\' || b == '"' {
			dst = append(dst, '\\')
		}
		dst = append(dst, b)
	}
	return dst
}

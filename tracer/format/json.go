// SPDX-License-Identifier: Apache-2.0

package format

import (
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"frail/bpf"
	"frail/qmp/container"
	"frail/tracer"
	"frail/tracer/syscalls"
)

// JSON formats for programs, one object per line; the package's documentation lists the
// fields. The zero value is ready. It is not safe for concurrent use.
type JSON struct {
	// Offset is added to an event's time to get the time of day: see [WallOffset].
	Offset time.Duration
	// Decode adds what arguments and return values mean.
	Decode bool

	processes tracer.Processes
	decoder   decoder
	text      []byte
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
		if p := f.processes.Of(ev); p != nil {
			dst = strconv.AppendUint(append(dst, `,"who":`...), ev.Who, 10)
			dst = appendJSONExe(dst, p)
			dst = appendJSONNumber(dst, "ppid", p, bpf.ProcessParent, int64(p.Ppid))
			dst = appendJSONNumber(dst, "uid", p, bpf.ProcessCred, int64(p.Uid))
		}
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
		if f.Decode && ev.RetKnown() {
			f.text = f.decoder.appendReturn(f.text[:0], ev)
			dst = append(appendJSONEscaped(append(dst, `,"text":"`...), f.text), '"')
		}
		if f.Decode && len(f.decoder.pieces) > 0 {
			f.text = f.decoder.appendLeft(f.text[:0], ev)
			dst = append(appendJSONEscaped(append(dst, `,"left":"`...), f.text), '"')
		}
	} else {
		sep := `,"args":["`
		for _, arg := range ev.Args {
			dst = appendHexField(dst, sep, arg)
			sep = `,"`
		}
		dst = append(dst, ']')
		if f.Decode {
			f.text = f.decoder.appendArgs(f.text[:0], ev)
			dst = append(appendJSONEscaped(append(dst, `,"text":"`...), f.text), '"')
		}
	}
	dst = f.appendPieces(dst)
	dst = appendHexField(dst, `,"ip":"`, ev.Ip)
	dst = appendHexField(dst, `,"sp":"`, ev.Sp)
	dst = appendHexField(dst, `,"cr3":"`, ev.Cr3)
	return append(dst, "}\n"...)
}

// AppendData appends what AppendEvent does, with "data".
func (f *JSON) AppendData(dst []byte, d *bpf.Data) []byte {
	return f.decoder.with(d, dst, f.AppendEvent)
}

// appendPieces appends what arguments of the event point to.
func (f *JSON) appendPieces(dst []byte) []byte {
	if len(f.decoder.pieces) == 0 {
		return dst
	}
	sep := `,"data":[`
	for i := range f.decoder.pieces {
		p := &f.decoder.pieces[i]
		dst = strconv.AppendInt(append(append(dst, sep...), `{"arg":`...), int64(p.Arg), 10)
		dst = append(append(append(dst, `,"kind":"`...), kindName(p.Kind)...), `","bytes":"`...)
		f.text = appendName(f.text[:0], p.Bytes)
		dst = append(appendJSONEscaped(dst, f.text), '"')
		if p.Cut {
			dst = append(dst, `,"cut":true`...)
		}
		if p.Fault {
			dst = append(dst, `,"fault":true`...)
		}
		dst, sep = append(dst, '}'), ","
	}
	return append(dst, ']')
}

// kindName names what a piece is.
func kindName(kind uint8) string {
	switch kind {
	case bpf.ReadString:
		return "string"
	case bpf.ReadStrings:
		return "strings"
	case bpf.ReadVector:
		return "vector"
	}
	return "bytes"
}

// AppendProcess appends a "process" record.
func (f *JSON) AppendProcess(dst []byte, p *bpf.Process) []byte {
	f.processes.Add(p)
	dst = f.appendHead(dst, "process", p.Head.Time)
	dst = strconv.AppendUint(append(dst, `,"vm":`...), uint64(p.Head.Vm), 10)
	dst = strconv.AppendUint(append(dst, `,"who":`...), p.Head.Who, 10)
	dst = append(dst, `,"comm":"`...)
	dst = appendJSONName(dst, p.Head.CommBytes())
	dst = strconv.AppendInt(append(dst, `","pid":`...), int64(p.Head.Pid), 10)
	dst = strconv.AppendInt(append(dst, `,"tgid":`...), int64(p.Head.Tgid), 10)
	dst = appendHexField(dst, `,"task":"`, p.Head.Task)
	dst = appendJSONExe(dst, p)
	if p.Known&bpf.ProcessExeDeleted != 0 {
		dst = append(dst, `,"exe_deleted":true`...)
	}
	if p.Known&bpf.ProcessExeCut != 0 {
		dst = append(dst, `,"exe_cut":true`...)
	}
	for _, n := range []struct {
		field string
		bit   uint32
		value int64
	}{
		{"ppid", bpf.ProcessParent, int64(p.Ppid)},
		{"ns_pid", bpf.ProcessNsPid, int64(p.NsPid)},
		{"uid", bpf.ProcessCred, int64(p.Uid)},
		{"gid", bpf.ProcessCred, int64(p.Gid)},
		{"euid", bpf.ProcessCred, int64(p.Euid)},
		{"egid", bpf.ProcessCred, int64(p.Egid)},
		{"start_ns", bpf.ProcessStart, int64(p.Start)},
	} {
		dst = appendJSONNumber(dst, n.field, p, n.bit, n.value)
	}
	if p.Known&bpf.ProcessCgroup != 0 {
		dst = appendJSONBytes(append(dst, `,"cgroup":"`...), p.CgroupBytes())
		if p.Known&bpf.ProcessCgroupCut != 0 {
			dst = append(dst, `","cgroup_cut":true`...)
		} else {
			dst = append(dst, '"')
		}
		if in := container.Of(string(p.CgroupBytes())); in.ID != "" {
			dst = appendJSONBytes(append(dst, `,"container":"`...), []byte(in.ID))
			dst = appendJSONBytes(append(dst, `","runtime":"`...), []byte(in.Runtime))
			dst = append(dst, '"')
		}
	}
	return append(dst, "}\n"...)
}

func appendJSONExe(dst []byte, p *bpf.Process) []byte {
	if p.Known&bpf.ProcessExe == 0 {
		return dst
	}
	return append(appendJSONBytes(append(dst, `,"exe":"`...), p.ExeBytes()), '"')
}

func appendJSONNumber(dst []byte, field string, p *bpf.Process, bit uint32, v int64) []byte {
	if p.Known&bit == 0 {
		return dst
	}
	dst = append(append(append(dst, `,"`...), field...), `":`...)
	return strconv.AppendInt(dst, v, 10)
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
	dst = strconv.AppendUint(append(dst, `,"unjudged":`...), s.Unjudged, 10)
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

// appendJSONName appends a thread's name as the inside of a JSON string.
func appendJSONName(dst, name []byte) []byte {
	// Every byte of a name becomes at most four, so this never allocates.
	var room [4 * bpf.CommLen]byte
	return appendJSONEscaped(dst, appendName(room[:0], name))
}

// appendJSONBytes is appendJSONName for what is longer.
func appendJSONBytes(dst, name []byte) []byte {
	var room [4 * bpf.PathLen]byte
	return appendJSONEscaped(dst, appendName(room[:0], name))
}

// appendJSONEscaped escapes what appendName leaves: backslashes and quotes.
func appendJSONEscaped(dst, name []byte) []byte {
	for _, b := range name {
		if b == '\\' || b == '"' {
			dst = append(dst, '\\')
		}
		dst = append(dst, b)
	}
	return dst
}

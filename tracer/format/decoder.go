// SPDX-License-Identifier: Apache-2.0

package format

import (
	"frail/bpf"
	"frail/tracer/syscalls"
	"frail/tracer/syscalls/decode"
)

// thread names a thread, or the vCPU of a thread that is not known.
type thread struct {
	vm, vcpu uint32
	task     uint64
	pid      int32
}

func threadOf(ev *bpf.Event) thread {
	if ev.Identified() {
		return thread{vm: ev.Vm, task: ev.Task, pid: ev.Pid}
	}
	return thread{vm: ev.Vm, vcpu: ev.Vcpu}
}

// maxThreads bounds how many threads are remembered.
const maxThreads = 1 << 16

// callOf returns the call that an event is of, with the event's arguments.
func callOf(ev *bpf.Event) decode.Call {
	t := syscalls.Table(ev.Table())
	return decode.Call{Table: t, Nr: nr(ev, t), Args: ev.Args}
}

// decoder decodes events in their order. The zero value is ready.
type decoder struct {
	call decode.Call
	// pieces are what the arguments of the event point to that is decoded now.
	pieces []decode.Piece
	// waiting are the arguments of calls whose return value is shown according to them.
	waiting map[thread][6]uint64
}

// appendArgs appends the arguments of an enter.
func (d *decoder) appendArgs(dst []byte, ev *bpf.Event) []byte {
	d.call = callOf(ev)
	d.call.Pieces = d.pieces
	dst = d.call.AppendArgs(dst)
	if ev.Identified() && decode.ReturnNeedsArgs(d.call.Table, d.call.Nr) {
		if d.waiting == nil || len(d.waiting) == maxThreads {
			d.waiting = make(map[thread][6]uint64)
		}
		d.waiting[threadOf(ev)] = d.call.Args
	}
	return dst
}

// appendReturn appends the known return value of an exit.
func (d *decoder) appendReturn(dst []byte, ev *bpf.Event) []byte {
	d.call = callOf(ev)
	if decode.ReturnNeedsArgs(d.call.Table, d.call.Nr) {
		key := threadOf(ev)
		d.call.Args = d.waiting[key]
		delete(d.waiting, key)
	}
	return d.call.AppendReturn(dst, returned(ev))
}

// appendLeft appends what the call of an exit left where its arguments point to: nothing if
// that is not known.
func (d *decoder) appendLeft(dst []byte, ev *bpf.Event) []byte {
	if len(d.pieces) == 0 {
		return dst
	}
	d.call = callOf(ev)
	d.call.Pieces = d.pieces
	return d.call.AppendLeft(dst)
}

// with returns what appendEvent appends while d has what the arguments of data point to.
func (d *decoder) with(data *bpf.Data, dst []byte, appendEvent func(dst []byte, ev *bpf.Event) []byte) []byte {
	data.Pieces(func(p bpf.Piece, bytes []byte) {
		d.pieces = append(d.pieces, decode.Piece{
			Arg: int(p.Arg), Kind: p.Kind, Bytes: bytes, Cut: p.Flags&bpf.PieceCut != 0, Fault: p.Flags&bpf.PieceFault != 0,
		})
	})
	dst = appendEvent(dst, &data.Head)
	d.pieces = d.pieces[:0]
	return dst
}

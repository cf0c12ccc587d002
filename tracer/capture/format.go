// SPDX-License-Identifier: Apache-2.0

package capture

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"

	"frail/bpf"
	"frail/tracer"
)

const (
	// Version of the format. A newer one is refused.
	Version = 3
	// versionNoProcess, which is read too, does not say who the threads are.
	versionNoProcess = 2
	// versionNoRet, likewise, is from before [bpf.EventRet] too: every return's value was
	// known.
	versionNoRet = 1

	fileMagic  = "FRAILCAP"
	blockMagic = 0x4b4c4246 // "FBLK"
	indexMagic = 0x58444946 // "FIDX"

	// blockEvents is how many events a block holds at most: half a second of a busy guest.
	blockEvents = 1 << 16
	// blockBytes is how large the records of a block may become before it is closed.
	blockBytes = 4 << 20
	// maxPayload bounds what is read of a block, compressed or not.
	maxPayload = 16 << 20
	// maxHeader bounds the JSON that describes the capture.
	maxHeader = 64 << 10
	// maxBlocks bounds an index: 2^16 events each.
	maxBlocks = 1 << 24
	// maxThreads bounds the threads of one block.
	maxThreads = blockEvents

	headSize = 40
)

// ErrCorrupt is in the chain of errors about a file that is damaged in its middle.
var ErrCorrupt = errors.New("corrupt capture")

var crcTable = crc32.MakeTable(crc32.Castagnoli)

// blockHead stands before each block, little endian.
type blockHead struct {
	magic       uint32
	size        uint32 // of the payload
	crc         uint32 // of the rest of the head and the payload
	events      uint32
	raw         uint32 // size of the payload when decompressed
	first, last uint64 // times
}

func (h *blockHead) put(b []byte) {
	binary.LittleEndian.PutUint32(b[0:], h.magic)
	binary.LittleEndian.PutUint32(b[4:], h.size)
	binary.LittleEndian.PutUint32(b[8:], h.crc)
	binary.LittleEndian.PutUint32(b[12:], h.events)
	binary.LittleEndian.PutUint32(b[16:], h.raw)
	binary.LittleEndian.PutUint32(b[20:], 0)
	binary.LittleEndian.PutUint64(b[24:], h.first)
	binary.LittleEndian.PutUint64(b[32:], h.last)
}

func (h *blockHead) get(b []byte) {
	h.magic = binary.LittleEndian.Uint32(b[0:])
	h.size = binary.LittleEndian.Uint32(b[4:])
	h.crc = binary.LittleEndian.Uint32(b[8:])
	h.events = binary.LittleEndian.Uint32(b[12:])
	h.raw = binary.LittleEndian.Uint32(b[16:])
	h.first = binary.LittleEndian.Uint64(b[24:])
	h.last = binary.LittleEndian.Uint64(b[32:])
}

// sum returns the checksum of a block whose head is in b.
func sum(b, payload []byte) uint32 {
	return crc32.Update(crc32.Checksum(b[12:headSize], crcTable), crcTable, payload)
}

// Kinds of records in a block.
const (
	recEvent   = 0 // of a thread known in the block
	recThread  = 1 // the same, after what is to be known of the thread
	recLost    = 2
	recProcess = 3 // who a thread is
)

// noArgs, in place of the arguments' bits, is an exit, which has none.
const noArgs = 1 << 7

// identity is what the events of a thread have in common.
type identity struct {
	task, cr3, who uint64
	vm             uint32
	pid, tgid      int32
	comm           [bpf.CommLen]byte
}

func identityOf(ev *bpf.Event) identity {
	return identity{ev.Task, ev.Cr3, ev.Who, ev.Vm, ev.Pid, ev.Tgid, ev.Comm}
}

func (id *identity) append(b []byte) []byte {
	b = binary.AppendUvarint(b, id.task)
	b = binary.AppendUvarint(b, id.cr3)
	b = binary.AppendUvarint(b, uint64(id.vm))
	b = binary.AppendVarint(b, int64(id.pid))
	b = binary.AppendVarint(b, int64(id.tgid))
	b = append(b, id.comm[:]...)
	return binary.AppendUvarint(b, id.who)
}

// last is what an event is told relative to: the thread's event before.
type last struct {
	id     identity
	ip, sp uint64
	args   [6]uint64
}

// codec is what writer and reader of a block keep alike.
type codec struct {
	time    uint64
	threads []last
}

func (c *codec) reset() {
	c.time = 0
	c.threads = c.threads[:0]
}

// described names a description.
type described struct {
	vm  uint32
	who uint64
}

// encoder writes the records of a block.
type encoder struct {
	codec
	index map[identity]uint32
	// processes are those that the capture was told of, described those of the block.
	processes tracer.Processes
	described map[described]struct{}
	// recent is the thread of the event before: most often also that of the next.
	recent uint32
	buf    []byte
	events uint32
	first  uint64
	latest uint64
}

func newEncoder() encoder {
	return encoder{index: make(map[identity]uint32), described: make(map[described]struct{})}
}

func (e *encoder) reset() {
	e.codec.reset()
	clear(e.index)
	clear(e.described)
	e.buf = e.buf[:0]
	e.events, e.recent = 0, 0
}

func (e *encoder) stamp(t uint64) {
	if e.events == 0 {
		e.first = t
	}
	e.events++
	e.latest = t
	e.buf = binary.AppendVarint(e.buf, int64(t-e.time))
	e.time = t
}

func (e *encoder) event(ev *bpf.Event) {
	id := identityOf(ev)
	n := e.recent
	if n >= uint32(len(e.threads)) || e.threads[n].id != id {
		var known bool
		if n, known = e.index[id]; !known {
			n = uint32(len(e.threads))
			e.index[id] = n
			e.threads = append(e.threads, last{id: id})
			e.describe(ev)
			e.buf = id.append(append(e.buf, recThread))
		} else {
			e.buf = binary.AppendUvarint(append(e.buf, recEvent), uint64(n))
		}
		e.recent = n
	} else {
		e.buf = binary.AppendUvarint(append(e.buf, recEvent), uint64(n))
	}
	e.stamp(ev.Time)
	l := &e.threads[n]
	b := append(e.buf, byte(ev.Kind), byte(ev.Insn))
	b = binary.AppendUvarint(b, uint64(ev.Flags))
	b = binary.AppendUvarint(b, uint64(ev.Vcpu))
	b = binary.AppendVarint(b, ev.Nr)
	b = binary.AppendVarint(b, ev.Ret)
	b = binary.AppendVarint(b, int64(ev.Ip-l.ip))
	b = binary.AppendVarint(b, int64(ev.Sp-l.sp))
	l.ip, l.sp = ev.Ip, ev.Sp
	// A bit for each argument that is another than in the thread's event before.
	at := len(b)
	b = append(b, 0)
	if ev.Kind == bpf.EventExit && ev.Args == ([6]uint64{}) {
		b[at] = noArgs
		e.buf = b
		return
	}
	for i, arg := range ev.Args {
		if arg != l.args[i] {
			b[at] |= 1 << i
			b = binary.AppendUvarint(b, arg)
			l.args[i] = arg
		}
	}
	e.buf = b
}

// describe writes who made an event, once in each block, which stands for itself.
func (e *encoder) describe(ev *bpf.Event) {
	p := e.processes.Of(ev)
	if p == nil {
		return
	}
	key := described{ev.Vm, ev.Who}
	if _, ok := e.described[key]; ok {
		return
	}
	e.described[key] = struct{}{}
	id := identityOf(&p.Head)
	e.buf = id.append(append(e.buf, recProcess))
	e.stamp(ev.Time)
	b := binary.AppendUvarint(e.buf, p.Start)
	b = binary.AppendUvarint(b, uint64(p.Known))
	b = binary.AppendVarint(b, int64(p.Ppid))
	b = binary.AppendVarint(b, int64(p.NsPid))
	for _, id := range []uint32{p.Uid, p.Gid, p.Euid, p.Egid} {
		b = binary.AppendUvarint(b, uint64(id))
	}
	for _, path := range [][]byte{p.ExeBytes(), p.CgroupBytes()} {
		b = binary.AppendUvarint(b, uint64(len(path)))
		b = append(b, path...)
	}
	e.buf = b
}

func (e *encoder) lost(l tracer.Lost) {
	e.buf = append(e.buf, recLost)
	e.stamp(l.Time)
	e.buf = binary.AppendUvarint(e.buf, l.RingFull)
	e.buf = binary.AppendUvarint(e.buf, l.ReadFault)
	e.buf = binary.AppendUvarint(e.buf, l.Recursion)
}

// decoder reads the records of a block. Its input is checked by a checksum, and not
// trusted all the same.
type decoder struct {
	codec
	buf       []byte
	left      uint32
	bad       bool
	noProcess bool // of a file of versionNoProcess
}

func (d *decoder) identity() (id identity) {
	id.task, id.cr3 = d.uvarint(), d.uvarint()
	id.vm = uint32(d.uvarint())
	id.pid, id.tgid = int32(d.varint()), int32(d.varint())
	copy(id.comm[:], d.take(len(id.comm)))
	if !d.noProcess {
		id.who = d.uvarint()
	}
	return id
}

func (d *decoder) process(p *bpf.Process) {
	id := d.identity()
	d.time += uint64(d.varint())
	*p = bpf.Process{Head: bpf.Event{
		Time: d.time, Vm: id.vm, Kind: bpf.EventProcess, Flags: bpf.EventIdentity, Cr3: id.cr3, Task: id.task, Who: id.who,
		Pid: id.pid, Tgid: id.tgid, Comm: id.comm,
	}}
	p.Start, p.Known = d.uvarint(), uint32(d.uvarint())
	p.Ppid, p.NsPid = int32(d.varint()), int32(d.varint())
	for _, to := range []*uint32{&p.Uid, &p.Gid, &p.Euid, &p.Egid} {
		*to = uint32(d.uvarint())
	}
	for _, to := range [][]byte{p.Exe[:], p.Cgroup[:]} {
		copy(to, d.take(int(min(d.uvarint(), maxPayload))))
	}
}

func (d *decoder) uvarint() uint64 {
	v, n := binary.Uvarint(d.buf)
	if n <= 0 {
		d.bad = true
		d.buf = nil
		return 0
	}
	d.buf = d.buf[n:]
	return v
}

func (d *decoder) varint() int64 {
	v, n := binary.Varint(d.buf)
	if n <= 0 {
		d.bad = true
		d.buf = nil
		return 0
	}
	d.buf = d.buf[n:]
	return v
}

func (d *decoder) take(n int) []byte {
	if len(d.buf) < n {
		d.bad = true
		d.buf = nil
		return make([]byte, n)
	}
	b := d.buf[:n]
	d.buf = d.buf[n:]
	return b
}

// next reads a record into ev, lost or process, and says which by its kind: recEvent,
// recLost or recProcess.
func (d *decoder) next(ev *bpf.Event, lost *tracer.Lost, process *bpf.Process) (byte, error) {
	d.left--
	kind := d.take(1)[0]
	var n uint64
	switch kind {
	case recLost:
		d.time += uint64(d.varint())
		*lost = tracer.Lost{Time: d.time, Losses: tracer.Losses{
			RingFull: d.uvarint(), ReadFault: d.uvarint(), Recursion: d.uvarint(),
		}}
		return recLost, d.err()
	case recProcess:
		d.process(process)
		return recProcess, d.err()
	case recThread:
		id := d.identity()
		n = uint64(len(d.threads))
		if n < maxThreads {
			d.threads = append(d.threads, last{id: id})
		}
	case recEvent:
		n = d.uvarint()
	default:
		d.bad = true
	}
	if d.bad || n >= uint64(len(d.threads)) {
		return recEvent, fmt.Errorf("%w: bad record", ErrCorrupt)
	}
	d.time += uint64(d.varint())
	l := &d.threads[n]
	two := d.take(2)
	*ev = bpf.Event{
		Time: d.time, Vm: l.id.vm, Kind: uint16(two[0]), Insn: uint16(two[1]), Cr3: l.id.cr3,
		Task: l.id.task, Who: l.id.who, Pid: l.id.pid, Tgid: l.id.tgid, Comm: l.id.comm,
	}
	ev.Flags = uint32(d.uvarint())
	ev.Vcpu = uint32(d.uvarint())
	ev.Nr = d.varint()
	ev.Ret = d.varint()
	l.ip += uint64(d.varint())
	l.sp += uint64(d.varint())
	ev.Ip, ev.Sp = l.ip, l.sp
	mask := d.take(1)[0]
	if mask == noArgs {
		return recEvent, d.err()
	}
	for i := range l.args {
		if mask>>i&1 != 0 {
			l.args[i] = d.uvarint()
		}
	}
	ev.Args = l.args
	return recEvent, d.err()
}

func (d *decoder) err() error {
	if d.bad {
		return fmt.Errorf("%w: bad record", ErrCorrupt)
	}
	return nil
}

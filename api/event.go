// SPDX-License-Identifier: Apache-2.0

package api

import (
	"bytes"

	"frail/bpf"
)

// Batch collects events for one Events message. The zero value is empty.
type Batch struct {
	events [MaxEvents]bpf.Event
	pieces [MaxEvents][]*Piece
	n      int
}

// Len returns how many events the batch holds.
func (b *Batch) Len() int { return b.n }

// Full reports whether the batch takes no more events.
func (b *Batch) Full() bool { return b.n == len(b.events) }

// Add copies ev into the batch, which must not be full. It does not allocate.
func (b *Batch) Add(ev *bpf.Event) {
	b.events[b.n], b.pieces[b.n] = *ev, nil
	b.n++
}

// AddData copies d into the batch, which must not be full.
func (b *Batch) AddData(d *bpf.Data) {
	var pieces []*Piece
	d.Pieces(func(p bpf.Piece, data []byte) {
		pieces = append(pieces, &Piece{Arg: uint32(p.Arg), Kind: uint32(p.Kind), Flags: uint32(p.Flags), Data: bytes.Clone(data)})
	})
	b.events[b.n], b.pieces[b.n] = d.Head, pieces
	b.events[b.n].Flags &^= bpf.EventHasData
	b.n++
}

// Take returns the batch as a message and empties it. It allocates a few times for
// each batch, not for each event: gRPC may keep the message.
func (b *Batch) Take() *TraceResponse {
	msg := &Events{Events: make([]*Event, b.n)}
	events := make([]Event, b.n)
	args := make([]uint64, 0, b.n*len(bpf.Event{}.Args))
	comms := make([]byte, 0, b.n*bpf.CommLen)
	for i := range events {
		from, to := &b.events[i], &events[i]
		msg.Events[i] = to
		to.Time = from.Time
		to.Vm = from.Vm
		to.Vcpu = from.Vcpu
		to.Kind = uint32(from.Kind)
		to.Insn = uint32(from.Insn)
		to.Flags = from.Flags
		to.Nr = from.Nr
		if from.Kind != bpf.EventExit {
			start := len(args)
			args = append(args, from.Args[:]...)
			to.Args = args[start:]
		}
		to.Ret = from.Ret
		to.Ip = from.Ip
		to.Sp = from.Sp
		to.Cr3 = from.Cr3
		to.Task = from.Task
		to.Who = from.Who
		to.Pid = from.Pid
		to.Tgid = from.Tgid
		start := len(comms)
		comms = append(comms, from.CommBytes()...)
		to.Comm = comms[start:]
		to.Data, b.pieces[i] = b.pieces[i], nil
	}
	b.n = 0
	return &TraceResponse{Record: &TraceResponse_Events{Events: msg}}
}

// Unpack writes the event into ev. Arguments and name beyond what ev has room for are
// left out.
func (x *Event) Unpack(ev *bpf.Event) {
	*ev = bpf.Event{
		Time:  x.GetTime(),
		Vm:    x.GetVm(),
		Vcpu:  x.GetVcpu(),
		Kind:  uint16(x.GetKind()),
		Insn:  uint16(x.GetInsn()),
		Flags: x.GetFlags(),
		Nr:    x.GetNr(),
		Ret:   x.GetRet(),
		Ip:    x.GetIp(),
		Sp:    x.GetSp(),
		Cr3:   x.GetCr3(),
		Task:  x.GetTask(),
		Who:   x.GetWho(),
		Pid:   x.GetPid(),
		Tgid:  x.GetTgid(),
	}
	copy(ev.Args[:], x.GetArgs())
	copy(ev.Comm[:], x.GetComm())
}

// UnpackData writes the event and what its arguments point to into d. What d has no room for
// is left out.
func (x *Event) UnpackData(d *bpf.Data) {
	x.Unpack(&d.Head)
	d.Head.Flags |= bpf.EventHasData
	d.Len, d.Piece = 0, [len(d.Piece)]bpf.Piece{}
	for i, p := range x.GetData() {
		if i == len(d.Piece) {
			break
		}
		n := copy(d.Bytes[d.Len:], p.GetData())
		d.Piece[i] = bpf.Piece{Arg: uint8(p.GetArg()), Kind: uint8(p.GetKind()), Flags: uint16(p.GetFlags()), Len: uint32(n)}
		d.Len += uint32(n)
	}
}

// PackIdentity returns a description of a thread as a message.
func PackIdentity(p *bpf.Process) *TraceResponse {
	return &TraceResponse{Record: &TraceResponse_Identity{Identity: &Identity{
		Time: p.Head.Time, Vm: p.Head.Vm, Task: p.Head.Task, Who: p.Head.Who, Pid: p.Head.Pid, Tgid: p.Head.Tgid,
		Comm: bytes.Clone(p.Head.CommBytes()), Start: p.Start, Known: p.Known, Ppid: p.Ppid, NsPid: p.NsPid,
		Uid: p.Uid, Gid: p.Gid, Euid: p.Euid, Egid: p.Egid,
		Exe: bytes.Clone(p.ExeBytes()), Cgroup: bytes.Clone(p.CgroupBytes()), Cr3: p.Head.Cr3,
	}}}
}

// Unpack writes the description into p. What p has no room for is left out.
func (x *Identity) Unpack(p *bpf.Process) {
	*p = bpf.Process{
		Head: bpf.Event{
			Time: x.GetTime(), Vm: x.GetVm(), Kind: bpf.EventProcess, Flags: bpf.EventIdentity,
			Cr3: x.GetCr3(), Task: x.GetTask(), Who: x.GetWho(), Pid: x.GetPid(), Tgid: x.GetTgid(),
		},
		Start: x.GetStart(), Known: x.GetKnown(), Ppid: x.GetPpid(), NsPid: x.GetNsPid(),
		Uid: x.GetUid(), Gid: x.GetGid(), Euid: x.GetEuid(), Egid: x.GetEgid(),
	}
	copy(p.Head.Comm[:], x.GetComm())
	copy(p.Exe[:], x.GetExe())
	copy(p.Cgroup[:], x.GetCgroup())
}

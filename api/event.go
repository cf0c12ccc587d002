// SPDX-License-Identifier: Apache-2.0

package api

import (
	"bytes"

	"frail/bpf"
)

// Batch collects events for one Events message. The zero value is empty.
type Batch struct {
	events [MaxEvents]bpf.Event
	n      int
}

// Len returns how many events the batch holds.
func (b *Batch) Len() int { return b.n }

// Full reports whether the batch takes no more events.
func (b *Batch) Full() bool { return b.n == len(b.events) }

// Add copies ev into the batch, which must not be full. It does not allocate.
func (b *Batch) Add(ev *bpf.Event) {
	b.events[b.n] = *ev
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

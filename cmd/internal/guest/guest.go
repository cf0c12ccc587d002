// SPDX-License-Identifier: Apache-2.0

// Package guest reads what fraild and frail --qmp tell of a guest's inside: its processes,
// its kernel's layout and its kernel's log, in the messages of package api.
package guest

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"frail/api"
	"frail/qmp"
	"frail/qmp/layout"
)

const (
	// maxMessage is how large a message may become before it is sent: a process has at most
	// 16 KiB beside its threads, a log record 64 KiB, and gRPC's limit is 4 MiB.
	maxMessage = 256 << 10

	// maxThreads is how many threads of a process go into a message.
	maxThreads = 4096

	// tries is how often a list of processes is read that changes meanwhile.
	tries = 5
)

// Guest is a guest whose kernel is known.
type Guest struct {
	Memory *qmp.Memory
	Layout *layout.Layout
}

// Processes sends the guest's processes. The request's domain is not looked at.
func (g *Guest) Processes(ctx context.Context, req *api.ProcessesRequest, send func(*api.ProcessesResponse) error) error {
	var (
		processes []layout.Process
		err       error
	)
	for range tries {
		if processes, err = g.Layout.Processes(ctx, g.Memory); err == nil || ctx.Err() != nil {
			break
		}
	}
	if err != nil {
		return err
	}
	out := new(api.ProcessesResponse)
	size := 0
	add := func(p *api.Process) error {
		out.Processes = append(out.Processes, p)
		if size += proto.Size(p); size < maxMessage {
			return nil
		}
		full := out
		out, size = new(api.ProcessesResponse), 0
		return send(full)
	}
	for i := range processes {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("read arguments: %w", err)
		}
		for _, p := range g.process(&processes[i], req.GetArguments(), req.GetThreads()) {
			if err := add(p); err != nil {
				return err
			}
		}
	}
	if len(out.GetProcesses()) == 0 {
		return nil
	}
	return send(out)
}

// process returns the messages that describe p.
func (g *Guest) process(p *layout.Process, arguments, threads bool) []*api.Process {
	m := &api.Process{
		Pid: p.PID, Parent: p.Parent, Comm: []byte(p.Comm), KernelThread: p.KernelThread, StartNano: int64(p.Start),
		Uid: p.UID, Gid: p.GID, Euid: p.EUID,
		Exe: []byte(p.Exe.Path), ExeDeleted: p.Exe.Deleted, ExeMemory: p.Exe.Memory,
		NamespacePid: p.NamespacePID, PidNamespace: p.PIDNamespace, MntNamespace: p.MountNamespace,
		Cgroup: []byte(p.Cgroup), ContainerRuntime: p.Container.Runtime, ContainerId: []byte(p.Container.ID),
		ThreadCount: uint32(len(p.Threads)),
	}
	if p.State != 0 {
		m.State = string(p.State)
	}
	unknown := func(field string, err error) {
		if m.Unknown == nil {
			m.Unknown = make(map[string]string)
		}
		m.Unknown[field] = strings.ToValidUTF8(err.Error(), "\ufffd")
	}
	for field, err := range p.Unknown {
		unknown(string(field), err)
	}
	if arguments {
		args, whole, err := g.Layout.Arguments(g.Memory, p)
		if err != nil {
			unknown("arguments", err)
		}
		for _, a := range args {
			m.Arguments = append(m.Arguments, []byte(a))
		}
		m.ArgumentsCut = err == nil && !whole
	}
	out := []*api.Process{m}
	if !threads {
		return out
	}
	for part := range slices.Chunk(p.Threads, maxThreads) {
		to := m
		if len(m.GetThreads()) > 0 {
			to = &api.Process{Pid: p.PID, Continued: true}
			out = append(out, to)
		}
		for _, t := range part {
			to.Threads = append(to.Threads, &api.GuestThread{Tid: t.TID, Comm: []byte(t.Comm), State: string(t.State)})
		}
	}
	return out
}

// KernelLog sends what is in the log of the guest's kernel.
func (g *Guest) KernelLog(ctx context.Context, send func(*api.KernelLogResponse) error) error {
	out := new(api.KernelLogResponse)
	size := 0
	for rec, err := range g.Layout.KernelLog(ctx, g.Memory) {
		if err != nil {
			return err
		}
		m := &api.LogRecord{
			Seq: rec.Seq, Nano: int64(rec.Time), Facility: uint32(rec.Facility), Level: uint32(rec.Level),
			Caller: rec.Caller, InInterrupt: rec.InInterrupt, Text: []byte(rec.Text),
		}
		out.Records = append(out.Records, m)
		if size += proto.Size(m); size < maxMessage {
			continue
		}
		if err := send(out); err != nil {
			return err
		}
		out, size = new(api.KernelLogResponse), 0
	}
	if len(out.GetRecords()) == 0 {
		return nil
	}
	return send(out)
}

// Describe describes the layout and the way to the guest's memory.
func (g *Guest) Describe() *api.GuestLayout {
	l := g.Layout
	m := &api.GuestLayout{
		Release: strings.ToValidUTF8(l.Release, "\ufffd"), BuildId: l.BuildID, Found: string(l.Source), Anchored: l.Anchored,
		Kaslr: l.KASLR, PhysBase: l.PhysBase, PageTable: l.PageTable, Levels: uint32(l.Levels),
		DirectMap: l.DirectMap, DirectMapSize: l.DirectMapSize, Lstar: l.LSTAR, InitTask: l.InitTask,
		CurrentTask: l.CurrentTask, Symbols: uint32(l.NumSymbols()), MemoryPath: string(g.Memory.Path()),
	}
	if slow := g.Memory.SlowReason(); slow != nil {
		m.MemorySlowReason = strings.ToValidUTF8(slow.Error(), "\ufffd")
	}
	for _, r := range g.Memory.Ranges() {
		m.MemoryBytes += r.Size
	}
	for _, s := range []struct {
		name string
		time time.Duration
	}{{"find", l.Timing.Find}, {"symbols", l.Timing.Symbols}, {"types", l.Timing.Types}, {"checks", l.Timing.Checks}} {
		m.Steps = append(m.Steps, &api.LayoutStep{Name: s.name, Nano: int64(s.time)})
	}
	const intSize, pointerSize, commSize = 4, 8, 16
	members := map[string]layout.Member{
		"task_struct.pid":   {Offset: l.TaskPID, Size: intSize},
		"task_struct.tgid":  {Offset: l.TaskTGID, Size: intSize},
		"task_struct.comm":  {Offset: l.TaskComm, Size: commSize},
		"task_struct.stack": {Offset: l.TaskStack, Size: pointerSize},
		"thread_union":      {Size: l.ThreadSize},
		"pt_regs":           {Size: l.PtRegsSize},
		"pt_regs.ax":        {Offset: l.PtRegsAx, Size: pointerSize},
		"pt_regs.orig_ax":   {Offset: l.PtRegsOrigAx, Size: pointerSize},
	}
	maps.Insert(members, l.Members())
	for _, name := range slices.Sorted(maps.Keys(members)) {
		m.Members = append(m.Members, &api.LayoutMember{Name: name, Offset: members[name].Offset, Size: members[name].Size})
	}
	return m
}

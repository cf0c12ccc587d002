// SPDX-License-Identifier: Apache-2.0

package layout

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"slices"
	"strings"
	"time"

	"frail/qmp/container"
)

const (
	// processesTimeout bounds Processes where ctx does not: on the slowest path to
	// memory a process takes some 50 ms.
	processesTimeout = time.Minute

	// maxProcesses bounds the processes that Processes lists.
	maxProcesses = 1 << 16

	// maxText bounds the paths and names of one listing together.
	maxText = 16 << 20

	// maxTaskSpan bounds the part of a task_struct that is read: all of it has
	// some 14 KiB with every debugging option.
	maxTaskSpan = 32 << 10

	// taskBatch is how many tasks are read at a time, of up to maxTaskSpan each.
	taskBatch = 256

	// taskRounds is how often a process is read that changes meanwhile.
	taskRounds = 3

	// maxPath bounds a path, and maxPathParts the directories and mounts it leads
	// through: PATH_MAX, of names of a byte and a slash.
	maxPath      = 4096
	maxPathParts = maxPath / 2

	// maxName bounds a name in a path: NAME_MAX.
	maxName = 255

	// maxLevel bounds how deep pid namespaces are nested: MAX_PID_NS_LEVEL.
	maxLevel = 32

	// maxHierarchies bounds the hierarchies of control groups: of version 1, each of
	// some 15 controllers may have its own.
	maxHierarchies = 64

	// kernelThread is PF_KTHREAD of task_struct.flags.
	kernelThread = 0x00200000
)

// errChanged says that a process changed what is asked for each time it was read.
var errChanged = errors.New("it changed while it was read")

// Field names what Processes may not come to know of a process.
type Field string

// The fields, by the members of Process that they fill.
const (
	FieldState        Field = "state"         // State
	FieldKernelThread Field = "kernel_thread" // KernelThread
	FieldStart        Field = "start"         // Start
	FieldParent       Field = "parent"        // Parent
	FieldCredentials  Field = "credentials"   // UID, GID, EUID
	FieldPIDNamespace Field = "pid_namespace" // NamespacePID, PIDNamespace
	FieldMountNS      Field = "mnt_namespace" // MountNamespace
	FieldCgroup       Field = "cgroup"        // Cgroup, Container
	FieldExe          Field = "exe"           // Exe
	FieldThreads      Field = "threads"       // Threads
)

// Process is a process of the guest. What is not known is zero and its field is in
// Unknown.
type Process struct {
	// Addr is the address of its first thread's struct task_struct.
	Addr uint64

	// PID is its id in the guest's initial pid namespace.
	PID int32

	// Parent is the id of the process that made it, or that took it over; 0 if
	// that is the kernel.
	Parent int32

	// Comm is the name of its first thread, at most 15 bytes of anything but NUL.
	Comm string

	// State is its first thread's state, by the letter that ps(1) shows.
	State byte

	// KernelThread says that it runs no program.
	KernelThread bool

	// Start is when it started, as time since the guest's boot, in which time
	// spent suspended counts.
	Start time.Duration

	// UID, GID and EUID are its real and effective ids in the guest's initial
	// user namespace.
	UID, GID, EUID uint32

	// Exe is the program that it runs; empty for kernel threads and zombies.
	Exe Executable

	// NamespacePID is its id in its own pid namespace. PIDNamespace and
	// MountNamespace are the inode numbers of namespaces, 0 for zombies that have
	// none any more.
	NamespacePID                 int32
	PIDNamespace, MountNamespace uint32

	// Cgroup is its control group: where hierarchies differ, the one with the longest
	// path, which is a container's if it is in one.
	Cgroup string

	// Container is what Cgroup says of the container it runs in.
	Container container.Container

	// Threads are its threads, the first one too.
	Threads []Thread

	// Unknown says why fields could not be read; nil: all were.
	Unknown map[Field]error

	mm uint64
}

// Thread is a thread of a process.
type Thread struct {
	// TID is its id in the guest's initial pid namespace.
	TID   int32
	Comm  string
	State byte
}

// Executable is the file that a process runs.
type Executable struct {
	// Path is its path from the root of its mount namespace, or the name that its
	// maker gave it if it never had a path.
	Path string

	// Deleted says that the path does not lead to it any more, or never did.
	Deleted bool

	// Memory says that it is a memfd, which exists in memory only.
	Memory bool
}

// String returns the path as the guest's own /proc/PID/exe shows it.
func (e Executable) String() string {
	if e.Deleted {
		return e.Path + " (deleted)"
	}
	return e.Path
}

// Processes lists the guest's processes in the order in which they started, kernel
// threads included. mem is the guest's physical memory.
//
// The guest runs meanwhile. Each process is what it was at one moment, but not all at the
// same: what changed while it was read is read again, and unknown after a few times.
// A list of processes that leads nowhere is an error, and a second try may succeed.
func (l *Layout) Processes(ctx context.Context, mem io.ReaderAt) ([]Process, error) {
	ctx, cancel := context.WithTimeout(ctx, processesTimeout)
	defer cancel()
	tables := newSpace(mem, l.PageTable, l.Levels)
	var leaders []uint64
	for leader, err := range walk(ctx, tables, l.InitTask+uint64(l.tasks.tasks), l.tasks.tasks) {
		if err == nil && len(leaders) >= maxProcesses {
			err = fmt.Errorf("more than %d", maxProcesses)
		}
		if err != nil {
			return nil, fmt.Errorf("list processes: %w", err)
		}
		leaders = append(leaders, leader)
	}
	span, err := l.taskSpan()
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	r := &processReader{l: l, mem: mem, sp: tables, span: span, threads: maxTasks, text: maxText}
	out := make([]Process, 0, len(leaders))
	for batch := range slices.Chunk(leaders, taskBatch) {
		if out, err = r.appendBatch(ctx, out, batch); err != nil {
			return nil, fmt.Errorf("list processes: %w", err)
		}
	}
	return out, nil
}

// taskSpan is the part of a task_struct that holds all that is read of it.
type taskSpan struct{ start, end uint32 }

func (l *Layout) taskSpan() (taskSpan, error) {
	s := taskSpan{start: l.TaskPID, end: l.TaskPID + 4}
	add := func(offset, size uint32) {
		s.start, s.end = min(s.start, offset), max(s.end, offset+size)
	}
	add(l.TaskTGID, 4)
	add(l.TaskComm, commLen)
	add(l.tasks.tasks, 16)
	add(l.tasks.signal, 8)
	for name, m := range l.members {
		if strings.HasPrefix(name, "task_struct.") {
			add(m.Offset, m.Size)
		}
	}
	if s.end-s.start > maxTaskSpan {
		return s, fmt.Errorf("members of task_struct lie from %d to %d", s.start, s.end)
	}
	return s, nil
}

// processReader reads processes in three steps: their task_structs, what those lead to,
// and the task_structs again. A pointer that is the same before and after led to what it
// was thought to lead to, because the task held it.
type processReader struct {
	l       *Layout
	mem     io.ReaderAt
	sp      *space
	span    taskSpan
	threads int // that may still be read
	text    int // bytes of paths and names that may still be kept

	// Of one round: what was read and is the same for many processes.
	follow *follower
	paths  map[[2]uint64]Executable
	groups map[uint64]string
}

// task is a part of a task_struct as it was at one moment.
type task struct {
	addr uint64
	span taskSpan
	raw  []byte
}

func (r *processReader) readTask(addr uint64) (task, error) {
	t := task{addr: addr, span: r.span, raw: make([]byte, r.span.end-r.span.start)}
	if err := r.sp.read(t.raw, addr+uint64(r.span.start)); err != nil {
		return t, fmt.Errorf("read task at %#x: %w", addr, err)
	}
	return t, nil
}

func (t task) at(offset, size uint32) []byte {
	return t.raw[offset-t.span.start:][:size]
}

func (t task) number(offset, size uint32) uint64 { return littleEndian(t.at(offset, size)) }

// name returns the task's name.
func (t task) name(l *Layout) string {
	comm, _, _ := strings.Cut(string(t.at(l.TaskComm, commLen)), "\x00")
	return comm
}

// pointers are the members of task_struct that are followed, and what each tells.
var pointers = []struct {
	member string
	field  Field
	read   func(r *processReader, p *Process, va uint64)
}{
	{"task_struct.real_parent", FieldParent, (*processReader).parent},
	{"task_struct.real_cred", FieldCredentials, (*processReader).credentials},
	{"task_struct.thread_pid", FieldPIDNamespace, (*processReader).pidNamespace},
	{"task_struct.nsproxy", FieldMountNS, (*processReader).mountNamespace},
	{"task_struct.cgroups", FieldCgroup, (*processReader).cgroup},
	{"task_struct.mm", FieldExe, (*processReader).executable},
	{signalMember, FieldThreads, (*processReader).threadList},
}

// signalMember is the one member among pointers that is no optional one.
const signalMember = "task_struct.signal"

// pointer returns the member of that name.
func (r *processReader) pointer(t task, name string) (uint64, error) {
	if name == signalMember {
		return t.number(r.l.tasks.signal, 8), nil
	}
	m, ok := r.l.members[name]
	if !ok {
		return 0, fmt.Errorf("the kernel has no %s that is known", name)
	}
	return t.number(m.Offset, m.Size), nil
}

// appendBatch appends the processes whose first threads are at leaders. Those that
// ended since are left out.
func (r *processReader) appendBatch(ctx context.Context, out []Process, leaders []uint64) ([]Process, error) {
	first := len(out)
	found := make(map[uint64]int) // where each is in out
	todo := leaders
	for range taskRounds {
		var tasks []task
		for _, addr := range todo {
			t, err := r.readTask(addr)
			if err != nil {
				return nil, err
			}
			listed, err := r.listed(t)
			if err != nil {
				return nil, err
			}
			if listed {
				tasks = append(tasks, t)
			} else if i, ok := found[addr]; ok {
				out[i].PID = 0
			}
		}
		snap := newSnapshot(r.mem)
		r.follow = &follower{l: r.l, sp: &space{mem: snap, root: r.sp.root, levels: r.sp.levels, tables: r.sp.tables}}
		r.paths = make(map[[2]uint64]Executable)
		r.groups = make(map[uint64]string)
		todo = nil
		for _, t := range tasks {
			if err := ctx.Err(); err != nil {
				return nil, err
			}
			p, err := r.process(t)
			if err != nil {
				return nil, err
			}
			i, ok := found[t.addr]
			if !ok {
				i = len(out)
				found[t.addr] = i
				out = append(out, Process{})
			}
			out[i] = p
		}
		for _, t := range tasks {
			again, err := r.verify(&out[found[t.addr]], t)
			if err != nil {
				return nil, err
			}
			if again {
				todo = append(todo, t.addr)
			}
		}
		if len(todo) == 0 {
			break
		}
	}
	// Those that ended meanwhile have no id.
	batch := slices.DeleteFunc(out[first:], func(p Process) bool { return p.PID == 0 })
	for i := range batch {
		r.text -= len(batch[i].Exe.Path) + len(batch[i].Cgroup)
	}
	if r.text < 0 {
		return nil, fmt.Errorf("more than %d bytes of paths", maxText)
	}
	return out[:first+len(batch)], nil
}

// listed reports whether a task is still on the list of processes: what follows it
// there leads back to it.
func (r *processReader) listed(t task) (bool, error) {
	const next, pointerSize = 0, 8
	after := t.number(r.l.tasks.tasks+next, pointerSize)
	if after < kernelHalf {
		return false, nil // its memory serves something else
	}
	back, err := r.sp.uint64(after + pointerSize)
	if errors.Is(err, errNotMapped) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("read list of tasks at %#x: %w", after, err)
	}
	return back == t.addr+uint64(r.l.tasks.tasks), nil
}

// process reads what a task leads to.
func (r *processReader) process(t task) (Process, error) {
	l := r.l
	const idSize = 4
	pid, tgid := t.number(l.TaskPID, idSize), t.number(l.TaskTGID, idSize)
	if tgid == 0 || tgid > maxPID || pid != tgid {
		return Process{}, fmt.Errorf("task at %#x, first of its process, has pid %d, tgid %d", t.addr, int32(pid), int32(tgid))
	}
	p := Process{Addr: t.addr, PID: int32(tgid), Comm: t.name(l)}

	own := func(name string, field Field) uint64 {
		m, ok := l.members[name]
		if !ok {
			p.unknown(field, fmt.Errorf("the kernel has no %s that is known", name))
			return 0
		}
		return t.number(m.Offset, min(m.Size, 8))
	}
	p.KernelThread = own("task_struct.flags", FieldKernelThread)&kernelThread != 0
	p.Start = time.Duration(own("task_struct.start_boottime", FieldStart))
	running, exit := own("task_struct.__state", FieldState), own("task_struct.exit_state", FieldState)
	if p.Unknown[FieldState] == nil {
		p.State = stateLetter(running, exit)
	}
	if p.Start < 0 {
		p.unknown(FieldStart, fmt.Errorf("it started %d ns after the boot", uint64(p.Start)))
		p.Start = 0
	}

	for _, f := range pointers {
		va, err := r.pointer(t, f.member)
		if err == nil {
			r.follow.err = nil
			f.read(r, &p, va)
			err = r.follow.err
		}
		if err != nil {
			p.unknown(f.field, err)
		}
	}
	return p, nil
}

// verify holds a process against its task_struct, which is read again, and reports
// whether it should be read once more.
func (r *processReader) verify(p *Process, before task) (again bool, err error) {
	now, err := r.readTask(before.addr)
	if err != nil {
		return false, err
	}
	for _, f := range pointers {
		a, err := r.pointer(before, f.member)
		if err != nil {
			continue // the kernel has none
		}
		b, _ := r.pointer(now, f.member)
		if a != b {
			p.forget(f.field)
			p.unknown(f.field, errChanged)
		}
		// What could not be read may have been in the middle of a change, too.
		again = again || p.Unknown[f.field] != nil
	}
	return again, nil
}

// unknown notes why a field is not known.
func (p *Process) unknown(f Field, err error) {
	if p.Unknown == nil {
		p.Unknown = make(map[Field]error)
	}
	p.Unknown[f] = err
}

// forget empties what belongs to a field that is read by a pointer.
func (p *Process) forget(f Field) {
	switch f {
	case FieldParent:
		p.Parent = 0
	case FieldCredentials:
		p.UID, p.GID, p.EUID = 0, 0, 0
	case FieldPIDNamespace:
		p.NamespacePID, p.PIDNamespace = 0, 0
	case FieldMountNS:
		p.MountNamespace = 0
	case FieldCgroup:
		p.Cgroup, p.Container = "", container.Container{}
	case FieldExe:
		p.Exe, p.mm = Executable{}, 0
	case FieldThreads:
		p.Threads = nil
	}
}

// stateLetter is what ps(1) shows for a task_struct's __state and exit_state: the
// kernel's __task_state_index and its letters.
func stateLetter(state, exit uint64) byte {
	const (
		letters         = "RSDTtXZPI"
		reported        = 0x7f
		uninterruptible = 0x2
		idle            = 0x402 // uninterruptible, and no part of the load
		lockWait        = 0x1000
		frozen          = 0x8000
	)
	shown := (state | exit) & reported
	if state&idle == idle {
		shown = reported + 1
	}
	if state&(lockWait|frozen) != 0 {
		shown = uninterruptible
	}
	return letters[bits.Len64(shown)]
}

func (r *processReader) parent(p *Process, va uint64) {
	f := r.follow
	var b [4]byte
	f.read(b[:], va+uint64(r.l.TaskTGID), "the parent's tgid")
	tgid := littleEndian(b[:])
	if tgid > maxPID {
		f.fail(fmt.Errorf("the parent at %#x has the tgid %d", va, tgid))
		return
	}
	p.Parent = int32(tgid)
}

func (r *processReader) credentials(p *Process, va uint64) {
	f := r.follow
	uid, gid, euid := f.number(va, "cred.uid"), f.number(va, "cred.gid"), f.number(va, "cred.euid")
	if f.err == nil {
		p.UID, p.GID, p.EUID = uint32(uid), uint32(gid), uint32(euid)
	}
}

func (r *processReader) pidNamespace(p *Process, va uint64) {
	if va == 0 {
		return // it was reaped
	}
	f := r.follow
	level := f.number(va, "pid.level")
	if level > maxLevel {
		f.fail(fmt.Errorf("pid at %#x is %d namespaces deep", va, level))
		return
	}
	// The last of its numbers is that in its own namespace.
	number := va + uint64(f.member("pid.numbers").Offset) + level*uint64(f.member("upid").Size)
	nr := f.number(number, "upid.nr")
	ns := f.pointer(number, "upid.ns") + uint64(f.member("pid_namespace.ns").Offset)
	inum := f.number(ns, "ns_common.inum")
	if nr > maxPID {
		f.fail(fmt.Errorf("pid at %#x is %d", va, nr))
	}
	if f.err == nil {
		p.NamespacePID, p.PIDNamespace = int32(nr), uint32(inum)
	}
}

func (r *processReader) mountNamespace(p *Process, va uint64) {
	if va == 0 {
		return // it is ending
	}
	f := r.follow
	ns := f.pointer(va, "nsproxy.mnt_ns") + uint64(f.member("mnt_namespace.ns").Offset)
	inum := f.number(ns, "ns_common.inum")
	if f.err == nil {
		p.MountNamespace = uint32(inum)
	}
}

func (r *processReader) threadList(p *Process, va uint64) {
	f := r.follow
	if va < kernelHalf {
		f.fail(fmt.Errorf("%s leads to %#x", signalMember, va))
		return
	}
	var threads []Thread
	for thread, err := range walk(context.Background(), f.sp, va+uint64(r.l.tasks.signalThreads), r.l.tasks.threadNode) {
		if r.threads--; err == nil && r.threads < 0 {
			err = fmt.Errorf("more than %d of all processes", maxTasks)
		}
		if err != nil {
			f.fail(fmt.Errorf("list threads: %w", err))
			return
		}
		t, err := r.l.readTask(f.sp, thread)
		if err == nil && t.TGID != p.PID {
			err = fmt.Errorf("the thread at %#x is of process %d", thread, t.TGID)
		}
		if err != nil {
			f.fail(fmt.Errorf("list threads: %w", err))
			return
		}
		threads = append(threads, Thread{
			TID: t.PID, Comm: t.Comm,
			State: stateLetter(f.number(thread, "task_struct.__state"), f.number(thread, "task_struct.exit_state")),
		})
		if f.err != nil {
			return
		}
	}
	p.Threads = threads
}

func (r *processReader) executable(p *Process, mm uint64) {
	if mm == 0 || p.KernelThread {
		return
	}
	f := r.follow
	p.mm = mm
	file := f.number(mm, "mm_struct.exe_file")
	if f.err != nil || file == 0 {
		return // it has none while it starts
	}
	path := file + uint64(f.member("file.f_path").Offset)
	mnt, dentry := f.pointer(path, "path.mnt"), f.pointer(path, "path.dentry")
	exe := r.path(mnt, dentry)
	if f.err == nil {
		p.Exe = exe
	}
}

// path returns the path of a file: the names from its dentry up to the root of the mount,
// from where that is mounted up to the next root, and so on. It is the kernel's d_path
// without a root to stop at.
func (r *processReader) path(vfsmount, dentry uint64) Executable {
	f := r.follow
	key := [2]uint64{vfsmount, dentry}
	if exe, ok := r.paths[key]; ok {
		return exe
	}
	parent := f.pointer(dentry, "dentry.d_parent")
	root := f.pointer(vfsmount, "vfsmount.mnt_root")
	var exe Executable
	switch {
	case f.err != nil:
		return exe
	case dentry == parent && dentry != root:
		// It was made without a place in a file system.
		const memory = "memfd:"
		name := r.dentryName(dentry)
		exe = Executable{Path: "/" + name, Deleted: true, Memory: strings.HasPrefix(name, memory)}
	default:
		hash := dentry + uint64(f.member("dentry.d_hash").Offset)
		exe.Deleted = f.number(hash, "hlist_bl_node.pprev") == 0 && dentry != parent
		exe.Path = r.mountedPath(vfsmount-uint64(f.member("mount.mnt").Offset), dentry)
	}
	if f.err == nil {
		r.paths[key] = exe
	}
	return exe
}

func (r *processReader) mountedPath(mount, dentry uint64) string {
	f := r.follow
	var names []string
	length := 0
	for range maxPathParts {
		root := f.pointer(mount+uint64(f.member("mount.mnt").Offset), "vfsmount.mnt_root")
		if dentry == root {
			above := f.pointer(mount, "mount.mnt_parent")
			if f.err != nil {
				return ""
			}
			if above == mount {
				slices.Reverse(names)
				return "/" + strings.Join(names, "/")
			}
			mount, dentry = above, f.pointer(mount, "mount.mnt_mountpoint")
			continue
		}
		parent := f.pointer(dentry, "dentry.d_parent")
		name := r.dentryName(dentry)
		switch {
		case f.err != nil:
			return ""
		case parent == dentry:
			f.fail(fmt.Errorf("the path of dentry %#x leaves its mount", dentry))
			return ""
		case name == "" || strings.ContainsAny(name, "/\x00"):
			f.fail(fmt.Errorf("a directory is called %q", name))
			return ""
		}
		if length += 1 + len(name); length > maxPath {
			f.fail(fmt.Errorf("the path is longer than %d bytes", maxPath))
			return ""
		}
		names = append(names, name)
		dentry = parent
	}
	f.fail(fmt.Errorf("the path has no root within %d directories", maxPathParts))
	return ""
}

func (r *processReader) dentryName(dentry uint64) string {
	f := r.follow
	qstr := dentry + uint64(f.member("dentry.d_name").Offset)
	n := f.number(qstr, "qstr.len")
	if n > maxName {
		f.fail(fmt.Errorf("the name of dentry %#x has %d bytes", dentry, n))
		return ""
	}
	name := make([]byte, n)
	f.read(name, f.pointer(qstr, "qstr.name"), "the name of a dentry")
	return string(name)
}

func (r *processReader) cgroup(p *Process, set uint64) {
	f := r.follow
	unified := f.pointer(set, "css_set.dfl_cgrp")
	longest := r.groupPath(unified)
	// What the set links to has the groups in the hierarchies of version 1, too.
	head, node := set+uint64(f.member("css_set.cgrp_links").Offset), uint64(f.member("cgrp_cset_link.cgrp_link").Offset)
	at := f.pointer(head, "list_head.next")
	for n := 0; f.err == nil && at != head; n++ {
		if n == maxHierarchies {
			f.fail(fmt.Errorf("it is in more than %d hierarchies of control groups", maxHierarchies))
			break
		}
		if group := f.pointer(at-node, "cgrp_cset_link.cgrp"); group != unified {
			if path := r.groupPath(group); len(path) > len(longest) {
				longest = path
			}
		}
		at = f.pointer(at, "list_head.next")
	}
	if f.err == nil {
		p.Cgroup, p.Container = longest, container.Of(longest)
	}
}

// groupPath returns the path of a control group from the root of its hierarchy.
func (r *processReader) groupPath(cgroup uint64) string {
	f := r.follow
	node := f.pointer(cgroup, "cgroup.kn")
	if path, ok := r.groups[node]; ok {
		return path
	}
	var names []string
	length := 0
	for at := node; f.err == nil; {
		parent := f.number(at, "kernfs_node.__parent")
		if parent == 0 {
			break
		}
		name := f.cstring(f.pointer(at, "kernfs_node.name"), maxName, "a control group's name")
		if name == "" || strings.Contains(name, "/") {
			f.fail(fmt.Errorf("a control group is called %q", name))
		}
		if length += 1 + len(name); length > maxPath || len(names) >= maxPathParts {
			f.fail(fmt.Errorf("the path of a control group is longer than %d bytes", maxPath))
		}
		names = append(names, name)
		at = parent
	}
	if f.err != nil {
		return ""
	}
	slices.Reverse(names)
	path := "/" + strings.Join(names, "/")
	r.groups[node] = path
	return path
}

// MaxArguments bounds what Arguments reads, in bytes.
const MaxArguments = 4096

// Arguments returns the arguments that a process was started with, as it has them in its own
// memory now, of together at most MaxArguments bytes: whole says whether that is all. It
// fails when the guest has them swapped out or the process ended or runs another program since
// p was listed. Kernel threads and zombies have none.
func (l *Layout) Arguments(mem io.ReaderAt, p *Process) (args []string, whole bool, err error) {
	if p.mm == 0 {
		return nil, true, nil
	}
	kernel := newSpace(mem, l.PageTable, l.Levels)
	f := &follower{l: l, sp: kernel}
	start, end := f.number(p.mm, "mm_struct.arg_start"), f.number(p.mm, "mm_struct.arg_end")
	pgd := f.pointer(p.mm, "mm_struct.pgd")
	if f.err == nil && (end < start || end >= kernelHalf) {
		f.fail(fmt.Errorf("they lie from %#x to %#x", start, end))
	}
	if f.err != nil {
		return nil, false, fmt.Errorf("read arguments of process %d: %w", p.PID, f.err)
	}
	root, _, err := kernel.translate(pgd)
	if err != nil {
		return nil, false, fmt.Errorf("read arguments of process %d: %w", p.PID, err)
	}
	raw := make([]byte, min(end-start, MaxArguments))
	own := newSpace(mem, root&pageMask, l.Levels)
	if err := own.read(raw, start); err != nil {
		return nil, false, fmt.Errorf("read arguments of process %d: %w", p.PID, err)
	}
	// The memory was the process's own if it still is.
	pid, err := kernel.uint32(p.Addr + uint64(l.TaskTGID))
	if err == nil && (int32(pid) != p.PID || f.number(p.Addr, "task_struct.mm") != p.mm) {
		err = errChanged
	}
	if err = errors.Join(err, f.err); err != nil {
		return nil, false, fmt.Errorf("read arguments of process %d: %w", p.PID, err)
	}
	whole = end-start <= MaxArguments
	text := strings.TrimSuffix(string(raw), "\x00")
	if text == "" {
		return nil, whole, nil
	}
	return strings.Split(text, "\x00"), whole, nil
}

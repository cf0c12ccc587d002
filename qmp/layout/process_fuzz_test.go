// SPDX-License-Identifier: Apache-2.0

package layout

import (
	"bytes"
	"context"
	"encoding/binary"
	"strings"
	"testing"
	"time"
)

// smallKernel is the memory of a small kernel that a test makes: its image is all there is.
type smallKernel struct {
	l     *Layout
	image []byte
	mem   ram
}

// Where the kernel of newKernel has its structures.
const (
	kernelInit = imageStart + 0x400*iota
	kernelTask
	kernelSignal
	kernelMM
	kernelFile
	kernelDirectory
	kernelRoot
	kernelMount
	kernelCred
	kernelPID
	kernelNamespaces
	kernelGroups
	kernelPrb
	kernelDescs
	kernelInfos
	kernelText
	kernelStrings
	kernelEnd
)

// newKernel returns a kernel with one process and one message, in structures that have
// nothing but what is read.
func newKernel() smallKernel {
	space, image := newImage(nil)
	k := smallKernel{image: image, mem: space.mem.(ram)}
	l := &Layout{PageTable: pgd, Levels: 4, InitTask: kernelInit, members: make(map[string]Member)}
	k.l = l
	ends := make(map[string]uint32)
	for _, m := range optionalMembers {
		if m.member == "" {
			continue
		}
		size := m.size
		switch name := m.structure + "." + m.member; {
		case name == "printk_ringbuffer.desc_ring":
			size = 40
		case name == "printk_ringbuffer.text_data_ring":
			size = 16
		case name == "printk_info.flags":
			size = 1
		case size == 0:
			size = 8
		}
		at := (ends[m.structure] + min(size, 8) - 1) &^ (min(size, 8) - 1)
		l.members[m.structure+"."+strings.Split(m.member, "|")[0]] = Member{Offset: at, Size: size}
		ends[m.structure] = at + size
	}
	l.members["upid"] = Member{Size: 16}
	l.members["prb_desc"] = Member{Size: ends["prb_desc"]}
	l.members["printk_info"] = Member{Size: 64}
	task := (ends["task_struct"] + 7) &^ 7
	l.TaskPID, l.TaskTGID, l.TaskComm, l.tasks.tasks, l.tasks.signal, l.tasks.threadNode = task, task+4, task+8, task+24, task+40, task+48
	l.tasks.signalThreads = 0

	put := func(va uint64, name string, v uint64) {
		m := l.members[name]
		var b [8]byte
		binary.LittleEndian.PutUint64(b[:], v)
		copy(image[va+uint64(m.Offset)-imageStart:][:min(m.Size, 8)], b[:])
	}
	word := func(va, v uint64) { binary.LittleEndian.PutUint64(image[va-imageStart:], v) }
	text := func(at uint64, s string) uint64 {
		copy(image[kernelStrings+at-imageStart:], s)
		return kernelStrings + at
	}
	link := func(a, b uint64) { // a list of two
		word(a, b)
		word(a+8, b)
		word(b, a)
		word(b+8, a)
	}
	link(kernelInit+uint64(l.tasks.tasks), kernelTask+uint64(l.tasks.tasks))
	link(kernelSignal, kernelTask+uint64(l.tasks.threadNode))
	word(kernelTask+uint64(l.TaskPID), 7|7<<32)
	copy(image[kernelTask+uint64(l.TaskComm)-imageStart:], "program")
	word(kernelTask+uint64(l.tasks.signal), kernelSignal)
	put(kernelTask, "task_struct.__state", 1)
	put(kernelTask, "task_struct.real_parent", kernelInit)
	put(kernelTask, "task_struct.start_boottime", 12)
	put(kernelTask, "task_struct.mm", kernelMM)
	put(kernelTask, "task_struct.real_cred", kernelCred)
	put(kernelTask, "task_struct.thread_pid", kernelPID)
	put(kernelTask, "task_struct.nsproxy", kernelNamespaces)
	put(kernelTask, "task_struct.cgroups", kernelGroups)
	put(kernelMM, "mm_struct.pgd", imageStart) // of nothing
	put(kernelMM, "mm_struct.exe_file", kernelFile)
	put(kernelFile, "file.f_path", kernelMount+uint64(l.members["mount.mnt"].Offset))
	word(kernelFile+uint64(l.members["file.f_path"].Offset)+8, kernelFile+0x100)
	for _, d := range []struct {
		at, parent uint64
		name       string
		stringAt   uint64
	}{{kernelFile + 0x100, kernelDirectory, "program", 0}, {kernelDirectory, kernelRoot, "bin", 16}, {kernelRoot, kernelRoot, "/", 32}} {
		put(d.at, "dentry.d_parent", d.parent)
		name := d.at + uint64(l.members["dentry.d_name"].Offset)
		put(name, "qstr.len", uint64(len(d.name)))
		put(name, "qstr.name", text(d.stringAt, d.name))
		hash := d.at + uint64(l.members["dentry.d_hash"].Offset)
		put(hash, "hlist_bl_node.pprev", 1)
	}
	put(kernelMount, "mount.mnt_parent", kernelMount)
	put(kernelMount+uint64(l.members["mount.mnt"].Offset), "vfsmount.mnt_root", kernelRoot)
	put(kernelCred, "cred.uid", 1)
	put(kernelCred, "cred.gid", 2)
	put(kernelCred, "cred.euid", 3)
	number := kernelPID + uint64(l.members["pid.numbers"].Offset)
	put(number, "upid.nr", 7)
	put(number, "upid.ns", kernelPID+0x100)
	put(kernelPID+0x100+uint64(l.members["pid_namespace.ns"].Offset), "ns_common.inum", 21)
	put(kernelNamespaces, "nsproxy.mnt_ns", kernelNamespaces+0x100)
	put(kernelNamespaces+0x100+uint64(l.members["mnt_namespace.ns"].Offset), "ns_common.inum", 22)
	put(kernelGroups, "css_set.dfl_cgrp", kernelGroups+0x100)
	put(kernelGroups+0x100, "cgroup.kn", kernelGroups+0x200)
	put(kernelGroups+0x200, "kernfs_node.__parent", kernelGroups+0x300)
	put(kernelGroups+0x200, "kernfs_node.name", text(48, "group"))
	link(kernelGroups+uint64(l.members["css_set.cgrp_links"].Offset),
		kernelGroups+0x80+uint64(l.members["cgrp_cset_link.cgrp_link"].Offset))
	put(kernelGroups+0x80, "cgrp_cset_link.cgrp", kernelGroups+0x140)
	put(kernelGroups+0x140, "cgroup.kn", kernelGroups+0x240)
	put(kernelGroups+0x240, "kernfs_node.__parent", kernelGroups+0x300)
	put(kernelGroups+0x240, "kernfs_node.name", text(56, "longer"))

	word(kernelPrb, kernelPrb+8)
	descRing := kernelPrb + 8 + uint64(l.members["printk_ringbuffer.desc_ring"].Offset)
	textRing := kernelPrb + 8 + uint64(l.members["printk_ringbuffer.text_data_ring"].Offset)
	put(descRing, "prb_desc_ring.count_bits", 2)
	put(descRing, "prb_desc_ring.descs", kernelDescs)
	put(descRing, "prb_desc_ring.infos", kernelInfos)
	put(descRing, "prb_desc_ring.head_id", 9)
	put(descRing, "prb_desc_ring.tail_id", 9)
	put(textRing, "prb_data_ring.size_bits", 10)
	put(textRing, "prb_data_ring.data", kernelText)
	desc, info := kernelDescs+uint64(l.members["prb_desc"].Size), uint64(kernelInfos+64)
	put(desc, "prb_desc.state_var", 9|stateFinalized<<stateShift)
	lpos := desc + uint64(l.members["prb_desc.text_blk_lpos"].Offset)
	put(lpos, "prb_data_blk_lpos.begin", 1024-8) // it wraps
	put(lpos, "prb_data_blk_lpos.next", 1024+16)
	put(info, "printk_info.seq", 5)
	put(info, "printk_info.text_len", 5)
	put(info, "printk_info.flags", 3<<5)
	word(kernelText, 9)
	copy(image[kernelText+8-imageStart:], "hello")
	return k
}

func TestSmallKernel(t *testing.T) {
	k := newKernel()
	processes, err := k.l.Processes(t.Context(), k.mem)
	if err != nil || len(processes) != 1 {
		t.Fatalf("%d processes, %v", len(processes), err)
	}
	p := processes[0]
	if p.PID != 7 || p.Comm != "program" || p.Exe != (Executable{Path: "/bin/program"}) || p.State != 'S' || p.Start != 12 || p.UID != 1 ||
		p.GID != 2 || p.EUID != 3 || p.NamespacePID != 7 || p.PIDNamespace != 21 || p.MountNamespace != 22 || p.Cgroup != "/longer" ||
		len(p.Threads) != 1 || len(p.Unknown) != 0 {
		t.Errorf("process %+v", p)
	}
	n := 0
	for rec, err := range k.l.readLog(t.Context(), k.mem, kernelPrb) {
		if n++; err != nil || rec != (LogRecord{Seq: 5, Level: 3, Text: "hello"}) {
			t.Errorf("message %+v, %v", rec, err)
		}
	}
	if n != 1 {
		t.Errorf("%d messages", n)
	}
}

// patchLen is the length of a patch: what to do, 16 bits of where, 16 bits of with what.
const patchLen = 5

// withPatches returns the image's structures with patches made one after the other. Inputs that
// are patches are small, so they are quick to make and to minimise, and most of what they
// give is still a kernel.
func withPatches(structures, patches []byte) []byte {
	structures = bytes.Clone(structures)
	for ; len(patches) >= patchLen; patches = patches[patchLen:] {
		at := int(binary.LittleEndian.Uint16(patches[1:])) % (len(structures) - 8)
		value := binary.LittleEndian.Uint16(patches[3:])
		word := structures[at:]
		switch op := patches[0]; op % 4 {
		case 0: // a pointer into the structures
			binary.LittleEndian.PutUint64(word, kernelInit+uint64(value))
		case 1: // a pointer or number not far from what was there
			binary.LittleEndian.PutUint64(word, binary.LittleEndian.Uint64(word)+uint64(int16(value)))
		case 2: // a small number, or one that is as large as can be
			binary.LittleEndian.PutUint64(word, uint64(int16(value)))
		case 3: // a part of a word
			binary.LittleEndian.PutUint16(word[op/4%4*2:], value)
		}
	}
	return structures
}

// fuzzKernel returns a function that makes patches in the small kernel's memory, and seeds
// the corpus with one patch of each structure.
func fuzzKernel(f *testing.F) (smallKernel, func(patches []byte)) {
	k := newKernel()
	structures := k.image[:kernelEnd-imageStart]
	whole := bytes.Clone(structures)
	f.Add([]byte{})
	for at := 0; at < len(whole); at += 0x400 {
		f.Add([]byte{byte(at >> 10), byte(at), byte(at >> 8), 8, 4})
	}
	return k, func(patches []byte) { copy(structures, withPatches(whole, patches)) }
}

// limited fails when what runs meanwhile takes too long for what little it reads.
func limited(t *testing.T) (context.Context, func()) {
	const limit = 5 * time.Second
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	return ctx, func() {
		if ctx.Err() != nil {
			t.Error("a small guest kept the reader busy")
		}
		cancel()
	}
}

func FuzzProcesses(f *testing.F) {
	k, patch := fuzzKernel(f)
	f.Fuzz(func(t *testing.T, patches []byte) {
		patch(patches)
		ctx, done := limited(t)
		defer done()
		processes, err := k.l.Processes(ctx, k.mem)
		if err != nil && processes != nil {
			t.Errorf("%d processes and the error %v", len(processes), err)
		}
		for i := range processes {
			p := &processes[i]
			if len(p.Comm) >= commLen+1 || len(p.Exe.Path) > maxPath || len(p.Cgroup) > maxPath || p.PID <= 0 || p.PID > maxPID {
				t.Errorf("process %+v", p)
			}
			args, _, _ := k.l.Arguments(k.mem, p)
			if n := len(strings.Join(args, " ")); n > MaxArguments {
				t.Errorf("%d bytes of arguments", n)
			}
		}
	})
}

func FuzzKernelLog(f *testing.F) {
	k, patch := fuzzKernel(f)
	f.Fuzz(func(t *testing.T, patches []byte) {
		patch(patches)
		ctx, done := limited(t)
		defer done()
		for rec, err := range k.l.readLog(ctx, k.mem, kernelPrb) {
			if err == nil && (len(rec.Text) > 1<<16 || rec.Level > 7 || rec.Facility > 255) {
				t.Errorf("message %+v", rec)
			}
		}
	})
}

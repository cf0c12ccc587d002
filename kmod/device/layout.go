// SPDX-License-Identifier: Apache-2.0

package device

import (
	"maps"

	"frail/bpf"
	"frail/qmp/layout"
)

// Layout is what the module needs to know of a guest kernel, for [VM.SetLayout].
func Layout(l *layout.Layout) bpf.Layout {
	members := maps.Collect(l.Members())
	offset := func(name string) uint32 {
		if m, ok := members[name]; ok {
			return m.Offset
		}
		return bpf.NoOffset
	}
	return bpf.Layout{
		TaskPid:       l.TaskPID,
		TaskTgid:      l.TaskTGID,
		TaskComm:      l.TaskComm,
		TaskStack:     l.TaskStack,
		StackRegs:     l.ThreadSize - l.StackPadding - l.PtRegsSize,
		RegsAx:        l.PtRegsAx,
		RegsOrigAx:    l.PtRegsOrigAx,
		Lstar:         l.LSTAR,
		CurrentTask:   l.CurrentTask,
		DirectMap:     l.DirectMap,
		DirectMapSize: l.DirectMapSize,
		PhysBase:      l.PhysBase,
		PageTable:     l.PageTable,
		Levels:        uint32(l.Levels),

		TaskMm:          offset("task_struct.mm"),
		TaskRealParent:  offset("task_struct.real_parent"),
		TaskStart:       offset("task_struct.start_boottime"),
		TaskThreadPid:   offset("task_struct.thread_pid"),
		TaskCred:        offset("task_struct.real_cred"),
		TaskCgroups:     offset("task_struct.cgroups"),
		MmExeFile:       offset("mm_struct.exe_file"),
		FilePath:        offset("file.f_path"),
		DentryParent:    offset("dentry.d_parent"),
		DentryName:      offset("dentry.d_name"),
		DentryHash:      offset("dentry.d_hash"),
		MountMnt:        offset("mount.mnt"),
		MountParent:     offset("mount.mnt_parent"),
		MountMountpoint: offset("mount.mnt_mountpoint"),
		CredUid:         offset("cred.uid"),
		CssSetCgroup:    offset("css_set.dfl_cgrp"),
		CssSetLinks:     offset("css_set.cgrp_links"),
		LinkCgroup:      offset("cgrp_cset_link.cgrp"),
		LinkNode:        offset("cgrp_cset_link.cgrp_link"),
		CgroupNode:      offset("cgroup.kn"),
		NodeParent:      offset("kernfs_node.__parent"),
		NodeName:        offset("kernfs_node.name"),
		PidLevel:        offset("pid.level"),
		PidNumbers:      offset("pid.numbers"),
	}
}

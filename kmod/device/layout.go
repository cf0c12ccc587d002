// SPDX-License-Identifier: Apache-2.0

package device

import (
	"frail/bpf"
	"frail/qmp/layout"
)

// Layout is what the module needs to know of a guest kernel, for [VM.SetLayout].
func Layout(l *layout.Layout) bpf.Layout {
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
		PageTable:     l.PageTable,
		Levels:        uint32(l.Levels),
	}
}

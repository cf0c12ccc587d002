// SPDX-License-Identifier: Apache-2.0

package layout

import (
	"context"
	"fmt"
	"io"
	"iter"
)

// maxTasks bounds the threads that Tasks lists: the kernel's own limit on pids
// is four times that, but 128 MiB of task_structs are already hostile.
const maxTasks = 1 << 20

// Task is a thread of the guest.
type Task struct {
	// Addr is the address of its struct task_struct.
	Addr uint64
	// PID and TGID are its thread and process id in the guest's initial pid
	// namespace.
	PID, TGID int32
	// Comm is its name, at most 15 bytes of anything but NUL.
	Comm string
}

// readTask reads the task_struct at va.
func (l *Layout) readTask(sp *space, va uint64) (Task, error) {
	t := Task{Addr: va}
	pid, err := sp.uint32(va + uint64(l.TaskPID))
	if err != nil {
		return t, err
	}
	tgid, err := sp.uint32(va + uint64(l.TaskTGID))
	if err != nil {
		return t, err
	}
	if pid > maxPID || tgid > maxPID {
		return t, fmt.Errorf("task at %#x has pid %d, tgid %d", va, int32(pid), int32(tgid))
	}
	t.PID, t.TGID = int32(pid), int32(tgid)
	t.Comm, err = sp.cstring(va+uint64(l.TaskComm), commLen)
	return t, err
}

// Tasks lists the guest's threads, the idle tasks excepted, in the order in
// which their processes started. The guest changes its lists while they are
// read: a list that leads nowhere is an error, and a second try may succeed.
func (l *Layout) Tasks(ctx context.Context, mem io.ReaderAt) ([]Task, error) {
	sp := newSpace(mem, l.PageTable, l.Levels)
	var out []Task
	seen := make(map[uint64]struct{})
	for leader, err := range walk(ctx, sp, l.InitTask+uint64(l.tasks.tasks), l.tasks.tasks) {
		if err != nil {
			return nil, fmt.Errorf("list processes: %w", err)
		}
		signal, err := sp.uint64(leader + uint64(l.tasks.signal))
		if err != nil {
			return nil, fmt.Errorf("list processes: %w", err)
		}
		for thread, err := range walk(ctx, sp, signal+uint64(l.tasks.signalThreads), l.tasks.threadNode) {
			if err != nil {
				return nil, fmt.Errorf("list threads: %w", err)
			}
			if _, dup := seen[thread]; dup || len(seen) >= maxTasks {
				return nil, fmt.Errorf("list threads: no end after %d", len(seen))
			}
			seen[thread] = struct{}{}
			t, err := l.readTask(sp, thread)
			if err != nil {
				return nil, fmt.Errorf("list threads: %w", err)
			}
			out = append(out, t)
		}
	}
	return out, nil
}

// walk yields the structures on a kernel list with the head at va head, whose
// links lie at offset in them.
func walk(ctx context.Context, sp *space, head uint64, offset uint32) iter.Seq2[uint64, error] {
	return func(yield func(uint64, error) bool) {
		at := head
		seen := make(map[uint64]struct{})
		for range maxTasks {
			next, err := sp.uint64(at)
			if err == nil {
				err = ctx.Err()
			}
			if err != nil {
				yield(0, err)
				return
			}
			if next == head {
				return
			}
			if _, dup := seen[next]; dup {
				yield(0, fmt.Errorf("list at %#x has no end after %d", head, len(seen)))
				return
			}
			seen[next] = struct{}{}
			if !yield(next-uint64(offset), nil) {
				return
			}
			at = next
		}
		yield(0, fmt.Errorf("list at %#x has no end after %d", head, maxTasks))
	}
}

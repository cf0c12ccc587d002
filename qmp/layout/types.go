// SPDX-License-Identifier: Apache-2.0

package layout

import (
	"context"
	"crypto/sha256"
	"fmt"
)

const (
	// commLen is TASK_COMM_LEN.
	commLen = 16

	// Kernel stacks are powers of two: 16 KiB, twice that with KASAN.
	minThreadSize = 8 << 10
	maxThreadSize = 128 << 10

	// fredPadding is TOP_OF_KERNEL_STACK_PADDING of kernels with FRED support.
	fredPadding = 16

	// The direct map of kernels that cannot move it, by depth of page tables.
	fixedDirectMap4 = 0xffff888000000000
	fixedDirectMap5 = 0xff11000000000000

	// maxPhysical is the physical address space of x86-64.
	maxPhysical = 1 << 52

	// maxDirectMap is the direct map's largest size, by depth of page tables.
	maxDirectMap4 = 64 << 40
	maxDirectMap5 = 32 << 50

	// maxPID bounds process ids: PID_MAX_LIMIT.
	maxPID = 4 << 20
)

// taskOffsets is where struct task_struct keeps what Tasks follows.
type taskOffsets struct {
	tasks, signal, threadNode uint32
	signalThreads             uint32 // thread_head in struct signal_struct
}

// readTypes reads the kernel's BTF. Whatever is wrong with it, types can be
// imported.
func (l *Layout) readTypes(ctx context.Context, sp *space) (*btfTypes, *btfBlob, error) {
	start, ok := l.symbols.lookup("__start_BTF")
	if !ok {
		return nil, nil, missing{"BTF: no symbol __start_BTF"}
	}
	stop, ok := l.symbols.lookup("__stop_BTF")
	if !ok {
		return nil, nil, missing{"BTF: no symbol __stop_BTF"}
	}
	if start.Addr < imageStart || stop.Addr >= imageEnd || stop.Addr <= start.Addr || stop.Addr-start.Addr > maxBTF {
		return nil, nil, missing{fmt.Sprintf("usable BTF: it lies from %#x to %#x", start.Addr, stop.Addr)}
	}
	raw := make([]byte, stop.Addr-start.Addr)
	if err := sp.read(raw, start.Addr); err != nil {
		return nil, nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, nil, err
	}
	types, err := parseBTF(raw)
	if err != nil {
		return nil, nil, missing{fmt.Sprintf("usable BTF: %v", err)}
	}
	return types, &btfBlob{addr: start.Addr, size: uint64(len(raw)), digest: sha256.Sum256(raw)}, nil
}

// structNames are the structs and unions that layouts are made of.
var structNames = []string{"task_struct", "pt_regs", "signal_struct", "thread_union", "pcpu_hot"}

func (l *Layout) takeOffsets(types *btfTypes) error {
	const task, regs, signal, stack, hot = "task_struct", "pt_regs", "signal_struct", "thread_union", "pcpu_hot"
	ids := types.find(structNames...)
	for _, name := range []string{task, regs, signal} {
		if _, ok := ids[name]; !ok {
			return missing{"struct " + name}
		}
	}
	size := make(map[string]uint64)
	for name, id := range ids {
		n, err := types.sizeof(id)
		if err != nil {
			return fmt.Errorf("struct %s: %w", name, err)
		}
		size[name] = n
	}
	for _, m := range []struct {
		structure, member string
		offset            *uint32
		size              uint64
	}{
		{task, "pid", &l.TaskPID, 4},
		{task, "tgid", &l.TaskTGID, 4},
		{task, "comm", &l.TaskComm, commLen},
		{task, "stack", &l.TaskStack, 8},
		{task, "tasks", &l.tasks.tasks, 16},
		{task, "signal", &l.tasks.signal, 8},
		{task, "thread_node", &l.tasks.threadNode, 16},
		{signal, "thread_head", &l.tasks.signalThreads, 16},
		{regs, "orig_ax", &l.PtRegsOrigAx, 8},
		{regs, "ax", &l.PtRegsAx, 8},
	} {
		offset, typ, err := types.member(ids[m.structure], m.member)
		if err != nil && m.member == "ax" {
			// Old kernels spell the registers with an r.
			offset, typ, err = types.member(ids[m.structure], "rax")
		}
		if err != nil {
			return fmt.Errorf("struct %s: %w", m.structure, err)
		}
		got, err := types.sizeof(typ)
		if err != nil {
			return fmt.Errorf("struct %s: member %s: %w", m.structure, m.member, err)
		}
		if got != m.size || uint64(offset)+got > size[m.structure] {
			return fmt.Errorf("struct %s of %d bytes: member %s has %d bytes at %d", m.structure, size[m.structure], m.member, got, offset)
		}
		*m.offset = offset
	}
	const minRegs, maxRegs = 168, 512 // the 21 registers of a frame, and room for newer kinds
	if size[regs] < minRegs || size[regs] > maxRegs {
		return fmt.Errorf("struct pt_regs has %d bytes", size[regs])
	}
	l.PtRegsSize = uint32(size[regs])
	l.members = takeMembers(types)

	if err := l.findStackSize(size[stack]); err != nil {
		return err
	}
	return l.findCurrent(types, ids[hot])
}

// findStackSize takes THREAD_SIZE from union thread_union, whose size it is, and
// from the symbols around the first task's stack. union is 0 when the kernel's
// BTF has no such type.
func (l *Layout) findStackSize(union uint64) error {
	for _, pair := range [][2]string{{"__start_init_stack", "__end_init_stack"}, {"__start_init_task", "__end_init_task"}} {
		start, ok := l.symbols.lookup(pair[0])
		if !ok {
			continue
		}
		end, ok := l.symbols.lookup(pair[1])
		if !ok {
			continue
		}
		if size := end.Addr - start.Addr; union == 0 {
			union = size
		} else if union != size {
			return fmt.Errorf("kernel stacks of %d bytes by type, %d bytes by %s", union, size, pair[1])
		}
		break
	}
	if union < minThreadSize || union > maxThreadSize || union&(union-1) != 0 {
		return fmt.Errorf("kernel stacks of %d bytes", union)
	}
	l.ThreadSize = uint32(union)
	// Compiled in with CONFIG_X86_FRED, whether or not the CPU has it.
	if _, ok := l.symbols.lookup("asm_fred_entrypoint_user"); ok {
		l.StackPadding = fredPadding
	}
	return nil
}

// findCurrent finds the per-CPU pointer to the running task: a variable of its
// own up to Linux 6.1 and from 6.15, a member of pcpu_hot between.
func (l *Layout) findCurrent(types *btfTypes, hot uint32) error {
	if s, ok := l.symbols.lookup("current_task"); ok {
		l.CurrentTask = s.Addr
		return nil
	}
	s, ok := l.symbols.lookup("pcpu_hot")
	if !ok {
		return missing{"symbol current_task or pcpu_hot"}
	}
	if hot == 0 {
		return missing{"struct pcpu_hot"}
	}
	offset, _, err := types.member(hot, "current_task")
	if err != nil {
		return fmt.Errorf("struct pcpu_hot: %w", err)
	}
	l.CurrentTask = s.Addr + uint64(offset)
	return nil
}

// readVariables reads what the kernel decided at boot.
func (l *Layout) readVariables(sp *space) error {
	for _, s := range []struct {
		name string
		addr *uint64
	}{{"entry_SYSCALL_64", &l.LSTAR}, {"init_task", &l.InitTask}} {
		symbol, ok := l.symbols.lookup(s.name)
		if !ok {
			return missing{"symbol " + s.name}
		}
		if symbol.Addr < imageStart || symbol.Addr >= imageEnd {
			return fmt.Errorf("%s at %#x is outside the kernel's image", s.name, symbol.Addr)
		}
		*s.addr = symbol.Addr
	}

	l.DirectMap, l.DirectMapSize = fixedDirectMap4, maxDirectMap4
	if l.Levels == 5 {
		l.DirectMap, l.DirectMapSize = fixedDirectMap5, maxDirectMap5
	}
	variable := func(name string, out *uint64) (bool, error) {
		s, ok := l.symbols.lookup(name)
		if !ok {
			return false, nil
		}
		v, err := sp.uint64(s.Addr)
		if err != nil {
			return false, fmt.Errorf("read %s: %w", name, err)
		}
		*out = v
		return true, nil
	}
	if _, err := variable("page_offset_base", &l.DirectMap); err != nil {
		return err
	}
	var next uint64
	ok, err := variable("vmalloc_base", &next)
	if err != nil {
		return err
	}
	if ok {
		// The vmalloc area follows the direct map.
		if next <= l.DirectMap {
			return fmt.Errorf("direct map at %#x after vmalloc area at %#x", l.DirectMap, next)
		}
		l.DirectMapSize = min(l.DirectMapSize, next-l.DirectMap)
	}
	l.DirectMapSize = min(l.DirectMapSize, maxPhysical)
	return nil
}

// check holds the layout against what must be true of a running kernel.
func (l *Layout) check(sp *space, hint Hint) error {
	if hint.LSTAR != 0 && l.LSTAR != hint.LSTAR {
		return fmt.Errorf("entry_SYSCALL_64 is at %#x but the CPU enters the kernel at %#x", l.LSTAR, hint.LSTAR)
	}

	// The first task is the idle task of the first CPU, in the image.
	first, err := l.readTask(sp, l.InitTask)
	if err != nil {
		return fmt.Errorf("read init_task: %w", err)
	}
	if first.Comm != "swapper/0" || first.PID != 0 || first.TGID != 0 {
		return fmt.Errorf("init_task is %q, pid %d, tgid %d", first.Comm, first.PID, first.TGID)
	}
	stack, err := sp.uint64(l.InitTask + uint64(l.TaskStack))
	if err != nil {
		return fmt.Errorf("read init_task.stack: %w", err)
	}
	if s, ok := l.symbols.lookup("init_stack"); ok && s.Addr != stack {
		return fmt.Errorf("init_task.stack is %#x but init_stack %#x", stack, s.Addr)
	}

	// The image itself is in RAM, so the direct map maps it too.
	image, err := imagePhysical(l.InitTask, l.PhysBase)
	if err != nil {
		return err
	}
	if l.DirectMap < kernelHalf || l.DirectMap%pageSize != 0 || image >= l.DirectMapSize {
		return fmt.Errorf("direct map of %d bytes at %#x", l.DirectMapSize, l.DirectMap)
	}
	pa, _, err := sp.translate(l.DirectMap + image)
	if err != nil {
		return fmt.Errorf("direct map at %#x: %w", l.DirectMap, err)
	}
	if pa != image {
		return fmt.Errorf("direct map at %#x maps %#x at %#x", l.DirectMap, pa, image)
	}
	return l.checkCurrent(sp)
}

// checkCurrent follows the per-CPU pointer of the first CPU to its running task.
func (l *Layout) checkCurrent(sp *space) error {
	offsets, ok := l.symbols.lookup("__per_cpu_offset")
	if !ok {
		// A kernel without SMP.
		return nil
	}
	base, err := sp.uint64(offsets.Addr)
	if err != nil {
		return fmt.Errorf("read __per_cpu_offset: %w", err)
	}
	current, err := sp.uint64(base + l.CurrentTask)
	if err != nil {
		return fmt.Errorf("read the first CPU's current task: %w", err)
	}
	// It may end while it is looked at: its page stays, its values do not.
	if current < kernelHalf {
		return fmt.Errorf("the first CPU's current task is at %#x", current)
	}
	if _, err := l.readTask(sp, current); err != nil {
		return fmt.Errorf("read the first CPU's current task: %w", err)
	}
	return nil
}

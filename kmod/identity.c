// SPDX-License-Identifier: GPL-2.0
/*
 * Who made a call, and what the call before it returned: the guest's current task and
 * its saved registers, read from its memory with the layout that user space resolved.
 * All of it is the guest's to write: nothing here trusts a value further than to read a
 * few bytes of guest RAM at it.
 */
#include <linux/hash.h>
#include <linux/module.h>

#include "frail.h"
#include "trace.h"

/* x86 page tables. */
#define PTE_PRESENT	BIT_ULL(0)
#define PTE_LARGE	BIT_ULL(7)
#define PTE_ADDRESS	0x000ffffffffff000ULL

/* Reads guest RAM within one page. */
static bool read_page(struct kvm_vcpu *vcpu, gpa_t pa, void *buf, unsigned int len)
{
	return kvmsym.kvm_vcpu_read_guest_page(vcpu, pa >> PAGE_SHIFT, buf,
					       offset_in_page(pa), len) >= 0;
}

/* Reads guest RAM at an address of the guest's direct map. */
static bool read_direct(struct kvm_vcpu *vcpu, const struct frail_layout *l,
			u64 va, void *buf, unsigned int len)
{
	u64 pa = va - l->direct_map;

	while (len) {
		unsigned int part = min_t(unsigned int, len,
					  PAGE_SIZE - offset_in_page(pa));

		if (pa >= l->direct_map_size || !read_page(vcpu, pa, buf, part))
			return false;
		buf += part;
		pa += part;
		len -= part;
	}
	return true;
}

/*
 * Translates a virtual address by the guest kernel's own page table. The one in use may
 * be a process's that maps next to nothing of the kernel.
 *
 * Return: the physical address, or INVALID_GPA.
 */
static gpa_t translate(struct kvm_vcpu *vcpu, const struct frail_layout *l, u64 va)
{
	u64 table = l->page_table & PTE_ADDRESS;
	int level;

	for (level = l->levels - 1; level >= 0; level--) {
		int shift = PAGE_SHIFT + 9 * level;
		u64 pte;

		if (!read_page(vcpu, table + (va >> shift & 511) * sizeof(pte),
			       &pte, sizeof(pte)) || !(pte & PTE_PRESENT))
			return INVALID_GPA;
		table = pte & PTE_ADDRESS;
		if (!level || ((pte & PTE_LARGE) && level <= 2))
			return (table & ~(BIT_ULL(shift) - 1)) | (va & (BIT_ULL(shift) - 1));
	}
	return INVALID_GPA;
}

/* The layout that holds for a kernel entered at @lstar, or NULL. */
static const struct frail_layout *layout_of(struct frail_vm *vm, struct kvm_vcpu *vcpu,
					    u64 lstar)
{
	struct frail_layout *l = srcu_dereference(vm->layout, &vcpu->kvm->srcu);

	return l && l->lstar == lstar && READ_ONCE(vm->layout_valid) ? l : NULL;
}

static bool read_ids(struct kvm_vcpu *vcpu, const struct frail_layout *l, u64 task,
		     struct frail_event *ev)
{
	s32 ids[2];

	/* They are neighbours in every Linux so far. */
	if (l->task_tgid == l->task_pid + sizeof(s32)) {
		if (!read_direct(vcpu, l, task + l->task_pid, ids, sizeof(ids)))
			return false;
		ev->pid = ids[0];
		ev->tgid = ids[1];
		return true;
	}
	return read_direct(vcpu, l, task + l->task_pid, &ev->pid, sizeof(ev->pid)) &&
	       read_direct(vcpu, l, task + l->task_tgid, &ev->tgid, sizeof(ev->tgid));
}

/**
 * frail_identify() - fill in an event's task, pid, tgid and comm
 * @vm: the VM
 * @vcpu: the vCPU that made the call or returns from it
 * @lstar: its LSTAR
 * @ev: the event; unchanged where the layout is missing or the task unreadable
 *
 * At a kernel entry and at SYSRET, KERNEL_GS_BASE holds the kernel's per-CPU base:
 * swapgs has not run yet, or has already.
 */
void frail_identify(struct frail_vm *vm, struct kvm_vcpu *vcpu, u64 lstar,
		    struct frail_event *ev)
{
	const struct frail_layout *l = layout_of(vm, vcpu, lstar);
	u64 task;

	if (!l)
		return;
	if (!read_direct(vcpu, l, frail_msr(vcpu, MSR_KERNEL_GS_BASE) + l->current_task,
			 &task, sizeof(task)) ||
	    !read_ids(vcpu, l, task, ev) ||
	    !read_direct(vcpu, l, task + l->task_comm, ev->comm, sizeof(ev->comm))) {
		ev->pid = 0;
		ev->tgid = 0;
		memset(ev->comm, 0, sizeof(ev->comm));
		vm->vcpus[vcpu->vcpu_idx].identity_misses++;
		return;
	}
	ev->task = task;
	ev->flags |= FRAIL_EVENT_IDENTITY;
}

static struct frail_bucket *call_bucket(struct frail_vm *vm, u64 task)
{
	return &vm->calls[hash_64(task, ilog2(FRAIL_CALL_BUCKETS))];
}

static struct frail_call *find_call(struct frail_bucket *b, u64 task)
{
	int i;

	for (i = 0; i < FRAIL_CALL_WAYS; i++)
		if (b->call[i].task == task)
			return &b->call[i];
	return NULL;
}

/* A place for a task that has none: a free one, or that of a task that is forgotten. */
static struct frail_call *new_call(struct frail_bucket *b)
{
	int i;

	for (i = 0; i < FRAIL_CALL_WAYS; i++)
		if (!b->call[i].pending)
			return &b->call[i];
	return &b->call[b->victim++ % FRAIL_CALL_WAYS];
}

static bool insn_is_64(u16 insn)
{
	return insn == FRAIL_INSN_SYSCALL64;
}

/* exit and exit_group: nothing more comes of the thread. */
static bool never_returns(const struct frail_event *ev)
{
	if (insn_is_64(ev->insn))
		return (u32)ev->nr == 60 || (u32)ev->nr == 231;
	return (u32)ev->nr == 1 || (u32)ev->nr == 252;
}

/* What the hardware and Linux leave of a user's registers from orig_ax on. */
struct saved_frame {
	u64 orig_ax, ip, cs, flags, sp;
};

/*
 * The return value of a thread's last call, from the registers that its kernel saved:
 * they lie where they were until the thread's next entry of any kind. orig_ax tells
 * whether that was the call: an interrupt and an exception leave -1 there. The frame
 * must lead back behind the call, on the same stack: not to a signal handler, to
 * another program, or to the call once more (a restart).
 *
 * Return: true and the value in @ret, or false: not known.
 */
static bool saved_return(struct kvm_vcpu *vcpu, const struct frail_layout *l,
			 struct frail_call *call, s64 *ret)
{
	struct saved_frame frame;
	u8 regs[FRAIL_REGS_MAX];
	unsigned int len = l->regs_orig_ax - l->regs_ax;
	u64 ax;

	if (!call->regs) {
		u64 stack;
		gpa_t pa;

		if (!read_direct(vcpu, l, call->task + l->task_stack, &stack, sizeof(stack)))
			return false;
		pa = translate(vcpu, l, stack + l->stack_regs + l->regs_ax);
		/* A stack ends with its page. */
		if (pa == INVALID_GPA || offset_in_page(pa) + len + sizeof(frame) > PAGE_SIZE)
			return false;
		call->regs = pa;
	}
	if (!read_page(vcpu, call->regs, regs, len + sizeof(frame)))
		return false;
	memcpy(&ax, regs, sizeof(ax));
	memcpy(&frame, regs + len, sizeof(frame));
	/* A call by the number -1 looks like an interrupt. */
	if (call->nr == -1 || (u32)frame.orig_ax != (u32)call->nr || frame.sp != call->sp)
		return false;
	if (insn_is_64(call->insn)) {
		if (frame.ip != call->ip)
			return false;
		*ret = ax;
		return true;
	}
	/*
	 * SYSENTER and 32-bit SYSCALL come back where the vDSO wants them; a restart has
	 * the number in place of a value.
	 */
	if (call->insn == FRAIL_INSN_INT80_32 || call->insn == FRAIL_INSN_INT80_64 ?
	    frame.ip != call->ip : (u32)ax == (u32)call->nr)
		return false;
	*ret = (s32)ax;
	return true;
}

/*
 * exits=entry leaves a call's value where the thread's next page fault or interrupt
 * destroys it. A new program faults at every third call or so, a thread that runs for
 * some time at next to none: so a thread's first calls leave by SYSRET, which tells, and
 * so do those after a value was lost. 32 keeps the unknown below 1 in 32 of the calls.
 */
static unsigned short settle = 32;
module_param(settle, ushort, 0644);
MODULE_PARM_DESC(settle, "with exits=entry, calls of a new thread, and after a lost return value, whose SYSRET traps");

/*
 * Tells the return of the call that a thread made before the one in @ev.
 *
 * Return: the value is known.
 */
static bool report_deferred(struct frail_vm *vm, struct kvm_vcpu *vcpu, u64 lstar,
			    struct frail_call *call, const struct frail_event *ev)
{
	const struct frail_layout *l = layout_of(vm, vcpu, lstar);
	struct frail_vcpu *fv = &vm->vcpus[vcpu->vcpu_idx];
	struct frail_event exit = {
		.kind = FRAIL_EVENT_EXIT,
		.insn = call->insn,
		.flags = FRAIL_EVENT_NR | FRAIL_EVENT_DEFERRED | FRAIL_EVENT_IDENTITY,
		.nr = call->nr,
		.ip = call->ip,
		.sp = call->sp,
		.vm = ev->vm,
		.vcpu = ev->vcpu,
		.cr3 = ev->cr3,
		.task = ev->task,
		.pid = ev->pid,
		.tgid = ev->tgid,
	};
	bool known = l && saved_return(vcpu, l, call, &exit.ret);

	if (known) {
		exit.flags |= FRAIL_EVENT_RET;
		fv->rets_known++;
	} else {
		fv->rets_unknown++;
	}
	memcpy(exit.comm, ev->comm, sizeof(exit.comm));
	frail_trace(guest_sys_exit, &exit);
	return known;
}

/**
 * frail_calls_forget() - the kernel whose threads made the remembered calls is gone
 * @vm: its VM
 */
void frail_calls_forget(struct frail_vm *vm)
{
	int i;

	for (i = 0; i < FRAIL_CALL_BUCKETS; i++) {
		struct frail_bucket *b = &vm->calls[i];

		spin_lock(&b->lock);
		memset(b->call, 0, sizeof(b->call));
		spin_unlock(&b->lock);
	}
}

/**
 * frail_call_enter() - a thread makes a call
 * @vm: the VM
 * @vcpu: the vCPU
 * @lstar: its LSTAR
 * @ev: the call
 *
 * Tells how the thread's call before it returned, if that is still to be told, and
 * remembers this one.
 *
 * Return: its SYSRET shall trap, for what is deferred would be lost too often.
 */
bool frail_call_enter(struct frail_vm *vm, struct kvm_vcpu *vcpu, u64 lstar,
		      const struct frail_event *ev)
{
	struct frail_call before = { .settle = READ_ONCE(settle) }, *c;
	struct frail_bucket *b;

	if (!(ev->flags & FRAIL_EVENT_IDENTITY))
		return false;
	b = call_bucket(vm, ev->task);
	spin_lock(&b->lock);
	c = find_call(b, ev->task);
	/* Another pid: a new thread in the place of one that died in its call. */
	if (c && c->pid == ev->pid)
		before = *c;
	spin_unlock(&b->lock);

	/* Guest memory cannot be read under the lock; a thread makes one call at a time. */
	if (before.pending && !report_deferred(vm, vcpu, lstar, &before, ev))
		before.settle = READ_ONCE(settle);

	spin_lock(&b->lock);
	c = find_call(b, ev->task) ?: new_call(b);
	*c = (struct frail_call){
		.task = ev->task,
		.pid = ev->pid,
		.insn = ev->insn,
		.pending = !never_returns(ev),
		.nr = ev->nr,
		.ip = ev->ip,
		.sp = ev->sp,
		.regs = before.regs,
		.settle = before.settle ? before.settle - 1 : 0,
	};
	spin_unlock(&b->lock);
	return before.settle;
}

/**
 * frail_call_exit() - a SYSRET ends a call
 * @vm: the VM
 * @ev: the return; its nr is filled in if the call is known
 *
 * A thread's last call is the one its SYSRET ends if it came in by the same width: every
 * other way in leaves by IRET, and a new thread's first return does too. Forgotten calls
 * stay unknown.
 */
void frail_call_exit(struct frail_vm *vm, struct frail_event *ev)
{
	struct frail_bucket *b;
	struct frail_call *c;

	if (!(ev->flags & FRAIL_EVENT_IDENTITY))
		return;
	b = call_bucket(vm, ev->task);
	spin_lock(&b->lock);
	c = find_call(b, ev->task);
	if (c && c->pending && c->pid == ev->pid &&
	    (ev->insn == FRAIL_INSN_SYSRET64 ? c->insn == FRAIL_INSN_SYSCALL64 :
	     c->insn == FRAIL_INSN_SYSCALL32 || c->insn == FRAIL_INSN_SYSENTER)) {
		ev->nr = c->nr;
		ev->flags |= FRAIL_EVENT_NR;
		c->pending = false;
	}
	spin_unlock(&b->lock);
}

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

/* The layout that holds for a kernel entered at @lstar, or NULL. */
static const struct frail_layout *layout_of(struct frail_vm *vm, struct kvm_vcpu *vcpu,
					    u64 lstar)
{
	struct frail_layout *l = srcu_dereference(vm->layout, &vcpu->kvm->srcu);

	return l && l->lstar == lstar && READ_ONCE(vm->layout_valid) ? l : NULL;
}

static bool read_ids(struct frail_window *w, u64 task, struct frail_event *ev)
{
	u64 pid, tgid;

	if (!frail_read_word(w, task + w->l->task_pid, &pid))
		return false;
	ev->pid = (s32)pid;
	/* They are neighbours in every Linux so far. */
	if (w->l->task_tgid == w->l->task_pid + sizeof(s32)) {
		ev->tgid = (s32)(pid >> 32);
		return true;
	}
	if (!frail_read_word(w, task + w->l->task_tgid, &tgid))
		return false;
	ev->tgid = (s32)tgid;
	return true;
}

static bool read_key(struct frail_window *w, u64 task, struct frail_task_key *key)
{
	const struct frail_layout *l = w->l;
	const struct {
		u32 offset;
		u64 *word;
	} parts[] = {
		{ l->task_mm, &key->mm },
		{ l->task_real_parent, &key->parent },
		{ l->task_start, &key->start },
		{ l->task_cred, &key->cred },
		{ l->task_cgroups, &key->cgroups },
	};
	int i;

	for (i = 0; i < ARRAY_SIZE(parts); i++)
		if (parts[i].offset != FRAIL_NO_OFFSET &&
		    !frail_read_word(w, task + parts[i].offset, parts[i].word))
			return false;
	return true;
}

/**
 * frail_identify() - fill in an event's task, pid, tgid and comm
 * @vm: the VM
 * @vcpu: the vCPU that made the call or returns from it
 * @lstar: its LSTAR
 * @ev: the event; unchanged where the layout is missing or the task unreadable
 * @key: what the thread's description depends on; only if somebody wants descriptions
 *
 * At a kernel entry and at SYSRET, KERNEL_GS_BASE holds the kernel's per-CPU base:
 * swapgs has not run yet, or has already.
 */
void frail_identify(struct frail_vm *vm, struct kvm_vcpu *vcpu, u64 lstar,
		    struct frail_event *ev, struct frail_task_key *key)
{
	struct frail_window w = { .vcpu = vcpu, .l = layout_of(vm, vcpu, lstar) };
	u64 task, comm[2];

	BUILD_BUG_ON(sizeof(comm) != sizeof(ev->comm));
	if (!w.l)
		return;
	if (!frail_read_word(&w, frail_msr(vcpu, MSR_KERNEL_GS_BASE) + w.l->current_task,
			     &task) ||
	    !read_ids(&w, task, ev) ||
	    (trace_guest_process_enabled() && !read_key(&w, task, key)) ||
	    !frail_read_word(&w, task + w.l->task_comm, &comm[0]) ||
	    !frail_read_word(&w, task + w.l->task_comm + sizeof(u64), &comm[1])) {
		ev->pid = 0;
		ev->tgid = 0;
		vm->vcpus[vcpu->vcpu_idx].identity_misses++;
		return;
	}
	key->pid = ev->pid;
	key->tgid = ev->tgid;
	memcpy(ev->comm, comm, sizeof(comm));
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

		if (!frail_read(vcpu, l, call->task + l->task_stack, &stack, sizeof(stack)))
			return false;
		pa = frail_translate(vcpu, l, stack + l->stack_regs + l->regs_ax);
		/* A stack ends with its page. */
		if (pa == INVALID_GPA || offset_in_page(pa) + len + sizeof(frame) > PAGE_SIZE)
			return false;
		call->regs = pa;
	}
	if (!frail_read_page(vcpu, call->regs, regs, len + sizeof(frame)))
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
		.who = ev->who,
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

/*
 * Tells who a thread is, unless that was told already.
 *
 * Return: the serial number of its description; 0: nobody wants any.
 */
static u64 who(struct frail_vm *vm, struct kvm_vcpu *vcpu, u64 lstar,
	       const struct frail_event *ev, const struct frail_task_key *key,
	       const struct frail_call *known)
{
	const struct frail_layout *l;

	if (!trace_guest_process_enabled())
		return 0;
	if (known->who && known->epoch == READ_ONCE(vm->epoch) &&
	    !memcmp(&known->key, key, sizeof(*key)))
		return known->who;
	l = layout_of(vm, vcpu, lstar);
	return l ? frail_describe(vm, vcpu, l, ev, key) : 0;
}

/**
 * frail_call_enter() - a thread makes a call
 * @vm: the VM
 * @vcpu: the vCPU
 * @lstar: its LSTAR
 * @ev: the call; its who is filled in
 * @key: what frail_identify() found
 *
 * Tells who the thread is if that is news, how its call before this one returned if that
 * is still to be told, and remembers this one.
 *
 * Return: its SYSRET shall trap, for what is deferred would be lost too often.
 */
bool frail_call_enter(struct frail_vm *vm, struct kvm_vcpu *vcpu, u64 lstar,
		      struct frail_event *ev, const struct frail_task_key *key)
{
	struct frail_call before = { .settle = READ_ONCE(settle) }, *c;
	u32 epoch = READ_ONCE(vm->epoch);
	struct frail_bucket *b;

	if (!(ev->flags & FRAIL_EVENT_IDENTITY))
		return false;
	b = call_bucket(vm, ev->task);
	spin_lock(&b->lock);
	c = find_call(b, ev->task);
	/* Another pid: a new thread in the place of one that died in its call. */
	if (c && c->key.pid == ev->pid)
		before = *c;
	spin_unlock(&b->lock);

	/* Guest memory cannot be read under the lock; a thread makes one call at a time. */
	ev->who = who(vm, vcpu, lstar, ev, key, &before);
	if (before.pending && !report_deferred(vm, vcpu, lstar, &before, ev))
		before.settle = READ_ONCE(settle);

	spin_lock(&b->lock);
	c = find_call(b, ev->task) ?: new_call(b);
	*c = (struct frail_call){
		.task = ev->task,
		.key = *key,
		.who = ev->who,
		.epoch = epoch,
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
 * @vcpu: the vCPU
 * @lstar: its LSTAR
 * @ev: the return; its who is filled in, and its nr if the call is known
 * @key: what frail_identify() found
 *
 * A thread's last call is the one its SYSRET ends if it came in by the same width: every
 * other way in leaves by IRET, and a new thread's first return does too. Forgotten calls
 * stay unknown.
 */
void frail_call_exit(struct frail_vm *vm, struct kvm_vcpu *vcpu, u64 lstar,
		     struct frail_event *ev, const struct frail_task_key *key)
{
	struct frail_call known = { .settle = READ_ONCE(settle) }, *c;
	u32 epoch = READ_ONCE(vm->epoch);
	struct frail_bucket *b;

	if (!(ev->flags & FRAIL_EVENT_IDENTITY))
		return;
	b = call_bucket(vm, ev->task);
	spin_lock(&b->lock);
	c = find_call(b, ev->task);
	if (c && c->key.pid == ev->pid) {
		if (c->pending &&
		    (ev->insn == FRAIL_INSN_SYSRET64 ? c->insn == FRAIL_INSN_SYSCALL64 :
		     c->insn == FRAIL_INSN_SYSCALL32 || c->insn == FRAIL_INSN_SYSENTER)) {
			ev->nr = c->nr;
			ev->flags |= FRAIL_EVENT_NR;
			c->pending = false;
		}
		known = *c;
	}
	spin_unlock(&b->lock);

	ev->who = who(vm, vcpu, lstar, ev, key, &known);
	if (ev->who == known.who && (!ev->who || epoch == known.epoch))
		return;
	known.task = ev->task;
	known.key = *key;
	known.who = ev->who;
	known.epoch = epoch;
	spin_lock(&b->lock);
	c = find_call(b, ev->task) ?: new_call(b);
	*c = known;
	spin_unlock(&b->lock);
}

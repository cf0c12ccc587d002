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

static __always_inline bool read_part(struct frail_window *w, u64 task, u32 offset, u64 *part)
{
	return offset == FRAIL_NO_OFFSET || frail_read_word(w, task + offset, part);
}

static bool read_key(struct frail_window *w, u64 task, struct frail_task_key *key)
{
	const struct frail_layout *l = w->l;

	return read_part(w, task, l->task_mm, &key->mm) &&
	       read_part(w, task, l->task_real_parent, &key->parent) &&
	       read_part(w, task, l->task_start, &key->start) &&
	       read_part(w, task, l->task_cred, &key->cred) &&
	       read_part(w, task, l->task_cgroups, &key->cgroups);
}

/**
 * frail_identify() - fill in an event's task, pid, tgid and comm
 * @vm: the VM
 * @vcpu: the vCPU that made the call or returns from it
 * @lstar: its LSTAR
 * @ev: the event; unchanged where the layout is missing or the task unreadable
 * @key: what the thread's description depends on
 *
 * At a kernel entry and at SYSRET, KERNEL_GS_BASE holds the kernel's per-CPU base:
 * swapgs has not run yet, or has already.
 */
void frail_identify(struct frail_vm *vm, struct kvm_vcpu *vcpu, u64 lstar,
		    struct frail_event *ev, struct frail_task_key *key)
{
	struct frail_window w = { .vcpu = vcpu, .l = layout_of(vm, vcpu, lstar) };
	u64 task, comm[2];

	/* Asked once a call: whoever comes to want them later gets whole ones. */
	key->wanted = trace_guest_process_enabled();
	BUILD_BUG_ON(sizeof(comm) != sizeof(ev->comm));
	if (!w.l)
		return;
	if (!frail_read_word(&w, frail_msr(vcpu, MSR_KERNEL_GS_BASE) + w.l->current_task,
			     &task) ||
	    !read_ids(&w, task, ev) ||
	    (key->wanted && !read_key(&w, task, key)) ||
	    !frail_read_word(&w, task + w.l->task_comm, &comm[0]) ||
	    !frail_read_word(&w, task + w.l->task_comm + sizeof(u64), &comm[1])) {
		ev->pid = 0;
		ev->tgid = 0;
		vm->vcpus[vcpu->vcpu_idx].identity_misses++;
		return;
	}
	memcpy(ev->comm, comm, sizeof(comm));
	ev->task = task;
	ev->flags |= FRAIL_EVENT_IDENTITY;
}

static struct frail_bucket *task_bucket(struct frail_vm *vm, u64 task)
{
	return &vm->tasks[hash_64(task, ilog2(FRAIL_TASK_BUCKETS))];
}

static struct frail_task *find_task(struct frail_bucket *b, u64 task)
{
	int i;

	for (i = 0; i < FRAIL_TASK_WAYS; i++)
		if (b->task[i].call.task == task)
			return &b->task[i];
	return NULL;
}

/* A place for a task that has none: a free one, or that of a task that is forgotten. */
static struct frail_task *new_task(struct frail_bucket *b)
{
	int i;

	for (i = 0; i < FRAIL_TASK_WAYS; i++)
		if (!b->task[i].call.pending)
			return &b->task[i];
	return &b->task[b->victim++ % FRAIL_TASK_WAYS];
}

/*
 * Whether it was told who a thread with this key is. A comparison of all parts at once:
 * they are equal nearly always.
 */
static bool was_told(const struct frail_told *told, const struct frail_task_key *key, u32 epoch)
{
	return key->wanted && told->who && told->epoch == epoch &&
	       !((told->key.mm ^ key->mm) | (told->key.parent ^ key->parent) |
		 (told->key.start ^ key->start) | (told->key.cred ^ key->cred) |
		 (told->key.cgroups ^ key->cgroups));
}

/*
 * Tells who a thread is.
 *
 * Return: the serial number of the description; 0: nobody wants any, or it cannot be told.
 */
static u64 tell(struct frail_vm *vm, struct kvm_vcpu *vcpu, u64 lstar,
		const struct frail_event *ev, const struct frail_task_key *key)
{
	const struct frail_layout *l;

	if (!key->wanted)
		return 0;
	l = layout_of(vm, vcpu, lstar);
	return l ? frail_describe(vm, vcpu, l, ev, key) : 0;
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
 * frail_tasks_forget() - the kernel whose tasks are remembered is gone
 * @vm: its VM
 */
void frail_tasks_forget(struct frail_vm *vm)
{
	int i;

	for (i = 0; i < FRAIL_TASK_BUCKETS; i++) {
		struct frail_bucket *b = &vm->tasks[i];

		spin_lock(&b->lock);
		memset(b->task, 0, sizeof(b->task));
		spin_unlock(&b->lock);
	}
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
	struct frail_call before = { .settle = READ_ONCE(settle) };
	u32 epoch = READ_ONCE(vm->epoch);
	struct frail_bucket *b;
	struct frail_task *t;
	bool news;

	if (!(ev->flags & FRAIL_EVENT_IDENTITY))
		return false;
	b = task_bucket(vm, ev->task);
	spin_lock(&b->lock);
	t = find_task(b, ev->task);
	/* Another pid: a new thread in the place of one that died in its call. */
	if (t && t->call.pid == ev->pid) {
		before = t->call;
		if (was_told(&t->told, key, epoch))
			ev->who = t->told.who;
	}
	spin_unlock(&b->lock);

	/* Guest memory cannot be read under the lock; a thread makes one call at a time. */
	news = !ev->who;
	if (news)
		ev->who = tell(vm, vcpu, lstar, ev, key);
	if (before.pending && !report_deferred(vm, vcpu, lstar, &before, ev))
		before.settle = READ_ONCE(settle);

	spin_lock(&b->lock);
	t = find_task(b, ev->task);
	if (unlikely(!t)) {
		/* Forgotten meanwhile, or not known before. */
		t = new_task(b);
		t->told.who = 0;
	}
	t->call = (struct frail_call){
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
	if (!ev->who)
		t->told.who = 0;
	else if (news)
		t->told = (struct frail_told){ *key, ev->who, epoch };
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
	u32 epoch = READ_ONCE(vm->epoch);
	struct frail_bucket *b;
	struct frail_task *t;

	if (!(ev->flags & FRAIL_EVENT_IDENTITY))
		return;
	b = task_bucket(vm, ev->task);
	spin_lock(&b->lock);
	t = find_task(b, ev->task);
	if (t && t->call.pid == ev->pid) {
		if (t->call.pending &&
		    (ev->insn == FRAIL_INSN_SYSRET64 ? t->call.insn == FRAIL_INSN_SYSCALL64 :
		     t->call.insn == FRAIL_INSN_SYSCALL32 ||
		     t->call.insn == FRAIL_INSN_SYSENTER)) {
			ev->nr = t->call.nr;
			ev->flags |= FRAIL_EVENT_NR;
			t->call.pending = false;
		}
		if (was_told(&t->told, key, epoch))
			ev->who = t->told.who;
	}
	spin_unlock(&b->lock);
	if (ev->who)
		return;

	ev->who = tell(vm, vcpu, lstar, ev, key);
	if (!ev->who)
		return;
	spin_lock(&b->lock);
	t = find_task(b, ev->task);
	if (!t || t->call.pid != ev->pid) {
		t = t ?: new_task(b);
		t->call = (struct frail_call){
			.task = ev->task,
			.pid = ev->pid,
			.settle = READ_ONCE(settle),
		};
	}
	t->told = (struct frail_told){ *key, ev->who, epoch };
	spin_unlock(&b->lock);
}

// SPDX-License-Identifier: GPL-2.0
/*
 * Who made a call: the guest's current task, read from its memory with the
 * layout that user space resolved. All of it is the guest's to write: nothing
 * here trusts a value further than to read a few bytes of guest RAM at it.
 */
#include <linux/hash.h>
#include <linux/module.h>

#include "frail.h"

/* Reads guest RAM at an address of the guest's direct map. */
static bool read_direct(struct kvm_vcpu *vcpu, const struct frail_layout *l,
			u64 va, void *buf, unsigned int len)
{
	u64 pa = va - l->direct_map;

	while (len) {
		unsigned int part = min_t(unsigned int, len,
					  PAGE_SIZE - offset_in_page(pa));

		if (pa >= l->direct_map_size ||
		    kvmsym.kvm_vcpu_read_guest_page(vcpu, pa >> PAGE_SHIFT, buf,
						    offset_in_page(pa), part) < 0)
			return false;
		buf += part;
		pa += part;
		len -= part;
	}
	return true;
}

/**
 * frail_identify() - fill in an event's task, pid, tgid and comm
 * @vm: the VM
 * @vcpu: the vCPU that made the call or returns from it
 * @lstar: its LSTAR
 * @ev: the event; unchanged where the layout is missing or the task unreadable
 *
 * At SYSCALL's entry and at SYSRET, KERNEL_GS_BASE holds the kernel's per-CPU
 * base: swapgs has not run yet, or has already.
 */
void frail_identify(struct frail_vm *vm, struct kvm_vcpu *vcpu, u64 lstar,
		    struct frail_event *ev)
{
	struct frail_layout *l = srcu_dereference(vm->layout, &vcpu->kvm->srcu);
	u64 task;

	if (!l || l->lstar != lstar || !READ_ONCE(vm->layout_valid))
		return;
	if (!read_direct(vcpu, l, frail_msr(vcpu, MSR_KERNEL_GS_BASE) + l->current_task,
			 &task, sizeof(task)) ||
	    !read_direct(vcpu, l, task + l->task_pid, &ev->pid, sizeof(ev->pid)) ||
	    !read_direct(vcpu, l, task + l->task_tgid, &ev->tgid, sizeof(ev->tgid)) ||
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

/* Remembers which call @ev's task is in. */
void frail_call_enter(struct frail_vm *vm, const struct frail_event *ev)
{
	struct frail_bucket *b;
	int i, slot = -1;

	if (!(ev->flags & FRAIL_EVENT_IDENTITY))
		return;
	b = call_bucket(vm, ev->task);
	spin_lock(&b->lock);
	for (i = 0; i < FRAIL_CALL_WAYS; i++) {
		if (b->call[i].task == ev->task) {
			slot = i;
			break;
		}
		if (!b->call[i].task)
			slot = i;
	}
	if (slot < 0)
		slot = b->victim++ % FRAIL_CALL_WAYS;
	b->call[slot] = (struct frail_call){ ev->task, ev->nr, ev->insn };
	spin_unlock(&b->lock);
}

/*
 * Fills in which call @ev returns from. A task's last SYSCALL is the one its
 * SYSRET of the same width ends: every other way in leaves by IRET, and a new
 * task's first return does too. Forgotten calls stay unknown.
 */
void frail_call_exit(struct frail_vm *vm, struct frail_event *ev)
{
	u32 insn = ev->insn == FRAIL_INSN_SYSRET64 ? FRAIL_INSN_SYSCALL64 :
						     FRAIL_INSN_SYSCALL32;
	struct frail_bucket *b;
	int i;

	if (!(ev->flags & FRAIL_EVENT_IDENTITY))
		return;
	b = call_bucket(vm, ev->task);
	spin_lock(&b->lock);
	for (i = 0; i < FRAIL_CALL_WAYS; i++) {
		if (b->call[i].task == ev->task && b->call[i].insn == insn) {
			ev->nr = b->call[i].nr;
			ev->flags |= FRAIL_EVENT_NR;
			b->call[i].task = 0;
			break;
		}
	}
	spin_unlock(&b->lock);
}

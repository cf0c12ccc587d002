// SPDX-License-Identifier: GPL-2.0
/* What a vCPU tells of a system call: the events of the tracepoints. */
#include <linux/module.h>
#include <asm/msr-index.h>

#include "frail.h"

#define CREATE_TRACE_POINTS
#include "trace.h"

static void fill_common(struct frail_vm *vm, struct kvm_vcpu *vcpu,
			struct frail_event *ev, u64 lstar, struct frail_task_key *key)
{
	ev->vm = vm->id;
	ev->vcpu = vcpu->vcpu_idx;
	ev->cr3 = frail_cr3(vcpu);
	frail_identify(vm, vcpu, lstar, ev, key);
}

static void args64(struct kvm_vcpu *vcpu, u64 *args)
{
	unsigned long *r = vcpu->arch.regs;

	args[0] = r[VCPU_REGS_RDI];
	args[1] = r[VCPU_REGS_RSI];
	args[2] = r[VCPU_REGS_RDX];
	args[3] = r[VCPU_REGS_R10];
	args[4] = r[VCPU_REGS_R8];
	args[5] = r[VCPU_REGS_R9];
}

/* i386's arguments; the one that SYSCALL and SYSENTER leave no register for is on the stack. */
static void args32(struct kvm_vcpu *vcpu, u16 insn, unsigned long sp, u64 *args)
{
	unsigned long *r = vcpu->arch.regs;
	u32 arg6;

	args[0] = (u32)r[VCPU_REGS_RBX];
	args[1] = (u32)r[VCPU_REGS_RCX];
	args[2] = (u32)r[VCPU_REGS_RDX];
	args[3] = (u32)r[VCPU_REGS_RSI];
	args[4] = (u32)r[VCPU_REGS_RDI];
	args[5] = (u32)r[VCPU_REGS_RBP];
	if (insn == FRAIL_INSN_INT80_32 || insn == FRAIL_INSN_INT80_64)
		return;
	args[5] = frail_read_user(vcpu, (u32)sp, &arg6, sizeof(arg6)) ? arg6 : 0;
	/* SYSCALL overwrites ECX: Linux takes it from EBP. */
	if (insn == FRAIL_INSN_SYSCALL32)
		args[1] = (u32)r[VCPU_REGS_RBP];
}

/* The arguments of a call that returns by SYSRET: Linux gives the user's registers back. */
static noinline_for_stack
void tell_exit_data(struct kvm_vcpu *vcpu, const struct frail_event *ev,
		    const struct frail_reads *reads, bool code64)
{
	u64 args[6];

	if (code64)
		args64(vcpu, args);
	else
		args32(vcpu, FRAIL_INSN_SYSCALL32, ev->sp, args);
	frail_tell_data(vcpu, ev, reads, args, code64);
}

/**
 * frail_report_enter() - a guest thread makes a system call
 * @vm: the VM
 * @vcpu: the vCPU, at the instruction or at the kernel's first after it
 * @insn: enum frail_insn
 * @ip: user address after the instruction, 0 if not known
 * @sp: user stack pointer
 * @lstar: the vCPU's LSTAR
 *
 * Return: somebody who listens needs the call's SYSRET to trap.
 */
bool frail_report_enter(struct frail_vm *vm, struct kvm_vcpu *vcpu, u16 insn,
			unsigned long ip, unsigned long sp, u64 lstar)
{
	struct frail_event ev = {
		.kind = FRAIL_EVENT_ENTER,
		.insn = insn,
		.flags = FRAIL_EVENT_NR,
		.nr = (s32)vcpu->arch.regs[VCPU_REGS_RAX],
		.ip = ip,
		.sp = sp,
	};
	bool settling, code64 = insn == FRAIL_INSN_SYSCALL64;
	const struct frail_reads *reads;
	struct frail_task_key key = {};

	vm->vcpus[vcpu->vcpu_idx].enters++;
	if (READ_ONCE(vm->state) != FRAIL_ARMED)
		return false;
	if (unlikely(lstar != READ_ONCE(vm->lstar)))
		frail_vm_new_kernel(vm, vcpu, lstar);
	if (kvmsym.intel && unlikely(lstar != vm->vcpus[vcpu->vcpu_idx].entries_of))
		frail_vmx_follow(vm, vcpu);
	if (!trace_guest_sys_enter_enabled() && !trace_guest_sys_exit_enabled())
		return false;

	fill_common(vm, vcpu, &ev, lstar, &key);
	if (code64)
		args64(vcpu, ev.args);
	else
		args32(vcpu, insn, sp, ev.args);
	settling = frail_call_enter(vm, vcpu, lstar, &ev, &key);
	reads = frail_reads_of(vm, vcpu, ev.nr, code64);
	if (unlikely(reads))
		frail_tell_data(vcpu, &ev, reads, ev.args, code64);
	else
		frail_trace(guest_sys_enter, &ev);
	return settling;
}

/**
 * frail_report_exit() - a guest thread's kernel returns to it by SYSRET
 * @vm: the VM
 * @vcpu: the vCPU, at the instruction
 * @code64: to 64-bit code
 * @target: user address it returns to
 */
void frail_report_exit(struct frail_vm *vm, struct kvm_vcpu *vcpu, bool code64,
		       unsigned long target)
{
	unsigned long ret = vcpu->arch.regs[VCPU_REGS_RAX];
	struct frail_event ev = {
		.kind = FRAIL_EVENT_EXIT,
		.insn = code64 ? FRAIL_INSN_SYSRET64 : FRAIL_INSN_SYSRET32,
		.flags = FRAIL_EVENT_RET,
		.nr = -1,
		.ret = code64 ? (s64)ret : (s32)ret,
		.ip = target,
		.sp = frail_rsp(vcpu),
	};
	const struct frail_reads *reads;
	struct frail_task_key key = {};
	u64 lstar;

	vm->vcpus[vcpu->vcpu_idx].exits++;
	if (!trace_guest_sys_exit_enabled() || READ_ONCE(vm->state) != FRAIL_ARMED)
		return;
	lstar = frail_msr(vcpu, MSR_LSTAR);
	fill_common(vm, vcpu, &ev, lstar, &key);
	frail_call_exit(vm, vcpu, lstar, &ev, &key);
	reads = ev.flags & FRAIL_EVENT_NR && !IS_ERR_VALUE(ev.ret) ?
		frail_reads_of(vm, vcpu, ev.nr, code64) : NULL;
	if (unlikely(reads))
		tell_exit_data(vcpu, &ev, reads, code64);
	else
		frail_trace(guest_sys_exit, &ev);
}

/**
 * frail_report_coverage() - which ways into the guest's kernel trap has changed
 * @vm: the VM
 * @vcpu: the vCPU that changed it
 * @covered: enum frail_entry
 * @blind: likewise
 *
 * May be called in atomic context.
 */
void frail_report_coverage(struct frail_vm *vm, struct kvm_vcpu *vcpu, u32 covered, u32 blind)
{
	struct frail_event ev = {
		.kind = FRAIL_EVENT_COVERAGE,
		.vm = vm->id,
		.vcpu = vcpu->vcpu_idx,
		.args = { covered, blind },
	};

	if (READ_ONCE(vm->state) == FRAIL_ARMED)
		frail_trace(guest_coverage, &ev);
}

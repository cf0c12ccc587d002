// SPDX-License-Identifier: GPL-2.0
/*
 * What a vCPU does at a #UD exit of an armed VM: with EFER.SCE clear in hardware,
 * SYSCALL and SYSRET raise #UD; this emulates them and reports the call.
 *
 * AMD64 Architecture Programmer's Manual vol. 3, SYSCALL and SYSRET; Intel SDM
 * vol. 2B for where Intel differs.
 */
#include <linux/module.h>
#include <asm/debugreg.h>
#include <asm/msr-index.h>
#include <asm/processor-flags.h>

#include "frail.h"

/*
 * Fetches that may fail in a row at one address before the fault they met is
 * injected. Running the instruction again lets the hardware raise what is due;
 * this bounds a guest whose TLB and page tables disagree for ever.
 */
#define REFETCH_MAX	16

/* SYSRET loads these bits of R11; RF and VM are cleared. */
#define SYSRET_FLAGS	0x3c7fd7UL

static unsigned long get_rflags(struct kvm_vcpu *vcpu)
{
	/* KVM's own hides a debugger's TF. */
	return vcpu->guest_debug ? kvmsym.kvm_get_rflags(vcpu) :
				   kvmsym.ops->get_rflags(vcpu);
}

static void set_rflags(struct kvm_vcpu *vcpu, unsigned long rflags)
{
	if (vcpu->guest_debug)
		kvmsym.kvm_set_rflags(vcpu, rflags);
	else
		kvmsym.ops->set_rflags(vcpu, rflags);
}

/* Loads flat CS and SS of privilege @dpl; @code64 or 32-bit code. */
static void load_segments(struct kvm_vcpu *vcpu, u16 cs, u16 ss, u8 dpl, bool code64)
{
	struct kvm_segment seg = {
		.base = 0,
		.limit = 0xffffffff,
		.selector = cs,
		.type = 0xb,
		.present = 1,
		.dpl = dpl,
		.db = !code64,
		.s = 1,
		.l = code64,
		.g = 1,
	};

	kvmsym.ops->set_segment(vcpu, &seg, VCPU_SREG_CS);
	seg.selector = ss;
	seg.type = 3;
	seg.db = 1;
	seg.l = 0;
	kvmsym.ops->set_segment(vcpu, &seg, VCPU_SREG_SS);
}

/*
 * Completes an emulated instruction whose new flags are @rflags: what hardware
 * and a debugger do after it. Returns what the exit handler returns.
 */
static int finish(struct kvm_vcpu *vcpu, unsigned long ip, unsigned long rflags)
{
	frail_set_rip(vcpu, ip);
	set_rflags(vcpu, rflags);
	kvmsym.ops->set_interrupt_shadow(vcpu, 0);

	if (unlikely(vcpu->guest_debug & KVM_GUESTDBG_SINGLESTEP)) {
		vcpu->run->debug.arch.dr6 = DR6_BS | DR6_ACTIVE_LOW;
		vcpu->run->debug.arch.pc = ip;
		vcpu->run->debug.arch.exception = DB_VECTOR;
		vcpu->run->exit_reason = KVM_EXIT_DEBUG;
		return 0;
	}
	if (unlikely(rflags & X86_EFLAGS_TF))
		kvmsym.kvm_queue_exception_p(vcpu, DB_VECTOR, DR6_BS);
	return 1;
}

/* SYSCALL in long mode. */
static int emulate_syscall(struct frail_vm *vm, struct kvm_vcpu *vcpu,
			   const struct frail_insn_at *insn)
{
	u64 lstar = frail_msr(vcpu, MSR_LSTAR);
	u64 star = frail_msr(vcpu, MSR_STAR);
	unsigned long rflags = get_rflags(vcpu) & ~X86_EFLAGS_RF;
	unsigned long saved = rflags;
	u16 cs = (star >> 32) & 0xfffc;
	bool exit_traps;

	exit_traps = frail_report_enter(vm, vcpu,
					insn->code64 ? FRAIL_INSN_SYSCALL64 : FRAIL_INSN_SYSCALL32,
					insn->next, frail_rsp(vcpu), lstar);

	/*
	 * SYSRET cannot restore RF, so Linux leaves by IRET where a user has it set.
	 * Not for 32-bit calls: IRET gives R8 back, where SYSCALL's entry keeps ESP.
	 */
	if (vm->exits == FRAIL_EXITS_ENTRY && !exit_traps && insn->code64 &&
	    !(rflags & X86_EFLAGS_TF) && READ_ONCE(vm->state) == FRAIL_ARMED)
		saved |= X86_EFLAGS_RF;
	frail_set_reg(vcpu, VCPU_REGS_RCX, insn->next);
	frail_set_reg(vcpu, VCPU_REGS_R11, saved);
	load_segments(vcpu, cs, ((star >> 32) & 0xffff) + 8, 0, true);
	rflags &= ~frail_msr(vcpu, MSR_SYSCALL_MASK);
	return finish(vcpu, insn->code64 ? lstar : frail_msr(vcpu, MSR_CSTAR),
		      rflags | X86_EFLAGS_FIXED);
}

static bool canonical(struct kvm_vcpu *vcpu, unsigned long addr)
{
	int bits = vcpu->arch.cr4 & X86_CR4_LA57 ? 57 : 48;

	return (s64)addr >> (bits - 1) == 0 || (s64)addr >> (bits - 1) == -1;
}

/* SYSRET in any protected mode. */
static int emulate_sysret(struct frail_vm *vm, struct kvm_vcpu *vcpu, bool to64)
{
	unsigned long target = vcpu->arch.regs[VCPU_REGS_RCX];
	u64 star = frail_msr(vcpu, MSR_STAR);
	u16 base = star >> 48;
	unsigned long rflags;

	if (kvmsym.ops->get_cpl(vcpu) != 0)
		goto gp;
	if (!to64)
		target = (u32)target;
	/* AMD loads such an address and faults at the fetch, in user mode. */
	else if (boot_cpu_data.x86_vendor == X86_VENDOR_INTEL && !canonical(vcpu, target))
		goto gp;

	frail_report_exit(vm, vcpu, to64, target);

	if (vcpu->arch.efer & EFER_LMA)
		rflags = (vcpu->arch.regs[VCPU_REGS_R11] & SYSRET_FLAGS) | X86_EFLAGS_FIXED;
	else
		rflags = get_rflags(vcpu) | X86_EFLAGS_IF;
	load_segments(vcpu, (to64 ? base + 16 : base) | 3, (base + 8) | 3, 3, to64);
	return finish(vcpu, target, rflags);
gp:
	kvmsym.kvm_queue_exception_e(vcpu, GP_VECTOR, 0);
	return 1;
}

/* Returns what the exit handler returns. */
static int fetch_failed(struct frail_vcpu *fv, struct kvm_vcpu *vcpu,
			unsigned long ip, struct frail_exception *e)
{
	fv->refetch_total++;
	if (fv->refetch_ip != ip) {
		fv->refetch_ip = ip;
		fv->refetches = 0;
	}
	if (fv->refetches++ >= REFETCH_MAX) {
		fv->refetches = 0;
		frail_inject_fault(vcpu, frail_kvm_exception(e));
	}
	return 1;
}

/**
 * frail_handle_ud() - a vCPU of any VM took #UD
 * @vcpu: the vCPU, loaded
 *
 * Runs on the vCPU's thread, preemptible, with kvm->srcu held for reading; may
 * sleep. Allocates nothing.
 *
 * Return: what handle_ud returns (1: resume the guest, 0: leave to user space),
 * or -1 when the #UD is not Frail's and KVM shall handle it.
 */
int frail_handle_ud(struct kvm_vcpu *vcpu)
{
	struct frail_vm *vm = frail_vm_find(vcpu->kvm);
	bool intel = boot_cpu_data.x86_vendor == X86_VENDOR_INTEL;
	struct frail_insn_at insn = {};
	struct frail_exception e;
	struct frail_vcpu *fv;

	if (likely(!vm))
		return -1;
	/* The guest's own #UDs, and those of a guest's guest. */
	if (!(vcpu->arch.efer & EFER_SCE) || frail_is_guest_mode(vcpu) ||
	    !(vcpu->arch.cr0 & X86_CR0_PE))
		return -1;

	fv = &vm->vcpus[vcpu->vcpu_idx];
	switch (frail_fetch(vcpu, &insn, &e)) {
	case FRAIL_FETCH_FAULT:
		return fetch_failed(fv, vcpu, insn.ip, &e);
	case FRAIL_FETCH_NO_RAM:
		return -1;
	case FRAIL_FETCHED:
		fv->refetches = 0;
	}

	/* Intel raises #UD in 32-bit code. */
	if (intel && !insn.code64)
		return -1;
	switch (insn.op) {
	case FRAIL_OP_SYSCALL:
		/*
		 * Outside long mode KVM's emulator does it: no 64-bit kernel's system
		 * calls are there.
		 */
		if (!(vcpu->arch.efer & EFER_LMA))
			return -1;
		return emulate_syscall(vm, vcpu, &insn);
	case FRAIL_OP_SYSRET:
	case FRAIL_OP_SYSRETQ:
		return emulate_sysret(vm, vcpu, insn.op == FRAIL_OP_SYSRETQ);
	default:
		return -1;
	}
}

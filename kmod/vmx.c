// SPDX-License-Identifier: GPL-2.0
/*
 * INT 0x80 and SYSENTER on VMX, which intercepts neither: instruction breakpoints at the
 * guest kernel's own entry points, in the debug registers while the guest has no use for
 * them. They cost an exit for each such call, and loading the registers at VM entry.
 *
 * vcpu->arch.db and dr7 stay the guest's truth; what the hardware gets lies in eff_db and
 * the VMCS. While the guest, or a debugger of it, has breakpoints enabled Frail gives way,
 * and says so.
 *
 * Intel SDM vol. 3B, 18.2 and 18.3.
 */
#include <linux/module.h>
#include <asm/debugreg.h>
#include <asm/msr-index.h>
#include <asm/processor-flags.h>

#include "frail.h"

/*
 * In vcpu->arch.switch_db_regs: load eff_db at VM entry. KVM has bits of its own for that
 * and looks for any.
 */
#define DEBUGREG_FRAIL	BIT(16)

/* L0-L3 and G0-G3. */
#define DR7_ENABLES	0xffUL

/* Indices of frail_vcpu.bp: the debug registers used. */
enum { BP_INT80, BP_SYSENTER };

/* DR7 for the entry points that the vCPU's kernel has; R/W and LEN of 0: instructions. */
static unsigned long enables(const struct frail_vcpu *fv)
{
	return (fv->bp[BP_INT80] ? DR_GLOBAL_ENABLE << (DR_ENABLE_SIZE * BP_INT80) : 0) |
	       (fv->bp[BP_SYSENTER] ? DR_GLOBAL_ENABLE << (DR_ENABLE_SIZE * BP_SYSENTER) : 0);
}

/* What the hardware's DR7 shall be for the guest's, or a debugger's, @dr7. */
static unsigned long place(struct frail_vm *vm, struct kvm_vcpu *vcpu, unsigned long dr7)
{
	struct frail_vcpu *fv = &vm->vcpus[vcpu->vcpu_idx];
	bool want = READ_ONCE(vm->state) == FRAIL_ARMED && enables(fv);
	bool room = !(dr7 & DR7_ENABLES) && !frail_is_guest_mode(vcpu) &&
		    !(vcpu->guest_debug & KVM_GUESTDBG_USE_HW_BP);
	int i;

	if (want && room) {
		for (i = 0; i < ARRAY_SIZE(fv->bp); i++)
			vcpu->arch.eff_db[i] = fv->bp[i];
		vcpu->arch.switch_db_regs |= DEBUGREG_FRAIL;
		dr7 |= enables(fv);
	} else if (vcpu->arch.switch_db_regs & DEBUGREG_FRAIL) {
		vcpu->arch.switch_db_regs &= ~DEBUGREG_FRAIL;
		if (!(vcpu->guest_debug & KVM_GUESTDBG_USE_HW_BP))
			memcpy(vcpu->arch.eff_db, vcpu->arch.db, sizeof(vcpu->arch.eff_db));
	}
	/* A guest of the guest has no calls to see, and its guest's registers go with it. */
	if (!frail_is_guest_mode(vcpu))
		frail_set_blind(vm, vcpu, want && !room ? FRAIL_ENTRY_SYSENTER | FRAIL_ENTRY_INT80 : 0);
	return dr7;
}

static bool placed(struct kvm_vcpu *vcpu)
{
	return vcpu->arch.switch_db_regs & DEBUGREG_FRAIL;
}

/**
 * frail_vcpu_set_dr7() - VMX loads DR7 for a guest
 * @vcpu: a vCPU of any VM, loaded
 * @dr7: the guest's, or its debugger's
 * @rest: the rest of vmx_set_dr7
 *
 * May be called with interrupts off.
 */
void frail_vcpu_set_dr7(struct kvm_vcpu *vcpu, unsigned long dr7, unsigned long rest)
{
	int idx = srcu_read_lock(&frail_srcu);
	struct frail_vm *vm = frail_vm_find_vcpu(vcpu);

	frail_call_rest(vcpu, vm ? place(vm, vcpu, dr7) : dr7, rest);
	srcu_read_unlock(&frail_srcu, idx);
}

/* Loads DR7 anew, through the hook. */
static void reload_dr7(struct kvm_vcpu *vcpu)
{
	kvmsym.ops->set_dr7(vcpu, vcpu->guest_debug & KVM_GUESTDBG_USE_HW_BP ?
				  vcpu->arch.guest_debug_dr7 : vcpu->arch.dr7);
}

/**
 * frail_vcpu_handle_dr() - a vCPU reads or writes a debug register
 * @vcpu: a vCPU of any VM, loaded
 * @unused: the trampoline's second argument
 * @rest: the rest of handle_dr
 *
 * KVM would give the guest the registers themselves until the next exit. While they hold
 * Frail's breakpoints it emulates the access, as it does for a guest that is debugged.
 *
 * Return: what handle_dr returns.
 */
int frail_vcpu_handle_dr(struct kvm_vcpu *vcpu, unsigned long unused, unsigned long rest)
{
	int ret, idx = srcu_read_lock(&frail_srcu);
	bool emulate = placed(vcpu) && !vcpu->guest_debug;

	if (emulate)
		vcpu->guest_debug = KVM_GUESTDBG_ENABLE;
	ret = frail_call_rest(vcpu, 0, rest);
	if (emulate) {
		vcpu->guest_debug = 0;
		/* A write went to eff_db too. */
		reload_dr7(vcpu);
	}
	srcu_read_unlock(&frail_srcu, idx);
	return ret;
}

/* At the first instruction of the kernel's handler of INT 0x80. */
static void report_int80(struct frail_vm *vm, struct kvm_vcpu *vcpu, u64 lstar)
{
	struct { u64 ip, cs, flags, sp, ss; } frame;
	u16 cs64 = (frail_msr(vcpu, MSR_STAR) >> 48) + 16;

	if (!frail_read_kernel(vcpu, frail_rsp(vcpu), &frame, sizeof(frame)) ||
	    (frame.cs & 3) != 3)
		return;
	frail_report_enter(vm, vcpu, (frame.cs & ~3) == (cs64 & ~3) ? FRAIL_INSN_INT80_64 :
								      FRAIL_INSN_INT80_32,
			   frame.ip, frame.sp, lstar);
}

/* At the first instruction of the kernel's SYSENTER entry. */
static void report_sysenter(struct frail_vm *vm, struct kvm_vcpu *vcpu, u64 lstar)
{
	/* The vDSO, and Linux after it, keep the user's stack pointer in EBP. */
	frail_report_enter(vm, vcpu, FRAIL_INSN_SYSENTER, 0,
			   (u32)vcpu->arch.regs[VCPU_REGS_RBP], lstar);
}

/**
 * frail_queue_exception() - KVM gives a guest an exception with a payload
 * @vcpu: a vCPU of any VM, loaded
 * @vector: which exception
 * @payload: what goes into DR6 or CR2 for it
 *
 * Return: 0 when it was Frail's breakpoint, of which the guest shall know nothing, or -1.
 */
int frail_queue_exception(struct kvm_vcpu *vcpu, unsigned int vector, unsigned long payload)
{
	unsigned long traps = 0, ip;
	struct frail_vcpu *fv;
	struct frail_vm *vm;
	int ret = -1, idx;
	u64 lstar;

	if (vector != DB_VECTOR || !placed(vcpu) || frail_is_guest_mode(vcpu))
		return -1;
	idx = srcu_read_lock(&frail_srcu);
	vm = frail_vm_find_vcpu(vcpu);
	if (!vm)
		goto out;
	fv = &vm->vcpus[vcpu->vcpu_idx];
	ip = frail_rip(vcpu);
	if ((payload & DR_TRAP0) && ip == fv->bp[BP_INT80])
		traps |= DR_TRAP0;
	if ((payload & DR_TRAP1) && ip == fv->bp[BP_SYSENTER])
		traps |= DR_TRAP1;
	if (!traps)
		goto out;
	/* In another kernel it may be any instruction. */
	lstar = frail_msr(vcpu, MSR_LSTAR);
	if (lstar == fv->entries_of) {
		if (traps & DR_TRAP0)
			report_int80(vm, vcpu, lstar);
		if ((traps & DR_TRAP1) && ip == frail_msr(vcpu, MSR_IA32_SYSENTER_EIP))
			report_sysenter(vm, vcpu, lstar);
	}
	/* The instruction itself runs without a breakpoint, once. */
	kvmsym.ops->set_rflags(vcpu, kvmsym.ops->get_rflags(vcpu) | X86_EFLAGS_RF);
	/* What came with it is the guest's. */
	if (payload & ~traps & (DR_STEP | DR_TRAP_BITS))
		kvmsym.kvm_queue_exception_p(vcpu, DB_VECTOR, payload & ~traps);
	ret = 0;
out:
	srcu_read_unlock(&frail_srcu, idx);
	return ret;
}

/**
 * frail_vmx_forget() - take away the breakpoints of a kernel that is gone
 * @vm: the VM, armed or being disarmed
 * @vcpu: the vCPU, loaded and not in guest mode
 */
void frail_vmx_forget(struct frail_vm *vm, struct kvm_vcpu *vcpu)
{
	struct frail_vcpu *fv = &vm->vcpus[vcpu->vcpu_idx];

	memset(fv->bp, 0, sizeof(fv->bp));
	fv->entries_of = 0;
	reload_dr7(vcpu);
}

/**
 * frail_vmx_follow() - put the breakpoints at the entry points of a vCPU's kernel
 * @vm: the VM, armed or being disarmed
 * @vcpu: the vCPU, loaded; may sleep
 */
void frail_vmx_follow(struct frail_vm *vm, struct kvm_vcpu *vcpu)
{
	struct frail_vcpu *fv = &vm->vcpus[vcpu->vcpu_idx];
	u64 lstar = frail_msr(vcpu, MSR_LSTAR);

	if (frail_is_guest_mode(vcpu))
		return;
	/* Another kernel's, or none that has come so far. */
	if (!lstar || lstar != READ_ONCE(vm->lstar)) {
		frail_vmx_forget(vm, vcpu);
		return;
	}
	if (frail_int_gate(vcpu, FRAIL_INT80, 3, &fv->bp[BP_INT80]))
		fv->bp[BP_INT80] = 0;
	fv->bp[BP_SYSENTER] = frail_msr(vcpu, MSR_IA32_SYSENTER_CS) & 0xfffc ?
		frail_msr(vcpu, MSR_IA32_SYSENTER_EIP) : 0;
	fv->entries_of = lstar;
	reload_dr7(vcpu);
}

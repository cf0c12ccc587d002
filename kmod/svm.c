// SPDX-License-Identifier: GPL-2.0
/*
 * INT 0x80 on SVM: the hardware intercepts the guest's INT instructions, which KVM never
 * asks for and so has no handler of. One is put into the free place of its table; it
 * reports the call and delivers the interrupt.
 *
 * AMD64 Architecture Programmer's Manual vol. 2, 15.9 and 15.20.
 */
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/vmalloc.h>
#include <asm/msr-index.h>
#include <asm/processor-flags.h>

#include "frail.h"

/* Of a fault's error code: it names an entry of the IDT. */
#define IDT_ERROR	2

/* KVM's table of exit handlers; NULL where INT 0x80 cannot be trapped. */
static void **handlers;

/* The VMCB a vCPU runs its own guest with, or NULL where KVM's structures are unknown. */
static struct vmcb *own_vmcb(struct kvm_vcpu *vcpu)
{
	struct vmcb *vmcb = ((struct frail_vcpu_svm *)vcpu)->vmcb01;

	if (!vmcb || !PAGE_ALIGNED(vmcb) || !virt_addr_valid(vmcb) ||
	    !(vmcb->save.efer & EFER_SVME))
		return NULL;
	return vmcb;
}

/* Has KVM deliver an interrupt. Soft ones skip the instruction first. */
static void inject(struct kvm_vcpu *vcpu, u8 vector, bool soft)
{
	vcpu->arch.interrupt.injected = true;
	vcpu->arch.interrupt.soft = soft;
	vcpu->arch.interrupt.nr = vector;
	kvm_make_request(KVM_REQ_EVENT, vcpu);
}

/*
 * KVM's handler of SVM_EXIT_SWINT. Runs on the vCPU's thread, with kvm->srcu held for
 * reading. Returns what an exit handler returns.
 *
 * INT is delivered as the hardware would have: the gate is checked here, then RIP goes
 * behind the instruction and the rest is an interrupt like others. KVM's own soft
 * interrupts skip the instruction by decoding it again, which fails for vectors from 0x80
 * on where the CPU does not tell the next RIP (is_soft_int_instruction, up to 7.2).
 */
static int handle_swint(struct kvm_vcpu *vcpu)
{
	struct frail_vm *vm = frail_vm_find(vcpu->kvm);
	struct frail_insn_at insn = {};
	struct frail_exception e;
	int fault;

	/* Where the instruction is gone since, the hardware shall look again. */
	if (frail_fetch(vcpu, &insn, &e) != FRAIL_FETCHED || insn.op != FRAIL_OP_INT)
		return 1;
	/* On the way into long mode, or out of it: other gates, and no system calls. */
	if (!(vcpu->arch.efer & EFER_LMA)) {
		inject(vcpu, insn.vector, true);
		return 1;
	}
	fault = frail_int_gate(vcpu, insn.vector, kvmsym.ops->get_cpl(vcpu), NULL);
	if (fault) {
		kvmsym.kvm_queue_exception_e(vcpu, fault, insn.vector << 3 | IDT_ERROR);
		return 1;
	}
	if (insn.vector == FRAIL_INT80 && vm && !frail_is_guest_mode(vcpu) && insn.user)
		frail_report_enter(vm, vcpu,
				   insn.code64 ? FRAIL_INSN_INT80_64 : FRAIL_INSN_INT80_32,
				   insn.next, frail_rsp(vcpu), frail_msr(vcpu, MSR_LSTAR));
	frail_set_rip(vcpu, insn.next);
	kvmsym.ops->set_rflags(vcpu, kvmsym.ops->get_rflags(vcpu) & ~X86_EFLAGS_RF);
	kvmsym.ops->set_interrupt_shadow(vcpu, 0);
	inject(vcpu, insn.vector, false);
	return 1;
}

/* Writes into KVM's table, which is read-only data, by a mapping of its own. */
static bool set_handler(int (*fn)(struct kvm_vcpu *vcpu))
{
	void **at = &handlers[SVM_EXIT_SWINT];
	struct page *page = kvmsym.vendor ? vmalloc_to_page(at) : virt_to_page(lm_alias(at));
	void *map = page ? vmap(&page, 1, VM_MAP, PAGE_KERNEL) : NULL;

	if (!map)
		return false;
	WRITE_ONCE(*(void **)(map + offset_in_page(at)), fn);
	vunmap(map);
	return true;
}

/**
 * frail_svm_init() - prepare to trap INT 0x80
 *
 * Where that fails system calls by INT 0x80 are not seen, and each VM's status says so.
 */
void frail_svm_init(void)
{
	handlers = kvmsym.svm_exit_handlers;
	if (handlers && !handlers[SVM_EXIT_SWINT] && set_handler(handle_swint))
		return;
	handlers = NULL;
	pr_warn("cannot trap INT 0x80 on this kernel: system calls by it are not seen\n");
}

/**
 * frail_svm_exit() - give KVM's table back
 *
 * No vCPU traps INT any more, and none is in the handler.
 */
void frail_svm_exit(void)
{
	if (handlers && !set_handler(NULL))
		pr_warn("cannot take the handler of INT out of KVM's table\n");
}

/**
 * frail_svm_trap_int() - trap a vCPU's INT instructions, or do not any more
 * @vcpu: the vCPU, loaded and not in guest mode
 * @trap: which; for a vCPU that is in long mode or about to be
 *
 * Return: they trap.
 */
bool frail_svm_trap_int(struct kvm_vcpu *vcpu, bool trap)
{
	struct vmcb *vmcb = handlers ? own_vmcb(vcpu) : NULL;
	u32 *word;

	if (!vmcb)
		return false;
	word = &vmcb->control.intercepts[INTERCEPT_INTn / 32];
	if (trap)
		*word |= BIT(INTERCEPT_INTn % 32);
	else
		*word &= ~BIT(INTERCEPT_INTn % 32);
	vmcb->control.clean &= ~FRAIL_SVM_CLEAN_INTERCEPTS;
	return trap;
}

/**
 * frail_svm_encrypted() - a vCPU's guest has encrypted memory (SEV)
 * @vcpu: the vCPU, of SVM
 */
bool frail_svm_encrypted(struct kvm_vcpu *vcpu)
{
	struct vmcb *vmcb = own_vmcb(vcpu);

	return vmcb && (frail_svm_nested_ctl(vmcb) & FRAIL_SVM_NESTED_CTL_SEV);
}

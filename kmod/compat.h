/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Every difference between the kernels Frail supports. The rest of the module
 * reads as if there were one kernel.
 */
#ifndef FRAIL_COMPAT_H
#define FRAIL_COMPAT_H

#include <linux/ftrace.h>
#include <linux/kvm_host.h>
#include <linux/version.h>
#include <asm/svm.h>

#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 1, 0)
#error "frail.ko needs Linux 6.1 or newer"
#endif

#ifndef CONFIG_DYNAMIC_FTRACE_WITH_DIRECT_CALLS
#error "frail.ko needs a kernel with CONFIG_DYNAMIC_FTRACE_WITH_DIRECT_CALLS"
#endif

/*
 * struct x86_exception is private to KVM and grows. Frail only carries it from
 * KVM's page-table walker to KVM's fault injector, so it needs a size that is
 * large enough, not a layout.
 */
struct frail_exception {
	u64 opaque[8];
};

static inline struct x86_exception *frail_kvm_exception(struct frail_exception *e)
{
	return (struct x86_exception *)e;
}

/*
 * KVM's register cache. Bitmaps, a field of its own for RIP and new names since
 * 7.1; before, one word each and RIP among the general registers.
 */
#if LINUX_VERSION_CODE >= KERNEL_VERSION(7, 1, 0)
#define FRAIL_REG_RIP	VCPU_REG_RIP
#define FRAIL_REG_CR3	VCPU_REG_CR3
#define frail_rip_field(vcpu)	((vcpu)->arch.rip)
#define frail_regs_avail(vcpu)	((vcpu)->arch.regs_avail)
#define frail_regs_dirty(vcpu)	((vcpu)->arch.regs_dirty)
#else
#define FRAIL_REG_RIP	VCPU_REGS_RIP
#define FRAIL_REG_CR3	VCPU_EXREG_CR3
#define frail_rip_field(vcpu)	((vcpu)->arch.regs[VCPU_REGS_RIP])
#define frail_regs_avail(vcpu)	((unsigned long *)&(vcpu)->arch.regs_avail)
#define frail_regs_dirty(vcpu)	((unsigned long *)&(vcpu)->arch.regs_dirty)
#endif

static inline bool frail_reg_cached(struct kvm_vcpu *vcpu, int reg)
{
	return test_bit(reg, frail_regs_avail(vcpu));
}

static inline void frail_reg_set_dirty(struct kvm_vcpu *vcpu, int reg)
{
	__set_bit(reg, frail_regs_avail(vcpu));
	__set_bit(reg, frail_regs_dirty(vcpu));
}

/* KVM's injector of a fault that its page-table walker met; Kbuild asks which. */
#ifdef FRAIL_FAULT_FROM_HARDWARE
#define FRAIL_INJECT_FAULT_SYMBOL(S)						\
	S(void, __kvm_inject_emulated_page_fault, (struct kvm_vcpu *vcpu,	\
		struct x86_exception *fault, bool from_hardware))
#define frail_inject_fault(vcpu, fault)						\
	kvmsym.__kvm_inject_emulated_page_fault(vcpu, fault, false)
#else
#define FRAIL_INJECT_FAULT_SYMBOL(S)						\
	S(void, kvm_inject_emulated_page_fault, (struct kvm_vcpu *vcpu,		\
		struct x86_exception *fault))
#define frail_inject_fault(vcpu, fault)						\
	kvmsym.kvm_inject_emulated_page_fault(vcpu, fault)
#endif

/* The thread that ran the vCPU last, with a reference, or NULL. */
static inline struct task_struct *frail_vcpu_thread(struct kvm_vcpu *vcpu)
{
	struct task_struct *task;

#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 13, 0)
	read_lock(&vcpu->pid_lock);
	task = get_pid_task(vcpu->pid, PIDTYPE_PID);
	read_unlock(&vcpu->pid_lock);
#else
	rcu_read_lock();
	task = get_pid_task(rcu_dereference(vcpu->pid), PIDTYPE_PID);
	rcu_read_unlock();
#endif
	return task;
}

/* A VM whose memory or registers the host cannot read, by the type it was made with. */
static inline bool frail_vm_is_protected(struct kvm *kvm)
{
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 8, 0)
	return kvm->arch.vm_type > KVM_X86_SW_PROTECTED_VM;
#else
	return false;
#endif
}

/*
 * KVM has a vendor module. It fills @ops in, and clears no more than this when it is
 * unloaded and KVM is not.
 */
static inline bool frail_kvm_has_vendor(struct kvm_x86_ops *ops)
{
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 12, 0)
	return ops->enable_virtualization_cpu;
#else
	return ops->hardware_enable;
#endif
}

/* The vCPU runs a guest of its guest. */
static inline bool frail_is_guest_mode(struct kvm_vcpu *vcpu)
{
	return vcpu->arch.hflags & HF_GUEST_MASK;
}

/*
 * How KVM's private struct vcpu_svm begins, from 5.13 on. What is read through it is
 * checked where it is used.
 */
struct frail_vcpu_svm {
	struct kvm_vcpu vcpu;
	struct vmcb *vmcb;
	struct vmcb *vmcb01;	/* the first member of a structure */
};

/* VMCB_INTERCEPTS of KVM: bit 0 of the VMCB's clean bits. */
#define FRAIL_SVM_CLEAN_INTERCEPTS	BIT(0)

/* Offset 0x90 of a VMCB, and its bit for SEV. */
#define FRAIL_SVM_NESTED_CTL_SEV	BIT_ULL(1)
#if LINUX_VERSION_CODE >= KERNEL_VERSION(7, 0, 0)
#define frail_svm_nested_ctl(vmcb)	((vmcb)->control.misc_ctl)
#else
#define frail_svm_nested_ctl(vmcb)	((vmcb)->control.nested_ctl)
#endif

/* One ftrace direct call: @tramp runs at the entry of the function at @ip. */
struct frail_direct {
	unsigned long ip;
	unsigned long tramp;
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 4, 0)
	struct ftrace_ops ops;
#endif
};

#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 4, 0)
static inline int frail_direct_attach(struct frail_direct *d)
{
	int err = ftrace_set_filter_ip(&d->ops, d->ip, 0, 1) ?:
		  register_ftrace_direct(&d->ops, d->tramp);

	if (err)
		ftrace_free_filter(&d->ops);
	return err;
}

static inline void frail_direct_detach(struct frail_direct *d)
{
	unregister_ftrace_direct(&d->ops, d->tramp, true);
}
#else
static inline int frail_direct_attach(struct frail_direct *d)
{
	return register_ftrace_direct(d->ip, d->tramp);
}

static inline void frail_direct_detach(struct frail_direct *d)
{
	unregister_ftrace_direct(d->ip, d->tramp);
}
#endif

#endif

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

static inline bool frail_reg_cached(struct kvm_vcpu *vcpu, int reg)
{
	return test_bit(reg, (unsigned long *)&vcpu->arch.regs_avail);
}

static inline void frail_reg_set_dirty(struct kvm_vcpu *vcpu, int reg)
{
	__set_bit(reg, (unsigned long *)&vcpu->arch.regs_avail);
	__set_bit(reg, (unsigned long *)&vcpu->arch.regs_dirty);
}

/* The vCPU runs a guest of its guest. */
static inline bool frail_is_guest_mode(struct kvm_vcpu *vcpu)
{
	return vcpu->arch.hflags & HF_GUEST_MASK;
}

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
	int err = ftrace_set_filter_ip(&d->ops, d->ip, 0, 1);

	return err ?: register_ftrace_direct(&d->ops, d->tramp);
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

// SPDX-License-Identifier: GPL-2.0
/* A livepatch of KVM's handle_ud, for Frail to meet: the function may have one owner. */
#include <linux/livepatch.h>
#include <linux/module.h>

#ifdef CONFIG_LIVEPATCH
struct kvm_vcpu;

/* Never runs: no guest does while the livepatch is on. */
static int patched_handle_ud(struct kvm_vcpu *vcpu)
{
	return 1;
}

static struct klp_func funcs[] = {
	{ .old_name = "handle_ud", .new_func = patched_handle_ud },
	{ }
};

static struct klp_object objects[] = {
	{ .name = "kvm", .funcs = funcs },
	{ }
};

static struct klp_patch patch = { .mod = THIS_MODULE, .objs = objects };

static int __init livepatch_init(void)
{
	return klp_enable_patch(&patch);
}
#else
/* The lab's debug kernel has none. */
static int __init livepatch_init(void)
{
	return -EOPNOTSUPP;
}
#endif

/* Only possible once the livepatch was switched off in /sys/kernel/livepatch. */
static void __exit livepatch_exit(void)
{
}

module_init(livepatch_init);
module_exit(livepatch_exit);
MODULE_INFO(livepatch, "Y");
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Livepatch of KVM's handle_ud, for a test");

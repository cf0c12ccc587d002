// SPDX-License-Identifier: GPL-2.0
/* KVM's functions, found by name. */
#include <linux/kallsyms.h>
#include <linux/kprobes.h>
#include <linux/module.h>

#include "frail.h"

struct frail_symbols kvmsym;

typedef unsigned long (*lookup_name_fn)(const char *name);
typedef struct module *(*module_address_fn)(unsigned long addr);

/* kallsyms_lookup_name is not exported; a kprobe on it tells its address. */
static lookup_name_fn find_lookup_name(void)
{
	struct kprobe kp = { .symbol_name = "kallsyms_lookup_name" };
	int err = register_kprobe(&kp);
	lookup_name_fn fn;

	if (err < 0) {
		pr_err("cannot find kallsyms_lookup_name with a kprobe (error %d): is CONFIG_KPROBES on?\n", err);
		return NULL;
	}
	fn = (lookup_name_fn)kp.addr;
	unregister_kprobe(&kp);
	return fn;
}

/**
 * frail_symbols_resolve() - find everything of KVM that Frail calls
 *
 * Takes a reference on KVM's vendor module, so that what was found stays.
 *
 * Return: 0, -ENODEV when KVM is not loaded, -ENOENT when this kernel lacks a
 * symbol (the log names it).
 */
int frail_symbols_resolve(void)
{
	lookup_name_fn lookup = find_lookup_name();
	module_address_fn module_of;
	struct module *vendor;

	if (!lookup)
		return -ENOENT;

	module_of = (module_address_fn)lookup("__module_address");
	kvmsym.ops = (struct kvm_x86_ops *)lookup("kvm_x86_ops");
	if (!kvmsym.ops || !frail_kvm_has_vendor(kvmsym.ops)) {
		pr_err("KVM is not loaded: load kvm_amd or kvm_intel first\n");
		return -ENODEV;
	}
#define S(ret, name, args)							\
	kvmsym.name = (typeof(kvmsym.name))lookup(#name);			\
	if (!kvmsym.name) {							\
		pr_err("this kernel has no symbol " #name ", which Frail needs\n"); \
		return -ENOENT;							\
	}
	FRAIL_KVM_SYMBOLS(S)
#undef S
#define VENDOR_FUNCTION(member, name)						\
	kvmsym.member = lookup(name);						\
	if (!kvmsym.member) {							\
		pr_err("this kernel has no symbol " name ", which Frail needs\n"); \
		return -ENOENT;							\
	}
	kvmsym.intel = !strcmp(kvmsym.ops->name, "kvm_intel");
	/* By name: the table may point to a wrapper that KVM's own calls go round. */
	if (kvmsym.intel) {
		VENDOR_FUNCTION(set_efer_ip, "vmx_set_efer");
		VENDOR_FUNCTION(set_cr0_ip, "vmx_set_cr0");
		VENDOR_FUNCTION(setup_uret_ip, "vmx_setup_uret_msrs");
		VENDOR_FUNCTION(set_dr7_ip, "vmx_set_dr7");
		VENDOR_FUNCTION(handle_dr_ip, "handle_dr");
	} else {
		VENDOR_FUNCTION(set_efer_ip, "svm_set_efer");
		VENDOR_FUNCTION(set_cr0_ip, "svm_set_cr0");
		kvmsym.svm_exit_handlers = (void **)lookup("svm_exit_handlers");
	}
#undef VENDOR_FUNCTION
	if (!module_of) {
		pr_err("this kernel has no symbol __module_address, which Frail needs\n");
		return -ENOENT;
	}

	/* Built-in KVM has no module to hold. */
	preempt_disable();
	vendor = module_of((unsigned long)kvmsym.ops->set_efer);
	if (vendor && !try_module_get(vendor)) {
		preempt_enable();
		pr_err("KVM is being unloaded\n");
		return -ENODEV;
	}
	preempt_enable();
	kvmsym.vendor = vendor;
	return 0;
}

void frail_symbols_release(void)
{
	if (kvmsym.vendor)
		module_put(kvmsym.vendor);
}

// SPDX-License-Identifier: GPL-2.0
/*
 * The functions of KVM that Frail steps into, by ftrace direct calls.
 *
 * A direct call reaches a trampoline from the function's entry, with the rest of
 * the function as return address. TRAMP_FILTER's trampolines let the rest run, or
 * return to the function's caller in its place. TRAMP_INSTEAD's always do the latter
 * and call the rest themselves. No recursion check, no caller test: what KVM's
 * compiler made of the call (a jump, for one) does not matter.
 *
 * Trampolines are aligned: to newer kernels (CONFIG_DYNAMIC_FTRACE_WITH_JMP) the
 * lowest bit of their address says that a jump, not a call, leads there.
 */
#include <linux/ftrace.h>
#include <linux/linkage.h>
#include <linux/module.h>
#include <linux/objtool.h>
#include <asm/ibt.h>

#include "frail.h"

extern void frail_tramp_handle_ud(void);
extern void frail_tramp_set_efer(void);
extern void frail_tramp_set_cr0(void);
extern void frail_tramp_setup_uret(void);
extern void frail_tramp_set_dr7(void);
extern void frail_tramp_handle_dr(void);
extern void frail_tramp_queue_exception(void);

asm(
"	.pushsection	.text, \"ax\", @progbits\n"

/* Return from the hooked function itself: what it returns is in eax already. */
"	.type		frail_tramp_return, @function\n"
"frail_tramp_return:\n"
	ASM_ENDBR
	ASM_RET
"	.size		frail_tramp_return, .-frail_tramp_return\n"

/* The hook runs first, with the same arguments; below zero means not ours. */
#define TRAMP_FILTER(tramp, hook)						\
"	.balign		16\n"							\
"	.globl		" #tramp "\n"						\
"	.type		" #tramp ", @function\n"				\
#tramp ":\n"									\
	ASM_ENDBR								\
"	pushq		%rbp\n"							\
"	movq		%rsp, %rbp\n"						\
"	pushq		%rdi\n"							\
"	pushq		%rsi\n"							\
"	pushq		%rdx\n"							\
"	call		" #hook "\n"						\
"	popq		%rdx\n"							\
"	popq		%rsi\n"							\
"	popq		%rdi\n"							\
"	testl		%eax, %eax\n"						\
"	js		1f\n"							\
"	movq		$frail_tramp_return, 8(%rbp)\n"				\
"1:	popq		%rbp\n"							\
	ASM_RET									\
"	.size		" #tramp ", .-" #tramp "\n"

TRAMP_FILTER(frail_tramp_handle_ud, frail_handle_ud)
TRAMP_FILTER(frail_tramp_set_cr0, frail_vcpu_set_cr0)
TRAMP_FILTER(frail_tramp_queue_exception, frail_queue_exception)

/* The hook, given the rest as third argument, runs in the function's place. */
#define TRAMP_INSTEAD(tramp, hook)						\
"	.balign		16\n"							\
"	.globl		" #tramp "\n"						\
"	.type		" #tramp ", @function\n"				\
#tramp ":\n"									\
	ASM_ENDBR								\
"	pushq		%rbp\n"							\
"	movq		%rsp, %rbp\n"						\
"	movq		8(%rbp), %rdx\n"					\
"	call		" #hook "\n"						\
"	movq		$frail_tramp_return, 8(%rbp)\n"				\
"	popq		%rbp\n"							\
	ASM_RET									\
"	.size		" #tramp ", .-" #tramp "\n"

TRAMP_INSTEAD(frail_tramp_set_efer, frail_vcpu_set_efer)
TRAMP_INSTEAD(frail_tramp_setup_uret, frail_vcpu_setup_uret)
TRAMP_INSTEAD(frail_tramp_set_dr7, frail_vcpu_set_dr7)
TRAMP_INSTEAD(frail_tramp_handle_dr, frail_vcpu_handle_dr)

/*
 * int frail_call_rest(vcpu, arg, rest): run the rest of a hooked function. By
 * push and return, because its address is not a legal target of an indirect call
 * where the kernel enforces IBT.
 */
"	.globl		frail_call_rest\n"
"	.type		frail_call_rest, @function\n"
"frail_call_rest:\n"
"	pushq		%rdx\n"
	ASM_RET
"	.size		frail_call_rest, .-frail_call_rest\n"
"	.popsection\n"
);
STACK_FRAME_NON_STANDARD(frail_call_rest);

static struct hook {
	const char *what;
	struct frail_direct direct;
	bool attached;
} hooks[7];

static int attach(struct hook *h, const char *what, unsigned long ip, void (*tramp)(void))
{
	int err;

	h->what = what;
	h->direct.ip = ip;
	h->direct.tramp = (unsigned long)tramp;
	err = frail_direct_attach(&h->direct);
	if (err)
		pr_err("cannot hook KVM's %s (error %d): is it owned by a livepatch or another tracer?\n",
		       what, err);
	h->attached = !err;
	return err;
}

/**
 * frail_hooks_install() - step into KVM
 *
 * None of the functions is on the path of an exit that is not #UD, #DB, or a write to
 * EFER, CR0 or a debug register, so VMs that are not armed pay nothing.
 *
 * Return: 0, -EBUSY when another direct call owns one of them already, or ftrace's
 * error.
 */
int frail_hooks_install(void)
{
	struct hook *h = hooks;
	int err;

	err = attach(h++, "set_efer", kvmsym.set_efer_ip, frail_tramp_set_efer) ?:
	      attach(h++, "set_cr0", kvmsym.set_cr0_ip, frail_tramp_set_cr0) ?:
	      attach(h++, "handle_ud", (unsigned long)kvmsym.handle_ud, frail_tramp_handle_ud);
	if (!err && kvmsym.intel)
		err = attach(h++, "setup_uret_msrs", kvmsym.setup_uret_ip, frail_tramp_setup_uret) ?:
		      attach(h++, "set_dr7", kvmsym.set_dr7_ip, frail_tramp_set_dr7) ?:
		      attach(h++, "handle_dr", kvmsym.handle_dr_ip, frail_tramp_handle_dr) ?:
		      attach(h++, "kvm_queue_exception_p", (unsigned long)kvmsym.kvm_queue_exception_p,
			     frail_tramp_queue_exception);
	if (err)
		frail_hooks_remove();
	return err;
}

/**
 * frail_hooks_remove() - step out of KVM
 *
 * No VM is armed any more. Waits for every thread in a trampoline: those before
 * the SRCU section in the hook, those in it, those after it.
 */
void frail_hooks_remove(void)
{
	int i;

	for (i = 0; i < ARRAY_SIZE(hooks); i++)
		if (hooks[i].attached)
			frail_direct_detach(&hooks[i].direct);
	synchronize_rcu_tasks();
	frail_vms_drain();
	synchronize_rcu_tasks();
}

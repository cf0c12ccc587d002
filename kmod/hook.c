// SPDX-License-Identifier: GPL-2.0
/*
 * The functions of KVM that Frail steps into, by ftrace direct calls.
 *
 * A direct call reaches a trampoline from the function's entry, with the rest of
 * the function as return address. handle_ud's trampoline lets the rest run, or
 * returns to handle_ud's caller in its place. The others always do the latter and
 * call the rest themselves. No recursion check, no caller test: what KVM's
 * compiler made of the call (a jump, for one) does not matter.
 */
#include <linux/ftrace.h>
#include <linux/linkage.h>
#include <linux/module.h>
#include <linux/objtool.h>
#include <asm/ibt.h>

#include "frail.h"

extern void frail_tramp_handle_ud(void);
extern void frail_tramp_set_efer(void);
extern void frail_tramp_setup_uret(void);

asm(
"	.pushsection	.text, \"ax\", @progbits\n"

/* Return from the hooked function itself: what it returns is in eax already. */
"	.type		frail_tramp_return, @function\n"
"frail_tramp_return:\n"
	ASM_ENDBR
	ASM_RET
"	.size		frail_tramp_return, .-frail_tramp_return\n"

/* int handle_ud(vcpu): frail_handle_ud() below zero means not ours. */
"	.globl		frail_tramp_handle_ud\n"
"	.type		frail_tramp_handle_ud, @function\n"
"frail_tramp_handle_ud:\n"
	ASM_ENDBR
"	pushq		%rbp\n"
"	movq		%rsp, %rbp\n"
"	pushq		%rdi\n"
"	call		frail_handle_ud\n"
"	popq		%rdi\n"
"	testl		%eax, %eax\n"
"	js		1f\n"
"	movq		$frail_tramp_return, 8(%rbp)\n"
"1:	popq		%rbp\n"
	ASM_RET
"	.size		frail_tramp_handle_ud, .-frail_tramp_handle_ud\n"

/* set_efer and setup_uret_msrs: the hook, given the rest, runs in their place. */
#define TRAMP_INSTEAD(tramp, hook)						\
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

/*
 * int frail_call_rest(vcpu, efer, rest): run the rest of a hooked function. By
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
} hooks[] = {
	{ .what = "set_efer" },
	{ .what = "handle_ud" },
	{ .what = "setup_uret_msrs" },	/* VMX only */
};

/**
 * frail_hooks_install() - step into KVM
 *
 * None of the functions is on the path of an exit that is not #UD, so VMs that are
 * not armed pay nothing.
 *
 * Return: 0, -EBUSY when another direct call owns one of them already, or ftrace's
 * error.
 */
int frail_hooks_install(void)
{
	int i, err;

	hooks[0].direct.ip = kvmsym.set_efer_ip;
	hooks[0].direct.tramp = (unsigned long)frail_tramp_set_efer;
	hooks[1].direct.ip = (unsigned long)kvmsym.handle_ud;
	hooks[1].direct.tramp = (unsigned long)frail_tramp_handle_ud;
	hooks[2].direct.ip = kvmsym.setup_uret_ip;
	hooks[2].direct.tramp = (unsigned long)frail_tramp_setup_uret;
	for (i = 0; i < ARRAY_SIZE(hooks); i++) {
		if (!hooks[i].direct.ip)
			continue;
		err = frail_direct_attach(&hooks[i].direct);
		if (err) {
			pr_err("cannot hook KVM's %s (error %d): is it owned by a livepatch or another tracer?\n",
			       hooks[i].what, err);
			while (i--)
				frail_direct_detach(&hooks[i].direct);
			return err;
		}
	}
	return 0;
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
		if (hooks[i].direct.ip)
			frail_direct_detach(&hooks[i].direct);
	synchronize_rcu_tasks();
	frail_vms_drain();
	synchronize_rcu_tasks();
}

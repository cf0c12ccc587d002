// SPDX-License-Identifier: GPL-2.0
/*
 * The two functions of KVM that Frail steps into, by ftrace direct calls.
 *
 * A direct call reaches a trampoline from the function's entry, with the rest of
 * the function as return address. handle_ud's trampoline lets the rest run, or
 * returns to handle_ud's caller in its place. set_efer's always does the latter
 * and calls the rest itself. No recursion check, no caller test: what KVM's
 * compiler made of the call (a jump, for one) does not matter.
 */
#include <linux/ftrace.h>
#include <linux/linkage.h>
#include <linux/module.h>
#include <linux/objtool.h>

#include "frail.h"

extern void frail_tramp_handle_ud(void);
extern void frail_tramp_set_efer(void);

/* The trampolines' view of the C side; external, so that assembly can name them. */
int frail_hook_set_efer(struct kvm_vcpu *vcpu, u64 efer, unsigned long original);

asm(
"	.pushsection	.text, \"ax\", @progbits\n"

/* Return from the hooked function itself: what it returns is in eax already. */
"	.type		frail_tramp_return, @function\n"
"frail_tramp_return:\n"
	ASM_RET
"	.size		frail_tramp_return, .-frail_tramp_return\n"

/* int handle_ud(vcpu): frail_handle_ud() below zero means not ours. */
"	.globl		frail_tramp_handle_ud\n"
"	.type		frail_tramp_handle_ud, @function\n"
"frail_tramp_handle_ud:\n"
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

/* int set_efer(vcpu, efer): frail_hook_set_efer(vcpu, efer, rest) in its place. */
"	.globl		frail_tramp_set_efer\n"
"	.type		frail_tramp_set_efer, @function\n"
"frail_tramp_set_efer:\n"
"	pushq		%rbp\n"
"	movq		%rsp, %rbp\n"
"	movq		8(%rbp), %rdx\n"
"	call		frail_hook_set_efer\n"
"	movq		$frail_tramp_return, 8(%rbp)\n"
"	popq		%rbp\n"
	ASM_RET
"	.size		frail_tramp_set_efer, .-frail_tramp_set_efer\n"

/*
 * int frail_call_set_efer(vcpu, efer, rest): call the rest of set_efer. By push
 * and return, because its address is not a legal target of an indirect call
 * where the kernel enforces IBT.
 */
"	.globl		frail_call_set_efer\n"
"	.type		frail_call_set_efer, @function\n"
"frail_call_set_efer:\n"
"	pushq		%rdx\n"
	ASM_RET
"	.size		frail_call_set_efer, .-frail_call_set_efer\n"
"	.popsection\n"
);
STACK_FRAME_NON_STANDARD(frail_call_set_efer);

int frail_hook_set_efer(struct kvm_vcpu *vcpu, u64 efer, unsigned long original)
{
	return frail_vcpu_set_efer(vcpu, efer, original);
}

static struct frail_direct hooks[2];

/**
 * frail_hooks_install() - step into KVM
 *
 * Neither function is on the path of an exit that is not #UD, so VMs that are not
 * armed pay nothing.
 *
 * Return: 0, -EBUSY when another direct call owns one of the two functions
 * already, or ftrace's error.
 */
int frail_hooks_install(void)
{
	static const char * const names[] = { "set_efer", "handle_ud" };
	int i, err;

	hooks[0].ip = (unsigned long)kvmsym.ops->set_efer;
	hooks[0].tramp = (unsigned long)frail_tramp_set_efer;
	hooks[1].ip = (unsigned long)kvmsym.handle_ud;
	hooks[1].tramp = (unsigned long)frail_tramp_handle_ud;
	for (i = 0; i < ARRAY_SIZE(hooks); i++) {
		err = frail_direct_attach(&hooks[i]);
		if (err) {
			pr_err("cannot hook KVM's %s (error %d): is it owned by a livepatch or another tracer?\n",
			       names[i], err);
			while (i--)
				frail_direct_detach(&hooks[i]);
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
		frail_direct_detach(&hooks[i]);
	synchronize_rcu_tasks();
	frail_vms_drain();
	synchronize_rcu_tasks();
}

// SPDX-License-Identifier: Apache-2.0
/*
 * What a call leaves in the registers: CALLS times getppid, write exit_group(0)
 *
 * Says of the first one whether RF is set in R11, and of the later ones whether it is in
 * any; of all of them, how many left anything else than SYSCALL and Linux do.
 */
#include "sys.h"

#define CALLS 100
#define RF (1UL << 16)

/* In the order in which the call below stores them. */
enum { RBX, RDX, RSI, RDI, RBP, R8, R9, R10, R12, R13, R14, R15, KEPT };

static ulong after[KEPT], rcx, r11, flags;
extern char behind[];

static void call(void)
{
	/* Below the red zone. */
	asm volatile("sub $128, %%rsp\n\t"
		     "push %%rbp\n\t"
		     "mov $0x1001, %%ebx\n\t"
		     "mov $0x1002, %%edx\n\t"
		     "mov $0x1003, %%esi\n\t"
		     "mov $0x1004, %%edi\n\t"
		     "mov $0x1005, %%ebp\n\t"
		     "mov $0x1006, %%r8d\n\t"
		     "mov $0x1007, %%r9d\n\t"
		     "mov $0x1008, %%r10d\n\t"
		     "mov $0x1009, %%r12d\n\t"
		     "mov $0x100a, %%r13d\n\t"
		     "mov $0x100b, %%r14d\n\t"
		     "mov $0x100c, %%r15d\n\t"
		     "mov %4, %%eax\n\t"
		     "cmp $0, %%eax\n\t"
		     "stc\n\t"
		     "pushfq\n\t"
		     "popq %3\n\t"
		     "syscall\n\t"
		     "behind:\n\t"
		     "mov %%rbx, %0\n\t"
		     "mov %%rdx, 8+%0\n\t"
		     "mov %%rsi, 16+%0\n\t"
		     "mov %%rdi, 24+%0\n\t"
		     "mov %%rbp, 32+%0\n\t"
		     "mov %%r8, 40+%0\n\t"
		     "mov %%r9, 48+%0\n\t"
		     "mov %%r10, 56+%0\n\t"
		     "mov %%r12, 64+%0\n\t"
		     "mov %%r13, 72+%0\n\t"
		     "mov %%r14, 80+%0\n\t"
		     "mov %%r15, 88+%0\n\t"
		     "mov %%rcx, %1\n\t"
		     "mov %%r11, %2\n\t"
		     "pop %%rbp\n\t"
		     "add $128, %%rsp"
		     : "=m"(after), "=m"(rcx), "=m"(r11), "=m"(flags)
		     : "i"(__NR_getppid)
		     : "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11",
		       "r12", "r13", "r14", "r15", "memory", "cc");
}

int run(int argc, char **argv)
{
	int odd = 0, later = 0;

	(void)argc, (void)argv;
	for (int i = 1; i <= CALLS; i++) {
		call();
		for (int r = 0; r < KEPT; r++)
			odd += after[r] != 0x1001UL + r;
		odd += rcx != (ulong)behind;
		odd += (r11 & ~RF) != flags;
		if (i == 1)
			say("first rf", !!(r11 & RF));
		else
			later |= !!(r11 & RF);
	}
	say("later rf", later);
	say("odd", odd);
	write_out();
	return 0;
}

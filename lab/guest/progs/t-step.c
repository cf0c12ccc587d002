// SPDX-License-Identifier: Apache-2.0
/*
 * Single-steps itself across a system call by the trap flag: getpid
 * rt_sigaction getuid, a getppid between two steps, rt_sigreturn after each
 * step, write exit_group(0). Says how many traps there were and where.
 */
#include "sys.h"

#define MAX_TRAPS 32

static volatile int traps;
static volatile ulong where[MAX_TRAPS];
extern char step_begin[];

static void handler(int sig, void *info, void *ctx)
{
	(void)sig, (void)info;
	if (traps < MAX_TRAPS)
		where[traps] = *uc_reg(ctx, UC_RIP) - (ulong)step_begin;
	traps++;
}

int run(int argc, char **argv)
{
	long ret;

	(void)argc, (void)argv;
	say("pid", sys0(__NR_getpid));
	say("sigaction", catch_signal(SIGTRAP, handler));
	/* Below the red zone: the handler's frame and pushf must not meet it. */
	asm volatile("sub $128, %%rsp\n\t"
		     "pushfq\n\t"
		     "orq $0x100, (%%rsp)\n\t"
		     "popfq\n\t"
		     "step_begin: nop\n\t"
		     "mov %1, %%eax\n\t"
		     "syscall\n\t"
		     "nop\n\t"
		     "pushfq\n\t"
		     "andq $~0x100, (%%rsp)\n\t"
		     "popfq\n\t"
		     "nop\n\t"
		     "add $128, %%rsp"
		     : "=&a"(ret)
		     : "i"(__NR_getppid)
		     : "rcx", "r11", "memory", "cc");
	say("positive", ret > 0);
	say("traps", traps);
	for (int i = 0; i < traps && i < MAX_TRAPS; i++)
		say("at", where[i]);
	write_out();
	return 0;
}

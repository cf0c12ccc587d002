// SPDX-License-Identifier: Apache-2.0
/*
 * Takes SIGSEGV twice and lives: getpid rt_sigaction, then twice a fault whose
 * handler makes gettid and ends by rt_sigreturn behind the faulting
 * instruction; getppid write exit_group(42)
 */
#include "sys.h"

static volatile int caught;

static void handler(int sig, void *info, void *ctx)
{
	(void)info;
	if (sig == SIGSEGV)
		caught++;
	sys0(__NR_gettid);
	*uc_reg(ctx, UC_RIP) += 2;	/* movl %eax, (%rdx) */
}

int run(int argc, char **argv)
{
	(void)argc, (void)argv;
	say("pid", sys0(__NR_getpid));
	say("sigaction", catch_signal(SIGSEGV, handler));
	for (int i = 0; i < 2; i++)
		asm volatile(".byte 0x89, 0x02" : : "a"(1), "d"(8UL) : "memory");
	say("caught", caught);
	sys0(__NR_getppid);
	write_out();
	return 42;
}

// SPDX-License-Identifier: Apache-2.0
/*
 * Instructions that are illegal traced or not: getpid rt_sigaction
 * rt_sigaction, then UD2 and both SYSRETs outside the kernel, each of which is
 * a signal whose handler ends by rt_sigreturn; write exit_group(0)
 */
#include "sys.h"

static volatile int caught[32];
static volatile ulong at;

static void handler(int sig, void *info, void *ctx)
{
	(void)info;
	caught[sig & 31]++;
	*uc_reg(ctx, UC_RIP) = at;
}

#define ILLEGAL(name, bytes) \
	do { \
		long ret = __NR_getuid; \
		asm volatile("lea 1f(%%rip), %%rcx\n\t" \
			     "mov %%rcx, %1\n\t" \
			     "2: .byte " bytes "\n\t" \
			     "1:" \
			     : "+a"(ret), "=m"(at) \
			     : \
			     : "rcx", "r11", "memory"); \
		say(name ".ax", ret); \
		say(name ".sigill", caught[SIGILL]); \
		say(name ".sigsegv", caught[SIGSEGV]); \
	} while (0)

int run(int argc, char **argv)
{
	(void)argc, (void)argv;
	say("pid", sys0(__NR_getpid));
	say("sigaction", catch_signal(SIGILL, handler));
	say("sigaction", catch_signal(SIGSEGV, handler));
	ILLEGAL("ud2", "0x0f, 0x0b");
	ILLEGAL("sysretq", "0x48, 0x0f, 0x07");
	ILLEGAL("sysretl", "0x0f, 0x07");
	write_out();
	return 0;
}

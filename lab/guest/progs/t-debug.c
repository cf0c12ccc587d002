// SPDX-License-Identifier: Apache-2.0
/*
 * A child for which its parent uses a debug register: it stops at its breakpoint, and
 * nowhere else. By INT 0x80, whose numbers are i386's:
 *
 * child: ptrace(TRACEME) getpid kill(SIGSTOP), ROUNDS times getppid (64) before the
 *	breakpoint and ROUNDS times gettid (224) after it, when it is gone, exit_group(5)
 */
#include "sys.h"

#define ROUNDS 5
#define SIGCHLD 17
#define SIGSTOP 19
#define PTRACE_TRACEME 0
#define PTRACE_PEEKUSER 3
#define PTRACE_POKEUSER 6
#define PTRACE_CONT 7
/* Offset of u_debugreg[n] in struct user, and L0 of DR7. */
#define DEBUGREG(n) (848 + 8 * (n))
#define L0 1

static void int80(long nr)
{
	asm volatile("int $0x80" : "+a"(nr) : : "r8", "r9", "r10", "r11", "memory");
}

__attribute__((noinline)) static void watched(void)
{
	asm volatile("" ::: "memory");
}

static int stops(long child, int sig)
{
	int status = 0;

	return sys4(__NR_wait4, child, &status, 0, 0) == child && status == (sig << 8 | 0x7f);
}

int run(int argc, char **argv)
{
	long child = sys5(__NR_clone, SIGCHLD, 0, 0, 0, 0);
	ulong dr6 = 0;
	int status = 0;

	(void)argc, (void)argv;
	if (child == 0) {
		sys4(__NR_ptrace, PTRACE_TRACEME, 0, 0, 0);
		sys2(__NR_kill, sys0(__NR_getpid), SIGSTOP);
		for (int i = 0; i < ROUNDS; i++)
			int80(64);
		watched();
		for (int i = 0; i < ROUNDS; i++)
			int80(224);
		quit(5);
	}
	say("stopped", stops(child, SIGSTOP));
	say("address", sys4(__NR_ptrace, PTRACE_POKEUSER, child, DEBUGREG(0), watched));
	say("enable", sys4(__NR_ptrace, PTRACE_POKEUSER, child, DEBUGREG(7), L0));
	sys4(__NR_ptrace, PTRACE_CONT, child, 0, 0);
	say("trapped", stops(child, SIGTRAP));
	sys4(__NR_ptrace, PTRACE_PEEKUSER, child, DEBUGREG(6), &dr6);
	say("which", dr6 & 15);
	say("disable", sys4(__NR_ptrace, PTRACE_POKEUSER, child, DEBUGREG(7), 0));
	sys4(__NR_ptrace, PTRACE_CONT, child, 0, 0);
	sys4(__NR_wait4, child, &status, 0, 0);
	say("status", status >> 8);
	write_out();
	return 0;
}

// SPDX-License-Identifier: Apache-2.0
/*
 * A child that its parent stops at every call and return, changing nothing.
 *
 * child: ptrace(TRACEME) getpid kill(SIGSTOP), ROUNDS times getppid,
 *	exit_group(5)
 */
#include "sys.h"

#define ROUNDS 5
#define SIGCHLD 17
#define SIGSTOP 19
#define PTRACE_TRACEME 0
#define PTRACE_SYSCALL 24

int run(int argc, char **argv)
{
	int status = 0, stops = 0;
	long child = sys5(__NR_clone, SIGCHLD, 0, 0, 0, 0);

	(void)argc, (void)argv;
	if (child == 0) {
		sys4(__NR_ptrace, PTRACE_TRACEME, 0, 0, 0);
		sys2(__NR_kill, sys0(__NR_getpid), SIGSTOP);
		for (int i = 0; i < ROUNDS; i++)
			sys0(__NR_getppid);
		quit(5);
	}
	while (sys4(__NR_wait4, child, &status, 0, 0) == child && (status & 0x7f) == 0x7f) {
		stops++;
		sys4(__NR_ptrace, PTRACE_SYSCALL, child, 0, 0);
	}
	say("stops", stops);
	say("status", status >> 8);
	write_out();
	return 0;
}

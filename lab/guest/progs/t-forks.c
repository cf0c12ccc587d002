// SPDX-License-Identifier: Apache-2.0
/*
 * Three children, one after the other, each with its own calls and status.
 *
 * parent: getpid, then for i of 0..2: clone wait4, then write exit_group(0)
 * child i: getpid getppid, (i+1) times sched_yield, write exit_group(10+i)
 */
#include "sys.h"

#define CHILDREN 3
#define SIGCHLD 17

int run(int argc, char **argv)
{
	(void)argc, (void)argv;
	say("pid", sys0(__NR_getpid));
	for (int i = 0; i < CHILDREN; i++) {
		int status = 0;
		long pid = sys5(__NR_clone, SIGCHLD, 0, 0, 0, 0);

		if (pid == 0) {
			out_len = 0;
			say("child", sys0(__NR_getpid));
			say("parent", sys0(__NR_getppid));
			for (int j = 0; j <= i; j++)
				sys0(__NR_sched_yield);
			write_out();
			quit(10 + i);
		}
		say("forked", pid);
		say("waited", sys4(__NR_wait4, pid, &status, 0, 0));
		say("status", status >> 8);
	}
	write_out();
	return 0;
}

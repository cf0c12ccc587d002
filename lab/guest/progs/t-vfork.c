// SPDX-License-Identifier: Apache-2.0
/*
 * A child that becomes t-target: getpid vfork wait4 write exit_group(0)
 *
 * child: execve(t-target), then as t-target
 */
#include "sys.h"

int run(int argc, char **argv)
{
	static char *const args[] = { "t-target", "3", NULL };
	static int status;
	long child;

	(void)argc, (void)argv;
	say("pid", sys0(__NR_getpid));
	child = sys0(__NR_vfork);
	if (child == 0) {
		sys3(__NR_execve, "/bin/t-target", args, NULL);
		quit(1);
	}
	say("child", child);
	say("waited", sys4(__NR_wait4, child, &status, 0, 0));
	say("status", status >> 8);
	write_out();
	return 0;
}

// SPDX-License-Identifier: Apache-2.0
/*
 * Becomes t-target: the same process under another name.
 *
 * as t-execs: getpid execve(/nonexistent)=-ENOENT write execve(t-target)
 */
#include "sys.h"

int run(int argc, char **argv)
{
	static char *const args[] = { "t-target", "7", NULL };

	(void)argc, (void)argv;
	say("pid", sys0(__NR_getpid));
	say("missing", sys3(__NR_execve, "/nonexistent", args, NULL));
	write_out();
	sys3(__NR_execve, "/bin/t-target", args, NULL);
	return 1;
}

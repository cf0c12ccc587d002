// SPDX-License-Identifier: Apache-2.0
/*
 * What t-execs becomes: getpid gettid write exit_group(argument)
 */
#include "sys.h"

int run(int argc, char **argv)
{
	say("pid", sys0(__NR_getpid));
	say("tid", sys0(__NR_gettid));
	write_out();
	return argc > 1 ? argv[1][0] - '0' : 0;
}

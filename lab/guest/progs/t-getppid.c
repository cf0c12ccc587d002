// SPDX-License-Identifier: Apache-2.0
/*
 * Load: getpid, then as many getppid as the argument says, or for ever if it
 * is 0; write exit_group(0)
 */
#include "sys.h"

int run(int argc, char **argv)
{
	long n = 0;

	for (const char *p = argc > 1 ? argv[1] : "1000"; *p >= '0' && *p <= '9'; p++)
		n = n * 10 + *p - '0';
	say("pid", sys0(__NR_getpid));
	for (long i = 0; n == 0 || i < n; i++)
		sys0(__NR_getppid);
	say("rounds", n);
	write_out();
	return 0;
}

// SPDX-License-Identifier: Apache-2.0
/*
 * Load without system calls: getpid, then CPUID, which always exits to KVM, as
 * often as the argument says, or for ever if it is 0; write exit_group(0).
 * What it does to a host, tracing is not the cause of.
 */
#include "sys.h"

int run(int argc, char **argv)
{
	long n = 0;

	for (const char *p = argc > 1 ? argv[1] : "1000"; *p >= '0' && *p <= '9'; p++)
		n = n * 10 + *p - '0';
	say("pid", sys0(__NR_getpid));
	for (long i = 0; n == 0 || i < n; i++) {
		int a = 0, b, c = 0, d;

		asm volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
	}
	say("rounds", n);
	write_out();
	return 0;
}

// SPDX-License-Identifier: Apache-2.0
/*
 * Dies of SIGSEGV on purpose: getpid write, then a store to address 8.
 */
#include "sys.h"

int run(int argc, char **argv)
{
	(void)argc, (void)argv;
	say("pid", sys0(__NR_getpid));
	write_out();
	asm volatile("movl $1, (%0)" : : "r"(8UL) : "memory");
	return 0;
}

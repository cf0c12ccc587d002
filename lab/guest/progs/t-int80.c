// SPDX-License-Identifier: Apache-2.0
/*
 * The old entry from 64-bit code: getpid, one getpid by INT 0x80 (its number
 * in i386's table is 20), write exit_group(0)
 */
#include "sys.h"

int run(int argc, char **argv)
{
	long pid, ret;

	(void)argc, (void)argv;
	pid = sys0(__NR_getpid);
	say("pid", pid);
	asm volatile("int $0x80" : "=a"(ret) : "a"(20) : "r8", "r9", "r10", "r11", "memory");
	say("same", ret == pid);
	write_out();
	return 0;
}

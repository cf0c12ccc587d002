// SPDX-License-Identifier: Apache-2.0
/*
 * LOCK SYSCALL, which is no system call but illegal: getpid, then SIGILL kills
 * the program. (QEMU's TCG runs it as a system call where nobody traps it, so
 * an untraced run in the lab differs: exit_group(3) after it.)
 */
#include "sys.h"

int run(int argc, char **argv)
{
	long ret;

	(void)argc, (void)argv;
	sys0(__NR_getpid);
	asm volatile(".byte 0xf0, 0x0f, 0x05"
		     : "=a"(ret)
		     : "a"(__NR_getuid)
		     : "rcx", "r11", "memory");
	return 3;
}

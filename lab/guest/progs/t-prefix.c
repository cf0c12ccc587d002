// SPDX-License-Identifier: Apache-2.0
/*
 * SYSCALL with prefixes, all of which the CPU ignores: getpid, then getuid by
 * each form, write exit_group(0)
 */
#include "sys.h"

#define FORM(bytes) \
	do { \
		long ret; \
		asm volatile(".byte " bytes ", 0x0f, 0x05" \
			     : "=a"(ret) \
			     : "a"(__NR_getuid) \
			     : "rcx", "r11", "memory"); \
		put(bytes "="); \
		put_dec(ret); \
		put("\n"); \
	} while (0)

int run(int argc, char **argv)
{
	(void)argc, (void)argv;
	say("pid", sys0(__NR_getpid));
	FORM("0x66");
	FORM("0x40");
	FORM("0x48");
	FORM("0x4f");
	FORM("0xf3");
	FORM("0xf2");
	FORM("0x2e");
	FORM("0x3e");
	FORM("0x64");
	FORM("0x65");
	FORM("0x67");
	FORM("0x66, 0x66, 0x66, 0x66");
	FORM("0x2e, 0x66, 0x67, 0x48");
	FORM("0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66");
	write_out();
	return 0;
}

// SPDX-License-Identifier: Apache-2.0
/*
 * SYSCALL whose two bytes lie in two pages: getpid mmap munmap(page behind),
 * getuid by an instruction at the end of its mapping, getuid by
 * one that crosses, write exit_group(0)
 */
#include "sys.h"

#define PAGE 4096
#define PROT_RWX 7
#define MAP_PRIVATE_ANON 0x22
#define MAP_FIXED 0x10

static long call(unsigned char *insn)
{
	long ret;

	asm volatile("call *%1"
		     : "=a"(ret)
		     : "r"(insn), "0"((long)__NR_getuid)
		     : "rcx", "r11", "memory");
	return ret;
}

int run(int argc, char **argv)
{
	unsigned char *p;

	(void)argc, (void)argv;
	say("pid", sys0(__NR_getpid));
	p = (unsigned char *)sys6(__NR_mmap, 0, 3 * PAGE, PROT_RWX, MAP_PRIVATE_ANON, -1, 0);
	say("munmap", sys2(__NR_munmap, p + 2 * PAGE, PAGE));
	/* syscall; ret, the last three bytes before nothing. */
	p[2 * PAGE - 3] = 0x0f;
	p[2 * PAGE - 2] = 0x05;
	p[2 * PAGE - 1] = 0xc3;
	say("last", call(p + 2 * PAGE - 3));
	p[PAGE - 1] = 0x0f;
	p[PAGE] = 0x05;
	p[PAGE + 1] = 0xc3;
	say("cross", call(p + PAGE - 1));
	write_out();
	return 0;
}

// SPDX-License-Identifier: Apache-2.0
/*
 * Calls whose saved registers a page fault then writes over, before the next
 * call: with other registers, elsewhere, and at the call's own return address.
 *
 * getpid mmap, ROUNDS times: stat(NULL) getppid, lstat(NULL) getppid, poll
 * getppid; munmap write exit_group(0)
 */
#include "sys.h"

#define PAGE 4096UL
#define ROUNDS 20
#define LOOPS 3		/* pages that each call's code touches */
#define PROT_RW 3
#define MAP_PRIVATE_ANON 0x22

/* The call; then touches a page, ax by then something else, at its return address. */
#define TOUCH(nr, insn) \
	do { \
		long ax = nr, loops = LOOPS; \
		asm volatile("syscall\n\t" \
			     "1: " insn "\n\t" \
			     "mov $0x5678, %%eax\n\t" \
			     "add %5, %2\n\t" \
			     "dec %1\n\t" \
			     "jnz 1b" \
			     : "+a"(ax), "+r"(loops), "+r"(page) \
			     : "D"(0), "S"(0), "r"(PAGE), "d"(0) \
			     : "rcx", "r8", "r11", "memory"); \
		sys0(__NR_getppid); \
	} while (0)

int run(int argc, char **argv)
{
	const ulong size = ROUNDS * 3 * LOOPS * PAGE;
	ulong page, start;

	(void)argc, (void)argv;
	say("pid", sys0(__NR_getpid));
	start = sys6(__NR_mmap, 0, size, PROT_RW, MAP_PRIVATE_ANON, -1, 0);
	page = start;
	for (int i = 0; i < ROUNDS; i++) {
		/* The numbers are those of the faults' error codes. */
		TOUCH(__NR_stat, "movb (%2), %%r8b");	/* 4: read */
		TOUCH(__NR_lstat, "movb %%r8b, (%2)");	/* 6: write */
		TOUCH(__NR_poll, "movb (%2), %%r8b; movb %%r8b, (%2)");	/* 7: write, the page is there */
	}
	say("munmap", sys2(__NR_munmap, start, size));
	write_out();
	return 0;
}

// SPDX-License-Identifier: Apache-2.0
/*
 * System calls from a page that another thread keeps taking away: the fetch
 * of a trapped instruction fails now and then, which must never become a
 * signal.
 *
 * main: getpid clone, ROUNDS times getuid from the page,
 *	futex, write exit_group(0)
 * thread: madvise(MADV_DONTNEED) of the page until main is done, exit(0)
 */
#include "sys.h"

#define PAGE 4096
#define ROUNDS 3000
#define PROT_READ_EXEC 5
#define MAP_PRIVATE 2
#define MADV_DONTNEED 4
#define THREAD_FLAGS (0x100 | 0x200 | 0x400 | 0x800 | 0x10000 | 0x40000 | 0x100000 | 0x200000)

static char stack[8192] __attribute__((aligned(16)));
static volatile int tid, done;
static void *page;

/* A page of the program's own file: dropped, it is read in again. */
asm(".section .page, \"ax\"\n"
    ".balign 4096\n"
    "page_code: syscall\n"
    "	ret\n"
    ".balign 4096\n"
    ".text\n");
extern char page_code[];

static void __attribute__((noreturn)) thread(void)
{
	while (!done)
		sys3(__NR_madvise, page, PAGE, MADV_DONTNEED);
	for (;;)
		sys1(__NR_exit, 0);
}

int run(int argc, char **argv)
{
	void **top = (void **)(stack + sizeof(stack)) - 2;
	register long r10 asm("r10");
	register long r8 asm("r8");
	long ret, bad = 0;

	(void)argc, (void)argv;
	say("pid", sys0(__NR_getpid));
	page = page_code;
	top[0] = (void *)thread;
	r10 = (long)&tid;
	r8 = 0;
	asm volatile("syscall\n\t"
		     "test %%rax, %%rax\n\t"
		     "jnz 1f\n\t"
		     "pop %%rax\n\t"
		     "call *%%rax\n\t"
		     "1:"
		     : "=a"(ret)
		     : "a"(__NR_clone), "D"(THREAD_FLAGS), "S"(top), "d"(&tid), "r"(r10), "r"(r8)
		     : "rcx", "r11", "memory");
	say("thread", ret);
	for (int i = 0; i < ROUNDS; i++) {
		long uid;

		asm volatile("call *%1"
			     : "=a"(uid)
			     : "r"(page_code), "0"((long)__NR_getuid)
			     : "rcx", "r11", "memory");
		bad += uid != 0;
	}
	done = 1;
	sys6(__NR_futex, (ulong)&tid, 0, ret, 0, 0, 0);
	say("bad", bad);
	write_out();
	return 0;
}

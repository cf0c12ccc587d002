// SPDX-License-Identifier: Apache-2.0
/*
 * Four threads that run at the same time, each with its own name.
 *
 * main: getpid, for each thread: clone; for each thread: futex (one wait,
 *	which ends at once if the thread is gone already); write exit_group(0)
 * thread i: prctl(PR_SET_NAME, "t-thread-i") gettid, ROUNDS times getppid,
 *	(i+1) times getuid, exit(0)
 */
#include "sys.h"

#define THREADS 4
#define ROUNDS 50
#define PR_SET_NAME 15
#define FUTEX_WAIT 0
/* VM FS FILES SIGHAND THREAD SYSVSEM PARENT_SETTID CHILD_CLEARTID */
#define THREAD_FLAGS (0x100 | 0x200 | 0x400 | 0x800 | 0x10000 | 0x40000 | 0x100000 | 0x200000)

static char stacks[THREADS][8192] __attribute__((aligned(16)));
static volatile int tids[THREADS];	/* cleared by the kernel at the end */
static int ids[THREADS];

static void __attribute__((noreturn)) thread(long i)
{
	char name[] = "t-thread-0";

	name[9] += i;
	sys2(__NR_prctl, PR_SET_NAME, name);
	ids[i] = sys0(__NR_gettid);
	for (int j = 0; j < ROUNDS; j++)
		sys0(__NR_getppid);
	for (int j = 0; j <= i; j++)
		sys0(__NR_getuid);
	for (;;)
		sys1(__NR_exit, 0);
}

static long start(long i)
{
	void **top = (void **)(stacks[i] + sizeof(stacks[i])) - 2;
	register long r10 asm("r10") = (long)&tids[i];
	register long r8 asm("r8") = 0;
	long ret;

	top[0] = (void *)thread;
	top[1] = (void *)i;
	/* The child begins with an empty stack: what it needs is on it. */
	asm volatile("syscall\n\t"
		     "test %%rax, %%rax\n\t"
		     "jnz 1f\n\t"
		     "xor %%ebp, %%ebp\n\t"
		     "pop %%rax\n\t"
		     "pop %%rdi\n\t"
		     "call *%%rax\n\t"
		     "1:"
		     : "=a"(ret)
		     : "a"(__NR_clone), "D"(THREAD_FLAGS), "S"(top), "d"(&tids[i]), "r"(r10), "r"(r8)
		     : "rcx", "r11", "memory");
	return ret;
}

int run(int argc, char **argv)
{
	long started[THREADS];

	(void)argc, (void)argv;
	say("pid", sys0(__NR_getpid));
	for (long i = 0; i < THREADS; i++)
		started[i] = start(i);
	for (int i = 0; i < THREADS; i++)
		sys6(__NR_futex, (ulong)&tids[i], FUTEX_WAIT, started[i], 0, 0, 0);
	for (int i = 0; i < THREADS; i++) {
		say("thread", started[i]);
		say("alive", tids[i]);
		say("same", started[i] == ids[i]);
	}
	write_out();
	return 0;
}

// SPDX-License-Identifier: Apache-2.0
/*
 * A process of the tests' guest that is hard to describe, by its first argument:
 *
 * memfd FILE ARGS: runs a copy of FILE, which is in memory only, with ARGS
 * ids: has real, effective and saved ids that differ, and waits for ever
 * threads: has two threads more, called "second", and waits for ever
 */
#include "sys.h"

#define AT_EMPTY_PATH 0x1000
#define PR_SET_NAME 15
/* VM FS FILES SIGHAND THREAD SYSVSEM */
#define THREAD_FLAGS (0x100 | 0x200 | 0x400 | 0x800 | 0x10000 | 0x40000)

static void __attribute__((noreturn)) wait_for_ever(void)
{
	for (;;)
		sys0(__NR_pause);
}

static void __attribute__((noreturn)) thread(void)
{
	sys2(__NR_prctl, PR_SET_NAME, "second");
	wait_for_ever();
}

static void start(char *stack_end)
{
	void **top = (void **)stack_end - 2;
	long ret = __NR_clone;

	top[0] = thread;
	asm volatile("syscall\n"
		     "test %%rax, %%rax\n"
		     "jnz 1f\n"
		     "ret\n"
		     "1:"
		     : "+a"(ret) : "D"(THREAD_FLAGS), "S"(top), "d"(0) : "rcx", "r11", "memory");
}

static void run_in_memory(char **argv)
{
	/* With a slash, which no file's name has. */
	long memory = sys2(__NR_memfd_create, "a/b", 0), file = sys3(__NR_open, argv[0], 0, 0);
	static char *const environment[] = { NULL };

	while (sys4(__NR_sendfile, memory, file, 0, 1 << 20) > 0)
		;
	sys5(__NR_execveat, memory, "", argv + 1, environment, AT_EMPTY_PATH);
}

static int equal(const char *a, const char *b)
{
	for (; *a && *a == *b; a++, b++)
		;
	return *a == *b;
}

int run(int argc, char **argv)
{
	static char stacks[2][8192] __attribute__((aligned(16)));

	if (argc > 3 && equal(argv[1], "memfd")) {
		run_in_memory(argv + 2);
		return 1;
	}
	if (argc > 1 && equal(argv[1], "ids")) {
		sys3(__NR_setresgid, 1001, 1002, 1003);
		sys3(__NR_setresuid, 1000, 2000, 3000);
	}
	if (argc > 1 && equal(argv[1], "threads")) {
		start(stacks[0] + sizeof(stacks[0]));
		start(stacks[1] + sizeof(stacks[1]));
	}
	wait_for_ever();
}

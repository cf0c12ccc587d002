// SPDX-License-Identifier: Apache-2.0
/*
 * A 32-bit program that makes its calls by INT 0x80: ROUNDS times getppid,
 * openat(/nonexistent)=-ENOENT, 500 with six arguments, write exit_group(32)
 */
/* i386's numbers: its headers are in no package that a 64-bit gcc needs. */
#define __NR_write 4
#define __NR_getppid 64
#define __NR_exit_group 252
#define __NR_openat 295

#define AT_FDCWD (-100)
#define ROUNDS 10

static long call6(long nr, long a, long b, long c, long d, long e, long f)
{
	long block[] = { a, f };	/* ebx and ebp are the compiler's */
	long ret;

	asm volatile("pushl %%ebx\n\t"
		     "pushl %%ebp\n\t"
		     "movl 4(%1), %%ebp\n\t"
		     "movl (%1), %%ebx\n\t"
		     "int $0x80\n\t"
		     "popl %%ebp\n\t"
		     "popl %%ebx"
		     : "=a"(ret)
		     : "b"(block), "0"(nr), "c"(b), "d"(c), "S"(d), "D"(e)
		     : "memory");
	return ret;
}

__attribute__((used)) static void run(void)
{
	static const char done[] = "done=1\n";

	for (int i = 0; i < ROUNDS; i++)
		call6(__NR_getppid, 0, 0, 0, 0, 0, 0);
	call6(__NR_openat, AT_FDCWD, (long)"/nonexistent", 0, 0, 0, 0);
	call6(500, 0x11111111, 0x22222222, 0x33333333, 0x44444444, 0x55555555, 0x66666666);
	call6(__NR_write, 1, (long)done, sizeof(done) - 1, 0, 0, 0);
	for (;;)
		call6(__NR_exit_group, 32, 0, 0, 0, 0, 0);
}

asm(".text\n"
    ".globl _start\n"
    "_start: xor %ebp, %ebp\n"
    "	and $-16, %esp\n"
    "	call run\n"
    "	ud2\n");

// SPDX-License-Identifier: Apache-2.0
/*
 * A 32-bit program, through the entry the kernel offers in its vDSO (SYSCALL
 * on AMD, SYSENTER on Intel): getpid gettid openat(/nonexistent)=-ENOENT
 * getppid, 500 with six arguments, write exit_group(32)
 */
/* i386's numbers: its headers are in no package that a 64-bit gcc needs. */
#define __NR_write 4
#define __NR_getpid 20
#define __NR_getppid 64
#define __NR_gettid 224
#define __NR_exit_group 252
#define __NR_openat 295

#define AT_SYSINFO 32
#define AT_FDCWD (-100)

static unsigned long entry;

static long call6(long nr, long a, long b, long c, long d, long e, long f)
{
	/* ebp is the sixth argument, ebx the first; both are ours to restore. */
	long block[] = { nr, a, b, c, d, e, f, (long)entry };
	long ret;

	asm volatile("pushl %%ebx\n\t"
		     "pushl %%ebp\n\t"
		     "movl %1, %%eax\n\t"
		     "pushl 28(%%eax)\n\t"
		     "movl 4(%%eax), %%ebx\n\t"
		     "movl 8(%%eax), %%ecx\n\t"
		     "movl 12(%%eax), %%edx\n\t"
		     "movl 16(%%eax), %%esi\n\t"
		     "movl 20(%%eax), %%edi\n\t"
		     "movl 24(%%eax), %%ebp\n\t"
		     "movl (%%eax), %%eax\n\t"
		     "call *(%%esp)\n\t"
		     "addl $4, %%esp\n\t"
		     "popl %%ebp\n\t"
		     "popl %%ebx"
		     : "=&a"(ret)
		     : "S"(block)
		     : "ecx", "edx", "edi", "memory");
	return ret;
}

static char out[512];
static unsigned int out_len;

static void say(const char *name, long v)
{
	char digits[12];
	int n = 0;
	unsigned long u = v < 0 ? -(unsigned long)v : (unsigned long)v;

	while (*name)
		out[out_len++] = *name++;
	out[out_len++] = '=';
	do {
		digits[n++] = '0' + u % 10;
		u /= 10;
	} while (u);
	if (v < 0)
		digits[n++] = '-';
	while (n)
		out[out_len++] = digits[--n];
	out[out_len++] = '\n';
}

__attribute__((used)) static void run(long *stack)
{
	long *p = stack + 1 + stack[0] + 1;	/* argc, argv, NULL */

	while (*p++)
		;
	for (; p[0]; p += 2)
		if (p[0] == AT_SYSINFO)
			entry = p[1];
	say("pid", call6(__NR_getpid, 0, 0, 0, 0, 0, 0));
	say("tid", call6(__NR_gettid, 0, 0, 0, 0, 0, 0));
	say("missing", call6(__NR_openat, AT_FDCWD, (long)"/nonexistent", 0, 0, 0, 0));
	call6(__NR_getppid, 0, 0, 0, 0, 0, 0);
	say("500", call6(500, 0x11111111, 0x22222222, 0x33333333, 0x44444444, 0x55555555,
			 0x66666666));
	call6(__NR_write, 1, (long)out, out_len, 0, 0, 0);
	for (;;)
		call6(__NR_exit_group, 32, 0, 0, 0, 0, 0);
}

asm(".text\n"
    ".globl _start\n"
    "_start: xor %ebp, %ebp\n"
    "	mov %esp, %eax\n"
    "	and $-16, %esp\n"
    "	sub $12, %esp\n"
    "	push %eax\n"
    "	call run\n"
    "	ud2\n");

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * All the test programs have instead of a C library: they make no system call
 * but those written in them, so the list of a run is known in advance.
 *
 * A program collects what it says in a buffer and writes it at its end with
 * one write.
 */
#ifndef SYS_H
#define SYS_H

#include <asm/unistd.h>

#define NULL ((void *)0)
#define AT_FDCWD (-100)

typedef unsigned long ulong;

static inline long syscall6(long nr, ulong a, ulong b, ulong c, ulong d, ulong e, ulong f)
{
	register ulong r10 asm("r10") = d;
	register ulong r8 asm("r8") = e;
	register ulong r9 asm("r9") = f;
	long ret;

	asm volatile("syscall"
		     : "=a"(ret)
		     : "a"(nr), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
		     : "rcx", "r11", "memory");
	return ret;
}

#define sys0(nr) syscall6(nr, 0, 0, 0, 0, 0, 0)
#define sys1(nr, a) syscall6(nr, (ulong)(a), 0, 0, 0, 0, 0)
#define sys2(nr, a, b) syscall6(nr, (ulong)(a), (ulong)(b), 0, 0, 0, 0)
#define sys3(nr, a, b, c) syscall6(nr, (ulong)(a), (ulong)(b), (ulong)(c), 0, 0, 0)
#define sys4(nr, a, b, c, d) \
	syscall6(nr, (ulong)(a), (ulong)(b), (ulong)(c), (ulong)(d), 0, 0)
#define sys5(nr, a, b, c, d, e) \
	syscall6(nr, (ulong)(a), (ulong)(b), (ulong)(c), (ulong)(d), (ulong)(e), 0)
#define sys6 syscall6

/* What the program says; write_out sends it. */
static char out[4096];
static ulong out_len;

static inline void put(const char *s)
{
	while (*s && out_len < sizeof(out))
		out[out_len++] = *s++;
}

static inline void put_dec(long v)
{
	char digits[24];
	int n = 0;
	ulong u = v < 0 ? -(ulong)v : (ulong)v;

	do {
		digits[n++] = '0' + u % 10;
		u /= 10;
	} while (u);
	if (v < 0)
		digits[n++] = '-';
	while (n && out_len < sizeof(out))
		out[out_len++] = digits[--n];
}

static inline void put_hex(ulong v)
{
	int shift = 60;

	put("0x");
	while (shift && !(v >> shift))
		shift -= 4;
	for (; shift >= 0 && out_len < sizeof(out); shift -= 4)
		out[out_len++] = "0123456789abcdef"[v >> shift & 15];
}

/* One line "name=value". */
static inline void say(const char *name, long v)
{
	put(name);
	put("=");
	put_dec(v);
	put("\n");
}

static inline void write_out(void)
{
	sys3(__NR_write, 1, out, out_len);
	out_len = 0;
}

static inline void __attribute__((noreturn)) quit(int status)
{
	for (;;)
		sys1(__NR_exit_group, status);
}

/* Signals. */
#define SIGILL 4
#define SIGTRAP 5
#define SIGSEGV 11
#define SA_SIGINFO 4
#define SA_RESTORER 0x04000000

struct sigaction {
	void (*handler)(int sig, void *info, void *ctx);
	ulong flags;
	void (*restorer)(void);
	ulong mask;
};

/* Offsets of the saved registers in a signal frame's struct ucontext. */
#define UC_RIP 168
#define UC_EFLAGS 176

static inline ulong *uc_reg(void *ctx, int offset)
{
	return (ulong *)((char *)ctx + offset);
}

void restore_rt(void);
asm(".text\n"
    "restore_rt: mov $15, %eax\n"
    "	syscall\n");

static inline long catch_signal(int sig, void (*handler)(int, void *, void *))
{
	struct sigaction act = { handler, SA_SIGINFO | SA_RESTORER, restore_rt, 0 };

	return sys4(__NR_rt_sigaction, sig, &act, NULL, 8);
}

/* The program: argv is NULL-terminated, its result is the exit status. */
int run(int argc, char **argv);

asm(".text\n"
    ".globl _start\n"
    "_start: xor %ebp, %ebp\n"
    "	mov (%rsp), %rdi\n"
    "	lea 8(%rsp), %rsi\n"
    "	and $-16, %rsp\n"
    "	call run\n"
    "	mov %eax, %edi\n"
    "	mov $231, %eax\n"
    "	syscall\n"
    "	ud2\n");

/* The compiler may ask for these. */
void *memset(void *p, int c, ulong n)
{
	char *d = p;

	while (n--) {
		*d++ = c;
		asm volatile("" ::: "memory");
	}
	return p;
}

void *memcpy(void *to, const void *from, ulong n)
{
	char *d = to;
	const char *s = from;

	while (n--) {
		*d++ = *s++;
		asm volatile("" ::: "memory");
	}
	return to;
}

#endif

// SPDX-License-Identifier: Apache-2.0
/*
 * Processes, programs and signals until /tmp/stop is there, and a check that
 * none of them goes astray.
 *
 * each round: pipe2 clone, read of what the child says, wait4, a SIGSEGV, a
 *	SIGILL, getppid
 * child: kill(parent, a queued signal) dup2 execve(t-target)
 */
#include "sys.h"

#define SIGKILL 9
#define SIGCHLD 17
#define SIGSTOP 19
#define SIGRT 34
#define SIGNALS 64
#define SA_RESTART 0x10000000
#define CALLS 20
#define SHOWN 20	/* losses, in detail */

static long caught[SIGNALS + 1];
static long lost;

static void handler(int sig, void *info, void *ctx)
{
	(void)info;
	caught[sig]++;
	if (sig == SIGSEGV || sig == SIGILL)
		*uc_reg(ctx, UC_RIP) += 2;	/* mov %eax, (%rdx) and ud2 */
}

static void expect(const char *what, long got, long want)
{
	if (got == want)
		return;
	if (++lost > SHOWN)
		return;
	put("lost ");
	put(what);
	put(": ");
	put_dec(got);
	put(" instead of ");
	put_dec(want);
	put("\n");
}

/* What t-target says if its process is the one that was forked. */
static int said(const char *text, ulong len, long pid)
{
	ulong start = out_len, n;
	int same;

	say("pid", pid);
	say("tid", pid);
	n = out_len - start;
	same = n == len;
	for (ulong i = 0; same && i < len; i++)
		same = text[i] == out[start + i];
	out_len = start;
	return same;
}

static void __attribute__((noreturn)) child(long parent, const int *pipe)
{
	static char *const args[] = { "t-target", "7", NULL };

	sys2(__NR_kill, parent, SIGRT);
	sys2(__NR_dup2, pipe[1], 1);
	sys3(__NR_execve, "/bin/t-target", args, NULL);
	quit(99);
}

static void one_round(long round, long self, long parent)
{
	char text[64];
	ulong len = 0;
	int pipe[2], status = 0;
	long pid, n;

	expect("pipe", sys2(__NR_pipe2, pipe, 0), 0);
	pid = sys5(__NR_clone, SIGCHLD, 0, 0, 0, 0);
	if (pid == 0)
		child(self, pipe);
	sys1(__NR_close, pipe[1]);
	while ((n = sys3(__NR_read, pipe[0], text + len, sizeof(text) - len)) > 0)
		len += n;
	expect("end of the child's output", n, 0);
	sys1(__NR_close, pipe[0]);
	expect("child", sys4(__NR_wait4, pid, &status, 0, 0), pid);
	expect("status", status, 7 << 8);
	expect("output", said(text, len, pid), 1);
	asm volatile(".byte 0x89, 0x02" : : "a"(1), "d"(8UL) : "memory");
	asm volatile("ud2");
	for (int i = 0; i < CALLS; i++)
		expect("parent", sys0(__NR_getppid), parent);

	expect("queued signal", caught[SIGRT], round);
	expect("SIGCHLD", caught[SIGCHLD], round);
	expect("SIGSEGV", caught[SIGSEGV], round);
	expect("SIGILL", caught[SIGILL], round);
}

int run(int argc, char **argv)
{
	struct sigaction act = { handler, SA_SIGINFO | SA_RESTORER | SA_RESTART, restore_rt, 0 };
	long self = sys0(__NR_getpid), parent = sys0(__NR_getppid);
	long round = 0, spurious = 0;

	(void)argc, (void)argv;
	say("pid", self);
	for (int sig = 1; sig <= SIGNALS; sig++)
		if (sig != SIGKILL && sig != SIGSTOP)
			expect("handler", sys4(__NR_rt_sigaction, sig, &act, NULL, 8), 0);
	while (sys2(__NR_access, "/tmp/stop", 0) != 0)
		one_round(++round, self, parent);
	for (int sig = 1; sig <= SIGNALS; sig++)
		if (sig != SIGRT && sig != SIGCHLD && sig != SIGSEGV && sig != SIGILL)
			spurious += caught[sig];
	say("rounds", round);
	say("lost", lost);
	say("spurious", spurious);
	write_out();
	return lost || spurious;
}

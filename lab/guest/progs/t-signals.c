// SPDX-License-Identifier: Apache-2.0
/*
 * All that a signal does to a call: interrupts it, has it run again, ends its
 * program. Every call's own list of what follows depends on time, so its
 * calls are not known in advance; its output is.
 */
#include "sys.h"

#define SIGKILL 9
#define SIGUSR1 10
#define SIGALRM 14
#define SIGCHLD 17
#define SIGCONT 18
#define SIGSTOP 19
#define SA_RESTART 0x10000000
#define MILLISECOND 1000	/* in microseconds */

struct timeval {
	long sec, usec;
};

static volatile int alarms, ends[2];

/* Sends SIGALRM once, soon. */
static void alarm_soon(void)
{
	struct timeval timer[2] = { { 0, 0 }, { 0, 10 * MILLISECOND } };

	sys3(__NR_setitimer, 0, timer, NULL);
}

/*
 * Each alarm sets the next, so that a slow machine comes to an end; without end when
 * alarms is negative: one may come before what it is to interrupt. The last wakes a
 * reader.
 */
static void handler(int sig, void *info, void *ctx)
{
	(void)info, (void)ctx;
	sys0(__NR_getppid);
	if (sig != SIGALRM || !alarms)
		return;
	if (--alarms)
		alarm_soon();
	else
		sys3(__NR_write, ends[1], "x", 1);
}

static void catch_with(int sig, ulong flags)
{
	struct sigaction act = { handler, flags | SA_SIGINFO | SA_RESTORER, restore_rt, 0 };

	sys4(__NR_rt_sigaction, sig, &act, NULL, 8);
}

static long sleep_for(long sec, long usec)
{
	struct timeval time = { sec, usec * 1000 };	/* a timespec */

	return sys2(__NR_nanosleep, &time, NULL);
}

/* A child that stops and continues its parent, which sleeps. */
static void stop_me(void)
{
	long me = sys0(__NR_getpid);
	long child = sys5(__NR_clone, SIGCHLD, 0, 0, 0, 0);

	if (child == 0) {
		sleep_for(0, 20 * MILLISECOND);
		sys2(__NR_kill, me, SIGSTOP);
		sys2(__NR_kill, me, SIGCONT);
		quit(0);
	}
	say("restarted", sleep_for(0, 100 * MILLISECOND));
	sys4(__NR_wait4, child, NULL, 0, 0);
}

/* A child that waits in a call for the signal that ends it. */
static void kill_waiting(void)
{
	int status = 0;
	long child = sys5(__NR_clone, SIGCHLD, 0, 0, 0, 0);

	if (child == 0) {
		sys3(__NR_write, ends[1], "c", 1);
		for (;;)
			sys0(__NR_pause);
	}
	sys3(__NR_read, ends[0], &status, 1);
	sys2(__NR_kill, child, SIGKILL);
	sys4(__NR_wait4, child, &status, 0, 0);
	say("killed", status);
}

int run(int argc, char **argv)
{
	ulong none = 0;
	char c;

	(void)argc, (void)argv;
	say("pipe", sys1(__NR_pipe, ends));
	catch_with(SIGUSR1, 0);
	say("kill", sys2(__NR_kill, sys0(__NR_getpid), SIGUSR1));

	catch_with(SIGALRM, 0);
	alarms = -1;
	alarm_soon();
	say("interrupted", sleep_for(10, 0));
	say("suspended", sys2(__NR_rt_sigsuspend, &none, 8));

	alarms = 3;
	catch_with(SIGALRM, SA_RESTART);
	alarm_soon();
	say("read", sys3(__NR_read, ends[0], &c, 1));

	stop_me();
	kill_waiting();
	write_out();
	return 0;
}

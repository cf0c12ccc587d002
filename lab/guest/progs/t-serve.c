// SPDX-License-Identifier: Apache-2.0
/*
 * Load of processes that stay: workers that answer requests, as often as the
 * argument says.
 *
 * main: for each worker: pipe pipe clone close close; for each round: a write to
 *	each, a read from each; a close for each, a wait4 for each; write
 *	exit_group(0)
 * worker i: (i+1) times close, for each round: read openat(/proc/self/comm) read
 *	close getppid write; read exit_group(0)
 */
#include "sys.h"

#define WORKERS 3
#define SIGCHLD 17

static void __attribute__((noreturn)) work(int requests, int replies)
{
	static char buf[64];

	while (sys3(__NR_read, requests, buf, 1) == 1) {
		long fd = sys4(__NR_openat, AT_FDCWD, "/proc/self/comm", 0, 0);

		sys3(__NR_read, fd, buf, sizeof(buf));
		sys1(__NR_close, fd);
		sys0(__NR_getppid);
		sys3(__NR_write, replies, buf, 1);
	}
	quit(0);
}

int run(int argc, char **argv)
{
	int requests[WORKERS][2], replies[WORKERS][2];
	long children[WORKERS], rounds = 0, answers = 0;
	char c;

	for (const char *p = argc > 1 ? argv[1] : "100"; *p >= '0' && *p <= '9'; p++)
		rounds = rounds * 10 + *p - '0';
	for (int i = 0; i < WORKERS; i++) {
		sys1(__NR_pipe, requests[i]);
		sys1(__NR_pipe, replies[i]);
		children[i] = sys5(__NR_clone, SIGCHLD, 0, 0, 0, 0);
		if (children[i] == 0) {
			/* A worker sees the end when nobody else could write to it. */
			for (int j = 0; j <= i; j++)
				sys1(__NR_close, requests[j][1]);
			work(requests[i][0], replies[i][1]);
		}
		sys1(__NR_close, requests[i][0]);
		sys1(__NR_close, replies[i][1]);
	}
	for (long n = 0; n < rounds; n++) {
		for (int i = 0; i < WORKERS; i++)
			sys3(__NR_write, requests[i][1], "r", 1);
		for (int i = 0; i < WORKERS; i++)
			answers += sys3(__NR_read, replies[i][0], &c, 1);
	}
	for (int i = 0; i < WORKERS; i++)
		sys1(__NR_close, requests[i][1]);
	for (int i = 0; i < WORKERS; i++)
		sys4(__NR_wait4, children[i], NULL, 0, 0);
	say("answers", answers);
	write_out();
	return 0;
}

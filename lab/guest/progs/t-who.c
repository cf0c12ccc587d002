// SPDX-License-Identifier: Apache-2.0
/*
 * Who a process is, as its own /proc says, at moments that a trace shows: what it was
 * started with, after its credentials changed, in a pid namespace, orphaned, in another
 * control group, as a file without a name, as a memfd, and with the pid of one before it.
 *
 * Its argument is what it does, a number, which names what it leaves in /out/who: copies of
 * stat, status and cgroup, and the target of exe. With all in place: getpriority(77, number).
 */
#include "sys.h"

#define SIGCHLD 17
#define O_WRONLY 1
#define O_CREAT 0100
#define CLONE_NEWPID 0x20000000
#define AT_EMPTY_PATH 0x1000
#define WHO 77

static char name[64];

/* "/out/who/N.suffix" */
static const char *result(int number, const char *suffix)
{
	char *to = name;

	for (const char *s = "/out/who/"; *s; s++)
		*to++ = *s;
	if (number > 9)
		*to++ = '0' + number / 10;
	*to++ = '0' + number % 10;
	*to++ = '.';
	while (*suffix)
		*to++ = *suffix++;
	*to = 0;
	return name;
}

static void keep(int number, const char *suffix, const char *data, long len)
{
	long fd = sys3(__NR_open, result(number, suffix), O_WRONLY | O_CREAT, 0666);

	sys3(__NR_write, fd, data, len);
	sys1(__NR_close, fd);
}

static void copy(int number, const char *suffix, const char *path)
{
	static char data[4096];
	long fd = sys3(__NR_open, path, 0, 0);

	keep(number, suffix, data, sys3(__NR_read, fd, data, sizeof(data)));
	sys1(__NR_close, fd);
}

static void tell(int number)
{
	char target[1024];

	copy(number, "stat", "/proc/self/stat");
	copy(number, "status", "/proc/self/status");
	copy(number, "cgroup", "/proc/self/cgroup");
	keep(number, "exe", target, sys3(__NR_readlink, "/proc/self/exe", target, sizeof(target)));
	sys2(__NR_getpriority, WHO, number);
}

static long child(void) { return sys5(__NR_clone, SIGCHLD, 0, 0, 0, 0); }

static void wait_for(long pid)
{
	int status;

	sys4(__NR_wait4, pid, &status, 0, 0);
}

static void say_to(const char *path, long number)
{
	long fd = sys3(__NR_open, path, O_WRONLY, 0);

	put_dec(number);
	sys3(__NR_write, fd, out, out_len);
	sys1(__NR_close, fd);
	out_len = 0;
}

/* Runs this program again from a memfd, as number + 1. */
static void run_memfd(char **argv, int number)
{
	static char data[65536];
	char text[] = { '0' + (number + 1) / 10, '0' + (number + 1) % 10, 0 };
	char *args[] = { argv[0], text, NULL }, *env[] = { NULL };
	long fd = sys2(__NR_memfd_create, "nameless", 0);
	long from = sys3(__NR_open, "/proc/self/exe", 0, 0);

	sys3(__NR_write, fd, data, sys3(__NR_read, from, data, sizeof(data)));
	sys1(__NR_close, from);
	sys5(__NR_execveat, fd, "", args, env, AT_EMPTY_PATH);
}

int run(int argc, char **argv)
{
	int number = 0;
	long pid, again;

	for (const char *p = argc > 1 ? argv[1] : ""; *p >= '0' && *p <= '9'; p++)
		number = number * 10 + *p - '0';
	switch (number) {
	case 2: /* each one replaces what the one before left */
		sys3(__NR_setresgid, 1001, 1002, 1003);
		sys3(__NR_setresuid, 1004, 1005, 1006);
		break;
	case 3:
		sys1(__NR_unshare, CLONE_NEWPID);
		pid = child();
		if (pid) {
			wait_for(pid);
			return 0;
		}
		break;
	case 4:
		tell(40);
		if (child()) {
			sys4(__NR_wait4, -1, NULL, 1, 0);
			return 0;
		}
		while (sys0(__NR_getppid) != 1)
			sys0(__NR_sched_yield);
		break;
	case 5:
		tell(50);
		say_to(argv[2], sys0(__NR_getpid));
		break;
	case 13: /* in a hierarchy of version 1 */
		say_to(argv[2], sys0(__NR_getpid));
		break;
	case 6: /* deleted when the child begins */
		sys1(__NR_unlink, argv[0]);
		pid = child();
		if (pid) {
			wait_for(pid);
			return 0;
		}
		break;
	case 7:
		run_memfd(argv, number);
		return 1;
	case 9: /* two children of one pid, if the kernel lets it be chosen */
		pid = child();
		if (!pid) {
			tell(90);
			return 0;
		}
		wait_for(pid);
		say_to("/proc/sys/kernel/ns_last_pid", pid - 1);
		again = child();
		if (!again) {
			tell(91);
			return 0;
		}
		wait_for(again);
		break;
	}
	tell(number);
	return 0;
}

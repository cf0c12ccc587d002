// SPDX-License-Identifier: Apache-2.0
/*
 * Arguments that point to strings, buffers and structures, and some that point to nothing.
 *
 * openat(over two pages)=-ENOENT openat(up to a page that is not there)=-EFAULT
 * openat(longer than a name may be)=-ENAMETOOLONG openat(0x1000)=-EFAULT
 * openat(the kernel's)=-EFAULT pipe2 write read writev nanosleep uname newfstatat
 * execve(/nonexistent)=-ENOENT write exit_group(0)
 */
#include "sys.h"

#define PAGE 4096UL

static char *pages(void)
{
	/* PROT_READ|PROT_WRITE, MAP_PRIVATE|MAP_ANONYMOUS */
	char *p = (char *)sys6(__NR_mmap, 0, 2 * PAGE, 3, 0x22, -1, 0);

	for (ulong i = 0; i < 2 * PAGE; i += 8)
		p[i] = 'x';
	return p;
}

static void copy(char *to, const char *from)
{
	while ((*to++ = *from++))
		;
}

int run(int argc, char **argv)
{
	static char buf[512], path[301];
	static int fds[2];
	char *const args[] = { "a", "b c", NULL };
	struct { const char *base; ulong len; } parts[] = {
		{ "ab", 2 }, { "0123456789012345678901234567890123456789", 40 },
	};
	struct { long sec, nsec; } soon = { 0, 1000 };
	char *across = pages(), *cut = pages();

	(void)argc, (void)argv;
	copy(across + PAGE - 6, "/no/such/place/across");
	say("across", sys4(__NR_openat, AT_FDCWD, across + PAGE - 6, 0, 0));
	for (int i = 1; i <= 5; i++)
		cut[PAGE - i] = 'y';
	sys2(__NR_munmap, cut + PAGE, PAGE);
	say("cut", sys4(__NR_openat, AT_FDCWD, cut + PAGE - 5, 0, 0));
	path[0] = '/';
	for (int i = 1; i < 300; i++)
		path[i] = 'z';
	say("long", sys4(__NR_openat, AT_FDCWD, path, 0, 0));
	say("low", sys4(__NR_openat, AT_FDCWD, 0x1000, 0, 0));
	say("kernel", sys4(__NR_openat, AT_FDCWD, 0xffffffff81000000, 0, 0));
	say("pipe", sys2(__NR_pipe2, fds, 02000000 /* O_CLOEXEC */));
	say("write", sys3(__NR_write, fds[1], "hello\0\1\n", 8));
	say("read", sys3(__NR_read, fds[0], buf, sizeof(buf)));
	say("writev", sys3(__NR_writev, fds[1], parts, 2));
	say("sleep", sys2(__NR_nanosleep, &soon, NULL));
	say("uname", sys1(__NR_uname, buf));
	say("stat", sys4(__NR_newfstatat, AT_FDCWD, "/", buf, 0));
	say("exec", sys3(__NR_execve, "/nonexistent", args, NULL));
	write_out();
	return 0;
}

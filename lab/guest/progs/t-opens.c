// SPDX-License-Identifier: Apache-2.0
/*
 * Files: opened, read, missing.
 *
 * getpid openat(/proc/self/comm) read close openat(/nonexistent)=-ENOENT
 * openat(/) getdents64 close write exit_group(0)
 */
#include "sys.h"

int run(int argc, char **argv)
{
	static char buf[512];
	long fd, n;

	(void)argc, (void)argv;
	say("pid", sys0(__NR_getpid));
	fd = sys4(__NR_openat, AT_FDCWD, "/proc/self/comm", 0, 0);
	say("open", fd);
	n = sys3(__NR_read, fd, buf, sizeof(buf) - 1);
	if (n > 0 && n < (long)sizeof(buf)) {
		buf[n] = 0;
		put("comm=");
		put(buf);
	}
	say("close", sys1(__NR_close, fd));
	say("missing", sys4(__NR_openat, AT_FDCWD, "/nonexistent", 0, 0));
	fd = sys4(__NR_openat, AT_FDCWD, "/", 0200000 /* O_DIRECTORY */, 0);
	say("entries", sys3(__NR_getdents64, fd, buf, sizeof(buf)) > 0);
	say("close", sys1(__NR_close, fd));
	write_out();
	return 0;
}

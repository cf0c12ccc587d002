// SPDX-License-Identifier: Apache-2.0
/*
 * x32's numbers, where the kernel was booted with syscall.x32=y: x32 getpid
 * getppid gettid, openat(/nonexistent)=-ENOENT, 512 (its own rt_sigaction)
 * with no signal=-EINVAL, write; without x32 all of them fail with -ENOSYS, and
 * a 64-bit write follows; exit_group(0)
 */
#include "sys.h"

#define X32 0x40000000

int run(int argc, char **argv)
{
	(void)argc, (void)argv;
	say("pid", sys0(X32 | __NR_getpid));
	say("ppid", sys0(X32 | __NR_getppid));
	say("tid", sys0(X32 | __NR_gettid));
	say("missing", sys4(X32 | __NR_openat, AT_FDCWD, "/nonexistent", 0, 0));
	say("sigaction", sys4(X32 | 512, 0, NULL, NULL, 8));
	if (sys3(X32 | __NR_write, 1, out, out_len) < 0)
		write_out();
	return 0;
}

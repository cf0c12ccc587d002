// SPDX-License-Identifier: Apache-2.0
/*
 * Reads EFER of vCPU 0 through the msr driver: getpid openat pread64 close
 * write exit_group(0)
 */
#include "sys.h"

#define MSR_EFER 0xc0000080

int run(int argc, char **argv)
{
	ulong efer = 0;
	long fd;

	(void)argc, (void)argv;
	say("pid", sys0(__NR_getpid));
	fd = sys4(__NR_openat, AT_FDCWD, "/dev/cpu/0/msr", 0, 0);
	say("read", sys4(__NR_pread64, fd, &efer, sizeof(efer), MSR_EFER));
	sys1(__NR_close, fd);
	put("efer=");
	put_hex(efer);
	put("\n");
	write_out();
	return 0;
}

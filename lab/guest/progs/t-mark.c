// SPDX-License-Identifier: Apache-2.0
/*
 * Marks the end of a recording: makes system call 1022, which does not exist,
 * writes 0 to the file that the first argument names, and becomes the program
 * of the others, found in /bin.
 */
#include "sys.h"

#define MARKER 1022
#define O_WRONLY 1

int run(int argc, char **argv)
{
	static char path[256] = "/bin/";
	ulong len = 5;
	long fd;

	if (argc < 3)
		return 2;
	sys0(MARKER);
	fd = sys3(__NR_open, argv[1], O_WRONLY, 0);
	if (sys3(__NR_write, fd, "0", 1) != 1)
		return 1;
	for (const char *p = argv[2]; *p && len < sizeof(path) - 1; p++)
		path[len++] = *p;
	sys3(__NR_execve, path, argv + 2, argv + argc + 1);
	return 127;
}

// SPDX-License-Identifier: Apache-2.0
/*
 * Arguments and numbers at their limits, none of which the kernel knows:
 * getpid, 500 with six arguments, 1023 with others, 0x40000027 (getpid with
 * x32's bit), -1, 0xffffffff00000000 | getpid (the kernel looks at the lower
 * half only... as a signed int), write exit_group(0)
 */
#include "sys.h"

int run(int argc, char **argv)
{
	(void)argc, (void)argv;
	say("pid", sys0(__NR_getpid));
	say("500", sys6(500, 0x1111111111111111, 0x2222222222222222, 0x3333333333333333,
			0x4444444444444444, 0x5555555555555555, 0x6666666666666666));
	say("1023", sys6(1023, -1, 0x8000000000000000, 0x7fffffffffffffff, 0, 0xffffffff, 1));
	say("x32", sys0(0x40000000 | __NR_getpid));
	say("-1", sys0(-1));
	say("high", sys0((long)(0xffffffff00000000 | __NR_getpid)));
	write_out();
	return 0;
}

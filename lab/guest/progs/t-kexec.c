// SPDX-License-Identifier: Apache-2.0
/*
 * Starts another kernel without the firmware: "t-kexec KERNEL INITRAMFS
 * COMMANDLINE" loads it, "t-kexec" starts what is loaded.
 *
 * as the first: openat openat kexec_file_load write exit_group
 * as the second: reboot, which does not return
 */
#include "sys.h"

#define MAGIC1 0xfee1dead
#define MAGIC2 672274793
#define CMD_KEXEC 0x45584543

int run(int argc, char **argv)
{
	ulong len = 0;
	long kernel, initramfs, ret;

	if (argc < 4) {
		ret = sys4(__NR_reboot, MAGIC1, MAGIC2, CMD_KEXEC, NULL);
	} else {
		kernel = sys4(__NR_openat, AT_FDCWD, argv[1], 0, 0);
		initramfs = sys4(__NR_openat, AT_FDCWD, argv[2], 0, 0);
		while (argv[3][len])
			len++;
		ret = sys5(__NR_kexec_file_load, kernel, initramfs, len + 1, argv[3], 0);
	}
	say("kexec", ret);
	write_out();
	return ret != 0;
}

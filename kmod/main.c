// SPDX-License-Identifier: GPL-2.0
/* frail.ko: loading, and /dev/frail. */
#include <linux/file.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/uaccess.h>

#include "frail.h"

static long arm_ioctl(struct frail_arm __user *uarg)
{
	struct frail_arm arm;
	struct file *file;
	int fd;

	if (copy_from_user(&arm, uarg, sizeof(arm)))
		return -EFAULT;
	if (arm.size != sizeof(arm) || arm.exits > FRAIL_EXITS_ENTRY || arm.pad)
		return -EINVAL;
	fd = get_unused_fd_flags(O_CLOEXEC);
	if (fd < 0)
		return fd;
	file = frail_arm(&arm);
	if (IS_ERR(file)) {
		put_unused_fd(fd);
		if (arm.refusal && copy_to_user(uarg, &arm, sizeof(arm)))
			return -EFAULT;
		return PTR_ERR(file);
	}
	if (copy_to_user(uarg, &arm, sizeof(arm))) {
		put_unused_fd(fd);
		fput(file);
		return -EFAULT;
	}
	fd_install(fd, file);
	return fd;
}

static long frail_ioctl(struct file *file, unsigned int cmd, unsigned long arg)
{
	if (cmd != FRAIL_IOC_ARM)
		return -ENOTTY;
	return arm_ioctl((struct frail_arm __user *)arg);
}

static const struct file_operations frail_fops = {
	.owner = THIS_MODULE,
	.unlocked_ioctl = frail_ioctl,
	.llseek = noop_llseek,
};

static struct miscdevice frail_device = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = FRAIL_NAME,
	.fops = &frail_fops,
	.mode = 0600,
};

static int __init frail_init(void)
{
	int err = frail_symbols_resolve();

	if (err)
		return err;
	err = frail_vms_init();
	if (err)
		goto symbols;
	err = frail_hooks_install();
	if (err)
		goto vms;
	if (!kvmsym.intel)
		frail_svm_init();
	err = misc_register(&frail_device);
	if (err)
		goto hooks;
	return 0;
hooks:
	if (!kvmsym.intel)
		frail_svm_exit();
	frail_hooks_remove();
vms:
	frail_vms_exit();
symbols:
	frail_symbols_release();
	return err;
}

static void __exit frail_exit(void)
{
	misc_deregister(&frail_device);
	if (!kvmsym.intel)
		frail_svm_exit();
	frail_hooks_remove();
	frail_vms_exit();
	frail_symbols_release();
}

module_init(frail_init);
module_exit(frail_exit);
MODULE_LICENSE("GPL");
MODULE_AUTHOR("The Frail authors");
MODULE_DESCRIPTION("System calls of KVM guests as host tracepoints");
MODULE_VERSION(FRAIL_VERSION);

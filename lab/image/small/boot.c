// SPDX-License-Identifier: Apache-2.0
/*
 * Started by a multiboot loader, starts the Linux kernel that was loaded with
 * it at its PVH entry: that is the one way into an uncompressed kernel, and to
 * decompress it takes Bochs longer than all the rest of a boot. PVH_ENTRY is
 * the entry's physical address.
 */
#include <stdint.h>

#define MULTIBOOT_MAGIC 0x1badb002
#define MULTIBOOT_FLAGS 3 /* modules on pages of their own, a memory map */
#define HVM_START_MAGIC 0x336ec578
#define MAX_RANGES 32

struct multiboot_header {
	uint32_t magic, flags, checksum;
};

struct multiboot_info {
	uint32_t flags, mem_lower, mem_upper, boot_device, cmdline;
	uint32_t mods_count, mods_addr, syms[4], mmap_length, mmap_addr;
};

struct multiboot_module {
	uint32_t start, end, string, reserved;
};

struct multiboot_range {
	uint32_t size; /* of what follows it */
	uint64_t addr, len;
	uint32_t type;
} __attribute__((packed));

struct hvm_start_info {
	uint32_t magic, version, flags, nr_modules;
	uint64_t modlist, cmdline, rsdp, memmap;
	uint32_t memmap_entries, reserved;
};

struct hvm_module {
	uint64_t addr, size, cmdline, reserved;
};

struct hvm_range {
	uint64_t addr, size;
	uint32_t type, reserved;
};

__attribute__((section(".header"), used))
static const struct multiboot_header header = {
	MULTIBOOT_MAGIC, MULTIBOOT_FLAGS, -(MULTIBOOT_MAGIC + MULTIBOOT_FLAGS),
};

static struct hvm_range ranges[MAX_RANGES];
static struct hvm_module initrd;
static struct hvm_start_info info = { .magic = HVM_START_MAGIC, .version = 1 };

__attribute__((used, noreturn))
static void start(const struct multiboot_info *mb)
{
	const struct multiboot_module *module = (void *)mb->mods_addr;
	uint32_t at = mb->mmap_addr, end = at + mb->mmap_length;

	for (; at < end && info.memmap_entries < MAX_RANGES; info.memmap_entries++) {
		const struct multiboot_range *from = (void *)at;
		struct hvm_range *to = &ranges[info.memmap_entries];

		to->addr = from->addr;
		to->size = from->len;
		to->type = from->type;
		at += from->size + sizeof(from->size);
	}
	initrd.addr = module->start;
	initrd.size = module->end - module->start;
	info.nr_modules = 1;
	info.modlist = (uint32_t)&initrd;
	info.cmdline = mb->cmdline;
	info.memmap = (uint32_t)ranges;
	asm volatile("jmp *%0" : : "r"(PVH_ENTRY), "b"(&info));
	__builtin_unreachable();
}

/* The loader leaves no stack. */
__attribute__((used))
static uint32_t stack[256];

asm(".globl _start\n"
    "_start: mov $stack + 1024, %esp\n"
    "	push %ebx\n"
    "	call start\n");

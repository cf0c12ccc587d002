// SPDX-License-Identifier: Apache-2.0
/*
 * A hypervisor: runs a guest that makes system calls of its own, to its own
 * kernel, and checks how many that kernel saw.
 *
 * getpid, openat(/dev/kvm) and what makes a VM, then for each of RUNS runs:
 * ioctl(KVM_SET_REGS) ioctl(KVM_RUN) to the guest's OUT, ioctl(KVM_RUN) to its
 * HLT; write exit_group(0). With an argument the runs go on, and are long, until
 * /tmp/stop is there.
 */
#include <linux/kvm.h>

#include "sys.h"

#define RUNS 3
#define CALLS 500
#define LONG_CALLS 200000

#define PROT_READ_WRITE 3
#define MAP_SHARED 1
#define MAP_SHARED_ANON 0x21

/* The guest's memory: page tables, then its code. */
#define RAM_SIZE 0x200000
#define PML4 0x1000
#define PDPT 0x2000
#define PD 0x3000
#define CODE 0x4000

/* Of a page table's entry: present, writable, the user's; a large page. */
#define ENTRY 7
#define LARGE 0x80

#define MSR_STAR 0xc0000081
#define MSR_LSTAR 0xc0000082
#define MSR_SYSCALL_MASK 0xc0000084
#define KERNEL_CS 0x08
#define SYSRET_CS 0x13
#define CR0 0x80050033		/* PG AM WP NE ET MP PE */
#define CR4 0x20		/* PAE */
#define EFER 0x501		/* LMA LME SCE */

/*
 * Starts as a kernel, which becomes a user that calls it R14 times with the
 * number 19507. Says how often it was called, in R15.
 */
asm(".text\n"
    "guest_begin:\n"
    "	lea guest_user(%rip), %rcx\n"
    "	mov $2, %r11d\n"
    "	xor %r15d, %r15d\n"
    "	sysretq\n"
    "guest_user:\n"
    "	mov $19507, %eax\n"
    "	syscall\n"
    "	jmp guest_user\n"
    "guest_kernel:\n"
    "	cmp $19507, %eax\n"
    "	jne 1f\n"
    "	inc %r15d\n"
    "	cmp %r14d, %r15d\n"
    "	je 1f\n"
    "	sysretq\n"
    "1:	mov %r15d, %eax\n"
    "	out %eax, $0x10\n"
    "	hlt\n"
    "guest_end:\n");
extern char guest_begin[], guest_kernel[], guest_end[];

static struct kvm_run *vcpu_run;

static void segment(struct kvm_segment *s, int selector, int type, int code)
{
	*s = (struct kvm_segment){
		.limit = 0xffffffff, .selector = selector, .type = type,
		.present = 1, .s = 1, .g = 1, .l = code, .db = !code,
	};
}

/* A vCPU whose guest is about to begin. */
static long make_vcpu(long kvm)
{
	static struct {
		struct kvm_msrs head;
		struct kvm_msr_entry entries[3];
	} msrs = { .head.nmsrs = 3 };
	/* Without CPUID, 6.12's KVM refuses a vCPU the registers of long mode. */
	static struct {
		struct kvm_cpuid2 head;
		struct kvm_cpuid_entry2 entries[256];
	} cpuid = { .head.nent = 256 };
	struct kvm_userspace_memory_region region = { .memory_size = RAM_SIZE };
	struct kvm_sregs sregs;
	long vm, vcpu, size;
	char *ram;

	vm = sys3(__NR_ioctl, kvm, KVM_CREATE_VM, 0);
	ram = (char *)sys6(__NR_mmap, 0, RAM_SIZE, PROT_READ_WRITE, MAP_SHARED_ANON, -1, 0);
	region.userspace_addr = (ulong)ram;
	say("memory", sys3(__NR_ioctl, vm, KVM_SET_USER_MEMORY_REGION, &region));
	vcpu = sys3(__NR_ioctl, vm, KVM_CREATE_VCPU, 0);
	size = sys3(__NR_ioctl, kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
	vcpu_run = (struct kvm_run *)sys6(__NR_mmap, 0, size, PROT_READ_WRITE, MAP_SHARED, vcpu, 0);

	*(ulong *)(ram + PML4) = PDPT | ENTRY;
	*(ulong *)(ram + PDPT) = PD | ENTRY;
	*(ulong *)(ram + PD) = ENTRY | LARGE;
	memcpy(ram + CODE, guest_begin, guest_end - guest_begin);

	say("cpuid", sys3(__NR_ioctl, kvm, KVM_GET_SUPPORTED_CPUID, &cpuid));
	say("cpuid", sys3(__NR_ioctl, vcpu, KVM_SET_CPUID2, &cpuid));
	say("sregs", sys3(__NR_ioctl, vcpu, KVM_GET_SREGS, &sregs));
	segment(&sregs.cs, KERNEL_CS, 11, 1);
	segment(&sregs.ss, KERNEL_CS + 8, 3, 0);
	sregs.cr0 = CR0;
	sregs.cr3 = PML4;
	sregs.cr4 = CR4;
	sregs.efer = EFER;
	say("sregs", sys3(__NR_ioctl, vcpu, KVM_SET_SREGS, &sregs));
	msrs.entries[0].index = MSR_STAR;
	msrs.entries[0].data = (ulong)SYSRET_CS << 48 | (ulong)KERNEL_CS << 32;
	msrs.entries[1].index = MSR_LSTAR;
	msrs.entries[1].data = CODE + (guest_kernel - guest_begin);
	msrs.entries[2].index = MSR_SYSCALL_MASK;
	say("msrs", sys3(__NR_ioctl, vcpu, KVM_SET_MSRS, &msrs));
	return vcpu;
}

/* Runs the guest from its beginning; whether it did what it should. */
static int run_guest(long vcpu, unsigned int calls)
{
	struct kvm_regs regs = { .rip = CODE, .rflags = 2, .r14 = calls };
	unsigned int *data;

	if (sys3(__NR_ioctl, vcpu, KVM_SET_REGS, &regs) != 0)
		return 0;
	if (sys3(__NR_ioctl, vcpu, KVM_RUN, 0) != 0 || vcpu_run->exit_reason != KVM_EXIT_IO)
		return 0;
	data = (unsigned int *)((char *)vcpu_run + vcpu_run->io.data_offset);
	if (vcpu_run->io.port != 0x10 || *data != calls)
		return 0;
	return sys3(__NR_ioctl, vcpu, KVM_RUN, 0) == 0 && vcpu_run->exit_reason == KVM_EXIT_HLT;
}

int run(int argc, char **argv)
{
	long vcpu, runs = 0, good = 0;

	(void)argv;
	say("pid", sys0(__NR_getpid));
	vcpu = make_vcpu(sys4(__NR_openat, AT_FDCWD, "/dev/kvm", 2 /* O_RDWR */, 0));
	if (argc > 1) {
		while (sys2(__NR_access, "/tmp/stop", 0) != 0) {
			runs++;
			good += run_guest(vcpu, LONG_CALLS);
		}
	} else {
		for (; runs < RUNS; runs++)
			good += run_guest(vcpu, CALLS);
	}
	say("runs", runs);
	say("bad", runs - good);
	if (runs != good)
		say("exit", vcpu_run->exit_reason);
	write_out();
	return runs != good;
}

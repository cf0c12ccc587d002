/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The binary interface between frail.ko, Frail's BPF programs and its Go code:
 * the only place that knows how an event, a layout or an ioctl looks in memory.
 * Go's copies are generated from this file (make generate) and compared in CI.
 *
 * Every structure has the same layout on every x86-64 compiler: fixed-width
 * members, each aligned to its own size, no implicit padding.
 */
#ifndef FRAIL_ABI_H
#define FRAIL_ABI_H

#ifdef __KERNEL__
#include <linux/types.h>
#include <linux/ioctl.h>
#elif !defined(__VMLINUX_H__)
#include <linux/types.h>
#include <linux/ioctl.h>
#endif

/* TASK_COMM_LEN of every Linux guest. */
#define FRAIL_COMM_LEN 16

/* What is kept of a path; of a longer one its end is. */
#define FRAIL_PATH_LEN 256

/* How many arguments of a call are followed, at its entry or at its return. */
#define FRAIL_READS 4

/* What is read of a call's memory at once, all its arguments together. */
#define FRAIL_DATA_LEN 1024

/* System calls of a table that memory can be read of: numbers below this. */
#define FRAIL_DATA_CALLS 548

/* Set in the number of an x32 call (Linux: __X32_SYSCALL_BIT); no call is negative. */
#define FRAIL_X32_BIT 0x40000000

/* An offset of a struct frail_layout that is not known. */
#define FRAIL_NO_OFFSET 0xffffffff

enum frail_limits {
	/* VMs that can be armed at once. No two of them have ids that are equal modulo this. */
	FRAIL_VM_SLOTS = 4096,
};

enum frail_event_kind {
	FRAIL_EVENT_ENTER = 1,	/* a guest thread made a system call */
	FRAIL_EVENT_EXIT = 2,	/* a system call returned */
	FRAIL_EVENT_COVERAGE = 3,	/* which entries of the VM trap has changed */
	FRAIL_EVENT_PROCESS = 4,	/* who a thread is, a struct frail_process */
};

/*
 * The instruction a guest thread entered its kernel by, or left it by. An exit that
 * is FRAIL_EVENT_DEFERRED names the entry: how its call left is not known.
 */
enum frail_insn {
	FRAIL_INSN_SYSCALL64 = 1,	/* SYSCALL in 64-bit code */
	FRAIL_INSN_SYSCALL32 = 2,	/* SYSCALL in 32-bit code (AMD) */
	FRAIL_INSN_SYSRET64 = 3,	/* SYSRET with REX.W */
	FRAIL_INSN_SYSRET32 = 4,	/* SYSRET without REX.W */
	FRAIL_INSN_SYSENTER = 5,	/* SYSENTER, from 32-bit code */
	FRAIL_INSN_INT80_32 = 6,	/* INT 0x80 in 32-bit code */
	FRAIL_INSN_INT80_64 = 7,	/* INT 0x80 in 64-bit code: i386 numbers too */
};

/* Ways into a guest's kernel, as bits of a coverage mask. */
enum frail_entry {
	FRAIL_ENTRY_SYSCALL = 1,	/* SYSCALL, of 64-bit and 32-bit code */
	FRAIL_ENTRY_SYSENTER = 2,
	FRAIL_ENTRY_INT80 = 4,
};

enum frail_event_flags {
	/* task, pid, tgid and comm are the guest's own. */
	FRAIL_EVENT_IDENTITY = 1,
	/* nr is known. Clear in an exit whose call was forgotten or never seen. */
	FRAIL_EVENT_NR = 2,
	/* ret is the call's own return value. Clear in an exit where it cannot be told. */
	FRAIL_EVENT_RET = 4,
	/* An exit that is told at its thread's next call; when it returned is not known. */
	FRAIL_EVENT_DEFERRED = 8,
	/* The event is the head of a struct frail_data. */
	FRAIL_EVENT_DATA = 16,
};

/**
 * struct frail_event - one system call entry or return of a guest thread, or a
 *	change of coverage
 * @time: CLOCK_BOOTTIME of the host in ns; set by the BPF program, 0 in the tracepoint
 * @vm: the VM's id, as FRAIL_IOC_ARM returned it
 * @vcpu: the vCPU's index
 * @kind: enum frail_event_kind
 * @insn: enum frail_insn
 * @flags: enum frail_event_flags
 * @nr: the system call's number in the table @insn selects; -1 when unknown
 * @args: the six arguments of an entry; zero in an exit. Of a change of coverage:
 *	args[0] has the ways in that trap now and args[1] those that do not, enum
 *	frail_entry
 * @ret: the return value of an exit; zero in an entry, or when it is not known
 * @ip: user address of the instruction after the call; 0 where the entry does not
 *	tell (SYSENTER)
 * @sp: user stack pointer
 * @cr3: the guest's CR3, with its PCID and PTI bits
 * @task: address of the guest's struct task_struct; 0 without identity
 * @who: serial number of the struct frail_process that describes the thread and was
 *	told before; 0: none was
 * @pid: the thread's id in the guest's initial pid namespace; 0 without identity
 * @tgid: the process's id, likewise
 * @comm: the thread's name, NUL-padded
 */
struct frail_event {
	__u64 time;
	__u32 vm;
	__u32 vcpu;
	__u16 kind;
	__u16 insn;
	__u32 flags;
	__s64 nr;
	__u64 args[6];
	__s64 ret;
	__u64 ip;
	__u64 sp;
	__u64 cr3;
	__u64 task;
	__u64 who;
	__s32 pid;
	__s32 tgid;
	__u8 comm[FRAIL_COMM_LEN];
};

/* What of a struct frail_process is known, and how. */
enum frail_process_flags {
	FRAIL_PROCESS_PARENT = 1,	/* ppid */
	FRAIL_PROCESS_CRED = 2,		/* uid, gid, euid, egid */
	FRAIL_PROCESS_START = 4,	/* start */
	FRAIL_PROCESS_NS_PID = 8,	/* ns_pid */
	FRAIL_PROCESS_EXE = 16,		/* exe */
	FRAIL_PROCESS_EXE_CUT = 32,	/* of exe only the end, or as far as it could be read */
	FRAIL_PROCESS_EXE_DELETED = 64,	/* the file has no name any more, or never had one (memfd) */
	FRAIL_PROCESS_CGROUP = 128,	/* cgroup */
	FRAIL_PROCESS_CGROUP_CUT = 256,
};

/**
 * struct frail_process - who a guest thread is
 * @head: time, vm, vcpu, flags, cr3, task, pid, tgid and comm as in an event of the thread;
 *	kind is FRAIL_EVENT_PROCESS, and who is this description's serial number, unique
 *	in the VM. All else is zero
 * @start: when the thread started, ns since the guest's boot
 * @known: enum frail_process_flags: which of the following is known
 * @ppid: process id of its parent, in the guest's initial pid namespace
 * @ns_pid: the thread's id in its own pid namespace
 * @uid: real user id, in the initial user namespace as all of these
 * @gid: real group id
 * @euid: effective user id
 * @egid: effective group id
 * @pad: zero
 * @exe: path of the executable from the root of its mount namespace, NUL-padded
 * @cgroup: path of its cgroup, likewise: where hierarchies differ, the longest of its paths
 *
 * Told before the first event of a thread, and again when something of it has changed:
 * an exec, credentials, the parent, the cgroup. The paths are as they were then: that a file
 * or a cgroup is renamed or removed later changes no thread.
 */
struct frail_process {
	struct frail_event head;
	__u64 start;
	__u32 known;
	__s32 ppid;
	__s32 ns_pid;
	__u32 uid;
	__u32 gid;
	__u32 euid;
	__u32 egid;
	__u32 pad;
	__u8 exe[FRAIL_PATH_LEN];
	__u8 cgroup[FRAIL_PATH_LEN];
};

/* How much of the guest's memory an argument leads to. */
enum frail_read_kind {
	FRAIL_READ_NONE = 0,
	FRAIL_READ_STRING = 1,	/* up to its NUL, which is not read */
	FRAIL_READ_BYTES = 2,	/* unit bytes */
	FRAIL_READ_COUNTED = 3,	/* unit times what argument count says */
	FRAIL_READ_RETURNED = 4,	/* unit times what the call returned */
	FRAIL_READ_POINTED = 5,	/* as many bytes as the __u32 says that argument count points to */
	/*
	 * Strings by an array of pointers that NULL ends, each with a NUL and a byte behind
	 * it: 1 if the string was cut, or 0.
	 */
	FRAIL_READ_STRINGS = 6,
	/*
	 * An array of struct iovec, as many as argument count says: of each its base and
	 * length, two __u64, then a __u64 that says how many bytes of it follow.
	 */
	FRAIL_READ_VECTOR = 7,
};

/**
 * struct frail_read - an argument that points to the guest's memory
 * @kind: enum frail_read_kind
 * @arg: which argument it is, 0 to 5
 * @count: the argument that says how much there is, see @kind
 * @exit: 1: read when the call has returned without an error; 0: when it is made
 * @unit: bytes, see @kind
 * @max: not more bytes than this are read; of each part of strings and vectors
 */
struct frail_read {
	__u8 kind;
	__u8 arg;
	__u8 count;
	__u8 exit;
	__u16 unit;
	__u16 max;
};

/* What is read of a call. */
struct frail_reads {
	struct frail_read read[FRAIL_READS];
};

/**
 * struct frail_data_spec - FRAIL_IOC_SET_DATA's argument, on a VM descriptor
 * @size: sizeof(struct frail_data_spec)
 * @pad: zero
 * @calls64: of the calls of x86-64, by number, x32 calls too
 * @calls32: of the calls of i386
 *
 * From then on events of these calls are told with what their arguments point to, to
 * everybody who listens; a deferred exit never is. Without any read: no event is. EINVAL:
 * a bad size, or a read that no call can have.
 */
struct frail_data_spec {
	__u32 size;
	__u32 pad;
	struct frail_reads calls64[FRAIL_DATA_CALLS];
	struct frail_reads calls32[FRAIL_DATA_CALLS];
};

enum frail_piece_flags {
	FRAIL_PIECE_CUT = 1,	/* there was more */
	FRAIL_PIECE_FAULT = 2,	/* it ends where memory could not be read */
};

/**
 * struct frail_piece - what an argument leads to
 * @arg: which argument it is
 * @kind: enum frail_read_kind; FRAIL_READ_NONE: the piece is not used, nor any after it
 * @flags: enum frail_piece_flags
 * @len: how many bytes of frail_data.bytes it has; pieces follow each other
 */
struct frail_piece {
	__u8 arg;
	__u8 kind;
	__u16 flags;
	__u32 len;
};

/**
 * struct frail_data - an event with what arguments of its call point to
 * @head: the event, with FRAIL_EVENT_DATA
 * @len: bytes that are used of @bytes
 * @pad: zero
 * @piece: whose bytes they are
 * @bytes: the guest's memory; nothing is behind @len
 *
 * Read when the call is made, or when it has returned, as the thread's own page table has
 * it and with a user's rights. Other threads of the guest can change it between this and
 * their kernel's own reading.
 */
struct frail_data {
	struct frail_event head;
	__u32 len;
	__u32 pad;
	struct frail_piece piece[FRAIL_READS];
	__u8 bytes[FRAIL_DATA_LEN];
};

/**
 * struct frail_event_args - the arguments of the raw tracepoints guest_*, as BPF programs
 *	find them in their context
 * @event: kernel address of the struct frail_event
 *
 * The other members are the event's own of these names: what filters look at, so that
 * an event that does not pass need not be read.
 */
struct frail_event_args {
	__u64 event;
	__u32 vm;
	__u32 vcpu;
	__u16 kind;
	__u16 insn;
	__u32 flags;
	__s64 nr;
	__u64 comm[2];
	__s64 ret;
	__u64 task;
	__u64 who;
	__s32 pid;
	__s32 tgid;
};

/* Exits of an armed VM. */
enum frail_exits {
	FRAIL_EXITS_BOTH = 0,	/* SYSCALL and SYSRET trap */
	/*
	 * 64-bit SYSCALL traps alone: the guest's kernel is led to leave by IRET. Its
	 * return values are told at the thread's next call, or as not known.
	 */
	FRAIL_EXITS_ENTRY = 1,
};

/**
 * struct frail_arm - FRAIL_IOC_ARM's argument, on /dev/frail
 * @size: sizeof(struct frail_arm)
 * @kvm_fd: a KVM VM descriptor of the caller
 * @exits: enum frail_exits
 * @vm: out: the VM's id, never used again while the module stays loaded
 * @refusal: out: enum frail_refusal, when the ioctl fails with EOPNOTSUPP
 * @pad: zero
 *
 * The ioctl returns a VM descriptor; closing its last copy disarms the VM.
 * EINVAL: a bad size or mode, or not a KVM VM; EBUSY: armed already; ENOSPC:
 * FRAIL_VM_SLOTS VMs are armed; EOPNOTSUPP: a VM that cannot be traced; @refusal
 * says why.
 */
struct frail_arm {
	__u32 size;
	__s32 kvm_fd;
	__u32 exits;
	__u32 vm;
	__u32 refusal;
	__u32 pad;
};

/* Why a VM cannot be traced. */
enum frail_refusal {
	FRAIL_REFUSAL_NONE = 0,
	FRAIL_REFUSAL_ENCRYPTED = 1,	/* SEV, SEV-ES, SEV-SNP or TDX */
	FRAIL_REFUSAL_FRED = 2,		/* the guest may use FRED, which has no SYSCALL */
	FRAIL_REFUSAL_SHADOW_STACK = 3,	/* its programs may have shadow stacks, which SYSCALL switches */
};

/**
 * struct frail_layout - FRAIL_IOC_SET_LAYOUT's argument, on a VM descriptor
 * @size: sizeof(struct frail_layout)
 * @task_pid: offset of task_struct.pid
 * @task_tgid: offset of task_struct.tgid
 * @task_comm: offset of task_struct.comm
 * @lstar: the LSTAR this layout belongs to; identity is read only while the
 *	vCPU's LSTAR equals it
 * @current_task: the per-CPU symbol to add to KERNEL_GS_BASE
 * @direct_map: first virtual address of the direct map (page_offset_base)
 * @direct_map_size: bytes of guest-physical address space it covers
 * @task_stack: offset of task_struct.stack
 * @stack_regs: offset of the user's struct pt_regs from the start of a kernel stack
 * @regs_ax: offset of pt_regs.ax
 * @regs_orig_ax: offset of pt_regs.orig_ax; the frame that the hardware knows (ip,
 *	cs, flags, sp, ss) follows it
 * @phys_base: what to add to an address of the kernel's image, less its lowest one, to get
 *	the physical one: some first instances of structures lie there
 * @page_table: physical address of the kernel's own top-level page table, by which
 *	its stacks are found: they are not in the direct map
 * @levels: depth of the page tables, 4 or 5
 * @task_mm: offset of task_struct.mm. This one and all that follow are for struct
 *	frail_process, and each may be FRAIL_NO_OFFSET
 * @task_real_parent: offset of task_struct.real_parent
 * @task_start: offset of task_struct.start_boottime
 * @task_thread_pid: offset of task_struct.thread_pid
 * @task_cred: offset of task_struct.real_cred
 * @task_cgroups: offset of task_struct.cgroups
 * @mm_exe_file: offset of mm_struct.exe_file
 * @file_path: offset of file.f_path
 * @dentry_parent: offset of dentry.d_parent
 * @dentry_name: offset of dentry.d_name
 * @dentry_hash: offset of dentry.d_hash
 * @mount_mnt: offset of mount.mnt
 * @mount_parent: offset of mount.mnt_parent
 * @mount_mountpoint: offset of mount.mnt_mountpoint
 * @cred_uid: offset of cred.uid; gid, suid, sgid, euid and egid follow it
 * @css_set_cgroup: offset of css_set.dfl_cgrp
 * @css_set_links: offset of css_set.cgrp_links, which leads to the hierarchies of version 1
 * @link_cgroup: offset of cgrp_cset_link.cgrp
 * @link_node: offset of cgrp_cset_link.cgrp_link
 * @cgroup_node: offset of cgroup.kn
 * @node_parent: offset of kernfs_node's parent
 * @node_name: offset of kernfs_node.name
 * @pid_level: offset of pid.level
 * @pid_numbers: offset of pid.numbers
 * @pad: zero
 */
struct frail_layout {
	__u32 size;
	__u32 task_pid;
	__u32 task_tgid;
	__u32 task_comm;
	__u32 task_stack;
	__u32 stack_regs;
	__u32 regs_ax;
	__u32 regs_orig_ax;
	__u64 lstar;
	__u64 current_task;
	__u64 direct_map;
	__u64 direct_map_size;
	__u64 phys_base;
	__u64 page_table;
	__u32 levels;
	__u32 task_mm;
	__u32 task_real_parent;
	__u32 task_start;
	__u32 task_thread_pid;
	__u32 task_cred;
	__u32 task_cgroups;
	__u32 mm_exe_file;
	__u32 file_path;
	__u32 dentry_parent;
	__u32 dentry_name;
	__u32 dentry_hash;
	__u32 mount_mnt;
	__u32 mount_parent;
	__u32 mount_mountpoint;
	__u32 cred_uid;
	__u32 css_set_cgroup;
	__u32 css_set_links;
	__u32 link_cgroup;
	__u32 link_node;
	__u32 cgroup_node;
	__u32 node_parent;
	__u32 node_name;
	__u32 pid_level;
	__u32 pid_numbers;
	__u32 pad;
};

/**
 * struct frail_status - FRAIL_IOC_STATUS's result, on a VM descriptor
 * @size: in: sizeof(struct frail_status)
 * @vm: the VM's id
 * @generation: rises when the first system call to another kernel is trapped, so
 *	once per guest kernel start; 0: no system call yet. poll() reports POLLPRI
 *	while it differs from what the last FRAIL_IOC_STATUS returned
 * @vcpus: vCPUs the VM has
 * @armed_vcpus: of those, how many have system-call trapping in hardware now
 * @lstar: LSTAR of the newest generation
 * @kernel_gs_base: KERNEL_GS_BASE at that trap
 * @cr3: CR3 at that trap
 * @enters: system calls trapped
 * @exits: SYSRETs trapped
 * @refetches: traps whose instruction could not be read and were run again
 * @identity_misses: events without identity although a layout is set
 * @exits_mode: enum frail_exits
 * @covered: ways in that trap on all vCPUs that are armed, enum frail_entry
 * @blind: ways in that some armed vCPU does not trap now, because its guest uses
 *	the debug registers
 * @pad2: zero
 * @rets_known: deferred exits with their return value
 * @rets_unknown: deferred exits without
 */
struct frail_status {
	__u32 size;
	__u32 vm;
	__u32 generation;
	__u32 vcpus;
	__u32 armed_vcpus;
	__u32 pad;
	__u64 lstar;
	__u64 kernel_gs_base;
	__u64 cr3;
	__u64 enters;
	__u64 exits;
	__u64 refetches;
	__u64 identity_misses;
	__u32 exits_mode;
	__u32 covered;
	__u32 blind;
	__u32 pad2;
	__u64 rets_known;
	__u64 rets_unknown;
};

enum frail_ioctl {
	FRAIL_IOC_ARM = _IOWR('F', 1, struct frail_arm),
	FRAIL_IOC_SET_LAYOUT = _IOW('F', 2, struct frail_layout),
	FRAIL_IOC_STATUS = _IOWR('F', 3, struct frail_status),
	/* On a VM descriptor: tell of each thread who it is before its next event. */
	FRAIL_IOC_DESCRIBE = _IO('F', 4),
	/* On a VM descriptor, of a struct frail_data_spec, which is too large for _IOW. */
	FRAIL_IOC_SET_DATA = _IO('F', 5),
};

/* How a tracer's BPF program lost an event. */
enum frail_loss {
	FRAIL_LOSS_RING_FULL = 0,	/* the ring buffer had no room */
	FRAIL_LOSS_READ_FAULT = 1,	/* the tracepoint's event could not be read */
	FRAIL_LOSS_CAUSES = 2,
};

#endif

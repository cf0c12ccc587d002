// SPDX-License-Identifier: GPL-2.0
//go:build ignore

/*
 * Filters guest system calls and puts those that pass into a ring buffer.
 *
 * Each tracer loads its own copy of these programs with its own maps, so a
 * slow reader loses its own events and no one else's.
 */
#include <stdbool.h>
#include <linux/types.h>
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "comm.h"
#include "trace.h"

char __license[] SEC("license") = "GPL";

/* Set before loading: the verifier drops the tests a tracer does not ask for. */
const volatile struct frail_filter filter = {};

/* The VMs that pass: each one's id at that id modulo FRAIL_VM_SLOTS. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, FRAIL_VM_SLOTS);
	__type(key, __u32);
	__type(value, __u32);
} vms SEC(".maps");

/* struct frail_event, frail_gap_event and frail_process; the tracer sets the size. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4096);
} ring SEC(".maps");

/* Every event lost since loading, by enum frail_loss. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, FRAIL_LOSS_CAUSES);
	__type(key, __u32);
	__type(value, __u64);
} losses SEC(".maps");

/*
 * Of those, the ones still to be told of: BPF adds, whoever tells takes them by
 * exchange. Shared memory, so that Go needs no system call to look.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct frail_gap);
} pending SEC(".maps");

/* Nothing reads these: they put the types into BTF, where bpf2go finds them. */
const struct frail_arm *abi_arm __attribute__((unused));
const struct frail_layout *abi_layout __attribute__((unused));
const struct frail_status *abi_status __attribute__((unused));
const enum frail_limits *abi_limits __attribute__((unused));
const enum frail_event_kind *abi_event_kind __attribute__((unused));
const enum frail_event_flags *abi_event_flags __attribute__((unused));
const enum frail_insn *abi_insn __attribute__((unused));
const enum frail_exits *abi_exits __attribute__((unused));
const enum frail_entry *abi_entry __attribute__((unused));
const enum frail_refusal *abi_refusal __attribute__((unused));
const enum frail_ioctl *abi_ioctl __attribute__((unused));
const enum frail_loss *abi_loss __attribute__((unused));
const enum frail_table *abi_table __attribute__((unused));
const enum frail_match *abi_match __attribute__((unused));
const struct frail_event *abi_event __attribute__((unused));
const struct frail_event_args *abi_event_args __attribute__((unused));
const enum frail_process_flags *abi_process_flags __attribute__((unused));
const struct frail_process *abi_process __attribute__((unused));
const struct frail_gap_event *abi_gap_event __attribute__((unused));

static __always_inline struct frail_gap *pending_losses(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&pending, &zero);
}

static __always_inline void lose(__u32 cause)
{
	__u64 *total = bpf_map_lookup_elem(&losses, &cause);
	struct frail_gap *todo = pending_losses();

	/* Atomic although per CPU: newer kernels preempt tracing programs. */
	if (total)
		__sync_fetch_and_add(total, 1);
	if (todo && cause < FRAIL_LOSS_CAUSES)
		__sync_fetch_and_add(&todo->lost[cause], 1);
}

/*
 * Fills in a record of the ring, of size bytes from the event on; on failure the caller
 * gives it up.
 */
static __always_inline bool fill(struct frail_event *dst, __u32 size,
				 const struct frail_event_args *args)
{
	if (bpf_probe_read_kernel(dst, size, (const void *)args->event)) {
		lose(FRAIL_LOSS_READ_FAULT);
		return false;
	}
	dst->time = bpf_ktime_get_boot_ns();
	return true;
}

/*
 * After a loss the next event enters the ring in one piece with the count of
 * what is missing before it, on whichever CPU it comes, or is lost too.
 */
static __always_inline void deliver(const struct frail_event_args *args)
{
	struct frail_gap *todo = pending_losses();
	struct frail_gap_event *after_gap;
	struct frail_event *dst;

	if (todo && (*(volatile __u64 *)&todo->lost[FRAIL_LOSS_RING_FULL] ||
		     *(volatile __u64 *)&todo->lost[FRAIL_LOSS_READ_FAULT])) {
		after_gap = bpf_ringbuf_reserve(&ring, sizeof(*after_gap), 0);
		if (!after_gap) {
			lose(FRAIL_LOSS_RING_FULL);
			return;
		}
		if (!fill(&after_gap->event, sizeof(after_gap->event), args)) {
			bpf_ringbuf_discard(after_gap, 0);
			return;
		}
		after_gap->gap.lost[FRAIL_LOSS_RING_FULL] =
			__sync_lock_test_and_set(&todo->lost[FRAIL_LOSS_RING_FULL], 0);
		after_gap->gap.lost[FRAIL_LOSS_READ_FAULT] =
			__sync_lock_test_and_set(&todo->lost[FRAIL_LOSS_READ_FAULT], 0);
		bpf_ringbuf_submit(after_gap, 0);
		return;
	}

	dst = bpf_ringbuf_reserve(&ring, sizeof(*dst), 0);
	if (!dst) {
		lose(FRAIL_LOSS_RING_FULL);
		return;
	}
	if (!fill(dst, sizeof(*dst), args)) {
		bpf_ringbuf_discard(dst, 0);
		return;
	}
	bpf_ringbuf_submit(dst, 0);
}

static __always_inline bool syscall_passes(const struct frail_event_args *ev)
{
	__u32 table, match, nr;
	bool member = false;

	if (filter.syscall_match[FRAIL_TABLE_64] == FRAIL_MATCH_ALL &&
	    filter.syscall_match[FRAIL_TABLE_32] == FRAIL_MATCH_ALL &&
	    filter.syscall_match[FRAIL_TABLE_X32] == FRAIL_MATCH_ALL)
		return true;

	/* Not even an excluded set can vouch for a call nobody knows. */
	if (ev->kind == FRAIL_EVENT_EXIT && !(ev->flags & FRAIL_EVENT_NR))
		return false;

	/* Linux looks at EAX alone: high bits must not hide a call. */
	nr = (__u32)ev->nr;
	if (ev->insn != FRAIL_INSN_SYSCALL64 && ev->insn != FRAIL_INSN_SYSRET64) {
		table = FRAIL_TABLE_32;
	} else if ((__s32)nr >= 0 && nr & FRAIL_X32_BIT) {
		table = FRAIL_TABLE_X32;
		nr &= ~FRAIL_X32_BIT;
	} else {
		table = FRAIL_TABLE_64;
	}

	match = filter.syscall_match[table];
	if (match == FRAIL_MATCH_ALL)
		return true;
	if (nr < FRAIL_SYSCALLS)
		member = filter.syscalls[table][nr / 64] >> (nr % 64) & 1;
	return match == FRAIL_MATCH_ONLY ? member : !member;
}

static __always_inline bool comm_passes(const struct frail_event_args *ev)
{
	__u64 low, high;
	bool member = false;
	__u32 i;

	if (filter.comm_match == FRAIL_MATCH_ALL)
		return true;
	if (!(ev->flags & FRAIL_EVENT_IDENTITY))
		return false;

	low = ev->comm[0];
	high = ev->comm[1];
	pad_comm(&low, &high);
	for (i = 0; i < FRAIL_MAX_COMMS && i < filter.comm_count && !member; i++)
		member = low == filter.comms[i][0] && high == filter.comms[i][1];
	return filter.comm_match == FRAIL_MATCH_ONLY ? member : !member;
}

static __always_inline bool vm_passes(const struct frail_event_args *ev)
{
	__u32 slot = ev->vm % FRAIL_VM_SLOTS, *vm;

	vm = bpf_map_lookup_elem(&vms, &slot);
	/* Zero is no VM's. */
	return vm && *vm && *vm == ev->vm;
}

static __always_inline bool passes(const struct frail_event_args *ev)
{
	if (ev->kind > 31 || !(filter.kinds >> ev->kind & 1) || !vm_passes(ev))
		return false;
	/* What is not seen concerns every filter. */
	if (ev->kind == FRAIL_EVENT_COVERAGE)
		return true;
	return syscall_passes(ev) && comm_passes(ev);
}

static __always_inline int record(const struct frail_event_args *args)
{
	if (passes(args))
		deliver(args);
	return 0;
}

SEC("raw_tp/guest_sys_enter")
int guest_sys_enter(struct frail_event_args *args)
{
	return record(args);
}

SEC("raw_tp/guest_sys_exit")
int guest_sys_exit(struct frail_event_args *args)
{
	return record(args);
}

SEC("raw_tp/guest_coverage")
int guest_coverage(struct frail_event_args *args)
{
	return record(args);
}

/* Whose events will pass is not known yet: a thread's name may change. */
SEC("raw_tp/guest_process")
int guest_process(struct frail_event_args *args)
{
	struct frail_process *dst;

	if (!vm_passes(args))
		return 0;
	dst = bpf_ringbuf_reserve(&ring, sizeof(*dst), 0);
	if (!dst) {
		lose(FRAIL_LOSS_RING_FULL);
		return 0;
	}
	if (!fill(&dst->head, sizeof(*dst), args)) {
		bpf_ringbuf_discard(dst, 0);
		return 0;
	}
	bpf_ringbuf_submit(dst, 0);
	return 0;
}

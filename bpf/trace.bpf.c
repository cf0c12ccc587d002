// SPDX-License-Identifier: GPL-2.0
//go:build ignore

/*
 * Filters guest system calls and puts those that pass into a ring buffer.
 *
 * Each tracer loads its own copy of these programs with its own maps, so a
 * slow reader loses its own events and no one else's.
 */
#include "filter.h"

char __license[] SEC("license") = "GPL";

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

/*
 * The call that a thread is in, if calls are judged by what they return: a task's last entry,
 * until its return came. Of kind 0 if that was so. The room it needs: memory is taken if a
 * filter needs the map. The module remembers 4,096 calls a VM.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, struct task_key);
	__type(value, struct frail_event);
} held SEC(".maps");

/*
 * What the arguments of a call that is held point to, if that is wanted. Its time is that of
 * the event it belongs to.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 2048);
	__type(key, struct task_key);
	__type(value, struct frail_data);
} held_data SEC(".maps");

/* Room for such, which is too large for the stack. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct frail_data);
} scratch SEC(".maps");

static const struct frail_event no_event = {};

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
const struct frail_data_spec *abi_data_spec __attribute__((unused));
const struct frail_data *abi_data __attribute__((unused));
const enum frail_read_kind *abi_read_kind __attribute__((unused));
const enum frail_piece_flags *abi_piece_flags __attribute__((unused));
const enum frail_data_room *abi_data_room __attribute__((unused));
const struct frail_gap_event *abi_gap_event __attribute__((unused));
const struct frail_exe_prefix *abi_exe_prefix __attribute__((unused));
const struct frail_group_prefix *abi_group_prefix __attribute__((unused));

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
static __always_inline bool fill(struct frail_event *dst, __u32 size, const void *event,
				 __u64 time)
{
	if (bpf_probe_read_kernel(dst, size, event)) {
		lose(FRAIL_LOSS_READ_FAULT);
		return false;
	}
	dst->time = time;
	return true;
}

/* Whether there are losses to be told of. */
static __always_inline bool gap_before(const struct frail_gap *todo)
{
	return todo && (*(volatile __u64 *)&todo->lost[FRAIL_LOSS_RING_FULL] ||
			*(volatile __u64 *)&todo->lost[FRAIL_LOSS_READ_FAULT]);
}

static __always_inline void take_gap(struct frail_gap *gap, struct frail_gap *todo)
{
	gap->lost[FRAIL_LOSS_RING_FULL] =
		__sync_lock_test_and_set(&todo->lost[FRAIL_LOSS_RING_FULL], 0);
	gap->lost[FRAIL_LOSS_READ_FAULT] =
		__sync_lock_test_and_set(&todo->lost[FRAIL_LOSS_READ_FAULT], 0);
}

/*
 * Puts size bytes from an event on into the ring. After a loss the next event enters it in
 * one piece with the count of what is missing before it, on whichever CPU it comes, or is
 * lost too.
 */
static __always_inline void put(const void *event, __u32 size, __u64 time)
{
	struct frail_gap *todo = pending_losses();
	bool after_gap = gap_before(todo);
	struct frail_event *dst;
	void *record;

	/* The verifier wants to know a record's size. */
	record = after_gap ? bpf_ringbuf_reserve(&ring, sizeof(*todo) + size, 0) :
			     bpf_ringbuf_reserve(&ring, size, 0);
	if (!record) {
		lose(FRAIL_LOSS_RING_FULL);
		return;
	}
	dst = after_gap ? record + sizeof(*todo) : record;
	if (!fill(dst, size, event, time)) {
		bpf_ringbuf_discard(record, 0);
		return;
	}
	if (after_gap)
		take_gap(record, todo);
	bpf_ringbuf_submit(record, 0);
}

/* Puts an event into the ring, with what its call's arguments point to if it is the head of that. */
static __always_inline void deliver(const void *event, __u32 flags, __u64 time)
{
	const struct frail_data *data = event;
	__u32 len;

	if (!filter.data || !(flags & FRAIL_EVENT_DATA) ||
	    bpf_probe_read_kernel(&len, sizeof(len), &data->len))
		put(event, sizeof(struct frail_event), time);
	else if (len <= FRAIL_DATA_SMALL)
		put(event, offsetof(struct frail_data, bytes) + FRAIL_DATA_SMALL, time);
	else if (len <= FRAIL_DATA_MEDIUM)
		put(event, offsetof(struct frail_data, bytes) + FRAIL_DATA_MEDIUM, time);
	else
		put(event, offsetof(struct frail_data, bytes) + FRAIL_DATA_LARGE, time);
}

/* Whether the event that is held is the call that returns. */
static __always_inline bool is_return_of(const struct frail_event_args *ev,
					 const struct frail_event *call)
{
	struct frail_event_args entry = { .kind = call->kind, .insn = call->insn, .nr = call->nr };
	__u32 nr, call_nr;

	return call->kind == FRAIL_EVENT_ENTER && nr_known(ev) &&
	       table_of(ev, &nr) == table_of(&entry, &call_nr) && nr == call_nr;
}

/* Shows a call that was held. */
static __always_inline void deliver_held(const struct task_key *key, const struct frail_event *call)
{
	struct frail_data *data;

	if (filter.data && call->flags & FRAIL_EVENT_DATA) {
		data = bpf_map_lookup_elem(&held_data, key);
		if (data && data->head.time == call->time) {
			deliver(data, call->flags, call->time);
			return;
		}
	}
	deliver(call, 0, call->time);
}

/* Keeps what the arguments of a call point to. */
static __always_inline void hold_data(const struct task_key *key, const struct frail_event_args *ev,
				      __u64 time)
{
	__u32 zero = 0;
	struct frail_data *data = bpf_map_lookup_elem(&scratch, &zero);

	if (!data || bpf_probe_read_kernel(data, sizeof(*data), (const void *)ev->event))
		return;
	data->head.time = time;
	bpf_map_update_elem(&held_data, key, data, BPF_ANY);
}

/* Keeps a call until it returns. The one before did not, as far as is known. */
static __always_inline void hold(const struct frail_event_args *ev)
{
	struct task_key key = { .task = ev->task, .vm = ev->vm };
	struct frail_event *call = bpf_map_lookup_elem(&held, &key);

	if (!call) {
		bpf_map_update_elem(&held, &key, &no_event, BPF_NOEXIST);
		call = bpf_map_lookup_elem(&held, &key);
	} else if (call->kind && admits(UNKNOWN)) {
		deliver_held(&key, call);
	}
	if (!call) {
		if (admits(UNKNOWN))
			deliver((const void *)ev->event, ev->flags, bpf_ktime_get_boot_ns());
		return;
	}
	if (!fill(call, sizeof(*call), (const void *)ev->event, bpf_ktime_get_boot_ns()))
		call->kind = 0;
	else if (filter.data && ev->flags & FRAIL_EVENT_DATA)
		hold_data(&key, ev, call->time);
}

/* A call and its return, if both are known, are shown or not as one, by who made the call. */
static __always_inline void record_return(const struct frail_event_args *ev)
{
	struct task_key key = { .task = ev->task, .vm = ev->vm };
	struct frail_event *call = NULL;
	enum verdict v = by_syscall(ev);

	if (v == FAIL)
		return;
	v = worse(v, returned(ev));
	if (ev->flags & FRAIL_EVENT_IDENTITY)
		call = bpf_map_lookup_elem(&held, &key);
	if (call && is_return_of(ev, call)) {
		if (admits(v))
			deliver_held(&key, call);
		call->kind = 0;
	} else if (v != FAIL) {
		v = worse(v, by_who(ev));
	}
	if (admits(v))
		deliver((const void *)ev->event, ev->flags, bpf_ktime_get_boot_ns());
}

static __always_inline bool concerns(const struct frail_event_args *ev)
{
	return ev->kind <= 31 && filter.kinds >> ev->kind & 1 && vm_passes(ev);
}

static __always_inline enum verdict judge(const struct frail_event_args *ev)
{
	enum verdict v = by_syscall(ev);

	return v == FAIL ? v : worse(v, by_who(ev));
}

SEC("raw_tp/guest_sys_enter")
int guest_sys_enter(struct frail_event_args *args)
{
	enum verdict v;

	if (!concerns(args))
		return 0;
	v = judge(args);
	if (by_return() && v != FAIL) {
		/* Of a thread that is not known it cannot be told what returns. */
		if (args->flags & FRAIL_EVENT_IDENTITY) {
			if (admits(v))
				hold(args);
			return 0;
		}
		v = UNKNOWN;
	}
	if (admits(v))
		deliver((const void *)args->event, args->flags, bpf_ktime_get_boot_ns());
	return 0;
}

SEC("raw_tp/guest_sys_exit")
int guest_sys_exit(struct frail_event_args *args)
{
	if (filter.follow && vm_passes(args))
		follow_child(args);
	if (!concerns(args))
		return 0;
	if (by_return())
		record_return(args);
	else if (admits(judge(args)))
		deliver((const void *)args->event, args->flags, bpf_ktime_get_boot_ns());
	return 0;
}

/* What is not seen concerns every filter. */
SEC("raw_tp/guest_coverage")
int guest_coverage(struct frail_event_args *args)
{
	if (concerns(args))
		deliver((const void *)args->event, args->flags, bpf_ktime_get_boot_ns());
	return 0;
}

/*
 * Whose events will pass is not always known yet: a thread's name may change. Who can make
 * none that pass is not told of.
 */
SEC("raw_tp/guest_process")
int guest_process(struct frail_event_args *args)
{
	struct frail_process *dst;

	if (!vm_passes(args))
		return 0;
	if (by_description()) {
		if (describe(args) == FAIL)
			return 0;
	} else if (by_ids(args) == FAIL) {
		return 0;
	}
	if (!filter.tell)
		return 0;
	dst = bpf_ringbuf_reserve(&ring, sizeof(*dst), 0);
	if (!dst) {
		lose(FRAIL_LOSS_RING_FULL);
		return 0;
	}
	if (!fill(&dst->head, sizeof(*dst), (const void *)args->event, bpf_ktime_get_boot_ns())) {
		bpf_ringbuf_discard(dst, 0);
		return 0;
	}
	bpf_ringbuf_submit(dst, 0);
	return 0;
}

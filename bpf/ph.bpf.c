// SPDX-License-Identifier: GPL-2.0
//go:build ignore

/*
 * pH: learns each guest executable's sequences of system calls and judges every
 * call by them. The same as tracer/ph, which is the reference, call by call.
 *
 * A guest thread runs on one vCPU at a time, so its state needs no lock. Rows
 * are shared by all threads of an executable and only ever gain bits: two CPUs
 * that write the same byte at once may lose one, which is learnt at its next
 * occurrence.
 */
#include <stdbool.h>
#include <stddef.h>
#include <linux/types.h>
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "comm.h"
#include "ph.h"

char __license[] SEC("license") = "GPL";

#define EMPTY_WINDOW (~0ULL)

/* Set before loading: the number of entries of the profiles map. */
const volatile __u32 max_profiles = 1024;

/* Likewise of the rows map. */
const volatile __u32 max_rows = 60000;

/* What a new element begins as: too large for the stack. */
const struct frail_ph_thread zero_thread = {};

/* Profiles given out that were never used before. */
__u32 next_profile = 0;

/* Likewise rows. */
__u32 next_row = 0;

/* The last frail_ph_profile.serial. */
__u32 last_serial = 0;

/* Raised by user space now and then: threads of an old age were idle since. */
__u32 age = 0;

/* By enum frail_ph_counter. */
__u64 counters[FRAIL_PH_COUNTERS] = {};

/* By id modulo its size: a lookup that costs nothing for a VM nobody follows. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, FRAIL_VM_SLOTS);
	__type(key, __u32);
	__type(value, struct frail_ph_vm);
} vms SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1024);
	__type(key, struct frail_ph_executable);
	__type(value, __u32);
} executables SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1024);
	__type(key, __u32);
	__type(value, struct frail_ph_profile);
} profiles SEC(".maps");

/* Indices of profiles that nobody has any more: user space puts them here. */
struct {
	__uint(type, BPF_MAP_TYPE_QUEUE);
	__uint(max_entries, 1024);
	__type(value, __u32);
} free_profiles SEC(".maps");

/* An array: profiles have the indices, which costs less than a hash. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 60000);
	__type(key, __u32);
	__type(value, struct frail_ph_row);
} rows SEC(".maps");

/* Indices of rows that no profile has any more, which are all zero. */
struct {
	__uint(type, BPF_MAP_TYPE_QUEUE);
	__uint(max_entries, 60000);
	__type(value, __u32);
} free_rows SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 100000);
	__type(key, struct frail_ph_thread_key);
	__type(value, struct frail_ph_thread);
} threads SEC(".maps");

/*
 * The last call that makes threads in each address space. LRU: it is of use for
 * microseconds.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, struct frail_ph_space_key);
	__type(value, struct frail_ph_fork);
} forks SEC(".maps");

/* Where guest_process() makes a key: it is too large for the stack. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct frail_ph_executable);
} scratch SEC(".maps");

/* struct frail_ph_record; the analyser sets the size. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4096);
} records SEC(".maps");

/* Nothing reads these: they put the types into BTF, where bpf2go finds them. */
const enum frail_ph_event_flags *ph_event_flags __attribute__((unused));
const enum frail_ph_flags *ph_flags __attribute__((unused));
const enum frail_ph_control *ph_control_ops __attribute__((unused));
const enum frail_ph_counter *ph_counter __attribute__((unused));
const enum frail_ph_clock *ph_clock __attribute__((unused));
const enum frail_ph_known_by *ph_known_by __attribute__((unused));
const struct frail_ph_record *ph_record __attribute__((unused));

/* What of a struct frail_event is needed of every call and is no argument. */
struct caller {
	__u64 sp;
	__u64 cr3;
	__u64 task;
	__u64 who;
	__s32 pid;
	__s32 tgid;
};

_Static_assert(offsetof(struct frail_event, tgid) - offsetof(struct frail_event, sp) ==
	       offsetof(struct caller, tgid), "caller in frail_event");

/* What is known of the call that is analysed. */
struct call {
	__u64 event;	/* address of the struct frail_event */
	struct caller by;
	__u32 vm;
	__u32 number;
	__u32 was;
};

/* The event's own time: the tracepoint's have none, it is taken when it is needed. */
static __always_inline __u64 event_time(const struct call *c)
{
	__u64 time = 0;

	bpf_probe_read_kernel(&time, sizeof(time),
			      (const void *)c->event + offsetof(struct frail_event, time));
	return time;
}

/* The clock of normal_time: user space sets it for a time of day. */
static __always_inline __u64 monotonic_of(const struct call *c)
{
	return event_time(c) ?: bpf_ktime_get_ns();
}

static __always_inline __u64 time_of(const struct call *c)
{
	return event_time(c) ?: bpf_ktime_get_boot_ns();
}

static __always_inline void read_comm(__u8 *comm, const struct call *c)
{
	bpf_probe_read_kernel(comm, FRAIL_COMM_LEN,
			      (const void *)c->event + offsetof(struct frail_event, comm));
}

/*
 * Functions that are not static are verified once, by themselves; those off the
 * common way are, for the verifier's sake.
 */
__noinline int count(__u32 counter, const struct call *c)
{
	__u64 n;
	struct frail_ph_record *rec;

	if (!c || counter >= FRAIL_PH_COUNTERS)
		return 0;
	n = __sync_fetch_and_add(&counters[counter], 1) + 1;

	/* Told when it happens first, and ever more seldom. */
	if (n & (n - 1))
		return 0;
	rec = bpf_ringbuf_reserve(&records, sizeof(*rec), 0);
	if (!rec) {
		__sync_fetch_and_add(&counters[FRAIL_PH_RING_FULL], 1);
		return 0;
	}
	__builtin_memset(rec, 0, sizeof(*rec));
	rec->time = time_of(c);
	rec->exe.vm = c->vm;
	rec->pid = c->by.pid;
	rec->tgid = c->by.tgid;
	rec->counter = counter + 1;
	rec->train = n;
	read_comm(rec->comm, c);
	bpf_ringbuf_submit(rec, 0);
	return 0;
}

static __always_inline __u32 number_of(const struct frail_event_args *args)
{
	__u32 nr = (__u32)args->nr, table = 0;

	if (args->insn != FRAIL_INSN_SYSCALL64) {
		table = 1;
	} else if ((__s32)nr >= 0 && nr & 0x40000000) {
		table = 2;
		nr &= ~0x40000000;
	}
	return nr < FRAIL_PH_TABLE ? table * FRAIL_PH_TABLE + nr : FRAIL_PH_OTHER_NUMBER;
}

static __always_inline struct frail_ph_profile *profile_at(__u32 index)
{
	return bpf_map_lookup_elem(&profiles, &index);
}

/*
 * Which program a described thread runs. Its path, or, where the guest's layout does not
 * lead to it, the thread's name. That a file has no name any more changes nothing: it is
 * the same program, described once more.
 */
static __always_inline bool executable_of(struct frail_ph_executable *exe, __u32 vm,
					  const struct frail_process *p)
{
	__u64 *comm = (__u64 *)exe->name;
	__u32 known;

	if (bpf_probe_read_kernel(&known, sizeof(known), &p->known))
		return false;
	__builtin_memset(exe, 0, sizeof(*exe));
	exe->vm = vm;
	if (known & FRAIL_PROCESS_EXE) {
		exe->known_by = known & FRAIL_PROCESS_EXE_CUT ? FRAIL_PH_BY_PATH_END : FRAIL_PH_BY_PATH;
		return bpf_probe_read_kernel_str(exe->name, FRAIL_PATH_LEN + 1, p->exe) >= 0;
	}
	exe->known_by = FRAIL_PH_BY_COMM;
	if (bpf_probe_read_kernel(exe->name, FRAIL_COMM_LEN, p->head.comm))
		return false;
	pad_comm(&comm[0], &comm[1]);
	return true;
}

/* Returns an index that is free, or was never used before; negative: there is none. */
static __always_inline int take(void *free, __u32 *next, __u32 max)
{
	__u32 index;

	if (!bpf_map_pop_elem(free, &index))
		return index;
	if (*(volatile __u32 *)next >= max)
		return -1;
	index = __sync_fetch_and_add(next, 1);
	return index < max ? (int)index : -1;
}

/* Returns the index of the executable's profile, which it makes if need be; negative: no room. */
static __always_inline int profile_of(const struct frail_ph_executable *exe)
{
	struct frail_ph_profile *p;
	__u32 *known, index;
	int taken;

	known = bpf_map_lookup_elem(&executables, exe);
	if (known)
		return *known;
	taken = take(&free_profiles, &next_profile, max_profiles);
	if (taken < 0)
		return -1;
	index = taken;
	p = profile_at(index);
	if (!p)
		return -1;
	p->exe = *exe;
	p->fork_window = EMPTY_WINDOW;
	p->serial = __sync_fetch_and_add(&last_serial, 1) + 1;
	if (bpf_map_update_elem(&executables, exe, &index, BPF_NOEXIST)) {
		p->serial = 0;
		bpf_map_push_elem(&free_profiles, &index, 0);
		known = bpf_map_lookup_elem(&executables, exe);
		return known ? (int)*known : -1;
	}
	return index;
}

/* Returns the window of a new thread: its parent's, as far as that can be told. */
static __always_inline __u64 inherit(const struct call *c, __u64 space,
				     struct frail_ph_profile *p)
{
	struct frail_ph_space_key key = { .space = space, .vm = c->vm };
	struct frail_ph_fork *f = bpf_map_lookup_elem(&forks, &key);

	if (f && f->serial == p->serial && f->pending) {
		f->pending--;
		if (p->fork_pending)
			p->fork_pending--;
		return f->window;
	}
	if (p->fork_pending) {
		p->fork_pending--;
		return p->fork_window;
	}
	return EMPTY_WINDOW;
}

/*
 * Begins the state of a described thread anew, unless only something changed that is no
 * matter here, such as its credentials. Returns FRAIL_PH_NEW_*.
 */
static __always_inline __u32 begin(const struct call *c, const struct frail_ph_executable *exe)
{
	struct frail_ph_thread_key key = { .vm = c->vm, .pid = c->by.pid };
	/* Without its PCID. It is the user's, so PTI's bit is the same in all. */
	__u64 space = c->by.cr3 & 0x000ffffffffff000ULL, window = EMPTY_WINDOW;
	struct frail_ph_profile *p;
	struct frail_ph_thread *t;
	bool added = false, known;
	int index;

	t = bpf_map_lookup_elem(&threads, &key);
	if (!t) {
		bpf_map_update_elem(&threads, &key, &zero_thread, BPF_NOEXIST);
		t = bpf_map_lookup_elem(&threads, &key);
		if (!t) {
			count(FRAIL_PH_FULL_THREADS, c);
			return 0;
		}
		added = true;
	}
	known = !added && t->task == c->by.task;
	index = profile_of(exe);
	p = index < 0 ? NULL : profile_at(index);
	if (!p) {
		bpf_map_delete_elem(&threads, &key);
		count(FRAIL_PH_FULL_PROFILES, c);
		return 0;
	}
	t->who = c->by.who;
	read_comm((__u8 *)t->comm, c);
	t->age = age;
	if (known && t->space == space && t->profile == (__u32)index && t->serial == p->serial)
		return 0;
	if (known) {
		t->news |= FRAIL_PH_NEW_PROGRAM;
	} else {
		t->news = FRAIL_PH_NEW_THREAD;
		window = inherit(c, space, p);
	}
	__sync_fetch_and_add(&p->threads, 1);
	t->task = c->by.task;
	t->space = space;
	t->window = window;
	t->frame[0] = t->frame[1] = 0;
	t->calls = 0;
	t->profile = index;
	t->serial = p->serial;
	t->tgid = c->by.tgid;
	t->lfc = t->max_lfc = t->alerted = t->anomalous = 0;
	t->depth = t->moments = t->next = 0;
	return t->news;
}

/* Gives a call a symbol. */
__noinline int new_symbol(const struct call *c, struct frail_ph_profile *p)
{
	__u32 number, shift, sym, old, seen;
	__u32 *word;
	int i;

	if (!c || !p)
		return FRAIL_PH_OTHER;
	number = c->number;
	if (number >= FRAIL_PH_NUMBERS) {
		count(FRAIL_PH_FULL_SYMBOLS, c);
		return FRAIL_PH_OTHER;
	}
	word = &p->symbol[number / 4];
	shift = number % 4 * 8;
	old = *(volatile __u32 *)word;
	if (p->symbols >= FRAIL_PH_MAX_SYMBOL) {
		count(FRAIL_PH_FULL_SYMBOLS, c);
		return FRAIL_PH_OTHER;
	}
	sym = __sync_fetch_and_add(&p->symbols, 1) + 1;
	if (sym > FRAIL_PH_MAX_SYMBOL) {
		__sync_fetch_and_sub(&p->symbols, 1);
		count(FRAIL_PH_FULL_SYMBOLS, c);
		return FRAIL_PH_OTHER;
	}
	p->number[sym & 0xff] = number;
	/* Other calls may get theirs in the same word meanwhile. */
	for (i = 0; i < 8; i++) {
		if (old >> shift & 0xff)
			return old >> shift & 0xff;
		seen = __sync_val_compare_and_swap(word, old, old | sym << shift);
		if (seen == old)
			return sym;
		old = seen;
	}
	return sym;
}

/* Returns the profile's symbol of a call, which it gives if need be. */
static __always_inline __u32 symbol_of(const struct call *c, struct frail_ph_profile *p)
{
	__u32 sym = 0;

	if (c->number < FRAIL_PH_NUMBERS)
		sym = ((const __u8 *)p->symbol)[c->number];
	return sym ?: new_symbol(c, p) & 0xff;
}

static __always_inline struct frail_ph_row *row_of(const struct frail_ph_profile *p, __u32 sym)
{
	__u32 index = p->row[sym & 0xff] - 1;

	/* There is no row of index -1. */
	return bpf_map_lookup_elem(&rows, &index);
}

/* Gives a profile a row, unless there is no room. */
__noinline int new_row(struct frail_ph_profile *p, __u32 sym)
{
	__u32 index;
	int taken = take(&free_rows, &next_row, max_rows);

	if (!p || taken < 0)
		return 0;
	index = taken;
	/* Another CPU may have been faster. */
	if (__sync_val_compare_and_swap(&p->row[sym & 0xff], 0, index + 1))
		bpf_map_push_elem(&free_rows, &index, 0);
	return 0;
}

static __always_inline bool is_late(const struct frail_ph_row *r, const struct frail_ph_profile *p)
{
	return r->test_epoch != p->test_epoch || r->train_epoch != p->train_epoch;
}

/* Does to a row what happened to its profile since the row was last used. */
__noinline int catch_up(struct frail_ph_row *r, const struct frail_ph_profile *p)
{
	if (!r || !p)
		return 0;
	if (r->test_epoch != p->test_epoch) {
		if (r->train_epoch == p->test_from)
			__builtin_memcpy(r->test, r->train, sizeof(r->test));
		else
			__builtin_memset(r->test, 0, sizeof(r->test));
		r->test_epoch = p->test_epoch;
	}
	if (r->train_epoch != p->train_epoch) {
		__builtin_memset(r->train, 0, sizeof(r->train));
		r->train_epoch = p->train_epoch;
	}
	return 0;
}

static __always_inline void start_normal(struct frail_ph_profile *p)
{
	p->test_from = p->train_epoch;
	p->test_epoch++;
	p->anomalies = 0;
	p->train = 0;
	p->last_mod = 0;
	p->frozen = 0;
	p->marked = 0;
	p->alerted = 0;
	p->normal = 1;
}

static __always_inline void forget(struct frail_ph_profile *p)
{
	p->train_epoch++;
	p->anomalies = 0;
	p->train = 0;
	p->last_mod = 0;
	p->sequences = 0;
	p->frozen = 0;
}

/* Adds the pairs of the call and returns those that are new. */
static __always_inline __u32 learn(const struct call *c, struct frail_ph_profile *p,
				   struct frail_ph_row *r, __u64 window, __u64 normal_wait)
{
	__u32 fresh = 0;
	__u64 train;
	int i;

	if (r) {
#pragma unroll
		for (i = 0; i < FRAIL_PH_PAIRS; i++)
			fresh |= ~(__u32)r->train[window >> (8 * i) & 0xff] & 1 << i;
		/* No branch for each pair: eight make 256 ways for the verifier. */
		if (fresh) {
#pragma unroll
			for (i = 0; i < FRAIL_PH_PAIRS; i++)
				r->train[window >> (8 * i) & 0xff] |= 1 << i;
		}
	}
	train = __sync_fetch_and_add(&p->train, 1) + 1;
	if (fresh) {
		p->frozen = 0;
		p->last_mod = train;
		__sync_fetch_and_add(&p->sequences, 1);
		return fresh;
	}
	if (!p->frozen && p->last_mod && train > p->last_mod * FRAIL_PH_FREEZE_RATIO) {
		p->normal_time = monotonic_of(c) + normal_wait;
		p->frozen = 1;
	}
	return 0;
}

static __always_inline __u32 mismatches(const struct frail_ph_row *r, __u64 window)
{
	__u32 miss = 0;
	int i;

	if (!r)
		return 0xff;
#pragma unroll
	for (i = 0; i < FRAIL_PH_PAIRS; i++)
		miss |= ~(__u32)r->test[window >> (8 * i) & 0xff] & 1 << i;
	return miss;
}

/*
 * Counts an anomalous thread. Returns the flags of too many: told once, until there are fewer
 * again, and never learnt.
 */
__noinline int mark(struct frail_ph_profile *p, __u32 limit)
{
	__u64 threads;
	__u32 n;

	if (!p)
		return 0;
	n = __sync_fetch_and_add(&p->marked, 1);
	threads = p->threads;
	p->marks[n % FRAIL_PH_MARKS] = threads;
	if (n < limit || threads - p->marks[(n - limit) % FRAIL_PH_MARKS] >= FRAIL_PH_FRAME) {
		p->alerted = 0;
		return 0;
	}
	if (p->alerted)
		return FRAIL_PH_FORGOT;
	p->alerted = 1;
	return FRAIL_PH_MANY_PROCESSES | FRAIL_PH_FORGOT;
}

/* Remembers the window a child of the thread begins with. */
static __always_inline void forked(const struct call *c, const struct frail_ph_thread *t,
				   struct frail_ph_profile *p)
{
	struct frail_ph_space_key key = { .space = t->space, .vm = c->vm };
	struct frail_ph_fork fork = { .serial = t->serial, .pending = 1, .window = t->window };
	struct frail_ph_fork *f = bpf_map_lookup_elem(&forks, &key);

	p->fork_window = t->window;
	__sync_fetch_and_add(&p->fork_pending, 1);
	if (f && f->serial == t->serial) {
		f->window = t->window;
		__sync_fetch_and_add(&f->pending, 1);
		return;
	}
	bpf_map_update_elem(&forks, &key, &fork, BPF_ANY);
}

/* Gives the thread back the window that its signal handler interrupted. */
__noinline int sigreturn(const struct call *c, struct frail_ph_thread *t)
{
	struct frail_ph_moment *m;
	__u32 i, at;

	if (!c || !t)
		return 0;
	if (t->depth) {
		t->depth--;
		t->window = t->saved[t->depth % FRAIL_PH_SIGNALS];
		return 0;
	}
	/* The handler's calls were made from below the frame it returns through. */
	for (i = 1; i < FRAIL_PH_HISTORY; i++) {
		if (i >= t->moments)
			break;
		at = t->next - 1 - i;
		m = &t->moment[at % FRAIL_PH_HISTORY];
		if (m->sp >= c->by.sp) {
			t->window = m->window;
			t->moments -= i;
			t->next = at + 1;
			return 0;
		}
	}
	count(FRAIL_PH_SIGNAL_LOST, c);
	t->window = EMPTY_WINDOW;
	t->moments = 0;
	return 0;
}

/* What the call does to its thread's windows beyond being appended. */
static __always_inline void act(const struct call *c, const struct frail_ph_thread_key *key,
				struct frail_ph_thread *t, struct frail_ph_profile *p)
{
	__u32 nr = c->number % FRAIL_PH_TABLE;

	if (c->number >= FRAIL_PH_NUMBERS)
		return;
	if (c->number / FRAIL_PH_TABLE == 1) {
		switch (nr) {
		case 2:		/* fork */
		case 120:	/* clone */
		case 190:	/* vfork */
		case 435:	/* clone3 */
			goto fork;
		case 119:	/* sigreturn */
		case 173:	/* rt_sigreturn */
			goto sigreturn;
		case 1:		/* exit */
		case 252:	/* exit_group */
			goto exit;
		}
		return;
	}
	switch (nr) {
	case 56:	/* clone */
	case 57:	/* fork */
	case 58:	/* vfork */
	case 435:	/* clone3 */
		goto fork;
	case 15:	/* rt_sigreturn */
	case 513:	/* rt_sigreturn, x32 */
		goto sigreturn;
	case 60:	/* exit */
	case 231:	/* exit_group */
		goto exit;
	}
	return;
fork:
	forked(c, t, p);
	return;
sigreturn:
	sigreturn(c, t);
	return;
exit:
	bpf_map_delete_elem(&threads, key);
}

__noinline int tell(const struct call *c, const struct frail_ph_thread *t,
				 const struct frail_ph_profile *p, __u32 verdict)
{
	struct frail_ph_record *rec;
	__u32 sym;
	int i;

	if (!c || !t || !p)
		return 0;
	rec = bpf_ringbuf_reserve(&records, sizeof(*rec), 0);
	if (!rec) {
		__sync_fetch_and_add(&counters[FRAIL_PH_RING_FULL], 1);
		return 0;
	}
	rec->time = time_of(c);
	rec->task = c->by.task;
	rec->frame[0] = t->frame[0];
	rec->frame[1] = t->frame[1];
	rec->anomalies = p->anomalies;
	rec->train = p->train;
	rec->exe = p->exe;
	rec->pid = c->by.pid;
	rec->tgid = c->by.tgid;
	rec->verdict = verdict;
	rec->was = c->was;
	rec->max_lfc = t->max_lfc;
	rec->calls[0] = c->number;
#pragma unroll
	for (i = 0; i < FRAIL_PH_PAIRS; i++) {
		sym = t->window >> (8 * i) & 0xff;
		rec->calls[i + 1] = sym == FRAIL_PH_NONE ? FRAIL_PH_NO_NUMBER :
				    sym == FRAIL_PH_OTHER ? FRAIL_PH_OTHER_NUMBER : p->number[sym];
	}
	rec->counter = 0;
	__builtin_memset(rec->pad, 0, sizeof(rec->pad));
	read_comm(rec->comm, c);
	bpf_ringbuf_submit(rec, 0);
	return 0;
}

static __always_inline __u32 state_of(const struct frail_ph_profile *p)
{
	return (p->frozen ? FRAIL_PH_FROZEN : 0) | (p->normal ? FRAIL_PH_NORMAL : 0);
}

/* Returns whether the VM of an event is followed, and its settings in @vm. */
static __always_inline const struct frail_ph_vm *followed(const struct frail_event_args *args)
{
	__u32 slot = args->vm % FRAIL_VM_SLOTS;
	const struct frail_ph_vm *vm = bpf_map_lookup_elem(&vms, &slot);

	return vm && vm->vm == args->vm && vm->flags & 1 ? vm : NULL;
}

static __always_inline bool read_caller(struct call *c, const struct frail_event_args *args)
{
	c->event = args->event;
	c->vm = args->vm;
	if (bpf_probe_read_kernel(&c->by, sizeof(c->by),
				  (const void *)c->event + offsetof(struct frail_event, sp))) {
		__sync_fetch_and_add(&counters[FRAIL_PH_READ_FAULT], 1);
		return false;
	}
	return true;
}

/* Who a thread is comes before its first call, and again when that has changed. */
SEC("raw_tp/guest_process")
int guest_process(struct frail_event_args *args)
{
	struct frail_ph_executable *exe;
	struct call c = {};
	__u32 zero = 0;

	if (!followed(args) || !read_caller(&c, args))
		return 0;
	exe = bpf_map_lookup_elem(&scratch, &zero);
	if (!exe)
		return 0;
	if (!executable_of(exe, c.vm, (const struct frail_process *)c.event)) {
		__sync_fetch_and_add(&counters[FRAIL_PH_READ_FAULT], 1);
		return 0;
	}
	return begin(&c, exe);
}

SEC("raw_tp/guest_sys_enter")
int guest_sys_enter(struct frail_event_args *args)
{
	struct frail_ph_thread_key key;
	const struct frail_ph_vm *vm;
	struct frail_ph_thread *t;
	struct frail_ph_profile *p;
	struct frail_ph_row *r;
	__u32 sym, fresh = 0, miss = 0, flags, state, verdict;
	bool learning;
	struct call c;

	vm = followed(args);
	if (!vm || args->kind != FRAIL_EVENT_ENTER || !read_caller(&c, args))
		return 0;
	if (!(args->flags & FRAIL_EVENT_IDENTITY)) {
		count(FRAIL_PH_NO_IDENTITY, &c);
		return 0;
	}
	c.number = number_of(args);

	key.vm = c.vm;
	key.pid = c.by.pid;
	t = bpf_map_lookup_elem(&threads, &key);
	p = t && t->who == c.by.who ? profile_at(t->profile) : NULL;
	if (!t || !p || t->serial != p->serial) {
		count(FRAIL_PH_NO_PROGRAM, &c);
		return 0;
	}
	flags = t->news;
	t->news = 0;
	t->calls++;
	t->age = age;
	c.was = state_of(p);

	if (args->flags & FRAIL_EVENT_SIGNAL) {
		if (t->depth < FRAIL_PH_SIGNALS) {
			t->saved[t->depth % FRAIL_PH_SIGNALS] = t->window;
			t->depth++;
			t->window = EMPTY_WINDOW;
		} else {
			count(FRAIL_PH_SIGNAL_DEPTH, &c);
		}
	}

	learning = vm->flags & 2;
	sym = symbol_of(&c, p);
	r = row_of(p, sym);
	if (!r && learning) {
		new_row(p, sym);
		r = row_of(p, sym);
		if (!r)
			count(FRAIL_PH_FULL_ROWS, &c);
	}
	if (r && is_late(r, p))
		catch_up(r, p);
	if (learning) {
		fresh = learn(&c, p, r, t->window, vm->normal_wait);
		if (p->frozen && !(p->train % FRAIL_PH_CLOCK) && monotonic_of(&c) >= p->normal_time) {
			start_normal(p);
			if (r && is_late(r, p))
				catch_up(r, p);
		}
	}
	if (p->normal) {
		miss = mismatches(r, t->window);
		if (miss && __sync_fetch_and_add(&p->anomalies, 1) + 1 > vm->anomaly_limit) {
			p->normal = 0;
			flags |= FRAIL_PH_DRIFT;
		}
	}

	t->lfc -= t->frame[1] >> 63;
	t->frame[1] = t->frame[1] << 1 | t->frame[0] >> 63;
	t->frame[0] <<= 1;
	if (miss) {
		t->frame[0] |= 1;
		t->lfc++;
		if (t->lfc > t->max_lfc)
			t->max_lfc = t->lfc;
		if (!t->anomalous) {
			t->anomalous = 1;
			flags |= mark(p, vm->process_limit);
		}
	}
	if (!t->lfc)
		t->alerted = 0;
	if (t->lfc > vm->tolerize_limit) {
		flags |= FRAIL_PH_FORGOT;
		if (!t->alerted) {
			t->alerted = 1;
			flags |= FRAIL_PH_ATTACK;
		}
	}
	if (flags & FRAIL_PH_FORGOT)
		forget(p);

	state = state_of(p);
	verdict = fresh | miss << 8 | (__u32)t->lfc << 16 | (flags | state) << 24;
	if (fresh || miss || state != c.was ||
	    flags & ~(FRAIL_PH_FORGOT | (key.pid != c.by.tgid ? FRAIL_PH_NEW_THREAD : 0)))
		tell(&c, t, p, verdict);

	t->window = t->window << 8 | sym;
	t->moment[t->next % FRAIL_PH_HISTORY].sp = c.by.sp;
	t->moment[t->next % FRAIL_PH_HISTORY].window = t->window;
	t->next++;
	if (t->moments < FRAIL_PH_HISTORY)
		t->moments++;
	act(&c, &key, t, p);
	return verdict;
}

/*
 * Never attached: user space runs it, so that what an operator decides is done
 * by the code that does it otherwise. args: index of a profile, enum
 * frail_ph_control.
 */
SEC("raw_tp")
int control(struct bpf_raw_tracepoint_args *ctx)
{
	struct frail_ph_profile *p;

	if (ctx->args[1] == FRAIL_PH_TAKE)
		return take(&free_profiles, &next_profile, max_profiles);
	if (ctx->args[1] == FRAIL_PH_TAKE_ROW)
		return take(&free_rows, &next_row, max_rows);
	p = profile_at(ctx->args[0]);
	if (!p || !p->serial)
		return 1;
	switch (ctx->args[1]) {
	case FRAIL_PH_NORMALIZE:
		start_normal(p);
		return 0;
	case FRAIL_PH_TOLERIZE:
		p->normal = 0;
		p->anomalies = 0;
		return 0;
	case FRAIL_PH_SENSITIZE:
		forget(p);
		return 0;
	case FRAIL_PH_RETIRE:
		p->serial = 0;
		return 0;
	}
	return 1;
}

/* Never attached: what a tracepoint costs with a program that does nothing. */
SEC("raw_tp/guest_sys_enter")
int nothing(struct bpf_raw_tracepoint_args *ctx __attribute__((unused)))
{
	return 0;
}

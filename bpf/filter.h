/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Which events pass a tracer's filter.
 *
 * What can be judged of an event by the tracepoint's arguments is. What only the description
 * of its thread tells is judged when that is told, and kept by the thread's task: one look
 * into a map an event.
 */
#ifndef FRAIL_FILTER_H
#define FRAIL_FILTER_H

#include <stdbool.h>
#include <stddef.h>
#include <linux/types.h>
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "comm.h"
#include "trace.h"

/* Set before loading: the verifier drops the tests a tracer does not ask for. */
const volatile struct frail_filter filter = {};

/* The VMs that pass: each one's id at that id modulo FRAIL_VM_SLOTS. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, FRAIL_VM_SLOTS);
	__type(key, __u32);
	__type(value, __u32);
} vms SEC(".maps");

/*
 * The sets that do not fit the filter. The tracer makes the room they need; of those that
 * no filter is by, one entry.
 */

/* Processes by their id: bit id % 64 of entry id / 64. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, FRAIL_PIDS / 64);
	__type(key, __u32);
	__type(value, __u64);
} processes SEC(".maps");

/* Threads, likewise. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, FRAIL_PIDS / 64);
	__type(key, __u32);
	__type(value, __u64);
} threads SEC(".maps");

/* What paths of executables begin with. */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1);
	__type(key, struct frail_exe_prefix);
	__type(value, __u8);
} executables SEC(".maps");

/* What names of containers' control groups begin with. */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1);
	__type(key, struct frail_group_prefix);
	__type(value, __u8);
} containers SEC(".maps");

/* How a filter judges. The lowest verdict of several is that of all. */
enum verdict {
	FAIL,
	UNKNOWN,	/* what it looks at is not known */
	PASS,
};

/* A guest's task_struct. */
struct task_key {
	__u64 task;
	__u32 vm;
	__u32 pad;
};

/* What was found when a thread was described. */
struct task {
	__u64 who;	/* the description's serial number */
	__u64 start;	/* when the process started; 0: not known */
	__u32 verdict;	/* of what does not change until the thread is described anew */
	__u16 family;	/* verdict: it descends from one that passed, or did itself */
	__u16 outer;	/* it knows its children by the ids of the initial pid namespace */
};

/* The room a guest's threads need: memory is taken if a filter needs the map. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 32768);
	__type(key, struct task_key);
	__type(value, struct task);
} tasks SEC(".maps");

struct process_key {
	__u32 vm;
	__s32 tgid;
};

/* A process that passes with all that descend from it. */
struct relative {
	__u64 start;	/* when it started; 0: not known yet */
	__u64 until;	/* by then it is described first, or is another of that id; 0: it was */
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 32768);
	__type(key, struct process_key);
	__type(value, struct relative);
} family SEC(".maps");

/* Events that no verdict could be made of. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} unjudged SEC(".maps");

/* Room for a description, which is too large for the stack. */
struct description {
	struct frail_process process;
	__u8 zero[FRAIL_GROUP_LEN];	/* what follows the end of its last member */
	struct frail_exe_prefix exe;
	struct frail_group_prefix group;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct description);
} descriptions SEC(".maps");

/* How long a new process may take until it is seen, where its parent does not tell of it. */
#define ORPHAN_NS 10000000000ULL

static __always_inline enum verdict worse(enum verdict a, enum verdict b)
{
	return a < b ? a : b;
}

static __always_inline enum verdict better(enum verdict a, enum verdict b)
{
	return a > b ? a : b;
}

static __always_inline enum verdict by_set(__u32 match, bool member)
{
	return (match == FRAIL_MATCH_ONLY) == member ? PASS : FAIL;
}

/* Whether something with this verdict is shown; counts what could not be judged. */
static __always_inline bool admits(enum verdict v)
{
	__u32 zero = 0;
	__u64 *n;

	if (v != UNKNOWN)
		return v == PASS;
	n = bpf_map_lookup_elem(&unjudged, &zero);
	if (n)
		__sync_fetch_and_add(n, 1);
	return filter.unknown;
}

static __always_inline bool vm_passes(const struct frail_event_args *ev)
{
	__u32 slot = ev->vm % FRAIL_VM_SLOTS, *vm;

	vm = bpf_map_lookup_elem(&vms, &slot);
	/* Zero is no VM's. */
	return vm && *vm && *vm == ev->vm;
}

/* An event's system call table, and the number in it. */
static __always_inline __u32 table_of(const struct frail_event_args *ev, __u32 *nr)
{
	/* Linux looks at EAX alone: high bits must not hide a call. */
	*nr = (__u32)ev->nr;
	if (ev->insn != FRAIL_INSN_SYSCALL64 && ev->insn != FRAIL_INSN_SYSRET64)
		return FRAIL_TABLE_32;
	if ((__s32)*nr >= 0 && *nr & FRAIL_X32_BIT) {
		*nr &= ~FRAIL_X32_BIT;
		return FRAIL_TABLE_X32;
	}
	return FRAIL_TABLE_64;
}

static __always_inline bool nr_known(const struct frail_event_args *ev)
{
	return ev->kind == FRAIL_EVENT_ENTER || ev->flags & FRAIL_EVENT_NR;
}

static __always_inline enum verdict by_syscall(const struct frail_event_args *ev)
{
	__u32 table, nr, match;

	if (filter.syscall_match[FRAIL_TABLE_64] == FRAIL_MATCH_ALL &&
	    filter.syscall_match[FRAIL_TABLE_32] == FRAIL_MATCH_ALL &&
	    filter.syscall_match[FRAIL_TABLE_X32] == FRAIL_MATCH_ALL)
		return PASS;
	if (!nr_known(ev))
		return UNKNOWN;
	table = table_of(ev, &nr);
	match = filter.syscall_match[table];
	if (match == FRAIL_MATCH_ALL)
		return PASS;
	return by_set(match, nr < FRAIL_SYSCALLS &&
			     filter.syscalls[table][nr / 64] >> (nr % 64) & 1);
}

/* Whether calls are judged by what they return. */
static __always_inline bool by_return(void)
{
	return filter.by_error || filter.return_match != FRAIL_MATCH_ALL;
}

static __always_inline enum verdict returned(const struct frail_event_args *ev)
{
	__s64 ret = ev->ret;
	bool member = false;
	__u32 error = 0, nr, i;

	if (!(ev->flags & FRAIL_EVENT_RET))
		return UNKNOWN;
	if (table_of(ev, &nr) == FRAIL_TABLE_32)
		ret = (__s32)ret;
	if (filter.by_error) {
		if (ret < 0 && ret > -FRAIL_ERRORS)
			error = -ret;
		if (!(filter.errors[error / 64 % (FRAIL_ERRORS / 64)] >> (error % 64) & 1))
			return FAIL;
	}
	if (filter.return_match == FRAIL_MATCH_ALL)
		return PASS;
	for (i = 0; i < FRAIL_MAX_RETURNS && i < filter.return_count && !member; i++)
		member = ret >= filter.returns[i].first && ret <= filter.returns[i].last;
	return by_set(filter.return_match, member);
}

static __always_inline enum verdict by_comm(const struct frail_event_args *ev)
{
	__u64 low, high;
	bool member = false;
	__u32 i;

	if (filter.comm_match == FRAIL_MATCH_ALL)
		return PASS;
	low = ev->comm[0];
	high = ev->comm[1];
	pad_comm(&low, &high);
	for (i = 0; i < FRAIL_MAX_COMMS && i < filter.comm_count && !member; i++)
		member = low == filter.comms[i][0] && high == filter.comms[i][1];
	return by_set(filter.comm_match, member);
}

static __always_inline bool has_id(void *map, __s32 id)
{
	__u32 word = (__u32)id / 64;
	__u64 *ids;

	ids = bpf_map_lookup_elem(map, &word); /* none of an id that Linux does not have */
	return ids && *ids >> ((__u32)id % 64) & 1;
}

static __always_inline enum verdict by_ids(const struct frail_event_args *ev)
{
	enum verdict v = PASS;

	if (filter.process_match != FRAIL_MATCH_ALL)
		v = by_set(filter.process_match, has_id(&processes, ev->tgid));
	if (filter.thread_match != FRAIL_MATCH_ALL)
		v = worse(v, by_set(filter.thread_match, has_id(&threads, ev->pid)));
	return v;
}

/* Whether threads are judged by their descriptions. */
static __always_inline bool by_description(void)
{
	return filter.uid_match != FRAIL_MATCH_ALL || filter.exe_match != FRAIL_MATCH_ALL ||
	       filter.container_match != FRAIL_MATCH_ALL || filter.follow;
}

static __always_inline bool by_thread(void)
{
	return filter.comm_match != FRAIL_MATCH_ALL || filter.process_match != FRAIL_MATCH_ALL ||
	       filter.thread_match != FRAIL_MATCH_ALL || by_description();
}

/* Its first thread knows more of a process than the others. */
static __always_inline void add_relative(const struct frail_event_args *ev, __u64 start)
{
	struct process_key key = { .vm = ev->vm, .tgid = ev->tgid };
	struct relative value = { .start = start };

	bpf_map_update_elem(&family, &key, &value,
			    ev->pid == ev->tgid ? BPF_ANY : BPF_NOEXIST);
}

static __always_inline struct task *task_of(const struct frail_event_args *ev)
{
	struct task_key key = { .task = ev->task, .vm = ev->vm };
	struct task *t = bpf_map_lookup_elem(&tasks, &key);

	return t && t->who == ev->who ? t : NULL;
}

/* Who made the call, and how a filter of threads judges that. */
static __always_inline enum verdict by_who(const struct frail_event_args *ev)
{
	enum verdict v;
	struct task *t;

	if (!by_thread())
		return PASS;
	if (!(ev->flags & FRAIL_EVENT_IDENTITY))
		return UNKNOWN;
	v = worse(by_ids(ev), by_comm(ev));
	if (!by_description() || (v == FAIL && !filter.follow))
		return v;
	t = task_of(ev);
	if (!t)
		return UNKNOWN;
	v = worse(v, t->verdict);
	if (!filter.follow)
		return v;
	if (v == PASS && t->family != PASS) {
		t->family = PASS;
		add_relative(ev, t->start);
	}
	return better(v, t->family);
}

static __always_inline enum verdict by_uid(const struct frail_process *p)
{
	bool member = false;
	__u32 i;

	if (filter.uid_match == FRAIL_MATCH_ALL)
		return PASS;
	if (!(p->known & FRAIL_PROCESS_CRED))
		return UNKNOWN;
	for (i = 0; i < FRAIL_MAX_UIDS && i < filter.uid_count && !member; i++)
		member = p->uid == filter.uids[i];
	return by_set(filter.uid_match, member);
}

static __always_inline enum verdict by_exe(struct description *d)
{
	if (filter.exe_match == FRAIL_MATCH_ALL)
		return PASS;
	if ((d->process.known & (FRAIL_PROCESS_EXE | FRAIL_PROCESS_EXE_CUT)) != FRAIL_PROCESS_EXE)
		return UNKNOWN;
	d->exe.bits = 8 * sizeof(d->exe.path);
	__builtin_memcpy(d->exe.path, d->process.exe, sizeof(d->exe.path));
	return by_set(filter.exe_match, bpf_map_lookup_elem(&executables, &d->exe));
}

/* A container's name follows a slash of its control group's path, whatever comes after. */
static __always_inline enum verdict by_container(struct description *d)
{
	const __u8 *path = d->process.cgroup;
	__u32 i;

	if (filter.container_match == FRAIL_MATCH_ALL)
		return PASS;
	if (!(d->process.known & FRAIL_PROCESS_CGROUP))
		return UNKNOWN;
	d->group.bits = 8 * sizeof(d->group.name);
	for (i = 0; i < FRAIL_PATH_LEN && path[i]; i++) {
		if (path[i] != '/')
			continue;
		bpf_probe_read_kernel(d->group.name, sizeof(d->group.name), path + i + 1);
		if (bpf_map_lookup_elem(&containers, &d->group))
			return by_set(filter.container_match, true);
	}
	/* It may have been in what is not there of the path. */
	return d->process.known & FRAIL_PROCESS_CGROUP_CUT ? UNKNOWN :
	       by_set(filter.container_match, false);
}

/* Whether a thread that is described now belongs to a family. */
static __always_inline enum verdict by_family(const struct frail_process *p)
{
	struct process_key key = { .vm = p->head.vm, .tgid = p->head.tgid };
	bool leader = p->head.pid == p->head.tgid && p->known & FRAIL_PROCESS_START;
	struct relative *r;

	r = bpf_map_lookup_elem(&family, &key);
	/* Another process may have the id by now. */
	if (r && (r->until ? bpf_ktime_get_boot_ns() > r->until :
			     leader && r->start && r->start != p->start)) {
		bpf_map_delete_elem(&family, &key);
		r = NULL;
	}
	if (r)
		return PASS;
	if (!(p->known & FRAIL_PROCESS_PARENT))
		return UNKNOWN;
	key.tgid = p->ppid;
	return bpf_map_lookup_elem(&family, &key) ? PASS : FAIL;
}

/* Judges a thread by its description, for all events until it is described anew. */
static __always_inline enum verdict describe(const struct frail_event_args *ev)
{
	struct task_key key = { .task = ev->task, .vm = ev->vm };
	struct task value = { .who = ev->who };
	struct frail_process *p;
	struct description *d;
	enum verdict v;
	__u32 zero = 0;

	d = bpf_map_lookup_elem(&descriptions, &zero);
	if (!d)
		return UNKNOWN;
	p = &d->process;
	if (bpf_probe_read_kernel(p, sizeof(*p), (const void *)ev->event))
		return UNKNOWN;

	value.verdict = worse(by_uid(p), worse(by_exe(d), by_container(d)));
	v = worse(value.verdict, by_ids(ev));
	if (filter.follow) {
		if (ev->pid == ev->tgid && p->known & FRAIL_PROCESS_START)
			value.start = p->start;
		value.outer = p->known & FRAIL_PROCESS_NS_PID && p->ns_pid == ev->pid;
		value.family = by_family(p);
		if (worse(v, by_comm(ev)) == PASS)
			value.family = PASS;
		if (value.family == PASS)
			add_relative(ev, value.start);
		v = better(v, value.family);
	}
	bpf_map_update_elem(&tasks, &key, &value, BPF_ANY);
	return v;
}

/*
 * A process of a family has a child. The child is described when it is seen first, as a rule
 * with its parent; not if that has died by then.
 */
static __always_inline void follow_child(const struct frail_event_args *ev)
{
	struct process_key key = {};
	struct relative child = {};
	__u32 table, nr;
	struct task *t;
	bool forks;

	if (!(ev->flags & FRAIL_EVENT_NR) || !(ev->flags & FRAIL_EVENT_RET) ||
	    (__s32)ev->ret <= 0)
		return;
	table = table_of(ev, &nr);
	/* clone, fork, vfork and clone3 */
	if (table == FRAIL_TABLE_32)
		forks = nr == 120 || nr == 2 || nr == 190 || nr == 435;
	else
		forks = nr == 56 || nr == 57 || nr == 58 || nr == 435;
	if (!forks || by_who(ev) != PASS)
		return;
	t = task_of(ev);
	if (!t || !t->outer)
		return;
	key.vm = ev->vm;
	key.tgid = (__s32)ev->ret;
	child.until = bpf_ktime_get_boot_ns() + ORPHAN_NS;
	bpf_map_update_elem(&family, &key, &child, BPF_NOEXIST);
}

#endif

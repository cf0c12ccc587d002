// SPDX-License-Identifier: GPL-2.0
//go:build ignore

/*
 * The flight recorder: keeps the newest events of a VM in memory, over its oldest ones. User
 * space looks when somebody wants to see them, and never else; nobody waits for it.
 */
#include <stdbool.h>
#include <stddef.h>
#include <linux/types.h>
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "record.h"

char __license[] SEC("license") = "GPL";

/* Set before loading: how many events a record has room for. */
const volatile __u32 slots = 1;

/* Events of a VM, in memory that user space maps. The recorder sets the size. */
struct record {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, struct frail_record_slot);
};

/* Each VM's at its id modulo FRAIL_VM_SLOTS: a lookup that costs nothing for a VM without. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, FRAIL_VM_SLOTS);
	__type(key, __u32);
	__array(values, struct record);
} records SEC(".maps");

/*
 * Who a VM's threads are, by serial number. Those go that were neither described nor made a
 * call for longest.
 */
struct described {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, FRAIL_RECORD_THREADS);
	__type(key, __u64);
	__type(value, struct frail_process);
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, FRAIL_VM_SLOTS);
	__type(key, __u32);
	__array(values, struct described);
} threads SEC(".maps");

/* Room for a description, which is too large for the stack. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct frail_process);
} scratch SEC(".maps");

/* Nothing reads these: they put the types into BTF, where bpf2go finds them. */
const struct frail_record_slot *abi_slot __attribute__((unused));
const enum frail_record_limits *abi_limits __attribute__((unused));
const struct frail_process *abi_process __attribute__((unused));

/* The record of an event's VM, and its head; NULL: there is none. */
static __always_inline void *record_of(const struct frail_event_args *ev,
				       struct frail_record_slot **head)
{
	__u32 at = ev->vm % FRAIL_VM_SLOTS, first = 0;
	void *record = bpf_map_lookup_elem(&records, &at);

	if (!record)
		return NULL;
	*head = bpf_map_lookup_elem(record, &first);
	return *head && (*head)->event.vm == ev->vm ? record : NULL;
}

static __always_inline void keep(const struct frail_event_args *ev)
{
	struct frail_record_slot *head, *slot;
	__u64 ticket, was;
	void *record;
	__u32 at;

	record = record_of(ev, &head);
	if (!record)
		return;
	ticket = __sync_fetch_and_add(&head->ticket, 1);
	at = 1 + ticket % slots;
	slot = bpf_map_lookup_elem(record, &at);
	if (!slot)
		return;
	/*
	 * Who is still at the event that was here a whole record ago keeps the entry. The
	 * reader sees by the entry's number that an event is missing.
	 */
	was = *(volatile __u64 *)&slot->ticket;
	if (was & FRAIL_RECORD_BUSY ||
	    __sync_val_compare_and_swap(&slot->ticket, was, FRAIL_RECORD_BUSY) != was)
		return;
	ticket++;
	if (bpf_probe_read_kernel(&slot->event, sizeof(slot->event), (const void *)ev->event))
		ticket = 0;
	slot->event.time = bpf_ktime_get_boot_ns();
	asm volatile("" ::: "memory");
	*(volatile __u64 *)&slot->ticket = ticket;
}

SEC("raw_tp/guest_sys_enter")
int guest_sys_enter(struct frail_event_args *args)
{
	__u32 at = args->vm % FRAIL_VM_SLOTS;
	__u64 who = args->who;
	void *known;

	keep(args);
	/* Looking is what keeps a description. */
	known = bpf_map_lookup_elem(&threads, &at);
	if (known)
		bpf_map_lookup_elem(known, &who);
	return 0;
}

SEC("raw_tp/guest_sys_exit")
int guest_sys_exit(struct frail_event_args *args)
{
	keep(args);
	return 0;
}

SEC("raw_tp/guest_coverage")
int guest_coverage(struct frail_event_args *args)
{
	keep(args);
	return 0;
}

SEC("raw_tp/guest_process")
int guest_process(struct frail_event_args *args)
{
	__u32 at = args->vm % FRAIL_VM_SLOTS, zero = 0;
	struct frail_record_slot *head;
	struct frail_process *p;
	__u64 who = args->who;
	void *known;

	if (!record_of(args, &head))
		return 0;
	known = bpf_map_lookup_elem(&threads, &at);
	p = bpf_map_lookup_elem(&scratch, &zero);
	if (!known || !p ||
	    bpf_probe_read_kernel(p, sizeof(*p), (const void *)args->event))
		return 0;
	p->head.time = bpf_ktime_get_boot_ns();
	bpf_map_update_elem(known, &who, p, BPF_ANY);
	return 0;
}

/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What the flight recorder's BPF programs and its Go side agree on and no one else needs to
 * know: how a VM's record looks in memory.
 */
#ifndef FRAIL_RECORD_H
#define FRAIL_RECORD_H

#include "frail_abi.h"

enum frail_record_limits {
	/* Descriptions of threads that are kept of a VM. */
	FRAIL_RECORD_THREADS = 8192,
};

/* In struct frail_record_slot.ticket while the event is written. */
#define FRAIL_RECORD_BUSY (1ULL << 63)

/**
 * struct frail_record_slot - an entry of a VM's record
 * @ticket: one more than the number of @event, which counts the VM's events from 0; 0: there is
 *	none, or it could not be read
 * @event: the event
 *
 * Event N is in entry 1 + N % slots. Entry 0 is the record's head: @ticket is the next event's
 * number, and @event.vm whose record it is.
 */
struct frail_record_slot {
	__u64 ticket;
	struct frail_event event;
};

#endif

/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What a tracer's BPF programs and its Go side agree on and no one else needs
 * to know: the filter, and the record that marks a gap in the ring buffer.
 */
#ifndef FRAIL_TRACE_H
#define FRAIL_TRACE_H

#include "frail_abi.h"

/*
 * System call numbers a filter can name. Linux numbers grow by about ten a
 * year and end at 547 (x32) today, so 1024 is enough for decades and a bitmap
 * still fits two cache lines.
 */
#define FRAIL_SYSCALLS 1024

/* Set in the number of an x32 call (Linux: __X32_SYSCALL_BIT); no call is negative. */
#define FRAIL_X32_BIT 0x40000000

/* Thread names one filter can hold. */
#define FRAIL_MAX_COMMS 64

/* The system call tables of an x86-64 Linux guest. */
enum frail_table {
	FRAIL_TABLE_64 = 0,	/* SYSCALL in 64-bit code */
	FRAIL_TABLE_32 = 1,	/* i386 numbers */
	FRAIL_TABLE_X32 = 2,	/* SYSCALL in 64-bit code, FRAIL_X32_BIT set */
	FRAIL_TABLES = 3,
};

/* How a filter's set decides. */
enum frail_match {
	FRAIL_MATCH_ALL = 0,	/* no filter */
	FRAIL_MATCH_ONLY = 1,	/* members of the set pass */
	FRAIL_MATCH_EXCEPT = 2,	/* members of the set do not pass */
};

/**
 * struct frail_filter - what a tracer wants to see, fixed when it is loaded
 * @kinds: bit 1 << enum frail_event_kind for each kind that passes
 * @comm_match: enum frail_match for @comms
 * @syscall_match: enum frail_match for each table's set
 * @comm_count: thread names of @comms
 * @comms: thread names, NUL-padded, as the words of a struct frail_event_args
 * @syscalls: the sets: bit nr % 64 of word nr / 64, without FRAIL_X32_BIT
 */
struct frail_filter {
	__u32 kinds;
	__u32 comm_match;
	__u32 syscall_match[FRAIL_TABLES];
	__u32 comm_count;
	__u64 comms[FRAIL_MAX_COMMS][2];
	__u64 syscalls[FRAIL_TABLES][FRAIL_SYSCALLS / 64];
};

/**
 * struct frail_gap - events lost since the previous event of the ring buffer
 * @lost: how many, by enum frail_loss
 */
struct frail_gap {
	__u64 lost[FRAIL_LOSS_CAUSES];
};

/**
 * struct frail_gap_event - the ring buffer's record of the first event after a loss
 * @gap: what was lost before it
 * @event: the event
 *
 * All other records are a struct frail_event or a struct frail_process; the size tells which
 * one it is.
 */
struct frail_gap_event {
	struct frail_gap gap;
	struct frail_event event;
};

#endif

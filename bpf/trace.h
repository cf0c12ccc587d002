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

/* Thread names, user ids and ranges of return values one filter can hold. */
#define FRAIL_MAX_COMMS 64
#define FRAIL_MAX_UIDS 64
#define FRAIL_MAX_RETURNS 16

/* Linux's PID_MAX_LIMIT: all ids of processes and threads are below. */
#define FRAIL_PIDS (1 << 22)

/* Linux's MAX_ERRNO and one more: error numbers, 0 for none. */
#define FRAIL_ERRORS 4096

/* What is looked at of a control group's name. */
#define FRAIL_GROUP_LEN 128

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
 * struct frail_range - return values
 * @first: the lowest one
 * @last: the highest one
 */
struct frail_range {
	__s64 first;
	__s64 last;
};

/**
 * struct frail_filter - what a tracer wants to see, fixed when it is loaded
 * @kinds: bit 1 << enum frail_event_kind for each kind that passes
 * @syscall_match: enum frail_match for each table's set
 * @comm_match: enum frail_match for @comms, as all that follow for what they are called after
 * @comm_count: thread names of @comms
 * @process_match: for the map of processes
 * @thread_match: for the map of threads
 * @uid_match: for @uids
 * @uid_count: user ids of @uids
 * @exe_match: for the map of executables
 * @container_match: for the map of containers
 * @return_match: for @returns
 * @return_count: ranges of @returns
 * @by_error: whether @errors decides
 * @follow: what descends from a process that passes does too
 * @unknown: events pass of which what a filter looks at is not known
 * @tell: descriptions of threads go into the ring buffer
 * @data: events go there with what their calls' arguments point to
 * @pad: zero
 * @comms: thread names, NUL-padded, as the words of a struct frail_event_args
 * @syscalls: the sets: bit nr % 64 of word nr / 64, without FRAIL_X32_BIT
 * @errors: which errors of calls pass, likewise; bit 0 for calls without
 * @returns: return values
 * @uids: real user ids
 */
struct frail_filter {
	__u32 kinds;
	__u32 syscall_match[FRAIL_TABLES];
	__u32 comm_match;
	__u32 comm_count;
	__u32 process_match;
	__u32 thread_match;
	__u32 uid_match;
	__u32 uid_count;
	__u32 exe_match;
	__u32 container_match;
	__u32 return_match;
	__u32 return_count;
	__u32 by_error;
	__u32 follow;
	__u32 unknown;
	__u32 tell;
	__u32 data;
	__u32 pad;
	__u64 comms[FRAIL_MAX_COMMS][2];
	__u64 syscalls[FRAIL_TABLES][FRAIL_SYSCALLS / 64];
	__u64 errors[FRAIL_ERRORS / 64];
	struct frail_range returns[FRAIL_MAX_RETURNS];
	__u32 uids[FRAIL_MAX_UIDS];
};

/**
 * struct frail_exe_prefix - what an executable's path begins with
 * @bits: how much of @path, in bits
 * @path: with its NUL it is the whole path
 */
struct frail_exe_prefix {
	__u32 bits;
	__u8 path[FRAIL_PATH_LEN];
};

/**
 * struct frail_group_prefix - what the path of a control group goes on with after a slash
 * @bits: how much of @name, in bits
 * @name: may have slashes, and a NUL at the path's end
 */
struct frail_group_prefix {
	__u32 bits;
	__u8 name[FRAIL_GROUP_LEN];
};

/**
 * struct frail_gap - events lost since the previous event of the ring buffer
 * @lost: how many, by enum frail_loss
 */
struct frail_gap {
	__u64 lost[FRAIL_LOSS_CAUSES];
};

/* What records of the ring buffer have of the bytes of a struct frail_data. */
enum frail_data_room {
	FRAIL_DATA_SMALL = 64,
	FRAIL_DATA_MEDIUM = 256,
	FRAIL_DATA_LARGE = FRAIL_DATA_LEN,
};

/**
 * struct frail_gap_event - the ring buffer's record of the first event after a loss
 * @gap: what was lost before it
 * @event: the event
 *
 * All other records are a struct frail_event, a struct frail_process, or a struct frail_data with
 * as much of its bytes as one of enum frail_data_room says, after a struct frail_gap or not. The
 * size tells which one it is.
 */
struct frail_gap_event {
	struct frail_gap gap;
	struct frail_event event;
};

#endif

/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What the sequence analysis in BPF and its Go side agree on. tracer/ph is the
 * same analysis in plain Go and says what the numbers mean.
 */
#ifndef FRAIL_PH_H
#define FRAIL_PH_H

#include "frail_abi.h"

/*
 * In frail_event.flags: a signal was delivered to the thread since its last
 * call, which is therefore the handler's. No source sets it yet: it takes the
 * task's blocked mask, which the module does not read. Without it the end of a
 * handler is recognized, not its start.
 */
enum frail_ph_event_flags {
	FRAIL_EVENT_SIGNAL = 1 << 8,
};

#define FRAIL_PH_PAIRS 8	/* earlier calls that each call is paired with */
#define FRAIL_PH_FRAME 128	/* calls of a thread's locality frame */
#define FRAIL_PH_FREEZE_RATIO 4
#define FRAIL_PH_SIGNALS 4	/* nested handlers with a window of their own */
#define FRAIL_PH_HISTORY 16	/* calls whose stack pointers are kept */
#define FRAIL_PH_MARKS 64	/* bound of process_limit */
#define FRAIL_PH_TABLE 1024	/* numbers told apart in one system call table */
#define FRAIL_PH_NUMBERS (3 * FRAIL_PH_TABLE)
#define FRAIL_PH_OTHER_NUMBER FRAIL_PH_NUMBERS
#define FRAIL_PH_NO_NUMBER (FRAIL_PH_NUMBERS + 1)

/* Symbols of a profile's calls: 1 to 253; 0 is none given yet. */
#define FRAIL_PH_MAX_SYMBOL 253
#define FRAIL_PH_OTHER 254
#define FRAIL_PH_NONE 255

/* What a program returns: new pairs, missed pairs << 8, LFC << 16, flags << 24. */
enum frail_ph_flags {
	FRAIL_PH_FROZEN = 1,
	FRAIL_PH_NORMAL = 2,
	FRAIL_PH_NEW_THREAD = 4,
	FRAIL_PH_NEW_PROGRAM = 8,
	FRAIL_PH_DRIFT = 16,
	FRAIL_PH_ATTACK = 32,
	FRAIL_PH_MANY_PROCESSES = 64,
	FRAIL_PH_FORGOT = 128,
};

enum frail_ph_control {
	FRAIL_PH_NORMALIZE = 1,
	FRAIL_PH_TOLERIZE = 2,
	FRAIL_PH_SENSITIZE = 3,
	FRAIL_PH_TAKE = 4,	/* returns the index of a profile nobody has, or -1 */
	FRAIL_PH_TAKE_ROW = 5,	/* likewise of a row */
	FRAIL_PH_RETIRE = 6,	/* nobody has the profile any more */
};

/* How often the analysis could not do its work; indices of the counters map. */
enum frail_ph_counter {
	FRAIL_PH_FULL_PROFILES = 0,
	FRAIL_PH_FULL_ROWS = 1,
	FRAIL_PH_FULL_THREADS = 2,
	FRAIL_PH_FULL_SYMBOLS = 3,
	FRAIL_PH_NO_IDENTITY = 4,
	FRAIL_PH_SIGNAL_DEPTH = 5,
	FRAIL_PH_SIGNAL_LOST = 6,
	FRAIL_PH_RING_FULL = 7,
	FRAIL_PH_READ_FAULT = 8,
	FRAIL_PH_NO_PROGRAM = 9,
	FRAIL_PH_COUNTERS = 10,
};

enum frail_ph_clock {
	/* Calls of a frozen profile for each look at the clock, which costs as much as a row. */
	FRAIL_PH_CLOCK = 16,
};

/* How an executable is told from others. */
enum frail_ph_known_by {
	FRAIL_PH_BY_PATH = 1,
	FRAIL_PH_BY_PATH_END = 2,	/* of a path that is too long */
	FRAIL_PH_BY_COMM = 3,		/* the layout does not lead to the path */
};

/* Room for a path and a NUL. */
#define FRAIL_PH_NAME_LEN (FRAIL_PATH_LEN + 8)

/**
 * struct frail_ph_vm - the settings of one VM
 * @vm: its id
 * @flags: 1 the slot is in use, 2 learn
 * @anomaly_limit: of a profile
 * @tolerize_limit: of a thread's locality frame
 * @process_limit: of an executable's last 128 threads; below FRAIL_PH_MARKS
 * @pad: zero
 * @normal_wait: ns
 */
struct frail_ph_vm {
	__u32 vm;
	__u32 flags;
	__u32 anomaly_limit;
	__u32 tolerize_limit;
	__u32 process_limit;
	__u32 pad;
	__u64 normal_wait;
};

/**
 * struct frail_ph_executable - what a profile is about
 * @vm: the VM's id
 * @known_by: enum frail_ph_known_by
 * @name: NUL-padded
 *
 * Made by executable_of(), from a struct frail_process: the one place that decides which
 * program a thread runs.
 */
struct frail_ph_executable {
	__u32 vm;
	__u32 known_by;
	__u8 name[FRAIL_PH_NAME_LEN];
};

/**
 * struct frail_ph_profile - what is known of one executable, but for its rows
 * @serial: of the executable that has it, unique; 0 while none has
 * @normal: 1 while it judges
 * @frozen: 1 when it learnt nothing new for most of its training
 * @symbols: how many symbols are given
 * @train: calls learnt from
 * @last_mod: value of @train at the last new pair
 * @sequences: calls that brought a new pair
 * @normal_time: when a frozen profile becomes normal, CLOCK_MONOTONIC ns
 * @anomalies: anomalous calls since it is normal
 * @train_epoch: rows of another epoch have forgotten their training
 * @test_epoch: rows of another epoch take what they are tested with from their training
 * @test_from: the train_epoch at that moment: rows of another had none
 * @marked: marks made
 * @fork_window: the window of the last call that makes threads
 * @fork_pending: threads it made that were not seen yet
 * @alerted: 1: too many of its threads were anomalous, and that was told
 * @threads: threads started
 * @marks: @threads when each of the last threads became anomalous
 * @exe: whose it is
 * @symbol: by system call number, table * FRAIL_PH_TABLE + number
 * @number: by symbol, for those given
 * @row: likewise: 1 + the index of the call's row; 0: it has none
 */
struct frail_ph_profile {
	__u32 serial;
	__u32 normal;
	__u32 frozen;
	__u32 symbols;
	__u64 train;
	__u64 last_mod;
	__u64 sequences;
	__u64 normal_time;
	__u64 anomalies;
	__u32 train_epoch;
	__u32 test_epoch;
	__u32 test_from;
	__u32 marked;
	__u64 fork_window;
	__u32 fork_pending;
	__u32 alerted;
	__u64 threads;
	__u64 marks[FRAIL_PH_MARKS];
	struct frail_ph_executable exe;
	__u32 symbol[FRAIL_PH_NUMBERS / 4];
	__u16 number[256];
	__u32 row[256];
};

/**
 * struct frail_ph_row - the pairs of one current call of a profile
 * @train_epoch: see frail_ph_profile
 * @test_epoch: likewise
 * @train: by the other call's symbol, a bit for each distance: what is learnt
 * @test: likewise: what is judged by
 */
struct frail_ph_row {
	__u32 train_epoch;
	__u32 test_epoch;
	__u8 train[256];
	__u8 test[256];
};

struct frail_ph_thread_key {
	__u32 vm;
	__s32 pid;
};

struct frail_ph_moment {
	__u64 sp;
	__u64 window;
};

/**
 * struct frail_ph_thread - what is kept of one guest thread
 * @who: serial number of its description
 * @task: address of its task_struct: another one means that the pid was used again
 * @space: its address space: another one means execve
 * @window: symbols of its last eight calls, the newest in the lowest byte
 * @frame: whether each of its last 128 calls was anomalous, the newest in bit 0 of [0]
 * @calls: made since its program began
 * @comm: its name when it was described
 * @profile: index of its profile
 * @serial: that profile's
 * @tgid: its process
 * @age: value of the age variable at its last call
 * @lfc: bits set in @frame
 * @max_lfc: the highest @lfc so far
 * @alerted: 1: its attack was told
 * @anomalous: 1: it is counted in its profile's marks
 * @depth: windows in @saved
 * @news: FRAIL_PH_NEW_THREAD and FRAIL_PH_NEW_PROGRAM, to be told with its next call
 * @moments: valid entries of @moment
 * @next: where @moment is written next
 * @saved: windows that signal handlers interrupted
 * @moment: the last calls
 */
struct frail_ph_thread {
	__u64 who;
	__u64 task;
	__u64 space;
	__u64 window;
	__u64 frame[2];
	__u64 calls;
	__u64 comm[2];
	__u32 profile;
	__u32 serial;
	__s32 tgid;
	__u32 age;
	__u8 lfc;
	__u8 max_lfc;
	__u8 alerted;
	__u8 anomalous;
	__u8 depth;
	__u8 news;
	__u8 moments;
	__u8 next;
	__u64 saved[FRAIL_PH_SIGNALS];
	struct frail_ph_moment moment[FRAIL_PH_HISTORY];
};

struct frail_ph_space_key {
	__u64 space;
	__u64 vm;
};

struct frail_ph_fork {
	__u32 serial;
	__u32 pending;
	__u64 window;
};

/**
 * struct frail_ph_record - a call that user space should know of
 * @time: CLOCK_BOOTTIME ns
 * @task: address of the guest's task_struct
 * @frame: the thread's, this call included
 * @anomalies: of the profile
 * @train: of the profile
 * @exe: whose profile it is; of a @counter only the VM's id
 * @pid: thread
 * @tgid: process
 * @verdict: what the program returns
 * @was: the profile's FRAIL_PH_FROZEN and FRAIL_PH_NORMAL before the call
 * @max_lfc: the thread's highest
 * @calls: this call's number and those of the eight before it
 * @counter: of a record with @verdict 0: 1 + enum frail_ph_counter that has
 *	just reached @train
 * @comm: the thread's name, NUL-padded
 */
struct frail_ph_record {
	__u64 time;
	__u64 task;
	__u64 frame[2];
	__u64 anomalies;
	__u64 train;
	struct frail_ph_executable exe;
	__s32 pid;
	__s32 tgid;
	__u32 verdict;
	__u8 was;
	__u8 max_lfc;
	__u16 calls[FRAIL_PH_PAIRS + 1];
	__u16 counter;
	__u8 pad[6];
	__u8 comm[FRAIL_COMM_LEN];
};

#endif

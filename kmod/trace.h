/* SPDX-License-Identifier: GPL-2.0 */
#undef TRACE_SYSTEM
#define TRACE_SYSTEM frail

#if !defined(FRAIL_TRACE_H) || defined(TRACE_HEADER_MULTI_READ)
#define FRAIL_TRACE_H

#include <linux/tracepoint.h>
#include "frail_abi.h"

/*
 * The names are unique in the kernel: a raw tracepoint is looked up by name alone,
 * built-in ones first. BPF programs get the arguments as struct frail_event_args.
 */
#ifndef frail_trace
#define FRAIL_EVENT_PROTO							\
	TP_PROTO(const struct frail_event *ev, u64 vm_vcpu, u64 kind_insn_flags,	\
		 s64 nr, u64 comm_low, u64 comm_high, s64 ret, u64 task, u64 who,	\
		 u64 pid_tgid)
#define FRAIL_EVENT_ARGS							\
	TP_ARGS(ev, vm_vcpu, kind_insn_flags, nr, comm_low, comm_high, ret, task,	\
		who, pid_tgid)

/*
 * Reports an event: words of it that filters look at are arguments as they are. Tracepoints
 * of newer kernels (7.2, not 6.12) can be preempted, and a BPF program that is does not run
 * for another vCPU on that CPU: its event would be lost.
 */
#define frail_trace(name, ev)							\
do {										\
	if (trace_##name##_enabled()) {						\
		preempt_disable_notrace();					\
		trace_##name(ev, ((const u64 *)(ev))[1], ((const u64 *)(ev))[2],	\
			     (ev)->nr, ((const u64 *)(ev)->comm)[0],		\
			     ((const u64 *)(ev)->comm)[1], (ev)->ret,		\
			     (ev)->task, (ev)->who,				\
			     *(const u64 *)&(ev)->pid);				\
		preempt_enable_notrace();					\
	}									\
} while (0)
static_assert(offsetof(struct frail_event, vm) == sizeof(u64) &&
	      offsetof(struct frail_event_args, vm) == sizeof(u64) &&
	      offsetof(struct frail_event, flags) == offsetof(struct frail_event_args, flags) &&
	      offsetof(struct frail_event, nr) == offsetof(struct frail_event_args, nr) &&
	      offsetof(struct frail_event, tgid) ==
		      offsetof(struct frail_event, pid) + sizeof(s32));
#endif

/* A guest thread made a system call. */
TRACE_EVENT(guest_sys_enter,
	FRAIL_EVENT_PROTO,
	FRAIL_EVENT_ARGS,
	TP_STRUCT__entry(
		__field(u32, vm)
		__field(u32, vcpu)
		__field(u16, insn)
		__field(u32, flags)
		__field(s64, nr)
		__array(u64, args, 6)
		__field(u64, ip)
		__field(u64, sp)
		__field(u64, cr3)
		__field(u64, task)
		__field(s32, pid)
		__field(s32, tgid)
		__array(char, comm, FRAIL_COMM_LEN)
	),
	TP_fast_assign(
		__entry->vm = ev->vm;
		__entry->vcpu = ev->vcpu;
		__entry->insn = ev->insn;
		__entry->flags = ev->flags;
		__entry->nr = ev->nr;
		memcpy(__entry->args, ev->args, sizeof(__entry->args));
		__entry->ip = ev->ip;
		__entry->sp = ev->sp;
		__entry->cr3 = ev->cr3;
		__entry->task = ev->task;
		__entry->pid = ev->pid;
		__entry->tgid = ev->tgid;
		memcpy(__entry->comm, ev->comm, FRAIL_COMM_LEN);
	),
	TP_printk("vm=%u vcpu=%u insn=%u pid=%d tgid=%d comm=%.16s nr=%lld args=(%llx, %llx, %llx, %llx, %llx, %llx) ip=%llx sp=%llx cr3=%llx task=%llx",
		  __entry->vm, __entry->vcpu, __entry->insn, __entry->pid,
		  __entry->tgid, __entry->comm, __entry->nr,
		  __entry->args[0], __entry->args[1], __entry->args[2],
		  __entry->args[3], __entry->args[4], __entry->args[5],
		  __entry->ip, __entry->sp, __entry->cr3, __entry->task)
);

/* A system call returned to a guest thread through SYSRET. */
TRACE_EVENT(guest_sys_exit,
	FRAIL_EVENT_PROTO,
	FRAIL_EVENT_ARGS,
	TP_STRUCT__entry(
		__field(u32, vm)
		__field(u32, vcpu)
		__field(u16, insn)
		__field(u32, flags)
		__field(s64, nr)
		__field(s64, ret)
		__field(u64, ip)
		__field(u64, sp)
		__field(u64, cr3)
		__field(u64, task)
		__field(s32, pid)
		__field(s32, tgid)
		__array(char, comm, FRAIL_COMM_LEN)
	),
	TP_fast_assign(
		__entry->vm = ev->vm;
		__entry->vcpu = ev->vcpu;
		__entry->insn = ev->insn;
		__entry->flags = ev->flags;
		__entry->nr = ev->nr;
		__entry->ret = ev->ret;
		__entry->ip = ev->ip;
		__entry->sp = ev->sp;
		__entry->cr3 = ev->cr3;
		__entry->task = ev->task;
		__entry->pid = ev->pid;
		__entry->tgid = ev->tgid;
		memcpy(__entry->comm, ev->comm, FRAIL_COMM_LEN);
	),
	TP_printk("vm=%u vcpu=%u insn=%u pid=%d tgid=%d comm=%.16s nr=%lld ret=%lld ip=%llx sp=%llx cr3=%llx task=%llx",
		  __entry->vm, __entry->vcpu, __entry->insn, __entry->pid,
		  __entry->tgid, __entry->comm, __entry->nr, __entry->ret,
		  __entry->ip, __entry->sp, __entry->cr3, __entry->task)
);

/* Who a guest thread is; comes before its events. */
TRACE_EVENT(guest_process,
	FRAIL_EVENT_PROTO,
	FRAIL_EVENT_ARGS,
	TP_STRUCT__entry(
		__field(u32, vm)
		__field(u32, vcpu)
		__field(u64, task)
		__field(u64, who)
		__field(s32, pid)
		__field(s32, tgid)
		__array(char, comm, FRAIL_COMM_LEN)
		__field(u64, start)
		__field(u32, known)
		__field(s32, ppid)
		__field(s32, ns_pid)
		__field(u32, uid)
		__field(u32, gid)
		__field(u32, euid)
		__field(u32, egid)
		__array(char, exe, FRAIL_PATH_LEN)
		__array(char, cgroup, FRAIL_PATH_LEN)
	),
	TP_fast_assign(
		const struct frail_process *p =
			container_of(ev, const struct frail_process, head);

		__entry->vm = ev->vm;
		__entry->vcpu = ev->vcpu;
		__entry->task = ev->task;
		__entry->who = ev->who;
		__entry->pid = ev->pid;
		__entry->tgid = ev->tgid;
		memcpy(__entry->comm, ev->comm, FRAIL_COMM_LEN);
		__entry->start = p->start;
		__entry->known = p->known;
		__entry->ppid = p->ppid;
		__entry->ns_pid = p->ns_pid;
		__entry->uid = p->uid;
		__entry->gid = p->gid;
		__entry->euid = p->euid;
		__entry->egid = p->egid;
		memcpy(__entry->exe, p->exe, FRAIL_PATH_LEN);
		memcpy(__entry->cgroup, p->cgroup, FRAIL_PATH_LEN);
	),
	TP_printk("vm=%u vcpu=%u task=%llx who=%llu pid=%d tgid=%d comm=%.16s start=%llu known=%x ppid=%d ns_pid=%d uid=%u gid=%u euid=%u egid=%u exe=%.256s cgroup=%.256s",
		  __entry->vm, __entry->vcpu, __entry->task, __entry->who, __entry->pid,
		  __entry->tgid, __entry->comm, __entry->start, __entry->known,
		  __entry->ppid, __entry->ns_pid, __entry->uid, __entry->gid,
		  __entry->euid, __entry->egid,
		  __entry->exe, __entry->cgroup)
);

/* Which ways into the guest's kernel trap has changed; masks of enum frail_entry. */
TRACE_EVENT(guest_coverage,
	FRAIL_EVENT_PROTO,
	FRAIL_EVENT_ARGS,
	TP_STRUCT__entry(
		__field(u32, vm)
		__field(u32, vcpu)
		__field(u32, covered)
		__field(u32, blind)
	),
	TP_fast_assign(
		__entry->vm = ev->vm;
		__entry->vcpu = ev->vcpu;
		__entry->covered = ev->args[0];
		__entry->blind = ev->args[1];
	),
	TP_printk("vm=%u vcpu=%u covered=%x blind=%x",
		  __entry->vm, __entry->vcpu, __entry->covered, __entry->blind)
);

#endif

#undef TRACE_INCLUDE_PATH
#define TRACE_INCLUDE_PATH .
#undef TRACE_INCLUDE_FILE
#define TRACE_INCLUDE_FILE trace
#include <trace/define_trace.h>

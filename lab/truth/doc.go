// SPDX-License-Identifier: Apache-2.0

// Package truth compares what Frail recorded of a guest with what the guest's
// own kernel recorded: ftrace's raw_syscalls events of every task since before
// the first instruction of user space, in memory.
//
// # Calls
//
// Both records end at the marker, a call of [Marker] that a guest makes when
// all else has come to rest. Before it they must agree, task by task, in order,
// in number and arguments. Tasks are told apart by the thread id in the guest's
// initial pid namespace; a number that is used again continues its list.
//
// The host's events of the time before the guest's kernel was known have no
// identity. They are the first calls on their vCPU, so they are compared with
// the first calls on that CPU, in order; only there, because a task may sleep
// or move between its trap and its record (ptrace, seccomp), which its own
// order survives and a CPU's does not.
//
// The kernel takes 32 bits of each argument of a 32-bit call, whatever the
// registers hold (INT 0x80 in 64-bit code), so 32 bits are compared.
//
// # Return values
//
// The guest records what the kernel's function returned. A return that the
// host claims to know must be that. Not every call has one to know:
//
//   - exit and exit_group do not return. rt_sigreturn ends with the registers that
//     the signal came in: a host that sees it end has their ax as its value, as the
//     guest's record does, which has it under no call's number. It is compared and
//     not counted.
//   - A call that a signal interrupts returns -512 to -516 to the kernel's own
//     exit path, which runs it again or returns -EINTR. The program sees none
//     of these, so the host must not claim any.
//   - execve and a new task's first return leave by IRET, which does not trap.
//     The latter has a record in the guest without a call: it is passed over.
//   - A tracer that changes a value with ptrace does so after the guest's record
//     of the return and before its record of the call. Such programs are not
//     for a comparison.
//
// # What neither records
//
// The vsyscall page, which the kernel emulates at a page fault, and the work
// that io_uring does, are no system calls.
package truth

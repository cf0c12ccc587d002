// SPDX-License-Identifier: Apache-2.0

// Package format writes traced system calls for people and for programs.
//
// [Text] writes one line per event, much like strace:
//
//	cat[312/312]                     openat(0xffffff9c, 0x7ffd5b1c0f10, 0x0, 0x0)
//	cat[312/312]                     ... openat = 3
//	cat[312/312]                     ... openat = -2 ENOENT (no such file or directory)
//	[no identity]                    getpid@32()
//
// The brackets hold the process's and the thread's id, as the guest's initial pid
// namespace has them. A call of another table than the 64-bit one has a suffix, @32 or @x32.
//
// [JSON] writes one object per line. Its fields keep their names and meaning; fields may
// be added. Addresses, arguments and other 64-bit quantities are strings in hexadecimal,
// because many JSON readers keep only 53 bits of a number.
//
//	type      "enter", "exit", "lost" or "summary"
//	time      when, by the host's clock, RFC 3339 with nanoseconds, UTC
//	boot_ns   when, CLOCK_BOOTTIME of the host in nanoseconds: for order and differences
//	vm, vcpu  the VM's id and the vCPU's index
//	identity  whether the guest's process is known; without it, comm, pid, tgid and task
//	          are absent
//	comm      the thread's name
//	pid       the thread's id in the guest's initial pid namespace
//	tgid      the process's id, likewise
//	task      address of the guest's struct task_struct
//	table     the system call table: "64", "32" or "x32"
//	nr        the system call's number; absent in an exit whose call is not known
//	syscall   its name; absent when nr is absent or has none
//	args      the six argument registers of an enter, whatever the call takes
//	ret       the return value of an exit
//	errno     the error's name, when ret is one
//	ip, sp    the user's instruction pointer after the call, and stack pointer
//	cr3       the guest's CR3, with its PCID and PTI bits
//
// A "lost" record has type, time, boot_ns and, as "lost", an object of counts: total,
// ring_full, read_fault and recursion. The events are missing at this point of the stream.
// A "summary" record has type, delivered and the same object.
//
// A thread's name is the guest's to choose. In both formats a byte that is not part of a
// printable character is written \xNN, and a backslash \\.
package format

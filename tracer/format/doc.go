// SPDX-License-Identifier: Apache-2.0

// Package format writes traced system calls for people and for programs.
//
// [Text] writes one line per event, much like strace:
//
//	cat[312/312]                     openat(AT_FDCWD, "/etc/hostname", O_RDONLY|O_CLOEXEC)
//	cat[312/312]                     ... openat = 3
//	cat[312/312]                     read(3, 0x7ffd5b1c0e90, 4096)
//	cat[312/312]                     ... read("guest1\n") = 7
//	cat[312/312]                     ... openat = -1 ENOENT (No such file or directory)
//	cat[312/312]                     ... openat = ?
//	[no identity]                    getpid@32()
//	old[313/313]                     getpid@32:int80()
//	sh[314/314]                      --- /usr/bin/dash, child of 312, uid 1000 ---
//	--- INT 0x80 is not seen now: the guest uses its debug registers ---
//	--- all entries are seen again ---
//
// The brackets hold the process's and the thread's id, as the guest's initial pid
// namespace has them. A call of another table than the 64-bit one has a suffix, @32 or @x32,
// and one that was not made by SYSCALL another: :sysenter, :int80, or :int80_64 for INT 0x80
// in 64-bit code. What a call left in memory stands before what it returned. A return value that is not known is a question mark. Arguments and return
// values are those of package decode, or numbers as the guest has them:
//
//	cat[312/312]                     openat(0xffffff9c, 0x7ffd5b1c0f10, 0x80000, 0x0)
//	cat[312/312]                     ... openat = -2 ENOENT (no such file or directory)
//
// [Perfetto] writes what ui.perfetto.dev shows as a time line.
//
// [JSON] writes one object per line. Its fields keep their names and meaning; fields may
// be added. Addresses, arguments and other 64-bit quantities are strings in hexadecimal,
// because many JSON readers keep only 53 bits of a number.
//
//	type      "enter", "exit", "process", "coverage", "lost" or "summary"
//	time      when, by the host's clock, RFC 3339 with nanoseconds, UTC
//	boot_ns   when, CLOCK_BOOTTIME of the host in nanoseconds: for order and differences
//	vm, vcpu  the VM's id and the vCPU's index
//	identity  whether the guest's process is known; without it, comm, pid, tgid and task
//	          are absent
//	comm      the thread's name
//	pid       the thread's id in the guest's initial pid namespace
//	tgid      the process's id, likewise
//	task      address of the guest's struct task_struct
//	who       the "process" record that says who the thread is; absent if none does, and
//	          then exe, ppid and uid are, which are that record's
//	table     the system call table: "64", "32" or "x32"
//	nr        the system call's number; absent in an exit whose call is not known
//	syscall   its name; absent when nr is absent or has none
//	entry     the instruction that made the call: "syscall64", "syscall32", "sysenter",
//	          "int80_32" or "int80_64", by the code it stands in; in an exit only when
//	          that is deferred
//	args      the six argument registers of an enter, whatever the call takes
//	deferred  true in an exit that is told at its thread's next call: when the call
//	          returned is not known, time is later; else absent
//	ret       the return value of an exit; absent when it is not known
//	errno     the error's name, when ret is one
//	data      what arguments point to, of an enter, or what the call left there, of an exit:
//	          a list of objects with arg, which argument, from 0; kind, "string", "strings",
//	          "vector" or "bytes"; bytes; cut, true if there was more; fault, true if they
//	          end where memory could not be read. Each of strings has a NUL behind it and
//	          a byte, 1 if it was cut; of each part of a vector there are base, length and
//	          how many bytes follow, in 8 bytes each. Absent if nothing was read
//	left      what the call left there, as text shows it; only if [JSON.Decode] is set
//	text      the arguments of an enter or the return value of an exit, as text shows
//	          them; only if [JSON.Decode] is set
//	ip, sp    the user's instruction pointer after the call, and stack pointer; ip is
//	          0x0 where the entry does not tell
//	cr3       the guest's CR3, with its PCID and PTI bits
//
// A "process" record says who a thread is, before its first event and when that has changed.
// It has type, time, boot_ns, vm, comm, pid, tgid, task and, as far as they are known:
//
//	who       its number, in the VM
//	exe       path of the executable from the root of its mount namespace
//	exe_deleted, exe_cut
//	          true if the file has no name any more, or if only the path's end is there
//	ppid      process id of its parent, in the guest's initial pid namespace
//	ns_pid    the thread's id in its own pid namespace
//	uid, gid, euid, egid
//	          real and effective ids, in the guest's initial user namespace
//	start_ns  when the thread started, in nanoseconds since the guest's boot
//	cgroup, cgroup_cut
//	          path of its control group, where hierarchies differ the longest one, like exe
//	container, runtime
//	          what the control group's path says of a container: its id, and what made it
//
// A "coverage" record says that the ways into the guest's kernel that are seen have changed.
// It has type, time, boot_ns, vm and vcpu and two lists of "syscall", "int80" and "sysenter":
//
//	covered   those that are seen
//	blind     those that are not on some vCPU, because the guest uses its debug registers
//
// A "lost" record has type, time, boot_ns and, as "lost", an object of counts: total,
// ring_full, read_fault and recursion. The events are missing at this point of the stream.
// A "summary" record has type, delivered and the same object, and unjudged: of how many events
// it was not known whether they pass the filter.
//
// A thread's name is the guest's to choose, and so is its memory. In both formats a byte that is not part of a
// printable character is written \xNN, and a backslash \\.
package format

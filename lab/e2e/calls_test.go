// SPDX-License-Identifier: Apache-2.0

//go:build lab

package e2e

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// program is a test program of the guest and the system calls it is known to
// make. Its source is lab/guest/progs/NAME.c.
type program struct {
	name    string
	args    string
	status  int      // its exit status, as the guest's shell gives it
	threads []thread // every thread it has, also of its child processes
}

// thread is one thread's known calls, in order.
type thread struct {
	// tgid and tid name the lines of the program's output that have the
	// thread's ids: "pid", or "child#1" for the second line "child=...".
	tgid, tid string

	// comm is the thread's name at its first own call; events before it belong
	// to the shell that became the program.
	comm string

	calls []call
}

// call is one system call. The zero ret and args mean any.
type call struct {
	table string // "" means table64
	name  string // "" means by nr
	nr    int64
	args  []uint64 // the first arguments
	ret   any      // int64: exactly this; string: the value of this output line
	comm  string   // not "": the thread's name from the return on

	noReturn bool   // it does not return
	entry    string // "" means the table's ordinary one

	// unknown: the kernel leaves by IRET and what it saved tells nothing of the
	// return: execve, rt_sigreturn, single-stepping.
	unknown bool
}

func calls(c ...call) []call { return c }

func does(name string, args ...uint64) call { return call{name: name, args: args} }

func (c call) returns(v int64) call { c.ret = v; return c }

// returnsLine says that the result is what the program's output has in the
// line NAME=...
func (c call) returnsLine(name string) call { c.ret = name; return c }

func (c call) never() call { c.noReturn = true; return c }

func (c call) untold() call { c.unknown = true; return c }

func (c call) renames(comm string) call { c.comm = comm; return c }

func times(n int, c call) []call {
	return slices.Repeat([]call{c}, n)
}

const (
	enoent = -2
	enosys = -38

	atFDCWD   = 1<<64 - 100
	atFDCWD32 = 1<<32 - 100
)

// known are the programs whose traces are known exactly.
var known = []program{
	{
		name: "t-opens",
		threads: []thread{{"pid", "pid", "t-opens", calls(
			does("getpid").returnsLine("pid"),
			does("openat", atFDCWD).returnsLine("open"),
			does("read").returns(int64(len("t-opens\n"))),
			does("close").returns(0),
			does("openat", atFDCWD).returns(enoent),
			does("openat", atFDCWD).returnsLine("open"),
			does("getdents64"),
			does("close").returnsLine("close#1"),
			does("write", 1),
			does("exit_group", 0).never(),
		)}},
	},
	{
		name: "t-forks",
		threads: []thread{
			{"pid", "pid", "t-forks", calls(
				does("getpid").returnsLine("pid"),
				does("clone").returnsLine("forked"), does("wait4").returnsLine("waited"),
				does("clone").returnsLine("forked#1"), does("wait4").returnsLine("waited#1"),
				does("clone").returnsLine("forked#2"), does("wait4").returnsLine("waited#2"),
				does("write", 1),
				does("exit_group", 0).never(),
			)},
			forked(0), forked(1), forked(2),
		},
	},
	{
		name: "t-execs", status: 7,
		threads: []thread{{"pid", "pid", "t-execs", calls(
			does("getpid").returnsLine("pid"),
			does("execve").returns(enoent),
			does("write", 1),
			does("execve").untold().renames("t-target"),
			does("getpid").returnsLine("pid"),
			does("gettid").returnsLine("tid"),
			does("write", 1),
			does("exit_group", 7).never(),
		)}},
	},
	{
		name: "t-threads",
		threads: []thread{
			{"pid", "pid", "t-threads", slices.Concat(
				calls(
					does("getpid").returnsLine("pid"),
					does("clone").returnsLine("thread"), does("clone").returnsLine("thread#1"),
					does("clone").returnsLine("thread#2"), does("clone").returnsLine("thread#3"),
				),
				times(4, does("futex")), // 0, or -EAGAIN if the thread was gone
				calls(does("write", 1), does("exit_group", 0).never()),
			)},
			named(0), named(1), named(2), named(3),
		},
	},
	{
		name: "t-segv", status: 128 + 11,
		threads: []thread{{"pid", "pid", "t-segv", calls(
			does("getpid").returnsLine("pid"),
			does("write", 1),
		)}},
	},
	{
		name: "t-segvh", status: 42,
		threads: []thread{{"pid", "pid", "t-segvh", calls(
			does("getpid").returnsLine("pid"),
			does("rt_sigaction", 11).returns(0),
			does("gettid").returnsLine("pid"), does("rt_sigreturn").untold(),
			does("gettid").returnsLine("pid"), does("rt_sigreturn").untold(),
			does("getppid"),
			does("write", 1),
			does("exit_group", 42).never(),
		)}},
	},
	{
		name: "t-args",
		threads: []thread{{"pid", "pid", "t-args", calls(
			does("getpid").returnsLine("pid"),
			call{nr: 500, ret: int64(enosys), args: []uint64{
				0x1111111111111111, 0x2222222222222222, 0x3333333333333333,
				0x4444444444444444, 0x5555555555555555, 0x6666666666666666}},
			call{nr: 1023, ret: int64(enosys), args: []uint64{
				1<<64 - 1, 0x8000000000000000, 0x7fffffffffffffff, 0, 0xffffffff, 1}},
			// getpid with x32's bit; below, with an upper half, which Linux ignores.
			call{table: tableX32, nr: 39, ret: int64(enosys)},
			call{nr: -1, ret: int64(enosys)},
			does("getpid").returnsLine("high"),
			does("write", 1),
			does("exit_group", 0).never(),
		)}},
	},
	{
		name: "t-prefix",
		threads: []thread{{"pid", "pid", "t-prefix", slices.Concat(
			calls(does("getpid").returnsLine("pid")),
			times(14, does("getuid").returns(0)),
			calls(does("write", 1), does("exit_group", 0).never()),
		)}},
	},
	{
		name: "t-illegal",
		threads: []thread{{"pid", "pid", "t-illegal", calls(
			does("getpid").returnsLine("pid"),
			does("rt_sigaction", 4).returns(0),
			does("rt_sigaction", 11).returns(0),
			does("rt_sigreturn").untold(), does("rt_sigreturn").untold(), does("rt_sigreturn").untold(),
			does("write", 1),
			does("exit_group", 0).never(),
		)}},
	},
	{
		name: "t-step",
		threads: []thread{{"pid", "pid", "t-step", calls(
			does("getpid").returnsLine("pid"),
			does("rt_sigaction", 5).returns(0),
			// A trap after each instruction, one of which is the call.
			does("rt_sigreturn").untold(), does("rt_sigreturn").untold(),
			does("getppid").untold(),
			does("rt_sigreturn").untold(), does("rt_sigreturn").untold(),
			does("rt_sigreturn").untold(), does("rt_sigreturn").untold(),
			does("write", 1),
			does("exit_group", 0).never(),
		)}},
	},
	{
		name: "t-int80",
		threads: []thread{{"pid", "pid", "t-int80", calls(
			does("getpid").returnsLine("pid"),
			call{table: table32, name: "getpid", entry: "int80_64"}.returnsLine("pid"),
			does("write", 1),
			does("exit_group", 0).never(),
		)}},
	},
	{
		name: "t-cross",
		threads: []thread{{"pid", "pid", "t-cross", calls(
			does("getpid").returnsLine("pid"),
			does("mmap", 0, 3*4096), does("munmap").returns(0),
			does("getuid").returns(0), does("getuid").returns(0),
			does("write", 1),
			does("exit_group", 0).never(),
		)}},
	},
	{
		name: "t-getppid", args: "500",
		threads: []thread{{"pid", "pid", "t-getppid", slices.Concat(
			calls(does("getpid").returnsLine("pid")),
			times(500, does("getppid")),
			calls(does("write", 1), does("exit_group", 0).never()),
		)}},
	},
	{
		name: "t-rdmsr",
		threads: []thread{{"pid", "pid", "t-rdmsr", calls(
			does("getpid").returnsLine("pid"),
			does("openat"), does("pread64", 3).returns(8), does("close", 3).returns(0),
			does("write", 1),
			does("exit_group", 0).never(),
		)}},
	},
	{
		name: "t-32", status: 32,
		threads: []thread{{"pid", "pid", "t-32", calls(
			does32("getpid").returnsLine("pid"),
			does32("gettid").returnsLine("tid"),
			does32("openat", atFDCWD32).returns(enoent),
			does32("getppid"),
			call{table: table32, nr: 500, ret: int64(enosys), args: []uint64{
				0x11111111, 0x22222222, 0x33333333, 0x44444444, 0x55555555, 0x66666666}},
			does32("write", 1),
			does32("exit_group", 32).never(),
		)}},
	},
}

// forked is child i of t-forks. Its return from clone is not by SYSRET.
func forked(i int) thread {
	id := "child" + suffix(i)
	return thread{id, id, "t-forks", slices.Concat(
		calls(does("getpid").returnsLine(id), does("getppid").returnsLine("pid")),
		times(i+1, does("sched_yield").returns(0)),
		calls(does("write", 1), does("exit_group", uint64(10+i)).never()),
	)}
}

// named is thread i of t-threads.
func named(i int) thread {
	id := "thread" + suffix(i)
	return thread{"pid", id, "t-threads", slices.Concat(
		calls(
			does("prctl", 15).returns(0).renames(fmt.Sprintf("t-thread-%d", i)),
			does("gettid").returnsLine(id),
		),
		times(50, does("getppid")),
		times(i+1, does("getuid").returns(0)),
		calls(does("exit", 0).never()),
	)}
}

func suffix(i int) string {
	if i == 0 {
		return ""
	}
	return "#" + strconv.Itoa(i)
}

func does32(name string, args ...uint64) call {
	return call{table: table32, name: name, args: args}
}

func (c call) String() string {
	if c.name == "" {
		return strconv.FormatInt(c.nr, 10)
	}
	return c.name
}

// is says whether r, an enter or exit, is of this call.
func (c call) is(r record) bool {
	table := c.table
	if table == "" {
		table = table64
	}
	if r.Table != table || r.Nr == nil || c.entry != "" && r.Entry != "" && r.Entry != c.entry {
		return false
	}
	if c.name == "" {
		return *r.Nr == c.nr
	}
	return r.Syscall == c.name
}

// values are the lines NAME=VALUE of a program's output; the second line of a
// name is NAME#1 and so on.
func values(output string) map[string]int64 {
	v := make(map[string]int64)
	seen := make(map[string]int)
	for line := range strings.Lines(output) {
		name, text, ok := strings.Cut(strings.TrimSpace(line), "=")
		n, err := strconv.ParseInt(text, 0, 64)
		if !ok || err != nil {
			continue
		}
		v[name+suffix(seen[name])] = n
		seen[name]++
	}
	return v
}

var idLine = regexp.MustCompile(`(?m)^(pid|tid|child|parent|forked|waited|thread|high)=([0-9]+)$`)

// withoutIDs replaces the process ids in a program's output by their order of
// appearance: two guests need not give the same ones.
func withoutIDs(output string) string {
	order := make(map[string]int)
	return idLine.ReplaceAllStringFunc(output, func(line string) string {
		name, id, _ := strings.Cut(line, "=")
		if _, ok := order[id]; !ok {
			order[id] = len(order)
		}
		return fmt.Sprintf("%s=<%d>", name, order[id])
	})
}

// checkCalls compares a run of p, which printed output, with what the host
// recorded, thread by thread. deferred says that the guest's SYSRETs do not trap.
func checkCalls(t *testing.T, p program, output string, records []record, deferred bool) {
	t.Helper()
	lines := values(output)
	known := make(map[int][]int)
	for _, th := range p.threads {
		tgid, ok := lines[th.tgid]
		tid, ok2 := lines[th.tid]
		if !ok || !ok2 {
			t.Fatalf("the program did not say %q and %q:\n%s", th.tgid, th.tid, output)
		}
		known[int(tgid)] = append(known[int(tgid)], int(tid))
		t.Run(th.tid, func(t *testing.T) {
			checkThread(t, th, lines, int(tgid), ownEvents(records, int(tid), th.comm), deferred)
		})
	}
	for _, tgid := range slices.Sorted(maps.Keys(known)) {
		for _, r := range records {
			if r.isEvent() && r.PID == tgid && !slices.Contains(known[tgid], r.TID) {
				t.Errorf("process %d has a thread %d that it did not say", tgid, r.TID)
				break
			}
		}
	}
}

// ownEvents are a thread's events from the first one under its own name on.
// Another thread may have had the same id before.
func ownEvents(records []record, tid int, comm string) []record {
	var own []record
	for _, r := range records {
		if !r.isEvent() || !r.Identity || r.TID != tid {
			continue
		}
		if len(own) == 0 && (r.Comm != comm || r.Type != recordEnter) {
			continue
		}
		own = append(own, r)
	}
	return own
}

func checkThread(t *testing.T, th thread, lines map[string]int64, tgid int, got []record, deferred bool) {
	t.Helper()
	comm := th.comm
	next := func(what string) (record, bool) {
		if len(got) == 0 {
			t.Errorf("%s is missing: the record ends before it", what)
			return record{}, false
		}
		r := got[0]
		got = got[1:]
		if r.PID != tgid || r.Comm != comm {
			t.Errorf("%s: recorded as %s of process %d, want %s of %d", what, r.Comm, r.PID, comm, tgid)
		}
		return r, true
	}
	for i, c := range th.calls {
		what := fmt.Sprintf("call %d, %s", i, c)
		r, ok := next(what)
		if !ok {
			return
		}
		if r.Type != recordEnter || !c.is(r) {
			t.Errorf("%s: recorded is %s", what, r)
			return
		}
		for j, want := range c.args {
			if j >= len(r.Args) || uint64(r.Args[j]) != want {
				t.Errorf("%s: arguments are %#x, want %#x", what, r.Args, c.args)
				break
			}
		}
		if c.comm != "" {
			comm = c.comm
		}
		// A return that is told at the next call needs one.
		if c.noReturn || deferred && i == len(th.calls)-1 && len(got) == 0 {
			continue
		}
		if r, ok = next("the return of " + what); !ok {
			return
		}
		if r.Type != recordExit || !c.is(r) {
			t.Errorf("%s: instead of its return, recorded is %s", what, r)
			return
		}
		checkReturn(t, what, c, r, lines, deferred)
	}
	for _, r := range got {
		t.Errorf("recorded after the last known call: %s", r)
	}
}

// checkReturn checks what is recorded of a call's return. Where the host reads it
// from the guest's memory an interrupt may have come between: then it is not known.
func checkReturn(t *testing.T, what string, c call, r record, lines map[string]int64, deferred bool) {
	t.Helper()
	want, told := c.ret.(int64)
	if line, isLine := c.ret.(string); isLine {
		if want, told = lines[line]; !told {
			t.Errorf("%s: the program did not say %q", what, line)
		}
	}
	switch {
	case r.Ret == nil && !c.unknown && !deferred && c.entry == "":
		t.Errorf("%s: its return value is not known", what)
	case r.Ret == nil && !r.Deferred:
		t.Errorf("%s: recorded at its return without a value", what)
	case r.Ret != nil && c.unknown:
		t.Errorf("%s: recorded is the value %d, which cannot be known", what, *r.Ret)
	case r.Ret != nil && told && *r.Ret != want:
		t.Errorf("%s returned %d, recorded is %d", what, want, *r.Ret)
	}
}

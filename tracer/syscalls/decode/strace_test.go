// SPDX-License-Identifier: Apache-2.0

package decode

import (
	"bytes"
	hexadecimal "encoding/hex"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"frail/bpf"
	"frail/tracer/syscalls"
)

// vector is a call to compare, and what strace has to make of it.
type vector struct {
	Call
	name string
}

// memoryAt is where the program has its memory.
const memoryAt = 0x10000000

// straced runs the calls under strace, which keeps them from happening, and returns its
// text for each, without the return value.
func straced(t *testing.T, table syscalls.Table, vectors []vector, inject string, more ...string) []string {
	t.Helper()
	return stracedWith(t, table, nil, vectors, inject, more...)
}

// stracedWith does it with these bytes in the program's memory.
func stracedWith(t *testing.T, table syscalls.Table, memory []byte, vectors []vector, inject string, more ...string) []string {
	t.Helper()
	const most = 1000 // 7000 arguments of at most 17 bytes
	var lines []string
	for part := range slices.Chunk(vectors, most) {
		lines = append(lines, stracedPart(t, table, memory, part, inject, more...)...)
	}
	return lines
}

var aside = regexp.MustCompile(`^(\[ Process |\+\+\+ |--- SIG|exit_group\(0\))`)

func stracedPart(t *testing.T, table syscalls.Table, memory []byte, vectors []vector, inject string, more ...string) []string {
	t.Helper()
	args := []string{"-o", filepath.Join(t.TempDir(), "out"), "-e", "inject=!execve,exit_group:" + inject}
	args = append(append(args, more...), program(t, table), hexadecimal.EncodeToString(memory))
	for _, v := range vectors {
		nr := v.Nr
		if table == syscalls.X32 {
			nr |= bpf.X32Bit
		}
		args = append(args, strconv.FormatInt(nr, 16))
		for _, arg := range v.Args {
			args = append(args, strconv.FormatUint(arg, 16))
		}
	}
	cmd := exec.CommandContext(t.Context(), "strace", args...)
	cmd.WaitDelay = time.Minute
	if msg, err := cmd.CombinedOutput(); err != nil {
		if bytes.Contains(msg, []byte("Operation not permitted")) {
			t.Skipf("strace may not trace here: %s", msg)
		}
		if len(more) == 0 { // with more, exit_group may fail, and the program crashes at its end
			t.Fatalf("strace: %v\n%s", err, msg)
		}
	}
	out, err := os.ReadFile(args[1])
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")[1:] // without its execve
	lines = slices.DeleteFunc(lines, aside.MatchString)
	if len(lines) != len(vectors) {
		t.Fatalf("strace shows %d calls of %d", len(lines), len(vectors))
	}
	return lines
}

// built is where the programs are.
var built string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "frail-decode-")
	if err != nil {
		panic(err)
	}
	built = dir
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

// program returns the program that makes the calls.
func program(t *testing.T, table syscalls.Table) string {
	t.Helper()
	width := "-m64"
	if table == syscalls.I386 {
		width = "-m32"
	}
	bin := filepath.Join(built, "calls"+width)
	if _, err := os.Stat(bin); err == nil {
		return bin
	}
	cmd := exec.Command("gcc", width, "-O1", "-nostdlib", "-static", "-fno-pic", "-no-pie", "-fno-stack-protector",
		"-Wl,--section-start=.memory=0x10000000", "-o", bin, "testdata/calls.c")
	if msg, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("gcc: %v\n%s", err, msg)
	}
	return bin
}

// unmapped is an address that strace cannot read, so that it shows it.
const unmapped = 0x1000

// vectors are calls with ordinary, large and negative arguments, and with every name of
// every set of names.
func vectors(table syscalls.Table) []vector {
	all := maps.Clone(calls64)
	if table == syscalls.I386 {
		maps.Copy(all, calls32)
	}
	var vs []vector
	for _, name := range slices.Sorted(maps.Keys(all)) {
		nr, ok := syscalls.Number(table, name)
		if !ok || signature(table, int64(nr)) == nil || skipped[name] != "" {
			continue
		}
		add := func(i int, values ...uint64) {
			for _, v := range values {
				c := vector{Call{Table: table, Nr: int64(nr), Args: [6]uint64{unmapped, unmapped, unmapped, unmapped, unmapped, unmapped}}, name}
				c.Args[i] = v
				vs = append(vs, c)
			}
		}
		add(0, unmapped)
		for sig := range uint64(66) {
			if name == "kill" {
				add(1, sig)
			}
		}
		for i, arg := range all[name] {
			switch arg := arg.(type) {
			case *set:
				for _, n := range append(slices.Clone(arg.values), arg.flags...) {
					add(i, uint64(n.value))
				}
				if !arg.long {
					add(i, 1<<40|1) // of which a half is in use
				}
			case pointer, *memory:
				add(i, 0, 1<<63)
			default:
				add(i, 1, 2, 9, 0o644, 1<<31, 1<<32-1, 1<<32-100, 1<<33|5, 1<<63|5, 1<<64-1)
			}
		}
	}
	return vs
}

// skipped are calls that cannot be compared, and why.
var skipped = map[string]string{
	"exit_group": "ends the program",
}

// different reports whether strace is known to show the call in another way.
func different(v *vector) bool {
	switch op := uint32(v.Args[0]); v.name {
	case "io_getevents", "io_pgetevents": // strace takes 32 bits of x32's
		return v.Table == syscalls.X32
	case "prctl": // strace shows all arguments of an unknown mode, and
		if op == unix.PR_SET_SECCOMP && v.Args[1] != unix.SECCOMP_MODE_FILTER {
			return true
		}
		// strace has names for the arguments of rarer options
		_, known := prctlArguments[op]
		return !known && prctlOptions.find(uint64(op)) != ""
	case "ptrace": // strace has names for registers and sets of registers
		switch op {
		case unix.PTRACE_PEEKUSR, unix.PTRACE_POKEUSR, unix.PTRACE_GETREGSET, unix.PTRACE_SETREGSET:
			return true
		}
	case "getsockopt", "setsockopt": // strace has names for the options of rarer protocols
		level := uint64(uint32(v.Args[1]))
		plain := v.Call
		plain.Args[2] = 999
		return socketLevels.find(level) != "" && !strings.Contains(string(plain.AppendArgs(nil)), "???")
	case "socket": // likewise, and it looks at 64 bits, unlike the kernel
		if v.Args[0] != uint64(op) {
			return true
		}
		return families.find(uint64(op)) != "" && bytes.HasSuffix(v.AppendArgs(nil), []byte(" 4096"))
	case "socketcall": // a call of no name is in decimal
		return socketCalls.find(uint64(op)) == ""
	case "msgget", "semget", "shmget": // strace shows 01000 too little after bits with no name, and the size of pages
		flags := v.Args[map[string]int{"msgget": 1, "semget": 2, "shmget": 2}[v.name]]
		return uint32(flags) > 0o17777 || v.name != "shmget" && flags > 0o7777
	}
	return false
}

// tables are those of the tests.
var tables = []syscalls.Table{syscalls.X86_64, syscalls.I386, syscalls.X32}

// Every argument reads as strace shows it.
func TestArgumentsLikeStrace(t *testing.T) {
	needStrace(t)
	for _, table := range tables {
		t.Run(table.String(), func(t *testing.T) {
			vs := vectors(table)
			vs = slices.DeleteFunc(vs, func(v vector) bool { return different(&v) })
			compared := make(map[string]bool)
			for i, line := range straced(t, table, vs, "error=ENOSYS") {
				v := vs[i]
				want, _, _ := strings.Cut(line, " = -1 ")
				want = strings.TrimRight(want, " ")
				if got := fmt.Sprintf("%s(%s)", v.name, v.AppendArgs(nil)); got != want {
					t.Errorf("%#x:\n got %s\nwant %s", v.Args, got, want)
				}
				compared[v.name] = true
			}
			t.Logf("%d texts of %d calls", len(vs), len(compared))
			if len(compared) < 60 {
				t.Errorf("only %d calls were compared", len(compared))
			}
		})
	}
}

// otherReturns are calls whose return value strace explains further.
var otherReturns = map[string]bool{"time": true, "stime": true, "sched_getscheduler": true, "rt_sigtimedwait": true, "rt_sigtimedwait_time64": true,
	"recvmmsg": true, "recvmmsg_time64": true}

// Every return value reads as strace shows it, but for what it shows of memory.
func TestReturnsLikeStrace(t *testing.T) {
	needStrace(t)
	returned := regexp.MustCompile(`= (.*) \(INJECTED\)$`)
	for _, table := range tables {
		for _, ret := range []int64{0, 1, 0x8401, 0x7ffff000} {
			t.Run(fmt.Sprintf("%s %#x", table, ret), func(t *testing.T) {
				var vs []vector
				seen := make(map[string]bool)
				for _, v := range vectors(table) {
					if fcntl := ReturnNeedsArgs(table, v.Nr); fcntl || !seen[v.name] {
						seen[v.name] = true
						if !otherReturns[v.name] && v.name != "execve" {
							vs = append(vs, v)
						}
					}
				}
				for i, line := range straced(t, table, vs, fmt.Sprintf("retval=%d", ret)) {
					m := returned.FindStringSubmatch(line)
					if m == nil {
						t.Fatalf("%q has no return value", line)
					}
					want := m[1]
					if before, _, found := strings.Cut(want, " (["); found {
						want = before // of poll: which descriptors are ready
					}
					want, _, _ = strings.Cut(want, " (left ")
					if got := string(vs[i].AppendReturn(nil, ret)); got != want {
						t.Errorf("%s returned %s, want %s", vs[i].name, got, want)
					}
				}
			})
		}
	}
}

// Every error has the name and the text that strace gives it.
func TestErrorsLikeStrace(t *testing.T) {
	needStrace(t)
	for errno := 1; errno <= 133; errno++ {
		v := vector{Call{Table: syscalls.X86_64, Nr: unix.SYS_CLOSE, Args: [6]uint64{1}}, "close"}
		line := straced(t, syscalls.X86_64, []vector{v}, fmt.Sprintf("error=%d", errno))[0]
		_, want, _ := strings.Cut(strings.TrimSuffix(line, " (INJECTED)"), " = ")
		if got := string(v.AppendReturn(nil, -int64(errno))); got != want {
			t.Errorf("error %d reads %s, want %s", errno, got, want)
		}
	}
}

// A class of a filter is strace's.
func TestClassesLikeStrace(t *testing.T) {
	needStrace(t)
	for _, table := range []syscalls.Table{syscalls.X86_64, syscalls.I386} {
		var vs []vector
		seen := make(map[int64]bool)
		for _, v := range vectors(table) {
			if !seen[v.Nr] && v.name != "execve" {
				vs = append(vs, v)
			}
			seen[v.Nr] = true
		}
		for _, class := range syscalls.Classes() {
			f, err := syscalls.ParseFilter("%" + class)
			if err != nil {
				t.Fatal(err)
			}
			// The last rule for a call decides how it fails.
			lines := straced(t, table, vs, "error=ENOSYS", "-e", "inject=%"+class+":error=EPERM")
			for i, line := range lines {
				nr := vs[i].Nr
				has := f.Numbers[table][nr/64]>>(nr%64)&1 != 0
				if want := strings.Contains(line, " EPERM "); has != want {
					t.Errorf("%s of table %s is in %%%s: %v, for strace %v", vs[i].name, table, class, has, want)
				}
			}
		}
	}
}

func needStrace(t *testing.T) {
	t.Helper()
	if _, err := exec.LookPath("strace"); err != nil {
		t.Fatalf("%v: make deps", err)
	}
}

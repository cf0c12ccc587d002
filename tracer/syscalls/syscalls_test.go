// SPDX-License-Identifier: Apache-2.0

package syscalls

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"frail/bpf"
)

func TestGeneratedTablesAreCurrent(t *testing.T) {
	out := filepath.Join(t.TempDir(), "tables.go")
	if msg, err := exec.Command("go", "run", "./internal/gen", out).CombinedOutput(); err != nil {
		t.Fatalf("generator: %v\n%s", err, msg)
	}
	want, err := os.ReadFile("tables.go")
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Error("tables.go is not what go generate makes of golang.org/x/sys")
	}
}

// The tables have every call of the C library's kernel headers under the same number.
func TestAgainstKernelHeaders(t *testing.T) {
	multiarch, err := exec.Command("gcc", "-print-multiarch").Output()
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join("/usr/include", strings.TrimSpace(string(multiarch)), "asm")
	define := regexp.MustCompile(`(?m)^#define __NR_(\w+) \(?(?:__X32_SYSCALL_BIT \+ )?(\d+)\)?$`)
	for table, header := range map[Table]string{X86_64: "unistd_64.h", I386: "unistd_32.h", X32: "unistd_x32.h"} {
		t.Run(header, func(t *testing.T) {
			src, err := os.ReadFile(filepath.Join(dir, header))
			if err != nil {
				t.Fatal(err)
			}
			calls := define.FindAllStringSubmatch(string(src), -1)
			if len(calls) < 300 {
				t.Fatalf("only %d calls found", len(calls))
			}
			for _, m := range calls {
				want, err := strconv.Atoi(m[2])
				if err != nil {
					t.Fatal(err)
				}
				if got, ok := Number(table, m[1]); !ok || got != want {
					t.Errorf("%s is %d, %v, want %d", m[1], got, ok, want)
				}
			}
		})
	}
}

func TestNamesAndNumbers(t *testing.T) {
	for _, tc := range []struct {
		table Table
		nr    int64
		name  string
		args  int
	}{
		{X86_64, 0, "read", 3},
		{X86_64, 9, "mmap", 6},
		{X86_64, 39, "getpid", 0},
		{X86_64, 257, "openat", 4},
		{X86_64, 449, "futex_waitv", 5},
		{X86_64, 462, "mseal", 3},
		{X86_64, 400, "", 6},
		{X86_64, -1, "", 6},
		{X86_64, 1 << 40, "", 6},
		{X86_64, bpf.X32Bit | 257, "", 6},
		{X86_64, 520, "", 6},
		{I386, 0, "restart_syscall", 0},
		{I386, 5, "open", 3},
		{I386, 90, "mmap", 1},
		{I386, 102, "socketcall", 2},
		{I386, 295, "openat", 4},
		{X32, 257, "openat", 4},
		{X32, bpf.X32Bit | 257, "openat", 4},
		{X32, bpf.X32Bit | 520, "execve", 3},
		{X32, bpf.X32Bit | 59, "", 6},
		{Table(9), 1, "", 6},
	} {
		t.Run(fmt.Sprintf("%s %d", tc.table, tc.nr), func(t *testing.T) {
			if got := Name(tc.table, tc.nr); got != tc.name {
				t.Errorf("name %q, want %q", got, tc.name)
			}
			if got := Args(tc.table, tc.nr); got != tc.args {
				t.Errorf("%d arguments, want %d", got, tc.args)
			}
			nr, ok := Number(tc.table, tc.name)
			if want := tc.nr &^ bpf.X32Bit; ok != (tc.name != "") || ok && int64(nr) != want {
				t.Errorf("number %d, %v, want %d", nr, ok, want)
			}
		})
	}
}

// numbers lists the members of a filter's set.
func numbers(f *Filter, t Table) []int {
	var nrs []int
	for nr := range bpf.Syscalls {
		if f.Numbers[t][nr/64]>>(nr%64)&1 != 0 {
			nrs = append(nrs, nr)
		}
	}
	return nrs
}

func TestParseFilter(t *testing.T) {
	only := [bpf.Tables]uint32{bpf.MatchOnly, bpf.MatchOnly, bpf.MatchOnly}
	except := [bpf.Tables]uint32{bpf.MatchExcept, bpf.MatchExcept, bpf.MatchExcept}
	for _, tc := range []struct {
		in          string
		match       [bpf.Tables]uint32
		n64, n32, x []int
	}{
		{"", [bpf.Tables]uint32{}, nil, nil, nil},
		{"  ", [bpf.Tables]uint32{}, nil, nil, nil},
		{"openat", only, []int{257}, []int{295}, []int{257}},
		{"openat,execve", only, []int{59, 257, 520}, []int{11, 295}, []int{257, 520}},
		{" openat , openat ", only, []int{257}, []int{295}, []int{257}},
		{"!futex", except, []int{202}, []int{240}, []int{202}},
		{"! futex,poll", except, []int{7, 202}, []int{168, 240}, []int{7, 202}},
		{"socketcall", only, nil, []int{102}, nil},
		{"openat@64", only, []int{257}, nil, nil},
		{"openat@32", only, nil, []int{295}, nil},
		{"openat@x32", only, nil, nil, []int{257}},
		{"257", only, []int{257}, nil, nil},
		{"%ipc@32", only, nil, []int{117, 393, 394, 395, 396, 397, 398, 399, 400, 401, 402, 420}, nil},
		{"!%ipc@x32,5@32", except, nil, []int{5}, []int{29, 30, 31, 64, 65, 66, 67, 68, 69, 70, 71, 220}},
		{"5@32,1023@x32,0", only, []int{0, 1023}, []int{5}, []int{1023}},
	} {
		t.Run(tc.in, func(t *testing.T) {
			f, err := ParseFilter(tc.in)
			if err != nil {
				t.Fatal(err)
			}
			if f.Match != tc.match {
				t.Errorf("match %v, want %v", f.Match, tc.match)
			}
			if f.All() != (tc.match == [bpf.Tables]uint32{}) {
				t.Errorf("All() is %v", f.All())
			}
			for table, want := range map[Table][]int{X86_64: tc.n64, I386: tc.n32, X32: tc.x} {
				if got := numbers(&f, table); fmt.Sprint(got) != fmt.Sprint(want) {
					t.Errorf("table %s: %v, want %v", table, got, want)
				}
			}
		})
	}
}

func TestParseFilterErrors(t *testing.T) {
	for _, tc := range []struct{ in, want string }{
		{"opnat", `unknown system call "opnat": did you mean openat, open`},
		{"exceve", `did you mean execve`},
		{"OPENAT", `did you mean openat`},
		{"getpd", `did you mean getpid`},
		{"nosuchthingatall", `unknown system call "nosuchthingatall"`},
		{"socketcall@64", `unknown system call "socketcall" in table 64`},
		{"openat@16", `unknown table "16": one of 64, 32, x32`},
		{"openat@", `unknown table ""`},
		{",", "empty name"},
		{"openat,", "empty name"},
		{"!", "empty name"},
		{"openat,!futex", `"!" before "futex": it may only start the list`},
		{"!openat,!futex", `it may only start the list`},
		{"1024", "numbers go from 0 to 1023"},
		{"%fil", `unknown class "%fil" of system calls: one of %desc, %file, %ipc, %memory, %network, %process, %signal`},
		{"openat,%", `unknown class "%"`},
		{"%file@16", `unknown table "16"`},
		{"99999999999999999999", "numbers go from 0 to 1023"},
		{"12ab", "numbers go from 0 to 1023"},
		{strings.Repeat("x", 1000), "unknown system call"},
		{strings.Repeat("read,", MaxFilter), "longer than"},
	} {
		name := tc.in[:min(len(tc.in), 20)]
		t.Run(name, func(t *testing.T) {
			f, err := ParseFilter(tc.in)
			if err == nil {
				t.Fatalf("no error, filter %+v", f)
			}
			if !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %q does not say %q", err, tc.want)
			}
			if !f.All() {
				t.Error("filter is not zero")
			}
		})
	}
}

func FuzzParseFilter(f *testing.F) {
	for _, s := range []string{"", "openat,execve", "!futex", "5@32", "openat@x32", "!!", "@", ",,", "0,1023", "%file", "!%ipc,read@32"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got, err := ParseFilter(s)
		if err != nil && !got.All() {
			t.Errorf("ParseFilter(%q) returned an error and a filter", s)
		}
		for _, m := range got.Match {
			if m > bpf.MatchExcept {
				t.Errorf("ParseFilter(%q): match %d", s, m)
			}
		}
	})
}

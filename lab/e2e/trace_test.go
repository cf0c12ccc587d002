// SPDX-License-Identifier: Apache-2.0

//go:build lab

package e2e

import (
	"strings"
	"testing"

	"frail/lab/vm"
)

// TestKnownCalls runs every test program in a guest of each kind of exits and in a
// plain one: what the traced ones did is recorded exactly, thread by thread, and
// none of them can tell which it ran in.
func TestKnownCalls(t *testing.T) {
	begin(t)
	both, entry := startGuest(t, "both", traced), startGuest(t, "entry", metadata(tracedEntry))
	plain := startGuest(t, "plain")
	for _, v := range []*vm.VM{both, entry, plain} {
		waitGuest(t, v)
	}
	waitTraced(t, both)
	waitTraced(t, entry)
	waitState(t, plain.Name, stateNotTraced)

	for _, p := range known {
		t.Run(p.name, func(t *testing.T) {
			line := strings.TrimSpace(p.name + " " + p.args)
			want := runIn(t, plain, line)
			for _, v := range []*vm.VM{both, entry} {
				t.Run(v.Name, func(t *testing.T) {
					tr := startTrace(t, v.Name)
					got := runIn(t, v, line)
					records := tr.stop()
					if got.Status != p.status || want.Status != p.status {
						t.Errorf("exit status %d traced, %d untraced, want %d", got.Status, want.Status, p.status)
					}
					if g, w := withoutIDs(got.Output), withoutIDs(want.Output); g != w {
						t.Errorf("output traced:\n%s\nuntraced:\n%s", g, w)
					}
					checkCalls(t, p, got.Output, records, v == entry)
				})
			}
		})
	}
}

// TestUnmappedInstruction has a thread take away the page that another makes
// system calls from: each of them is recorded once, and no signal is invented.
func TestUnmappedInstruction(t *testing.T) {
	begin(t)
	guest := startGuest(t, "unmap", traced, vcpus(2))
	waitGuest(t, guest)
	waitTraced(t, guest)

	const rounds = 3000 // as t-unmap.c has it
	tr := startTrace(t, guest.Name, "--filter-comm", "t-unmap", "--filter-syscall", "getuid")
	res := runIn(t, guest, "t-unmap")
	records := tr.stop()
	if res.Status != 0 || values(res.Output)["bad"] != 0 {
		t.Errorf("t-unmap: status %d\n%s", res.Status, res.Output)
	}
	enters, exits := count(records, recordEnter), count(records, recordExit)
	if enters != rounds || exits != rounds {
		t.Errorf("%d calls and %d returns recorded, want %d each", enters, exits, rounds)
	}
}

// TestLockedSyscall checks that LOCK SYSCALL is what the architecture says,
// illegal, and no system call.
func TestLockedSyscall(t *testing.T) {
	begin(t)
	guest := startGuest(t, "lock", traced)
	waitGuest(t, guest)
	waitTraced(t, guest)

	tr := startTrace(t, guest.Name, "--filter-comm", "t-lock")
	res := runIn(t, guest, "t-lock")
	records := tr.stop()
	const sigill = 128 + 4
	if res.Status != sigill {
		t.Errorf("exit status %d, want %d\n%s", res.Status, sigill, res.Output)
	}
	for _, r := range records {
		if r.Type == recordEnter && r.Syscall != "getpid" {
			t.Errorf("recorded %s", r)
		}
	}
	if count(records, recordEnter) != 1 {
		t.Errorf("%d calls recorded, want getpid alone", count(records, recordEnter))
	}
}

// TestFilters checks that the filters of frail trace pass what they name and
// nothing else.
func TestFilters(t *testing.T) {
	begin(t)
	guest := startGuest(t, "filters", traced)
	waitGuest(t, guest)
	waitTraced(t, guest)

	for _, tt := range []struct {
		name string
		args []string
		want []string // the enters of t-opens
	}{
		{"system calls by name", []string{"--filter-syscall", "openat,close"},
			[]string{"openat", "close", "openat", "openat", "close"}},
		{"all but some", []string{"--filter-comm", "t-opens", "--filter-syscall", "!openat,close"},
			[]string{"getpid", "read", "getdents64", "write", "exit_group"}},
		{"a thread's name", []string{"--filter-comm", "t-opens", "--filter-syscall", "write"},
			[]string{"write"}},
		{"a name nobody has", []string{"--filter-comm", "t-nobody"}, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tr := startTrace(t, guest.Name, tt.args...)
			res := runIn(t, guest, "t-opens")
			var got []string
			for _, r := range tr.stop() {
				if r.Type == recordEnter && r.Comm == "t-opens" && r.PID == int(values(res.Output)["pid"]) {
					got = append(got, r.Syscall)
				}
			}
			if strings.Join(got, " ") != strings.Join(tt.want, " ") {
				t.Errorf("recorded %q, want %q", got, tt.want)
			}
		})
	}
}

// count counts the records of a type.
func count(records []record, kind string) int {
	n := 0
	for _, r := range records {
		if r.Type == kind {
			n++
		}
	}
	return n
}

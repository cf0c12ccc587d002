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

	const container = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
	program := strings.TrimSpace(runIn(t, guest, "readlink -f /bin/t-opens").Output)
	if res := runIn(t, guest, "mkdir -p /cg && mount -t cgroup2 cgroup2 /cg && mkdir -p /cg/docker/"+container); res.Status != 0 {
		t.Fatalf("make a control group: %s", res.Output)
	}
	const (
		plain     = "t-opens"
		contained = "sh -c 'echo $$ >/cg/docker/" + container + "/cgroup.procs; exec t-opens'"
	)
	all := strings.Fields("getpid openat read close openat openat getdents64 close write exit_group")

	for _, tt := range []struct {
		name string
		run  string
		args []string
		want []string // the enters of t-opens
		// alone is set if nobody else in the guest makes calls that pass.
		alone bool
	}{
		{"system calls by name", plain, []string{"--filter-syscall", "openat,close"},
			[]string{"openat", "close", "openat", "openat", "close"}, false},
		{"all but some", plain, []string{"--filter-comm", "t-opens", "--filter-syscall", "!openat,close"},
			[]string{"getpid", "read", "getdents64", "write", "exit_group"}, true},
		{"a class", plain, []string{"--filter-comm", "t-opens", "--filter-syscall", "%file"},
			[]string{"openat", "openat", "openat"}, true},
		{"a thread's name", plain, []string{"--filter-comm", "t-nobody,t-opens", "--filter-syscall", "write"},
			[]string{"write"}, true},
		{"a name nobody has", plain, []string{"--filter-comm", "t-nobody"}, nil, true},

		{"an executable", plain, []string{"--filter-exe", "/no/such," + program}, all, true},
		{"all but an executable", plain, []string{"--filter-exe", "!" + program}, nil, false},
		{"a user", plain, []string{"--filter-comm", "t-opens", "--filter-uid", "0"}, all, true},
		{"all but a user", plain, []string{"--filter-uid", "!0"}, nil, true},
		{"a container", contained, []string{"--filter-container", container[:12]}, all, true},
		{"a container it is not in", plain, []string{"--filter-container", container}, nil, true},
		{"all but a container", contained, []string{"--filter-container", "!" + container}, nil, false},
		{"the first process", plain, []string{"--filter-pid", "1"}, nil, false},
		{"the first process and all its children", plain, []string{"--filter-pid", "1", "--follow"}, all, false},

		{"calls that fail", plain, []string{"--filter-exe", program, "--failed"}, []string{"openat"}, true},
		{"an error", plain, []string{"--filter-comm", "t-opens", "--filter-error", "EACCES,ENOENT"}, []string{"openat"}, true},
		{"all but an error", plain, []string{"--filter-comm", "t-opens", "--filter-error", "!ENOENT"},
			strings.Fields("getpid openat read close openat getdents64 close write"), true},
		{"what a call returns", plain, []string{"--filter-comm", "t-opens", "--filter-return", "8"}, []string{"read"}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tr := startTrace(t, guest.Name, tt.args...)
			res := runIn(t, guest, tt.run)
			pid := int(values(res.Output)["pid"])
			var got []string
			for _, r := range tr.stop() {
				switch {
				case r.Type == recordEnter && r.Comm == "t-opens" && r.PID == pid:
					got = append(got, r.Syscall)
				case r.Type == recordSummary:
					t.Logf("%d events, %d not judged", r.Delivered, r.Unjudged)
				case r.isEvent() && tt.alone && r.PID != pid:
					t.Errorf("recorded %s", r)
				}
			}
			if strings.Join(got, " ") != strings.Join(tt.want, " ") {
				t.Errorf("recorded %q, want %q", got, tt.want)
			}
		})
	}

	t.Run("a process that becomes another, and its threads and children", func(t *testing.T) {
		tr := startTrace(t, guest.Name, "--filter-comm", "t-execs", "--follow")
		res := runIn(t, guest, "t-forks; t-execs")
		var got []string
		for _, r := range tr.stop() {
			if r.Type == recordEnter {
				got = append(got, r.Comm+":"+r.Syscall)
			}
		}
		want := "t-execs:getpid t-execs:execve t-execs:write t-execs:execve " +
			"t-target:getpid t-target:gettid t-target:write t-target:exit_group"
		if strings.Join(got, " ") != want {
			t.Errorf("recorded %q, want %q\n%s", got, want, res.Output)
		}
	})
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

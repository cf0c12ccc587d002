// SPDX-License-Identifier: Apache-2.0

package guests

import (
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"frail/qmp"
	"frail/qmp/layout"
	"frail/qmp/qmptest"
)

// process is a process as /proc has it, without what changes all the time.
type process struct {
	parent, namespacePID int32
	comm                 string
	kernel               bool
	start                int64 // clock ticks since the boot
	uid, euid, gid       uint32
	exe                  string // as readlink prints it
}

// ownProcesses lists what the guest says of its processes. There is one line of each kind
// for each process but for exe, of which kernel threads have none.
const ownProcesses = `cd /proc; grep -H '' [0-9]*/stat; grep -HE '^(Uid|Gid|NSpid):' [0-9]*/status; ls -l [0-9]*/exe; true`

var (
	// processLine is a process's stat: name, parent, flags, start.
	processLine = regexp.MustCompile(`^(\d+)/stat:\d+ \((.*)\) [A-Za-z] (\d+) \d+ \d+ -?\d+ -?\d+ (\d+)(?: -?\d+){12} (\d+) `)
	uidLine     = regexp.MustCompile(`^(\d+)/status:Uid:\t(\d+)\t(\d+)\t`)
	gidLine     = regexp.MustCompile(`^(\d+)/status:Gid:\t(\d+)\t`)
	pidLine     = regexp.MustCompile(`^(\d+)/status:NSpid:.*\t(\d+)$`)
	exeLine     = regexp.MustCompile(` (\d+)/exe -> (.*)$`)
)

// kernelThread is PF_KTHREAD of a process's flags.
const kernelThread = 0x00200000

// askProcesses returns the guest's own view of its processes by process id.
func askProcesses(t *testing.T, g *qmptest.Guest) (map[int32]process, error) {
	t.Helper()
	all := make(map[int32]process)
	var errs []error
	number := func(s string, bits int) int64 {
		n, err := strconv.ParseInt(s, 10, bits)
		errs = append(errs, err)
		return n
	}
	for line := range strings.Lines(g.Run(t, ownProcesses)) {
		line = strings.TrimSuffix(line, "\n")
		var m []string
		match := func(r *regexp.Regexp) bool {
			m = r.FindStringSubmatch(line)
			return m != nil
		}
		var change func(*process)
		switch {
		case match(processLine):
			change = func(p *process) {
				p.comm, p.parent, p.kernel = ownName(m[2]), int32(number(m[3], 32)), number(m[4], 64)&kernelThread != 0
				p.start = number(m[5], 64)
			}
		case match(uidLine):
			change = func(p *process) { p.uid, p.euid = uint32(number(m[2], 64)), uint32(number(m[3], 64)) }
		case match(gidLine):
			change = func(p *process) { p.gid = uint32(number(m[2], 64)) }
		case match(pidLine):
			change = func(p *process) { p.namespacePID = int32(number(m[2], 32)) }
		case match(exeLine):
			change = func(p *process) { p.exe = m[2] }
		default:
			// One that ended meanwhile, or the exe of a kernel thread.
			continue
		}
		pid := int32(number(m[1], 32))
		p := all[pid]
		change(&p)
		all[pid] = p
	}
	return all, errors.Join(errs...)
}

// tick is the unit of /proc's times.
const tick = 10 * time.Millisecond

// compareProcesses holds the guest's processes, as its memory has them, against what it
// says of them before and after. It returns how many there are.
func compareProcesses(t *testing.T, g *qmptest.Guest, mem *qmp.Memory, l *layout.Layout) (int, error) {
	t.Helper()
	before, err := askProcesses(t, g)
	if err != nil {
		return 0, err
	}
	processes, err := list(t.Context(), mem, l.Processes)
	if err != nil {
		return 0, err
	}
	after, err := askProcesses(t, g)
	if err != nil {
		return 0, err
	}
	var errs []error
	found := make(map[int32]bool)
	for _, p := range processes {
		found[p.PID] = true
		got := process{
			parent: p.Parent, namespacePID: p.NamespacePID, comm: p.Comm, kernel: p.KernelThread, start: int64(p.Start / tick),
			uid: p.UID, euid: p.EUID, gid: p.GID, exe: p.Exe.Path,
		}
		if p.Exe.Deleted {
			got.exe += " (deleted)"
		}
		a, b := before[p.PID], after[p.PID]
		if got != a && got != b || len(p.Unknown) > 0 {
			errs = append(errs, fmt.Errorf("process %d is %+v, unknown: %v; the guest says %+v before and %+v after", p.PID, got, p.Unknown, a, b))
		}
	}
	for pid, p := range before {
		if after[pid] == p && !found[pid] {
			errs = append(errs, fmt.Errorf("the guest's process %d, %+v, was not found", pid, p))
		}
	}
	return len(processes), errors.Join(append(errs, checkKnown(before))...)
}

// checkKnown checks that the guest runs what startKnown started.
func checkKnown(all map[int32]process) error {
	kinds := map[string]bool{oddName: false, "a user's": false, "in a namespace": false, "of a deleted file": false}
	for pid, p := range all {
		for name, is := range map[string]bool{
			oddName: p.comm == oddName, "a user's": p.uid == 1000 && p.gid == 1000,
			"in a namespace": p.namespacePID == 1 && pid != 1, "of a deleted file": strings.HasSuffix(p.exe, " (deleted)"),
		} {
			kinds[name] = kinds[name] || is
		}
	}
	var errs []error
	for name, is := range kinds {
		if !is {
			errs = append(errs, fmt.Errorf("the guest runs no process that is %q", name))
		}
	}
	return errors.Join(errs...)
}

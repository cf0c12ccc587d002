// SPDX-License-Identifier: Apache-2.0

//go:build lab

package proof

import (
	"fmt"
	"strconv"
	"strings"
	"testing"

	"frail/bpf"
	"frail/lab/direct"
	"frail/tracer"
)

// whoScript runs t-who in all its ways.
const whoScript = `
mkdir -p /out/who /cg /tmp/dir
chmod 777 /out /out/who
mount -t cgroup2 cgroup2 /cg
group=/cg/outer/docker-0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef.scope
mkdir -p $group /tmp/mount /pids
mount -t cgroup -o pids pids /pids
other=/pids/libpod_parent/libpod-0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef
mkdir -p $other
mount -t tmpfs tmpfs /tmp/mount
program=$(readlink -f /bin/t-who)
cp $program /tmp/dir/deleted
cp $program /tmp/mount/mounted
deep=/tmp/dir/$(printf 'x%.0s' $(seq 200))
mkdir -p $deep
cp $program $deep/$(printf 'y%.0s' $(seq 100))
ln -s /tmp/mount/mounted /tmp/link
t-who 1
t-who 2
t-who 3
t-who 4
while ! test -e /out/who/4.exe; do sleep 0.1; done
t-who 5 $group/cgroup.procs
/tmp/dir/deleted 6
t-who 7
t-who 9
/tmp/link 10
$deep/y* 11
(exec t-who 12)
t-who 13 $other/cgroup.procs
sleep 1
`

// ticks are the units of times in /proc/PID/stat: USER_HZ.
const ticks = 100

// whoMarker is the first argument of t-who's getpriority.
const whoMarker = 77

const getpriority = 140

// ownWords is what a process's own /proc said of it.
type ownWords struct {
	pid, ppid, nsPid     int32
	uid, gid, euid, egid uint32
	start                uint64 // in ticks
	exe, cgroup          string
}

func readOwnWords(files map[string][]byte, number int) (ownWords, error) {
	var w ownWords
	file := func(suffix string) string { return string(files[fmt.Sprintf("who/%d.%s", number, suffix)]) }
	_, rest, ok := strings.Cut(file("stat"), ") ")
	stat := strings.Fields(rest) // from the third field on
	if !ok || len(stat) < 20 {
		return w, fmt.Errorf("stat of %d is %q", number, file("stat"))
	}
	ppid, err := strconv.ParseInt(stat[1], 10, 32)
	if err != nil {
		return w, err
	}
	w.ppid = int32(ppid)
	if w.start, err = strconv.ParseUint(stat[19], 10, 64); err != nil {
		return w, err
	}
	for line := range strings.Lines(file("status")) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), ":")
		var ids []uint32
		for _, f := range strings.Fields(value) {
			id, err := strconv.ParseUint(f, 10, 32)
			if err != nil {
				break
			}
			ids = append(ids, uint32(id))
		}
		switch key {
		case "Pid":
			w.pid = int32(ids[0])
		case "NSpid":
			w.nsPid = int32(ids[len(ids)-1])
		case "Uid":
			w.uid, w.euid = ids[0], ids[1]
		case "Gid":
			w.gid, w.egid = ids[0], ids[1]
		}
	}
	w.exe = file("exe")
	for line := range strings.Lines(file("cgroup")) {
		parts := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(parts) != 3 {
			return w, fmt.Errorf("a control group of %d is %q", number, line)
		}
		if len(parts[2]) > len(w.cgroup) {
			w.cgroup = parts[2]
		}
	}
	return w, nil
}

// outside is what is known of a process from outside, in the same terms.
func outside(p *bpf.Process) ownWords {
	exe := string(p.ExeBytes())
	if p.Known&bpf.ProcessExeDeleted != 0 {
		exe += " (deleted)"
	}
	return ownWords{
		pid: p.Head.Pid, ppid: p.Ppid, nsPid: p.NsPid,
		uid: p.Uid, gid: p.Gid, euid: p.Euid, egid: p.Egid,
		start: p.Start * ticks / 1e9, exe: exe, cgroup: string(p.CgroupBytes()),
	}
}

// TestWho holds who the module says that a process is against the process's own /proc, at
// that very call: after fork and exec, with other credentials, in a pid namespace, orphaned,
// moved to another cgroup of either version, deleted, as a memfd, with the pid of another before it.
func TestWho(t *testing.T) {
	for _, mode := range exitModes {
		t.Run(mode.name, func(t *testing.T) {
			traced, err := direct.Trace(testContext(t), guest(direct.Config{VCPUs: 2, Script: whoScript}), mode.exits)
			if err != nil {
				t.Fatal(err)
			}
			const all = bpf.ProcessParent | bpf.ProcessCred | bpf.ProcessStart | bpf.ProcessNsPid | bpf.ProcessExe | bpf.ProcessCgroup
			var known tracer.Processes
			rest := traced.Processes
			numbers := map[uint64]uint64{} // who, by number
			unknown := 0
			for i := range traced.Events {
				ev := &traced.Events[i]
				for len(rest) > 0 && rest[0].Head.Time <= ev.Time {
					known.Add(&rest[0])
					rest = rest[1:]
				}
				if !ev.Identified() {
					continue
				}
				p := known.Of(ev)
				if p == nil {
					unknown++
					continue
				}
				if p.Head.Pid != ev.Pid || p.Head.Tgid != ev.Tgid {
					t.Errorf("event of %d/%d is said to be %d/%d's", ev.Tgid, ev.Pid, p.Head.Tgid, p.Head.Pid)
				}
				if ev.Kind != bpf.EventEnter || ev.Nr != getpriority || ev.Args[0] != whoMarker {
					continue
				}
				number := ev.Args[1]
				numbers[number] = ev.Who
				want, err := readOwnWords(traced.Files, int(number))
				if err != nil {
					t.Error(err)
					continue
				}
				got, cut := outside(p), uint32(0)
				if len(want.exe) > bpf.PathLen {
					want.exe, cut = want.exe[len(want.exe)-bpf.PathLen:], bpf.ProcessExeCut
				}
				if want.nsPid != want.pid {
					want.pid = got.pid // the process knows only its own
					want.ppid = got.ppid
				}
				if got != want {
					t.Errorf("t-who %d is\n%+v, by its own words\n%+v", number, got, want)
				}
				if p.Known&^bpf.ProcessExeDeleted != all|cut {
					t.Errorf("t-who %d: known %#x", number, p.Known)
				}
			}
			for _, number := range []uint64{1, 2, 3, 4, 40, 5, 50, 6, 8, 9, 90, 91, 10, 11, 12, 13} {
				if numbers[number] == 0 {
					t.Errorf("t-who did not come to %d: %s", number, traced.Output)
				}
			}
			if unknown != 0 {
				t.Errorf("of %d events it is not known who made them", unknown)
			}
			calls := 0
			for i := range traced.Events {
				if traced.Events[i].Kind == bpf.EventEnter {
					calls++
				}
			}
			t.Logf("%d calls, %d descriptions", calls, len(traced.Processes))
		})
	}
}

// SPDX-License-Identifier: Apache-2.0

package layout

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"frail/lab/cache"
	"frail/qmp"
	"frail/qmp/container"
	"frail/qmp/qmptest"
)

// hostileLimit bounds how long a corrupt guest may keep a reader busy.
const hostileLimit = 10 * time.Second

// eachKernel runs a test with the guest of each of the lab's hosts that is built; with
// the one kernel that the environment names, if it does.
func eachKernel(t *testing.T, test func(*testing.T)) {
	const env = "FRAIL_TEST_KERNEL"
	if os.Getenv(env) != "" {
		test(t)
		return
	}
	dir, err := cache.Dir()
	if err != nil {
		t.Fatal(err)
	}
	ran := false
	for _, host := range []string{"bookworm", "trixie", "sid"} {
		kernel := filepath.Join(dir, "guest-"+host, "vmlinuz")
		if _, err := os.Stat(kernel); err != nil {
			continue
		}
		ran = true
		t.Run(host, func(t *testing.T) {
			t.Setenv(env, kernel)
			test(t)
		})
	}
	if !ran {
		test(t)
	}
}

// startResolved starts a guest and resolves its layout.
func startResolved(t *testing.T, cfg qmptest.Config) (*qmptest.Guest, *qmp.Memory, *Layout) {
	t.Helper()
	g := qmptest.Start(t, cfg)
	mem := openMemory(t, g, g.PID)
	l, err := Resolve(t.Context(), mem, mem.Ranges(), Hint{LSTAR: symbolAddr(t, g, "entry_SYSCALL_64")})
	if err != nil {
		t.Fatal(err)
	}
	return g, mem, l
}

func TestReadGuest(t *testing.T) {
	eachKernel(t, func(t *testing.T) {
		g, mem, l := startResolved(t, qmptest.Config{MemoryMiB: 256, VCPUs: 2, Cmdline: "printk.devkmsg=on"})
		t.Logf("kernel %s, %d members known", l.Release, len(l.members))
		for _, m := range optionalMembers {
			name := strings.TrimSuffix(m.structure+"."+strings.Split(m.member, "|")[0], ".")
			if _, ok := l.members[name]; !ok {
				t.Errorf("%s is not known", name)
			}
		}
		startProcesses(t, g)
		t.Run("processes", func(t *testing.T) { compareProcesses(t, g, mem, l) })
		t.Run("by the slow path", func(t *testing.T) { slowProcesses(t, g, l) })
		t.Run("processes that come and go", func(t *testing.T) { busyProcesses(t, g, mem, l) })
		t.Run("log", func(t *testing.T) { compareLog(t, g, mem, l) })
		t.Run("hostile processes", func(t *testing.T) { hostileProcesses(t, mem, l) })
		t.Run("hostile log", func(t *testing.T) { hostileLog(t, mem, l) })
		t.Run("random corruption", func(t *testing.T) { randomCorruption(t, mem, l) })
	})
}

const (
	dockerID = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
	podmanID = "fedcba9876543210fedcba9876543210fedcba9876543210fedcba9876543210"
)

// startProcesses starts processes in the guest of every kind that Processes tells apart.
func startProcesses(t *testing.T, g *qmptest.Guest) {
	t.Helper()
	program := buildProgram(t)
	for i := 0; i < len(program); i += 500 { // a line of the shell's input is short
		g.Run(t, fmt.Sprintf("printf %%s '%s' >>/tmp/program.64", program[i:min(i+500, len(program))]))
	}
	for _, command := range []string{
		`base64 -d /tmp/program.64 >/tmp/program && chmod +x /tmp/program`,
		`mkfifo /tmp/wait`,
		`sh -c 'printf "a) R (b c" >/proc/$$/comm; read x </tmp/wait' &`,
		`unshare -p -m -f sleep 1001 &`,
		`cp /bin/busybox /tmp/busybox-gone; /tmp/busybox-gone sleep 1002 & sleep 1; rm /tmp/busybox-gone`,
		`mkdir "/tmp/a dir"; printf '#!/bin/sh\nread x </tmp/wait\n' >"/tmp/a dir/script"; chmod +x "/tmp/a dir/script"; "/tmp/a dir/script" one "two 2" '' four &`,
		`mkdir /tmp/mnt; mount -t tmpfs none /tmp/mnt; mkdir /tmp/mnt/d; cp /bin/busybox /tmp/mnt/d/busybox; /tmp/mnt/d/busybox sleep 1003 &`,
		`/tmp/program memfd /bin/busybox sleep 1004 &`,
		`/tmp/program ids &`,
		`/tmp/program threads &`,
		`sh -c 'sleep 0 & exec sleep 1005' &`,
		`mkdir /tmp/cg /tmp/pids; mount -t cgroup2 none /tmp/cg; mount -t cgroup -o pids none /tmp/pids`,
		`d=/tmp/cg/system.slice/docker-` + dockerID + `.scope; mkdir -p $d/sub; sh -c "echo \$\$ >$d/sub/cgroup.procs; exec sleep 1006" &`,
		`d=/tmp/pids/libpod_parent/libpod-` + podmanID + `; mkdir -p $d; sh -c "echo \$\$ >$d/cgroup.procs; exec sleep 1007" &`,
	} {
		g.Run(t, command)
	}
	g.Run(t, "sleep 1") // for the last to become what they are
}

// buildProgram builds testdata/process.c and returns it in base64.
func buildProgram(t *testing.T) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), "program")
	// As the lab's guest programs: without a C library.
	cmd := exec.Command("gcc", "-O2", "-Wall", "-Wextra", "-Werror", "-ffreestanding", "-fno-builtin", "-nostdlib", "-static",
		"-no-pie", "-fno-pie", "-fno-stack-protector", "-fcf-protection=none", "-fno-asynchronous-unwind-tables",
		"-Wl,--build-id=none", "-Wl,-z,noseparate-code", "-s", "-I../../lab/guest/progs", "-o", out, "testdata/process.c")
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build the guest's program: %v\n%s", err, text)
	}
	raw, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	return base64.StdEncoding.EncodeToString(raw)
}

// listScript has the guest tell all of its processes.
const listScript = `for p in /proc/[0-9]*; do
read -r stat <$p/stat || continue
echo "stat $stat"
grep -E '^(Uid|Gid|NSpid)' $p/status
echo "exe $(readlink $p/exe)"
echo "pid_ns $(readlink $p/ns/pid)"
echo "mnt_ns $(readlink $p/ns/mnt)"
sed 's/^/cgroup /' $p/cgroup
echo "args $(base64 -w 0 $p/cmdline)"
for t in $p/task/*; do read -r s <$t/stat && echo "thread $s"; done
echo end
done 2>/dev/null; true`

// guestProcess is a process as the guest's own /proc shows it.
type guestProcess struct {
	Process
	ticks   uint64 // at which it started
	cgroups []string
	args    string
}

// guestProcesses returns the guest's own view of its processes.
func guestProcesses(t *testing.T, g *qmptest.Guest) map[int32]guestProcess {
	t.Helper()
	stat := regexp.MustCompile(`^(\d+) \((.*)\) (\S) (\d+) (?:\S+ ){4}(\d+) (?:\S+ ){12}(\d+)`)
	inode := regexp.MustCompile(`\[(\d+)\]$`)
	out := make(map[int32]guestProcess)
	var p guestProcess
	// The script's lines reach the guest's shell as one.
	text := g.Run(t, strings.ReplaceAll(strings.ReplaceAll(listScript, "do\n", "do "), "\n", "; "))
	for line := range strings.Lines(text) {
		key, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		key, rest, tabbed := strings.Cut(key, ":")
		if tabbed {
			value = rest + " " + value
		}
		fields := strings.Fields(value)
		number := func(i int) uint64 {
			if i >= len(fields) {
				return 0
			}
			v, err := strconv.ParseUint(fields[i], 10, 64)
			if err != nil {
				t.Fatalf("parse %q: %v", line, err)
			}
			return v
		}
		ns := func() uint32 {
			m := inode.FindStringSubmatch(value)
			if m == nil {
				return 0
			}
			v, _ := strconv.ParseUint(m[1], 10, 32)
			return uint32(v)
		}
		switch key {
		case "stat":
			m := stat.FindStringSubmatch(value)
			if m == nil {
				t.Fatalf("parse %q", line)
			}
			pid, _ := strconv.Atoi(m[1])
			ppid, _ := strconv.Atoi(m[4])
			flags, _ := strconv.ParseUint(m[5], 10, 64)
			p = guestProcess{Process: Process{PID: int32(pid), Parent: int32(ppid), State: m[3][0], Comm: ownName(m[2]), KernelThread: flags&kernelThread != 0}}
			p.ticks, _ = strconv.ParseUint(m[6], 10, 64)
		case "Uid":
			p.UID, p.EUID = uint32(number(0)), uint32(number(1))
		case "Gid":
			p.GID = uint32(number(0))
		case "NSpid":
			p.NamespacePID = int32(number(len(fields) - 1))
		case "exe":
			p.Exe.Path, p.Exe.Deleted = strings.CutSuffix(value, " (deleted)")
			p.Exe.Memory = strings.HasPrefix(value, "/memfd:")
		case "pid_ns":
			p.PIDNamespace = ns()
		case "mnt_ns":
			p.MountNamespace = ns()
		case "cgroup":
			parts := strings.SplitN(value, ":", 3)
			p.cgroups = append(p.cgroups, parts[2])
		case "args":
			raw, err := base64.StdEncoding.DecodeString(value)
			if err != nil {
				t.Fatalf("parse %q: %v", line, err)
			}
			p.args = string(raw)
		case "thread":
			m := stat.FindStringSubmatch(value)
			if m == nil {
				t.Fatalf("parse %q", line)
			}
			tid, _ := strconv.Atoi(m[1])
			p.Threads = append(p.Threads, Thread{TID: int32(tid), Comm: ownName(m[2]), State: m[3][0]})
		case "end":
			out[p.PID] = p
		}
	}
	return out
}

// same returns how a process differs from what the guest says of it; empty: it does not.
// States are compared apart.
func same(p Process, args string, want guestProcess) string {
	const tick = uint64(time.Second) / 100
	var diff []string
	differ := func(name string, got, want any) {
		if got != want {
			diff = append(diff, fmt.Sprintf("%s %v, want %v", name, got, want))
		}
	}
	differ("pid", p.PID, want.PID)
	differ("parent", p.Parent, want.Parent)
	differ("comm", p.Comm, want.Comm)
	differ("kernel thread", p.KernelThread, want.KernelThread)
	differ("start", uint64(p.Start)/tick, want.ticks)
	differ("uid", p.UID, want.UID)
	differ("gid", p.GID, want.GID)
	differ("euid", p.EUID, want.EUID)
	differ("exe", p.Exe, want.Exe)
	differ("pid in its namespace", p.NamespacePID, want.NamespacePID)
	differ("pid namespace", p.PIDNamespace, want.PIDNamespace)
	differ("mount namespace", p.MountNamespace, want.MountNamespace)
	differ("arguments", args, want.args)
	if !slices.Contains(want.cgroups, p.Cgroup) {
		differ("cgroup", p.Cgroup, fmt.Sprint(want.cgroups))
	}
	names := func(threads []Thread) string {
		var out []string
		for _, t := range threads {
			out = append(out, fmt.Sprintf("%d %s", t.TID, t.Comm))
		}
		slices.Sort(out)
		return strings.Join(out, ",")
	}
	differ("threads", names(p.Threads), names(want.Threads))
	return strings.Join(diff, "; ")
}

func compareProcesses(t *testing.T, g *qmptest.Guest, mem *qmp.Memory, l *Layout) {
	before := guestProcesses(t, g)
	started := time.Now()
	processes, err := l.Processes(t.Context(), mem)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d processes in %v", len(processes), time.Since(started))
	arguments := make(map[int32]string)
	for i := range processes {
		args, whole, err := l.Arguments(mem, &processes[i])
		if err != nil || !whole {
			t.Errorf("arguments of %+v: %v, whole %v", processes[i], err, whole)
		}
		if len(args) > 0 {
			arguments[processes[i].PID] = strings.Join(args, "\x00") + "\x00"
		}
	}
	after := guestProcesses(t, g)

	found := make(map[int32]Process)
	for _, p := range processes {
		found[p.PID] = p
		if len(p.Unknown) > 0 {
			t.Errorf("process %d: unknown %v", p.PID, p.Unknown)
		}
		a, inBefore := before[p.PID]
		b, inAfter := after[p.PID]
		first, second := same(p, arguments[p.PID], a), same(p, arguments[p.PID], b)
		if (!inBefore || first != "") && (!inAfter || second != "") {
			t.Errorf("process %+v: %s; and later: %s", p, first, second)
		}
		// The guest lists while others run for a moment, and init runs what the test asks for.
		if inBefore && inAfter && !p.KernelThread && p.PID != 1 && a.State == b.State && p.State != a.State {
			t.Errorf("process %d %q is in state %c, the guest says %c", p.PID, p.Comm, p.State, a.State)
		}
	}
	for pid, p := range before {
		if q, ok := after[pid]; ok && q.ticks == p.ticks && found[pid].PID == 0 {
			t.Errorf("the guest's process %+v was not found", p.Process)
		}
	}
	if len(processes) < 40 {
		t.Errorf("only %d processes", len(processes))
	}

	// What the comparison must not have missed for want of such a process.
	byArgs := func(want string) Process {
		t.Helper()
		for pid, args := range arguments {
			if strings.Contains(args, want) && !strings.Contains(args, "unshare") && found[pid].Comm != "sh" {
				return found[pid]
			}
		}
		t.Fatalf("no process with the arguments %q", want)
		return Process{}
	}
	own := found[1]
	if p := byArgs("1001"); p.NamespacePID != 1 || p.PIDNamespace == own.PIDNamespace || p.MountNamespace == own.MountNamespace {
		t.Errorf("process in namespaces of its own: %+v", p)
	}
	if p := byArgs("1002"); p.Exe != (Executable{Path: "/tmp/busybox-gone", Deleted: true}) {
		t.Errorf("process whose program was deleted: %+v", p)
	}
	if p := byArgs("1003"); p.Exe != (Executable{Path: "/tmp/mnt/d/busybox"}) {
		t.Errorf("process with a program in another mount: %+v", p)
	}
	if p := byArgs("1004"); p.Exe != (Executable{Path: "/memfd:a/b", Deleted: true, Memory: true}) {
		t.Errorf("process with a program in memory: %+v", p)
	}
	if p := byArgs("1006"); p.Cgroup != "/system.slice/docker-"+dockerID+".scope/sub" || p.Container != (container.Container{Runtime: "docker", ID: dockerID}) {
		t.Errorf("process in a control group of docker's: %+v", p)
	}
	if p := byArgs("1007"); p.Cgroup != "/libpod_parent/libpod-"+podmanID || p.Container != (container.Container{Runtime: "podman", ID: podmanID}) {
		t.Errorf("process in a control group of version 1: %+v", p)
	}
	if p := byArgs("program\x00ids"); p.UID != 1000 || p.EUID != 2000 || p.GID != 1001 {
		t.Errorf("process with ids of its own: %+v", p)
	}
	if p := byArgs("program\x00threads"); len(p.Threads) != 3 || p.Threads[1].Comm != "second" {
		t.Errorf("process with threads: %+v", p)
	}
	zombies, kernelThreads := 0, 0
	for _, p := range processes {
		if p.State == 'Z' {
			zombies++
		}
		if p.KernelThread {
			kernelThreads++
		}
	}
	if zombies == 0 || kernelThreads < 20 || own.Exe.Path != "/bin/busybox" && own.Exe.Path != "/usr/bin/busybox" {
		t.Errorf("%d zombies, %d kernel threads, init is %+v", zombies, kernelThreads, own)
	}
}

// slowProcesses reads through libvirt, where each read takes milliseconds.
func slowProcesses(t *testing.T, g *qmptest.Guest, l *Layout) {
	mem := openMemory(t, g, 0)
	if mem.Path() != qmp.PathPeek {
		t.Fatalf("memory is read by %s", mem.Path())
	}
	started := time.Now()
	processes, err := l.Processes(t.Context(), mem)
	if err != nil || len(processes) < 40 {
		t.Fatalf("%d processes, %v", len(processes), err)
	}
	t.Logf("%d processes in %v", len(processes), time.Since(started))
	for _, p := range processes {
		if len(p.Unknown) > 0 {
			t.Errorf("process %d: unknown %v", p.PID, p.Unknown)
		}
	}
	started = time.Now()
	records := readLog(t, mem, l)
	t.Logf("%d messages in %v", len(records), time.Since(started))
}

// busyProcesses lists the processes of a guest that starts and ends them all the time.
func busyProcesses(t *testing.T, g *qmptest.Guest, mem *qmp.Memory, l *Layout) {
	// Of forks alone, and of programs that replace each other.
	g.Run(t, `echo 'while test -e /tmp/busy; do (:); (exec /bin/true); done' >/tmp/loop; touch /tmp/busy; for i in 1 2; do sh /tmp/loop & done`)
	stable := make(map[int32]Process)
	listings, failed, unknown := 0, 0, 0
	for end := time.Now().Add(3 * time.Second); time.Now().Before(end); {
		listings++
		processes, err := l.Processes(t.Context(), mem)
		if err != nil {
			t.Logf("listing %d: %v", listings, err)
			failed++
			continue
		}
		seen := make(map[int32]bool)
		for _, p := range processes {
			if seen[p.PID] {
				t.Errorf("process %d is listed twice", p.PID)
			}
			seen[p.PID] = true
			if len(p.Unknown) > 0 {
				unknown++
			}
			if p.Exe.Path != "" && !regexp.MustCompile(`^(/usr)?/bin/busybox$|^/tmp/|^/memfd:a/b$|^/init$`).MatchString(p.Exe.Path) {
				t.Errorf("process %+v", p)
			}
			if listings == 1 && !strings.HasPrefix(p.Comm, "sh") && p.Comm != "true" {
				stable[p.PID] = p
			}
		}
		for pid, p := range stable {
			if p.State != 'R' && !p.KernelThread && !seen[pid] {
				t.Errorf("listing %d has no process %d %q", listings, pid, p.Comm)
			}
		}
	}
	g.Run(t, "rm /tmp/busy; sleep 1")
	t.Logf("%d listings, %d failed, %d processes with something unknown", listings, failed, unknown)
	if failed*4 > listings {
		t.Errorf("%d of %d listings failed", failed, listings)
	}
}

// record is a line of the guest's /dev/kmsg.
func kmsgLine(rec LogRecord) string {
	var text strings.Builder
	for i := range len(rec.Text) {
		if c := rec.Text[i]; c < ' ' || c >= 127 || c == '\\' {
			fmt.Fprintf(&text, `\x%02x`, c)
		} else {
			text.WriteByte(c)
		}
	}
	return fmt.Sprintf("%d,%d,%d;%s", rec.Facility<<3|rec.Level, rec.Seq, rec.Time.Microseconds(), text.String())
}

// guestKmsg returns the lines of the guest's /dev/kmsg without what belongs to drivers.
func guestKmsg(t *testing.T, g *qmptest.Guest) []string {
	t.Helper()
	head := regexp.MustCompile(`^(\d+,\d+,\d+),[^;]*;`)
	var out []string
	for line := range strings.Lines(g.Run(t, "timeout 2 cat /dev/kmsg; true")) {
		if head.MatchString(line) {
			out = append(out, head.ReplaceAllString(strings.TrimSuffix(line, "\n"), "$1;"))
		}
	}
	return out
}

func readLog(t *testing.T, mem io.ReaderAt, l *Layout) []LogRecord {
	t.Helper()
	var out []LogRecord
	for rec, err := range l.KernelLog(t.Context(), mem) {
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, rec)
	}
	return out
}

func compareLog(t *testing.T, g *qmptest.Guest, mem *qmp.Memory, l *Layout) {
	g.Run(t, "dmesg -n 1") // the console is slow
	g.Run(t, `echo '<28>of a daemon' >/dev/kmsg; printf 'two\nlines' >/dev/kmsg; printf 'escape \033[31m \\ \303\251' >/dev/kmsg; echo >/dev/kmsg; echo "<2>critical" >/dev/kmsg`)
	started := time.Now()
	records := readLog(t, mem, l)
	t.Logf("%d messages in %v", len(records), time.Since(started))

	// dmesg(1), line by line.
	var lines []string
	for _, rec := range records {
		for line := range strings.SplitSeq(rec.Text, "\n") {
			lines = append(lines, fmt.Sprintf("<%d>[%5d.%06d] %s", rec.Facility<<3|rec.Level, rec.Time/time.Second, rec.Time%time.Second/time.Microsecond, line))
		}
	}
	compareLines(t, "dmesg", lines, strings.Split(strings.TrimSuffix(g.Run(t, "dmesg -r"), "\n"), "\n"))
	compareKmsg(t, g, records)
	if records[0].Seq != 0 || !strings.HasPrefix(records[0].Text, "Linux version "+l.Release) {
		t.Errorf("the first message is %+v", records[0])
	}

	// A log that has wrapped around.
	g.Run(t, `i=0; while [ $i -lt 4000 ]; do echo "message $i of many that fill the log $((i * i * i))" >/dev/kmsg; i=$((i + 1)); done`)
	records = readLog(t, mem, l)
	if records[0].Seq == 0 {
		t.Error("the log did not wrap")
	}
	compareKmsg(t, g, records)

	// A log that is written meanwhile: nothing torn.
	g.Run(t, `touch /tmp/busy; sh -c 'i=0; while test -e /tmp/busy; do echo "torn $i $i $i $i" >/dev/kmsg; i=$((i+1)); done' &`)
	torn := regexp.MustCompile(`^torn (\d+) (\d+) (\d+) (\d+)$`)
	written := 0
	for end := time.Now().Add(2 * time.Second); time.Now().Before(end); {
		var last uint64
		for _, rec := range readLog(t, mem, l) {
			if rec.Seq <= last && last != 0 {
				t.Errorf("message %d after %d", rec.Seq, last)
			}
			last = rec.Seq
			if !strings.HasPrefix(rec.Text, "torn") {
				continue
			}
			written++
			if m := torn.FindStringSubmatch(rec.Text); m == nil || m[1] != m[2] || m[2] != m[3] || m[3] != m[4] {
				t.Errorf("message %+v", rec)
			}
		}
	}
	g.Run(t, "rm /tmp/busy")
	if written == 0 {
		t.Error("nothing was written meanwhile")
	}
}

func compareKmsg(t *testing.T, g *qmptest.Guest, records []LogRecord) {
	t.Helper()
	var lines []string
	for _, rec := range records {
		lines = append(lines, kmsgLine(rec))
	}
	compareLines(t, "/dev/kmsg", lines, guestKmsg(t, g))
}

func compareLines(t *testing.T, what string, got, want []string) {
	t.Helper()
	for i := range max(len(got), len(want)) {
		if i >= len(got) || i >= len(want) || got[i] != want[i] {
			t.Errorf("%s: line %d of %d (guest: %d): %q, the guest says %q", what, i, len(got), len(want), slices.Concat(got, []string{""})[min(i, len(got))], slices.Concat(want, []string{""})[min(i, len(want))])
			return
		}
	}
}

// hostileProcesses has a guest lie about one thing of a process at a time.
func hostileProcesses(t *testing.T, mem *qmp.Memory, l *Layout) {
	processes, err := l.Processes(t.Context(), mem)
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(processes, func(p Process) bool { return p.Exe.Path == "/tmp/mnt/d/busybox" })
	if i < 0 {
		t.Fatal("the process to lie about is not listed")
	}
	p := processes[i]
	sp := newSpace(mem, l.PageTable, l.Levels)
	f := &follower{l: l, sp: sp}
	at := func(va uint64, name string) uint64 { return va + uint64(f.member(name).Offset) }
	file := f.pointer(p.mm, "mm_struct.exe_file")
	path := at(file, "file.f_path")
	dentry, vfsmount := f.pointer(path, "path.dentry"), f.pointer(path, "path.mnt")
	mount := vfsmount - uint64(f.member("mount.mnt").Offset)
	cred := f.pointer(p.Addr, "task_struct.real_cred")
	pid := f.pointer(p.Addr, "task_struct.thread_pid")
	set := f.pointer(p.Addr, "task_struct.cgroups")
	node := f.pointer(f.pointer(set, "css_set.dfl_cgrp"), "cgroup.kn")
	signal := f.sp
	signalVA, err := signal.uint64(p.Addr + uint64(l.tasks.signal))
	if err != nil || f.err != nil {
		t.Fatal(err, f.err)
	}
	word := func(v uint64) []byte { return binary.LittleEndian.AppendUint64(nil, v) }
	const nowhere, user = 0xfffffffffff00000, 0x400000
	for name, tt := range map[string]struct {
		va    uint64
		patch []byte
		field Field
		want  string
	}{
		"parent nowhere":           {at(p.Addr, "task_struct.real_parent"), word(nowhere), FieldParent, "not mapped"},
		"parent in user space":     {at(p.Addr, "task_struct.real_parent"), word(user), FieldParent, "no kernel address"},
		"credentials nowhere":      {at(p.Addr, "task_struct.real_cred"), word(nowhere), FieldCredentials, "read cred.uid"},
		"file in user space":       {at(p.mm, "mm_struct.exe_file"), word(user), FieldExe, "path.mnt"},
		"mm nowhere":               {at(p.Addr, "task_struct.mm"), word(nowhere), FieldExe, "mm_struct.exe_file"},
		"directory of itself":      {at(f.pointer(dentry, "dentry.d_parent"), "dentry.d_parent"), word(dentry), FieldExe, "longer than 4096 bytes"},
		"directory without a name": {at(at(dentry, "dentry.d_name"), "qstr.len"), []byte{0, 0, 0, 0}, FieldExe, `called ""`},
		"long name":                {at(at(dentry, "dentry.d_name"), "qstr.len"), []byte{0xff, 0xff, 0xff, 0xff}, FieldExe, "has 4294967295 bytes"},
		"name nowhere":             {at(at(dentry, "dentry.d_name"), "qstr.name"), word(nowhere), FieldExe, "name of a dentry"},
		"mount in a loop":          {at(mount, "mount.mnt_mountpoint"), word(f.pointer(vfsmount, "vfsmount.mnt_root")), FieldExe, ""},
		"mounted on what it holds": {at(mount, "mount.mnt_mountpoint"), word(dentry), FieldExe, "leaves its mount"},
		"pid in many namespaces":   {at(pid, "pid.level"), []byte{0xff, 0xff, 0, 0}, FieldPIDNamespace, "65535 namespaces deep"},
		"large pid":                {at(at(pid, "pid.numbers"), "upid.nr"), []byte{0xff, 0xff, 0xff, 0xff}, FieldPIDNamespace, "is 4294967295"},
		"group of itself":          {at(node, "kernfs_node.__parent"), word(node), FieldCgroup, "called"},
		"groups in a loop":         {f.pointer(at(set, "css_set.cgrp_links"), "list_head.next"), word(f.pointer(at(set, "css_set.cgrp_links"), "list_head.next")), FieldCgroup, "more than 64 hierarchies"},
		"groups nowhere":           {at(set, "css_set.cgrp_links"), word(nowhere), FieldCgroup, "cgrp_cset_link.cgrp"},
		"group nowhere":            {at(set, "css_set.dfl_cgrp"), word(nowhere), FieldCgroup, "cgroup.kn"},
		"threads in a loop":        {signalVA + uint64(l.tasks.signalThreads), word(p.Addr + uint64(l.tasks.threadNode)), FieldThreads, ""},
		"threads of another":       {signalVA + uint64(l.tasks.signalThreads), word(processes[0].Addr + uint64(l.tasks.threadNode)), FieldThreads, "of process 1"},
		"threads nowhere":          {signalVA + uint64(l.tasks.signalThreads), word(nowhere), FieldThreads, "list threads"},
		"start after the end":      {at(p.Addr, "task_struct.start_boottime"), word(1 << 63), FieldStart, "9223372036854775808"},
		"credentials unaligned":    {at(p.Addr, "task_struct.real_cred"), word(cred + 1), "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			pa, _, err := sp.translate(tt.va)
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), hostileLimit)
			defer cancel()
			got, err := l.Processes(ctx, patched{mem, map[uint64][]byte{pa: tt.patch}})
			if err != nil {
				t.Fatal(err)
			}
			i := slices.IndexFunc(got, func(q Process) bool { return q.PID == p.PID })
			if i < 0 {
				t.Fatal("the process is not listed")
			}
			// The others suffer only where they share the lie.
			for field, err := range got[i].Unknown {
				if field != tt.field {
					t.Errorf("%s is unknown: %v", field, err)
				}
			}
			switch why := got[i].Unknown[tt.field]; {
			case tt.want == "":
			case why == nil || !strings.Contains(why.Error(), tt.want):
				t.Errorf("%s: %v; want %q", tt.field, why, tt.want)
			}
		})
	}

	t.Run("a member that the kernel lacks", func(t *testing.T) {
		older := *l
		older.members = maps.Clone(l.members)
		delete(older.members, "cgroup.kn")
		delete(older.members, "task_struct.start_boottime")
		got, err := older.Processes(t.Context(), mem)
		if err != nil {
			t.Fatal(err)
		}
		for _, q := range got {
			if len(q.Unknown) != 2 || q.Unknown[FieldCgroup] == nil || q.Unknown[FieldStart] == nil || q.Comm == "" {
				t.Errorf("process %+v", q)
			}
		}
	})
	t.Run("a process list in a loop", func(t *testing.T) {
		at := processes[3].Addr + uint64(l.tasks.tasks)
		pa, _, err := sp.translate(at)
		if err != nil {
			t.Fatal(err)
		}
		loop := patched{mem, map[uint64][]byte{pa: word(processes[1].Addr + uint64(l.tasks.tasks))}}
		if _, err := l.Processes(t.Context(), loop); err == nil || !strings.Contains(err.Error(), "no end") {
			t.Errorf("error %v; want one about a list without end", err)
		}
	})
	t.Run("arguments", func(t *testing.T) {
		for name, tt := range map[string]struct {
			va    uint64
			patch []byte
			want  string
		}{
			"backwards":     {at(p.mm, "mm_struct.arg_end"), word(1), "they lie from"},
			"in the kernel": {at(p.mm, "mm_struct.arg_end"), word(l.InitTask), "they lie from"},
			"table nowhere": {at(p.mm, "mm_struct.pgd"), word(nowhere), "not mapped"},
			"not mapped":    {at(p.mm, "mm_struct.arg_start"), word(pageSize), "not mapped"},
			"of another":    {p.Addr + uint64(l.TaskTGID), []byte{1, 0, 0, 0}, "changed"},
		} {
			pa, _, err := sp.translate(tt.va)
			if err != nil {
				t.Fatal(err)
			}
			_, _, err = l.Arguments(patched{mem, map[uint64][]byte{pa: tt.patch}}, &p)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%s: %v; want %q", name, err, tt.want)
			}
		}
	})
	t.Run("time is up", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := l.Processes(ctx, mem); !errors.Is(err, context.Canceled) {
			t.Errorf("error %v; want context.Canceled", err)
		}
	})
}

// hostileLog has a guest lie about its log.
func hostileLog(t *testing.T, mem *qmp.Memory, l *Layout) {
	prb, _ := l.Symbol("prb")
	r, err := l.openLog(mem, prb.Addr)
	if err != nil {
		t.Fatal(err)
	}
	ring, err := r.sp.uint64(prb.Addr)
	if err != nil {
		t.Fatal(err)
	}
	member := func(va uint64, names ...string) uint64 {
		for _, n := range names {
			va += uint64(l.members[n].Offset)
		}
		return va
	}
	desc := func(id uint64) uint64 { return r.descs + id%r.count*r.descSize }
	newest := r.head - 1
	seq, err := r.sp.uint64(member(r.infos+newest%r.count*r.infoSize, "printk_info.seq"))
	if err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(readLog(t, mem, l), func(rec LogRecord) bool { return rec.Seq == seq }) {
		t.Fatalf("message %d, about which to lie, is not read", seq)
	}
	word := func(v uint64) []byte { return binary.LittleEndian.AppendUint64(nil, v) }
	const (
		nowhere = 0xfffffffffff00000
		all     = "all messages"
	)
	for name, tt := range map[string]struct {
		va    uint64
		patch []byte
		want  string // the error; "": all messages but the newest
	}{
		"ring nowhere":        {prb.Addr, word(nowhere), "not mapped"},
		"ring in user space":  {prb.Addr, word(0x1000), "no kernel address"},
		"many descriptors":    {member(ring, "printk_ringbuffer.desc_ring", "prb_desc_ring.count_bits"), []byte{63, 0, 0, 0}, "2^63 messages"},
		"few descriptors":     {member(ring, "printk_ringbuffer.desc_ring", "prb_desc_ring.count_bits"), []byte{0, 0, 0, 0}, "its descriptor"},
		"large text":          {member(ring, "printk_ringbuffer.text_data_ring", "prb_data_ring.size_bits"), []byte{64, 0, 0, 0}, "2^64 bytes"},
		"descriptors nowhere": {member(ring, "printk_ringbuffer.desc_ring", "prb_desc_ring.descs"), word(nowhere), "read prb_desc.state_var"},
		"infos nowhere":       {member(ring, "printk_ringbuffer.desc_ring", "prb_desc_ring.infos"), word(nowhere), "read descriptions"},
		"text nowhere":        {member(ring, "printk_ringbuffer.text_data_ring", "prb_data_ring.data"), word(nowhere), "read message"},
		"tail after head":     {member(ring, "printk_ringbuffer.desc_ring", "prb_desc_ring.tail_id"), word(r.head + 5), all},
		"tail of long ago":    {member(ring, "printk_ringbuffer.desc_ring", "prb_desc_ring.tail_id"), word(r.tail - r.count), all},
		"another's head":      {member(ring, "printk_ringbuffer.desc_ring", "prb_desc_ring.head_id"), word(r.head + 5), "its descriptor"},
		"block of no size":    {member(desc(newest), "prb_desc.text_blk_lpos"), append(word(64), word(64)...), ""},
		"block backwards":     {member(desc(newest), "prb_desc.text_blk_lpos"), append(word(640), word(64)...), ""},
		"block of everything": {member(desc(newest), "prb_desc.text_blk_lpos"), append(word(0), word(1<<40)...), ""},
		"block of another":    {member(desc(newest), "prb_desc.text_blk_lpos"), append(word(r.dataLen*8), word(r.dataLen*8+64)...), ""},
		"unaligned block":     {member(desc(newest), "prb_desc.text_blk_lpos"), append(word(66), word(82)...), ""},
		"another's state":     {member(desc(newest), "prb_desc.state_var"), word(r.head | stateFinalized<<stateShift), ""},
		"unfinished":          {member(desc(newest), "prb_desc.state_var"), word(newest | 1<<stateShift), ""},
	} {
		t.Run(name, func(t *testing.T) {
			pa, _, err := r.sp.translate(tt.va)
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), hostileLimit)
			defer cancel()
			var last error
			n, newest := 0, false
			for rec, err := range l.KernelLog(ctx, patched{mem, map[uint64][]byte{pa: tt.patch}}) {
				if last = err; err != nil {
					break
				}
				n++
				newest = newest || rec.Seq == seq
			}
			switch {
			case tt.want == "" || tt.want == all:
				if last != nil || n == 0 || newest != (tt.want == all) {
					t.Errorf("%d messages, the newest among them: %v, error %v", n, newest, last)
				}
			case (last == nil || !strings.Contains(last.Error(), tt.want)):
				t.Errorf("error %v; want %q", last, tt.want)
			}
		})
	}
}

// touched is memory that notes which words were read.
type touched struct {
	io.ReaderAt
	pages map[int64]bool
}

func (m touched) ReadAt(p []byte, off int64) (int, error) {
	for at := off &^ (pageSize - 1); at < off+int64(len(p)); at += pageSize {
		m.pages[at] = true
	}
	return m.ReaderAt.ReadAt(p, off)
}

// randomCorruption changes words at random in what the readers read. Whatever they say then,
// they say it soon.
func randomCorruption(t *testing.T, mem *qmp.Memory, l *Layout) {
	seen := touched{mem, make(map[int64]bool)}
	if _, err := l.Processes(t.Context(), seen); err != nil {
		t.Fatal(err)
	}
	readLog(t, seen, l)
	pages := slices.Sorted(maps.Keys(seen.pages))
	const rounds, lies, seed = 40, 64, 4
	random := rand.New(rand.NewPCG(seed, seed))
	failed := 0
	for range rounds {
		patches := make(map[uint64][]byte)
		for range lies {
			at := uint64(pages[random.IntN(len(pages))]) + uint64(random.IntN(pageSize/8))*8
			v := random.Uint64()
			if random.IntN(2) == 0 {
				// An address that leads somewhere.
				v = l.DirectMap + uint64(pages[random.IntN(len(pages))]) + uint64(random.IntN(pageSize))
			}
			patches[at] = binary.LittleEndian.AppendUint64(nil, v)
		}
		ctx, cancel := context.WithTimeout(t.Context(), hostileLimit)
		lying := patched{mem, patches}
		processes, err := l.Processes(ctx, lying)
		if err != nil {
			failed++
		}
		for i := range processes {
			_, _, _ = l.Arguments(lying, &processes[i])
		}
		for _, err := range l.KernelLog(ctx, lying) {
			if err != nil {
				break
			}
		}
		if ctx.Err() != nil {
			t.Error("a corrupt guest kept the readers busy")
		}
		cancel()
	}
	t.Logf("%d of %d listings of %d pages failed", failed, rounds, len(pages))
}

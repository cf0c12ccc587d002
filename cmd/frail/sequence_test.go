// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"frail/api"
	"frail/bpf"
	"frail/tracer"
	"frail/tracer/capture"
	"frail/tracer/ph"
)

// frailCmd runs the command and returns what it prints.
func frailCmd(t *testing.T, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	var out, errs bytes.Buffer
	err = run(t.Context(), args, &out, &errs)
	return out.String(), errs.String(), err
}

// captureOf writes a capture of a program that goes round, then is attacked.
func captureOf(t *testing.T, rounds, attack int) string {
	t.Helper()
	var out bytes.Buffer
	w, err := capture.NewWriter(&out, capture.Header{Domain: "guest", UUID: "u", Started: time.Unix(1, 0), RealtimeOffset: 1e18})
	if err != nil {
		t.Fatal(err)
	}
	ev := bpf.Event{
		Vm: 3, Kind: bpf.EventEnter, Insn: bpf.InsnSyscall64, Flags: bpf.EventIdentity | bpf.EventNr,
		Task: 1 << 12, Cr3: 1 << 12, Pid: 40, Tgid: 40, Who: 1, Comm: [16]uint8{'s', 'e', 'r', 'v', 'e', 'r'},
	}
	p := bpf.Process{Head: ev, Known: bpf.ProcessExe}
	copy(p.Exe[:], "/srv/server")
	if err := w.Process(&p); err != nil {
		t.Fatal(err)
	}
	add := func(nr int64) {
		ev.Nr = nr
		ev.Time += 1000
		if err := w.Event(&ev); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 3 * rounds {
		add([]int64{0, 1, 3}[i%3])
	}
	for i := range attack {
		add([]int64{59, 41, 42, 257}[i%4])
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "guest.cap")
	if err := os.WriteFile(path, out.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestReplayCapture(t *testing.T) {
	path := captureOf(t, 300, 30)
	dir := t.TempDir()
	out, note, err := frailCmd(t, "replay", path, "--normal-wait", "0s", "--json", "--export", dir)
	if err != nil {
		t.Fatal(err)
	}
	var alert struct {
		Kind, Domain, Executable string
		PID                      int
		Calls                    []string
		LFC                      int
	}
	first, _, _ := strings.Cut(out, "\n")
	if err := json.Unmarshal([]byte(first), &alert); err != nil {
		t.Fatalf("%v: %q", err, out)
	}
	if alert.Kind != "attack" || alert.Domain != "guest" || alert.Executable != "/srv/server" || alert.PID != 40 || alert.LFC != 13 ||
		len(alert.Calls) != ph.Window || alert.Calls[0] != "execve" {
		t.Errorf("alert %+v", alert)
	}
	if !strings.Contains(note, "930 calls, 1 alerts") {
		t.Errorf("closing note %q", note)
	}

	// What was exported is a profile like any other.
	file := filepath.Join(dir, "srv_server.profile")
	out, _, err = frailCmd(t, "profile", "show", file)
	if err != nil || !strings.Contains(out, "executable=/srv/server\n") || !strings.Contains(out, "normal=true\n") {
		t.Errorf("show: %v\n%s", err, out)
	}
	out, _, err = frailCmd(t, "profile", "seccomp", file)
	if err != nil || !strings.Contains(out, `"SCMP_ACT_ERRNO"`) || !strings.Contains(out, `"read"`) {
		t.Errorf("seccomp: %v\n%s", err, out)
	}
	svg := filepath.Join(dir, "server.svg")
	if _, _, err = frailCmd(t, "profile", "show", file, "--plot", svg); err != nil {
		t.Error(err)
	}
	text, err := os.ReadFile(svg)
	if err != nil {
		t.Fatal(err)
	}
	if err := xml.Unmarshal(text, new(struct{})); err != nil {
		t.Errorf("plot: %v", err)
	}

	// With it nothing has to be learnt first.
	out, _, err = frailCmd(t, "replay", captureOf(t, 5, 30), "--profile", file, "--score")
	if err != nil || !strings.Contains(out, "attack") || !strings.Contains(out, " guest.cap") {
		t.Errorf("replay with a profile: %v\n%s", err, out)
	}
	// Without, a guest that is only learnt gives no alert.
	out, _, err = frailCmd(t, "replay", captureOf(t, 5, 30))
	if err != nil || out != "" {
		t.Errorf("replay without a profile: %v\n%s", err, out)
	}
}

// What comes through a pipe is judged by exact sequences, as they were made before.
func TestReplayStide(t *testing.T) {
	live, err := os.Open(captureOf(t, 300, 30))
	if err != nil {
		t.Fatal(err)
	}
	stdin := os.Stdin
	defer func() { os.Stdin = stdin; live.Close() }()
	os.Stdin = live
	out, note, err := frailCmd(t, "replay", "-", "--train", captureOf(t, 10, 0), "--stide", "6,20,12", "--tolerize", "127", "--anomaly", "1000")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(out, ` guest stide: "/srv/server"[40/40] comm="server" misses=13: `) || !strings.Contains(note, ", 1 alerts") {
		t.Errorf("got %q, note %q", out, note)
	}
}

func TestProfileMergeAndDiff(t *testing.T) {
	dir := t.TempDir()
	var files []string
	for i, attack := range []int{0, 30} {
		to := filepath.Join(dir, fmt.Sprint(i))
		if _, _, err := frailCmd(t, "replay", captureOf(t, 3, attack), "--export", to); err != nil {
			t.Fatal(err)
		}
		files = append(files, filepath.Join(to, "srv_server.profile"))
	}
	out, _, err := frailCmd(t, "profile", "diff", files[0], files[1])
	if err != nil || !strings.Contains(out, "execve") {
		t.Errorf("diff: %v\n%s", err, out)
	}
	merged := filepath.Join(dir, "merged.profile")
	if _, _, err := frailCmd(t, "profile", "merge", files[0], files[1], merged); err != nil {
		t.Fatal(err)
	}
	// The second has all that the first has.
	out, _, err = frailCmd(t, "profile", "diff", merged, files[1])
	if err != nil || strings.Contains(out, "execve") {
		t.Errorf("diff with the merged: %v\n%s", err, out)
	}
	if _, _, err := frailCmd(t, "profile", "export", merged, filepath.Join(dir, "copy.profile")); err != nil {
		t.Error(err)
	}
}

func TestSequenceCommandErrors(t *testing.T) {
	for _, tc := range []struct {
		name string
		args []string
		want string
	}{
		{"nothing to replay", []string{"replay"}, "nothing to replay"},
		{"no capture", []string{"replay", os.DevNull}, "not a capture"},
		{"bad wait", []string{"replay", "x", "--normal-wait", "7"}, "want a duration"},
		{"bad stide", []string{"replay", "x", "--stide", "6"}, "want WINDOW,FRAME"},
		{"a stide limit that is no limit", []string{"replay", "x", "--stide", "6,20,20"}, "below the frame"},
		{"stide out of range", []string{"replay", "x", "--stide", "1,20"}, "stide window of 1"},
		{"too tolerant", []string{"replay", "x", "--tolerize", "128"}, "at most 127"},
		{"no training files", []string{"replay", "--unm", "x", "--train", "/nonexistent/*"}, "no such file"},
		{"a profile without domain", []string{"profile", "show", "sh"}, "want DOMAIN/EXECUTABLE"},
		{"a bad escape", []string{"profile", "show", `vm/\q`}, "escape"},
		{"a file that is no profile", []string{"profile", "show", "/dev/null"}, "not a profile"},
		{"a file is not changed", []string{"profile", "normalize", "./x"}, "import it"},
		{"capture without file", []string{"capture", "vm"}, "output"},
		{"top too fast", []string{"top", "--interval", "1ms"}, "at least 100ms"},
		{"no daemon", []string{"--socket", "/nonexistent/sock", "alerts"}, "fraild does not run"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if _, _, err := frailCmd(t, tc.args...); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want one with %q", err, tc.want)
			}
		})
	}
}

func TestCount(t *testing.T) {
	c := newCounts()
	call := func(task uint64, nr int64, from, to uint64, ret int64) {
		ev := bpf.Event{Kind: bpf.EventEnter, Insn: bpf.InsnSyscall64, Flags: bpf.EventIdentity | bpf.EventNr, Task: task, Nr: nr, Time: from}
		_ = c.Event(&ev)
		if to != 0 {
			ev.Kind, ev.Insn, ev.Time, ev.Ret = bpf.EventExit, bpf.InsnSysret64, to, ret
			ev.Flags |= bpf.EventRet
			_ = c.Event(&ev)
		}
	}
	// deferred is a call whose return is told at the thread's next call, long after.
	deferred := func(insn uint16, nr int64, flags uint32, ret int64) {
		ev := bpf.Event{Kind: bpf.EventEnter, Insn: insn, Flags: bpf.EventIdentity | bpf.EventNr, Task: 3, Nr: nr, Time: 1}
		_ = c.Event(&ev)
		ev.Kind, ev.Time, ev.Ret = bpf.EventExit, 1e12, ret
		ev.Flags |= bpf.EventDeferred | flags
		_ = c.Event(&ev)
	}
	call(1, 0, 1000, 4001000, 10)
	call(1, 0, 5000000, 7000000, -11)
	call(2, 1, 0, 2000000, -4096) // no error number
	call(2, 231, 9000000, 0, 0)   // does not return
	deferred(bpf.InsnSyscall64, 1, bpf.EventRet, -9)
	deferred(bpf.InsnSyscall64, 1, bpf.EventRet, 7)
	deferred(bpf.InsnSyscall64, 1, 0, 0) // not known
	deferred(bpf.InsnInt80In64, 1, bpf.EventRet, 0xfffffffe)
	_ = c.Event(&bpf.Event{Kind: bpf.EventCoverage, Nr: -1, Args: [6]uint64{uint64(bpf.EntrySyscall), uint64(bpf.EntryInt80)}})
	_ = c.Event(&bpf.Event{Kind: bpf.EventCoverage, Nr: -1, Args: [6]uint64{uint64(bpf.EntrySyscall | bpf.EntryInt80), 0}})
	_ = c.Summary(tracer.Summary{Delivered: 7, Lost: tracer.Losses{RingFull: 2}})
	var out bytes.Buffer
	if err := c.write(&out); err != nil {
		t.Fatal(err)
	}
	want := `% time     seconds  usecs/call     calls    errors syscall
------ ----------- ----------- --------- --------- ----------------
 75.00    0.006000        3000         2         1 read
 25.00    0.002000        2000         4         1 write
  0.00    0.000000           0         1           exit_group
  0.00    0.000000           0         1         1 exit@32
------ ----------- ----------- --------- --------- ----------------
100.00    0.008000                     8         3 total
2 events were lost
calls by INT 0x80 were not seen all the time
`
	if out.String() != want {
		t.Errorf("got\n%s\nwant\n%s", out.String(), want)
	}
}

func TestTopScreen(t *testing.T) {
	ps := make([]process, 50)
	for i := range ps {
		ps[i] = process{domain: "guest", tgid: int32(i), comm: "c\x1b[2J", rate: 1, state: "normal"}
	}
	for _, size := range [][2]int{{24, 80}, {3, 10}, {1, 1}, {100, 200}} {
		text := string(screen(ps, size[0], size[1]))
		if strings.Contains(text, "\x1b[2J") {
			t.Error("a process's name reaches the terminal as it is")
		}
		if n := strings.Count(text, "\r\n") + 1; n > size[0] {
			t.Errorf("%d lines on a terminal of %d", n, size[0])
		}
		for _, line := range strings.Split(text, "\r\n") {
			for _, code := range []string{topOfScreen, clearLine, clearBelow, reverse, plain} {
				line = strings.ReplaceAll(line, code, "")
			}
			if n := len([]rune(line)); n > size[1] {
				t.Errorf("%d columns on a terminal of %d: %q", n, size[1], line)
			}
		}
	}
}

// An alert is the same after its way through the API as JSON.
func TestAlertMessage(t *testing.T) {
	m := &api.Alert{
		Kind: "attack", Executable: []byte("/bin/sh\x01"), Comm: []byte("sh"), Calls: []uint32{59, 0, uint32(ph.NoNumber)}, Miss: 3, Lfc: 13, MaxLfc: 14,
		Frame: []uint64{7, 1 << 63}, Pid: 3, Tgid: 2,
	}
	var out bytes.Buffer
	if err := writeAlert(&out, "guest", "u", time.Unix(0, 0), alertOf(m), false); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`attack: "/bin/sh\x01"[3/2] comm="sh" lfc=13 max=14`, "!- !read execve\n", "history=1..............3"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q lacks %q", out.String(), want)
		}
	}
}

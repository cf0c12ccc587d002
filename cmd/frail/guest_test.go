// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode"

	"frail/api"
	"frail/qmp/qmptest"
)

// frailQMP runs a command as a user does who has no libvirt and no fraild.
func frailQMP(t *testing.T, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var out, errOut bytes.Buffer
	err := run(ctx, append([]string{"--socket", "/nonexistent"}, args...), &out, &errOut)
	if err != nil {
		err = fmt.Errorf("%s", message(err))
	}
	return out.String(), err
}

// A guest of a QEMU without libvirt and fraild.
func TestGuestOfQEMU(t *testing.T) {
	kernel, initrd := qmptest.Files(t)
	dir := t.TempDir()
	socket, console := filepath.Join(dir, "own"), filepath.Join(dir, "console")
	p := qmptest.StartProcess(t, "-m", "256", "-kernel", kernel, "-initrd", initrd, "-append", "console=ttyS0 panic=-1 quiet",
		"-serial", "null", "-serial", "file:"+console, "-qmp", "unix:"+socket+",server=on,wait=off")

	eventually(t, func() error {
		_, err := os.Stat(socket)
		return err
	})
	if _, err := frailQMP(t, "ps", "--qmp", socket); err == nil || !strings.Contains(err.Error(), "not found in memory yet") {
		t.Errorf("before the first instruction: error %v", err)
	}
	q, err := (&guestOptions{qmp: socket}).dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if q.pid != p.PID {
		t.Errorf("QEMU's pid is %d, want %d", q.pid, p.PID)
	}
	if _, err := q.monitor.Run([]byte(`{"execute":"cont"}`)); err != nil {
		t.Fatal(err)
	}
	q.close()
	eventually(t, func() error {
		text, err := os.ReadFile(console)
		if err == nil && !bytes.Contains(text, []byte("ready")) {
			err = fmt.Errorf("the guest says %q", text)
		}
		return err
	})

	out, err := frailQMP(t, "ps", "--qmp", socket)
	if err != nil {
		t.Fatal(err)
	}
	checkTable(t, out)
	out, err = frailQMP(t, "layout", "--qmp", socket, "--json")
	if err != nil {
		t.Fatal(err)
	}
	checkLayout(t, out, "process_vm_readv")
	// A socket that QEMU inherited is its own as well; another process's memory is not
	// taken for the guest's.
	for pid, path := range map[int]string{0: "process_vm_readv", p.PID: "process_vm_readv", os.Getpid(): "pmemsave"} {
		out, err = frailQMP(t, "layout", "--qmp", p.Socket, "--pid", strconv.Itoa(pid), "--json")
		if err != nil {
			t.Fatal(err)
		}
		checkLayout(t, out, path)
	}
	out, err = frailQMP(t, "dmesg", "--qmp", socket)
	if err != nil || !strings.HasPrefix(out, "[    0.000000] Linux version ") {
		t.Errorf("dmesg: %v: %.200s", err, out)
	}

	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{"ps"}, "requires DOMAIN"},
		{[]string{"ps", "guest", "--qmp", socket}, "exclude each other"},
		{[]string{"ps", "guest", "--pid", "1"}, "--pid is for --qmp"},
		{[]string{"dmesg", "--qmp", socket, "--level", "loud"}, "no level 'loud'"},
		{[]string{"trace", "--qmp", socket, "--wait"}, "--wait is for domains"},
		{[]string{"trace", "guest", "--exits", "entry"}, "--exits is for --qmp"},
		{[]string{"trace", "--qmp", socket, "--pid", strconv.Itoa(os.Getpid())}, "is not shown to be this QEMU"},
		{[]string{"trace", "--qmp", socket}, "frail.ko is not loaded"},
		{[]string{"layout", "--qmp", filepath.Join(dir, "none")}, "connect to QMP socket"},
	} {
		if _, err := frailQMP(t, tt.args...); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%v: error %v, want %q", tt.args, err, tt.want)
		}
	}
}

// checkTable checks the table of frail ps of the lab's guest.
func checkTable(t *testing.T, out string) {
	t.Helper()
	lines := strings.Split(strings.TrimSpace(out), "\n")
	if header := strings.Fields(lines[0]); !slices.Equal(header, []string{"Pid", "Ppid", "Uid", "State", "Start", "Container", "Command"}) {
		t.Errorf("header %q", lines[0])
	}
	for i, pattern := range []string{
		`^ ?1 +0 +0 +S +\d+\.\d\d +- +/bin/sh /init$`,
		`^ *2 +0 +0 +S +\d+\.\d\d +- +\[kthreadd\]$`,
	} {
		if !regexp.MustCompile(pattern).MatchString(lines[2+i]) {
			t.Errorf("line %q, want %s", lines[2+i], pattern)
		}
	}
	if len(lines) < 20 {
		t.Errorf("%d lines", len(lines))
	}
}

// checkLayout checks the document of frail layout of the lab's guest.
func checkLayout(t *testing.T, out, path string) {
	t.Helper()
	var doc struct {
		Release, LSTAR string
		Memory         string             `json:"memory_path"`
		Slow           string             `json:"memory_slow_reason"`
		Bytes          uint64             `json:"memory_bytes"`
		Seconds        map[string]float64 `json:"seconds"`
		Members        map[string]struct{ Offset, Size uint32 }
		Symbols        int
	}
	if err := json.Unmarshal([]byte(out), &doc); err != nil {
		t.Fatalf("%v in %s", err, out)
	}
	if !strings.Contains(doc.Release, "amd64") || !strings.HasPrefix(doc.LSTAR, "0xffffffff") || doc.Memory != path ||
		(doc.Slow == "") != (path == "process_vm_readv") || doc.Bytes < 200<<20 || len(doc.Seconds) != 4 || doc.Symbols < 50_000 ||
		doc.Members["task_struct.pid"].Size != 4 || doc.Members["task_struct.pid"].Offset == 0 || doc.Members["mm_struct.exe_file"].Size != 8 {
		t.Errorf("layout %+v", doc)
	}
}

// Domains that are not traced, through a real fraild.
func TestGuestOfDomain(t *testing.T) {
	fraild := filepath.Join(t.TempDir(), "fraild")
	if out, err := exec.Command("go", "build", "-tags", "libvirt_dlopen", "-o", fraild, "frail/cmd/fraild").CombinedOutput(); err != nil {
		t.Fatalf("build fraild: %v\n%s", err, out)
	}
	g := qmptest.Start(t, qmptest.Config{MemoryMiB: 256, Cmdline: "printk.devkmsg=on"})
	d := prepareDaemon(t, fraild, t.TempDir(), g.Libvirt.URI, g.Libvirt.StatusDir)
	startDaemon(t, d)
	d.wantStates(t, map[string]string{"guest": "not traced (disabled)"})
	frail := func(args ...string) string {
		t.Helper()
		out, _, err := d.frail(t, args...)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}

	g.Run(t, `dmesg -n 1; sh -c 'printf "\033[31m" >/proc/$$/comm; sleep 1001 & sleep 1000 & wait' &`)
	// More arguments than are told, and more messages than fit in one of gRPC's.
	g.Run(t, `i=0; a=; while [ $i -lt 400 ]; do a="$a $i-of-many"; i=$((i + 1)); done; sh -c 'read x </dev/ttyS0' sh $a &`)
	g.Run(t, `i=0; while [ $i -lt 1500 ]; do echo "<28>message $i" >/dev/kmsg; i=$((i + 1)); done; echo "<27>an error" >/dev/kmsg; sleep 1`)

	checkTable(t, frail("ps", "guest"))
	checkLayout(t, frail("layout", "guest", "--json"), "process_vm_readv")
	if out := frail("layout", "guest"); !regexp.MustCompile(`(?m)^ Release: +\S+amd64$`).MatchString(out) || !regexp.MustCompile(`(?m)^ task_struct\.pid +\d+ +4$`).MatchString(out) {
		t.Errorf("layout:\n%s", out)
	}

	tree := frail("ps", "guest", "--tree")
	if !regexp.MustCompile(`(?m)- +(    )* \\_ sh -c .*wait$\n.*- +(    )+ \\_ sleep 1001$\n.*- +(    )+ \\_ sleep 1000$`).MatchString(tree) {
		t.Errorf("tree:\n%s", tree)
	}
	if !strings.Contains(tree, "399-of-many") && !strings.Contains(tree, "-of-many") || !strings.Contains(tree, " ...") {
		t.Errorf("tree without arguments that were cut:\n%s", tree)
	}
	if out := frail("ps", "guest", "--threads"); !regexp.MustCompile(`(?m)^ Pid +Tid +Ppid`).MatchString(out) {
		t.Errorf("threads:\n%s", out)
	}

	out := frail("ps", "guest", "--json", "--threads")
	if i := strings.IndexFunc(out, func(r rune) bool { return r != '\n' && (r > unicode.MaxASCII || !unicode.IsPrint(r)) }); i >= 0 {
		t.Errorf("the document has the byte %#x", out[i])
	}
	var doc struct{ Processes []processJSON }
	if err := json.Unmarshal([]byte(out), &doc); err != nil {
		t.Fatal(err)
	}
	found := 0
	for _, p := range doc.Processes {
		if len(p.Unknown) > 0 || len(p.Threads) != int(p.ThreadCount) || len(p.Threads) == 0 {
			t.Errorf("process %+v", p)
		}
		if p.PID == 1 && (p.Exe != "/bin/busybox" || p.Comm != "init" || p.Parent != 0) {
			t.Errorf("init is %+v", p)
		}
		if p.Comm == "\x1b[31m" {
			found++
		}
	}
	if found != 1 {
		t.Errorf("%d processes with the name that was set", found)
	}

	// The log, as the guest itself shows it.
	log := frail("dmesg", "guest")
	if want := g.Run(t, "dmesg"); log != want {
		t.Errorf("the log differs from the guest's:\n%s", firstDifference(log, want))
	}
	if out := frail("dmesg", "guest", "--level", "err"); !regexp.MustCompile(`^(\[.*\n)*\[ *\d+\.\d{6}\] an error\n$`).MatchString(out) || strings.Contains(out, "message 1") {
		t.Errorf("errors:\n%.500s", out)
	}
	records := strings.Split(strings.TrimSpace(frail("dmesg", "guest", "--json", "-l", "warn+")), "\n")
	var last struct{ Facility, Level, Text string }
	if err := json.Unmarshal([]byte(records[len(records)-1]), &last); err != nil || last.Facility != "daemon" || last.Level != "err" || last.Text != "an error" {
		t.Errorf("last message %+v, %v", last, err)
	}
	if len(records) < 1500 {
		t.Errorf("%d warnings", len(records))
	}

	_, _, err := d.frail(t, "ps", "nobody")
	wantError(t, err, "failed to get domain 'nobody'")
	if err := g.Dom.Reset(0); err != nil {
		t.Fatal(err)
	}
	if err := g.Dom.Destroy(); err != nil {
		t.Fatal(err)
	}
	d.wantStates(t, map[string]string{})
	_, _, err = d.frail(t, "dmesg", "guest")
	wantError(t, err, "domain 'guest'")
}

// firstDifference shows the first line that differs.
func firstDifference(got, want string) string {
	a, b := strings.Split(got, "\n"), strings.Split(want, "\n")
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return fmt.Sprintf("line %d: %q, want %q", i, a[i], b[i])
		}
	}
	return fmt.Sprintf("%d lines, want %d", len(a), len(b))
}

// A guest's processes may say that they are each other's parents, or make chains of any
// length.
func TestTree(t *testing.T) {
	all := []*api.Process{{Pid: 1}, {Pid: 5, Parent: 6}, {Pid: 6, Parent: 5}, {Pid: 7, Parent: 7}, {Pid: 2, Parent: 1}, {Pid: 8, Parent: 99}, {Pid: 3, Parent: 2}}
	sorted, indent := treeOf(all)
	var got strings.Builder
	for i, p := range sorted {
		fmt.Fprintf(&got, "%s%d\n", indent[i], p.GetPid())
	}
	if want := "1\n \\_ 2\n     \\_ 3\n7\n8\n5\n \\_ 6\n"; got.String() != want {
		t.Errorf("tree\n%s, want\n%s", &got, want)
	}
	const many = 1 << 16
	all = nil
	for i := range int32(many) {
		all = append(all, &api.Process{Pid: i + 1, Parent: i})
	}
	started := time.Now()
	sorted, indent = treeOf(all)
	if len(sorted) != many || len(indent[many-1]) > 4*(maxIndent+1) || time.Since(started) > patience/10 {
		t.Errorf("%d of %d, in %v", len(sorted), many, time.Since(started))
	}
}

// What a guest chose is shown escaped, and what is not known is not made up.
func TestProcessRow(t *testing.T) {
	p := &api.Process{
		Pid: 7, Parent: 1, Comm: []byte("\x1b]0;x"), State: "S", Unknown: map[string]string{"credentials": "why", "cgroup": "why"},
		Arguments: [][]byte{[]byte("a"), []byte("\u009b31m"), []byte("\xff")}, ArgumentsCut: true,
	}
	var out strings.Builder
	if err := writeTable(&out, nil, [][]string{psRow(p, "")}); err != nil {
		t.Fatal(err)
	}
	if want := ` 7   1   ?   S   0.00   ?   a \u009b31m \xff ...` + "\n"; out.String() != want {
		t.Errorf("row %q, want %q", out.String(), want)
	}
	p.Arguments = nil
	p.ContainerRuntime, p.ContainerId = "docker", []byte(strings.Repeat("ab", 32))
	p.Unknown = nil
	if got := psRow(p, ""); got[5] != "docker:abababababab" || got[6] != "[\x1b]0;x]" {
		t.Errorf("row %q", got)
	}
}

func TestLogRecord(t *testing.T) {
	rec := &api.LogRecord{Seq: 3, Nano: 12_345_678_901, Facility: 3, Level: 4, Caller: 2, InInterrupt: true, Text: []byte("a\tb\x1b[m\nsecond\U0001f600\xff")}
	if got, want := string(appendRecord(nil, rec)), "[   12.345678] a\tb\\x1b[m\n[   12.345678] second😀\\xff\n"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	got, err := appendRecordJSON(nil, rec)
	want := `{"seq":3,"time":12.345678901,"facility":"daemon","level":"warn","caller":"C2","text":"a\tb\u001b[m\nsecond\ud83d\ude00\ufffd"}` + "\n"
	if err != nil || string(got) != want {
		t.Errorf("%s, %v; want %s", got, err, want)
	}
}

func TestParseLevels(t *testing.T) {
	for list, want := range map[string]string{
		"": "[0 1 2 3 4 5 6 7]", "err": "[3]", "err,debug": "[3 7]", "warn+": "[0 1 2 3 4]", "emerg+": "[0]", "info,crit+": "[0 1 2 6]",
	} {
		got, err := parseLevels(list)
		var levels []int
		for l := range got {
			levels = append(levels, int(l))
		}
		slices.Sort(levels)
		if err != nil || fmt.Sprint(levels) != want {
			t.Errorf("%q: %v, %v; want %s", list, levels, err, want)
		}
	}
	for _, list := range []string{"error", "err,", "+", "3"} {
		if got, err := parseLevels(list); err == nil {
			t.Errorf("%q: %v", list, got)
		}
	}
}

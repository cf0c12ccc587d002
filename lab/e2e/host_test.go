// SPDX-License-Identifier: Apache-2.0

//go:build lab

package e2e

import (
	"bufio"
	"context"
	"fmt"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"frail/lab/vm"
)

// eferSCE is the bit of EFER that makes SYSCALL legal.
const eferSCE = 1

// TestPlainGuestIsUntouched checks a domain whose XML says nothing, while
// another is traced: the CPU traps none of its system calls, nothing of it is
// recorded, and both see the EFER they set.
func TestPlainGuestIsUntouched(t *testing.T) {
	begin(t)
	tp := watchTracepoints(t)
	enabled, plain := startGuest(t, "enabled", traced), startGuest(t, "plain")
	waitGuest(t, enabled)
	waitGuest(t, plain)
	armed := waitTraced(t, enabled)
	waitState(t, plain.Name, stateNotTraced)

	const rounds = 300
	// 0x46 is SVM's exit code for #UD. KVM's host thread is of the emulator's process.
	ud := startBpftrace(t, `tracepoint:kvm:kvm_exit /args->exit_reason == 0x46/ { @ud[pid] = count(); }
		interval:ms:300 { print(@ud); }`)
	eventually(t, "bpftrace counts the traced guest's exits", func() error {
		runIn(t, enabled, "t-getppid 10")
		if ud.count(t, enabled) == 0 {
			return fmt.Errorf("it has none")
		}
		return nil
	})
	before := ud.count(t, enabled)
	for _, v := range []*vm.VM{enabled, plain} {
		if res := runIn(t, v, fmt.Sprintf("t-getppid %d", rounds)); res.Status != 0 {
			t.Fatalf("t-getppid in %s: %+v", v.Name, res)
		}
	}
	eventually(t, "the traced guest's calls are counted", func() error {
		// Each is a SYSCALL and a SYSRET.
		if n := ud.count(t, enabled) - before; n < 2*rounds {
			return fmt.Errorf("%d #UD exits, want %d at least", n, 2*rounds)
		}
		return nil
	})
	if n := ud.count(t, plain); n != 0 {
		t.Errorf("the plain guest took %d #UD exits, want none", n)
	}

	for _, line := range tp.take() {
		if !strings.Contains(line, fmt.Sprintf(" vm=%d ", armed.VM.ID)) {
			t.Errorf("recorded of another VM: %s", line)
			break
		}
	}

	// What the guest reads, and what KVM tells the emulator.
	for _, v := range []*vm.VM{enabled, plain} {
		res := runIn(t, v, "t-rdmsr")
		if efer := values(res.Output)["efer"]; efer&eferSCE == 0 {
			t.Errorf("%s reads EFER %#x: SCE is clear\n%s", v.Name, efer, res.Output)
		}
		regs, err := v.HMP(testContext(t, waitLimit), "info registers")
		if err != nil {
			t.Fatal(err)
		}
		m := regexp.MustCompile(`EFER=([0-9a-f]+)`).FindStringSubmatch(regs)
		if m == nil {
			t.Fatalf("no EFER in\n%s", regs)
		}
		if efer, err := strconv.ParseUint(m[1], 16, 64); err != nil || efer&eferSCE == 0 {
			t.Errorf("KVM gives EFER %s of %s: SCE is clear", m[1], v.Name)
		}
	}
}

// TestBpftrace reads Frail's tracepoint with Debian's bpftrace and no tool of
// Frail.
func TestBpftrace(t *testing.T) {
	begin(t)
	guest := startGuest(t, "bpftrace", traced)
	waitGuest(t, guest)
	waitTraced(t, guest)

	bt := startBpftrace(t, `tracepoint:frail:guest_sys_enter /args->comm == "t-opens"/ {
		printf("%d %d %s %ld %lx\n", args->pid, args->tgid, args->comm, args->nr, args->args[0]); }`)
	var res vm.Result
	eventually(t, "bpftrace sees the guest's calls", func() error {
		res = runIn(t, guest, "t-opens")
		if len(bt.lines()) == 0 {
			return fmt.Errorf("it printed nothing")
		}
		return nil
	})
	res = runIn(t, guest, "t-opens")
	pid := values(res.Output)["pid"]
	// getpid openat read close openat openat getdents64 close write exit_group
	want := []int64{39, 257, 0, 3, 257, 257, 217, 3, 1, 231}
	eventually(t, "bpftrace has the whole list", func() error {
		var got []int64
		for _, line := range bt.lines() {
			f := strings.Fields(line)
			if len(f) != 5 || f[0] != strconv.FormatInt(pid, 10) {
				continue
			}
			nr, err := strconv.ParseInt(f[3], 10, 64)
			if err != nil || f[1] != f[0] || f[2] != "t-opens" {
				return fmt.Errorf("bad line %q", line)
			}
			got = append(got, nr)
		}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			return fmt.Errorf("it has %v, want %v", got, want)
		}
		return nil
	})
}

// bpftrace is a running bpftrace.
type bpftrace struct {
	mu  sync.Mutex
	out []string
}

// startBpftrace runs a program with bpftrace until the test's end.
func startBpftrace(t *testing.T, program string) *bpftrace {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, "bpftrace", "-q", "-e", program)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = waitLimit
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var stderr strings.Builder
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	b := new(bpftrace)
	done := make(chan struct{})
	go func() {
		defer close(done)
		lines := bufio.NewScanner(stdout)
		for lines.Scan() {
			b.mu.Lock()
			b.out = append(b.out, lines.Text())
			b.mu.Unlock()
		}
	}()
	t.Cleanup(func() {
		cancel()
		<-done
		cmd.Wait() // its status is the signal's
		if t.Failed() {
			t.Logf("bpftrace said: %s", stderr.String())
		}
	})
	return b
}

// lines are those printed so far.
func (b *bpftrace) lines() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return append([]string(nil), b.out...)
}

// count is the newest value of the map @ud for a guest's emulator.
func (b *bpftrace) count(t *testing.T, v *vm.VM) int {
	t.Helper()
	pid, err := v.PID()
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, line := range b.lines() {
		if value, ok := strings.CutPrefix(line, fmt.Sprintf("@ud[%d]: ", pid)); ok {
			if n, err = strconv.Atoi(value); err != nil {
				t.Fatalf("bpftrace printed %q", line)
			}
		}
	}
	return n
}

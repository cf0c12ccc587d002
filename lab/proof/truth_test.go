// SPDX-License-Identifier: Apache-2.0

//go:build lab

package proof

import (
	_ "embed"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"frail/bpf"
	"frail/lab/direct"
	"frail/lab/truth"
)

var (
	rounds   = flag.Int("rounds", 1, "rounds of TestTruth's guests, of some 3,300 calls each")
	requests = flag.Int("requests", 200, "requests to each worker of TestKnown's guests, of 8 calls each")
	keep     = flag.String("keep", "", "a directory to leave the records in, for lab-truth")
)

//go:embed busy.sh
var busy string

// TestTruth traces guests that do everything there is to do to the ways into
// a kernel, and whose own kernels record their calls from the start: both
// records are equal, and no return value is wrong.
func TestTruth(t *testing.T) {
	for _, vcpus := range []int{1, 2} {
		for _, mode := range exitModes {
			for _, pti := range []bool{false, true} {
				name := fmt.Sprintf("%dvcpu/%s/%s", vcpus, mode.name, ptiName(pti))
				t.Run(name, func(t *testing.T) {
					guest, host := record(t, vcpus, mode.exits, ptiName(pti), checkPTI(pti)+busyScript())
					compare(t, guest, host)
					testDrop(t, guest, host)
				})
			}
		}
	}
}

// knownPercent is how many percent of a busy guest's return values must be known.
const knownPercent = 95

// TestKnown traces guests whose processes stay and work: with one exit a call,
// too, nearly all return values are known. In TestTruth's guests, whose processes
// come and go at once, what is not known are the calls that end by IRET, execve
// above all, before a page fault or an interrupt.
func TestKnown(t *testing.T) {
	for _, mode := range exitModes {
		t.Run(mode.name, func(t *testing.T) {
			guest, host := record(t, 2, mode.exits, ptiName(false), checkPTI(false)+fmt.Sprintf("t-serve %d", *requests))
			r := compare(t, guest, host)
			if r.KnownPercent() < knownPercent {
				t.Errorf("%.2f %% of the return values are known, want %d", r.KnownPercent(), knownPercent)
			}
		})
	}
}

// settleParameter is for how many calls a thread's SYSRETs trap although one exit a
// call is asked for.
const settleParameter = "/sys/module/frail/parameters/settle"

// TestDeferred has every return value told at the next call, however a thread began:
// fewer are known, and none is wrong.
func TestDeferred(t *testing.T) {
	old, err := os.ReadFile(settleParameter)
	if err != nil {
		t.Fatal(err)
	}
	set := func(value string) {
		if err := os.WriteFile(settleParameter, []byte(value), 0); err != nil {
			t.Fatal(err)
		}
	}
	set("0")
	defer set(strings.TrimSpace(string(old)))
	guest, host := record(t, 2, bpf.ExitsEntry, ptiName(true), checkPTI(true)+busyScript())
	r := compare(t, guest, host)
	if r.Known == 0 {
		t.Errorf("no return value is known: %v", r)
	}
}

// TestPair traces two guests at once, of one kernel at one address, whose tasks have the
// same ids: each one's record is its own.
func TestPair(t *testing.T) {
	ctx := testContext(t)
	traced := make([]*direct.Traced, len(exitModes))
	errs := make([]error, len(exitModes))
	var all sync.WaitGroup
	for i, mode := range exitModes {
		all.Go(func() {
			traced[i], errs[i] = direct.Trace(ctx, fixedGuest(recorded(2, ptiName(false), busyScript())), mode.exits)
		})
	}
	all.Wait()
	for i, mode := range exitModes {
		t.Run(mode.name, func(t *testing.T) {
			if errs[i] != nil {
				t.Fatal(errs[i])
			}
			guest, host := records(t, t.Name(), traced[i])
			compare(t, guest, host)
		})
	}
	if a, b := traced[0], traced[1]; a != nil && b != nil && a.Status.Vm == b.Status.Vm {
		t.Errorf("both VMs have the id %d", a.Status.Vm)
	}
}

// compare compares both records, which must be equal.
func compare(t *testing.T, guest []truth.GuestEvent, host []bpf.Event) *truth.Report {
	t.Helper()
	r, err := truth.Compare(guest, host)
	if err != nil {
		t.Fatal(err)
	}
	t.Log(r)
	if !r.Equal() {
		t.Errorf("first difference: %s", r.First)
	}
	return r
}

// testDrop takes one of the host's calls away, the first, one in the middle and
// the last, and the comparison must say so each time.
func testDrop(t *testing.T, guest []truth.GuestEvent, host []bpf.Event) {
	r, err := truth.Compare(guest, host)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range []int{1, r.Calls / 2, r.Calls} {
		if r, err := truth.Compare(guest, truth.Drop(host, n)); err == nil && r.Equal() {
			t.Errorf("without call %d of the host the records still count as equal: %v", n, r)
		}
	}
}

// checkPTI ends a guest's script unless page table isolation is what was asked for.
func checkPTI(on bool) string {
	if on {
		return "grep -qw pti /proc/cpuinfo || exit 1\n"
	}
	return "! grep -qw pti /proc/cpuinfo || exit 1\n"
}

func busyScript() string { return fmt.Sprintf("rounds=%d\n%s", *rounds, busy) }

// recorded is a guest that records its own calls while it runs a script.
func recorded(vcpus int, cmdline, script string) direct.Config {
	return guest(direct.Config{
		VCPUs:   vcpus,
		Cmdline: strings.Join([]string{truth.Cmdline, "syscall.x32=y", cmdline}, " "),
		Script:  script + truth.Finish,
	})
}

// record runs a script in a traced guest and returns its own record and the host's.
func record(t *testing.T, vcpus int, exits uint32, cmdline, script string) ([]truth.GuestEvent, []bpf.Event) {
	t.Helper()
	tr, err := direct.Trace(testContext(t), recorded(vcpus, cmdline, script), exits)
	if err != nil {
		t.Fatal(err)
	}
	return records(t, t.Name(), tr)
}

// records returns a guest's own record and the host's, and keeps them by name.
func records(t *testing.T, name string, tr *direct.Traced) ([]truth.GuestEvent, []bpf.Event) {
	t.Helper()
	if tr.Status.Enters == 0 || tr.Result.Status != 0 {
		t.Fatalf("status %d after %d traced calls, output:\n%s", tr.Result.Status, tr.Status.Enters, tr.Output)
	}
	if *keep != "" {
		dir := filepath.Join(*keep, strings.ReplaceAll(name, "/", "-"))
		if err := truth.Save(dir, tr.Files, tr.Events); err != nil {
			t.Fatal(err)
		}
	}
	events, err := truth.ReadGuest(truth.Files(tr.Files))
	if err != nil {
		t.Fatal(err)
	}
	return events, tr.Events
}

func ptiName(pti bool) string {
	if pti {
		return "pti=on"
	}
	return "pti=off"
}

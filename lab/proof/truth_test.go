// SPDX-License-Identifier: Apache-2.0

//go:build lab

package proof

import (
	_ "embed"
	"flag"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"frail/bpf"
	"frail/lab/direct"
	"frail/lab/truth"
)

var (
	rounds = flag.Int("rounds", 1, "rounds of the busy guest, of some 6,000 calls each")
	keep   = flag.String("keep", "", "a directory to leave the records in, for lab-truth")
)

//go:embed busy.sh
var busy string

// knownPercent is how many percent of a busy guest's return values must be known.
const knownPercent = 95

// TestTruth traces busy guests whose own kernels record their calls from the
// start: both records are equal, and no return value is wrong.
func TestTruth(t *testing.T) {
	for _, vcpus := range []int{1, 2} {
		for _, exits := range []uint32{bpf.ExitsBoth, bpf.ExitsEntry} {
			for _, pti := range []bool{false, true} {
				name := fmt.Sprintf("%dvcpu/%s/%s", vcpus, exitsName(exits), ptiName(pti))
				t.Run(name, func(t *testing.T) {
					testTruth(t, vcpus, exits, pti)
				})
			}
		}
	}
}

func testTruth(t *testing.T, vcpus int, exits uint32, pti bool) {
	guestEvents, hostEvents := busyGuest(t, vcpus, exits, pti)
	r, err := truth.Compare(guestEvents, hostEvents)
	if err != nil {
		t.Fatal(err)
	}
	t.Log(r)
	if !r.Equal() {
		t.Errorf("first difference: %s", r.First)
	}
	if r.KnownPercent() < knownPercent {
		t.Errorf("%.2f %% of the return values are known, want %d", r.KnownPercent(), knownPercent)
	}

	// One event less, and the comparison must say so: of the calls with and
	// without identity, and in the middle of them.
	for _, n := range []int{1, r.Calls / 2, r.Calls} {
		short := truth.Drop(hostEvents, n)
		if r, err := truth.Compare(guestEvents, short); err == nil && r.Equal() {
			t.Errorf("without call %d of the host the records still count as equal: %v", n, r)
		}
	}
}

// busyGuest runs a traced busy guest and returns its own record and the host's.
func busyGuest(t *testing.T, vcpus int, exits uint32, pti bool) ([]truth.GuestEvent, []bpf.Event) {
	t.Helper()
	tr, err := direct.Trace(testContext(t), guest(direct.Config{
		VCPUs:   vcpus,
		Cmdline: strings.Join([]string{truth.Cmdline, "syscall.x32=y", ptiName(pti)}, " "),
		Script:  fmt.Sprintf("rounds=%d\n%s%s", *rounds, busy, truth.Finish),
	}), exits)
	if err != nil {
		t.Fatal(err)
	}
	if tr.Status.Enters == 0 || tr.Result.Status != 0 {
		t.Fatalf("status %d after %d traced calls, output:\n%s", tr.Result.Status, tr.Status.Enters, tr.Output)
	}
	if *keep != "" {
		dir := filepath.Join(*keep, strings.ReplaceAll(t.Name(), "/", "-"))
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

func exitsName(exits uint32) string {
	if exits == bpf.ExitsEntry {
		return "entry"
	}
	return "both"
}

func ptiName(pti bool) string {
	if pti {
		return "pti=on"
	}
	return "pti=off"
}

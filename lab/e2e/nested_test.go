// SPDX-License-Identifier: Apache-2.0

//go:build lab && life

package e2e

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"frail/lab/vm"
)

// nestedCall is the number of the system call that the guest in t-kvm makes.
const nestedCall = 19507

// hypervisor is t-kvm's own calls: three runs of its guest.
var hypervisor = program{
	name: "t-kvm",
	threads: []thread{{"pid", "pid", "t-kvm", slices.Concat(
		calls(
			does("getpid").returnsLine("pid"),
			does("openat", atFDCWD),
			does("ioctl"), does("mmap", 0), does("ioctl").returns(0), // the VM and its memory
			does("ioctl"), does("ioctl"), does("mmap", 0), // the vCPU
			does("ioctl").returns(0), does("ioctl").returns(0), does("ioctl").returns(3), // its registers
		),
		times(3*3, does("ioctl").returns(0)),
		calls(does("write", 1), does("exit_group", 0).never()),
	)}},
}

// TestNestedGuest traces a guest that is a hypervisor: it works as it does untraced, its
// calls are recorded, and its own guest's are not.
func TestNestedGuest(t *testing.T) {
	begin(t)
	modules := kvmModules(t)
	guest := startGuest(t, "nested", func(c *vm.Config) {
		c.Files = make(map[string]string)
		for _, path := range modules {
			c.Files[filepath.Base(path)] = path
		}
	})
	waitGuest(t, guest)
	for _, path := range modules {
		if res := runIn(t, guest, "insmod /"+filepath.Base(path)); res.Status != 0 {
			t.Fatalf("load %s in the guest: %s", path, res.Output)
		}
	}
	tp := watchTracepoints(t)
	plain := runIn(t, guest, hypervisor.name)
	if plain.Status != 0 {
		t.Fatalf("t-kvm untraced: status %d\n%s", plain.Status, plain.Output)
	}

	must(t, "frail", "enable", guest.Name, "--live")
	waitTraced(t, guest)
	tr := startTrace(t, guest.Name)
	res := runIn(t, guest, hypervisor.name)
	records := tr.stop()
	if got, want := withoutIDs(res.Output), withoutIDs(plain.Output); res.Status != 0 || got != want {
		t.Errorf("traced: status %d\n%s\nuntraced:\n%s", res.Status, got, want)
	}
	checkCalls(t, hypervisor, res.Output, records, false)
	must(t, "frail", "disable", guest.Name, "--live")
	waitState(t, guest.Name, stateNotTraced)

	// Armed and disarmed with the vCPU in the guest's guest.
	const rounds = 30
	dev, kvm := openDevice(t), kvmOf(t, guest)
	runIn(t, guest, "rm -f /tmp/stop; (t-kvm forever >/tmp/kvm; echo $? >>/tmp/kvm.status) &")
	for _, mode := range exitsModes {
		checkNotNested(t, tp.take())
		for range rounds {
			armed := arm(t, dev, kvm, mode.exits)
			firstCall(t, armed)
			disarm(t, tp, armed)
		}
		lines := tp.take()
		checkDisarmed(t, lines, rounds)
		checkNotNested(t, lines)
	}
	res = runIn(t, guest, "touch /tmp/stop; until [ -s /tmp/kvm.status ]; do sleep 0.2; done; cat /tmp/kvm")
	if said := values(res.Output); said["runs"] == 0 || said["bad"] != 0 {
		t.Errorf("t-kvm while its VM was armed and disarmed:\n%s", res.Output)
	} else {
		t.Logf("%d runs of the guest's guest in %d rounds", said["runs"], rounds)
	}
	if res := runIn(t, guest, "t-opens; t-32"); res.Status != 32 {
		t.Errorf("afterwards: %+v", res)
	}
}

func checkNotNested(t *testing.T, lines []string) {
	t.Helper()
	for _, line := range lines {
		if strings.Contains(line, fmt.Sprintf(" nr=%d ", nestedCall)) {
			t.Fatalf("a call of the guest's guest: %s", line)
		}
	}
}

// kvmModules are the files of KVM's modules for the host's kernel, which is the guest's too,
// in the order in which they load.
func kvmModules(t *testing.T) []string {
	t.Helper()
	var paths []string
	for line := range strings.Lines(must(t, "modprobe", "--show-depends", "--ignore-install", "kvm_amd")) {
		if path, ok := strings.CutPrefix(strings.TrimSpace(line), "insmod "); ok {
			path, _, _ = strings.Cut(path, " ")
			paths = append(paths, path)
		}
	}
	if len(paths) == 0 {
		t.Fatal("the host's kernel has no module of KVM")
	}
	return paths
}

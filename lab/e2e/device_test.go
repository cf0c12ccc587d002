// SPDX-License-Identifier: Apache-2.0

//go:build lab && life

package e2e

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"frail/bpf"
	"frail/kmod/device"
	"frail/lab/vm"
)

// Without fraild: what the module does is checked through its own device.

// openDevice opens /dev/frail until the test's end.
func openDevice(t *testing.T) *device.Device {
	t.Helper()
	dev, err := device.Open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dev.Close() })
	return dev
}

// kvmOf is a duplicate of a guest's KVM VM descriptor until the test's end.
func kvmOf(t *testing.T, v *vm.VM) *os.File {
	t.Helper()
	pid, err := v.PID()
	if err != nil {
		t.Fatal(err)
	}
	fd, err := device.KVMVM(pid)
	if err != nil {
		t.Fatal(err)
	}
	kvm := os.NewFile(uintptr(fd), "kvm-vm")
	t.Cleanup(func() { kvm.Close() })
	return kvm
}

// arm arms a VM; the caller closes it.
func arm(t *testing.T, dev *device.Device, kvm *os.File, exits uint32) *device.VM {
	t.Helper()
	armed, err := dev.Arm(int(kvm.Fd()), exits)
	if err != nil {
		t.Fatal(err)
	}
	return armed
}

// firstCall waits until a VM that was armed just now has made a system call.
func firstCall(t *testing.T, armed *device.VM) bpf.Status {
	t.Helper()
	status, err := armed.Wait(testContext(t, waitLimit))
	if err != nil {
		t.Fatal(err)
	}
	return status
}

// disarm closes a VM and says so in the record of tp: no event of the VM may come after.
func disarm(t *testing.T, tp *tracepoints, armed *device.VM) {
	t.Helper()
	if err := armed.Close(); err != nil {
		t.Fatal(err)
	}
	tp.write("trace_marker", fmt.Sprintf("disarmed vm=%d ", armed.ID()))
}

// checkDisarmed checks that the record has as many VMs disarmed as it should, and no event
// of one afterwards. It returns how many events there are.
func checkDisarmed(t *testing.T, lines []string, want int) int {
	t.Helper()
	gone := make(map[string]bool)
	events := 0
	for _, line := range lines {
		_, id, _ := strings.Cut(line, " vm=")
		id, _, _ = strings.Cut(id, " ")
		switch {
		case strings.Contains(line, ": disarmed vm="):
			gone[id] = true
		case !strings.Contains(line, ": guest_"):
		case gone[id]:
			t.Fatalf("an event of a VM that is disarmed: %s", line)
		default:
			events++
		}
	}
	if len(gone) != want {
		t.Fatalf("the record of %d lines has %d VMs disarmed, want %d: is its buffer too small?", len(lines), len(gone), want)
	}
	return events
}

// loads is how many t-load a guest runs at once.
const loads = 3

// startLoad starts t-load in a guest.
func startLoad(t *testing.T, v *vm.VM) {
	t.Helper()
	runIn(t, v, fmt.Sprintf("rm -f /tmp/stop /tmp/load.*; for i in $(seq %d); do "+
		"(t-load >/tmp/load.$i; echo $? >/tmp/load.$i.status) & done", loads))
}

// stopLoad ends t-load and checks that nothing was lost and no signal invented.
func stopLoad(t *testing.T, v *vm.VM) {
	t.Helper()
	res := runIn(t, v, fmt.Sprintf("touch /tmp/stop; until [ $(cat /tmp/load.*.status | wc -l) = %d ]; do sleep 0.2; done; cat /tmp/load.?", loads))
	said := values(res.Output)
	for i := range loads {
		s := suffix(i)
		lost, ok := said["lost"+s]
		if !ok || lost != 0 || said["spurious"+s] != 0 || said["rounds"+s] == 0 {
			t.Fatalf("the guest's processes under load:\n%s", res.Output)
		}
	}
	t.Logf("%d, %d and %d rounds in the guest", said["rounds"], said["rounds#1"], said["rounds#2"])
}

// stopDaemon stops fraild until the test's end, for the module to be unloaded.
func stopDaemon(t *testing.T) {
	t.Helper()
	must(t, "systemctl", "stop", "fraild.service")
	t.Cleanup(func() { must2(t, "systemctl", "start", "fraild.service") })
}

// unload unloads the module once the last VM is let go, which closing it does not wait for.
func unload(t *testing.T) {
	t.Helper()
	eventually(t, "the module is unloaded", func() error {
		_, errs, err := command(t, "rmmod", "frail")
		if err != nil {
			err = fmt.Errorf("%w: %s", err, errs)
		}
		return err
	})
}

// reload unloads the module, which fails as long as anything holds it, and loads it again.
func reload(t *testing.T) {
	t.Helper()
	unload(t)
	must(t, "modprobe", "frail")
}

// kvmDirs are the VMs of a process in KVM's debugging file system: each is there until KVM
// has freed it.
func kvmDirs(t *testing.T, pid int) []string {
	t.Helper()
	entries, err := os.ReadDir("/sys/kernel/debug/kvm")
	if err != nil {
		t.Fatal(err)
	}
	var dirs []string
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), fmt.Sprintf("%d-", pid)) {
			dirs = append(dirs, e.Name())
		}
	}
	return dirs
}

// waitFreed waits until KVM has freed all VMs of a process.
func waitFreed(t *testing.T, pid int) {
	t.Helper()
	eventually(t, "KVM frees the VM", func() error {
		if dirs := kvmDirs(t, pid); len(dirs) != 0 {
			return fmt.Errorf("it has %q", dirs)
		}
		return nil
	})
}

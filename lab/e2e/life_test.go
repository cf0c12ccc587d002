// SPDX-License-Identifier: Apache-2.0

//go:build lab && life

package e2e

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"frail/bpf"
	"frail/kmod/device"
	"frail/lab/vm"
)

// exitsModes are the ways in which a VM can be armed.
var exitsModes = []struct {
	name  string
	exits uint32
}{
	{"both", bpf.ExitsBoth},
	{"entry", bpf.ExitsEntry},
}

// TestLife arms, disarms, unloads, leaks and kills around one guest with two vCPUs, whose
// processes must not notice.
func TestLife(t *testing.T) {
	begin(t)
	guest := startGuest(t, "life", vcpus(2))
	waitGuest(t, guest)
	for _, mode := range exitsModes {
		t.Run("armed and disarmed/"+mode.name, func(t *testing.T) { testArmDisarm(t, guest, mode.exits) })
	}
	t.Run("bad arguments", func(t *testing.T) { testBadArguments(t, guest) })
	t.Run("random layouts", func(t *testing.T) { testRandomLayouts(t, guest) })
	t.Run("descriptor of a dead process", func(t *testing.T) { testLeakedDescriptor(t, guest) })
	t.Run("loaded and unloaded", func(t *testing.T) { testLoadUnload(t, guest) })
	t.Run("races", func(t *testing.T) { testRaces(t, guest) })

	must(t, "frail", "enable", guest.Name, "--live")
	waitTraced(t, guest)
	checkTraced(t, guest)
	must(t, "frail", "disable", guest.Name, "--live")
	waitState(t, guest.Name, stateNotTraced)
	t.Run("emulator killed", func(t *testing.T) { testEmulatorKilled(t, guest) })

	t.Run("emulator killed in races", func(t *testing.T) { testKilledInRaces(t, guest) })
}

// testArmDisarm arms and disarms a VM under load.
func testArmDisarm(t *testing.T, guest *vm.VM, exits uint32) {
	const rounds, checked = 200, 10 // the record is looked at after so many
	dev, kvm := openDevice(t), kvmOf(t, guest)
	tp := watchTracepoints(t)
	startLoad(t, guest)
	events := 0
	for i := range rounds {
		armed := arm(t, dev, kvm, exits)
		if status := firstCall(t, armed); status.Vcpus != 2 || status.ArmedVcpus != 2 {
			t.Errorf("%d of %d vCPUs armed in round %d, want both", status.ArmedVcpus, status.Vcpus, i)
		}
		disarm(t, tp, armed)
		if i%checked == checked-1 {
			events += checkDisarmed(t, tp.take(), checked)
		}
	}
	stopLoad(t, guest)
	if lines := tp.take(); len(lines) != 0 {
		t.Errorf("%d events after the last round: %s", len(lines), lines[0])
	}
	t.Logf("%d events in %d rounds", events, rounds)
	if events < rounds {
		t.Errorf("%d events in %d rounds", events, rounds)
	}
}

// testLeakedDescriptor has processes die that hold a VM's last descriptor.
func testLeakedDescriptor(t *testing.T, guest *vm.VM) {
	dev, kvm := openDevice(t), kvmOf(t, guest)
	for _, tt := range []struct {
		name string
		give func(t *testing.T, fd int) *exec.Cmd // starts a process that holds a copy of fd
	}{
		{"inherited", func(t *testing.T, fd int) *exec.Cmd {
			return holder(t, duplicate(t, fd))
		}},
		{"sent and not received", func(t *testing.T, fd int) *exec.Cmd {
			ends, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(ends[0])
			if err := unix.Sendmsg(ends[0], []byte{0}, unix.UnixRights(fd), nil, 0); err != nil {
				t.Fatal(err)
			}
			return holder(t, os.NewFile(uintptr(ends[1]), "socket"))
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tp := watchTracepoints(t)
			startLoad(t, guest)
			armed := arm(t, dev, kvm, bpf.ExitsBoth)
			held := tt.give(t, armed.FD())
			if err := armed.Close(); err != nil {
				t.Fatal(err)
			}
			tp.take()
			eventually(t, "the VM is traced as long as the other process lives", func() error {
				if len(tp.take()) == 0 {
					return errors.New("no event")
				}
				return nil
			})
			if again, err := dev.Arm(int(kvm.Fd()), bpf.ExitsBoth); !errors.Is(err, device.ErrBusy) {
				t.Errorf("armed twice: %v, %v", again, err)
			}
			if err := held.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			held.Wait() // its status is the signal's
			eventually(t, "the VM is disarmed", func() error {
				if lines := tp.take(); len(lines) != 0 {
					return fmt.Errorf("%d events, the last one %s", len(lines), lines[len(lines)-1])
				}
				return nil
			})
			next := arm(t, dev, kvm, bpf.ExitsBoth)
			firstCall(t, next)
			disarm(t, tp, next)
			stopLoad(t, guest)
			checkDisarmed(t, tp.take(), 1)
		})
	}
}

// holder starts a process that does nothing but hold a file, which is closed here.
func holder(t *testing.T, file *os.File) *exec.Cmd {
	t.Helper()
	defer file.Close()
	cmd := exec.CommandContext(t.Context(), "sleep", "infinity")
	cmd.ExtraFiles = []*os.File{file}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return cmd
}

func duplicate(t *testing.T, fd int) *os.File {
	t.Helper()
	dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	return os.NewFile(uintptr(dup), "frail-vm")
}

// testLoadUnload loads and unloads the module under a guest's load, every other time after
// the VM was armed. While it is armed the module stays.
func testLoadUnload(t *testing.T, guest *vm.VM) {
	const rounds = 50
	stopDaemon(t)
	kvm := kvmOf(t, guest)
	startLoad(t, guest)
	for i := range rounds {
		if i%2 == 1 {
			dev, err := device.Open()
			if err != nil {
				t.Fatal(err)
			}
			armed := arm(t, dev, kvm, bpf.ExitsBoth)
			dev.Close()
			firstCall(t, armed)
			if out, errs, err := command(t, "rmmod", "frail"); err == nil || !strings.Contains(errs, "in use") {
				t.Errorf("rmmod while a VM is armed: %v\n%s%s", err, out, errs)
			}
			if err := armed.Close(); err != nil {
				t.Fatal(err)
			}
		}
		reload(t)
	}
	stopLoad(t, guest)
}

// testKilledInRaces kills the emulator, started anew, while its VM is armed, closed and asked
// at once.
func testKilledInRaces(t *testing.T, guest *vm.VM) {
	stopDaemon(t)
	guest.Close()
	if err := guest.Start(testContext(t, waitLimit)); err != nil {
		t.Fatal(err)
	}
	waitGuest(t, guest)
	pid, err := guest.PID()
	if err != nil {
		t.Fatal(err)
	}
	kvm := kvmOf(t, guest)
	startLoad(t, guest)
	race(t, int(kvm.Fd()), func() {
		if err := unix.Kill(pid, unix.SIGKILL); err != nil {
			t.Error(err)
		}
	})
	kvm.Close()
	waitFreed(t, pid)
	reload(t)
}

// testEmulatorKilled kills the emulator while its VM is armed and its guest busy. The VM
// descriptor stays usable, and nothing is left of the VM once it is closed.
func testEmulatorKilled(t *testing.T, guest *vm.VM) {
	stopDaemon(t)
	pid, err := guest.PID()
	if err != nil {
		t.Fatal(err)
	}
	dev, kvm := openDevice(t), kvmOf(t, guest)
	startLoad(t, guest)
	armed := arm(t, dev, kvm, bpf.ExitsBoth)
	firstCall(t, armed)
	kvm.Close()
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "libvirt notices", func() error {
		state, err := guest.State(testContext(t, waitLimit))
		if err == nil && state != "shut off" {
			err = fmt.Errorf("it is %s", state)
		}
		return err
	})
	if status, err := armed.Status(); err != nil || status.Enters == 0 {
		t.Errorf("status of a dead VM: %+v, %v", status, err)
	}
	if len(kvmDirs(t, pid)) == 0 {
		t.Error("KVM has freed a VM that is armed")
	}
	if err := armed.Close(); err != nil {
		t.Fatal(err)
	}
	dev.Close()
	waitFreed(t, pid)
	reload(t)
}

// SPDX-License-Identifier: Apache-2.0

//go:build lab

package proof

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"

	"frail/bpf"
	"frail/kmod/device"
	"frail/lab/direct"
)

var (
	arms    = flag.Int("arms", 200, "how often TestLife arms a guest, for each kind of exits")
	reloads = flag.Int("reloads", 50, "how often TestLife unloads and loads the module")
)

// loads is how many t-load a guest under load runs at once.
const loads = 3

// awaitStop ends the script of a guest under load: told to, it lets its programs end,
// which leave their output and exit status in /out.
const awaitStop = `
exec 3</dev/ttyS0
echo under load >/dev/console
read -r _ <&3
touch /tmp/stop
wait
`

// loadScript runs processes, programs and signals on all vCPUs until it is told to stop.
var loadScript = fmt.Sprintf("for i in $(seq %d); do (t-load >/out/load$i; echo $? >/out/status$i) & done\n", loads) + awaitStop

// busyGuest starts a guest with two vCPUs and a script that ends with awaitStop, and
// returns when it waits. It is gone at the test's end.
func busyGuest(t *testing.T, cfg direct.Config) *direct.Guest {
	t.Helper()
	ctx := testContext(t)
	cfg.VCPUs = 2
	g := start(t, ctx, fixedGuest(cfg))
	if err := errors.Join(g.Resume(ctx), g.Await(ctx, "under load")); err != nil {
		t.Fatal(err)
	}
	return g
}

// endBusy tells a guest to stop and returns what it left.
func endBusy(t *testing.T, g *direct.Guest) *direct.Result {
	t.Helper()
	if err := g.Send("stop"); err != nil {
		t.Fatal(err)
	}
	res, err := g.Wait(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	return res
}

// startLoad starts a guest with loadScript.
func startLoad(t *testing.T) *direct.Guest {
	t.Helper()
	return busyGuest(t, direct.Config{Script: loadScript})
}

// endLoad ends a guest's load and checks that it lost no process and no signal, and
// got no signal that nobody sent.
func endLoad(t *testing.T, g *direct.Guest) {
	t.Helper()
	res := endBusy(t, g)
	rounds := 0
	for i := 1; i <= loads; i++ {
		output, status := string(res.Files[fmt.Sprint("load", i)]), string(res.Files[fmt.Sprint("status", i)])
		var pid, n, lost, spurious int
		_, err := fmt.Sscanf(output, "pid=%d\nrounds=%d\nlost=%d\nspurious=%d\n", &pid, &n, &lost, &spurious)
		if status != "0\n" || err != nil || n == 0 || lost != 0 || spurious != 0 {
			t.Errorf("load %d of the guest: status %q\n%s", i, status, output)
		}
		rounds += n
	}
	t.Logf("%d rounds in the guest", rounds)
}

// arm arms a running guest, all of its vCPUs, and waits for its first call.
func arm(t *testing.T, g *direct.Guest, exits uint32) *device.VM {
	t.Helper()
	vm, err := g.Arm(exits)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := vm.Close(); err != nil {
			t.Error(err)
		}
	})
	st, err := vm.Wait(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	if st.Vcpus != 2 || st.ArmedVcpus != 2 || st.ExitsMode != exits {
		t.Fatalf("armed: %+v", st)
	}
	return vm
}

// disarms are VMs of which no event may come any more, and since when.
type disarms map[uint32]uint64

// disarm closes a VM.
func (d disarms) disarm(t *testing.T, vm *device.VM) {
	t.Helper()
	if err := vm.Close(); err != nil {
		t.Fatal(err)
	}
	d.since(t, vm.ID())
}

// since notes that a VM is disarmed.
func (d disarms) since(t *testing.T, id uint32) {
	t.Helper()
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &now); err != nil {
		t.Fatal(err)
	}
	d[id] = uint64(now.Nano())
}

// check checks a recording, whose events it returns: each VM has some, and none from
// when it was gone.
func (d disarms) check(t *testing.T, rec *direct.Recording) []bpf.Event {
	t.Helper()
	events, err := rec.Stop()
	if err != nil {
		t.Fatal(err)
	}
	seen := map[uint32]int{}
	for i := range events {
		ev := &events[i]
		gone, ok := d[ev.Vm]
		if !ok || ev.Time > gone {
			t.Fatalf("an event of VM %d, %d ns after it was disarmed: %+v", ev.Vm, ev.Time-gone, ev)
		}
		seen[ev.Vm]++
	}
	for id := range d {
		if seen[id] == 0 {
			t.Errorf("no event of VM %d", id)
		}
	}
	t.Logf("%d events of %d VMs", len(events), len(d))
	return events
}

// recordVMs records VMs, of which more may be added, until the test's end.
func recordVMs(t *testing.T, vms ...*device.VM) *direct.Recording {
	t.Helper()
	rec, err := direct.Record(vms...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := rec.Close(); err != nil {
			t.Error(err)
		}
	})
	return rec
}

// makesCalls waits until a VM has made some more calls.
func makesCalls(t *testing.T, vm *device.VM) {
	t.Helper()
	const some = 20
	first, err := vm.Status()
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the guest is traced", func() error {
		st, err := vm.Status()
		if err == nil && st.Enters < first.Enters+some {
			err = fmt.Errorf("%d calls, then %d", first.Enters, st.Enters)
		}
		return err
	})
}

// TestLife arms, disarms, leaks, fuzzes and unloads around one guest with two vCPUs under
// load, whose processes must not notice.
func TestLife(t *testing.T) {
	g := startLoad(t)
	for _, mode := range exitModes {
		t.Run("armed and disarmed/"+mode.name, func(t *testing.T) {
			armAndDisarm(t, g, *arms, func(int) uint32 { return mode.exits })
		})
	}
	t.Run("holder killed", func(t *testing.T) { testHolderKilled(t, g) })
	t.Run("bad arguments", func(t *testing.T) { testBadArguments(t, g) })
	t.Run("random layouts", func(t *testing.T) { testRandomLayouts(t, g) })
	t.Run("random reads", func(t *testing.T) { testRandomData(t, g) })
	t.Run("races", func(t *testing.T) { race(t, kvmOf(t, g), func() {}) })
	t.Run("unloaded and loaded", func(t *testing.T) { testReload(t, g) })
	endLoad(t, g)
}

// armAndDisarm arms and disarms a guest some times and returns what was recorded.
func armAndDisarm(t *testing.T, g *direct.Guest, rounds int, exits func(round int) uint32) []bpf.Event {
	t.Helper()
	rec, gone := recordVMs(t), disarms{}
	for i := range rounds {
		vm := arm(t, g, exits(i))
		if err := rec.Add(vm.ID()); err != nil {
			t.Fatal(err)
		}
		makesCalls(t, vm)
		gone.disarm(t, vm)
	}
	return gone.check(t, rec)
}

// testReload unloads and loads the module, and arms the guest after each load. While it
// is armed the module stays.
func testReload(t *testing.T, g *direct.Guest) {
	for i := range *reloads {
		vm := arm(t, g, exitModes[i%len(exitModes)].exits)
		if err := unix.DeleteModule("frail", unix.O_NONBLOCK); !errors.Is(err, unix.EAGAIN) {
			t.Fatalf("the module is unloaded while a VM is armed: %v", err)
		}
		makesCalls(t, vm)
		if err := vm.Close(); err != nil {
			t.Fatal(err)
		}
		unload(t, "frail")
		load(t)
	}
}

// TestEmulatorKilled kills the emulators of armed guests: nothing is left of their VMs
// once their descriptors are closed, and another armed guest notices nothing.
func TestEmulatorKilled(t *testing.T) {
	other := startLoad(t)
	otherVM := arm(t, other, bpf.ExitsBoth)
	for _, tt := range []struct {
		name string
		kill func(*testing.T, *direct.Guest)
	}{
		{"while armed", killArmed},
		{"in races", func(t *testing.T, g *direct.Guest) { race(t, kvmOf(t, g), func() { killEmulator(t, g) }) }},
	} {
		g := startLoad(t)
		// What it takes of the VM is let go at its end.
		t.Run(tt.name, func(t *testing.T) { tt.kill(t, g) })
		eventually(t, "KVM frees the VM", func() error {
			if dirs := kvmVMs(t, g); len(dirs) != 0 {
				return fmt.Errorf("it has %q", dirs)
			}
			return nil
		})
		makesCalls(t, otherVM)
	}
	if err := otherVM.Close(); err != nil {
		t.Fatal(err)
	}
	endLoad(t, other)
	unload(t, "frail")
	load(t)
}

// killArmed kills a guest's emulator while it is armed. The VM descriptor stays usable.
func killArmed(t *testing.T, g *direct.Guest) {
	vm := arm(t, g, bpf.ExitsEntry)
	makesCalls(t, vm)
	killEmulator(t, g)
	if st, err := vm.Status(); err != nil || st.Enters == 0 {
		t.Errorf("status of a dead VM: %+v, %v", st, err)
	}
	if len(kvmVMs(t, g)) == 0 {
		t.Error("KVM has freed a VM that is armed")
	}
}

func killEmulator(t *testing.T, g *direct.Guest) {
	t.Helper()
	if err := unix.Kill(g.PID(), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	<-g.Exited()
}

// kvmVMs are an emulator's VMs in KVM's debugging file system: each is there until KVM
// has freed it.
func kvmVMs(t *testing.T, g *direct.Guest) []string {
	t.Helper()
	dirs, err := filepath.Glob(fmt.Sprintf("/sys/kernel/debug/kvm/%d-*", g.PID()))
	if err != nil {
		t.Fatal(err)
	}
	return dirs
}

// testHolderKilled kills processes that hold the last descriptor of an armed VM, the
// one that armed it among them: the VM is disarmed and can be armed again.
func testHolderKilled(t *testing.T, g *direct.Guest) {
	for _, tt := range []struct {
		name string
		hold func(*testing.T, *direct.Guest) (*exec.Cmd, uint32) // what holds it, and the VM's id
	}{
		{"armed it", startArmer},
		{"inherited it", func(t *testing.T, g *direct.Guest) (*exec.Cmd, uint32) {
			vm := arm(t, g, bpf.ExitsBoth)
			return startHolder(t, os.NewFile(uintptr(duplicate(t, vm.FD())), "frail-vm")), closed(t, vm)
		}},
		{"was sent it and has not received it", func(t *testing.T, g *direct.Guest) (*exec.Cmd, uint32) {
			vm := arm(t, g, bpf.ExitsBoth)
			ends, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(ends[0])
			if err := unix.Sendmsg(ends[0], []byte{0}, unix.UnixRights(vm.FD()), nil, 0); err != nil {
				t.Fatal(err)
			}
			return startHolder(t, os.NewFile(uintptr(ends[1]), "socket")), closed(t, vm)
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			rec, gone := recordVMs(t), disarms{}
			holder, id := tt.hold(t, g)
			if err := rec.Add(id); err != nil {
				t.Fatal(err)
			}
			n := rec.Len()
			eventually(t, "the VM is traced as long as the other process lives", func() error {
				if rec.Len() == n {
					return errors.New("no event")
				}
				return nil
			})
			if vm, err := g.Arm(bpf.ExitsBoth); !errors.Is(err, device.ErrBusy) {
				t.Fatalf("armed twice: %v, %v", vm, err)
			}
			if err := holder.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			_ = holder.Wait() // its status is the signal's
			eventually(t, "the VM is disarmed", func() error {
				vm, err := g.Arm(bpf.ExitsEntry)
				if err != nil {
					return err
				}
				gone.since(t, id)
				if err := rec.Add(vm.ID()); err != nil {
					t.Error(err)
				}
				makesCalls(t, vm)
				gone.disarm(t, vm)
				return nil
			})
			gone.check(t, rec)
		})
	}
}

// closed closes a VM, a copy of whose descriptor is somewhere else, and returns its id.
func closed(t *testing.T, vm *device.VM) uint32 {
	t.Helper()
	if err := vm.Close(); err != nil {
		t.Fatal(err)
	}
	return vm.ID()
}

// duplicate duplicates a descriptor.
func duplicate(t *testing.T, fd int) int {
	t.Helper()
	dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	return dup
}

// startHolder starts a process that does nothing but hold a file, which is closed here.
func startHolder(t *testing.T, file *os.File) *exec.Cmd {
	t.Helper()
	defer file.Close()
	cmd := exec.CommandContext(t.Context(), "sleep", "1000000")
	cmd.ExtraFiles = []*os.File{file}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return cmd
}

// armerVariable makes this program one that arms the guest of the process it names.
const armerVariable = "FRAIL_PROOF_ARM"

// startArmer starts a process that arms a guest, and returns the VM's id.
func startArmer(t *testing.T, g *direct.Guest) (*exec.Cmd, uint32) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), self)
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%d", armerVariable, g.PID()))
	cmd.Stderr = os.Stderr
	// It waits for the other end, which is closed when this process ends.
	if _, err := cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var id uint32
	if _, err := fmt.Fscan(out, &id); err != nil {
		t.Fatalf("read what was armed: %v", err)
	}
	return cmd, id
}

// armAndWait is startArmer's process: it arms, says the VM's id and waits to be killed, or
// for the end of its input.
func armAndWait(process string) error {
	pid, err := strconv.Atoi(process)
	if err != nil {
		return err
	}
	vm, err := device.ArmProcess(pid, bpf.ExitsBoth)
	if err != nil {
		return err
	}
	defer vm.Close()
	fmt.Println(vm.ID())
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}

// SPDX-License-Identifier: Apache-2.0

//go:build lab

package proof

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"frail/bpf"
	"frail/lab/direct"
)

// hypervisor are t-kvm's own calls, three runs of its guest, and nestedCall is the one
// that its guest makes, to a kernel of its own.
var hypervisor = slices.Concat(
	[]int64{unix.SYS_GETPID, unix.SYS_OPENAT},
	[]int64{unix.SYS_IOCTL, unix.SYS_MMAP, unix.SYS_IOCTL},  // the VM and its memory
	[]int64{unix.SYS_IOCTL, unix.SYS_IOCTL, unix.SYS_MMAP},  // the vCPU
	[]int64{unix.SYS_IOCTL, unix.SYS_IOCTL},                 // its CPUID
	[]int64{unix.SYS_IOCTL, unix.SYS_IOCTL, unix.SYS_IOCTL}, // its registers
	slices.Repeat([]int64{unix.SYS_IOCTL}, 3*3),             // set them, run, run
	[]int64{unix.SYS_WRITE, unix.SYS_EXIT_GROUP},
)

const nestedCall = 19507

// TestNested traces guests that are hypervisors themselves: they work, their calls are
// recorded, and their own guests' are not, also where the guest is armed and disarmed
// while it runs its own.
func TestNested(t *testing.T) {
	cfg := hypervisorGuest(t)
	load := cfg.Script
	t.Run("traced", func(t *testing.T) {
		cfg.Script = load + "t-kvm"
		tr, err := direct.Trace(testContext(t), fixedGuest(cfg), bpf.ExitsBoth)
		if err != nil {
			t.Fatal(err)
		}
		if tr.Result.Status != 0 || !strings.Contains(tr.Output, "runs=3\nbad=0\n") {
			t.Errorf("status %d, output:\n%s", tr.Result.Status, tr.Output)
		}
		if got := callsOf(tr.Events, "t-kvm"); !slices.Equal(got, hypervisor) {
			t.Errorf("the hypervisor made the calls %d, want %d", got, hypervisor)
		}
		checkNotNested(t, tr.Events)
	})
	t.Run("armed and disarmed", func(t *testing.T) {
		cfg.Script = load + "(t-kvm forever >/out/kvm; echo $? >/out/exit) &" + awaitStop
		g := busyGuest(t, cfg)
		events := armAndDisarm(t, g, 30, func(i int) uint32 { return exitModes[i%len(exitModes)].exits })
		res := endBusy(t, g)
		output := string(res.Files["kvm"])
		if string(res.Files["exit"]) != "0\n" || !strings.Contains(output, "bad=0\n") || strings.Contains(output, "runs=0\n") {
			t.Errorf("status %s, output:\n%s", res.Files["exit"], output)
		}
		checkNotNested(t, events)
	})
}

func checkNotNested(t *testing.T, events []bpf.Event) {
	t.Helper()
	for _, ev := range events {
		if ev.Nr == nestedCall {
			t.Fatalf("a call of the guest's guest: %+v", ev)
		}
	}
}

// hypervisorGuest is a guest with the host's KVM, whose script has loaded it.
func hypervisorGuest(t *testing.T) direct.Config {
	t.Helper()
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		t.Fatal(err)
	}
	release := unix.ByteSliceToString(name.Release[:])
	if strings.Contains(release, "debug") {
		t.Skip("the host's modules are not of the guest's kernel")
	}
	wanted := strings.ReplaceAll(kvmVendor(t), "_", "-") + ".ko"
	dir := filepath.Join("/lib/modules", release)
	index, err := os.ReadFile(filepath.Join(dir, "modules.dep"))
	if err != nil {
		t.Fatal(err)
	}
	cfg := direct.Config{VCPUs: 2, Files: map[string]string{}}
	for line := range strings.Lines(string(index)) {
		file, deps, _ := strings.Cut(line, ":")
		if filepath.Base(file) != wanted {
			continue
		}
		// What a module needs is behind it.
		files := append([]string{file}, strings.Fields(deps)...)
		slices.Reverse(files)
		for _, f := range files {
			cfg.Files[filepath.Base(f)] = filepath.Join(dir, f)
			cfg.Script += fmt.Sprintf("insmod %s || exit\n", filepath.Base(f))
		}
	}
	if cfg.Script == "" {
		t.Fatalf("no %s in %s", wanted, dir)
	}
	return cfg
}

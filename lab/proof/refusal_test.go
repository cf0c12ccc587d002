// SPDX-License-Identifier: Apache-2.0

//go:build lab

package proof

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"frail/bpf"
	"frail/kmod/device"
)

var livepatch = flag.String("livepatch", "/frail/lab/livepatch.ko", "the livepatch of KVM's handle_ud")

// KVM's requests, of linux/kvm.h.
const (
	kvmCreateVM       = 0xae01
	kvmCheckExtension = 0xae03
	kvmCreateVCPU     = 0xae41
	kvmSetCPUID2      = 0x4008ae90

	kvmCapVMTypes    = 235
	kvmSWProtectedVM = 1 // the last type whose memory the host can read
)

// cpuidEntry is the kernel's struct kvm_cpuid_entry2.
type cpuidEntry struct {
	function, index, flags uint32
	eax, ebx, ecx, edx     uint32
	_                      [3]uint32
}

// cpuidIndexed is KVM_CPUID_FLAG_SIGNIFCANT_INDEX.
const cpuidIndexed = 1

// CPUID's leaf of extended features, and those of a CPU that Frail refuses.
const (
	featureLeaf = 7
	shstkECX    = 1 << 7  // of subleaf 0
	fredEAX     = 1 << 17 // of subleaf 1
)

// kvmIoctl makes a request of KVM whose argument is a number.
func kvmIoctl(t *testing.T, fd int, request uint, arg uintptr) int {
	t.Helper()
	r, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), uintptr(request), arg)
	if errno != 0 {
		t.Fatalf("KVM's request %#x: %v", request, errno)
	}
	return int(r)
}

// openKVM opens /dev/kvm until the test's end.
func openKVM(t *testing.T) int {
	t.Helper()
	fd, err := unix.Open("/dev/kvm", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

// createVM creates a VM of a type of KVM's, without memory and until the test's end. Its
// number stays taken: KVM names a VM by it, and one that was armed goes a little later.
func createVM(t *testing.T, vmType uintptr) int {
	t.Helper()
	vm := kvmIoctl(t, openKVM(t), kvmCreateVM, vmType)
	t.Cleanup(func() {
		if err := unix.Dup3(int(os.Stdout.Fd()), vm, unix.O_CLOEXEC); err != nil {
			t.Error(err)
		}
	})
	return vm
}

// createVCPU adds a vCPU to a VM.
func createVCPU(t *testing.T, vm, id int) int {
	t.Helper()
	vcpu := kvmIoctl(t, vm, kvmCreateVCPU, uintptr(id))
	t.Cleanup(func() { unix.Close(vcpu) })
	return vcpu
}

// setFeatures gives a vCPU a CPUID with some of shstkECX and fredEAX.
func setFeatures(t *testing.T, vcpu int, features uint32) {
	t.Helper()
	cpuid := struct {
		n, _    uint32
		entries [2]cpuidEntry
	}{n: 2, entries: [2]cpuidEntry{
		{function: featureLeaf, flags: cpuidIndexed, eax: 1, ecx: features & shstkECX},
		{function: featureLeaf, index: 1, flags: cpuidIndexed, eax: features & fredEAX},
	}}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(vcpu), kvmSetCPUID2, uintptr(unsafe.Pointer(&cpuid))); errno != 0 {
		t.Fatalf("set the vCPU's CPUID: %v", errno)
	}
}

// armFD arms the VM behind a descriptor.
func armFD(t *testing.T, vm int) (*device.VM, error) {
	t.Helper()
	dev, err := device.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer dev.Close()
	return dev.Arm(vm, bpf.ExitsBoth)
}

// checkArmed arms a VM, which must succeed, and disarms it.
func checkArmed(t *testing.T, vm int) {
	t.Helper()
	armed, err := armFD(t, vm)
	if err != nil {
		t.Fatal(err)
	}
	if err := armed.Close(); err != nil {
		t.Fatal(err)
	}
}

// checkRefused arms a VM, which must be refused for good, for this reason.
func checkRefused(t *testing.T, vm int, reason string) {
	t.Helper()
	armed, err := armFD(t, vm)
	if err == nil {
		armed.Close()
		t.Fatal("the VM was armed")
	}
	if want := "arm VM: VM cannot be traced: " + reason; !errors.Is(err, device.ErrUnsupported) || !strings.HasPrefix(err.Error(), want) {
		t.Errorf("refused with %q, want %q", err, want)
	}
}

// TestRefusedCPU arms VMs of which one vCPU has what a SYSCALL of Frail's cannot do: with
// FRED its kernel could take system calls unseen, with shadow stacks its programs would
// end.
func TestRefusedCPU(t *testing.T) {
	for _, tc := range []struct {
		name     string
		features uint32
		reason   string
	}{
		{"fred", fredEAX, "its CPU has FRED, by which its kernel takes system calls without SYSCALL"},
		{"shadow stack", shstkECX, "its CPU has shadow stacks (CET), which Frail does not switch as SYSCALL does"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			vm := createVM(t, 0)
			setFeatures(t, createVCPU(t, vm, 0), 0)
			last := createVCPU(t, vm, 1)
			setFeatures(t, last, tc.features)
			checkRefused(t, vm, tc.reason)
			setFeatures(t, last, 0)
			checkArmed(t, vm)
		})
	}
}

// TestRefusedProtected arms a VM whose memory the host cannot read, where KVM
// makes one: that takes the hardware.
func TestRefusedProtected(t *testing.T) {
	types := kvmIoctl(t, openKVM(t), kvmCheckExtension, kvmCapVMTypes)
	if types>>(kvmSWProtectedVM+1) == 0 {
		t.Skipf("KVM makes no protected VM here: its types are %#b", types)
	}
	for i := uintptr(kvmSWProtectedVM + 1); i < 32; i++ {
		if types>>i&1 != 0 {
			checkRefused(t, createVM(t, i), "its memory or vCPU state is encrypted (SEV, SEV-ES, SEV-SNP or TDX)")
		}
	}
}

// The module is loaded when a test of loading begins, and again at its end.

// unloadFrail unloads the module until the test's end, when it must load and work.
func unloadFrail(t *testing.T) {
	t.Helper()
	checkWarnings(t)
	unload(t, "frail")
	t.Cleanup(func() {
		load(t)
		checkArmed(t, createVM(t, 0))
		checkWarnings(t)
	})
}

// checkWarnings takes what the kernel has warned of since it was looked at last,
// which must be these messages and no other.
func checkWarnings(t *testing.T, want ...string) {
	t.Helper()
	if got := hostLog.Warnings(); !slices.Equal(got, want) {
		t.Errorf("the host's kernel warns: %q, want %q", got, want)
	}
}

// checkNotLoaded loads a module as frail.ko, which must fail with this error and this
// message, and leave nothing.
func checkNotLoaded(t *testing.T, image []byte, want unix.Errno, message string) {
	t.Helper()
	before := traces(t)
	if err := unix.InitModule(image, ""); !errors.Is(err, want) {
		t.Errorf("loading frail.ko: %v, want %v", err, want)
	}
	checkWarnings(t, "frail: "+message)
	if after := traces(t); after != before {
		t.Errorf("loading frail.ko failed and left\n%safter\n%s", after, before)
	}
}

// traces are what a module leaves that is not undone: itself, hooked functions, and
// the reference that keeps KVM.
func traces(t *testing.T) string {
	t.Helper()
	return string(readFile(t, "/proc/modules")) + string(readFile(t, "/sys/kernel/tracing/enabled_functions"))
}

// kvmVendor is the module that is KVM's for this CPU.
func kvmVendor(t *testing.T) string {
	t.Helper()
	if vendor(t) == "AuthenticAMD" {
		return "kvm_amd"
	}
	return "kvm_intel"
}

// TestRefusedSymbols loads the module on kernels that lack one of the symbols that
// it looks up: copies of it look for another one in its place.
func TestRefusedSymbols(t *testing.T) {
	unloadFrail(t)
	image := readFile(t, *module)
	lack := func(symbol, message string) {
		t.Run(symbol, func(t *testing.T) {
			name := []byte("\x00" + symbol + "\x00")
			if !bytes.Contains(image, name) {
				t.Fatal("frail.ko does not look for it")
			}
			other := slices.Clone(name)
			other[len(other)-2] = 'Z'
			checkNotLoaded(t, bytes.ReplaceAll(image, name, other), unix.ENOENT, message)
		})
	}
	lack("kallsyms_lookup_name", fmt.Sprintf(
		"cannot find kallsyms_lookup_name with a kprobe (error -%d): is CONFIG_KPROBES on?", unix.ENOENT))
	messages := regexp.MustCompile(`this kernel has no symbol (\w+), which Frail needs`).FindAllSubmatch(image, -1)
	for _, m := range messages {
		symbol := string(m[1])
		ofVMX := strings.HasPrefix(symbol, "vmx_") || symbol == "handle_dr"
		ofSVM := strings.HasPrefix(symbol, "svm_")
		if intel := kvmVendor(t) == "kvm_intel"; intel && ofSVM || !intel && ofVMX {
			continue // looked for with the other vendor's CPUs only
		}
		lack(symbol, string(m[0]))
	}
	if len(messages) == 0 {
		t.Error("frail.ko has no message for a symbol that is not there")
	}
}

// TestRefusedNoKVM loads the module before KVM.
func TestRefusedNoKVM(t *testing.T) {
	unloadFrail(t)
	t.Cleanup(func() {
		if out, err := exec.Command("modprobe", kvmVendor(t)).CombinedOutput(); err != nil {
			t.Fatalf("load KVM again: %v: %s", err, out)
		}
	})
	for _, name := range []string{kvmVendor(t), "kvm"} {
		unload(t, name)
		t.Run("without "+name, func(t *testing.T) {
			checkNotLoaded(t, readFile(t, *module), unix.ENODEV, "KVM is not loaded: load kvm_amd or kvm_intel first")
		})
	}
}

// owned is the module's message about a function that another has hooked.
func owned(function string) string {
	return fmt.Sprintf("cannot hook KVM's %s (error -%d): is it owned by a livepatch or another tracer?", function, unix.EBUSY)
}

// TestRefusedTraced loads the module where a BPF program is attached to a function
// that it hooks, the first one or a later one.
func TestRefusedTraced(t *testing.T) {
	unloadFrail(t)
	setEFER := map[string]string{"kvm_amd": "svm_set_efer", "kvm_intel": "vmx_set_efer"}[kvmVendor(t)]
	for _, tt := range []struct{ function, hook string }{{setEFER, "set_efer"}, {"handle_ud", "handle_ud"}} {
		t.Run(tt.hook, func(t *testing.T) {
			prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
				Type: ebpf.Tracing, AttachType: ebpf.AttachTraceFEntry, AttachTo: tt.function, License: "GPL",
				Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()},
			})
			if err != nil {
				t.Fatal(err)
			}
			defer prog.Close()
			l, err := link.AttachTracing(link.TracingOptions{Program: prog})
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			checkNotLoaded(t, readFile(t, *module), unix.EBUSY, owned(tt.hook))
		})
	}
}

// TestRefusedLivepatch loads the module and a livepatch of handle_ud, in either order:
// the function has one owner, and the second is told.
func TestRefusedLivepatch(t *testing.T) {
	if _, err := os.Stat("/sys/kernel/livepatch"); err != nil {
		t.Skipf("this kernel has no livepatches: %v", err)
	}
	t.Run("after frail.ko", func(t *testing.T) {
		checkWarnings(t)
		if err := unix.InitModule(readFile(t, *livepatch), ""); !errors.Is(err, unix.EBUSY) {
			t.Errorf("loading a livepatch of handle_ud: %v, want %v", err, unix.EBUSY)
		}
		for _, line := range hostLog.Warnings() {
			if !strings.HasPrefix(line, "livepatch: ") {
				t.Errorf("the host's kernel warns: %q", line)
			}
		}
		checkArmed(t, createVM(t, 0))
	})
	t.Run("before frail.ko", func(t *testing.T) {
		unloadFrail(t)
		if err := unix.InitModule(readFile(t, *livepatch), ""); err != nil {
			t.Fatalf("load a livepatch of handle_ud: %v", err)
		}
		t.Cleanup(func() {
			// It is no livepatch any more when all tasks have left the patched function.
			const dir = "/sys/kernel/livepatch/livepatch"
			if err := os.WriteFile(dir+"/enabled", []byte("0"), 0); err != nil {
				t.Fatal(err)
			}
			within(t, time.Minute, "the livepatch is off", func() error {
				if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
					return fmt.Errorf("%s is there: %v", dir, err)
				}
				return nil
			})
			unload(t, "livepatch")
		})
		checkNotLoaded(t, readFile(t, *module), unix.EBUSY, owned("handle_ud"))
	})
}

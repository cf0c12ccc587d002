// SPDX-License-Identifier: Apache-2.0

package device

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"frail/bpf"
)

const testDeadline = 30 * time.Second

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

func TestOpenErrors(t *testing.T) {
	dir := t.TempDir()
	t.Run("no such device", func(t *testing.T) {
		_, err := open(filepath.Join(dir, "frail"))
		if !errors.Is(err, ErrNotLoaded) || !strings.Contains(err.Error(), "frail.ko is not loaded: modprobe frail") {
			t.Errorf("error %v", err)
		}
	})
	t.Run("node without a driver", func(t *testing.T) {
		node := filepath.Join(dir, "node")
		must(t, unix.Mknod(node, unix.S_IFCHR|0o600, int(unix.Mkdev(unusedMajor(t), 0))))
		_, err := open(node)
		if !errors.Is(err, ErrNotLoaded) {
			t.Errorf("error %v", err)
		}
	})
	t.Run("directory", func(t *testing.T) {
		_, err := open(dir)
		if err == nil || errors.Is(err, ErrNotLoaded) {
			t.Errorf("error %v", err)
		}
	})
}

// unusedMajor returns a character device number that no driver of this kernel has.
func unusedMajor(t *testing.T) uint32 {
	t.Helper()
	devices, err := os.ReadFile("/proc/devices")
	must(t, err)
	for major := 254; major > 0; major-- {
		if !strings.Contains(string(devices), fmt.Sprintf("\n%3d ", major)) {
			return uint32(major)
		}
	}
	t.Fatal("every major number is taken")
	return 0
}

// A device that is not frail's answers its requests with ENOTTY.
func TestForeignDevice(t *testing.T) {
	d, err := open(os.DevNull)
	must(t, err)
	vm, err := d.Arm(0, bpf.ExitsBoth)
	if err == nil {
		vm.Close()
		t.Fatal("armed a VM through the null device")
	}
	if !errors.Is(err, unix.ENOTTY) || !strings.Contains(err.Error(), "arm VM: not a KVM VM") {
		t.Errorf("error %v", err)
	}
	must(t, d.Close())
	must(t, d.Close())
	if _, err := d.Arm(0, bpf.ExitsBoth); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Arm of a closed device returned %v", err)
	}
}

func TestArmErrors(t *testing.T) {
	for _, tc := range []struct {
		errno   unix.Errno
		refusal uint32
		is      error
		text    string
	}{
		{unix.EBUSY, 0, ErrBusy, "armed already"},
		{unix.EOPNOTSUPP, 0, ErrUnsupported, "VM cannot be traced: the kernel log says why"},
		{unix.EOPNOTSUPP, 99, ErrUnsupported, "VM cannot be traced: the kernel log says why"},
		{unix.EOPNOTSUPP, bpf.RefusalEncrypted, ErrUnsupported, "VM cannot be traced: its memory or vCPU state is encrypted (SEV, SEV-ES, SEV-SNP or TDX)"},
		{unix.EOPNOTSUPP, bpf.RefusalFRED, ErrUnsupported, "VM cannot be traced: its CPU has FRED, by which its kernel takes system calls without SYSCALL"},
		{unix.EOPNOTSUPP, bpf.RefusalShadowStack, ErrUnsupported, "VM cannot be traced: its CPU has shadow stacks (CET), which Frail does not switch as SYSCALL does"},
		{unix.ENOSPC, 0, unix.ENOSPC, "4096 VMs are armed"},
		{unix.EBADF, 0, unix.EBADF, "not open"},
		{unix.EINVAL, 0, unix.EINVAL, "not a KVM VM"},
		{unix.ENOMEM, 0, unix.ENOMEM, "cannot allocate memory"},
	} {
		err := armError(tc.errno, tc.refusal)
		if !errors.Is(err, tc.is) || !errors.Is(err, tc.errno) || !strings.Contains(err.Error(), tc.text) {
			t.Errorf("%v, refusal %d: error %q", tc.errno, tc.refusal, err)
		}
		// Only what would fail the same way again is final.
		if final := errors.Is(err, ErrUnsupported); final != (tc.is == ErrUnsupported) {
			t.Errorf("%v, refusal %d: final: %t", tc.errno, tc.refusal, final)
		}
	}
}

// testVM is a VM around a socket: out-of-band data raises POLLPRI, as a new generation
// does on a VM descriptor.
func testVM(tb testing.TB) (vm *VM, peer int) {
	tb.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	must(tb, err)
	vm, err = newVM(fds[0], 5)
	must(tb, err)
	tb.Cleanup(func() {
		must(tb, vm.Close())
		must(tb, unix.Close(fds[1]))
	})
	return vm, fds[1]
}

func raise(tb testing.TB, peer int) {
	tb.Helper()
	must(tb, unix.Send(peer, []byte{1}, unix.MSG_OOB))
}

func lower(tb testing.TB, vm *VM) {
	tb.Helper()
	if _, _, err := unix.Recvfrom(vm.FD(), make([]byte, 1), unix.MSG_OOB); err != nil {
		tb.Fatal(err)
	}
}

func within(tb testing.TB, what string, ch <-chan error) error {
	tb.Helper()
	select {
	case err := <-ch:
		return err
	case <-time.After(testDeadline):
		tb.Fatalf("timed out waiting for %s", what)
		return nil
	}
}

func TestWait(t *testing.T) {
	vm, peer := testVM(t)
	ctx, cancel := context.WithTimeout(context.Background(), testDeadline)
	defer cancel()

	t.Run("pending before", func(t *testing.T) {
		raise(t, peer)
		must(t, vm.waitPending(ctx))
		must(t, vm.waitPending(ctx)) // stays pending until it is looked at
		lower(t, vm)
	})
	t.Run("raised while waiting, again and again", func(t *testing.T) {
		for range 100 {
			done := make(chan error, 1)
			go func() { done <- vm.waitPending(ctx) }()
			raise(t, peer)
			must(t, within(t, "POLLPRI", done))
			lower(t, vm)
		}
	})
	t.Run("ordinary data does not wake", func(t *testing.T) {
		if _, err := unix.Write(peer, []byte("x")); err != nil {
			t.Fatal(err)
		}
		short, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
		defer cancel()
		if err := vm.waitPending(short); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error %v", err)
		}
	})
	t.Run("context ended before", func(t *testing.T) {
		ended, cancel := context.WithCancel(ctx)
		cancel()
		if err := vm.waitPending(ended); !errors.Is(err, context.Canceled) {
			t.Errorf("error %v", err)
		}
	})
	t.Run("context ends while waiting, then waits again", func(t *testing.T) {
		for range 100 {
			ended, cancel := context.WithCancel(ctx)
			done := make(chan error, 1)
			go func() { done <- vm.waitPending(ended) }()
			cancel()
			if err := within(t, "the wait to end", done); !errors.Is(err, context.Canceled) {
				t.Fatalf("error %v", err)
			}
		}
		raise(t, peer)
		must(t, vm.waitPending(ctx))
		lower(t, vm)
	})
	t.Run("two wait at once", func(t *testing.T) {
		done := make(chan error, 2)
		for range 2 {
			go func() { done <- vm.waitPending(ctx) }()
		}
		raise(t, peer)
		must(t, within(t, "one", done))
		must(t, within(t, "the other", done))
		lower(t, vm)
	})
	t.Run("the status follows", func(t *testing.T) {
		raise(t, peer)
		// A socket has no status to tell.
		if _, err := vm.Wait(ctx); !errors.Is(err, unix.ENOTTY) || !strings.Contains(err.Error(), "read status of VM 5") {
			t.Errorf("error %v", err)
		}
		lower(t, vm)
	})
}

func TestCloseVM(t *testing.T) {
	vm, _ := testVM(t)
	done := make(chan error, 2)
	for range 2 {
		go func() { done <- vm.waitPending(context.Background()) }()
	}
	must(t, vm.Close())
	must(t, vm.Close())
	for range 2 {
		if err := within(t, "Wait to end", done); !errors.Is(err, os.ErrClosed) {
			t.Errorf("Wait returned %v", err)
		}
	}
	if fd := vm.FD(); fd != -1 {
		t.Errorf("FD of a closed VM is %d", fd)
	}
	if _, err := vm.Status(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Status returned %v", err)
	}
	if err := vm.SetLayout(bpf.Layout{}); !errors.Is(err, os.ErrClosed) {
		t.Errorf("SetLayout returned %v", err)
	}
	if vm.ID() != 5 {
		t.Errorf("id %d", vm.ID())
	}
}

// Waiting for many VMs holds no threads.
func TestWaitForManyVMs(t *testing.T) {
	const vms = 200
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	var started sync.WaitGroup
	for range vms {
		vm, _ := testVM(t)
		started.Add(1)
		wg.Go(func() {
			started.Done()
			if err := vm.waitPending(ctx); !errors.Is(err, context.Canceled) {
				t.Errorf("error %v", err)
			}
		})
	}
	started.Wait()
	parked := waitUntil(func() bool {
		buf := make([]byte, 1<<20)
		return strings.Count(string(buf[:runtime.Stack(buf, true)]), "[IO wait") >= vms
	})
	status, err := os.ReadFile("/proc/self/status")
	must(t, err)
	_, rest, _ := strings.Cut(string(status), "\nThreads:\t")
	line, _, _ := strings.Cut(rest, "\n")
	threads, err := strconv.Atoi(line)
	must(t, err)
	cancel()
	wg.Wait()
	if !parked {
		t.Error("not every goroutine waits in the runtime's poller")
	}
	if threads > vms/4 {
		t.Errorf("%d threads for %d VMs", threads, vms)
	}
}

func waitUntil(cond func() bool) bool {
	for deadline := time.Now().Add(testDeadline); ; runtime.Gosched() {
		if cond() {
			return true
		}
		if time.Now().After(deadline) {
			return false
		}
	}
}

// The tests below take descriptors of a real other process: this test binary, run again
// with helperEnv set, which opens what the variable says and then waits for its end.
const helperEnv = "FRAIL_DEVICE_TEST_HELPER"

func TestMain(m *testing.M) {
	if what, ok := os.LookupEnv(helperEnv); ok {
		if err := helper(what); err != nil {
			fmt.Println("error:", err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

func helper(what string) error {
	for _, w := range strings.Fields(what) {
		fd, err := unix.MemfdCreate("frail-test-"+w[:1], unix.MFD_CLOEXEC)
		if err != nil {
			return err
		}
		if strings.HasSuffix(w, "dup") {
			if _, err := unix.Dup(fd); err != nil {
				return err
			}
		}
		if _, err := unix.Write(fd, []byte("from the helper")); err != nil {
			return err
		}
	}
	fmt.Println("ready")
	_, err := io.Copy(io.Discard, os.Stdin)
	return err
}

// startHelper runs a process with the memory files that what lists: a letter for each,
// followed by "dup" for one with two descriptors.
func startHelper(t *testing.T, what string) int {
	t.Helper()
	exe, err := os.Executable()
	must(t, err)
	ctx, cancel := context.WithTimeout(context.Background(), testDeadline)
	cmd := exec.CommandContext(ctx, exe)
	cmd.Env = append(os.Environ(), helperEnv+"="+what)
	in, err := cmd.StdinPipe()
	must(t, err)
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	t.Cleanup(func() {
		in.Close()
		if err := cmd.Wait(); err != nil {
			t.Errorf("helper: %v", err)
		}
		cancel()
	})
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
		t.Fatalf("helper said %q, %v", line, err)
	}
	return cmd.Process.Pid
}

const memfdA = "/memfd:frail-test-a (deleted)"

func TestTakeFD(t *testing.T) {
	for _, tc := range []struct {
		name, helper string
		want         error
	}{
		{"one", "a", nil},
		{"one with two descriptors", "adup", nil},
		{"one among others", "b a c", nil},
		{"none", "b c", ErrNoKVMVM},
		{"two", "a a", ErrManyKVMVMs},
	} {
		t.Run(tc.name, func(t *testing.T) {
			pid := startHelper(t, tc.helper)
			before := openFDs(t)
			fd, err := takeFD(pid, memfdA)
			if tc.want != nil {
				if !errors.Is(err, tc.want) {
					t.Errorf("error %v, want %v", err, tc.want)
				}
				if after := openFDs(t); after != before {
					t.Errorf("%d descriptors open, %d before", after, before)
				}
				return
			}
			must(t, err)
			defer unix.Close(fd)
			buf := make([]byte, 64)
			n, err := unix.Pread(fd, buf, 0)
			must(t, err)
			if got := string(buf[:n]); got != "from the helper" {
				t.Errorf("read %q", got)
			}
			if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
				t.Errorf("descriptor flags %#x, %v: it would leak into children", flags, err)
			}
			if after := openFDs(t); after != before+1 {
				t.Errorf("%d descriptors open, %d before", after, before)
			}
		})
	}
}

func openFDs(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	return len(entries)
}

func TestKVMVMErrors(t *testing.T) {
	t.Run("process without a VM", func(t *testing.T) {
		pid := startHelper(t, "a")
		_, err := KVMVM(pid)
		if !errors.Is(err, ErrNoKVMVM) || !strings.Contains(err.Error(), strconv.Itoa(pid)) {
			t.Errorf("error %v", err)
		}
	})
	t.Run("process that has ended", func(t *testing.T) {
		cmd := exec.Command("true")
		must(t, cmd.Run())
		if _, err := KVMVM(cmd.Process.Pid); !errors.Is(err, unix.ESRCH) {
			t.Errorf("error %v", err)
		}
	})
	t.Run("not a process", func(t *testing.T) {
		if _, err := KVMVM(-1); !errors.Is(err, unix.EINVAL) {
			t.Errorf("error %v", err)
		}
	})
}

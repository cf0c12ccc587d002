// SPDX-License-Identifier: Apache-2.0

package device

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"frail/bpf"
)

// Path is the module's device node.
const Path = "/dev/frail"

var (
	// ErrNotLoaded is in the chain of [Open]'s error when the module is not there.
	ErrNotLoaded = errors.New("frail.ko is not loaded: modprobe frail")
	// ErrBusy is in the chain of [Device.Arm]'s error when the VM is armed already.
	ErrBusy = errors.New("VM is armed already, by this or another process")
	// ErrUnsupported is in the chain of [Device.Arm]'s error when the module refuses
	// the VM for good: another attempt on the same VM would fail the same way.
	ErrUnsupported = errors.New("VM cannot be traced")
	// ErrStale is in the chain of [VM.SetLayout]'s error when the layout is not of the
	// guest kernel that runs now: a new generation is there to be resolved.
	ErrStale = errors.New("guest has started another kernel since")
)

// Device is the module's control descriptor. It is safe for concurrent use.
type Device struct {
	file *os.File
}

// Open opens /dev/frail. It returns an error wrapping [ErrNotLoaded] if the module is not
// loaded.
func Open() (*Device, error) { return open(Path) }

func open(path string) (*Device, error) {
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_CLOEXEC, 0)
	switch {
	case errors.Is(err, os.ErrNotExist), errors.Is(err, unix.ENXIO), errors.Is(err, unix.ENODEV):
		return nil, fmt.Errorf("open %s: %w", path, ErrNotLoaded)
	case errors.Is(err, os.ErrPermission):
		return nil, fmt.Errorf("open %s: permission denied: only root may arm VMs: %w", path, err)
	case err != nil:
		return nil, err
	}
	return &Device{f}, nil
}

// Close closes the descriptor. VMs that it armed stay armed. Closing twice is no error.
func (d *Device) Close() error {
	if err := d.file.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
		return err
	}
	return nil
}

// Arm puts the VM behind a KVM VM descriptor of this process under trace; exits is
// [bpf.ExitsBoth] or [bpf.ExitsEntry]. The descriptor may be closed afterwards.
//
// The error wraps [ErrBusy] or [ErrUnsupported] where these apply.
func (d *Device) Arm(kvmFD int, exits uint32) (*VM, error) {
	arg := bpf.Arm{
		Size:  uint32(unsafe.Sizeof(bpf.Arm{})),
		KvmFd: int32(kvmFD),
		Exits: exits,
	}
	fd, err := control(d.file, bpf.IocArm, unsafe.Pointer(&arg))
	if err != nil {
		return nil, fmt.Errorf("arm VM: %w", armError(err, arg.Refusal))
	}
	vm, err := newVM(fd, arg.Vm)
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("arm VM: %w", err)
	}
	return vm, nil
}

// armError says what the module means by an errno of IocArm, and by the refusal that comes
// with EOPNOTSUPP.
func armError(err error, refusal uint32) error {
	switch {
	case errors.Is(err, unix.EBUSY):
		return fmt.Errorf("%w: %w", ErrBusy, err)
	case errors.Is(err, unix.EOPNOTSUPP):
		return fmt.Errorf("%w: %s: %w", ErrUnsupported, refusalText(refusal), err)
	case errors.Is(err, unix.ENOSPC):
		return fmt.Errorf("%d VMs are armed, which is all that can be: %w", bpf.VMSlots, err)
	case errors.Is(err, unix.EBADF):
		return fmt.Errorf("KVM descriptor is not open: %w", err)
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOTTY):
		return fmt.Errorf("not a KVM VM, or frail.ko is of another version than this program: %w", err)
	default:
		return err
	}
}

// refusalText says why the module refuses a VM.
func refusalText(refusal uint32) string {
	switch refusal {
	case bpf.RefusalEncrypted:
		return "its memory or vCPU state is encrypted (SEV, SEV-ES, SEV-SNP or TDX)"
	case bpf.RefusalFRED:
		return "its CPU has FRED, by which its kernel takes system calls without SYSCALL"
	case bpf.RefusalShadowStack:
		return "its CPU has shadow stacks (CET), which Frail does not switch as SYSCALL does"
	default:
		return "the kernel log says why (dmesg | grep frail)"
	}
}

// VM is an armed virtual machine. It is safe for concurrent use.
type VM struct {
	id   uint32
	file *os.File

	// The runtime's poller knows nothing of POLLPRI. An epoll descriptor that waits for
	// it is itself readable while it is pending, and that the runtime can wait for, so
	// a waiting goroutine holds no thread.
	poll *os.File

	// waiting serialises Wait: the descriptor has one deadline.
	waiting chan struct{}

	closed    chan struct{}
	closeOnce sync.Once
	closeErr  error
}

// newVM takes ownership of fd, unless it fails.
func newVM(fd int, id uint32) (*VM, error) {
	ep, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("create epoll descriptor: %w", err)
	}
	ev := unix.EpollEvent{Events: unix.EPOLLPRI, Fd: int32(fd)}
	if err := unix.EpollCtl(ep, unix.EPOLL_CTL_ADD, fd, &ev); err != nil {
		unix.Close(ep)
		return nil, fmt.Errorf("watch VM descriptor: %w", err)
	}
	// NewFile asks the runtime's poller only about descriptors that do not block.
	if err := unix.SetNonblock(ep, true); err != nil {
		unix.Close(ep)
		return nil, fmt.Errorf("watch VM descriptor: %w", err)
	}
	poll := os.NewFile(uintptr(ep), "frail-vm-poll")
	if err := poll.SetReadDeadline(time.Time{}); err != nil {
		poll.Close()
		return nil, fmt.Errorf("watch VM descriptor: %w", err)
	}
	return &VM{
		id:      id,
		file:    os.NewFile(uintptr(fd), "frail-vm"),
		poll:    poll,
		waiting: make(chan struct{}, 1),
		closed:  make(chan struct{}),
	}, nil
}

// ID returns the VM's id, as events carry it. The module never uses one twice.
func (vm *VM) ID() uint32 { return vm.id }

// FD returns the VM descriptor, which stays owned by vm: a duplicate of it, in systemd's
// descriptor store say, keeps the VM armed. It is valid until Close.
func (vm *VM) FD() int {
	conn, err := vm.file.SyscallConn()
	if err != nil {
		return -1
	}
	fd := -1
	if err := conn.Control(func(p uintptr) { fd = int(p) }); err != nil {
		return -1
	}
	return fd
}

// Status returns the module's view of the VM. It also takes note of the generation it
// returns, so that [VM.Wait] waits for the next one.
func (vm *VM) Status() (bpf.Status, error) {
	st := bpf.Status{Size: uint32(unsafe.Sizeof(bpf.Status{}))}
	if _, err := control(vm.file, bpf.IocStatus, unsafe.Pointer(&st)); err != nil {
		return bpf.Status{}, fmt.Errorf("read status of VM %d: %w", vm.id, err)
	}
	return st, nil
}

// SetLayout tells the module where the guest kernel keeps the identity of its threads.
// It replaces an earlier layout; Size need not be set. The error wraps [ErrStale] when the
// guest runs another kernel by now.
func (vm *VM) SetLayout(l bpf.Layout) error {
	l.Size = uint32(unsafe.Sizeof(l))
	if _, err := control(vm.file, bpf.IocSetLayout, unsafe.Pointer(&l)); err != nil {
		switch {
		case errors.Is(err, unix.EINVAL):
			err = fmt.Errorf("frail.ko rejects the layout: %w", err)
		case errors.Is(err, unix.ESTALE):
			err = fmt.Errorf("%w: %w", ErrStale, err)
		}
		return fmt.Errorf("set layout of VM %d: %w", vm.id, err)
	}
	return nil
}

// Describe makes the module tell of each thread who it is, before its next event: for a
// tracer that was attached after others.
func (vm *VM) Describe() error {
	if _, err := control(vm.file, bpf.IocDescribe, nil); err != nil {
		return fmt.Errorf("have the threads of VM %d described: %w", vm.id, err)
	}
	return nil
}

// SetData makes the module tell events of the VM with what their calls' arguments point to, as
// spec says, to every tracer. It replaces an earlier one; nil: none is told. Size need not be
// set.
func (vm *VM) SetData(spec *bpf.DataSpec) error {
	var s bpf.DataSpec
	if spec != nil {
		s = *spec
	}
	s.Size = uint32(unsafe.Sizeof(s))
	if _, err := control(vm.file, bpf.IocSetData, unsafe.Pointer(&s)); err != nil {
		switch {
		case errors.Is(err, unix.EINVAL):
			err = fmt.Errorf("frail.ko rejects what is to be read: %w", err)
		case errors.Is(err, unix.ENOTTY):
			err = fmt.Errorf("frail.ko is of another version than this program: %w", err)
		}
		return fmt.Errorf("have arguments of VM %d followed: %w", vm.id, err)
	}
	return nil
}

// Wait returns the VM's status as soon as its generation differs from the one the last
// status told, by whoever asked for it. It returns ctx's error when ctx ends first, and
// [os.ErrClosed] after Close. No thread is held while waiting.
func (vm *VM) Wait(ctx context.Context) (bpf.Status, error) {
	if err := vm.waitPending(ctx); err != nil {
		return bpf.Status{}, err
	}
	return vm.Status()
}

// waitPending returns when the descriptor reports POLLPRI, POLLERR or POLLHUP.
func (vm *VM) waitPending(ctx context.Context) error {
	select {
	case vm.waiting <- struct{}{}:
		defer func() { <-vm.waiting }()
	case <-ctx.Done():
		return ctx.Err()
	case <-vm.closed:
		return vm.waitError(os.ErrClosed)
	}
	if err := ctx.Err(); err != nil {
		return err
	}

	conn, err := vm.poll.SyscallConn()
	if err != nil {
		return vm.waitError(err)
	}
	if err := vm.poll.SetReadDeadline(time.Time{}); err != nil {
		return vm.waitError(os.ErrClosed)
	}
	interrupted := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		// Only fails after Close, which ends the wait as well.
		_ = vm.poll.SetReadDeadline(time.Unix(1, 0))
		close(interrupted)
	})
	var pollErr error
	err = conn.Read(func(fd uintptr) bool {
		var events [1]unix.EpollEvent
		for {
			n, err := unix.EpollWait(int(fd), events[:], 0)
			if errors.Is(err, unix.EINTR) {
				continue
			}
			pollErr = err
			return err != nil || n > 0
		}
	})
	if !stop() {
		// The next Wait resets the deadline: it must not be overtaken.
		<-interrupted
	}
	switch {
	case pollErr != nil:
		return vm.waitError(pollErr)
	case errors.Is(err, os.ErrDeadlineExceeded):
		return ctx.Err()
	case err != nil:
		// The runtime knows no other reason, and has no exported error for it.
		return vm.waitError(os.ErrClosed)
	}
	return nil
}

func (vm *VM) waitError(err error) error {
	return fmt.Errorf("wait for VM %d: %w", vm.id, err)
}

// Close disarms the VM, unless a duplicate of its descriptor is still open, and ends
// calls of Wait. Closing twice is no error.
func (vm *VM) Close() error {
	vm.closeOnce.Do(func() {
		close(vm.closed)
		vm.closeErr = errors.Join(vm.poll.Close(), vm.file.Close())
	})
	return vm.closeErr
}

// control makes an ioctl on f. The descriptor cannot be closed meanwhile.
func control(f *os.File, request uint32, arg unsafe.Pointer) (int, error) {
	conn, err := f.SyscallConn()
	if err != nil {
		return -1, err
	}
	var (
		ret   uintptr
		errno unix.Errno
	)
	err = conn.Control(func(fd uintptr) {
		for {
			ret, _, errno = unix.Syscall(unix.SYS_IOCTL, fd, uintptr(request), uintptr(arg))
			if errno != unix.EINTR {
				return
			}
		}
	})
	runtime.KeepAlive(arg)
	if err != nil {
		// Control fails for no other reason, and its error is not exported.
		return -1, os.ErrClosed
	}
	if errno != 0 {
		return -1, errno
	}
	return int(ret), nil
}

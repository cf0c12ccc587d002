// SPDX-License-Identifier: Apache-2.0

package device

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"
)

// kvmVMLink is what a KVM VM descriptor's link in /proc/PID/fd reads.
const kvmVMLink = "anon_inode:kvm-vm"

// maxFDs bounds how many descriptors of a process are looked at. QEMU has a few per
// device and queue; the kernel's default limit for a service is half of this.
const maxFDs = 1 << 20

var (
	// ErrNoKVMVM is in the chain of [KVMVM]'s error when the process has no KVM VM,
	// as a QEMU without hardware acceleration, or one that is starting up.
	ErrNoKVMVM = errors.New("process has no KVM VM")
	// ErrManyKVMVMs is in the chain of [KVMVM]'s error when the process has several.
	ErrManyKVMVMs = errors.New("process has more than one KVM VM")
)

// KVMVM returns a duplicate of the KVM VM descriptor of a process, for [Device.Arm]. The
// caller closes it. The process must have exactly one KVM VM: the errors wrap
// [ErrNoKVMVM] or [ErrManyKVMVMs] otherwise.
//
// It needs the right to ptrace the process (CAP_SYS_PTRACE), and Linux 5.6.
func KVMVM(pid int) (int, error) {
	fd, err := takeFD(pid, kvmVMLink)
	if err != nil {
		return -1, fmt.Errorf("take the KVM VM of process %d: %w", pid, err)
	}
	return fd, nil
}

// ArmProcess is [Device.Arm] for the KVM VM of a process, as [KVMVM] finds it.
func ArmProcess(pid int, exits uint32) (*VM, error) {
	dev, err := Open()
	if err != nil {
		return nil, err
	}
	defer dev.Close()
	fd, err := KVMVM(pid)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	return dev.Arm(fd, exits)
}

// takeFD duplicates the one descriptor of a process whose link in /proc reads link.
// Several descriptors of one open file count as one.
func takeFD(pid int, link string) (int, error) {
	// The pidfd is taken first: it names the process for good, where the number could
	// pass to another one between the look into /proc and the duplication.
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		if errors.Is(err, unix.ESRCH) {
			return -1, fmt.Errorf("no such process: %w", err)
		}
		return -1, fmt.Errorf("open pidfd: %w", err)
	}
	defer unix.Close(pidfd)

	fds, err := findFDs("/proc/"+strconv.Itoa(pid)+"/fd", link)
	if err != nil {
		return -1, err
	}
	taken := -1
	for _, theirs := range fds {
		fd, err := unix.PidfdGetfd(pidfd, theirs, 0)
		switch {
		case errors.Is(err, unix.EBADF):
			continue // closed since
		case errors.Is(err, unix.EPERM):
			err = fmt.Errorf("permission denied: CAP_SYS_PTRACE is needed: %w", err)
		case errors.Is(err, unix.ESRCH):
			err = fmt.Errorf("process has ended: %w", err)
		}
		if err == nil {
			err = sameLink(fd, link)
		}
		if errors.Is(err, errOtherFile) {
			unix.Close(fd) // closed and its number used again since
			continue
		}
		if err == nil && taken >= 0 {
			var same bool
			if same, err = sameFile(taken, fd); err == nil && !same {
				err = ErrManyKVMVMs
			}
			unix.Close(fd)
			fd = -1
		}
		if err != nil {
			if fd >= 0 {
				unix.Close(fd)
			}
			if taken >= 0 {
				unix.Close(taken)
			}
			return -1, fmt.Errorf("take descriptor %d: %w", theirs, err)
		}
		if fd >= 0 {
			taken = fd
		}
	}
	if taken < 0 {
		return -1, ErrNoKVMVM
	}
	return taken, nil
}

// findFDs lists, in ascending order, the descriptors in a /proc/PID/fd directory whose
// link reads link.
func findFDs(dir, link string) ([]int, error) {
	d, err := os.Open(dir)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil, fmt.Errorf("process has ended: %w", err)
	case errors.Is(err, os.ErrPermission):
		return nil, fmt.Errorf("permission denied: CAP_SYS_PTRACE is needed: %w", err)
	case err != nil:
		return nil, err
	}
	defer d.Close()

	var fds []int
	for seen := 0; ; {
		names, err := d.Readdirnames(1024)
		for _, name := range names {
			got, err := os.Readlink(dir + "/" + name)
			if errors.Is(err, os.ErrNotExist) {
				continue // closed since
			}
			if errors.Is(err, os.ErrPermission) {
				return nil, fmt.Errorf("permission denied: CAP_SYS_PTRACE is needed: %w", err)
			}
			if err != nil {
				return nil, err
			}
			if got != link {
				continue
			}
			fd, err := strconv.Atoi(name)
			if err != nil {
				return nil, fmt.Errorf("%s: descriptor %q is not a number", dir, name)
			}
			fds = append(fds, fd)
		}
		if seen += len(names); seen > maxFDs {
			return nil, fmt.Errorf("process has more than %d descriptors", maxFDs)
		}
		if errors.Is(err, io.EOF) || (err == nil && len(names) == 0) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("list descriptors: %w", err)
		}
	}
	slices.Sort(fds)
	return fds, nil
}

var errOtherFile = errors.New("descriptor is of another kind")

// sameLink returns errOtherFile unless a descriptor of this process reads link.
func sameLink(fd int, link string) error {
	got, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(fd))
	if err != nil {
		return err
	}
	if got != link {
		return errOtherFile
	}
	return nil
}

// sameFile tells whether two descriptors of this process are of one open file. All
// anonymous inodes are one inode, so fstat cannot tell.
func sameFile(a, b int) (bool, error) {
	const kcmpFile = 0
	pid := uintptr(os.Getpid())
	r, _, errno := unix.Syscall6(unix.SYS_KCMP, pid, pid, kcmpFile, uintptr(a), uintptr(b), 0)
	if errno != 0 {
		return false, fmt.Errorf("compare descriptors: %w", errno)
	}
	return r == 0, nil
}

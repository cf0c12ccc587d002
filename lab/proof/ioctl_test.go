// SPDX-License-Identifier: Apache-2.0

//go:build lab

package proof

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"frail/bpf"
	"frail/kmod/device"
	"frail/lab/direct"
)

// ioctl makes a request at the lowest level; 0 is success. The descriptor it returns, if
// any, is fd.
func ioctl(f int, request uint32, arg unsafe.Pointer) (fd int, errno unix.Errno) {
	r, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(f), uintptr(request), uintptr(arg))
	return int(r), errno
}

func armArgument(kvm int) bpf.Arm {
	return bpf.Arm{Size: uint32(unsafe.Sizeof(bpf.Arm{})), KvmFd: int32(kvm), Exits: bpf.ExitsBoth}
}

// seeded is a source of random numbers whose seed is in the log.
func seeded(t *testing.T) *rand.Rand {
	t.Helper()
	seed := rand.Uint64()
	t.Logf("seed %#x", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

// kvmOf is a guest's KVM VM descriptor, until the test's end.
func kvmOf(t *testing.T, g *direct.Guest) int {
	t.Helper()
	fd, err := device.KVMVM(g.PID())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

// testBadArguments gives every request what it must refuse, and checks that it says why
// and does nothing.
func testBadArguments(t *testing.T, g *direct.Guest) {
	f, err := os.OpenFile(device.Path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	dev := int(f.Fd())
	kvm := kvmOf(t, g)

	for _, tt := range badDescriptors(t, g) {
		arg := armArgument(tt.fd)
		if fd, errno := ioctl(dev, bpf.IocArm, unsafe.Pointer(&arg)); errno != tt.want {
			t.Errorf("arm %s: descriptor %d, error %v, want %v", tt.name, fd, errno, tt.want)
		}
	}
	good := armArgument(kvm)
	for _, change := range []func(*bpf.Arm){
		func(a *bpf.Arm) { a.Size = 0 },
		func(a *bpf.Arm) { a.Size-- },
		func(a *bpf.Arm) { a.Size++ },
		func(a *bpf.Arm) { a.Size = 1<<32 - 1 },
		func(a *bpf.Arm) { a.Exits = 2 },
		func(a *bpf.Arm) { a.Exits = 1<<32 - 1 },
		func(a *bpf.Arm) { a.Pad = 1 },
	} {
		arg := good
		change(&arg)
		if fd, errno := ioctl(dev, bpf.IocArm, unsafe.Pointer(&arg)); errno != unix.EINVAL {
			t.Errorf("arm with %+v: descriptor %d, error %v, want %v", arg, fd, errno, unix.EINVAL)
		}
	}

	pages := newPages(t)
	*(*bpf.Arm)(pages.readOnly) = good
	pages.protect(t)
	for name, arg := range pages.bad() {
		if fd, errno := ioctl(dev, bpf.IocArm, arg); errno != unix.EFAULT {
			t.Errorf("arm with its argument %s: descriptor %d, error %v, want %v", name, fd, errno, unix.EFAULT)
		}
	}

	// Whatever was refused left the VM free.
	fd, errno := ioctl(dev, bpf.IocArm, unsafe.Pointer(&good))
	if errno != 0 {
		t.Fatalf("arm after all that: %v", errno)
	}
	defer unix.Close(fd)
	for name, arg := range pages.bad() {
		for _, request := range []uint32{bpf.IocSetLayout, bpf.IocStatus, bpf.IocSetData} {
			// The read-only page has a bad size for both.
			if _, errno := ioctl(fd, request, arg); errno != unix.EFAULT && errno != unix.EINVAL {
				t.Errorf("request %#x with its argument %s: %v", request, name, errno)
			}
		}
	}
	r := seeded(t)
	for range 2000 {
		request := r.Uint32()
		if r.IntN(2) == 0 {
			// One bit off: another number, size or direction.
			request = []uint32{bpf.IocArm, bpf.IocSetLayout, bpf.IocStatus}[r.IntN(3)] ^ 1<<r.IntN(32)
		}
		if request == bpf.IocArm || request == bpf.IocSetLayout || request == bpf.IocStatus {
			continue
		}
		for _, on := range []int{dev, fd} {
			if _, errno := ioctl(on, request, unsafe.Pointer(&good)); errno != unix.ENOTTY {
				t.Fatalf("request %#x: %v, want %v", request, errno, unix.ENOTTY)
			}
		}
	}
	if _, errno := ioctl(dev, bpf.IocSetData, unsafe.Pointer(&bpf.DataSpec{})); errno != unix.ENOTTY {
		t.Errorf("what to read on the device's descriptor: %v", errno)
	}
	for on, request := range map[int]uint32{dev: bpf.IocStatus, fd: bpf.IocArm} {
		if _, errno := ioctl(on, request, unsafe.Pointer(&good)); errno != unix.ENOTTY {
			t.Errorf("request %#x on the other's descriptor: %v", request, errno)
		}
	}
}

type descriptor struct {
	name string
	fd   int
	want unix.Errno
}

// badDescriptors are those that are not of a VM, until the test's end.
func badDescriptors(t *testing.T, g *direct.Guest) []descriptor {
	t.Helper()
	open := func(path string) int {
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return int(f.Fd())
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close(); w.Close() })
	event, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(event) })
	return []descriptor{
		{"-1", -1, unix.EBADF},
		{"the smallest number", -1 << 31, unix.EBADF},
		{"the largest number", 1<<31 - 1, unix.EBADF},
		{"a number not in use", 1 << 15, unix.EBADF},
		{"a path", pathDescriptor(t), unix.EBADF},
		{"/dev/kvm", open("/dev/kvm"), unix.EINVAL},
		{"/dev/frail", open(device.Path), unix.EINVAL},
		{"/dev/null", open("/dev/null"), unix.EINVAL},
		{"a pipe", int(r.Fd()), unix.EINVAL},
		{"an eventfd", event, unix.EINVAL},
		{"a vCPU", vcpuOf(t, g), unix.EINVAL},
	}
}

// pathDescriptor is one with O_PATH, which names a file and does not open it.
func pathDescriptor(t *testing.T) int {
	t.Helper()
	fd, err := unix.Open("/dev/kvm", unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

// vcpuOf is a duplicate of the descriptor of a guest's first vCPU.
func vcpuOf(t *testing.T, g *direct.Guest) int {
	t.Helper()
	links, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", g.PID()))
	if err != nil {
		t.Fatal(err)
	}
	for _, link := range links {
		if to, err := os.Readlink(link); err != nil || !strings.HasPrefix(to, "anon_inode:kvm-vcpu:") {
			continue
		}
		theirs, err := strconv.Atoi(filepath.Base(link))
		if err != nil {
			t.Fatal(err)
		}
		process, err := unix.PidfdOpen(g.PID(), 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(process)
		fd, err := unix.PidfdGetfd(process, theirs, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Close(fd) })
		return fd
	}
	t.Fatalf("process %d has no vCPU", g.PID())
	return -1
}

// pages are memory that an ioctl's argument must not be in.
type pages struct {
	readOnly unsafe.Pointer
	memory   []byte // the page of readOnly, then one that is not there
}

func newPages(t *testing.T) *pages {
	t.Helper()
	size := os.Getpagesize()
	memory, err := unix.Mmap(-1, 0, 2*size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Munmap(memory) })
	return &pages{unsafe.Pointer(&memory[0]), memory}
}

// protect makes the pages what they are meant to be, once they are filled.
func (p *pages) protect(t *testing.T) {
	t.Helper()
	size := len(p.memory) / 2
	if err := errors.Join(unix.Mprotect(p.memory[:size], unix.PROT_READ), unix.Mprotect(p.memory[size:], unix.PROT_NONE)); err != nil {
		t.Fatal(err)
	}
}

func (p *pages) bad() map[string]unsafe.Pointer {
	size := len(p.memory) / 2
	return map[string]unsafe.Pointer{
		"at NULL":                         nil,
		"in a read-only page":             p.readOnly,
		"in a page without access":        unsafe.Pointer(&p.memory[size]),
		"half in a page without access":   unsafe.Pointer(&p.memory[size-12]),
		"of a byte before such a page":    unsafe.Pointer(&p.memory[size-1]),
		"in the kernel":                   kernelAddress(0xffff888000000000),
		"at an address that is not legal": kernelAddress(0x8000000000000000),
		"at the end of memory":            kernelAddress(^uintptr(3)),
	}
}

// kernelAddress is an address that is not this process's, which go vet must not take for one.
func kernelAddress(addr uintptr) unsafe.Pointer {
	return *(*unsafe.Pointer)(unsafe.Pointer(&addr))
}

// testRandomLayouts has the module look for identities in places that make no sense,
// while the guest makes calls: they are counted as not found, or nonsense, and nothing
// else.
func testRandomLayouts(t *testing.T, g *direct.Guest) {
	const rounds = 1000
	vm := arm(t, g, bpf.ExitsEntry) // which reads the most by the layout
	rec := recordVMs(t, vm)         // nobody's identity is looked for unless somebody asks
	st, err := vm.Status()
	if err != nil {
		t.Fatal(err)
	}
	r := seeded(t)
	accepted := 0
	for i := range rounds {
		l, legal := randomLayout(r, st.Lstar)
		_, errno := ioctl(vm.FD(), bpf.IocSetLayout, unsafe.Pointer(&l))
		switch {
		case errno == 0 && legal:
			accepted++
		case errno == unix.ESTALE && l.Lstar != st.Lstar, errno == unix.EINVAL && !legal:
		default:
			t.Fatalf("layout %+v: %v", l, errno)
		}
		if i%20 == 0 {
			makesCalls(t, vm)
		}
	}
	st, err = vm.Status()
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d of %d layouts accepted, %d identities missed in %d calls", accepted, rounds, st.IdentityMisses, st.Enters)
	if accepted == 0 || st.IdentityMisses == 0 {
		t.Error("no layout was used")
	}
	gone := disarms{}
	gone.disarm(t, vm)
	gone.check(t, rec)
}

// randomLayout is a layout of random fields, most of them near to what is legal; legal says
// whether the module may take it while the guest's kernel is at lstar.
func randomLayout(r *rand.Rand, lstar uint64) (l bpf.Layout, legal bool) {
	const offsets, stack, regs, span = 1 << 16, 1 << 20, 168, 1 << 52
	number := func(below uint32) uint32 {
		if r.IntN(60) == 0 {
			return r.Uint32()
		}
		return r.Uint32N(below)
	}
	address := func() uint64 { return r.Uint64() >> r.IntN(64) << r.IntN(32) }
	l = bpf.Layout{
		Size:    uint32(unsafe.Sizeof(l)),
		TaskPid: number(offsets), TaskTgid: number(offsets), TaskComm: number(offsets), TaskStack: number(offsets),
		StackRegs: number(stack), RegsAx: number(regs / 2), RegsOrigAx: regs/2 + number(regs/2),
		Lstar:       lstar,
		CurrentTask: address(), DirectMap: address(), DirectMapSize: address() % span, PageTable: address(),
		Levels: 4 + number(2),
	}
	// Of a thread's description, with which the module does what it can.
	for _, offset := range []*uint32{
		&l.TaskMm, &l.TaskRealParent, &l.TaskStart, &l.TaskThreadPid, &l.TaskCred, &l.TaskCgroups,
		&l.MmExeFile, &l.FilePath, &l.DentryParent, &l.DentryName, &l.DentryHash, &l.MountMnt,
		&l.MountParent, &l.MountMountpoint, &l.CredUid, &l.CssSetCgroup, &l.CssSetLinks, &l.LinkCgroup, &l.LinkNode, &l.CgroupNode,
		&l.NodeParent, &l.NodeName, &l.PidLevel, &l.PidNumbers,
	} {
		*offset = number(offsets)
		if r.IntN(20) == 0 {
			*offset = bpf.NoOffset
		}
	}
	switch r.IntN(8) {
	case 0:
		l.Size = r.Uint32()
	case 1:
		l.Lstar = address()
	case 2:
		l.DirectMapSize = r.Uint64()
	case 3, 4:
		// The kernel's half, where the guest's own addresses are.
		l.CurrentTask |= 0xffff << 48
		l.DirectMap = 0xffff888000000000
		l.DirectMapSize = span
	}
	legal = l.Size == uint32(unsafe.Sizeof(l)) && l.Lstar == lstar && l.DirectMapSize <= span &&
		max(l.TaskPid, l.TaskTgid, l.TaskComm, l.TaskStack) <= offsets && l.StackRegs <= stack &&
		l.RegsAx < l.RegsOrigAx && l.RegsOrigAx <= regs && (l.Levels == 4 || l.Levels == 5)
	return l, legal
}

// testRandomData has the module follow arguments that are no pointers, and read as much as it
// can of those that are, while the guest makes calls.
func testRandomData(t *testing.T, g *direct.Guest) {
	const rounds = 300
	vm := arm(t, g, bpf.ExitsBoth)
	recordVMs(t, vm) // nothing is read unless somebody listens
	r := seeded(t)
	accepted := 0
	for i := range rounds {
		spec, legal := randomData(r)
		_, errno := ioctl(vm.FD(), bpf.IocSetData, unsafe.Pointer(spec))
		switch {
		case errno == 0 && legal:
			accepted++
		case errno == unix.EINVAL && !legal:
		default:
			t.Fatalf("what to read, legal %t: %v", legal, errno)
		}
		if i%10 == 0 {
			makesCalls(t, vm)
		}
	}
	t.Logf("%d of %d accepted", accepted, rounds)
	if accepted == 0 || accepted == rounds {
		t.Error("all of one kind")
	}
	if err := vm.SetData(nil); err != nil {
		t.Error(err)
	}
}

// randomData returns what to read, which may make no sense, and whether the module takes it.
func randomData(r *rand.Rand) (spec *bpf.DataSpec, legal bool) {
	spec = &bpf.DataSpec{Size: uint32(unsafe.Sizeof(*spec))}
	for _, calls := range [][]bpf.Reads{spec.Calls64[:], spec.Calls32[:]} {
		for i := range calls {
			for j := range calls[i].Read {
				kind := uint8(r.IntN(int(bpf.ReadVector) + 1))
				calls[i].Read[j] = bpf.Read{
					Kind: kind, Arg: uint8(r.IntN(6)), Count: uint8(r.IntN(6)), Exit: uint8(r.IntN(2)),
					Unit: uint16(r.Uint32()), Max: uint16(r.IntN(len(bpf.Data{}.Bytes) + 1)),
				}
				if kind == bpf.ReadReturned {
					calls[i].Read[j].Exit = 1
				}
			}
		}
	}
	bad := &spec.Calls32[r.IntN(len(spec.Calls32))].Read[r.IntN(len(spec.Calls32[0].Read))]
	switch r.IntN(14) {
	case 0:
		spec.Size ^= 1 << r.IntN(32)
	case 1:
		spec.Pad = 1
	case 2:
		bad.Kind = bpf.ReadVector + 1
	case 3:
		bad.Arg = 6
	case 4:
		bad.Count = 255
	case 5:
		bad.Exit = 2
	case 6:
		bad.Max = uint16(len(bpf.Data{}.Bytes) + 1)
	case 7:
		bad.Kind, bad.Exit = bpf.ReadReturned, 0
	default:
		return spec, true
	}
	return spec, false
}

// race arms a VM and closes it again while other threads use its descriptor, which may be
// gone or another VM's by then. In the middle of it, it calls halfway.
func race(t *testing.T, kvm int, halfway func()) {
	t.Helper()
	const rounds, users = 150, 3
	f, err := os.OpenFile(device.Path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var (
		dev     = int(f.Fd())
		newest  atomic.Int64 // the newest VM descriptor, open or not
		lstar   atomic.Uint64
		done    atomic.Bool
		made    [users]int // requests, by thread
		threads sync.WaitGroup
	)
	newest.Store(-1)
	allowed := func(what string, errno unix.Errno, errnos ...unix.Errno) {
		if errno != 0 && !slices.Contains(errnos, errno) {
			t.Errorf("%s: %v", what, errno)
		}
	}
	random := seeded(t)
	for i := range users {
		r := rand.New(rand.NewPCG(random.Uint64(), 0))
		threads.Go(func() {
			for !done.Load() {
				made[i]++
				fd := int(newest.Load())
				switch r.IntN(5) {
				case 4:
					spec, _ := randomData(r)
					_, errno := ioctl(fd, bpf.IocSetData, unsafe.Pointer(spec))
					allowed("set data", errno, unix.EINVAL, unix.EBADF, unix.ENOTTY)
				case 0:
					l, _ := randomLayout(r, lstar.Load())
					_, errno := ioctl(fd, bpf.IocSetLayout, unsafe.Pointer(&l))
					allowed("set layout", errno, unix.EINVAL, unix.ESTALE, unix.EBADF, unix.ENOTTY)
				case 1:
					s := bpf.Status{Size: uint32(unsafe.Sizeof(bpf.Status{}))}
					_, errno := ioctl(fd, bpf.IocStatus, unsafe.Pointer(&s))
					allowed("status", errno, unix.EBADF, unix.ENOTTY)
					if errno == 0 && s.Lstar != 0 {
						lstar.Store(s.Lstar)
					}
				case 2:
					// The copy outlives what it was made of: the last one disarms.
					if dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0); err == nil {
						unix.Poll([]unix.PollFd{{Fd: int32(dup), Events: unix.POLLPRI}}, 1)
						unix.Close(dup)
					}
				case 3:
					arg := armArgument(kvm)
					fd, errno := ioctl(dev, bpf.IocArm, unsafe.Pointer(&arg))
					allowed("arm", errno, unix.EBUSY)
					if errno == 0 {
						unix.Close(fd)
					}
				}
			}
		})
	}
	for i := range rounds {
		arg := armArgument(kvm)
		fd, errno := ioctl(dev, bpf.IocArm, unsafe.Pointer(&arg))
		allowed("arm", errno, unix.EBUSY)
		if i == rounds/2 {
			halfway()
		}
		if errno == 0 {
			newest.Store(int64(fd))
			unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLPRI}}, 5)
			unix.Close(fd)
		}
	}
	done.Store(true)
	threads.Wait()
	t.Logf("%d times armed or busy, and %d requests of others", rounds, made)
}

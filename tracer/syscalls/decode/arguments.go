// SPDX-License-Identifier: Apache-2.0

package decode

import (
	"strconv"

	"golang.org/x/sys/unix"

	"frail/tracer/syscalls"
)

const lastSignal = 64

// Arguments that need no other.
var (
	fd       = decimal
	decimal  = plain(func(dst []byte, v uint64) []byte { return strconv.AppendInt(dst, int64(int32(v)), 10) })
	unsigned = plain(func(dst []byte, v uint64) []byte { return strconv.AppendUint(dst, uint64(uint32(v)), 10) })
	size     = plain(func(dst []byte, v uint64) []byte { return strconv.AppendUint(dst, v, 10) })
	hex      = plain(func(dst []byte, v uint64) []byte { return appendHex(dst, uint64(uint32(v))) })
	hexLong  = plain(appendHex)
	mode     = plain(func(dst []byte, v uint64) []byte { return appendMode(dst, uint64(uint16(v))) })
	hidden   = plain(func(dst []byte, v uint64) []byte { return dst })

	// long is signed and has as many bits as an address.
	long = dependent(func(dst []byte, c *Call, i int) []byte {
		if c.narrow() {
			return decimal(dst, c.Args[i])
		}
		return strconv.AppendInt(dst, int64(c.Args[i]), 10)
	})

	// dirfd is the directory that a path starts from.
	dirfd = plain(func(dst []byte, v uint64) []byte {
		if int32(v) == unix.AT_FDCWD {
			return append(dst, "AT_FDCWD"...)
		}
		return decimal(dst, v)
	})

	// uid is a user's or group's id. -1 is none.
	uid = plain(func(dst []byte, v uint64) []byte {
		if uint32(v) == 1<<32-1 {
			return append(dst, "-1"...)
		}
		return unsigned(dst, v)
	})
	uid16 = plain(func(dst []byte, v uint64) []byte {
		if uint16(v) == 1<<16-1 {
			return append(dst, "-1"...)
		}
		return unsigned(dst, uint64(uint16(v)))
	})

	signal = plain(func(dst []byte, v uint64) []byte {
		const realTime = 32
		switch n := int32(v); {
		case n == realTime:
			return append(dst, "SIGRTMIN"...)
		case n > realTime && n <= lastSignal:
			return strconv.AppendInt(append(dst, "SIGRT_"...), int64(n-realTime), 10)
		case n > 0 && n < realTime:
			return append(dst, unix.SignalName(unix.Signal(n))...)
		}
		return decimal(dst, v)
	})

	device = plain(func(dst []byte, v uint64) []byte {
		v = uint64(uint32(v))
		dst = appendHex(append(dst, "makedev("...), uint64(unix.Major(v)))
		return append(appendHex(append(dst, ", "...), uint64(unix.Minor(v))), ')')
	})

	// ipcKey names a System V object.
	ipcKey = plain(func(dst []byte, v uint64) []byte {
		if uint32(v) == 0 {
			return append(dst, "IPC_PRIVATE"...)
		}
		return hex(dst, v)
	})

	ioctlRequest = plain(func(dst []byte, v uint64) []byte {
		v = uint64(uint32(v))
		if name := ioctlRequests.find(v); name != "" {
			return append(dst, name...)
		}
		// The fields of asm-generic/ioctl.h.
		dst = append(dst, "_IOC("...)
		dst = append(dst, [...]string{"_IOC_NONE", "_IOC_WRITE", "_IOC_READ", "_IOC_READ|_IOC_WRITE"}[v>>30]...)
		for _, field := range [...]uint64{v >> 8 & 0xff, v & 0xff, v >> 16 & 0x3fff} {
			dst = appendHex(append(dst, ", "...), field)
		}
		return append(dst, ')')
	})

	// fileMode is a mode with the type of a file to make.
	fileMode = plain(func(dst []byte, v uint64) []byte {
		if name := fileTypes.find(v & unix.S_IFMT); name != "" {
			dst, v = append(append(dst, name...), '|'), v&^unix.S_IFMT
		}
		return mode(dst, v)
	})
)

// Arguments in two registers of an i386 call.
var (
	offset64 = dependent(func(dst []byte, c *Call, i int) []byte {
		return strconv.AppendInt(dst, int64(c.Args[i+1]<<32|c.Args[i]), 10)
	})
	size64 = dependent(func(dst []byte, c *Call, i int) []byte {
		return strconv.AppendUint(dst, c.Args[i+1]<<32|c.Args[i], 10)
	})
	// offsetHigh has its high half first.
	offsetHigh = dependent(func(dst []byte, c *Call, i int) []byte {
		return strconv.AppendInt(dst, int64(c.Args[i]<<32|c.Args[i+1]), 10)
	})
	// pageOffset is a number of pages, shown in bytes.
	pageOffset = plain(func(dst []byte, v uint64) []byte { return appendHex(dst, v<<12) })
)

// Arguments that only some of their call's uses have.
var (
	openMode = dependent(func(dst []byte, c *Call, i int) []byte {
		if flags := c.Args[i-1]; flags&unix.O_CREAT == 0 && flags&unix.O_TMPFILE != unix.O_TMPFILE {
			return dst
		}
		return mode(dst, c.Args[i])
	})

	nodeDevice = dependent(func(dst []byte, c *Call, i int) []byte {
		switch c.Args[i-1] & unix.S_IFMT {
		case unix.S_IFCHR, unix.S_IFBLK:
			return device(dst, c.Args[i])
		}
		return dst
	})

	mremapAddress = dependent(func(dst []byte, c *Call, i int) []byte {
		const fixed = unix.MREMAP_MAYMOVE | unix.MREMAP_FIXED
		if c.Args[i-1]&fixed != fixed {
			return dst
		}
		return ptr.append(dst, c, i)
	})

	protocol = dependent(func(dst []byte, c *Call, i int) []byte {
		switch uint32(c.Args[0]) {
		case unix.AF_INET, unix.AF_INET6:
			return inetProtocols.append(dst, c, i)
		case unix.AF_NETLINK:
			return netlinkProtocols.append(dst, c, i)
		case unix.AF_PACKET:
			v := uint16(c.Args[i])
			dst = append(dst, "htons("...)
			return append(etherProtocols.appendNames(dst, uint64(v>>8|v<<8)), ')')
		}
		return size(dst, c.Args[i])
	})

	socketOption = dependent(func(dst []byte, c *Call, i int) []byte {
		switch uint32(c.Args[i-1]) {
		case unix.SOL_SOCKET:
			return soOptions.append(dst, c, i)
		case unix.SOL_IP:
			return ipOptions.append(dst, c, i)
		case unix.SOL_TCP:
			return tcpOptions.append(dst, c, i)
		case unix.SOL_UDP:
			return udpOptions.append(dst, c, i)
		case unix.SOL_IPV6:
			return ipv6Options.append(dst, c, i)
		case unix.SOL_PACKET:
			return packetOptions.append(dst, c, i)
		case unix.SOL_NETLINK:
			return netlinkOptions.append(dst, c, i)
		}
		return unsigned(dst, c.Args[i])
	})

	fcntlArgument = dependent(func(dst []byte, c *Call, i int) []byte {
		switch v := c.Args[i]; uint32(c.Args[i-1]) {
		case unix.F_GETFD, unix.F_GETFL, unix.F_GETOWN, unix.F_GETSIG, unix.F_GETLEASE,
			unix.F_GETPIPE_SZ, unix.F_GET_SEALS:
			return dst
		case unix.F_DUPFD, unix.F_DUPFD_CLOEXEC, unix.F_SETOWN, unix.F_SETPIPE_SZ:
			return decimal(dst, v)
		case unix.F_SETFD:
			return descriptorFlags.append(dst, c, i)
		case unix.F_SETFL:
			return openFlags.append(dst, c, i)
		case unix.F_SETLEASE:
			return leaseTypes.append(dst, c, i)
		case unix.F_NOTIFY:
			return notifyEvents.append(dst, c, i)
		case unix.F_ADD_SEALS:
			return seals.append(dst, c, i)
		case unix.F_SETSIG:
			return signal(dst, v)
		}
		return hexLong(dst, c.Args[i])
	})

	seccompArgument = dependent(func(dst []byte, c *Call, i int) []byte {
		if uint32(c.Args[i-1]) == unix.SECCOMP_SET_MODE_FILTER {
			return seccompFlags.append(dst, c, i)
		}
		return hex(dst, c.Args[i])
	})

	rebootArgument = dependent(func(dst []byte, c *Call, i int) []byte {
		if uint32(c.Args[i-1]) != unix.LINUX_REBOOT_CMD_RESTART2 {
			return dst
		}
		return ptr.append(dst, c, i)
	})
)

var (
	// prctlArgument is one of those after the option.
	prctlArgument = dependent(func(dst []byte, c *Call, i int) []byte {
		args, known := prctlArguments[uint32(c.Args[0])]
		switch {
		case !known:
			return hexLong(dst, c.Args[i])
		case i > len(args):
			return dst
		}
		return args[i-1].append(dst, c, i)
	})

	// prctlArguments are those of an option that does not have four numbers.
	prctlArguments = map[uint32][]argument{
		unix.PR_SET_PDEATHSIG:       {signal},
		unix.PR_GET_PDEATHSIG:       {ptr},
		unix.PR_GET_DUMPABLE:        {},
		unix.PR_SET_DUMPABLE:        {dumpable},
		unix.PR_GET_KEEPCAPS:        {},
		unix.PR_SET_KEEPCAPS:        {size},
		unix.PR_GET_TIMING:          {},
		unix.PR_SET_TIMING:          {size},
		unix.PR_SET_NAME:            {str},
		unix.PR_GET_NAME:            {ptr},
		unix.PR_GET_SECCOMP:         {},
		unix.PR_SET_SECCOMP:         {seccompModes, ptr},
		unix.PR_CAPBSET_READ:        {capabilities},
		unix.PR_CAPBSET_DROP:        {capabilities},
		unix.PR_GET_TSC:             {ptr},
		unix.PR_GET_SECUREBITS:      {},
		unix.PR_SET_TIMERSLACK:      {long},
		unix.PR_GET_TIMERSLACK:      {},
		unix.PR_SET_CHILD_SUBREAPER: {size},
		unix.PR_GET_CHILD_SUBREAPER: {ptr},
		unix.PR_SET_NO_NEW_PRIVS:    {size, hexLong, hexLong, hexLong},
		unix.PR_GET_TID_ADDRESS:     {ptr},
		unix.PR_SET_THP_DISABLE:     {size, hexLong, hexLong, hexLong},
		unix.PR_SET_IO_FLUSHER:      {size, hexLong, hexLong, hexLong},
	}

	// ptraceArgument is one of those after the request.
	ptraceArgument = dependent(func(dst []byte, c *Call, i int) []byte {
		args := [...]argument{decimal, ptr, ptr}
		switch c.Args[0] {
		case unix.PTRACE_TRACEME:
			return dst
		case unix.PTRACE_ATTACH, unix.PTRACE_KILL, unix.PTRACE_INTERRUPT, unix.PTRACE_LISTEN:
			args[1], args[2] = hidden, hidden
		case unix.PTRACE_CONT, unix.PTRACE_DETACH, unix.PTRACE_SYSCALL, unix.PTRACE_SINGLESTEP, unix.PTRACE_SINGLEBLOCK,
			unix.PTRACE_SYSEMU, unix.PTRACE_SYSEMU_SINGLESTEP:
			args[2] = signal
		case unix.PTRACE_SEIZE, unix.PTRACE_SETOPTIONS, unix.PTRACE_OLDSETOPTIONS:
			args[2] = ptraceOptions
		case unix.PTRACE_GETREGS, unix.PTRACE_SETREGS, unix.PTRACE_GETFPREGS, unix.PTRACE_SETFPREGS:
			args[1] = hidden
		case unix.PTRACE_GETSIGMASK, unix.PTRACE_SETSIGMASK, unix.PTRACE_GET_SYSCALL_INFO,
			unix.PTRACE_SECCOMP_GET_FILTER, unix.PTRACE_SECCOMP_GET_METADATA:
			args[1] = size
		}
		return args[i-1].append(dst, c, i)
	})
)

// ipcCommands is a command of shmctl, semctl or msgctl.
type ipcCommands struct{ *set }

func (s ipcCommands) append(dst []byte, c *Call, i int) []byte {
	const ipc64 = 0x100 // set by the C library, of no meaning here
	v := c.Args[i]
	if v&ipc64 != 0 {
		dst = append(dst, "IPC_64|"...)
	}
	return s.appendNames(dst, v&^ipc64)
}

// ipcModes is a mode in octal with flags before it.
type ipcModes struct{ *set }

func (s ipcModes) append(dst []byte, c *Call, i int) []byte {
	const permissions = 0o777
	v := uint64(uint32(c.Args[i]))
	if flags := v &^ permissions; flags != 0 {
		dst = append(s.appendNames(dst, flags), '|')
	}
	return mode(dst, v&permissions)
}

// Arguments of clone, in the order in which they are shown.
var (
	cloneStack = dependent(func(dst []byte, c *Call, i int) []byte {
		return ptr.append(append(dst, "child_stack="...), c, 1)
	})
	cloneFlagsAndSignal = dependent(func(dst []byte, c *Call, i int) []byte {
		const exitSignal = 0xff
		dst = append(dst, "flags="...)
		flags, sig := c.Args[0]&^exitSignal, c.Args[0]&exitSignal
		if flags != 0 || sig == 0 {
			dst = cloneFlags.appendNames(dst, flags)
		}
		if flags != 0 && sig != 0 {
			dst = append(dst, '|')
		}
		if sig != 0 {
			dst = signal(dst, sig)
		}
		return dst
	})
	cloneParent = dependent(func(dst []byte, c *Call, i int) []byte {
		if c.Args[0]&(unix.CLONE_PARENT_SETTID|unix.CLONE_PIDFD) == 0 {
			return dst
		}
		return ptr.append(append(dst, "parent_tid="...), c, 2)
	})
	cloneTLS = dependent(func(dst []byte, c *Call, i int) []byte {
		switch {
		case c.Args[0]&unix.CLONE_SETTLS == 0:
			return dst
		case c.Table == syscalls.I386:
			return ptr.append(append(dst, "tls="...), c, 3)
		}
		return hexLong(append(dst, "tls="...), c.Args[4])
	})
	cloneChild = dependent(func(dst []byte, c *Call, i int) []byte {
		if c.Args[0]&(unix.CLONE_CHILD_SETTID|unix.CLONE_CHILD_CLEARTID) == 0 {
			return dst
		}
		at := 3
		if c.Table == syscalls.I386 {
			at = 4
		}
		return ptr.append(append(dst, "child_tidptr="...), c, at)
	})
)

// What a futex operation consists of: linux/futex.h, of which golang.org/x/sys has a part.
const (
	futexWait          = 0
	futexWake          = 1
	futexFD            = 2
	futexRequeue       = 3
	futexCmpRequeue    = 4
	futexWakeOp        = 5
	futexLockPI        = 6
	futexUnlockPI      = 7
	futexTrylockPI     = 8
	futexWaitBitset    = 9
	futexWakeBitset    = 10
	futexWaitRequeuePI = 11
	futexCmpRequeuePI  = 12

	futexCommand  = 127
	futexPrivate  = 128
	futexRealtime = 256
)

var (
	futexOperation = plain(func(dst []byte, v uint64) []byte {
		v = uint64(uint32(v))
		name := futexOperations.find(v &^ (futexPrivate | futexRealtime))
		if name == "" {
			return futexOperations.appendNames(dst, v)
		}
		dst = append(dst, name...)
		if v&futexPrivate != 0 {
			dst = append(dst, "_PRIVATE"...)
		}
		if v&futexRealtime != 0 {
			dst = append(dst, "|FUTEX_CLOCK_REALTIME"...)
		}
		return dst
	})

	// futexArgument is one of those after the operation: a value, a timeout or a second
	// value, a second address, a third value.
	futexArgument = dependent(func(dst []byte, c *Call, i int) []byte {
		args, known := futexArguments[c.Args[1]&futexCommand]
		if !known {
			args = [4]argument{unsigned, ptr, ptr, hex}
		}
		return args[i-2].append(dst, c, i)
	})

	futexArguments = map[uint64][4]argument{
		futexWait:          {unsigned, ptr, hidden, hidden},
		futexWake:          {unsigned, hidden, hidden, hidden},
		futexFD:            {unsigned, hidden, hidden, hidden},
		futexRequeue:       {unsigned, unsigned, ptr, hidden},
		futexCmpRequeue:    {unsigned, unsigned, ptr, unsigned},
		futexWakeOp:        {unsigned, unsigned, ptr, futexWakeArgument},
		futexLockPI:        {hidden, ptr, hidden, hidden},
		futexUnlockPI:      {hidden, hidden, hidden, hidden},
		futexTrylockPI:     {hidden, hidden, hidden, hidden},
		futexWaitBitset:    {unsigned, ptr, hidden, futexBits},
		futexWakeBitset:    {unsigned, hidden, hidden, futexBits},
		futexWaitRequeuePI: {unsigned, ptr, ptr, hidden},
		futexCmpRequeuePI:  {unsigned, unsigned, ptr, unsigned},
	}

	futexBits = plain(func(dst []byte, v uint64) []byte {
		if uint32(v) == 1<<32-1 {
			return append(dst, "FUTEX_BITSET_MATCH_ANY"...)
		}
		return hex(dst, v)
	})

	// futexWakeArgument is what FUTEX_WAKE_OP does to the second futex, and what it
	// compares that with.
	futexWakeArgument = plain(func(dst []byte, v uint64) []byte {
		const shiftArgument = 8
		op, cmp := v>>28&0xf, v>>24&0xf
		if op&shiftArgument != 0 {
			dst = append(dst, "FUTEX_OP_OPARG_SHIFT<<28|"...)
		}
		dst = append(futexWakeOps.appendNames(dst, op&^shiftArgument), "<<28|"...)
		dst = append(appendHex(dst, v>>12&0xfff), "<<12|"...)
		dst = append(futexCompares.appendNames(dst, cmp), "<<24|"...)
		return appendHex(dst, v&0xfff)
	})
)

// SPDX-License-Identifier: Apache-2.0

package decode

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"frail/bpf"
	"frail/tracer/syscalls"
)

// memoryOf is a program's memory, from memoryAt on.
type memoryOf struct {
	bytes []byte
	word  int // of its pointers, in bytes
}

// put adds bytes and returns their address.
func (m *memoryOf) put(b ...byte) uint64 {
	for len(m.bytes)%16 != 0 {
		m.bytes = append(m.bytes, 0)
	}
	at := memoryAt + uint64(len(m.bytes))
	m.bytes = append(m.bytes, b...)
	return at
}

func (m *memoryOf) text(s string) uint64 { return m.put(append([]byte(s), 0)...) }

// words adds words that are as wide as pointers.
func (m *memoryOf) words(values ...uint64) uint64 {
	var b []byte
	for _, v := range values {
		b = append(b, binary.LittleEndian.AppendUint64(nil, v)[:m.word]...)
	}
	return m.put(b...)
}

func longs(values ...uint64) []byte {
	var b []byte
	for _, v := range values {
		b = binary.LittleEndian.AppendUint64(b, v)
	}
	return b
}

func ints(values ...uint32) []byte {
	var b []byte
	for _, v := range values {
		b = binary.LittleEndian.AppendUint32(b, v)
	}
	return b
}

// from returns what is at an address: at most n bytes, nothing where there is none.
func (m *memoryOf) from(at uint64, n int) []byte {
	if at < memoryAt || at > memoryAt+uint64(len(m.bytes)) {
		return nil
	}
	b := m.bytes[at-memoryAt:]
	return b[:min(n, len(b))]
}

func (m *memoryOf) pointer(at uint64) uint64 {
	var b [8]byte
	copy(b[:], m.from(at, m.word))
	return binary.LittleEndian.Uint64(b[:])
}

// follow reads as kmod/data.c does.
func (m *memoryOf) follow(r bpf.Read, args [6]uint64, ret int64) Piece {
	p := Piece{Arg: int(r.Arg), Kind: r.Kind}
	at, most := args[r.Arg], int(r.Max)
	some := func(n uint64) {
		if n > uint64(most) {
			n, p.Cut = uint64(most), true
		}
		p.Bytes = m.from(at, int(n))
		p.Fault = len(p.Bytes) < int(n)
	}
	text := func(at uint64) ([]byte, bool) {
		b := m.from(at, most+1)
		if end := bytes.IndexByte(b, 0); end >= 0 {
			return b[:end], false
		}
		p.Fault = p.Fault || len(b) <= most
		return b[:min(len(b), most)], true
	}
	switch r.Kind {
	case bpf.ReadString:
		p.Bytes, p.Cut = text(at)
	case bpf.ReadBytes:
		some(uint64(r.Unit))
	case bpf.ReadCounted:
		some(min(args[r.Count], 1025) * uint64(r.Unit))
	case bpf.ReadReturned:
		some(min(uint64(ret), 1025) * uint64(r.Unit))
	case bpf.ReadPointed:
		some(uint64(binary.LittleEndian.Uint32(m.from(args[r.Count], 4))))
	case bpf.ReadStrings:
		for ; m.pointer(at) != 0; at += uint64(m.word) {
			s, cut := text(m.pointer(at))
			p.Bytes = append(append(p.Bytes, s...), 0, map[bool]byte{true: 1}[cut])
		}
	case bpf.ReadVector:
		for i := range args[r.Count] {
			base, size := m.pointer(at+i*2*uint64(m.word)), m.pointer(at+(i*2+1)*uint64(m.word))
			told := m.from(base, int(min(size, uint64(most))))
			p.Bytes = append(append(p.Bytes, longs(base, size, uint64(len(told)))...), told...)
		}
	}
	return p
}

// returns is what stands between a call's arguments and what it returned.
var returns = regexp.MustCompile(`\)\s+= `)

// What arguments point to reads as strace shows it.
func TestMemoryLikeStrace(t *testing.T) {
	needStrace(t)
	const limit = 32 // strace's own
	for _, table := range []syscalls.Table{syscalls.X86_64, syscalls.I386} {
		t.Run(table.String(), func(t *testing.T) {
			m := &memoryOf{word: map[syscalls.Table]int{syscalls.X86_64: 8, syscalls.I386: 4}[table]}
			byReturn := make(map[int64][]vector)
			n := 0
			add := func(ret int64, name string, args ...uint64) {
				nr, ok := syscalls.Number(table, name)
				if !ok {
					return
				}
				v := vector{Call{Table: table, Nr: int64(nr)}, name}
				copy(v.Args[:], args)
				byReturn[ret] = append(byReturn[ret], v)
				n++
			}
			wide := func(ret int64, name string, args ...uint64) {
				if table == syscalls.X86_64 {
					add(ret, name, args...)
				}
			}

			path, long := m.text("/etc/pass wd"), m.text("/"+strings.Repeat("long/", 45))
			odd := []byte("a\"b\\c\t\n\r\v\f\x007\x018\x1f9\x7f\xe9\x80\xff0")
			oddText := m.put(append(bytes.ReplaceAll(odd, []byte{0}, []byte{3}), 0)...)
			buf, much := m.put(odd...), m.put([]byte(strings.Repeat("0123456789", 10))...)
			for _, s := range []uint64{path, long, oddText, m.text("")} {
				for _, name := range []string{"open", "access", "chdir", "unlink", "rmdir", "chmod", "creat", "mkdir", "truncate", "statfs"} {
					add(0, name, s, 0, 0)
				}
				for _, name := range []string{"openat", "unlinkat", "mkdirat", "faccessat"} {
					add(0, name, 3, s, 0, 0)
				}
				for _, name := range []string{"rename", "link", "symlink"} {
					add(0, name, s, path)
				}
				add(0, "renameat2", 3, s, 4, path, 0)
				add(0, "linkat", 3, s, 4, path, 0)
				add(0, "symlinkat", s, 4, path)
				add(0, "mknod", s, unix.S_IFIFO|0o644, 0)
				add(0, "utimensat", 3, s, 0, 0)
			}
			for _, size := range []uint64{0, 1, 5, limit, limit + 1, 100} {
				for _, name := range []string{"write", "pwrite64"} {
					add(int64(size), name, 1, buf, min(size, uint64(len(odd))), 0)
					add(int64(size), name, 1, much, size, 0)
				}
				for _, name := range []string{"read", "pread64"} {
					add(int64(size), name, 1, much, 4096, 0)
				}
				add(int64(size), "getrandom", much, 4096, 0)
				if size <= limit { // of a longer one more is shown than by strace
					add(int64(size), "readlink", path, much, 4096)
					add(int64(size), "readlinkat", 3, path, much, 4096)
				}
				add(int64(size), "sendto", 3, much, size, 0, 0, 0)
				wide(int64(size), "recvfrom", 3, much, 4096, 0, 0, 0)
			}
			add(13, "getcwd", path, 4096)
			add(0, "sethostname", buf, 5)
			vec := m.words(buf, 5, much, 100, much, limit, 0, 0)
			for count := range uint64(5) {
				add(0, "writev", 1, vec, count)
			}
			wide(0, "pwritev", 1, vec, 2, 0)
			wide(0, "vmsplice", 1, vec, 2, 0)

			inet := m.put(append([]byte{unix.AF_INET, 0, 0, 80, 127, 0, 0, 1}, make([]byte, 8)...)...)
			inet6 := append([]byte{unix.AF_INET6, 0, 1, 187, 0, 0, 0, 7}, 0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9)
			at6 := m.put(append(inet6, 3, 0, 0, 0)...)
			unixPath := m.put(append([]byte{unix.AF_UNIX, 0}, append([]byte("/run/a\"b"), make([]byte, 4)...)...)...)
			abstract := m.put(append([]byte{unix.AF_UNIX, 0, 0}, "name"...)...)
			netlink := m.put(append([]byte{unix.AF_NETLINK, 0, 0, 0}, ints(12, 0xab)...)...)
			for _, a := range []struct{ at, size uint64 }{{inet, 16}, {at6, 28}, {unixPath, 15}, {unixPath, 2}, {abstract, 7}, {netlink, 12}} {
				add(0, "connect", 3, a.at, a.size)
				add(0, "bind", 3, a.at, a.size)
				add(0, "sendto", 3, buf, 3, 0, a.at, a.size)
			}

			for _, spec := range [][]uint64{{0, 0}, {5, 999999999}, {1 << 40, 1}} {
				at, two := m.put(longs(spec...)...), m.put(longs(append(spec, spec...)...)...)
				for _, name := range []string{"clock_gettime", "clock_getres", "clock_settime"} {
					wide(0, name, 1, at)
				}
				wide(0, "nanosleep", at, 0)
				wide(0, "clock_nanosleep", 1, 0, at, 0)
				wide(0, "gettimeofday", at, 0)
				wide(0, "timerfd_settime", 3, 0, two, two)
				wide(0, "timerfd_gettime", 3, two)
				wide(0, "timer_settime", 3, 0, two, 0)
				wide(0, "setitimer", 0, two, two)
				wide(0, "getitimer", 1, two)
			}
			for _, mode := range []uint32{unix.S_IFREG | 0o644, unix.S_IFDIR | unix.S_ISVTX | 0o777, unix.S_IFCHR | 0o620, unix.S_IFLNK | 0o777, unix.S_IFSOCK} {
				b := make([]byte, 144)
				copy(b[24:], ints(mode))
				copy(b[40:], longs(unix.Mkdev(136, 3), 123456))
				at := m.put(b...)
				wide(0, "stat", path, at)
				wide(0, "lstat", path, at)
				wide(0, "fstat", 3, at)
				wide(0, "newfstatat", 3, path, at, 0)
			}
			names := make([]byte, 390)
			copy(names, "Linux")
			copy(names[65:], "guest1")
			add(0, "uname", m.put(names...))
			for _, l := range [][]uint64{{0, 1024}, {8 << 20, 1<<64 - 1}, {1023, 1025}} {
				at := m.put(longs(l...)...)
				wide(0, "getrlimit", 7, at)
				wide(0, "setrlimit", 7, at)
				add(0, "prlimit64", 0, 7, at, at)
			}
			pair := m.put(ints(3, 1<<32-1)...)
			add(0, "pipe", pair)
			add(0, "pipe2", pair, 0)
			add(0, "socketpair", 1, 1, 0, pair)
			for _, status := range []uint32{0, 1 << 8, 9, 11 | 0x80, 0x137f, 0xffff} {
				add(12, "wait4", 1<<64-1, m.put(ints(status)...), 0, 0)
			}
			for _, set := range []uint64{0, 1, 1<<1 | 1<<13, 1 << 31, 1 << 33, 1<<64 - 1, 1<<64 - 2 - 1<<40} {
				at := m.put(longs(set)...)
				add(0, "rt_sigprocmask", 0, at, at, 8)
				add(0, "rt_sigsuspend", at, 8)
				add(0, "rt_sigpending", at, 8)
				add(3, "signalfd4", 3, at, 8, 0)
			}
			for _, action := range [][]uint64{{0, saRestorer, 0x401000, 0}, {1, 0, 0, 2}, {0x401136, saRestorer | 0x10000000 | 4, 0x7f0000001000, 1 << 13}, {0x401136, 0xf8000003, 0, 0}} {
				at := m.put(longs(action...)...)
				wide(0, "rt_sigaction", 2, at, at, 8)
				wide(0, "rt_sigaction", 2, 0, at, 8)
			}
			polled := m.put(append(ints(3), append([]byte{5, 0, 0, 0}, append(ints(1<<32-1), 0, 0, 0, 0)...)...)...)
			add(0, "poll", polled, 2, 1000)
			add(0, "poll", polled, 0, 1000)
			events := m.put(append(ints(0x80000001), append(longs(7), append(ints(0x2018), longs(1<<40|9)...)...)...)...)
			add(0, "epoll_ctl", 3, 1, 4, events)
			add(2, "epoll_wait", 3, events, 8, 1000)
			add(0, "epoll_wait", 3, events, 8, 1000)
			wide(0, "setgroups", 2, m.put(ints(4, 1000)...))
			add(0, "setgroups32", 2, m.put(ints(4, 1000)...))

			calls := make(map[string]bool)
			for ret, vs := range byReturn {
				for i, line := range stracedWith(t, table, m.bytes, vs, fmt.Sprintf("retval=%d", ret)) {
					v := vs[i]
					for _, r := range reads(table, v.Nr, limit).Read {
						if r.Kind != bpf.ReadNone && v.Args[r.Arg] != 0 {
							v.Pieces = append(v.Pieces, m.follow(r, v.Args, ret))
						}
					}
					want := line
					if end := returns.FindStringIndex(line); end != nil {
						want = line[:end[0]]
					}
					if got := fmt.Sprintf("%s(%s", v.name, v.AppendArgs(nil)); got != want {
						t.Errorf("\n got %s\nwant %s", got, want)
					}
					calls[v.name] = true
				}
			}
			t.Logf("%d texts of %d calls", n, len(calls))
			if least := map[syscalls.Table]int{syscalls.X86_64: 70, syscalls.I386: 49}[table]; len(calls) < least {
				t.Errorf("only %d calls were compared, want %d", len(calls), least)
			}
		})
	}
}

func TestShowStrings(t *testing.T) {
	for _, tc := range []struct {
		piece Piece
		want  string
	}{
		{Piece{Bytes: []byte("ls\x00\x00-l\n\x00\x00")}, `["ls", "-l\n"], NULL`},
		{Piece{Bytes: []byte("sh\x00\x00long\x00\x01")}, `["sh", "long"...], NULL`},
		{Piece{Bytes: []byte("sh\x00\x00"), Cut: true}, `["sh", ...], NULL`},
		{Piece{Bytes: nil}, `[], NULL`},
		{Piece{Bytes: []byte("not ended")}, `[], NULL`},
		{Piece{Bytes: []byte("sh\x00\x00"), Fault: true}, `0x2000, NULL`},
	} {
		call := Call{Nr: 59, Args: [6]uint64{0x1000, 0x2000}}
		tc.piece.Arg, tc.piece.Kind = 1, bpf.ReadStrings
		call.Pieces = []Piece{{Kind: bpf.ReadString, Bytes: []byte("/bin/sh")}, tc.piece}
		if got, want := string(call.AppendArgs(nil)), `"/bin/sh", `+tc.want; got != want {
			t.Errorf("%q: %s, want %s", tc.piece.Bytes, got, want)
		}
	}
}

func TestAppendLeft(t *testing.T) {
	call := Call{Nr: 45, Args: [6]uint64{}, Pieces: []Piece{
		{Arg: 1, Kind: bpf.ReadReturned, Bytes: []byte("text")},
		{Arg: 4, Kind: bpf.ReadPointed, Bytes: []byte{2, 0, 0, 80, 127, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0}},
	}}
	const address = `{sa_family=AF_INET, sin_port=htons(80), sin_addr=inet_addr("127.0.0.1")}`
	if got, want := string(call.AppendLeft(nil)), `("text", `+address+`)`; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	call.Pieces[0].Fault = true
	if got, want := string(call.AppendLeft(nil)), "("+address+")"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	call.Pieces = nil
	if got := call.AppendLeft(nil); len(got) != 0 {
		t.Errorf("%s of nothing", got)
	}
}

// What is read of calls is what the module takes, and what they are shown by.
func TestDataSpec(t *testing.T) {
	spec := DataSpec(64)
	n := 0
	for table, calls := range map[syscalls.Table][]bpf.Reads{syscalls.X86_64: spec.Calls64[:], syscalls.I386: spec.Calls32[:]} {
		for nr, reads := range calls {
			for i, r := range reads.Read {
				switch {
				case r.Kind == bpf.ReadNone:
				case r.Kind > bpf.ReadVector || r.Arg > 5 || r.Count > 5 || r.Exit > 1 || r.Max == 0 || int(r.Max) > MaxData ||
					r.Kind == bpf.ReadReturned && r.Exit == 0 || i > 0 && reads.Read[i-1].Kind == bpf.ReadNone:
					t.Errorf("call %d of table %s: read %+v", nr, table, r)
				default:
					n++
				}
			}
		}
	}
	if n < 300 {
		t.Errorf("only %d arguments are followed", n)
	}
	open := spec.Calls64[2].Read[0]
	write := spec.Calls64[1].Read[0]
	if open.Max != 255 || write.Max != 64 || write.Count != 2 {
		t.Errorf("open: %+v, write: %+v", open, write)
	}
	if execve := spec.Calls64[520].Read; execve[1].Kind != bpf.ReadStrings {
		t.Errorf("x32's execve: %+v", execve)
	}
	if nanosleep := spec.Calls32[162].Read[0]; nanosleep.Kind != bpf.ReadNone {
		t.Errorf("a struct timespec of i386 is read as one of x86-64: %+v", nanosleep)
	}
}

// The calls that guests make most have no argument that strace would show better.
func TestDecodedCalls(t *testing.T) {
	decoded := 0
	for nr := range int64(firstX32) {
		args := signature(syscalls.X86_64, nr)
		whole := args != nil
		for _, arg := range args {
			if arg == ptr {
				whole = false
			}
		}
		if whole {
			decoded++
		}
	}
	t.Logf("%d calls of x86-64 are decoded whole", decoded)
	if decoded < 120 {
		t.Errorf("%d calls are decoded whole, want 120", decoded)
	}
}

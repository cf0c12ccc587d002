// SPDX-License-Identifier: Apache-2.0

package format

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"

	"frail/bpf"
	"frail/tracer"
)

// at is the boot time of every event here, and offset makes it a time of day.
const at = 5_000_000_123

var offset = time.Duration(time.Date(2026, 1, 2, 3, 4, 0, 0, time.UTC).UnixNano())

func event(change func(*bpf.Event)) *bpf.Event {
	ev := &bpf.Event{
		Time: at, Vm: 1, Vcpu: 2, Kind: bpf.EventEnter, Insn: bpf.InsnSyscall64,
		Flags: bpf.EventNr | bpf.EventIdentity, Nr: 257,
		Args: [6]uint64{0xffffff9c, 0x7ffd5b1c0f10, 0x80000, 0, 5, 1<<64 - 1},
		Ip:   0x401002, Sp: 0x7ffd5b1c0e00, Cr3: 0x1234001, Task: 0xffff888003a4c000,
		Pid: 313, Tgid: 312,
	}
	copy(ev.Comm[:], "cat")
	change(ev)
	return ev
}

func exit(ret int64) func(*bpf.Event) {
	return func(ev *bpf.Event) {
		ev.Kind, ev.Insn, ev.Args, ev.Ret = bpf.EventExit, bpf.InsnSysret64, [6]uint64{}, ret
		ev.Flags |= bpf.EventRet
	}
}

// deferred is a return that is told at the next call.
func deferred(insn uint16, nr int64, ret int64) func(*bpf.Event) {
	return func(ev *bpf.Event) {
		exit(ret)(ev)
		ev.Insn, ev.Nr = insn, nr
		ev.Flags |= bpf.EventDeferred
	}
}

func unknownReturn(change func(*bpf.Event)) func(*bpf.Event) {
	return func(ev *bpf.Event) {
		change(ev)
		ev.Ret, ev.Flags = 0, ev.Flags&^bpf.EventRet
	}
}

func entered(insn uint16, nr int64) func(*bpf.Event) {
	return func(ev *bpf.Event) { ev.Insn, ev.Nr = insn, nr }
}

func coverage(covered, blind uint32) *bpf.Event {
	return &bpf.Event{
		Time: at, Vm: 1, Vcpu: 2, Kind: bpf.EventCoverage, Nr: -1,
		Args: [6]uint64{uint64(covered), uint64(blind)},
	}
}

const everyEntry = bpf.EntrySyscall | bpf.EntrySysenter | bpf.EntryInt80

func named(comm string) func(*bpf.Event) {
	return func(ev *bpf.Event) {
		ev.Comm = [bpf.CommLen]byte{}
		copy(ev.Comm[:], comm)
	}
}

func TestRawText(t *testing.T) {
	for _, tc := range []struct {
		name string
		ev   *bpf.Event
		want string
	}{
		{"enter", event(func(*bpf.Event) {}),
			"cat[312/313]                     openat(0xffffff9c, 0x7ffd5b1c0f10, 0x80000, 0x0)"},
		{"call without arguments", event(func(ev *bpf.Event) { ev.Nr = 39 }),
			"cat[312/313]                     getpid()"},
		{"call with no name", event(func(ev *bpf.Event) { ev.Nr = 999 }),
			"cat[312/313]                     syscall_999(0xffffff9c, 0x7ffd5b1c0f10, 0x80000, 0x0, 0x5, 0xffffffffffffffff)"},
		{"negative number", event(func(ev *bpf.Event) { ev.Nr = -1; ev.Args = [6]uint64{} }),
			"cat[312/313]                     syscall_-1(0x0, 0x0, 0x0, 0x0, 0x0, 0x0)"},
		{"32-bit call", event(func(ev *bpf.Event) {
			ev.Insn, ev.Nr, ev.Args[0] = bpf.InsnSyscall32, 6, 0xdead00000003
		}), "cat[312/313]                     close@32(0x3)"},
		{"x32 call", event(func(ev *bpf.Event) { ev.Nr = bpf.X32Bit | 520; ev.Args = [6]uint64{1, 2, 3} }),
			"cat[312/313]                     execve@x32(0x1, 0x2, 0x3)"},
		{"no identity", event(func(ev *bpf.Event) {
			ev.Flags = bpf.EventNr
			ev.Nr, ev.Task, ev.Pid, ev.Tgid, ev.Comm = 39, 0, 0, 0, [bpf.CommLen]byte{}
		}), "[no identity]                    getpid()"},
		{"exit", event(exit(3)), "cat[312/313]                     ... openat = 3"},
		{"exit with an error", event(exit(-2)), "cat[312/313]                     ... openat = -2 ENOENT (no such file or directory)"},
		{"exit with an error of no name", event(exit(-4000)), "cat[312/313]                     ... openat = -4000"},
		{"exit with an address", event(exit(0x7f0000001000)), "cat[312/313]                     ... openat = 0x7f0000001000"},
		{"exit with a negative address", event(exit(-4096)), "cat[312/313]                     ... openat = 0xfffffffffffff000"},
		{"exit of a call not known", event(func(ev *bpf.Event) { exit(0)(ev); ev.Nr, ev.Flags = -1, bpf.EventIdentity|bpf.EventRet }),
			"cat[312/313]                     ... ? = 0"},
		{"32-bit exit with an error", event(func(ev *bpf.Event) {
			exit(0xfffffffe)(ev)
			ev.Insn, ev.Nr = bpf.InsnSysret32, 5
		}), "cat[312/313]                     ... open@32 = -2 ENOENT (no such file or directory)"},
		{"call by SYSENTER", event(entered(bpf.InsnSysenter, 20)), "cat[312/313]                     getpid@32:sysenter()"},
		{"call by INT 0x80 of 32-bit code", event(entered(bpf.InsnInt80In32, 6)), "cat[312/313]                     close@32:int80(0xffffff9c)"},
		{"call by INT 0x80 of 64-bit code", event(entered(bpf.InsnInt80In64, 20)), "cat[312/313]                     getpid@32:int80_64()"},
		{"exit of unknown value", event(unknownReturn(exit(0))), "cat[312/313]                     ... openat = ?"},
		{"exit of unknown call and value", event(func(ev *bpf.Event) { exit(0)(ev); ev.Nr, ev.Flags = -1, bpf.EventIdentity }),
			"cat[312/313]                     ... ? = ?"},
		{"deferred exit", event(deferred(bpf.InsnSyscall64, 257, -2)), "cat[312/313]                     ... openat = -2 ENOENT (no such file or directory)"},
		{"deferred exit of unknown value", event(unknownReturn(deferred(bpf.InsnSyscall64, 257, 0))), "cat[312/313]                     ... openat = ?"},
		{"deferred exit of INT 0x80", event(deferred(bpf.InsnInt80In32, 20, 312)), "cat[312/313]                     ... getpid@32:int80 = 312"},
		{"one entry not seen", coverage(bpf.EntrySyscall, bpf.EntryInt80), "--- INT 0x80 is not seen now: the guest uses its debug registers ---"},
		{"two entries not seen", coverage(bpf.EntrySyscall, bpf.EntryInt80|bpf.EntrySysenter),
			"--- INT 0x80 and SYSENTER are not seen now: the guest uses its debug registers ---"},
		{"no entry seen", coverage(0, everyEntry), "--- SYSCALL, INT 0x80 and SYSENTER are not seen now: the guest uses its debug registers ---"},
		{"all entries seen", coverage(everyEntry, 0), "--- all entries are seen again ---"},
		{"longest name and ids", event(func(ev *bpf.Event) {
			named("fifteen-letters")(ev)
			ev.Pid, ev.Tgid, ev.Nr = 4194304, 4194303, 39
		}), "fifteen-letters[4194303/4194304] getpid()"},
		{"name that would move the cursor", event(func(ev *bpf.Event) { named("\x1b[2J\n")(ev); ev.Nr = 39 }),
			`\x1b[2J\x0a[312/313]             getpid()`},
		{"name that is not UTF-8", event(func(ev *bpf.Event) { named("a\xff\\b")(ev); ev.Nr = 39 }),
			`a\xff\\b[312/313]                getpid()`},
		{"name in another script", event(func(ev *bpf.Event) { named("naïve")(ev); ev.Nr = 39 }),
			"naïve[312/313]                   getpid()"},
		{"name that reverses the line", event(func(ev *bpf.Event) { named("\u202eabc")(ev); ev.Nr = 39 }),
			`\xe2\x80\xaeabc[312/313]         getpid()`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := string((&Text{Raw: true}).AppendEvent(nil, tc.ev)); got != tc.want+"\n" {
				t.Errorf("%q\nwant %q", got, tc.want+"\n")
			}
		})
	}
}

func TestText(t *testing.T) {
	const who = "cat[312/313]                     "
	f := new(Text)
	call := func(nr int64, args ...uint64) func(*bpf.Event) {
		return func(ev *bpf.Event) {
			ev.Nr, ev.Args = nr, [6]uint64{}
			copy(ev.Args[:], args)
		}
	}
	ret := func(nr, ret int64) func(*bpf.Event) {
		return func(ev *bpf.Event) {
			exit(ret)(ev)
			ev.Nr = nr
		}
	}
	other := func(change func(*bpf.Event)) func(*bpf.Event) {
		return func(ev *bpf.Event) {
			change(ev)
			ev.Task++
		}
	}
	const getFlags = 3
	// One after the other: a return may be shown according to its call.
	for _, tc := range []struct {
		name   string
		change func(*bpf.Event)
		want   string
	}{
		{"enter", func(*bpf.Event) {}, "openat(AT_FDCWD, 0x7ffd5b1c0f10, O_RDONLY|O_CLOEXEC)"},
		{"call with no name", call(999, 1), "syscall_999(0x1, 0x0, 0x0, 0x0, 0x0, 0x0)"},
		{"32-bit call", entered(bpf.InsnInt80In32, 6), "close@32:int80(-100)"},
		{"x32 call", call(bpf.X32Bit|520, 1, 0, 3), "execve@x32(0x1, NULL, 0x3)"},
		{"number with high bits", call(1<<32|3, 5), "close(5)"},
		{"exit", exit(3), "... openat = 3"},
		{"exit with an error", exit(-2), "... openat = -1 ENOENT (No such file or directory)"},
		{"exit with an address", ret(9, 0x7f0000001000), "... mmap = 0x7f0000001000"},
		{"exit of unknown value", unknownReturn(exit(0)), "... openat = ?"},
		{"exit of a call not known", func(ev *bpf.Event) { exit(0)(ev); ev.Nr, ev.Flags = -1, bpf.EventIdentity|bpf.EventRet }, "... ? = 0"},
		{"flags of a descriptor", call(72, 3, getFlags), "fcntl(3, F_GETFL)"},
		{"they return in another thread", other(ret(72, 2)), "... fcntl = 2"},
		{"they return", ret(72, 2), "... fcntl = 0x2 (flags O_RDWR)"},
		{"they return once", ret(72, 2), "... fcntl = 2"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := string(f.AppendEvent(nil, event(tc.change))); got != who+tc.want+"\n" {
				t.Errorf("%q\nwant %q", got, who+tc.want+"\n")
			}
		})
	}
	if len(f.decoder.waiting) != 0 {
		t.Errorf("%d calls are remembered that returned", len(f.decoder.waiting))
	}
}

func TestColor(t *testing.T) {
	f := &Text{Color: true}
	const who = "cat[312/313]                     "
	for _, tc := range []struct{ name, got, want string }{
		{"enter", string(f.AppendEvent(nil, event(func(ev *bpf.Event) { ev.Nr = 39 }))), who + "\x1b[36mgetpid\x1b[0m()\n"},
		{"exit", string(f.AppendEvent(nil, event(exit(3)))), who + "... \x1b[36mopenat\x1b[0m = 3\n"},
		{"error", string(f.AppendEvent(nil, event(exit(-9)))), who + "... \x1b[36mopenat\x1b[0m = \x1b[31m-1 EBADF (Bad file descriptor)\x1b[0m\n"},
		{"coverage", string(f.AppendEvent(nil, coverage(everyEntry, 0))), "\x1b[33m--- all entries are seen again ---\x1b[0m\n"},
		{"lost", string(f.AppendLost(nil, tracer.Lost{Losses: tracer.Losses{RingFull: 1}})),
			"\x1b[33m--- 1 event lost: 1 because the reader was too slow ---\x1b[0m\n"},
	} {
		if tc.got != tc.want {
			t.Errorf("%s: %q\nwant %q", tc.name, tc.got, tc.want)
		}
	}
}

func TestTextTimestamp(t *testing.T) {
	f := &Text{Timestamp: true, Offset: offset, Location: time.FixedZone("", 3600)}
	for _, tc := range []struct{ name, got, want string }{
		{"event", string(f.AppendEvent(nil, event(func(ev *bpf.Event) { ev.Nr = 39 }))),
			"2026-01-02 04:04:05.000000+0100: cat[312/313]                     getpid()\n"},
		{"coverage", string(f.AppendEvent(nil, coverage(everyEntry, 0))),
			"2026-01-02 04:04:05.000000+0100: --- all entries are seen again ---\n"},
		{"lost", string(f.AppendLost(nil, tracer.Lost{Time: at, Losses: tracer.Losses{RingFull: 1}})),
			"2026-01-02 04:04:05.000000+0100: --- 1 event lost: 1 because the reader was too slow ---\n"},
		{"zero location", string((&Text{Timestamp: true, Offset: offset}).AppendEvent(nil, event(func(ev *bpf.Event) { ev.Nr = 39 }))),
			"2026-01-02 03:04:05.000000+0000: cat[312/313]                     getpid()\n"},
	} {
		if tc.got != tc.want {
			t.Errorf("%s: %q\nwant %q", tc.name, tc.got, tc.want)
		}
	}
}

func TestTextRecords(t *testing.T) {
	all := tracer.Losses{RingFull: 3, ReadFault: 2, Recursion: 1}
	for _, tc := range []struct{ name, got, want string }{
		{"lost", string(new(Text).AppendLost(nil, tracer.Lost{Losses: all})),
			"--- 6 events lost: 3 because the reader was too slow, 2 because the tracepoint could not be read, 1 because the BPF program was running already ---\n"},
		{"summary with loss", string(new(Text).AppendSummary(nil, tracer.Summary{Delivered: 1, Lost: tracer.Losses{RingFull: 2}})),
			"--- 1 event, 2 events lost: 2 because the reader was too slow ---\n"},
		{"summary of what is not known", string(new(Text).AppendSummary(nil, tracer.Summary{Delivered: 2, Unjudged: 1})),
			"--- 2 events, 0 events lost, 1 event not known well enough to be filtered ---\n"},
		{"summary without loss", string(new(Text).AppendSummary(nil, tracer.Summary{Delivered: 1234})),
			"--- 1234 events, 0 events lost ---\n"},
	} {
		if tc.got != tc.want {
			t.Errorf("%s: %q\nwant %q", tc.name, tc.got, tc.want)
		}
	}
}

func TestJSON(t *testing.T) {
	f := &JSON{Offset: offset}
	for _, tc := range []struct{ name, got, want string }{
		{"enter", string(f.AppendEvent(nil, event(func(*bpf.Event) {}))),
			`{"type":"enter","time":"2026-01-02T03:04:05.000000123Z","boot_ns":5000000123,"vm":1,"vcpu":2,` +
				`"identity":true,"comm":"cat","pid":313,"tgid":312,"task":"0xffff888003a4c000",` +
				`"table":"64","nr":257,"syscall":"openat","entry":"syscall64",` +
				`"args":["0xffffff9c","0x7ffd5b1c0f10","0x80000","0x0","0x5","0xffffffffffffffff"],` +
				`"ip":"0x401002","sp":"0x7ffd5b1c0e00","cr3":"0x1234001"}`},
		{"exit", string(f.AppendEvent(nil, event(exit(-2)))),
			`{"type":"exit","time":"2026-01-02T03:04:05.000000123Z","boot_ns":5000000123,"vm":1,"vcpu":2,` +
				`"identity":true,"comm":"cat","pid":313,"tgid":312,"task":"0xffff888003a4c000",` +
				`"table":"64","nr":257,"syscall":"openat","ret":-2,"errno":"ENOENT",` +
				`"ip":"0x401002","sp":"0x7ffd5b1c0e00","cr3":"0x1234001"}`},
		{"exit without identity and number", string(f.AppendEvent(nil, event(func(ev *bpf.Event) {
			exit(7)(ev)
			ev.Flags, ev.Nr = bpf.EventRet, -1
		}))),
			`{"type":"exit","time":"2026-01-02T03:04:05.000000123Z","boot_ns":5000000123,"vm":1,"vcpu":2,` +
				`"identity":false,"table":"64","ret":7,` +
				`"ip":"0x401002","sp":"0x7ffd5b1c0e00","cr3":"0x1234001"}`},
		{"exit of unknown value", string(f.AppendEvent(nil, event(unknownReturn(exit(0))))),
			`{"type":"exit","time":"2026-01-02T03:04:05.000000123Z","boot_ns":5000000123,"vm":1,"vcpu":2,` +
				`"identity":true,"comm":"cat","pid":313,"tgid":312,"task":"0xffff888003a4c000",` +
				`"table":"64","nr":257,"syscall":"openat",` +
				`"ip":"0x401002","sp":"0x7ffd5b1c0e00","cr3":"0x1234001"}`},
		{"deferred exit", string(f.AppendEvent(nil, event(deferred(bpf.InsnInt80In64, 5, 0xfffffffe)))),
			`{"type":"exit","time":"2026-01-02T03:04:05.000000123Z","boot_ns":5000000123,"vm":1,"vcpu":2,` +
				`"identity":true,"comm":"cat","pid":313,"tgid":312,"task":"0xffff888003a4c000",` +
				`"table":"32","nr":5,"syscall":"open","entry":"int80_64","deferred":true,"ret":-2,"errno":"ENOENT",` +
				`"ip":"0x401002","sp":"0x7ffd5b1c0e00","cr3":"0x1234001"}`},
		{"deferred exit of unknown value", string(f.AppendEvent(nil, event(unknownReturn(deferred(bpf.InsnSysenter, 5, 0))))),
			`{"type":"exit","time":"2026-01-02T03:04:05.000000123Z","boot_ns":5000000123,"vm":1,"vcpu":2,` +
				`"identity":true,"comm":"cat","pid":313,"tgid":312,"task":"0xffff888003a4c000",` +
				`"table":"32","nr":5,"syscall":"open","entry":"sysenter","deferred":true,` +
				`"ip":"0x401002","sp":"0x7ffd5b1c0e00","cr3":"0x1234001"}`},
		{"coverage", string(f.AppendEvent(nil, coverage(bpf.EntrySyscall, bpf.EntrySysenter|bpf.EntryInt80))),
			`{"type":"coverage","time":"2026-01-02T03:04:05.000000123Z","boot_ns":5000000123,"vm":1,"vcpu":2,` +
				`"covered":["syscall"],"blind":["int80","sysenter"]}`},
		{"coverage of all", string(f.AppendEvent(nil, coverage(everyEntry, 0))),
			`{"type":"coverage","time":"2026-01-02T03:04:05.000000123Z","boot_ns":5000000123,"vm":1,"vcpu":2,` +
				`"covered":["syscall","int80","sysenter"],"blind":[]}`},
		{"lost", string(f.AppendLost(nil, tracer.Lost{Time: at, Losses: tracer.Losses{RingFull: 3, ReadFault: 2, Recursion: 1}})),
			`{"type":"lost","time":"2026-01-02T03:04:05.000000123Z","boot_ns":5000000123,` +
				`"lost":{"total":6,"ring_full":3,"read_fault":2,"recursion":1}}`},
		{"summary", string(f.AppendSummary(nil, tracer.Summary{Delivered: 9, Lost: tracer.Losses{RingFull: 3}})),
			`{"type":"summary","delivered":9,"lost":{"total":3,"ring_full":3,"read_fault":0,"recursion":0},"unjudged":0}`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if tc.got != tc.want+"\n" {
				t.Errorf("%s\nwant %s", tc.got, tc.want)
			}
		})
	}
}

func TestDecodedJSON(t *testing.T) {
	f := &JSON{Decode: true}
	for _, tc := range []struct {
		change func(*bpf.Event)
		want   string
	}{
		{func(*bpf.Event) {}, `,"args":["0xffffff9c","0x7ffd5b1c0f10","0x80000","0x0","0x5","0xffffffffffffffff"],"text":"AT_FDCWD, 0x7ffd5b1c0f10, O_RDONLY|O_CLOEXEC","ip"`},
		{exit(-2), `,"ret":-2,"errno":"ENOENT","text":"-1 ENOENT (No such file or directory)","ip"`},
		{unknownReturn(exit(0)), `,"syscall":"openat","ip"`},
	} {
		if got := string(f.AppendEvent(nil, event(tc.change))); !strings.Contains(got, tc.want) || !json.Valid([]byte(got)) {
			t.Errorf("%s has no %s", got, tc.want)
		}
	}
}

// Whatever a guest calls its threads, a record is one line of valid JSON or of printable
// text.
func FuzzHostileName(f *testing.F) {
	for _, s := range []string{"cat", "\"", "\\", "\\x41", "a\"b\\c", "\x00x", "\xff\xfe", "\n", "\u2028", "</script>", "\x1b]0;x\a"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, name string) {
		ev := event(named(name))
		line := (&JSON{}).AppendEvent(nil, ev)
		var got struct{ Comm string }
		if err := json.Unmarshal(line, &got); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		if strings.Count(string(line), "\n") != 1 {
			t.Errorf("%q is not one line", line)
		}
		if want := string(appendName(nil, ev.CommBytes())); got.Comm != want {
			t.Errorf("comm %q, want %q", got.Comm, want)
		}
		text := strings.TrimSuffix(string(new(Text).AppendEvent(nil, ev)), "\n")
		for _, r := range text {
			if !unicode.IsPrint(r) || r == unicode.ReplacementChar && !strings.ContainsRune(name, r) {
				t.Errorf("text %q has %U", text, r)
			}
		}
	})
}

func TestNoAllocations(t *testing.T) {
	enter, ret := event(func(*bpf.Event) {}), event(exit(-2))
	buf := make([]byte, 0, 1024)
	for name, f := range map[string]Formatter{
		"text":                &Text{},
		"raw text":            &Text{Raw: true},
		"text with timestamp": &Text{Timestamp: true, Offset: offset},
		"JSON":                &JSON{Offset: offset},
		"decoded JSON":        &JSON{Offset: offset, Decode: true},
	} {
		n := testing.AllocsPerRun(1000, func() {
			f.AppendEvent(f.AppendEvent(buf, enter), ret)
		})
		if n != 0 {
			t.Errorf("%s: %v allocations for two events", name, n)
		}
	}
}

// Every instruction that makes a call has a name of its own, in JSON and in text.
func TestEntryNames(t *testing.T) {
	var names, calls []string
	for _, insn := range []uint16{bpf.InsnSyscall64, bpf.InsnSyscall32, bpf.InsnSysenter, bpf.InsnInt80In32, bpf.InsnInt80In64} {
		ev := event(entered(insn, 20))
		var got struct{ Entry string }
		if err := json.Unmarshal((&JSON{}).AppendEvent(nil, ev), &got); err != nil {
			t.Fatal(err)
		}
		names = append(names, got.Entry)
		calls = append(calls, string(appendCall(nil, ev)))
	}
	if want := []string{"syscall64", "syscall32", "sysenter", "int80_32", "int80_64"}; !slices.Equal(names, want) {
		t.Errorf("JSON has %q, want %q", names, want)
	}
	if want := []string{"writev", "getpid@32", "getpid@32:sysenter", "getpid@32:int80", "getpid@32:int80_64"}; !slices.Equal(calls, want) {
		t.Errorf("text has %q, want %q", calls, want)
	}
}

func TestWallOffset(t *testing.T) {
	before := time.Now()
	off, err := WallOffset()
	if err != nil {
		t.Fatal(err)
	}
	boot := before.Add(-off)
	if up := boot.UnixNano(); up < 0 || up > int64(10*365*24*time.Hour) {
		t.Errorf("offset %v means that this machine is up for %v", off, time.Duration(up))
	}
}

func BenchmarkText(b *testing.B) {
	f, ev, buf := new(Text), event(func(*bpf.Event) {}), make([]byte, 0, 1024)
	b.ReportAllocs()
	for b.Loop() {
		f.AppendEvent(buf, ev)
	}
}

// who is the description of event's thread.
func who(change func(*bpf.Process)) *bpf.Process {
	p := &bpf.Process{
		Head:  bpf.Event{Time: at, Vm: 1, Kind: bpf.EventProcess, Task: 0xffff888003a4c000, Who: 9, Flags: bpf.EventIdentity, Pid: 313, Tgid: 312},
		Known: bpf.ProcessParent | bpf.ProcessCred | bpf.ProcessStart | bpf.ProcessNsPid | bpf.ProcessExe | bpf.ProcessCgroup,
		Ppid:  300, NsPid: 313, Uid: 1000, Gid: 1001, Euid: 1000, Egid: 1001, Start: 12_000_000_345,
	}
	copy(p.Head.Comm[:], "cat")
	copy(p.Exe[:], "/usr/bin/cat")
	copy(p.Cgroup[:], "/")
	change(p)
	return p
}

const dockerID = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

func TestTextProcess(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(*bpf.Process)
		want   string
	}{
		{"plain", func(*bpf.Process) {}, "/usr/bin/cat, child of 300, uid 1000"},
		{"set-user-id", func(p *bpf.Process) { p.Euid = 0 }, "/usr/bin/cat, child of 300, uid 1000 as 0"},
		{"in a container", func(p *bpf.Process) { p.NsPid = 7; copy(p.Cgroup[:], "/docker/"+dockerID) },
			"/usr/bin/cat, child of 300, uid 1000, pid 7 in its namespace, in container " + dockerID},
		{"memfd", func(p *bpf.Process) { copy(p.Exe[:], "/memfd:a\x1b[J\x00"); p.Known |= bpf.ProcessExeDeleted },
			`/memfd:a\x1b[J (deleted), child of 300, uid 1000`},
		{"path of which the begin is missing", func(p *bpf.Process) { p.Known |= bpf.ProcessExeCut },
			".../usr/bin/cat, child of 300, uid 1000"},
		{"nothing known", func(p *bpf.Process) { p.Known = 0 }, "not known"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			want := "cat[312/313]                     --- " + tc.want + " ---\n"
			if got := string(new(Text).AppendProcess(nil, who(tc.change))); got != want {
				t.Errorf("%q\nwant %q", got, want)
			}
		})
	}
}

func TestJSONProcess(t *testing.T) {
	f := &JSON{Offset: offset}
	got := string(f.AppendProcess(nil, who(func(p *bpf.Process) { copy(p.Cgroup[:], "/docker/"+dockerID) })))
	want := `{"type":"process","time":"2026-01-02T03:04:05.000000123Z","boot_ns":5000000123,"vm":1,"who":9,` +
		`"comm":"cat","pid":313,"tgid":312,"task":"0xffff888003a4c000","exe":"/usr/bin/cat","ppid":300,"ns_pid":313,` +
		`"uid":1000,"gid":1001,"euid":1000,"egid":1001,"start_ns":12000000345,` +
		`"cgroup":"/docker/` + dockerID + `","container":"` + dockerID + `","runtime":"docker"}` + "\n"
	if got != want {
		t.Errorf("%s\nwant %s", got, want)
	}

	// Events of the thread say it, those of another and of a time after do not.
	has := func(ev *bpf.Event) bool {
		return strings.Contains(string(f.AppendEvent(nil, ev)), `,"who":9,"exe":"/usr/bin/cat","ppid":300,"uid":1000,"table"`)
	}
	if !has(event(func(ev *bpf.Event) { ev.Who = 9 })) {
		t.Error("an event does not say who made it")
	}
	if has(event(func(ev *bpf.Event) { ev.Who = 10 })) || has(event(func(ev *bpf.Event) { ev.Who, ev.Task = 9, 1 })) {
		t.Error("an event says that another made it")
	}
	unknown := string(f.AppendProcess(nil, who(func(p *bpf.Process) { p.Known = bpf.ProcessExe | bpf.ProcessExeDeleted | bpf.ProcessExeCut })))
	if !strings.HasSuffix(unknown, `"exe":"/usr/bin/cat","exe_deleted":true,"exe_cut":true}`+"\n") {
		t.Errorf("of one that little is known of: %s", unknown)
	}
	var v map[string]any
	odd := f.AppendProcess(nil, who(func(p *bpf.Process) { copy(p.Exe[:], "/a\"b\\c\n\xff\x00") }))
	if err := json.Unmarshal(odd, &v); err != nil || v["exe"] != `/a"b\\c\x0a\xff` {
		t.Errorf("%s is read as %q: %v", odd, v["exe"], err)
	}
}

// SPDX-License-Identifier: Apache-2.0

package layout

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf/btf"

	"frail/hooks/libvirttest"
	"frail/qmp"
	"frail/qmp/qmptest"
)

func TestMain(m *testing.M) { libvirttest.Main(m) }

// rejectLimit bounds how long a corrupt guest may keep Resolve busy.
const rejectLimit = 20 * time.Second

func openMemory(t testing.TB, g *qmptest.Guest, pid int) *qmp.Memory {
	t.Helper()
	mem, err := qmp.OpenMemory(t.Context(), qmp.MemoryOptions{Monitor: qmp.NewLibvirt(g.Dom), PID: pid, Domain: qmp.LibvirtMemory{Domain: g.Dom}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := mem.Close(); err != nil {
			t.Error(err)
		}
	})
	return mem
}

// registers are those of a stopped vCPU.
type registers struct {
	cr3, gs, kernelGS uint64
	cpl               int
}

func readRegisters(t testing.TB, g *qmptest.Guest) []registers {
	t.Helper()
	out, err := qmp.NewLibvirt(g.Dom).Run([]byte(`{"execute":"human-monitor-command","arguments":{"command-line":"info registers -a"}}`))
	if err != nil {
		t.Fatal(err)
	}
	var reply struct{ Return string }
	if err := json.Unmarshal(out, &reply); err != nil {
		t.Fatal(err)
	}
	number := func(text, pattern string, base int) uint64 {
		m := regexp.MustCompile(pattern).FindStringSubmatch(text)
		if m == nil {
			t.Fatalf("no %s in %s", pattern, text)
		}
		v, err := strconv.ParseUint(m[1], base, 64)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	var cpus []registers
	for _, text := range strings.Split(reply.Return, "CPU#")[1:] {
		cpus = append(cpus, registers{
			cr3: number(text, `CR3=([0-9a-f]+)`, 16),
			gs:  number(text, `GS =[0-9a-f]+ ([0-9a-f]+)`, 16),
			cpl: int(number(text, `CPL=(\d)`, 10)),
		})
	}
	return cpus
}

// symbolAddr asks the guest for the address of a symbol.
func symbolAddr(t testing.TB, g *qmptest.Guest, name string) uint64 {
	t.Helper()
	line := g.Run(t, "grep -w -m 1 "+name+" /proc/kallsyms")
	addr, rest, _ := strings.Cut(line, " ")
	v, err := strconv.ParseUint(addr, 16, 64)
	if err != nil || rest[1:] != " "+name+"\n" {
		t.Fatalf("parse %q: %v", line, err)
	}
	return v
}

// guestTasks returns the guest's own view of its threads by thread id.
func guestTasks(t *testing.T, g *qmptest.Guest) map[int32]Task {
	t.Helper()
	out := make(map[int32]Task)
	list := g.Run(t, `for t in /proc/[0-9]*/task/[0-9]*; do read -r l <$t/stat && echo "$t $l"; done 2>/dev/null; true`)
	pattern := regexp.MustCompile(`^/proc/(\d+)/task/(\d+) \d+ \((.*)\) [A-Z] `)
	for line := range strings.Lines(list) {
		m := pattern.FindStringSubmatch(line)
		if m == nil {
			t.Fatalf("parse %q", line)
		}
		tgid, _ := strconv.Atoi(m[1])
		pid, _ := strconv.Atoi(m[2])
		out[int32(pid)] = Task{PID: int32(pid), TGID: int32(tgid), Comm: ownName(m[3])}
	}
	return out
}

// ownName returns what a thread's task_struct calls it: /proc adds to the names of
// kernel threads.
func ownName(comm string) string {
	if m := kernelWorker.FindString(comm); m != "" {
		comm = m
	}
	return comm[:min(len(comm), commLen-1)]
}

var kernelWorker = regexp.MustCompile(`^kworker/[^:]+:\w+`)

func TestResolveGuest(t *testing.T) {
	for name, cfg := range map[string]qmptest.Config{
		"page table isolation, two CPUs":      {MemoryMiB: 1024, VCPUs: 2, Cmdline: "pti=on"},
		"five-level paging, RAM above 4 GiB":  {MemoryMiB: 5 << 10, CPU: "<cpu mode='maximum'/>"},
		"no address randomisation, small RAM": {MemoryMiB: 160, Cmdline: "nokaslr"},
	} {
		t.Run(name, func(t *testing.T) { testResolve(t, cfg) })
	}
}

func testResolve(t *testing.T, cfg qmptest.Config) {
	g := qmptest.Start(t, cfg)
	mem := openMemory(t, g, g.PID)
	if mem.Path() != qmp.PathProcessVM {
		t.Errorf("memory is read by %s: %v", mem.Path(), mem.SlowReason())
	}
	lstar := symbolAddr(t, g, "entry_SYSCALL_64")

	l, err := Resolve(t.Context(), mem, mem.Ranges(), Hint{LSTAR: lstar})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("resolved in %v: %+v", l.Timing.Total(), l.Timing)
	compareSymbols(t, g, l)
	if want := strings.TrimSpace(g.Run(t, "uname -r")); l.Release != want {
		t.Errorf("release %q, the guest says %q", l.Release, want)
	}
	if want := symbolAddr(t, g, "_text") - 0xffffffff81000000; l.KASLR != want {
		t.Errorf("KASLR offset %#x, want %#x", l.KASLR, want)
	}
	if l.LSTAR != lstar {
		t.Errorf("LSTAR %#x, want %#x", l.LSTAR, lstar)
	}
	wantLevels := 4
	if strings.Contains(g.Run(t, "cat /proc/cpuinfo"), " la57") {
		wantLevels = 5
	}
	if l.Levels != wantLevels {
		t.Errorf("%d levels of page tables, want %d", l.Levels, wantLevels)
	}
	ram := mem.Ranges()
	if end := ram[len(ram)-1].End(); l.DirectMapSize < end {
		t.Errorf("direct map of %#x bytes, RAM ends at %#x", l.DirectMapSize, end)
	}

	compareTasks(t, g, mem, l)
	compareRegs(t, g, mem, l)
	compareTypes(t, mem, l)
	compareCurrent(t, g, mem, l)

	// The slow path reads the same kernel.
	peek := openMemory(t, g, 0)
	if peek.Path() != qmp.PathPeek {
		t.Errorf("memory is read by %s", peek.Path())
	}
	again, err := Resolve(t.Context(), peek, peek.Ranges(), Hint{LSTAR: lstar})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("resolved through libvirt in %v: %+v", again.Timing.Total(), again.Timing)
	if a, b := plain(l), plain(again); !reflect.DeepEqual(a, b) {
		t.Errorf("layouts differ by path:\n%+v\n%+v", a, b)
	}
}

// plain returns the layout without what differs between two resolutions.
func plain(l *Layout) Layout {
	c := *l
	c.Timing, c.symbols, c.members = Timing{}, nil, nil
	c.Source, c.SymbolSource, c.TypeSource, c.Rebased, c.Anchored = "", "", "", false, false
	return c
}

// compareSymbols compares every symbol's address, type, name and place in the
// order with the guest's.
func compareSymbols(t *testing.T, g *qmptest.Guest, l *Layout) {
	t.Helper()
	var lines []string
	for s := range l.Symbols() {
		lines = append(lines, fmt.Sprintf("%016x %c %s", s.Addr, s.Type, s.Name))
	}
	if n := len(lines); n != l.NumSymbols() || n < 50_000 {
		t.Errorf("Symbols yields %d of %d", n, l.NumSymbols())
	}
	if s, ok := l.Symbol("no such symbol"); ok {
		t.Errorf("found %+v", s)
	}
	if err := g.CompareSymbols(t, lines); err != nil {
		t.Fatal(err)
	}
}

func compareTasks(t *testing.T, g *qmptest.Guest, mem *qmp.Memory, l *Layout) {
	t.Helper()
	// Names that a careless parser of /proc trips over.
	g.Run(t, `mkfifo /tmp/wait; sh -c 'printf "a) R (b c" >/proc/$$/comm; read x </tmp/wait' & sleep 1000 & true`)
	before := guestTasks(t, g)
	tasks, err := l.Tasks(t.Context(), mem)
	if err != nil {
		t.Fatal(err)
	}
	after := guestTasks(t, g)

	found := make(map[int32]bool)
	for _, task := range tasks {
		found[task.PID] = true
		task.Addr = 0
		a, inBefore := before[task.PID]
		b, inAfter := after[task.PID]
		if (!inBefore || a != task) && (!inAfter || b != task) {
			t.Errorf("task %+v; the guest says %+v before and %+v after", task, a, b)
		}
	}
	named := false
	for pid, task := range before {
		named = named || task.Comm == "a) R (b c"
		// The listing shell itself is another one each time.
		if after[pid] == task && !found[pid] {
			t.Errorf("the guest's task %+v was not found", task)
		}
	}
	if len(tasks) < 20 || !named {
		t.Errorf("%d tasks, the named one among them: %v", len(tasks), named)
	}
}

// compareRegs holds the saved registers of a sleeping process, found by the
// layout, against /proc/PID/syscall.
func compareRegs(t *testing.T, g *qmptest.Guest, mem *qmp.Memory, l *Layout) {
	t.Helper()
	tasks, err := l.Tasks(t.Context(), mem)
	if err != nil {
		t.Fatal(err)
	}
	for _, task := range tasks {
		if task.Comm != "sleep" {
			continue
		}
		var nr, rdi, rsi, rdx, r10, r8, r9, sp, ip uint64
		text := g.Run(t, fmt.Sprintf("cat /proc/%d/syscall", task.PID))
		if _, err := fmt.Sscanf(text, "%d %v %v %v %v %v %v %v %v", &nr, &rdi, &rsi, &rdx, &r10, &r8, &r9, &sp, &ip); err != nil {
			t.Fatalf("parse %q: %v", text, err)
		}
		space := newSpace(mem, l.PageTable, l.Levels)
		stack, err := space.uint64(task.Addr + uint64(l.TaskStack))
		if err != nil {
			t.Fatal(err)
		}
		regs := stack + uint64(l.ThreadSize-l.StackPadding-l.PtRegsSize)
		got := make([]byte, l.PtRegsSize)
		if err := space.read(got, regs); err != nil {
			t.Fatal(err)
		}
		at := func(i int) uint64 { return binary.LittleEndian.Uint64(got[i:]) }
		const enosys = ^uint64(37) // what the entry code leaves in ax
		if at(int(l.PtRegsOrigAx)) != nr || at(int(l.PtRegsAx)) != enosys || at(int(l.PtRegsOrigAx)+8) != ip {
			t.Errorf("saved registers %x; the guest says %s", got, text)
		}
		return
	}
	t.Error("no process called sleep")
}

// compareTypes holds the BTF reader against cilium/ebpf's on the guest's types.
func compareTypes(t *testing.T, mem *qmp.Memory, l *Layout) {
	t.Helper()
	start, _ := l.Symbol("__start_BTF")
	stop, _ := l.Symbol("__stop_BTF")
	raw := make([]byte, stop.Addr-start.Addr)
	if err := newSpace(mem, l.PageTable, l.Levels).read(raw, start.Addr); err != nil {
		t.Fatal(err)
	}
	compareWithCilium(t, raw, "task_struct", "pt_regs", "signal_struct", "mm_struct", "file", "cred", "sk_buff", "page")
}

func compareWithCilium(t *testing.T, raw []byte, names ...string) {
	t.Helper()
	spec, err := btf.LoadSpecFromReader(bytes.NewReader(raw))
	if err != nil {
		t.Fatal(err)
	}
	types, err := parseBTF(raw)
	if err != nil {
		t.Fatal(err)
	}
	ids := types.find(names...)
	compared := 0
	for _, name := range names {
		var s *btf.Struct
		if err := spec.TypeByName(name, &s); err != nil {
			t.Fatal(err)
		}
		if size, err := types.sizeof(ids[name]); err != nil || size != uint64(s.Size) {
			t.Errorf("struct %s has %d bytes, %v; cilium says %d", name, size, err, s.Size)
		}
		var visit func(members []btf.Member, base btf.Bits)
		visit = func(members []btf.Member, base btf.Bits) {
			for _, m := range members {
				if m.Name == "" {
					switch inner := btf.UnderlyingType(m.Type).(type) {
					case *btf.Struct:
						visit(inner.Members, base+m.Offset)
					case *btf.Union:
						visit(inner.Members, base+m.Offset)
					}
					continue
				}
				if m.BitfieldSize != 0 {
					continue
				}
				offset, typ, err := types.member(ids[name], m.Name)
				if err != nil || btf.Bits(offset)*8 != base+m.Offset {
					t.Errorf("%s.%s lies at byte %d, %v; cilium says bit %d", name, m.Name, offset, err, base+m.Offset)
					continue
				}
				want, wantErr := btf.Sizeof(m.Type)
				got, err := types.sizeof(typ)
				if (err == nil) != (wantErr == nil) || err == nil && got != uint64(want) {
					t.Errorf("%s.%s has %d bytes, %v; cilium says %d, %v", name, m.Name, got, err, want, wantErr)
				}
				compared++
			}
		}
		visit(s.Members, 0)
	}
	if compared < 10*len(names) {
		t.Errorf("only %d members compared", compared)
	}
}

// compareCurrent stops the guest in its kernel and follows the per-CPU pointer
// from the CPU's own GS base. It also anchors the layout in the CPU's CR3.
func compareCurrent(t *testing.T, g *qmptest.Guest, mem *qmp.Memory, l *Layout) {
	t.Helper()
	if err := g.Dom.Suspend(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := g.Dom.Resume(); err != nil {
			t.Fatal(err)
		}
	}()
	tasks, err := l.Tasks(t.Context(), mem)
	if err != nil {
		t.Fatal(err)
	}
	byAddr := make(map[uint64]Task)
	for _, task := range tasks {
		byAddr[task.Addr] = task
	}
	inKernel := 0
	for i, cpu := range readRegisters(t, g) {
		anchored, err := Resolve(t.Context(), mem, mem.Ranges(), Hint{LSTAR: l.LSTAR, CR3: cpu.cr3})
		if err != nil || !anchored.Anchored {
			t.Errorf("CPU %d with CR3 %#x anchors nothing: %v", i, cpu.cr3, err)
		}
		if cpu.cpl != 0 {
			continue
		}
		inKernel++
		space := newSpace(mem, cpu.cr3&pageMask, l.Levels)
		addr, err := space.uint64(cpu.gs + l.CurrentTask)
		if err != nil {
			t.Errorf("CPU %d: %v", i, err)
			continue
		}
		task, err := l.readTask(space, addr)
		if err != nil {
			t.Errorf("CPU %d: %v", i, err)
			continue
		}
		idle := task.PID == 0 && task.Comm == fmt.Sprintf("swapper/%d", i)
		if !idle && byAddr[addr] != task {
			t.Errorf("CPU %d runs %+v, which is neither idle nor among the tasks", i, task)
		}
	}
	// The guest does nothing: its CPUs halt in the kernel.
	if inKernel == 0 {
		t.Error("no CPU was in the kernel")
	}
}

// A guest that starts again leaves its old kernel's description behind.
func TestResolveFollowsGuest(t *testing.T) {
	g := qmptest.Start(t, qmptest.Config{Paused: true, MemoryMiB: 256})
	mem := openMemory(t, g, g.PID)
	if l, err := Resolve(t.Context(), mem, mem.Ranges(), Hint{}); !errors.Is(err, ErrNotReady) {
		t.Fatalf("before the first instruction: %v, %v; want ErrNotReady", l, err)
	}
	g.Resume(t)
	const boots = 5 // chance may repeat an address, hardly four times
	var (
		last  uint64
		known Resolver
	)
	for boot := 1; ; boot++ {
		lstar := symbolAddr(t, g, "entry_SYSCALL_64")
		l, err := Resolve(t.Context(), mem, mem.Ranges(), Hint{LSTAR: lstar})
		if err != nil {
			t.Fatalf("boot %d: %v", boot, err)
		}
		if l.LSTAR != lstar {
			t.Errorf("boot %d: LSTAR %#x, want %#x", boot, l.LSTAR, lstar)
		}
		// From the second boot on it needs only new addresses.
		again, err := known.Resolve(t.Context(), mem, mem.Ranges(), Hint{LSTAR: lstar})
		if err != nil || again.Rebased != (boot > 1) || !reflect.DeepEqual(plain(again), plain(l)) {
			t.Errorf("boot %d: %+v, %v; want what is new to us: %+v", boot, again, err, l)
		} else if boot > 1 {
			t.Logf("boot %d: known kernel resolved in %v: %+v", boot, again.Timing.Total(), again.Timing)
			compareSymbols(t, g, again)
		}
		if last != 0 && last != lstar {
			break
		}
		if boot == boots {
			t.Fatalf("%d boots at one address: nothing was followed", boots)
		}
		last = lstar
		g.Reset(t)
	}
	// A kernel that enters elsewhere is not the one that is there.
	_, err := Resolve(t.Context(), mem, mem.Ranges(), Hint{LSTAR: last + 1<<12})
	if !errors.Is(err, ErrRejected) || !strings.Contains(err.Error(), "entry_SYSCALL_64 is at") {
		t.Errorf("with another LSTAR: %v; want ErrRejected", err)
	}
}

// patched is guest memory with some of it replaced.
type patched struct {
	io.ReaderAt
	patches map[uint64][]byte
}

func (p patched) ReadAt(b []byte, off int64) (int, error) {
	n, err := p.ReaderAt.ReadAt(b, off)
	for addr, patch := range p.patches {
		for i, c := range patch {
			if at := int64(addr) + int64(i) - off; at >= 0 && at < int64(n) {
				b[at] = c
			}
		}
	}
	return n, err
}

// firstNote returns the note that is found first.
func firstNote(t *testing.T, mem *qmp.Memory) *note {
	t.Helper()
	for n, err := range scanNotes(t.Context(), mem, mem.Ranges(), new(tableHits)) {
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	t.Fatal("found no note")
	return nil
}

// A real guest that lies about one thing at a time.
func TestResolveRejectsCorruptGuest(t *testing.T) {
	g := qmptest.Start(t, qmptest.Config{MemoryMiB: 256})
	mem := openMemory(t, g, g.PID)
	l, err := Resolve(t.Context(), mem, mem.Ranges(), Hint{})
	if err != nil {
		t.Fatal(err)
	}
	n := firstNote(t, mem)
	physical := func(va uint64) uint64 {
		pa, err := imagePhysical(va, l.PhysBase)
		if err != nil {
			t.Fatal(err)
		}
		return pa
	}
	symbol := func(name string) uint64 {
		s, ok := l.Symbol(name)
		if !ok {
			t.Fatalf("no symbol %s", name)
		}
		return physical(s.Addr)
	}
	word := func(v uint64) []byte { return binary.LittleEndian.AppendUint64(nil, v) }
	ones := func(n int) []byte { return bytes.Repeat([]byte{0xff}, n) }
	zeros := func(n int) []byte { return make([]byte, n) }
	const imageSlot = 8 * 511 // of the kernel's image in the top-level table
	btfStart := symbol("__start_BTF")
	types := func() []byte {
		// A chain of typedefs as long as the section allows.
		b := make([]byte, 1<<20)
		for i := 0; i+btfTypeSize <= len(b); i += btfTypeSize {
			binary.LittleEndian.PutUint32(b[i+4:], kindTypedef<<24)
			binary.LittleEndian.PutUint32(b[i+8:], uint32(i/btfTypeSize+2))
		}
		return b
	}

	for name, tt := range map[string]struct {
		patches map[uint64][]byte
		want    string
	}{
		"no symbols":            {map[uint64][]byte{physical(n.kallsyms.numSyms): zeros(4)}, "0 symbols"},
		"too many symbols":      {map[uint64][]byte{physical(n.kallsyms.numSyms): ones(4)}, "4294967295 symbols"},
		"more symbols":          {map[uint64][]byte{physical(n.kallsyms.numSyms): {0, 0, 0x10, 0}}, "read kallsyms"},
		"tokens out of range":   {map[uint64][]byte{physical(n.kallsyms.tokenIndex): ones(512)}, "token 0"},
		"tokens without end":    {map[uint64][]byte{physical(n.kallsyms.tokenTable): bytes.Repeat([]byte("x"), 4096)}, "longer than 512"},
		"long names":            {map[uint64][]byte{physical(n.kallsyms.names): ones(4096)}, "name 0"},
		"empty names":           {map[uint64][]byte{physical(n.kallsyms.names): zeros(4096)}, "name 0 is empty"},
		"offsets of nothing":    {map[uint64][]byte{physical(n.kallsyms.offsets): bytes.Repeat([]byte{0x11}, 4*l.NumSymbols())}, "no known encoding"},
		"no BTF":                {map[uint64][]byte{btfStart: zeros(24)}, "usable BTF: magic"},
		"endless BTF":           {map[uint64][]byte{btfStart + 8: ones(16)}, "usable BTF: types"},
		"overlong BTF header":   {map[uint64][]byte{btfStart + 4: ones(4)}, "usable BTF"},
		"unknown BTF kinds":     {map[uint64][]byte{btfStart + 24: ones(64)}, "unknown kind"},
		"BTF of typedefs":       {map[uint64][]byte{btfStart + 24: types()}, "usable BTF"},
		"another first task":    {map[uint64][]byte{symbol("init_task") + uint64(l.TaskComm): []byte("init\x00")}, `init_task is "init"`},
		"first task with a pid": {map[uint64][]byte{symbol("init_task") + uint64(l.TaskPID): ones(4)}, "pid -1"},
		"another first stack":   {map[uint64][]byte{symbol("init_task") + uint64(l.TaskStack): word(1 << 20)}, "init_stack"},
		"direct map in user":    {map[uint64][]byte{symbol("page_offset_base"): word(0x1000)}, "direct map"},
		"direct map elsewhere":  {map[uint64][]byte{symbol("page_offset_base"): word(l.DirectMap + pageSize)}, "direct map"},
		"direct map of nothing": {map[uint64][]byte{symbol("vmalloc_base"): word(l.DirectMap)}, "direct map"},
		"no top-level table":    {map[uint64][]byte{l.PageTable: zeros(pageSize)}, "not mapped"},
		"page tables in a loop": {map[uint64][]byte{l.PageTable + imageSlot: word(l.PageTable | pagePresent)}, "page table at"},
		"page table beyond RAM": {map[uint64][]byte{l.PageTable + imageSlot: word(1<<51 | pagePresent)}, "not guest RAM"},
		"per-CPU area nowhere":  {map[uint64][]byte{symbol("__per_cpu_offset"): word(0x5000)}, "current task"},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), rejectLimit)
			defer cancel()
			_, err := Resolve(ctx, patched{mem, tt.patches}, mem.Ranges(), Hint{})
			if !errors.Is(err, ErrRejected) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v; want ErrRejected with %q", err, tt.want)
			}
		})
	}

	t.Run("note is overwritten", func(t *testing.T) {
		for at, patch := range map[uint64][]byte{0: zeros(4), 4: ones(4), 12: []byte("vmcoreinfo")} {
			got, err := Resolve(t.Context(), patched{mem, map[uint64][]byte{n.addr + at: patch}}, mem.Ranges(), Hint{})
			if err != nil || got.Source != SourceScan || !reflect.DeepEqual(plain(got), plain(l)) {
				t.Errorf("byte %d: %+v, %v; want the same layout by a search", at, got, err)
			}
		}
	})
	t.Run("note and symbols are overwritten", func(t *testing.T) {
		patches := map[uint64][]byte{n.addr: zeros(4), physical(n.kallsyms.tokenIndex): ones(512)}
		if _, err := Resolve(t.Context(), patched{mem, patches}, mem.Ranges(), Hint{}); !errors.Is(err, ErrNotReady) {
			t.Errorf("error %v; want ErrNotReady", err)
		}
	})
	t.Run("many notes before the real one", func(t *testing.T) {
		page := make([]byte, pageSize)
		if _, err := mem.ReadAt(page, int64(n.addr)); err != nil {
			t.Fatal(err)
		}
		// Another number with as many characters.
		forged := regexp.MustCompile(`NUMBER\(phys_base\)=..`).ReplaceAll(page, []byte("NUMBER(phys_base)=99"))
		patches := make(map[uint64][]byte)
		for i := range uint64(maxCandidates - 1) {
			patches[scanStart+i*pageSize] = forged
		}
		got, err := Resolve(t.Context(), patched{mem, patches}, mem.Ranges(), Hint{})
		if err != nil || !reflect.DeepEqual(plain(got), plain(l)) {
			t.Errorf("with %d forged notes: %v", len(patches), err)
		}
		for i := range uint64(4 * maxCandidates) {
			patches[scanStart+i*pageSize] = forged
		}
		_, err = Resolve(t.Context(), patched{mem, patches}, mem.Ranges(), Hint{})
		if !errors.Is(err, ErrRejected) || !strings.Contains(err.Error(), "gave up after") {
			t.Errorf("with %d forged notes: error %v; want ErrRejected", len(patches), err)
		}
	})
	t.Run("time is up", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := Resolve(ctx, mem, mem.Ranges(), Hint{}); !errors.Is(err, context.Canceled) {
			t.Errorf("error %v; want context.Canceled", err)
		}
	})
	t.Run("task list in a loop", func(t *testing.T) {
		tasks, err := l.Tasks(t.Context(), mem)
		if err != nil {
			t.Fatal(err)
		}
		second := tasks[1].Addr - l.DirectMap + uint64(l.tasks.tasks)
		loop := map[uint64][]byte{second: word(tasks[1].Addr + uint64(l.tasks.tasks))}
		if _, err := l.Tasks(t.Context(), patched{mem, loop}); err == nil || !strings.Contains(err.Error(), "no end") {
			t.Errorf("error %v; want one about a list without end", err)
		}
		nowhere := maps.Clone(loop)
		nowhere[second] = word(0xdead000000000100)
		if _, err := l.Tasks(t.Context(), patched{mem, nowhere}); !errors.Is(err, errNotMapped) {
			t.Errorf("error %v; want errNotMapped", err)
		}
	})
}

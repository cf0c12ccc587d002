// SPDX-License-Identifier: Apache-2.0

package sequence

import (
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"testing"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"frail/bpf"
	"frail/bpf/bpftest"
	"frail/tracer/ph"
)

// perCall returns what one run of prog takes by the kernel's program statistics: the
// least of several rounds, because the machine does other things too.
func perCall(b *testing.B, prog *ebpf.Program, fire func()) float64 {
	b.Helper()
	best := 0.0
	for range 7 {
		before, err := prog.Stats()
		must(b, err)
		for range 40000 {
			fire()
		}
		after, err := prog.Stats()
		must(b, err)
		ns := float64(after.Runtime-before.Runtime) / float64(after.RunCount-before.RunCount)
		if best == 0 || ns < best {
			best = ns
		}
	}
	return best
}

// described returns the description of a thread that runs a program.
func described(head bpf.Event, exe string) *bpf.Process {
	p := &bpf.Process{Head: head, Known: bpf.ProcessExe}
	p.Head.Kind, p.Head.Flags = bpf.EventProcess, bpf.EventIdentity
	copy(p.Exe[:], exe)
	return p
}

// sixty trains a profile of 60 rows and returns a loop of its calls.
func sixty(b *testing.B, a *Analyzer, s ph.Settings) []bpf.Event {
	b.Helper()
	must(b, a.AddVM(1, s))
	k := bpftest.New(b, 5)
	k.FireProcess(b, a.objs.Process, 0, described(bpf.Event{Vm: 1, Task: 1 << 40, Who: 1, Pid: 7, Tgid: 7, Cr3: 1 << 20}, "/b"))
	w := rand.New(rand.NewPCG(1, 2))
	var loop []bpf.Event
	for i := range 600 {
		ev := bpf.Event{
			Vm: 1, Kind: bpf.EventEnter, Insn: bpf.InsnSyscall64, Flags: bpf.EventIdentity | bpf.EventNr,
			Task: 1 << 40, Who: 1, Pid: 7, Tgid: 7, Cr3: 1 << 20, Comm: [16]uint8{'b'}, Sp: 1 << 40,
			Nr: 64 + int64(i)%60*3, Time: 1,
		}
		if i >= 120 {
			ev.Nr = 64 + int64(w.IntN(60))*3
		}
		loop = append(loop, ev)
	}
	for range 20 {
		for i := range loop {
			*k.At(0) = loop[i]
			k.Fire(b, a.objs.Enter, 0)
		}
	}
	p, err := a.Profile(ph.NewExecutable(1, "/b"))
	must(b, err)
	if len(p.Rows) != 60 {
		b.Fatalf("%d rows, want 60", len(p.Rows))
	}
	return loop
}

// BenchmarkCall measures the analysis of a call in the kernel, learning and judging with a
// profile of 60 rows, beside a program that does nothing.
func BenchmarkCall(b *testing.B) {
	stats, err := ebpf.EnableStats(unix.BPF_STATS_RUN_TIME)
	must(b, err)
	defer stats.Close()

	for _, tc := range []struct {
		name   string
		normal bool
		vm     uint32
	}{
		{"learning", false, 1},
		{"learning and judging", true, 1},
		{"VM not followed", true, 2},
	} {
		b.Run(tc.name, func(b *testing.B) {
			a := newAnalyzer(b, Options{})
			s := ph.DefaultSettings()
			s.NormalWait = 1000 * time.Hour
			loop := sixty(b, a, s)
			if tc.normal {
				must(b, a.Control(ph.NewExecutable(1, "/b"), ph.Normalize))
			}
			k := bpftest.New(b, len(loop))
			for i := range loop {
				*k.At(i) = loop[i]
				k.At(i).Vm = tc.vm
			}
			for b.Loop() {
				// Both under the same conditions, as near to each other as can be.
				i := 0
				next := func(prog *ebpf.Program) func() {
					return func() {
						k.Fire(b, prog, i%len(loop))
						i++
					}
				}
				empty := perCall(b, a.objs.Nothing, next(a.objs.Nothing))
				call := perCall(b, a.objs.Enter, next(a.objs.Enter))
				b.ReportMetric(call, "ns/call")
				b.ReportMetric(empty, "ns/empty")
				b.ReportMetric(call/empty, "times-empty")
			}
		})
	}
}

// memory returns what the kernel counts for the maps of an analyser, where it does
// (Linux 6.4).
func memory(b *testing.B, a *Analyzer) uint64 {
	b.Helper()
	var sum uint64
	for _, m := range []*ebpf.Map{a.objs.VMs, a.objs.Executables, a.objs.Profiles, a.objs.Free, a.objs.Rows, a.objs.FreeRows, a.objs.Threads, a.objs.Forks, a.objs.Records} {
		info, err := m.Info()
		must(b, err)
		n, ok := info.Memlock()
		if !ok {
			b.Skip("this kernel does not tell the memory of maps")
		}
		sum += n
	}
	return sum
}

// BenchmarkMemory fills an analyser with 1,000 profiles of 53 rows and 100,000 threads and
// prints what the kernel counts.
func BenchmarkMemory(b *testing.B) {
	var perProfile, all float64
	for b.Loop() {
		a := newAnalyzer(b, Options{Limits: ph.Limits{Profiles: 1000, Rows: 53000, Threads: 100000}})
		must(b, a.AddVM(1, ph.DefaultSettings()))
		p := new(ph.Profile)
		for call := range ph.Number(53) {
			p.Rows = append(p.Rows, ph.Row{Call: call, Pairs: []ph.Pair{{Prev: ph.NoNumber, Train: 255, Test: 255}}})
		}
		empty := memory(b, a)
		for i := range 1000 {
			must(b, a.Load(ph.NewExecutable(1, fmt.Sprint("/p", i)), p))
		}
		// The arrays of profiles and rows are there from the start.
		perProfile = float64(memory(b, a)-empty)/1000 + float64(unsafe.Sizeof(bpf.PhProfile{})+53*unsafe.Sizeof(bpf.PhRow{}))
		k := bpftest.New(b, 5)
		for i := range 100000 {
			k.FireProcess(b, a.objs.Process, 0, described(bpf.Event{
				Vm: 1, Pid: int32(i + 1), Tgid: int32(i + 1), Task: uint64(i + 1), Who: uint64(i + 1),
			}, "/p1"))
		}
		threads, err := a.Threads()
		must(b, err)
		if len(threads) != 100000 {
			b.Fatalf("%d threads", len(threads))
		}
		all = float64(memory(b, a))
	}
	b.ReportMetric(perProfile/1000, "KB/profile-of-53-rows")
	b.ReportMetric(all/(1<<20), "MiB/1000-profiles-100000-threads")
}

// BenchmarkReference measures the reference on the ADFA-LD training set.
func BenchmarkReference(b *testing.B) {
	data, err := ph.ReadADFA(filepath.Join(dataDir(b), "adfa-ld"))
	must(b, err)
	n := 0
	for b.Loop() {
		a := ph.New(ph.DefaultLimits())
		a.AddVM(1, ph.DefaultSettings())
		var namer ph.Namer
		for i, tr := range data.Training {
			tr.Events(1, "adfa", 0, uint32(i), func(ev *bpf.Event) bool {
				if p := namer.Describe(ev); p != nil {
					a.Process(p)
				}
				a.Call(ev)
				n++
				return true
			})
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(n), "ns/call")
}

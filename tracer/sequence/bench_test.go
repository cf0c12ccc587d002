// SPDX-License-Identifier: Apache-2.0

package sequence

import (
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

// sixty trains a profile of 60 rows and returns a loop of its calls.
func sixty(b *testing.B, a *Analyzer, s ph.Settings) []bpf.Event {
	b.Helper()
	must(b, a.AddVM(1, s))
	k := bpftest.New(b, 1)
	w := rand.New(rand.NewPCG(1, 2))
	var loop []bpf.Event
	for i := range 600 {
		ev := bpf.Event{
			Vm: 1, Kind: bpf.EventEnter, Insn: bpf.InsnSyscall64, Flags: bpf.EventIdentity | bpf.EventNr,
			Task: 1 << 40, Pid: 7, Tgid: 7, Cr3: 1 << 20, Comm: [16]uint8{'b'}, Sp: 1 << 40,
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
	p, err := a.Profile(ph.NewExecutable(1, "b"))
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
				must(b, a.Control(ph.NewExecutable(1, "b"), ph.Normalize))
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

// element is what an element of a hash map without preallocation takes beside key and
// value: struct htab_elem, rounded up by the kernel's allocator.
const element = 48

// BenchmarkMemory prints the kernel memory of profiles and threads.
func BenchmarkMemory(b *testing.B) {
	const row = int(unsafe.Sizeof(bpf.PhRow{})) + 8 + element
	const profile = int(unsafe.Sizeof(bpf.PhProfile{}))
	const thread = int(unsafe.Sizeof(bpf.PhThread{})) + 8 + element
	for b.Loop() {
	}
	b.ReportMetric(float64(profile+53*row)/1000, "KB/profile-of-53-rows")
	b.ReportMetric(float64(1000*(profile+53*row)+100000*thread)/(1<<20), "MiB/1000-profiles-100000-threads")
}

// BenchmarkReference measures the reference on the ADFA-LD training set.
func BenchmarkReference(b *testing.B) {
	data, err := ph.ReadADFA(filepath.Join(dataDir(b), "adfa-ld"))
	must(b, err)
	n := 0
	for b.Loop() {
		a := ph.New(ph.DefaultLimits())
		a.AddVM(1, ph.DefaultSettings())
		for i, tr := range data.Training {
			tr.Events(1, "adfa", 0, uint32(i), func(ev *bpf.Event) bool {
				a.Call(ev)
				n++
				return true
			})
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(n), "ns/call")
}

// SPDX-License-Identifier: Apache-2.0

package sequence

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"frail/bpf"
	"frail/bpf/bpftest"
	"frail/tracer/ph"
)

// pair is the reference and the BPF program, on the same calls.
type pair struct {
	tb     testing.TB
	ref    *ph.Analyzer
	bpf    *Analyzer
	events *bpftest.Events
	namer  ph.Namer
	calls  int
	want   []bpf.PhRecord // what the reference told and the other is still to tell
	told   int
	seen   [8]int // verdicts with each flag
	missed int    // anomalous calls
}

func newPair(tb testing.TB, limits ph.Limits) *pair {
	tb.Helper()
	p := &pair{tb: tb, ref: ph.New(limits), bpf: newAnalyzer(tb, Options{Limits: limits}), events: bpftest.New(tb, 5)}
	p.ref.Tell = func(r *bpf.PhRecord) { p.want = append(p.want, *r) }
	return p
}

func newAnalyzer(tb testing.TB, opts Options) *Analyzer {
	tb.Helper()
	a, err := New(opts)
	must(tb, err)
	tb.Cleanup(func() { must(tb, a.Close()) })
	return a
}

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

func (p *pair) addVM(vm uint32, s ph.Settings) {
	p.ref.AddVM(vm, s)
	must(p.tb, p.bpf.AddVM(vm, s))
}

func (p *pair) call(ev *bpf.Event) {
	*p.events.At(0) = *ev
	got := p.events.Fire(p.tb, p.bpf.objs.Enter, 0)
	v := p.ref.Call(ev)
	if want := v.Pack(); got != want {
		p.tb.Fatalf("call %d, %s of %d by %q: verdict %#x, the reference has %#x (%+v)",
			p.calls, ph.NumberOf(ev.Table(), ev.Nr), ev.Pid, ev.CommBytes(), got, want, v)
	}
	p.compareTold()
	p.calls++
	for bit := range p.seen {
		if v.Flags>>bit&1 != 0 {
			p.seen[bit]++
		}
	}
	if v.Miss != 0 {
		p.missed++
	}
}

// named is a call of a thread that runs the program of its name.
func (p *pair) named(ev *bpf.Event) {
	if d := p.namer.Describe(ev); d != nil {
		p.process(d)
	}
	p.call(ev)
}

func (p *pair) process(d *bpf.Process) {
	got := p.events.FireProcess(p.tb, p.bpf.objs.Process, 0, d)
	if want := p.ref.Process(d); got != uint32(want) {
		p.tb.Fatalf("call %d, description of %d, %q: %#x, the reference has %#x", p.calls, d.Head.Pid, d.ExeBytes(), got, want)
	}
	p.compareTold()
}

// compareTold compares what both told.
func (p *pair) compareTold() {
	for _, want := range p.want {
		rec, err := p.bpf.read()
		must(p.tb, err)
		if *rec != want {
			p.tb.Fatalf("call %d: told\n%+v, the reference\n%+v", p.calls, *rec, want)
		}
		p.told++
	}
	p.want = p.want[:0]
	if n := p.bpf.reader.AvailableBytes(); n != 0 {
		p.tb.Fatalf("call %d: told %d bytes more than the reference", p.calls, n)
	}
}

func (p *pair) control(exe ph.Executable, c ph.Control) {
	if p.ref.Control(exe, c) {
		must(p.tb, p.bpf.Control(exe, c))
	}
}

// compare compares all that both know.
func (p *pair) compare() {
	p.tb.Helper()
	c, err := p.bpf.Counters()
	must(p.tb, err)
	if c.Counters != p.ref.Counters() {
		p.tb.Errorf("counters %+v, the reference has %+v", c.Counters, p.ref.Counters())
	}
	threads, err := p.bpf.Threads()
	must(p.tb, err)
	if len(threads) != p.ref.Threads() {
		p.tb.Errorf("%d threads, the reference has %d", len(threads), p.ref.Threads())
	}
	infos, err := p.bpf.List()
	must(p.tb, err)
	exes := p.ref.Executables()
	if len(infos) != len(exes) {
		p.tb.Fatalf("%d profiles, the reference has %d", len(infos), len(exes))
	}
	for i, exe := range exes {
		if infos[i].Executable != exe {
			p.tb.Fatalf("profile %d is of %+v, the reference has %+v", i, infos[i].Executable, exe)
		}
		got, err := p.bpf.Profile(exe)
		must(p.tb, err)
		if want := p.ref.Profile(exe); !reflect.DeepEqual(got, want) {
			p.tb.Errorf("profile of %q:\n%+v\nthe reference has\n%+v", exe.Name(), got, want)
		}
	}
}

// world makes calls of guests that fork, run programs, handle signals and die, from random
// numbers.
type world struct {
	*rand.Rand
	threads []*thread
	pid     int32
	mm      uint64
	who     uint64
	time    uint64
	names   []string
}

// thread is one of a world, as its last call.
type thread struct {
	bpf.Event
	bpf.Process
	told bool // of the description
}

func (w *world) newThread(from *thread, ownSpace bool) {
	w.pid++
	t := &thread{Event: bpf.Event{
		Vm: 1 + uint32(w.IntN(2)), Kind: bpf.EventEnter, Flags: bpf.EventIdentity | bpf.EventNr,
		Insn: bpf.InsnSyscall64, Tgid: w.pid, Cr3: w.space(),
	}}
	w.program(t)
	if from != nil {
		*t = *from
		if ownSpace {
			t.Cr3, t.Event.Tgid = w.space(), w.pid
		}
	}
	// Process ids are used again, once who had it was killed.
	t.Event.Pid = w.pid%40 + 1
	w.threads = slices.DeleteFunc(w.threads, func(old *thread) bool {
		return old.Event.Vm == t.Event.Vm && old.Event.Pid == t.Event.Pid
	})
	t.Event.Task = 0xffff888000000000 + uint64(w.pid)*0x2000
	t.Event.Sp = 0x7ffd00000000
	w.describe(t)
	w.threads = append(w.threads, t)
}

func (w *world) space() uint64 { w.mm += 0x2000; return w.mm | uint64(w.IntN(4096)) }

// program makes a thread run another one.
func (w *world) program(t *thread) {
	name := w.names[w.IntN(len(w.names))]
	t.Process = bpf.Process{Known: bpf.ProcessExe | uint32(w.IntN(2))*bpf.ProcessExeDeleted}
	copy(t.Exe[:], name)
	switch w.IntN(8) {
	case 0:
		t.Known |= bpf.ProcessExeCut
		copy(t.Exe[:], strings.Repeat("x", len(t.Exe)-len(name)))
		copy(t.Exe[len(t.Exe)-len(name):], name)
	case 1:
		t.Known = 0
		t.Exe = [bpf.PathLen]uint8{}
	}
	copy(t.Event.Comm[:], name[1:]+"\x00")
}

// describe makes a thread be described before its next call.
func (w *world) describe(t *thread) {
	w.who++
	t.Event.Who, t.told = w.who, false
}

// next returns a call, and what is to be known of its thread before, or nil.
func (w *world) next() (*bpf.Process, *bpf.Event) {
	if len(w.threads) == 0 || w.IntN(300) == 0 && len(w.threads) < 60 {
		w.newThread(nil, true)
	}
	t := w.threads[w.IntN(len(w.threads))]
	end := func() { w.threads = slices.DeleteFunc(w.threads, func(x *thread) bool { return x == t }) }
	ev := &t.Event
	w.time += uint64(w.IntN(1000))
	ev.Time = w.time
	ev.Flags = bpf.EventIdentity | bpf.EventNr
	ev.Kind = bpf.EventEnter
	ev.Insn = bpf.InsnSyscall64
	ev.Sp += uint64(w.IntN(4096)) - 2048
	// Programs repeat themselves, or nothing would ever be frozen.
	ev.Nr = int64([]int{0, 1, 3, 257, 9, 10}[int(ev.Args[0])%6])
	ev.Args[0]++
	switch w.IntN(400) {
	case 0:
		ev.Nr = int64(w.IntN(470))
	case 1:
		ev.Nr = int64(w.IntN(2000)) - 500
	case 2:
		ev.Insn, ev.Nr = []uint16{
			bpf.InsnSyscall32, bpf.InsnSysenter, bpf.InsnInt80In32, bpf.InsnInt80In64,
		}[w.IntN(4)], int64(w.IntN(450))
	case 3:
		ev.Nr = bpf.X32Bit | int64(w.IntN(1200))
	case 4, 5:
		ev.Nr = []int64{56, 57, 58, 435}[w.IntN(4)]
		if w.IntN(8) != 0 && len(w.threads) < 60 {
			w.newThread(t, w.IntN(2) == 0)
		}
	case 6:
		ev.Cr3 = w.space() // execve
		w.program(t)
		w.describe(t)
	case 7:
		copy(ev.Comm[:], "renamed\x00")
	case 8, 9:
		ev.Nr = 15
	case 10, 15, 16, 17, 18, 19, 20, 21:
		ev.Flags |= bpf.EventSignal
	case 11:
		ev.Nr = []int64{60, 231}[w.IntN(2)]
		end()
	case 12:
		end() // killed
	case 13:
		ev.Flags &^= bpf.EventIdentity
	case 14:
		ev.Kind = []uint16{bpf.EventExit, bpf.EventCoverage}[w.IntN(2)]
		ev.Flags |= bpf.EventDeferred
	case 22:
		w.describe(t) // its credentials changed
	case 23:
		w.describe(t)
		t.told = w.IntN(4) == 0 // or the description was lost
	case 24:
		ev.Cr3 = w.space() // execve of the same program
		w.describe(t)
	}
	out := *ev
	if t.told {
		return nil, &out
	}
	t.told = true
	d := t.Process
	d.Head = *ev
	d.Head.Kind, d.Head.Flags = bpf.EventProcess, bpf.EventIdentity
	return &d, &out
}

// describeAll makes every thread be described anew, as the module does on demand.
func (w *world) describeAll() {
	for _, t := range w.threads {
		w.describe(t)
	}
}

// step makes a call of a world.
func (p *pair) step(w *world) {
	d, ev := w.next()
	if d != nil {
		p.process(d)
	}
	p.call(ev)
}

// Every verdict and all that is known at the end are equal, whatever guests do.
func TestParityProperty(t *testing.T) {
	var seen [8]int
	var missed int
	var limits ph.Counters
	for _, tc := range []struct {
		name   string
		limits ph.Limits
		change func(*ph.Settings)
	}{
		{"defaults, soon normal", ph.DefaultLimits(), func(s *ph.Settings) { s.NormalWait = 50 * time.Microsecond }},
		{"normal at once", ph.DefaultLimits(), func(s *ph.Settings) { s.NormalWait = 0 }},
		{"low limits of anomalies", ph.DefaultLimits(), func(s *ph.Settings) {
			s.NormalWait, s.AnomalyLimit, s.TolerizeLimit, s.ProcessLimit = 0, 5, 2, 3
		}},
		{"high limit of anomalies", ph.DefaultLimits(), func(s *ph.Settings) {
			s.NormalWait, s.AnomalyLimit, s.TolerizeLimit, s.ProcessLimit = 0, 1000, 4, 0
		}},
		{"no room", ph.Limits{Profiles: 3, Rows: 20, Threads: 10}, func(s *ph.Settings) { s.NormalWait = 0 }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for seed := range uint64(4) {
				p := newPair(t, tc.limits)
				s := ph.DefaultSettings()
				tc.change(&s)
				p.addVM(1, s)
				w := &world{Rand: rand.New(rand.NewPCG(seed, 1)), mm: 1 << 20, names: []string{"/bin/sh", "/bin/cat", "/nginx", "/a-name-of-15-by", "/sixteen-letters!"}}
				for i := range 30000 {
					p.step(w)
					switch {
					case i%5000 == 4999:
						p.compare()
					case i%1777 == 0:
						p.control(ph.NewExecutable(1, w.names[w.IntN(3)]), ph.Control(1+w.IntN(3)))
					case i == 22000:
						s.Learn = false
						p.addVM(1, s)
					case i == 25000:
						s.Learn = true
						p.addVM(1, s)
					}
				}
				p.compare()
				for bit, n := range p.seen {
					seen[bit] += n
				}
				missed += p.missed
				c := p.ref.Counters()
				limits.Profiles += c.Profiles
				limits.Rows += c.Rows
				limits.Threads += c.Threads
				limits.Symbols += c.Symbols
				limits.NoIdentity += c.NoIdentity
				limits.NoProgram += c.NoProgram
				limits.SignalDepth += c.SignalDepth
				limits.SignalLost += c.SignalLost
				if t.Failed() {
					t.Fatalf("seed %d", seed)
				}
			}
		})
	}
	// Equal verdicts say something only of what came to pass.
	t.Logf("flags %v, %d anomalous calls, limits %+v", seen, missed, limits)
	for bit, n := range seen {
		if n == 0 {
			t.Errorf("no verdict has flag %#x", 1<<bit)
		}
	}
	for i := range reflect.TypeFor[ph.Counters]().NumField() {
		if v := reflect.ValueOf(limits).Field(i); v.Uint() == 0 {
			t.Errorf("counter %s was never reached", reflect.TypeFor[ph.Counters]().Field(i).Name)
		}
	}
	if missed == 0 {
		t.Error("no call is anomalous")
	}
}

func dataDir(tb testing.TB) string {
	tb.Helper()
	for _, dir := range []string{os.Getenv("FRAIL_DATA"), "../../../shared/data"} {
		if st, err := os.Stat(filepath.Join(dir, "unm")); dir != "" && err == nil && st.IsDir() {
			return dir
		}
	}
	tb.Skip("the data sets are not here: set FRAIL_DATA to the directory that holds unm and adfa-ld")
	return ""
}

// The same on recorded programs: trained, told to judge, and attacked.
func TestParityUNM(t *testing.T) {
	dir := dataDir(t)
	for _, program := range []string{"sendmail", "lpr", "login", "ps"} {
		t.Run(program, func(t *testing.T) {
			p := newPair(t, ph.DefaultLimits())
			p.addVM(1, ph.DefaultSettings())
			run := uint32(0)
			for _, kind := range []string{"normal", "intrusion"} {
				ts, err := ph.ReadUNMDir(filepath.Join(dir, "unm", program, kind))
				must(t, err)
				for _, tr := range ts {
					run++
					tr.Events(1, program, ph.ForeignBase, run, func(ev *bpf.Event) bool {
						p.named(ev)
						return true
					})
				}
				p.compare()
				p.control(ph.NewExecutable(1, program), ph.Normalize)
			}
			t.Logf("%d calls, %d told of", p.calls, p.told)
		})
	}
}

func TestParityADFA(t *testing.T) {
	if testing.Short() {
		t.Skip("2.7 million calls")
	}
	a, err := ph.ReadADFA(filepath.Join(dataDir(t), "adfa-ld"))
	must(t, err)
	if got := fmt.Sprint(len(a.Training), len(a.Validation), len(a.Attack)); got != "833 4372 746" {
		t.Errorf("traces %s, want 833 4372 746", got)
	}
	p := newPair(t, ph.DefaultLimits())
	p.addVM(1, ph.DefaultSettings())
	run := uint32(0)
	for _, ts := range [][]*ph.Trace{a.Training, a.Validation, a.Attack} {
		for _, tr := range ts {
			run++
			tr.Events(1, "adfa", 0, run, func(ev *bpf.Event) bool {
				p.named(ev)
				return true
			})
		}
		p.control(ph.NewExecutable(1, "adfa"), ph.Normalize)
	}
	p.compare()
	t.Logf("%d calls, %d told of", p.calls, p.told)
}

// A profile that is loaded is the one that was read, in both.
func TestParityLoad(t *testing.T) {
	p := newPair(t, ph.DefaultLimits())
	s := ph.DefaultSettings()
	s.NormalWait = 0
	p.addVM(1, s)
	w := &world{Rand: rand.New(rand.NewPCG(9, 9)), mm: 1 << 20, names: []string{"/bin/sh", "/bin/cat"}}
	for range 5000 {
		p.step(w)
	}
	sh, cp := ph.NewExecutable(1, "/bin/sh"), ph.NewExecutable(1, "/bin/cat")
	prof, err := p.bpf.Profile(sh)
	must(t, err)
	for _, exe := range []ph.Executable{sh, cp} {
		must(t, p.bpf.Load(exe, prof))
		if !p.ref.Load(exe, prof) {
			t.Fatal("the reference did not load the profile")
		}
		got, err := p.bpf.Profile(exe)
		must(t, err)
		prof.Name = exe.Name()
		if !reflect.DeepEqual(got, prof) {
			t.Errorf("loaded %+v\nread %+v", prof, got)
		}
	}
	w.describeAll()
	for range 5000 {
		p.step(w)
	}
	p.compare()
}

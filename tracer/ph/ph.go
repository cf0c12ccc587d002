// SPDX-License-Identifier: Apache-2.0

package ph

import (
	"time"

	"frail/bpf"
)

const (
	// Window is how many calls a pair can span: the current one and Pairs before it.
	Window = Pairs + 1
	// Pairs is how many earlier calls each call is paired with.
	Pairs = 8
	// Frame is how many calls of a thread its locality frame count looks back on.
	Frame = 128

	// A profile is frozen when all its training is more than freezeRatio times what it
	// was at the last new pair: over three quarters came after it.
	freezeRatio = 4

	// maxSignals is how many signal handlers may be nested in one thread.
	maxSignals = 4
	// history is how many calls a thread's stack pointers are kept for.
	history = 16
	// MaxProcessLimit bounds Settings.ProcessLimit, which is below it.
	MaxProcessLimit = 64
)

// emptyWindow holds no call. The last call is in the lowest byte.
const emptyWindow = ^uint64(0)

// Settings are the limits of one VM's analysis. The zero value judges everything an
// attack; start with [DefaultSettings].
type Settings struct {
	// Learn lets profiles grow. Without it they are judged by as they are.
	Learn bool
	// NormalWait is how long a frozen profile waits before it judges.
	NormalWait time.Duration
	// AnomalyLimit is how many anomalous calls a profile may count before it is held to
	// describe a program that changed: a drift alert, and it judges no more.
	AnomalyLimit uint32
	// TolerizeLimit is how many of a thread's last [Frame] calls may be anomalous
	// before that is an attack: an alert, and what was learnt is forgotten.
	TolerizeLimit uint32
	// ProcessLimit is how many anomalous threads an executable may have among 128 that
	// started before that is an attack too: those of short-lived processes never reach
	// TolerizeLimit. At most 63.
	ProcessLimit uint32
}

// DefaultSettings returns pH's.
func DefaultSettings() Settings {
	return Settings{
		Learn:         true,
		NormalWait:    7 * 24 * time.Hour,
		AnomalyLimit:  30,
		TolerizeLimit: 12,
		ProcessLimit:  12,
	}
}

// Limits bound what an analysis keeps. A call that would need more is not analysed, or its
// row not learnt; [Counters] says how often.
type Limits struct {
	Profiles, Rows, Threads int
}

// DefaultLimits returns what the BPF programs have unless told otherwise.
func DefaultLimits() Limits { return Limits{Profiles: 1024, Rows: 60000, Threads: 100000} }

// Counters are how often an analysis could not do its work.
type Counters struct {
	// Profiles, Rows and Threads count calls that needed more than the limit.
	Profiles, Rows, Threads uint64
	// Symbols counts calls taken together with others, because their program made too
	// many different ones.
	Symbols uint64
	// NoIdentity counts calls whose thread is not known.
	NoIdentity uint64
	// NoProgram counts calls of threads that were not described, or whose program found
	// no room: they are not analysed.
	NoProgram uint64
	// SignalDepth counts handlers nested too deeply to get a window of their own.
	SignalDepth uint64
	// SignalLost counts returns from handlers whose interrupted window was not found:
	// it starts empty again.
	SignalLost uint64
}

// Flags are the state a call left its profile in, and what it caused.
type Flags uint8

const (
	// Frozen: the profile learnt nothing new for most of its training.
	Frozen Flags = 1 << iota
	// Normal: the profile judges.
	Normal
	// NewThread: the first call of a thread.
	NewThread
	// NewProgram: the first call of a thread since it runs this executable.
	NewProgram
	// Drift: an alert: too many anomalous calls in the profile. It judges no more.
	Drift
	// Attack: an alert: too many anomalous calls in the thread's locality frame.
	Attack
	// ManyProcesses: an alert: too many anomalous threads of the executable.
	ManyProcesses
	// Forgot: what the profile had learnt since it judges was forgotten.
	Forgot
)

// Alerts are the flags that are alerts.
const Alerts = Drift | Attack | ManyProcesses

// Verdict is what came of one call. The zero value: it was not analysed, or there is
// nothing to say.
type Verdict struct {
	// New are the pairs that were learnt: bit i-1 is that with the call i before.
	New uint8
	// Miss are the pairs that a normal profile does not have, likewise.
	Miss uint8
	// LFC is how many of the thread's last [Frame] calls were anomalous.
	LFC uint8
	Flags
}

// Pack returns v as the BPF program returns it.
func (v Verdict) Pack() uint32 {
	return uint32(v.New) | uint32(v.Miss)<<8 | uint32(v.LFC)<<16 | uint32(v.Flags)<<24
}

// row holds the pairs of one current call: by the other call's symbol, a bit for each
// distance.
type row struct{ train, test [256]uint8 }

// profile is what is known of one executable.
type profile struct {
	exe     Executable
	symbols map[Number]Symbol
	numbers [256]Number
	rows    map[Symbol]*row

	train      uint64 // calls learnt from
	lastMod    uint64 // of those, since the last new pair
	sequences  uint64 // calls that brought a new pair
	frozen     bool
	normal     bool
	normalTime uint64 // when a frozen profile becomes normal
	anomalies  uint64

	forkWindow  uint64
	forkPending uint32
	threads     uint64 // started
	marks       [MaxProcessLimit]uint64
	marked      uint32
	alerted     bool // ManyProcesses, and there were not fewer since
}

// frame is a shift register of whether the last calls were anomalous.
type frame struct {
	hi, lo uint64
	lfc    uint8
}

func (f *frame) add(miss bool) {
	if f.hi>>63 != 0 {
		f.lfc--
	}
	f.hi = f.hi<<1 | f.lo>>63
	f.lo <<= 1
	if miss {
		f.lo |= 1
		f.lfc++
	}
}

type threadKey struct {
	vm  uint32
	pid int32
}

type moment struct{ sp, window uint64 }

// thread is what is kept of one guest thread.
type thread struct {
	who         uint64
	task, space uint64
	profile     *profile
	news        Flags // to be told with its next call
	window      uint64
	frame       frame
	alerted     bool // an attack, and not been normal for a whole frame since
	anomalous   bool // counted among the anomalous threads of its executable
	maxLFC      uint8
	signals     []uint64
	moments     []moment
}

type spaceKey struct {
	vm    uint32
	space uint64
}

type fork struct {
	profile *profile
	window  uint64
	pending uint32
}

// Analyzer judges calls. It is not safe for concurrent use.
type Analyzer struct {
	limits   Limits
	counters Counters
	vms      map[uint32]Settings
	profiles map[Executable]*profile
	rows     int
	threads  map[threadKey]*thread
	forks    map[spaceKey]*fork

	// Tell, if set, is told of each call that matters: a new process or pair, a
	// profile's new state, an anomaly, an alert, a limit. The record is valid until it
	// returns.
	Tell func(*bpf.PhRecord)
}

// New returns an analyser that follows no VM.
func New(limits Limits) *Analyzer {
	return &Analyzer{
		limits:   limits,
		vms:      make(map[uint32]Settings),
		profiles: make(map[Executable]*profile),
		threads:  make(map[threadKey]*thread),
		forks:    make(map[spaceKey]*fork),
	}
}

// AddVM makes the analyser follow a VM, or changes its settings.
func (a *Analyzer) AddVM(vm uint32, s Settings) { a.vms[vm] = s }

// Counters returns how often a limit was reached.
func (a *Analyzer) Counters() Counters { return a.counters }

// Threads returns how many threads are known.
func (a *Analyzer) Threads() int { return len(a.threads) }

// space returns what identifies an address space: CR3 without its PCID. At a SYSCALL it is
// always the user's, so PTI's bit is the same in all.
func space(cr3 uint64) uint64 { return cr3 & 0x000ffffffffff000 }

// Call analyses one system call. Events that are none give the zero verdict. ev.Time is
// the time of the call.
func (a *Analyzer) Call(ev *bpf.Event) Verdict {
	var v Verdict
	set, ok := a.vms[ev.Vm]
	if !ok || ev.Kind != bpf.EventEnter {
		return v
	}
	if !ev.Identified() {
		a.count(ev, &a.counters.NoIdentity, bpf.PhNoIdentity)
		return v
	}
	t := a.threads[threadKey{ev.Vm, ev.Pid}]
	if t == nil || t.who != ev.Who {
		a.count(ev, &a.counters.NoProgram, bpf.PhNoProgram)
		return v
	}
	v.Flags, t.news = t.news, 0
	p := t.profile
	was := p.state()
	if ev.Flags&bpf.EventSignal != 0 {
		if len(t.signals) < maxSignals {
			t.signals = append(t.signals, t.window)
			t.window = emptyWindow
		} else {
			a.count(ev, &a.counters.SignalDepth, bpf.PhSignalDepth)
		}
	}

	n := NumberOf(ev.Table(), ev.Nr)
	sym := a.symbol(ev, p, n)
	r := p.rows[sym]
	if r == nil && set.Learn {
		if a.rows < a.limits.Rows {
			r = new(row)
			p.rows[sym] = r
			a.rows++
		} else {
			a.count(ev, &a.counters.Rows, bpf.PhFullRows)
		}
	}
	if set.Learn {
		v.New = p.learn(r, t.window, ev.Time, set)
		if p.frozen && p.train%bpf.PhClock == 0 && ev.Time >= p.normalTime {
			p.startNormal()
		}
	}
	if p.normal {
		v.Miss = mismatches(r, t.window)
		if v.Miss != 0 {
			p.anomalies++
			if p.anomalies > uint64(set.AnomalyLimit) {
				p.normal = false
				v.Flags |= Drift
			}
		}
	}
	t.frame.add(v.Miss != 0)
	v.LFC = t.frame.lfc
	t.maxLFC = max(t.maxLFC, v.LFC)
	if v.LFC == 0 {
		t.alerted = false
	}
	if v.Miss != 0 && !t.anomalous {
		t.anomalous = true
		v.Flags |= p.mark(set.ProcessLimit)
	}
	if uint32(v.LFC) > set.TolerizeLimit {
		v.Flags |= Forgot
		if !t.alerted {
			t.alerted = true
			v.Flags |= Attack
		}
	}
	if v.Flags&Forgot != 0 {
		p.forget()
	}
	state := p.state()
	v.Flags |= state
	news := Alerts | NewProgram
	if ev.Pid == ev.Tgid {
		news |= NewThread
	}
	if a.Tell != nil && (v.New|v.Miss != 0 || state != was || v.Flags&news != 0) {
		a.tell(ev, t, n, v, was)
	}

	t.window = t.window<<8 | uint64(sym)
	if len(t.moments) == history {
		copy(t.moments, t.moments[1:])
		t.moments = t.moments[:history-1]
	}
	t.moments = append(t.moments, moment{ev.Sp, t.window})
	switch actionOf(n) {
	case actFork:
		a.forked(ev, t)
	case actSigreturn:
		a.sigreturn(ev, t)
	case actExit:
		delete(a.threads, threadKey{ev.Vm, ev.Pid})
	}
	return v
}

// Process takes the description of a thread, which comes before the events whose Who is its
// Head.Who. It returns whether the thread, or its program, is new.
func (a *Analyzer) Process(d *bpf.Process) Flags {
	ev := &d.Head
	if _, ok := a.vms[ev.Vm]; !ok {
		return 0
	}
	key, exe, as := threadKey{ev.Vm, ev.Pid}, ExecutableOf(d), space(ev.Cr3)
	t := a.threads[key]
	known := t != nil && t.task == ev.Task
	if t == nil && len(a.threads) >= a.limits.Threads {
		a.count(ev, &a.counters.Threads, bpf.PhFullThreads)
		return 0
	}
	p := a.profiles[exe]
	if p == nil {
		if len(a.profiles) >= a.limits.Profiles {
			delete(a.threads, key)
			a.count(ev, &a.counters.Profiles, bpf.PhFullProfiles)
			return 0
		}
		p = newProfile(exe)
		a.profiles[exe] = p
	}
	if known && t.space == as && t.profile == p {
		t.who = ev.Who
		return 0
	}
	news, window := NewThread, emptyWindow
	if known {
		news = t.news | NewProgram
	} else {
		window = a.inherit(ev.Vm, as, p)
	}
	a.threads[key] = &thread{who: ev.Who, task: ev.Task, space: as, profile: p, window: window, news: news}
	p.threads++
	return news
}

func newProfile(exe Executable) *profile {
	p := &profile{exe: exe, symbols: make(map[Number]Symbol), rows: make(map[Symbol]*row)}
	for i := range p.numbers {
		p.numbers[i] = NoNumber
	}
	p.numbers[other] = OtherNumber
	return p
}

// forked remembers the window a child of the thread begins with.
func (a *Analyzer) forked(ev *bpf.Event, t *thread) {
	p := t.profile
	p.forkWindow = t.window
	p.forkPending++
	key := spaceKey{ev.Vm, t.space}
	f := a.forks[key]
	if f == nil || f.profile != p {
		f = &fork{profile: p}
		a.forks[key] = f
	}
	f.window = t.window
	f.pending++
}

// inherit returns the window of a new thread: that of its parent, if a call that makes
// threads was seen in the same address space (a thread, or a vfork's child) or, failing
// that, by the same program (a fork's child).
func (a *Analyzer) inherit(vm uint32, as uint64, p *profile) uint64 {
	if f := a.forks[spaceKey{vm, as}]; f != nil && f.profile == p && f.pending > 0 {
		f.pending--
		if p.forkPending > 0 {
			p.forkPending--
		}
		return f.window
	}
	if p.forkPending > 0 {
		p.forkPending--
		return p.forkWindow
	}
	return emptyWindow
}

// sigreturn gives the thread back the window that its signal handler interrupted. When
// the handler's start was not seen, that is the window of the last call made from above
// the frame that the handler returns through.
func (a *Analyzer) sigreturn(ev *bpf.Event, t *thread) {
	if n := len(t.signals); n > 0 {
		t.window = t.signals[n-1]
		t.signals = t.signals[:n-1]
		return
	}
	for i := len(t.moments) - 2; i >= 0; i-- {
		if t.moments[i].sp >= ev.Sp {
			t.window = t.moments[i].window
			t.moments = t.moments[:i+1]
			return
		}
	}
	a.count(ev, &a.counters.SignalLost, bpf.PhSignalLost)
	t.window = emptyWindow
	t.moments = t.moments[:0]
}

// symbol returns the profile's symbol of a call.
func (a *Analyzer) symbol(ev *bpf.Event, p *profile, n Number) Symbol {
	if n == OtherNumber {
		a.count(ev, &a.counters.Symbols, bpf.PhFullSymbols)
		return other
	}
	if s, ok := p.symbols[n]; ok {
		return s
	}
	if len(p.symbols) >= int(maxSymbol) {
		a.count(ev, &a.counters.Symbols, bpf.PhFullSymbols)
		return other
	}
	s := Symbol(len(p.symbols) + 1)
	p.symbols[n] = s
	p.numbers[s] = n
	return s
}

// learn adds the pairs of a call after window to r and returns those that are new. A nil
// row learns nothing.
func (p *profile) learn(r *row, window, now uint64, set Settings) uint8 {
	var fresh uint8
	if r != nil {
		for i := range Pairs {
			prev, bit := uint8(window>>(8*i)), uint8(1)<<i
			if r.train[prev]&bit == 0 {
				r.train[prev] |= bit
				fresh |= bit
			}
		}
	}
	p.train++
	if fresh != 0 {
		p.frozen = false
		p.sequences++
		p.lastMod = 0
		return fresh
	}
	p.lastMod++
	if normal := p.train - p.lastMod; !p.frozen && normal > 0 && p.train > normal*freezeRatio {
		p.frozen = true
		p.normalTime = now + uint64(set.NormalWait)
	}
	return 0
}

// mismatches returns the pairs of a call after window that r was not tested with.
func mismatches(r *row, window uint64) uint8 {
	if r == nil {
		return 0xff
	}
	var miss uint8
	for i := range Pairs {
		miss |= ^r.test[uint8(window>>(8*i))] & (1 << i)
	}
	return miss
}

// startNormal makes the profile judge by what it learnt.
func (p *profile) startNormal() {
	for _, r := range p.rows {
		r.test = r.train
	}
	p.normal, p.frozen = true, false
	p.marked, p.alerted = 0, false
	p.anomalies, p.train, p.lastMod = 0, 0, 0
}

// forget drops what the profile learnt, not what it judges by.
func (p *profile) forget() {
	for _, r := range p.rows {
		r.train = [256]uint8{}
	}
	p.anomalies, p.train, p.lastMod, p.sequences = 0, 0, 0, 0
	p.frozen = false
}

// mark counts an anomalous thread. It returns the flags of more than limit among the last
// Frame that started: told once, until there are fewer again, and never learnt.
func (p *profile) mark(limit uint32) Flags {
	n := p.marked
	p.marked++
	p.marks[n%MaxProcessLimit] = p.threads
	if n < limit || p.threads-p.marks[(n-limit)%MaxProcessLimit] >= Frame {
		p.alerted = false
		return 0
	}
	if p.alerted {
		return Forgot
	}
	p.alerted = true
	return ManyProcesses | Forgot
}

// Control changes the state of a profile by an operator's decision.
type Control uint32

const (
	// Normalize makes the profile judge by all it has learnt, now.
	Normalize Control = 1 + iota
	// Tolerize makes the profile stop to judge: what its program does is learnt.
	Tolerize
	// Sensitize forgets what was learnt and is not judged by.
	Sensitize
)

// Control applies c to the profile of exe and reports whether there is one.
func (a *Analyzer) Control(exe Executable, c Control) bool {
	p := a.profiles[exe]
	if p == nil {
		return false
	}
	switch c {
	case Normalize:
		p.startNormal()
	case Tolerize:
		p.normal, p.anomalies = false, 0
	case Sensitize:
		p.forget()
	}
	return true
}

// Pairs returns how many pairs of calls the profile of exe has learnt, at whatever distance,
// and over how many calls. "No call yet" makes no pair.
func (a *Analyzer) Pairs(exe Executable) (pairs, calls int) {
	p := a.profiles[exe]
	if p == nil {
		return 0, 0
	}
	for _, r := range p.rows {
		for prev, b := range r.train {
			if Symbol(prev) != none && b != 0 {
				pairs++
			}
		}
	}
	return pairs, len(p.rows)
}

// state returns the flags that last.
func (p *profile) state() Flags {
	var f Flags
	if p.frozen {
		f |= Frozen
	}
	if p.normal {
		f |= Normal
	}
	return f
}

// count counts a limit that was reached and tells of it, when it happens first and then
// ever more seldom.
func (a *Analyzer) count(ev *bpf.Event, n *uint64, counter int) {
	*n++
	if a.Tell == nil || *n&(*n-1) != 0 {
		return
	}
	a.Tell(&bpf.PhRecord{
		Time: ev.Time, Exe: bpf.PhExecutable{Vm: ev.Vm}, Pid: ev.Pid, Tgid: ev.Tgid, Counter: uint16(counter) + 1, Train: *n,
		Comm: ev.Comm,
	})
}

func (a *Analyzer) tell(ev *bpf.Event, t *thread, n Number, v Verdict, was Flags) {
	p := t.profile
	rec := bpf.PhRecord{
		Time: ev.Time, Task: ev.Task, Frame: [2]uint64{t.frame.lo, t.frame.hi}, Anomalies: p.anomalies, Train: p.train,
		Exe: p.exe.BPF(), Pid: ev.Pid, Tgid: ev.Tgid, Verdict: v.Pack(), Was: uint8(was), MaxLfc: t.maxLFC,
		Comm: ev.Comm,
	}
	rec.Calls[0] = uint16(n)
	for i := range Pairs {
		rec.Calls[i+1] = uint16(p.numbers[uint8(t.window>>(8*i))])
	}
	a.Tell(&rec)
}

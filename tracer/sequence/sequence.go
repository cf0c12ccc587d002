// SPDX-License-Identifier: Apache-2.0

package sequence

import (
	"errors"
	"fmt"
	"math"
	"os"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/ringbuf"
	"golang.org/x/sys/unix"

	"frail/bpf"
	"frail/tracer"
	"frail/tracer/ph"
)

const (
	// DefaultRingBytes holds some 5,000 records.
	DefaultRingBytes = 2 << 20
	// MaxProfiles bounds Options.Limits.Profiles: a row's key has 24 bits for it.
	MaxProfiles = 1 << 20
)

// Options are what an Analyzer is made with. The zero value has the defaults.
type Options struct {
	// Limits bound kernel memory. Profiles take 6 KiB and rows 0.5 KiB each at once,
	// threads 0.5 KiB each when they are needed. Zero: [ph.DefaultLimits].
	Limits ph.Limits
	// RingBytes is the size of the ring buffer, a power of two of pages. Zero:
	// [DefaultRingBytes].
	RingBytes int
}

type objects struct {
	Enter       *ebpf.Program  `ebpf:"guest_sys_enter"`
	Process     *ebpf.Program  `ebpf:"guest_process"`
	Control     *ebpf.Program  `ebpf:"control"`
	Nothing     *ebpf.Program  `ebpf:"nothing"`
	VMs         *ebpf.Map      `ebpf:"vms"`
	Executables *ebpf.Map      `ebpf:"executables"`
	Profiles    *ebpf.Map      `ebpf:"profiles"`
	Free        *ebpf.Map      `ebpf:"free_profiles"`
	Rows        *ebpf.Map      `ebpf:"rows"`
	FreeRows    *ebpf.Map      `ebpf:"free_rows"`
	Threads     *ebpf.Map      `ebpf:"threads"`
	Forks       *ebpf.Map      `ebpf:"forks"`
	Records     *ebpf.Map      `ebpf:"records"`
	Counters    *ebpf.Variable `ebpf:"counters"`
	Age         *ebpf.Variable `ebpf:"age"`
}

func (o *objects) close() error {
	return errors.Join(o.Enter.Close(), o.Process.Close(), o.Control.Close(), o.Nothing.Close(), o.VMs.Close(),
		o.Executables.Close(), o.Profiles.Close(), o.Free.Close(), o.Rows.Close(), o.FreeRows.Close(), o.Threads.Close(),
		o.Forks.Close(), o.Records.Close())
}

// Analyzer analyses the calls of VMs. All methods are safe for concurrent use.
type Analyzer struct {
	reader *ringbuf.Reader

	mu     sync.Mutex
	objs   objects
	links  []link.Link
	age    uint32
	serial uint32 // of the last profile that was loaded; they count down
	closed bool
}

// New loads the programs. It needs CAP_BPF and CAP_PERFMON, and Linux 6.1; it does not need
// frail.ko. The caller closes the analyser.
func New(opts Options) (*Analyzer, error) {
	if opts.Limits == (ph.Limits{}) {
		opts.Limits = ph.DefaultLimits()
	}
	if opts.RingBytes == 0 {
		opts.RingBytes = DefaultRingBytes
	}
	l := opts.Limits
	if l.Profiles < 1 || l.Profiles > MaxProfiles || l.Rows < 1 || l.Rows > math.MaxInt32 ||
		l.Threads < 1 || l.Threads > math.MaxInt32 {
		return nil, fmt.Errorf("limits of %d profiles, %d rows, %d threads: out of range", l.Profiles, l.Rows, l.Threads)
	}
	spec, err := bpf.LoadPh()
	if err != nil {
		return nil, err
	}
	spec.Maps["executables"].MaxEntries = uint32(l.Profiles)
	spec.Maps["profiles"].MaxEntries = uint32(l.Profiles)
	spec.Maps["free_profiles"].MaxEntries = uint32(l.Profiles)
	spec.Maps["rows"].MaxEntries = uint32(l.Rows)
	spec.Maps["free_rows"].MaxEntries = uint32(l.Rows)
	spec.Maps["threads"].MaxEntries = uint32(l.Threads)
	spec.Maps["records"].MaxEntries = uint32(opts.RingBytes)
	for name, limit := range map[string]int{"max_profiles": l.Profiles, "max_rows": l.Rows} {
		if err := spec.Variables[name].Set(uint32(limit)); err != nil {
			return nil, fmt.Errorf("set %s: %w", name, err)
		}
	}
	a := new(Analyzer)
	if err := spec.LoadAndAssign(&a.objs, nil); err != nil {
		if errors.Is(err, unix.EPERM) {
			return nil, fmt.Errorf("load sequence analysis: permission denied: CAP_BPF and CAP_PERFMON are needed: %w", err)
		}
		return nil, fmt.Errorf("load sequence analysis: %w", err)
	}
	if a.reader, err = ringbuf.NewReader(a.objs.Records); err != nil {
		_ = a.objs.close()
		return nil, fmt.Errorf("open ring buffer: %w", err)
	}
	return a, nil
}

// Attach makes the analysis see guest system calls from now on: those of threads that are
// described from now on. It returns an error wrapping [tracer.ErrNoTracepoint] when frail.ko
// is not loaded.
func (a *Analyzer) Attach() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case a.closed:
		return fmt.Errorf("attach: %w", os.ErrClosed)
	case a.links != nil:
		return errors.New("attach: attached already")
	}
	// In this order, so that each call that is seen is of a thread that was described.
	for _, p := range a.programs() {
		l, err := link.AttachRawTracepoint(link.RawTracepointOptions{Name: p.name, Program: p.Program})
		if err == nil {
			a.links = append(a.links, l)
			continue
		}
		switch {
		case errors.Is(err, os.ErrNotExist):
			err = fmt.Errorf("load frail.ko: tracepoint %s %w", p.name, tracer.ErrNoTracepoint)
		case errors.Is(err, unix.EINVAL):
			err = fmt.Errorf("attach to tracepoint %s: frail.ko is of another version than this program: %w", p.name, err)
		default:
			err = fmt.Errorf("attach to tracepoint %s: %w", p.name, err)
		}
		return errors.Join(err, a.detach())
	}
	return nil
}

// program is one that is attached, with its tracepoint's name.
type program struct {
	*ebpf.Program
	name string
}

func (a *Analyzer) programs() []program {
	return []program{{a.objs.Process, bpf.TracepointProcess}, {a.objs.Enter, bpf.TracepointEnter}}
}

// detach is called with mu held.
func (a *Analyzer) detach() error {
	var errs []error
	for _, l := range a.links {
		errs = append(errs, l.Close())
	}
	a.links = nil
	return errors.Join(errs...)
}

// AddVM makes the analyser follow a VM, or changes its settings. A thread is analysed once
// the module has described it: [frail/kmod/device.VM.Describe] makes it do so.
func (a *Analyzer) AddVM(vm uint32, s ph.Settings) error {
	if s.ProcessLimit >= ph.MaxProcessLimit {
		return fmt.Errorf("analyse VM %d: process limit %d is not below %d", vm, s.ProcessLimit, ph.MaxProcessLimit)
	}
	slot := vm % bpf.VMSlots
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return fmt.Errorf("analyse VM %d: %w", vm, os.ErrClosed)
	}
	var old bpf.PhVM
	if err := a.objs.VMs.Lookup(slot, &old); err != nil {
		return fmt.Errorf("analyse VM %d: %w", vm, err)
	}
	if old.Flags&bpf.PhVMUsed != 0 && old.Vm != vm {
		return fmt.Errorf("analyse VM %d: VM %d has its place: at most %d VMs with ids that near", vm, old.Vm, bpf.VMSlots)
	}
	v := bpf.PhVM{
		Vm:            vm,
		Flags:         bpf.PhVMUsed,
		AnomalyLimit:  s.AnomalyLimit,
		TolerizeLimit: s.TolerizeLimit,
		ProcessLimit:  s.ProcessLimit,
		NormalWait:    uint64(s.NormalWait),
	}
	if s.Learn {
		v.Flags |= bpf.PhVMLearn
	}
	if err := a.objs.VMs.Put(slot, &v); err != nil {
		return fmt.Errorf("analyse VM %d: %w", vm, err)
	}
	return nil
}

// RemoveVM makes the analyser leave a VM alone and frees its threads. Its profiles stay
// until they are deleted.
func (a *Analyzer) RemoveVM(vm uint32) error {
	slot := vm % bpf.VMSlots
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return fmt.Errorf("leave VM %d: %w", vm, os.ErrClosed)
	}
	var old bpf.PhVM
	if err := a.objs.VMs.Lookup(slot, &old); err != nil {
		return fmt.Errorf("leave VM %d: %w", vm, err)
	}
	if old.Flags&bpf.PhVMUsed == 0 || old.Vm != vm {
		return nil
	}
	if err := a.objs.VMs.Put(slot, &bpf.PhVM{}); err != nil {
		return fmt.Errorf("leave VM %d: %w", vm, err)
	}
	_, err := a.deleteThreads(func(k bpf.PhThreadKey, _ *bpf.PhThread) bool { return k.Vm == vm })
	return err
}

// FreeThreads frees the state of all threads of a VM: its guest was started anew.
func (a *Analyzer) FreeThreads(vm uint32) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	_, err := a.deleteThreads(func(k bpf.PhThreadKey, _ *bpf.PhThread) bool { return k.Vm == vm })
	return err
}

// Counters returns how often a limit was reached or a record lost.
func (a *Analyzer) Counters() (Counters, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	var raw [bpf.PhCounters]uint64
	if a.closed {
		return Counters{}, fmt.Errorf("read counters: %w", os.ErrClosed)
	}
	if err := a.objs.Counters.Get(&raw); err != nil {
		return Counters{}, fmt.Errorf("read counters: %w", err)
	}
	var recursion uint64
	for _, p := range a.programs() {
		st, err := p.Stats()
		if err != nil {
			return Counters{}, fmt.Errorf("read program statistics: %w", err)
		}
		recursion += st.RecursionMisses
	}
	return Counters{
		Counters: ph.Counters{
			Profiles:    raw[bpf.PhFullProfiles],
			Rows:        raw[bpf.PhFullRows],
			Threads:     raw[bpf.PhFullThreads],
			Symbols:     raw[bpf.PhFullSymbols],
			NoIdentity:  raw[bpf.PhNoIdentity],
			NoProgram:   raw[bpf.PhNoProgram],
			SignalDepth: raw[bpf.PhSignalDepth],
			SignalLost:  raw[bpf.PhSignalLost],
		},
		RingFull:  raw[bpf.PhRingFull],
		ReadFault: raw[bpf.PhReadFault],
		Recursion: recursion,
	}, nil
}

// Counters are how often the analysis in the kernel could not do its work.
type Counters struct {
	ph.Counters
	// RingFull counts records that were lost because the reader was too slow.
	RingFull uint64
	// ReadFault counts events that could not be read, Recursion those for which the
	// kernel did not run the program. These calls were not analysed.
	ReadFault, Recursion uint64
}

// Programs returns what the kernel measured of the programs.
func (a *Analyzer) Programs() ([]tracer.ProgramStats, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return nil, fmt.Errorf("read program statistics: %w", os.ErrClosed)
	}
	var all []tracer.ProgramStats
	for _, p := range a.programs() {
		st, err := p.Stats()
		if err != nil {
			return nil, fmt.Errorf("read program statistics: %w", err)
		}
		all = append(all, tracer.ProgramStats{Name: p.name, Runs: st.RunCount, RunTime: st.Runtime})
	}
	return all, nil
}

// Close detaches the analysis and frees everything. Closing twice is no error.
func (a *Analyzer) Close() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return nil
	}
	a.closed = true
	return errors.Join(a.detach(), a.reader.Close(), a.objs.close())
}

// Program returns the program that sees system calls, for its statistics and for tests that
// run it; it is the analyser's: the caller does not close it.
func (a *Analyzer) Program() *ebpf.Program { return a.objs.Enter }

// ProcessProgram returns the program that sees descriptions of threads, likewise.
func (a *Analyzer) ProcessProgram() *ebpf.Program { return a.objs.Process }

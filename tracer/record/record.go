// SPDX-License-Identifier: Apache-2.0

package record

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"frail/bpf"
	"frail/tracer"
)

const (
	slotSize = int(unsafe.Sizeof(bpf.RecordSlot{}))
	// MinBytes and MaxBytes bound Options.Bytes.
	MinBytes = 64 << 10
	MaxBytes = 4 << 30
	// ThreadsBytes is what a VM's descriptions of threads take, besides Options.Bytes.
	ThreadsBytes = bpf.RecordThreads * (int(unsafe.Sizeof(bpf.Process{})) + 64)
)

// Options are what a Recorder is made with.
type Options struct {
	// Bytes is the memory that each VM's record takes, from [MinBytes] to [MaxBytes], all of
	// it at once. An event takes 160.
	Bytes int
}

type objects struct {
	Enter    *ebpf.Program `ebpf:"guest_sys_enter"`
	Exit     *ebpf.Program `ebpf:"guest_sys_exit"`
	Coverage *ebpf.Program `ebpf:"guest_coverage"`
	Process  *ebpf.Program `ebpf:"guest_process"`
	Records  *ebpf.Map     `ebpf:"records"`
	Threads  *ebpf.Map     `ebpf:"threads"`
}

// program is one of objects, with its tracepoint's name.
type program struct {
	*ebpf.Program
	name string
}

// programs lists them in the order in which they are attached: who a thread is before its
// events, and returns before calls, so that no call looks as if it never came back.
func (o *objects) programs() []program {
	return []program{
		{o.Process, bpf.TracepointProcess}, {o.Exit, bpf.TracepointExit},
		{o.Enter, bpf.TracepointEnter}, {o.Coverage, bpf.TracepointCoverage},
	}
}

// misses returns how often the kernel did not run a program because it was running.
func (o *objects) misses() (uint64, error) {
	var n uint64
	for _, p := range o.programs() {
		stats, err := p.Stats()
		if err != nil {
			return 0, fmt.Errorf("read program statistics: %w", err)
		}
		n += stats.RecursionMisses
	}
	return n, nil
}

// Recorder records VMs. All methods are safe for concurrent use.
type Recorder struct {
	slots   int
	record  *ebpf.MapSpec
	threads *ebpf.MapSpec

	mu     sync.Mutex
	objs   objects
	links  []link.Link
	closed bool
}

// New loads the programs. It needs CAP_BPF and CAP_PERFMON, and Linux 5.13; it does not need
// frail.ko. The caller closes the recorder.
func New(opts Options) (*Recorder, error) {
	if opts.Bytes < MinBytes || opts.Bytes > MaxBytes {
		return nil, fmt.Errorf("records of %d bytes: from %d to %d", opts.Bytes, MinBytes, MaxBytes)
	}
	spec, err := bpf.LoadRecord()
	if err != nil {
		return nil, err
	}
	r := &Recorder{
		slots:   opts.Bytes/slotSize - 1,
		record:  spec.Maps["records"].InnerMap,
		threads: spec.Maps["threads"].InnerMap,
	}
	r.record.MaxEntries = uint32(1 + r.slots)
	if err := spec.Variables["slots"].Set(uint32(r.slots)); err != nil {
		return nil, fmt.Errorf("set slots: %w", err)
	}
	if err := spec.LoadAndAssign(&r.objs, nil); err != nil {
		if errors.Is(err, unix.EPERM) {
			return nil, fmt.Errorf("load flight recorder: permission denied: CAP_BPF and CAP_PERFMON are needed: %w", err)
		}
		return nil, fmt.Errorf("load flight recorder: %w", err)
	}
	return r, nil
}

// Attach makes the recorder see guest system calls from now on. It returns an error wrapping
// [tracer.ErrNoTracepoint] when frail.ko is not loaded. It can be called once.
func (r *Recorder) Attach() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.closed:
		return fmt.Errorf("attach: %w", os.ErrClosed)
	case r.links != nil:
		return errors.New("attach: attached already")
	}
	for _, p := range r.objs.programs() {
		l, err := link.AttachRawTracepoint(link.RawTracepointOptions{Name: p.name, Program: p.Program})
		if err == nil {
			r.links = append(r.links, l)
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
		return errors.Join(err, r.detach())
	}
	return nil
}

// detach is called with mu held.
func (r *Recorder) detach() error {
	var errs []error
	for _, l := range r.links {
		errs = append(errs, l.Close())
	}
	r.links = nil
	return errors.Join(errs...)
}

// Programs returns what the kernel measured of the programs.
func (r *Recorder) Programs() ([]tracer.ProgramStats, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil, fmt.Errorf("read program statistics: %w", os.ErrClosed)
	}
	var all []tracer.ProgramStats
	for _, p := range r.objs.programs() {
		st, err := p.Stats()
		if err != nil {
			return nil, fmt.Errorf("read program statistics: %w", err)
		}
		all = append(all, tracer.ProgramStats{Name: p.name, Runs: st.RunCount, RunTime: st.Runtime})
	}
	return all, nil
}

// Program returns the program that sees events of a kind, for tests that run it; it is the
// recorder's: the caller does not close it.
func (r *Recorder) Program(kind uint16) *ebpf.Program {
	switch kind {
	case bpf.EventExit:
		return r.objs.Exit
	case bpf.EventCoverage:
		return r.objs.Coverage
	case bpf.EventProcess:
		return r.objs.Process
	default:
		return r.objs.Enter
	}
}

// Close detaches the programs and frees them. Records stay until they are closed. Closing
// twice is no error.
func (r *Recorder) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil
	}
	r.closed = true
	err := r.detach()
	for _, p := range r.objs.programs() {
		err = errors.Join(err, p.Close())
	}
	return errors.Join(err, r.objs.Records.Close(), r.objs.Threads.Close())
}

// Record starts to record a VM. Who its threads are is known of those that the module describes
// from now on: [frail/kmod/device.VM.Describe] makes it do so. The caller closes the record.
func (r *Recorder) Record(vm uint32) (_ *Record, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil, fmt.Errorf("record VM %d: %w", vm, os.ErrClosed)
	}
	rec := &Record{recorder: r, vm: vm, began: tracer.BootTime()}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("record VM %d: %w", vm, err), rec.free())
		}
	}()
	if rec.missed, err = r.objs.misses(); err != nil {
		return nil, err
	}
	if rec.events, err = ebpf.NewMap(r.record); err != nil {
		return nil, fmt.Errorf("make room for %d events: %w", r.slots, err)
	}
	if rec.threads, err = ebpf.NewMap(r.threads); err != nil {
		return nil, fmt.Errorf("make room for threads: %w", err)
	}
	page := os.Getpagesize()
	rec.memory, err = unix.Mmap(rec.events.FD(), 0, ((1+r.slots)*slotSize+page-1)/page*page, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map its memory: %w", err)
	}
	rec.slots = unsafe.Slice((*bpf.RecordSlot)(unsafe.Pointer(unsafe.SliceData(rec.memory))), 1+r.slots)
	// Not through the mapping: only the kernel writes there.
	head := bpf.RecordSlot{}
	head.Event.Vm = vm
	if err := rec.events.Put(uint32(0), &head); err != nil {
		return nil, err
	}
	// Threads first, so that what is described is kept once there is a record.
	slot := vm % bpf.VMSlots
	if err := r.objs.Threads.Put(slot, rec.threads); err != nil {
		return nil, err
	}
	if err := r.objs.Records.Put(slot, rec.events); err != nil {
		return nil, errors.Join(err, r.objs.Threads.Delete(slot))
	}
	return rec, nil
}

// Record is what is recorded of a VM. All methods are safe for concurrent use.
type Record struct {
	recorder *Recorder
	vm       uint32
	began    uint64
	missed   uint64 // by the programs, before it began

	mu      sync.RWMutex // Close is a write
	events  *ebpf.Map
	threads *ebpf.Map
	memory  []byte
	slots   []bpf.RecordSlot // in memory; nil when closed

	ended atomic.Uint64 // when; 0: not yet
	end   struct {      // once ended
		sync.Once
		err    error
		missed uint64
	}
}

// Stop ends the recording. What is recorded can still be read. Stopping twice is no error.
func (r *Record) Stop() error {
	r.end.Do(func() {
		o := r.recorder
		o.mu.Lock()
		defer o.mu.Unlock()
		if !o.closed {
			slot := r.vm % bpf.VMSlots
			r.end.err = errors.Join(o.objs.Records.Delete(slot), o.objs.Threads.Delete(slot))
			var err error
			r.end.missed, err = o.objs.misses()
			r.end.err = errors.Join(r.end.err, err)
		}
		r.ended.Store(tracer.BootTime())
	})
	if r.end.err != nil {
		return fmt.Errorf("stop recording VM %d: %w", r.vm, r.end.err)
	}
	return nil
}

// Close ends the recording and frees the record. Closing twice is no error.
func (r *Record) Close() error {
	err := r.Stop()
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.slots == nil {
		return err
	}
	return errors.Join(err, r.free())
}

func (r *Record) free() error {
	var err error
	if r.memory != nil {
		err = unix.Munmap(r.memory)
	}
	r.memory, r.slots = nil, nil
	return errors.Join(err, r.events.Close(), r.threads.Close()) // of nil, too
}

// Info says how much a record holds.
type Info struct {
	// Recorded is how many events there were since the recording began. Held is how many of
	// them, the newest, there is room for.
	Recorded, Held uint64
	// Began and Ended are when the recording did, Oldest is the time of the oldest event that
	// is held: CLOCK_BOOTTIME in nanoseconds. Zero: not yet, or none.
	Began, Ended, Oldest uint64
}

// Forgotten is how many events there is no room for.
func (i Info) Forgotten() uint64 { return i.Recorded - i.Held }

// Info says how much the record holds now. Of a closed one it holds nothing.
func (r *Record) Info() Info {
	r.mu.RLock()
	defer r.mu.RUnlock()
	i := Info{Began: r.began, Ended: r.ended.Load()}
	if r.slots == nil {
		return i
	}
	i.Recorded = r.next()
	i.Held = min(i.Recorded, r.room())
	var ev bpf.Event
	// Those that are overwritten meanwhile are not the oldest.
	for n := i.Recorded - i.Held; n < i.Recorded; n++ {
		if r.read(n, &ev) == slotRead {
			i.Oldest = ev.Time
			break
		}
	}
	return i
}

func (r *Record) room() uint64 { return uint64(len(r.slots) - 1) }

// next returns the number of the next event.
func (r *Record) next() uint64 { return atomic.LoadUint64(&r.slots[0].Ticket) }

// What was found of an event.
type slotState int

const (
	slotRead slotState = iota
	slotOverwritten
	slotBusy    // it is written now, or overwritten
	slotMissing // likewise not yet, or it could not be read, or there was no time to write it
)

// read copies event n into ev.
func (r *Record) read(n uint64, ev *bpf.Event) slotState {
	slot := &r.slots[1+n%r.room()]
	before := atomic.LoadUint64(&slot.Ticket)
	if before == n+1 {
		*ev = *slot.Traced()
		if atomic.LoadUint64(&slot.Ticket) == before {
			return slotRead
		}
		return slotOverwritten
	}
	switch {
	case before&bpf.RecordBusy != 0:
		return slotBusy
	case before > n+1:
		return slotOverwritten
	}
	return slotMissing
}

// Reading says what was read of a record.
type Reading struct {
	// Events is how many there were, and Lost how many were not told of.
	Events uint64
	Lost   tracer.Losses
	// First and Last are the times of the first and of the last one: CLOCK_BOOTTIME in
	// nanoseconds. Zero: there was none.
	First, Last uint64
	// Forgotten is how many older events there is no room for any more.
	Forgotten uint64
}

// Read gives sink the events that were recorded until now, the oldest first: those that are not
// older than a time, CLOCK_BOOTTIME in nanoseconds. The recording goes on. What it overwrites
// before it is read is lost and told of as RingFull, but for what is older than all that is
// delivered. Recursion is told of first: it counts what the programs missed since the record
// began, and may be older, or of other VMs.
//
// It returns the sink's error as it is.
func (r *Record) Read(from uint64, sink tracer.ProcessSink) (Reading, error) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	var out Reading
	if r.slots == nil {
		return out, fmt.Errorf("read record of VM %d: %w", r.vm, os.ErrClosed)
	}
	missed, err := r.misses()
	if err != nil {
		return out, err
	}
	end := r.next()
	synchronized := false
	begin := end - min(end, r.room())
	out.Forgotten = begin

	told := make(map[uint64]bool)
	lost := tracer.Losses{Recursion: missed}
	tell := func(at uint64) error {
		if lost.Total() == 0 {
			return nil
		}
		out.Lost = out.Lost.Plus(lost)
		l := tracer.Lost{Time: at, Losses: lost}
		lost = tracer.Losses{}
		return sink.Lost(l)
	}
	var ev bpf.Event
	for n := begin; n < end; n++ {
		state := r.read(n, &ev)
		if state >= slotBusy && !synchronized {
			// What has a number is written then.
			tracer.Synchronize()
			synchronized = true
			state = r.read(n, &ev)
		}
		switch state {
		case slotOverwritten, slotBusy:
			if out.Events > 0 {
				lost.RingFull++
			} else {
				out.Forgotten = n + 1
			}
			continue
		case slotMissing:
			lost.ReadFault++
			continue
		}
		if ev.Time < from {
			lost.ReadFault = 0 // they were as old
			continue
		}
		if err := tell(ev.Time); err != nil {
			return out, err
		}
		if ev.Who != 0 && !told[ev.Who] {
			told[ev.Who] = true
			if err := r.describe(ev.Who, sink); err != nil {
				return out, err
			}
		}
		if out.Events == 0 {
			out.First = ev.Time
		}
		out.Events++
		out.Last = ev.Time
		if err := sink.Event(&ev); err != nil {
			return out, err
		}
	}
	if err := tell(tracer.BootTime()); err != nil {
		return out, err
	}
	return out, sink.Flush()
}

// describe tells sink who a thread is, if that is known.
func (r *Record) describe(who uint64, sink tracer.ProcessSink) error {
	var p bpf.Process
	switch err := r.threads.Lookup(who, &p); {
	case errors.Is(err, ebpf.ErrKeyNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("read who a thread is: %w", err)
	}
	return sink.Process(&p)
}

// misses returns how many events the programs missed since the record began.
func (r *Record) misses() (uint64, error) {
	if r.ended.Load() != 0 {
		return r.end.missed - r.missed, nil
	}
	o := r.recorder
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closed {
		return 0, fmt.Errorf("read program statistics: %w", os.ErrClosed)
	}
	n, err := o.objs.misses()
	return n - r.missed, err
}

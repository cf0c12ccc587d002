// SPDX-License-Identifier: Apache-2.0

package tracer

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"
	"golang.org/x/sys/unix"

	"frail/bpf"
)

const (
	// lossInterval is how long a loss that no later event reports may go unnoticed.
	lossInterval = time.Second

	// lingerTime is how long a reader that found the ring empty lets events collect
	// before it waits again: the kernel wakes a waiting reader for every first event,
	// with an interrupt, on the guest's time.
	lingerTime = time.Millisecond

	// lingerRing is the smallest ring worth lingering for: a smaller one could
	// overflow meanwhile.
	lingerRing = 256 << 10
)

// Sink takes what a [Tracer] reads. All calls come from the goroutine that called
// [Tracer.Run]; an error ends it.
type Sink interface {
	// Event takes an event. It is valid until the method returns.
	Event(*bpf.Event) error
	// Lost takes the losses at this point of the stream. Ring-full and read-fault
	// losses come exactly where the events are missing, between those before and those
	// after. It may be called without an event ever coming.
	Lost(Lost) error
	// Flush is called when nothing more is there to be read for the moment: what the
	// sink collected should be passed on.
	Flush() error
}

// ProcessSink is a [Sink] that wants to know who the threads are that events are of.
type ProcessSink interface {
	Sink
	// Process takes the description of a thread; it comes before the events whose Who is
	// its Head.Who. It is valid until the method returns.
	Process(*bpf.Process) error
}

// DataSink is a [Sink] that wants to know what arguments of calls point to.
type DataSink interface {
	Sink
	// Data takes an event with what its call's arguments point to, in the place of Event. It
	// is valid until the method returns.
	Data(*bpf.Data) error
}

// Losses counts events that were not delivered, by cause.
type Losses struct {
	// RingFull: the reader was too slow for its ring buffer.
	RingFull uint64
	// ReadFault: the tracepoint's event could not be read.
	ReadFault uint64
	// Recursion: the kernel did not run the program because it was running on that
	// CPU already. These were not filtered, so some may be of other VMs.
	Recursion uint64
}

// Total returns the sum over all causes.
func (l Losses) Total() uint64 { return l.RingFull + l.ReadFault + l.Recursion }

// Plus returns the sum of two counts.
func (l Losses) Plus(m Losses) Losses {
	return Losses{
		RingFull: l.RingFull + m.RingFull, ReadFault: l.ReadFault + m.ReadFault, Recursion: l.Recursion + m.Recursion,
	}
}

// Lost are losses noticed at one point of the stream.
type Lost struct {
	// Time of the first event after the losses, or of the notice where there is none yet:
	// CLOCK_BOOTTIME in nanoseconds.
	Time uint64
	Losses
}

// Summary counts over the whole life of a tracer.
type Summary struct {
	// Delivered is how many events a sink took.
	Delivered uint64
	// Lost is how many were not delivered, by cause.
	Lost Losses
	// Unjudged is of how many events it was not known whether they pass the filter: they
	// did if it says so.
	Unjudged uint64
}

const (
	eventSize    = int(unsafe.Sizeof(bpf.Event{}))
	gapEventSize = int(unsafe.Sizeof(bpf.GapEvent{}))
	processSize  = int(unsafe.Sizeof(bpf.Process{}))
	gapSize      = int(unsafe.Sizeof(bpf.Gap{}))
	dataHeadSize = int(unsafe.Offsetof(bpf.Data{}.Bytes))
)

// record has room for every record of the ring.
type record struct {
	gap  bpf.Gap
	data bpf.Data
}

// Run delivers events to sink until ctx ends, the tracer is closed or sink fails. When
// ctx ends it detaches the programs, delivers what was traced until then, and returns nil.
// It returns the sink's error as it is. Run can be called once.
//
// After it returned nil, the sum of all Lost records equals the [Tracer.Summary]'s.
func (t *Tracer) Run(ctx context.Context, sink Sink) error {
	t.mu.Lock()
	switch {
	case t.closed:
		t.mu.Unlock()
		return fmt.Errorf("run tracer: %w", os.ErrClosed)
	case t.ran:
		t.mu.Unlock()
		return errors.New("run tracer: it can run only once")
	}
	t.running, t.ran = true, true
	t.mu.Unlock()

	defer func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		t.running = false
		if t.closed {
			_ = t.release()
		}
	}()

	stop := context.AfterFunc(ctx, t.finish)
	defer stop()
	return (&run{t: t, sink: sink}).loop()
}

// finish detaches the programs and makes the reader return what is in the ring, then
// [ringbuf.ErrFlushed].
func (t *Tracer) finish() {
	t.mu.Lock()
	_ = t.detach()
	t.mu.Unlock()

	Synchronize()

	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.closed {
		_ = t.reader.Flush() // fails only when closed
	}
}

// Synchronize waits until the BPF programs that run now on other CPUs are over: each runs in
// an RCU read-side section. A kernel with nohz_full CPUs cannot tell, and it does not wait: an
// event under way would be dropped there.
func Synchronize() {
	const membarrierGlobal = 1
	_, _, _ = unix.Syscall(unix.SYS_MEMBARRIER, membarrierGlobal, 0, 0)
}

// run is the state of one call of Run.
type run struct {
	t      *Tracer
	sink   Sink
	data   DataSink // the sink, if it is one
	misses uint64   // recursion misses told so far
}

func (r *run) loop() error {
	rd := r.t.reader
	linger := rd.BufferSize() >= lingerRing

	// The reader copies each record in here; all kinds are used in place.
	room := new(record)
	after := (*bpf.GapEvent)(unsafe.Pointer(room))
	process := (*bpf.Process)(unsafe.Pointer(room))
	data := (*bpf.Data)(unsafe.Pointer(room))
	ev := (*bpf.Event)(unsafe.Pointer(room))
	rec := ringbuf.Record{RawSample: unsafe.Slice((*byte)(unsafe.Pointer(room)), unsafe.Sizeof(*room))}
	describe := func(*bpf.Process) error { return nil }
	if sink, ok := r.sink.(ProcessSink); ok {
		describe = sink.Process
	}
	r.data, _ = r.sink.(DataSink)

	rd.SetDeadline(time.Now().Add(lossInterval))
	for {
		err := rd.ReadInto(&rec)
		if err != nil {
			flushed := errors.Is(err, ringbuf.ErrFlushed)
			if !flushed && !errors.Is(err, os.ErrDeadlineExceeded) {
				return fmt.Errorf("read ring buffer: %w", err)
			}
			if err := r.unreported(); err != nil {
				return err
			}
			if err := r.sink.Flush(); err != nil {
				return err
			}
			if flushed {
				return nil
			}
			rd.SetDeadline(time.Now().Add(lossInterval))
			continue
		}

		switch len(rec.RawSample) {
		case eventSize:
			err = r.event(ev)
		case gapEventSize:
			err = r.lost(Lost{Time: after.Event.Time, Losses: lossesOf(&after.Gap)})
			if err == nil {
				err = r.event(&after.Event)
			}
		case processSize:
			err = describe(process)
		case dataHeadSize + bpf.DataSmall, dataHeadSize + bpf.DataMedium, dataHeadSize + bpf.DataLarge:
			err = r.withData(data)
		case gapSize + dataHeadSize + bpf.DataSmall, gapSize + dataHeadSize + bpf.DataMedium, gapSize + dataHeadSize + bpf.DataLarge:
			err = r.lost(Lost{Time: room.data.Head.Time, Losses: lossesOf(&room.gap)})
			if err == nil {
				err = r.withData(&room.data)
			}
		default:
			err = fmt.Errorf("read ring buffer: record of unknown size %d", len(rec.RawSample))
		}
		if err != nil {
			return err
		}

		if rec.Remaining > 0 {
			continue
		}
		if err := r.sink.Flush(); err != nil {
			return err
		}
		if linger {
			time.Sleep(lingerTime)
		}
		rd.SetDeadline(time.Now().Add(lossInterval))
	}
}

// withData delivers an event with what its call's arguments point to.
func (r *run) withData(d *bpf.Data) error {
	if r.data == nil {
		return r.event(&d.Head)
	}
	if err := r.data.Data(d); err != nil {
		return err
	}
	r.t.delivered.Add(1)
	return nil
}

func (r *run) event(ev *bpf.Event) error {
	// Nothing is behind it here.
	ev.Flags &^= bpf.EventHasData
	if err := r.sink.Event(ev); err != nil {
		return err
	}
	r.t.delivered.Add(1)
	return nil
}

// lost tells the sink of losses, if there are any.
func (r *run) lost(l Lost) error {
	if l.Total() == 0 {
		return nil
	}
	return r.sink.Lost(l)
}

// unreported tells the sink of losses that no event has come after yet, and those of programs that did not run.
func (r *run) unreported() error {
	var gap bpf.Gap
	for cause := range gap.Lost {
		gap.Lost[cause] = r.t.pending[cause].Swap(0)
	}
	l := Lost{Time: BootTime(), Losses: lossesOf(&gap)}
	misses, err := r.t.objs.misses()
	if err != nil {
		return err
	}
	l.Recursion = misses - r.misses
	r.misses = misses
	return r.lost(l)
}

// Summary returns what was delivered and lost so far. It can be called after Close.
func (t *Tracer) Summary() (Summary, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.released {
		return t.final, nil
	}
	return t.summary()
}

// summary is called with mu held, before release.
func (t *Tracer) summary() (Summary, error) {
	s := Summary{Delivered: t.delivered.Load()}
	var total bpf.Gap
	var err error
	for cause := range total.Lost {
		if total.Lost[cause], err = sum(t.objs.Losses, uint32(cause)); err != nil {
			return s, fmt.Errorf("read loss counters: %w", err)
		}
	}
	s.Lost = lossesOf(&total)
	if s.Unjudged, err = sum(t.objs.Unjudged, 0); err != nil {
		return s, fmt.Errorf("read counter of unjudged events: %w", err)
	}
	s.Lost.Recursion, err = t.objs.misses()
	return s, err
}

// sum adds up a counter of all CPUs.
func sum(counters *ebpf.Map, key uint32) (uint64, error) {
	var perCPU []uint64
	if err := counters.Lookup(key, &perCPU); err != nil {
		return 0, err
	}
	total := uint64(0)
	for _, n := range perCPU {
		total += n
	}
	return total, nil
}

// ProgramStats are what the kernel measured of a BPF program.
type ProgramStats struct {
	// Name is the program's.
	Name string
	// Runs and RunTime are how often and how long it ran on all CPUs while the kernel
	// measured programs: while the sysctl kernel.bpf_stats_enabled is 1, or somebody holds a
	// descriptor of BPF_ENABLE_STATS. Else they stay as they are.
	Runs    uint64
	RunTime time.Duration
}

// Programs returns what the kernel measured of the tracer's programs so far. It can be called
// after Close.
func (t *Tracer) Programs() ([]ProgramStats, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.released {
		return t.measured, nil
	}
	return t.programs()
}

// programs is called with mu held, before release.
func (t *Tracer) programs() ([]ProgramStats, error) {
	var all []ProgramStats
	for _, p := range t.objs.programs() {
		stats, err := p.Stats()
		if err != nil {
			return nil, fmt.Errorf("read program statistics: %w", err)
		}
		all = append(all, ProgramStats{Name: p.name, Runs: stats.RunCount, RunTime: stats.Runtime})
	}
	return all, nil
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

func lossesOf(g *bpf.Gap) Losses {
	return Losses{
		RingFull:  g.Lost[bpf.LossRingFull],
		ReadFault: g.Lost[bpf.LossReadFault],
	}
}

// pendingOf returns the counters in the memory of the pending map, as atomics.
func pendingOf(mem []byte) *[bpf.LossCauses]atomic.Uint64 {
	gap := (*bpf.Gap)(unsafe.Pointer(unsafe.SliceData(mem)))
	return (*[bpf.LossCauses]atomic.Uint64)(unsafe.Pointer(&gap.Lost))
}

// BootTime returns the clock of events: CLOCK_BOOTTIME in nanoseconds.
func BootTime() uint64 {
	var ts unix.Timespec
	// Cannot fail: the clock exists since Linux 2.6.39 and the pointer is good.
	_ = unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts)
	return uint64(ts.Nano())
}

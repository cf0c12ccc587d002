// SPDX-License-Identifier: Apache-2.0

package tracer

import (
	"errors"
	"fmt"
	"math/bits"
	"os"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/ringbuf"
	"golang.org/x/sys/unix"

	"frail/bpf"
)

const (
	// DefaultRingBytes holds some 27,000 events: a reader may stall for a quarter of a
	// second while a guest makes 100,000 calls a second.
	DefaultRingBytes = 4 << 20
	// MaxRingBytes bounds the kernel memory of one tracer.
	MaxRingBytes = 256 << 20
)

// ErrNoTracepoint is in the chain of [Tracer.Attach]'s error when the kernel has no
// tracepoint of that name because frail.ko is not loaded.
var ErrNoTracepoint = errors.New("not found")

// Kinds is a set of event kinds.
type Kinds uint32

const (
	// Enter are system calls made.
	Enter Kinds = 1 << bpf.EventEnter
	// Exit are system calls returned from.
	Exit Kinds = 1 << bpf.EventExit
	// Coverage are changes of which ways into the guest's kernel are seen. The other
	// parts of a filter do not concern them.
	Coverage Kinds = 1 << bpf.EventCoverage

	allKinds = Enter | Exit | Coverage
)

// Options are what a Tracer is made with. The zero value follows no VM.
type Options struct {
	// VMs are the ids of the VMs to follow, as [frail/kmod/device.VM.ID] returns them.
	VMs []uint32
	// Filter is fixed for the life of the tracer. If [Filter.Describes], threads are known
	// to it after [frail/kmod/device.VM.Describe] of each VM only.
	Filter Filter
	// Processes makes the tracer tell who threads are, if its sink is a [ProcessSink].
	// What was told before it was attached is told again after
	// [frail/kmod/device.VM.Describe].
	Processes bool
	// Data makes the tracer tell events with what their calls' arguments point to, if its
	// sink is a [DataSink] and [frail/kmod/device.VM.SetData] has it read.
	Data bool
	// RingBytes is the size of the ring buffer, rounded up to a power of two of
	// pages. Zero: [DefaultRingBytes]. At most [MaxRingBytes].
	RingBytes int
}

// objects are the programs and maps of one tracer.
type objects struct {
	Enter    *ebpf.Program `ebpf:"guest_sys_enter"`
	Exit     *ebpf.Program `ebpf:"guest_sys_exit"`
	Coverage *ebpf.Program `ebpf:"guest_coverage"`
	Process  *ebpf.Program `ebpf:"guest_process"`
	VMs      *ebpf.Map     `ebpf:"vms"`
	Ring     *ebpf.Map     `ebpf:"ring"`
	Losses   *ebpf.Map     `ebpf:"losses"`
	Pending  *ebpf.Map     `ebpf:"pending"`
	Unjudged *ebpf.Map     `ebpf:"unjudged"`

	Processes   *ebpf.Map `ebpf:"processes"`
	Threads     *ebpf.Map `ebpf:"threads"`
	Executables *ebpf.Map `ebpf:"executables"`
	Containers  *ebpf.Map `ebpf:"containers"`
}

// program is one of objects, with its name.
type program struct {
	*ebpf.Program
	name string
}

func (o *objects) programs() []program {
	return []program{
		{o.Enter, bpf.TracepointEnter}, {o.Exit, bpf.TracepointExit},
		{o.Coverage, bpf.TracepointCoverage}, {o.Process, bpf.TracepointProcess},
	}
}

func (o *objects) close() error {
	return errors.Join(o.Enter.Close(), o.Exit.Close(), o.Coverage.Close(), o.Process.Close(), o.VMs.Close(),
		o.Ring.Close(), o.Losses.Close(), o.Pending.Close(), o.Unjudged.Close(), o.Processes.Close(), o.Threads.Close(),
		o.Executables.Close(), o.Containers.Close())
}

// Tracer follows VMs. All methods are safe for concurrent use.
type Tracer struct {
	reader    *ringbuf.Reader
	describes bool
	delivered atomic.Uint64

	mu       sync.Mutex
	objs     objects
	shared   []byte // mapping of the pending map
	pending  *[bpf.LossCauses]atomic.Uint64
	links    []link.Link
	attached bool
	running  bool
	ran      bool
	closed   bool
	released bool
	final    Summary        // once released
	measured []ProgramStats // likewise
}

// New loads the programs. It needs CAP_BPF and CAP_PERFMON, and Linux 5.12; it does not
// need frail.ko. The caller closes the tracer.
func New(opts Options) (*Tracer, error) {
	spec, err := bpf.Load()
	if err != nil {
		return nil, err
	}
	ring, err := ringBytes(opts.RingBytes)
	if err != nil {
		return nil, err
	}
	spec.Maps["ring"].MaxEntries = uint32(ring)
	if err := opts.Filter.Validate(); err != nil {
		return nil, err
	}
	filter, err := opts.Filter.compile()
	if err != nil {
		return nil, err
	}
	filter.Tell, filter.Data = word(opts.Processes), word(opts.Data)
	if err := spec.Variables["filter"].Set(&filter); err != nil {
		return nil, fmt.Errorf("set filter: %w", err)
	}
	opts.Filter.resize(spec)
	if !opts.Data || !opts.Filter.byReturn() {
		spec.Maps["held_data"].MaxEntries = 1
	}

	t := &Tracer{describes: opts.Processes || opts.Filter.Describes()}
	if err := spec.LoadAndAssign(&t.objs, nil); err != nil {
		if errors.Is(err, unix.EPERM) {
			return nil, fmt.Errorf("load BPF programs: permission denied: CAP_BPF and CAP_PERFMON are needed: %w", err)
		}
		return nil, fmt.Errorf("load BPF programs: %w", err)
	}
	if err := t.prepare(opts); err != nil {
		_ = t.Close()
		return nil, err
	}
	return t, nil
}

// prepare fills the maps and maps the memory.
func (t *Tracer) prepare(opts Options) error {
	if err := opts.Filter.fill(&t.objs); err != nil {
		return err
	}
	for _, vm := range opts.VMs {
		if err := t.AddVM(vm); err != nil {
			return err
		}
	}
	mem, err := unix.Mmap(t.objs.Pending.FD(), 0, os.Getpagesize(),
		unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("map loss counters: %w", err)
	}
	t.shared = mem
	t.pending = pendingOf(mem)
	if t.reader, err = ringbuf.NewReader(t.objs.Ring); err != nil {
		return fmt.Errorf("open ring buffer: %w", err)
	}
	return nil
}

// ringBytes returns the ring's size for what the caller asked.
func ringBytes(n int) (int, error) {
	switch {
	case n < 0:
		return 0, fmt.Errorf("ring buffer of %d bytes: must not be negative", n)
	case n > MaxRingBytes:
		return 0, fmt.Errorf("ring buffer of %d bytes: at most %d", n, MaxRingBytes)
	case n == 0:
		n = DefaultRingBytes
	}
	n = max(n, os.Getpagesize())
	return 1 << bits.Len(uint(n-1)), nil
}

// AddVM makes the tracer follow another VM, and no more one that was disarmed and had the
// same slot ([bpf.VMSlots]). Adding one twice is no error.
func (t *Tracer) AddVM(id uint32) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return fmt.Errorf("follow VM %d: %w", id, os.ErrClosed)
	}
	if err := t.objs.VMs.Put(id%bpf.VMSlots, id); err != nil {
		return fmt.Errorf("follow VM %d: %w", id, err)
	}
	return nil
}

// RemoveVM makes the tracer leave a VM alone. Events of it that are in the ring buffer
// are still delivered. Removing one that is not followed is no error.
func (t *Tracer) RemoveVM(id uint32) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return fmt.Errorf("leave VM %d: %w", id, os.ErrClosed)
	}
	var has uint32
	err := t.objs.VMs.Lookup(id%bpf.VMSlots, &has)
	if err == nil && has == id {
		err = t.objs.VMs.Put(id%bpf.VMSlots, uint32(0))
	}
	if err != nil {
		return fmt.Errorf("leave VM %d: %w", id, err)
	}
	return nil
}

// Attach makes the programs see guest system calls from now on. It returns an error
// wrapping [ErrNoTracepoint] when frail.ko is not loaded. It can be called once.
func (t *Tracer) Attach() error {
	return t.attach(bpf.TracepointEnter, bpf.TracepointExit, bpf.TracepointCoverage, bpf.TracepointProcess)
}

func (t *Tracer) attach(enter, exit, coverage, process string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return fmt.Errorf("attach: %w", os.ErrClosed)
	}
	if t.attached {
		return errors.New("attach: attached already")
	}
	// Exits first: a call whose return is seen was made, but an unseen return would
	// look like a call that never came back. Before them, whose they are.
	programs := []link.RawTracepointOptions{
		{Name: exit, Program: t.objs.Exit},
		{Name: enter, Program: t.objs.Enter},
		{Name: coverage, Program: t.objs.Coverage},
	}
	if t.describes {
		programs = slices.Insert(programs, 0, link.RawTracepointOptions{Name: process, Program: t.objs.Process})
	}
	for _, at := range programs {
		l, err := link.AttachRawTracepoint(at)
		if err != nil {
			loaded := len(t.links) > 0 // an older module lacks the newer tracepoints
			t.detach()
			switch {
			case errors.Is(err, os.ErrNotExist) && !loaded:
				return fmt.Errorf("load frail.ko: tracepoint %s %w", at.Name, ErrNoTracepoint)
			case errors.Is(err, os.ErrNotExist), errors.Is(err, unix.EINVAL):
				return fmt.Errorf("attach to tracepoint %s: frail.ko is of another version than this program: %w", at.Name, err)
			}
			return fmt.Errorf("attach to tracepoint %s: %w", at.Name, err)
		}
		t.links = append(t.links, l)
	}
	t.attached = true
	return nil
}

// detach is called with mu held.
func (t *Tracer) detach() error {
	var errs []error
	for _, l := range t.links {
		errs = append(errs, l.Close())
	}
	t.links = nil
	return errors.Join(errs...)
}

// EnterProgram returns the program that sees system calls made, for tests that run it; it is the
// tracer's: the caller does not close it.
func (t *Tracer) EnterProgram() *ebpf.Program { return t.objs.Enter }

// Close detaches the programs and frees everything. A call of [Tracer.Run] ends with
// [os.ErrClosed]; what the ring buffer still held is dropped. Closing twice is no error.
// It may be called from a [Sink].
func (t *Tracer) Close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return nil
	}
	t.closed = true
	err := t.detach()
	if t.reader != nil {
		err = errors.Join(err, t.reader.Close())
	}
	if !t.running {
		err = errors.Join(err, t.release())
	}
	return err
}

// release frees what a running Run needs. It is called with mu held, once.
func (t *Tracer) release() error {
	t.final, _ = t.summary()
	t.measured, _ = t.programs()
	t.released = true
	err := t.objs.close()
	if t.shared != nil {
		err = errors.Join(err, unix.Munmap(t.shared))
		t.shared, t.pending = nil, nil
	}
	return err
}

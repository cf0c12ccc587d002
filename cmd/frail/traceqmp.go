// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"frail/api"
	"frail/bpf"
	"frail/cmd/internal/exit"
	"frail/cmd/internal/guest"
	"frail/hooks"
	"frail/kmod/device"
	"frail/qmp"
	"frail/qmp/layout"
	"frail/tracer"
	"frail/tracer/format"
	"frail/tracer/syscalls/decode"
)

// What ends a trace of a QEMU in order.
var (
	errQEMUEnded = errors.New("QEMU ended")
	errLimit     = errors.New("limit")
)

// traceQMP traces the guest of a QEMU without libvirt and fraild: this process arms the VM,
// and its end disarms it.
func (t *traceOptions) traceQMP(ctx context.Context, g *guestOptions, exits string, w io.Writer, note func(string)) (err error) {
	mode, err := hooks.ParseExits(exits)
	if err != nil {
		return exit.Usagef("--exits: %w", err)
	}
	filter, err := guest.Filter(&t.start)
	if err != nil {
		return exit.With(exit.Usage, err)
	}
	q, err := g.dial(ctx)
	if err != nil {
		return err
	}
	defer q.close()
	if err := q.proven(ctx); err != nil {
		return err
	}
	vm, err := q.arm(mode)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, vm.Close()) }()

	tr, err := tracer.New(tracer.Options{VMs: []uint32{vm.ID()}, Filter: filter, Processes: t.identities(), Data: t.start.Data > 0})
	if err != nil {
		return fmt.Errorf("cannot trace: %w", err)
	}
	defer tr.Close()
	if err := tr.Attach(); err != nil {
		return fmt.Errorf("cannot trace: %w", err)
	}
	if t.start.Data > 0 {
		if err := vm.SetData(decode.DataSpec(int(t.start.Data))); err != nil {
			return fmt.Errorf("cannot trace: %w", err)
		}
	}
	if t.identities() || filter.Describes() {
		// Others may have been told already.
		if err := vm.Describe(); err != nil {
			return fmt.Errorf("cannot trace: %w", err)
		}
	}
	offset, err := format.WallOffset()
	if err != nil {
		return fmt.Errorf("cannot trace: %w", err)
	}
	text, err := t.open(w)
	if err != nil {
		return err
	}
	defer text.close()
	if err := text.Started(&api.TraceStarted{Vm: vm.ID(), RealtimeOffset: int64(offset)}); err != nil {
		return err
	}
	st, err := vm.Status()
	if err != nil {
		return err
	}
	if ev := guest.CoverageEvent(st, offset); ev != nil {
		if err := text.Event(ev); err != nil {
			return err
		}
	}
	if t.readyFile != "" {
		if err := os.WriteFile(t.readyFile, nil, 0o644); err != nil {
			return fmt.Errorf("create ready file: %w", err)
		}
	}

	tracing, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if err := q.whileAlive(tracing, cancel); err != nil {
		return err
	}
	followed := make(chan struct{})
	go func() {
		defer close(followed)
		q.follow(tracing, vm, st, note)
	}()
	err = tr.Run(tracing, &limitedSink{traceText: text, limit: t.start.Limit})
	if err == nil {
		err = context.Cause(tracing)
	}
	cancel(nil)
	<-followed
	switch {
	case errors.Is(err, errLimit), ctx.Err() != nil:
	case errors.Is(err, errQEMUEnded):
		note("the guest was shut off")
	default:
		return err
	}
	sum, err := tr.Summary()
	if err != nil {
		return fmt.Errorf("summarize trace: %w", err)
	}
	return text.Summary(sum)
}

// limitedSink ends a trace after a number of events. The last one is taken without an error, or
// the tracer would not count it as delivered: what comes next, Flush at the latest, ends the trace.
type limitedSink struct {
	*traceText
	limit uint64 // 0: none
	taken uint64
}

// end returns errLimit if as many events were taken as are wanted.
func (s *limitedSink) end() error {
	if s.limit != 0 && s.taken >= s.limit {
		return errLimit
	}
	return nil
}

func (s *limitedSink) Event(ev *bpf.Event) error {
	if err := s.end(); err != nil {
		return err
	}
	s.taken++
	return s.traceText.Event(ev)
}

// Data implements tracer.DataSink.
func (s *limitedSink) Data(d *bpf.Data) error {
	if err := s.end(); err != nil {
		return err
	}
	s.taken++
	return s.traceText.Data(d)
}

// Process implements tracer.ProcessSink.
func (s *limitedSink) Process(p *bpf.Process) error {
	if err := s.end(); err != nil {
		return err
	}
	return s.traceText.Process(p)
}

func (s *limitedSink) Lost(l tracer.Lost) error {
	if err := s.end(); err != nil {
		return err
	}
	return s.traceText.Lost(l)
}

func (s *limitedSink) Flush() error {
	if err := s.traceText.Flush(); err != nil {
		return err
	}
	return s.end()
}

// proven checks that the process whose VM is about to be armed is the QEMU that answers:
// it has the guest's memory where QEMU says.
func (q *qemu) proven(ctx context.Context) error {
	mem, err := q.openMemory(ctx)
	if err != nil {
		return err
	}
	defer mem.Close()
	if mem.Path() != qmp.PathProcessVM {
		return fmt.Errorf("process %d is not shown to be this QEMU: give its id with --pid: %w", q.pid, mem.SlowReason())
	}
	return nil
}

func (q *qemu) arm(exits hooks.Exits) (*device.VM, error) {
	vm, err := device.ArmProcess(q.pid, guest.Exits(exits))
	if errors.Is(err, device.ErrNoKVMVM) {
		err = fmt.Errorf("%w: only guests that run with KVM can be traced", err)
	}
	return vm, err
}

// whileAlive cancels when QEMU ends or lets go of the connection.
func (q *qemu) whileAlive(ctx context.Context, cancel context.CancelCauseFunc) error {
	events, err := q.monitor.Events(ctx)
	if err != nil {
		return err
	}
	go func() {
		for range events {
			// Only their end counts. A reader that is too slow sees it early, too.
		}
		if q.monitor.Connect() != nil {
			cancel(errQEMUEnded)
		}
	}()
	return nil
}

// Delays between attempts to find the kernel, which describes itself some time after its
// first call.
const (
	minLookDelay = 50 * time.Millisecond
	maxLookDelay = 2 * time.Second
	// maxLooks bounds the attempts for one kernel: about two minutes.
	maxLooks = 64
)

// follow gives vm the layout of each kernel that the guest starts, until ctx is done; st is
// the VM's status when it begins.
func (q *qemu) follow(ctx context.Context, vm *device.VM, st bpf.Status, note func(string)) {
	for {
		if st.Generation > 0 {
			if err := q.resolve(ctx, vm, st); err != nil && ctx.Err() == nil && !errors.Is(err, device.ErrStale) {
				note("system calls are shown without process names: " + printable(err.Error()))
			}
		}
		var err error
		if st, err = vm.Wait(ctx); err != nil {
			if ctx.Err() == nil {
				note("the guest's next kernels are not followed: " + err.Error())
			}
			return
		}
	}
}

func (q *qemu) resolve(ctx context.Context, vm *device.VM, st bpf.Status) error {
	delay := minLookDelay
	for looks := 1; ; looks++ {
		err := q.look(ctx, vm, st)
		if err == nil || errors.Is(err, device.ErrStale) || ctx.Err() != nil || looks == maxLooks {
			return err
		}
		// The guest may have been reset meanwhile.
		if now, err := vm.Status(); err == nil && now.Generation != st.Generation {
			st, looks, delay = now, 0, minLookDelay
		}
		select {
		case <-time.After(delay):
		case <-ctx.Done():
			return ctx.Err()
		}
		delay = min(2*delay, maxLookDelay)
	}
}

func (q *qemu) look(ctx context.Context, vm *device.VM, st bpf.Status) error {
	mem, err := q.openMemory(ctx)
	if err != nil {
		return err
	}
	defer mem.Close()
	l, err := q.layouts.Resolve(ctx, mem, mem.Ranges(), layout.Hint{LSTAR: st.Lstar, CR3: st.Cr3})
	if err != nil {
		return err
	}
	return vm.SetLayout(device.Layout(l))
}

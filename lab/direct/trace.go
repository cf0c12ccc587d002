// SPDX-License-Identifier: Apache-2.0

package direct

import (
	"context"
	"errors"
	"fmt"

	"frail/bpf"
	"frail/kmod/device"
	"frail/qmp"
	"frail/qmp/layout"
)

// Arm puts the guest under trace; exits is [bpf.ExitsBoth] or
// [bpf.ExitsEntry]. Closing what it returns, which the caller does, ends that.
func (g *Guest) Arm(exits uint32) (*device.VM, error) { return device.ArmProcess(g.PID(), exits) }

// Resolve finds the layout of the kernel that runs in the guest; st is its
// status at that kernel's first system call.
func (g *Guest) Resolve(ctx context.Context, st bpf.Status) (*layout.Layout, error) {
	mem, err := qmp.OpenMemory(ctx, qmp.MemoryOptions{Monitor: g.monitor, PID: g.PID()})
	if err != nil {
		return nil, err
	}
	defer mem.Close()
	return layout.Resolve(ctx, mem, mem.Ranges(), layout.Hint{LSTAR: st.Lstar, CR3: st.Cr3})
}

// Follow gives vm the layout of each kernel that the guest starts, until the
// guest or ctx ends. The guest is paused meanwhile: only the calls up to when
// the host notices the first one stay without identity.
func (g *Guest) Follow(ctx context.Context, vm *device.VM) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-g.exited:
			cancel()
		case <-ctx.Done():
		}
	}()
	for {
		st, err := vm.Wait(ctx)
		if err == nil {
			err = g.follow(ctx, vm, st)
		}
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, device.ErrStale):
			// The next kernel is there already.
		case errors.Is(err, qmp.ErrDisconnected):
			// QEMU is about to end.
			<-ctx.Done()
			return nil
		case err != nil:
			return fmt.Errorf("follow the guest: %w", err)
		}
	}
}

func (g *Guest) follow(ctx context.Context, vm *device.VM, st bpf.Status) error {
	if err := g.Pause(ctx); err != nil {
		return err
	}
	l, err := g.Resolve(ctx, st)
	if err == nil {
		err = vm.SetLayout(device.Layout(l))
	}
	return errors.Join(err, g.Resume(ctx))
}

// Traced is what became of a guest that was traced from its first instruction
// to its last.
type Traced struct {
	*Result
	Events    []bpf.Event   // in order; none is missing
	Processes []bpf.Process // whose they are, by Who
	Status    bpf.Status    // the module's, at the end
}

// Trace runs a guest under trace.
func Trace(ctx context.Context, cfg Config, exits uint32) (*Traced, error) {
	g, err := Start(ctx, cfg)
	if err != nil {
		return nil, err
	}
	defer g.Close()
	vm, err := g.Arm(exits)
	if err != nil {
		return nil, err
	}
	defer vm.Close()
	rec, err := Record(vm)
	if err != nil {
		return nil, err
	}
	defer rec.Close()
	following := make(chan error, 1)
	go func() {
		err := g.Follow(ctx, vm)
		if err != nil {
			err = errors.Join(err, g.kill())
		}
		following <- err
	}()
	if err := g.Resume(ctx); err != nil {
		return nil, err
	}
	res, err := g.Wait(ctx)
	if err != nil {
		return nil, errors.Join(err, g.kill(), <-following)
	}
	if err := <-following; err != nil {
		return nil, err
	}
	events, err := rec.Stop()
	if err != nil {
		return nil, err
	}
	st, err := vm.Status()
	if err != nil {
		return nil, err
	}
	return &Traced{res, events, rec.Processes(), st}, nil
}

// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"frail/api"
	"frail/cmd/internal/guest"
	"frail/qmp"
	"frail/qmp/layout"
)

const (
	// readTimeout bounds a client's look into a guest, its layout included.
	readTimeout = 2 * time.Minute

	// maxReads is how many clients may look into guests at a time: each takes some 50 MiB
	// while a layout is resolved.
	maxReads = 2
)

// Processes implements api.FrailServer.
func (s *server) Processes(req *api.ProcessesRequest, stream grpc.ServerStreamingServer[api.ProcessesResponse]) error {
	return s.read(stream.Context(), req.GetDomain(), func(ctx context.Context, g *guest.Guest) error {
		return g.Processes(ctx, req, stream.Send)
	})
}

// KernelLog implements api.FrailServer.
func (s *server) KernelLog(req *api.KernelLogRequest, stream grpc.ServerStreamingServer[api.KernelLogResponse]) error {
	return s.read(stream.Context(), req.GetDomain(), func(ctx context.Context, g *guest.Guest) error {
		return g.KernelLog(ctx, stream.Send)
	})
}

// Layout implements api.FrailServer.
func (s *server) Layout(ctx context.Context, req *api.LayoutRequest) (resp *api.GuestLayout, err error) {
	err = s.read(ctx, req.GetDomain(), func(_ context.Context, g *guest.Guest) error {
		resp = g.Describe()
		return nil
	})
	return resp, err
}

// errRestarted says that what was read may be of a kernel that runs no more.
var errRestarted = errors.New("the guest started another kernel while it was read")

// read calls f with the guest of a domain, which need not be traced.
func (s *server) read(ctx context.Context, key string, f func(context.Context, *guest.Guest) error) error {
	d, err := s.domain(key)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	defer context.AfterFunc(s.stopping, cancel)()
	select {
	case s.reads <- struct{}{}:
		defer func() { <-s.reads }()
	case <-ctx.Done():
		return status.FromContextError(ctx.Err()).Err()
	}
	snap, _ := d.snapshot()
	if !snap.Active {
		return status.Errorf(codes.FailedPrecondition, "domain '%s' is shut off", snap.Name)
	}
	err = s.manager.host.withMemory(ctx, snap.State, func(mem *qmp.Memory) error {
		l, err := d.currentLayout(ctx, snap, mem)
		if err != nil {
			return err
		}
		if err := f(ctx, &guest.Guest{Memory: mem, Layout: l}); err != nil {
			return err
		}
		if now, _ := d.snapshot(); snap.layout != nil && now.layout != snap.layout {
			return errRestarted
		}
		return nil
	})
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return status.FromContextError(ctx.Err()).Err()
	default:
		return status.Errorf(codes.FailedPrecondition, "cannot read the guest of domain '%s': %v", snap.Name, err)
	}
}

// currentLayout returns the layout of the kernel that runs in the guest: the one that is
// known if the domain is traced, else one that is looked for now.
func (d *domain) currentLayout(ctx context.Context, snap snapshot, mem *qmp.Memory) (*layout.Layout, error) {
	if snap.layout != nil {
		return snap.layout, nil
	}
	var hint layout.Hint
	if snap.vm != nil {
		// The VM may be disarmed at any moment: then there is no hint.
		if st, err := snap.vm.Status(); err == nil {
			d.observe(st)
			hint = layout.Hint{LSTAR: st.Lstar, CR3: st.Cr3}
		}
	}
	return d.host.layouts.Resolve(ctx, mem, mem.Ranges(), hint)
}

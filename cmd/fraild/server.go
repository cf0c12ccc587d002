// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/reflection"
	"google.golang.org/grpc/status"

	"frail/api"
	"frail/bpf"
)

// server answers fraild's clients.
type server struct {
	api.UnimplementedFrailServer
	manager *manager
	started time.Time

	// sessions has room for as many Trace calls as may run at once.
	sessions chan struct{}

	// reads has room for as many clients as may look into guests at once.
	reads chan struct{}

	// stopping is done when the daemon stops: traces end with a summary.
	stopping context.Context
}

func newServer(stopping context.Context, m *manager) *server {
	return &server{
		manager:  m,
		started:  time.Now(),
		sessions: make(chan struct{}, m.host.cfg.Load().Trace.MaxSessions),
		reads:    make(chan struct{}, maxReads),
		stopping: stopping,
	}
}

// grpc returns a gRPC server that serves s on unix sockets to whom the access of that moment
// lets, with reflection.
func (s *server) grpc(current func() access) *grpc.Server {
	g := grpc.NewServer(accessOptions(current)...)
	api.RegisterFrailServer(g, s)
	reflection.Register(g)
	return g
}

// domain returns the domain of this name, id or UUID.
func (s *server) domain(key string) (*domain, error) {
	if d := s.manager.find(key); d != nil {
		return d, nil
	}
	return nil, status.Errorf(codes.NotFound, "failed to get domain '%s': fraild knows none of that name, id or UUID", key)
}

// Status implements api.FrailServer.
func (s *server) Status(context.Context, *api.StatusRequest) (*api.StatusResponse, error) {
	resp := &api.StatusResponse{
		Version:       api.Version(),
		Pid:           int32(os.Getpid()),
		ReadyUnixNano: s.started.UnixNano(),
		Uri:           s.manager.host.cfg.Load().Libvirt.URI,
		Sessions:      uint32(len(s.sessions)),
	}
	for _, d := range s.manager.list() {
		if snap, _ := d.snapshot(); snap.vm != nil {
			resp.Traced++
		}
	}
	return resp, nil
}

// List implements api.FrailServer.
func (s *server) List(_ context.Context, req *api.ListRequest) (*api.ListResponse, error) {
	resp := &api.ListResponse{Uri: s.manager.host.cfg.Load().Libvirt.URI}
	for _, d := range s.manager.list() {
		if snap, _ := d.snapshot(); snap.Active || req.GetAll() {
			resp.Domains = append(resp.Domains, describe(d, snap))
		}
	}
	if len(resp.Domains) == 0 {
		if err := s.unavailable(); err != nil {
			return nil, err
		}
	}
	return resp, nil
}

// unavailable returns an error if there may be domains that fraild does not know.
func (s *server) unavailable() error {
	if err := s.manager.connected(); err != nil {
		return status.Errorf(codes.Unavailable, "fraild cannot reach libvirt at %s: %v", s.manager.host.cfg.Load().Libvirt.URI, err)
	}
	return nil
}

func describe(d *domain, snap snapshot) *api.Domain {
	desc := &api.Domain{
		Uuid:    snap.UUID,
		Name:    snap.Name,
		Id:      int32(snap.ID),
		Pid:     int32(snap.PID),
		Active:  snap.Active,
		Enabled: snap.Config.Trace,
		State:   snap.state,
		Reason:  snap.reason,
	}
	if snap.vm == nil {
		return desc
	}
	// The VM may be disarmed at any moment; its counters are then no longer of interest.
	st, err := snap.vm.Status()
	if err != nil {
		return desc
	}
	d.observe(st)
	desc.Vm = describeVM(st)
	desc.Vm.Release = snap.release
	return desc
}

// describeVM tells what the module says of a VM.
func describeVM(st bpf.Status) *api.VM {
	vm := &api.VM{
		Id:             st.Vm,
		Generation:     st.Generation,
		Vcpus:          st.Vcpus,
		ArmedVcpus:     st.ArmedVcpus,
		Enters:         st.Enters,
		Exits:          st.Exits,
		Refetches:      st.Refetches,
		IdentityMisses: st.IdentityMisses,
		ExitsMode:      api.Exits_EXITS_BOTH,
		Covered:        entries(st.Covered),
		Blind:          entries(st.Blind),
		RetsKnown:      st.RetsKnown,
		RetsUnknown:    st.RetsUnknown,
	}
	if st.ExitsMode == bpf.ExitsEntry {
		vm.ExitsMode = api.Exits_EXITS_ENTRY
	}
	return vm
}

// entries lists the ways into a guest's kernel in a mask of the module's.
func entries(mask uint32) []api.Entry {
	var list []api.Entry
	for _, e := range []struct {
		bit   uint32
		entry api.Entry
	}{
		{bpf.EntrySyscall, api.Entry_ENTRY_SYSCALL},
		{bpf.EntryInt80, api.Entry_ENTRY_INT80},
		{bpf.EntrySysenter, api.Entry_ENTRY_SYSENTER},
	} {
		if mask&e.bit != 0 {
			list = append(list, e.entry)
		}
	}
	return list
}

// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"frail/api"
	"frail/bpf"
	"frail/tracer/ph"
	"frail/tracer/profile"
	"frail/tracer/sequence"
)

// named returns the VM of a domain that is analysed.
func (s *server) named(key string) (*analysed, error) {
	d, err := s.domain(key)
	if err != nil {
		return nil, err
	}
	snap, _ := d.snapshot()
	seq := s.manager.host.sequences
	seq.mu.Lock()
	defer seq.mu.Unlock()
	for _, v := range seq.vms {
		if v.UUID == snap.UUID {
			return v, nil
		}
	}
	return nil, status.Errorf(codes.FailedPrecondition,
		"the call sequences of domain '%s' are not analysed: it does not run, or its metadata has no <frail:sequence> element", snap.Name)
}

// selected returns the id of the VM of a domain, 0 for the empty name.
func (s *server) selected(key string) (uint32, error) {
	if key == "" {
		return 0, nil
	}
	v, err := s.named(key)
	if err != nil {
		return 0, err
	}
	return v.vm, nil
}

// Alerts implements api.FrailServer.
func (s *server) Alerts(req *api.AlertsRequest, stream grpc.ServerStreamingServer[api.Alert]) error {
	uuid := ""
	if key := req.GetDomain(); key != "" {
		d, err := s.domain(key)
		if err != nil {
			return err
		}
		snap, _ := d.snapshot()
		uuid = snap.UUID
	}
	// A client that follows wants to know when it would miss nothing more.
	if err := stream.SendHeader(nil); err != nil {
		return err
	}
	next := uint64(0)
	for {
		alerts, after, changed := s.manager.host.sequences.alerts.since(next)
		next = after
		for i := range alerts {
			if a := &alerts[i]; uuid == "" || a.uuid == uuid {
				if err := stream.Send(alertMessage(a)); err != nil {
					return err
				}
			}
		}
		if !req.GetFollow() {
			return nil
		}
		select {
		case <-changed:
		case <-stream.Context().Done():
			return status.FromContextError(stream.Context().Err()).Err()
		case <-s.stopping.Done():
			return status.Error(codes.Unavailable, "fraild stops")
		}
	}
}

func alertMessage(a *alertOf) *api.Alert {
	m := &api.Alert{
		Kind: a.Kind.String(), UnixNano: a.at.UnixNano(), BootNano: a.Time, Uuid: a.uuid, Name: a.name, Vm: a.VM,
		Pid: a.PID, Tgid: a.TGID, Executable: []byte(a.Executable), Comm: []byte(a.Comm), Miss: uint32(a.Miss), Lfc: uint32(a.LFC),
		MaxLfc: uint32(a.MaxLFC), Frame: a.Frame[:], Anomalies: a.Anomalies, Limit: uint32(a.Limit), Count: a.Count,
	}
	for _, n := range a.Calls {
		m.Calls = append(m.Calls, uint32(n))
	}
	return m
}

// Profiles implements api.FrailServer.
func (s *server) Profiles(_ context.Context, req *api.ProfilesRequest) (*api.ProfilesResponse, error) {
	vm, err := s.selected(req.GetDomain())
	if err != nil {
		return nil, err
	}
	seq := s.manager.host.sequences
	seq.mu.Lock()
	defer seq.mu.Unlock()
	resp := &api.ProfilesResponse{Counters: make(map[string]uint64)}
	if seq.analyzer == nil {
		return resp, nil
	}
	infos, err := seq.list(vm)
	if err != nil {
		return nil, profileError(err)
	}
	now, clock := time.Now(), monotonicNow()
	for _, info := range infos {
		v := seq.vms[info.Executable.VM]
		if v == nil {
			continue
		}
		p := &info.Profile
		m := &api.Profile{
			Uuid: v.UUID, Name: v.Name, Executable: []byte(p.Name), Normal: p.Normal, Frozen: p.Frozen, Train: p.Train,
			LastMod: p.LastMod, Sequences: p.Sequences, Anomalies: p.Anomalies, Calls: uint32(info.Calls), Threads: info.Threads,
		}
		if p.Frozen {
			m.NormalUnixNano = now.Add(time.Duration(int64(p.NormalTime) - clock)).UnixNano()
		}
		resp.Profiles = append(resp.Profiles, m)
	}
	c, err := seq.analyzer.Counters()
	if err != nil {
		return nil, profileError(err)
	}
	for limit, n := range map[int]uint64{
		bpf.PhFullProfiles: c.Profiles, bpf.PhFullRows: c.Rows, bpf.PhFullThreads: c.Threads, bpf.PhFullSymbols: c.Symbols,
		bpf.PhNoIdentity: c.NoIdentity, bpf.PhSignalDepth: c.SignalDepth, bpf.PhSignalLost: c.SignalLost,
		bpf.PhNoProgram: c.NoProgram,
		bpf.PhRingFull:  c.RingFull, bpf.PhReadFault: c.ReadFault,
	} {
		resp.Counters[ph.LimitName(limit)] = n
	}
	resp.Counters["calls the kernel did not show"] = c.Recursion
	return resp, nil
}

// profileError gives an error of the analysis its code.
func profileError(err error) error {
	switch {
	case errors.Is(err, sequence.ErrNoProfile):
		return status.Error(codes.NotFound, err.Error())
	case errors.Is(err, sequence.ErrLimit):
		return status.Error(codes.ResourceExhausted, err.Error())
	default:
		return status.Error(codes.Internal, err.Error())
	}
}

// executable returns the one of a VM that a request names.
func (v *analysed) executable(name []byte) (ph.Executable, error) {
	exe := ph.NewExecutable(v.vm, string(name))
	if known := exe.Name(); known != string(name) && known != "["+string(name)+"]" {
		return exe, status.Errorf(codes.InvalidArgument, "executable %q: no guest has one of that name", name)
	}
	return exe, nil
}

// GetProfile implements api.FrailServer.
func (s *server) GetProfile(_ context.Context, req *api.ProfileName) (*api.ProfileFile, error) {
	v, err := s.named(req.GetDomain())
	if err != nil {
		return nil, err
	}
	exe, err := v.executable(req.GetExecutable())
	if err != nil {
		return nil, err
	}
	seq := s.manager.host.sequences
	seq.mu.Lock()
	defer seq.mu.Unlock()
	f, err := seq.file(v, exe)
	if err != nil {
		return nil, profileError(err)
	}
	text, err := profile.Encode(f)
	if err != nil {
		return nil, profileError(err)
	}
	return &api.ProfileFile{File: text}, nil
}

// PutProfile implements api.FrailServer.
func (s *server) PutProfile(_ context.Context, req *api.PutProfileRequest) (*api.PutProfileResponse, error) {
	v, err := s.named(req.GetDomain())
	if err != nil {
		return nil, err
	}
	f, err := profile.Decode(bytes.NewReader(req.GetFile()))
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	name := []byte(f.Name)
	if len(req.GetExecutable()) > 0 {
		name = req.GetExecutable()
	}
	exe, err := v.executable(name)
	if err != nil {
		return nil, err
	}
	f.NormalTime = monotonic(f.NormalAt)
	seq := s.manager.host.sequences
	seq.mu.Lock()
	defer seq.mu.Unlock()
	if err := seq.analyzer.Load(exe, &f.Profile); err != nil {
		return nil, profileError(err)
	}
	seq.describe(v)
	delete(v.saved, exe.Name())
	seq.save(v)
	return &api.PutProfileResponse{}, nil
}

// ChangeProfile implements api.FrailServer.
func (s *server) ChangeProfile(_ context.Context, req *api.ChangeProfileRequest) (*api.ChangeProfileResponse, error) {
	v, err := s.named(req.GetProfile().GetDomain())
	if err != nil {
		return nil, err
	}
	exe, err := v.executable(req.GetProfile().GetExecutable())
	if err != nil {
		return nil, err
	}
	seq := s.manager.host.sequences
	seq.mu.Lock()
	defer seq.mu.Unlock()
	switch req.GetChange() {
	case api.ProfileChange_PROFILE_CHANGE_NORMALIZE:
		err = seq.analyzer.Control(exe, ph.Normalize)
	case api.ProfileChange_PROFILE_CHANGE_TOLERIZE:
		err = seq.analyzer.Control(exe, ph.Tolerize)
	case api.ProfileChange_PROFILE_CHANGE_SENSITIZE:
		err = seq.analyzer.Control(exe, ph.Sensitize)
	case api.ProfileChange_PROFILE_CHANGE_DELETE:
		err = errors.Join(seq.analyzer.Delete(exe), seq.store.Delete(v.UUID, exe.Name()))
		delete(v.saved, exe.Name())
		seq.describe(v)
	default:
		return nil, status.Errorf(codes.InvalidArgument, "unknown change %d", req.GetChange())
	}
	if err != nil {
		return nil, profileError(err)
	}
	seq.save(v)
	return &api.ChangeProfileResponse{}, nil
}

// Threads implements api.FrailServer.
func (s *server) Threads(_ context.Context, req *api.ThreadsRequest) (*api.ThreadsResponse, error) {
	vm, err := s.selected(req.GetDomain())
	if err != nil {
		return nil, err
	}
	seq := s.manager.host.sequences
	seq.mu.Lock()
	defer seq.mu.Unlock()
	resp := &api.ThreadsResponse{Nano: monotonicNow()}
	if seq.analyzer == nil {
		return resp, nil
	}
	infos, err := seq.list(0)
	if err != nil {
		return nil, profileError(err)
	}
	states := make(map[uint32]*ph.Profile, len(infos))
	for i := range infos {
		states[infos[i].Index] = &infos[i].Profile
	}
	threads, err := seq.analyzer.Threads()
	if err != nil {
		return nil, profileError(err)
	}
	for _, t := range threads {
		v := seq.vms[t.VM]
		if v == nil || vm != 0 && t.VM != vm {
			continue
		}
		m := &api.Thread{
			Name: v.Name, Pid: t.PID, Tgid: t.TGID, Comm: []byte(t.Comm), Calls: t.Calls,
			Lfc: uint32(t.LFC), MaxLfc: uint32(t.MaxLFC),
		}
		if p := states[t.Profile]; p != nil {
			m.Normal, m.Frozen = p.Normal, p.Frozen
		}
		resp.Threads = append(resp.Threads, m)
	}
	return resp, nil
}

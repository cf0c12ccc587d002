// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"frail/api"
	"frail/bpf"
	"frail/cmd/internal/guest"
	"frail/tracer"
	"frail/tracer/format"
	"frail/tracer/syscalls/decode"
)

// end is why a trace ends in order: the reason its summary gives.
type end string

func (e end) Error() string { return string(e) }

const (
	endStopped  = end("stopped")
	endLimit    = end("limit")
	endDisarmed = end("disabled")
	endRearmed  = end("armed again")
	endShutOff  = end("shut off")
	endDaemon   = end("daemon stops")
)

type traceStream = grpc.BidiStreamingServer[api.TraceRequest, api.TraceResponse]

// Trace implements api.FrailServer.
func (s *server) Trace(stream traceStream) error {
	req, err := stream.Recv()
	if err != nil {
		return err
	}
	start := req.GetStart()
	if start == nil {
		return status.Error(codes.InvalidArgument, "the first message of a trace is not its start")
	}
	d, err := s.domain(start.GetDomain())
	if err != nil {
		return err
	}
	filter, err := guest.Filter(start)
	if err != nil {
		return status.Error(codes.InvalidArgument, err.Error())
	}
	if int(start.GetData()) > decode.MaxData {
		return status.Errorf(codes.InvalidArgument, "%d bytes of each string: at most %d", start.GetData(), decode.MaxData)
	}
	select {
	case s.sessions <- struct{}{}:
		defer func() { <-s.sessions }()
	default:
		return status.Errorf(codes.ResourceExhausted, "%d traces run already, the limit of trace.max_sessions", cap(s.sessions))
	}

	ctx, cancel := context.WithCancelCause(stream.Context())
	defer cancel(nil)
	defer context.AfterFunc(s.stopping, func() { cancel(endDaemon) })()
	go func() {
		// A client may have nothing more to say: only when its connection is gone is
		// the context done.
		req, err := stream.Recv()
		switch {
		case err != nil:
		case req.GetStop() != nil:
			cancel(endStopped)
		default:
			cancel(status.Error(codes.InvalidArgument, "a message of a running trace is not its stop"))
		}
	}()
	return (&session{
		domain: d,
		start:  start,
		stream: stream,
		cancel: cancel,

		stopping: s.stopping,
	}).run(ctx, tracer.Options{
		Filter:    filter,
		Processes: start.GetIdentities(),
		Data:      start.GetData() > 0,
		RingBytes: s.manager.host.cfg.Load().Trace.RingBytes,
	})
}

// session is one Trace call. It is the sink of its tracer.
type session struct {
	domain *domain
	start  *api.TraceStart
	stream traceStream
	cancel context.CancelCauseFunc

	// stopping is done when the daemon stops.
	stopping context.Context

	batch api.Batch
	taken uint64 // events, the batch's too
}

// run traces until ctx ends or the domain's VM is gone.
func (s *session) run(ctx context.Context, opts tracer.Options) error {
	snap, changed := s.domain.snapshot()
	if snap.vm == nil && !s.start.GetWait() {
		return status.Error(codes.FailedPrecondition, notTraced(snap))
	}
	t, err := tracer.New(opts)
	if err != nil {
		return status.Errorf(codes.FailedPrecondition, "cannot trace: %v", err)
	}
	defer s.domain.host.traces.begin(snap.UUID, t)()
	defer t.Close()
	defer s.domain.readers.remove(s)
	if err := t.Attach(); err != nil {
		return status.Errorf(codes.FailedPrecondition, "cannot trace: %v", err)
	}
	add := func() error {
		if err := t.AddVM(snap.vm.ID()); err != nil {
			return status.Errorf(codes.Internal, "cannot trace: %v", err)
		}
		if err := s.domain.readers.add(snap.vm, s, s.start.GetData()); err != nil {
			return status.Errorf(codes.Internal, "cannot trace: %v", err)
		}
		if opts.Processes || opts.Filter.Describes() {
			// Others may have been told already. Disarmed: follow ends the trace.
			_ = snap.vm.Describe()
		}
		return nil
	}
	var vm uint32
	if snap.vm != nil {
		vm = snap.vm.ID()
		if err := add(); err != nil {
			return err
		}
	}
	offset, err := format.WallOffset()
	if err != nil {
		return status.Errorf(codes.Internal, "cannot trace: %v", err)
	}
	if err := s.send(&api.TraceResponse{Record: &api.TraceResponse_Started{Started: &api.TraceStarted{
		Uuid: snap.UUID, Name: snap.Name, Vm: vm, RealtimeOffset: int64(offset),
	}}}); err != nil {
		return err
	}
	if vm == 0 {
		for snap.vm == nil {
			if snap.gone {
				return s.finish(t, endShutOff)
			}
			select {
			case <-changed:
				snap, changed = s.domain.snapshot()
			case <-ctx.Done():
				return s.finish(t, context.Cause(ctx))
			}
		}
		vm = snap.vm.ID()
		if err := add(); err != nil {
			return err
		}
		if err := s.send(&api.TraceResponse{Record: &api.TraceResponse_Armed{Armed: &api.TraceArmed{Vm: vm}}}); err != nil {
			return err
		}
	}

	if st, err := snap.vm.Status(); err == nil { // else it is disarmed, and follow ends the trace
		s.domain.observe(st)
		if err := s.begin(st, offset); err != nil {
			return s.finish(t, err)
		}
	}

	go s.follow(ctx, vm, snap.PID, changed)
	err = t.Run(ctx, s)
	if err == nil {
		err = context.Cause(ctx)
	}
	return s.finish(t, err)
}

// notTraced says why a domain has no events and what to do about it.
func notTraced(snap snapshot) string {
	switch {
	case snap.state == api.State_STATE_ERROR:
		return fmt.Sprintf("domain '%s' is not traced: %s", snap.Name, snap.reason)
	case !snap.Active:
		return fmt.Sprintf("domain '%s' is shut off: virsh start it, or wait for it with --wait", snap.Name)
	case snap.state == api.State_STATE_ARMING:
		return fmt.Sprintf("domain '%s' is not traced yet: wait for it with --wait", snap.Name)
	default:
		return fmt.Sprintf("domain '%s' is not traced: frail enable it, with --live to start now", snap.Name)
	}
}

// begin tells of what is not seen when the trace begins. offset makes the time of day of an
// event's time.
func (s *session) begin(st bpf.Status, offset time.Duration) error {
	if ev := guest.CoverageEvent(st, offset); ev != nil {
		return s.Event(ev)
	}
	return nil
}

// follow ends the trace when the domain's VM, which process pid runs, is no longer the one
// that is traced.
func (s *session) follow(ctx context.Context, vm uint32, pid int, changed <-chan struct{}) {
	for {
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
		var snap snapshot
		snap, changed = s.domain.snapshot()
		if snap.vm == nil || snap.vm.ID() != vm {
			s.cancel(s.disarmed(snap, pid))
			return
		}
	}
}

// disarmed says why the domain's VM, which process pid ran, is traced no more.
func (s *session) disarmed(snap snapshot, pid int) end {
	switch {
	case s.stopping.Err() != nil:
		return endDaemon // it disarms all
	case !snap.Active || snap.gone || snap.vm != nil && snap.PID != pid:
		return endShutOff
	case snap.vm != nil:
		return endRearmed
	default:
		return endDisarmed
	}
}

// finish closes the stream: with a summary when the trace ended in order.
func (s *session) finish(t *tracer.Tracer, cause error) error {
	if err := s.stream.Context().Err(); err != nil {
		return status.FromContextError(err).Err()
	}
	reason, ok := errors.AsType[end](cause)
	if !ok {
		return cause
	}
	if err := s.sendBatch(); err != nil {
		return err
	}
	sum, err := t.Summary()
	if err != nil {
		return status.Errorf(codes.Internal, "summarize trace: %v", err)
	}
	return s.send(&api.TraceResponse{Record: &api.TraceResponse_Summary{Summary: &api.Summary{
		Events:   s.taken,
		Lost:     lossCounts(sum.Lost),
		Reason:   string(reason),
		Unjudged: sum.Unjudged,
	}}})
}

func (s *session) send(resp *api.TraceResponse) error { return s.stream.Send(resp) }

// full says whether as many events were taken as the client wants. The event that makes it
// so is taken without an error, or the tracer would not count it as delivered: what comes
// next, Flush at the latest, ends the trace.
func (s *session) full() bool { return s.start.GetLimit() != 0 && s.taken >= s.start.GetLimit() }

// Event implements tracer.Sink.
func (s *session) Event(ev *bpf.Event) error {
	if s.full() {
		return endLimit
	}
	s.batch.Add(ev)
	s.taken++
	if s.batch.Full() {
		return s.sendBatch()
	}
	return nil
}

// Data implements tracer.DataSink.
func (s *session) Data(d *bpf.Data) error {
	if s.full() {
		return endLimit
	}
	s.batch.AddData(d)
	s.taken++
	if s.batch.Full() {
		return s.sendBatch()
	}
	return nil
}

// Process implements tracer.ProcessSink.
func (s *session) Process(p *bpf.Process) error {
	if err := s.Flush(); err != nil {
		return err
	}
	return s.send(api.PackIdentity(p))
}

// Lost implements tracer.Sink.
func (s *session) Lost(l tracer.Lost) error {
	if err := s.Flush(); err != nil {
		return err
	}
	return s.send(&api.TraceResponse{Record: &api.TraceResponse_Lost{Lost: &api.Lost{
		Time:   l.Time,
		Counts: lossCounts(l.Losses),
	}}})
}

// Flush implements tracer.Sink.
func (s *session) Flush() error {
	if err := s.sendBatch(); err != nil {
		return err
	}
	if s.full() {
		return endLimit
	}
	return nil
}

// sendBatch sends the events that were taken and not sent.
func (s *session) sendBatch() error {
	if s.batch.Len() == 0 {
		return nil
	}
	return s.send(s.batch.Take())
}

func lossCounts(l tracer.Losses) *api.LossCounts {
	return &api.LossCounts{RingFull: l.RingFull, ReadFault: l.ReadFault, Recursion: l.Recursion}
}

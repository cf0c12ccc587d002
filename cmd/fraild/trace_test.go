// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"net"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"frail/api"
	"frail/bpf"
	"frail/cmd/internal/config"
	"frail/hooks"
	"frail/kmod/device"
	"frail/tracer"
)

// sinkServer drives a session's sink as a tracer does. The tracer is real, but nothing
// attaches it: events come from feed.
type sinkServer struct {
	api.UnimplementedFrailServer
	feed func(*session) error
}

func (s *sinkServer) Trace(stream traceStream) error {
	req, err := stream.Recv()
	if err != nil {
		return err
	}
	t, err := tracer.New(tracer.Options{RingBytes: config.MinRingBytes})
	if err != nil {
		return err
	}
	defer t.Close()
	sess := &session{start: req.GetStart(), stream: stream}
	return sess.finish(t, s.feed(sess))
}

// collect returns all messages of a trace that ended without an error.
func collect(t *testing.T, start *api.TraceStart, feed func(*session) error) []*api.TraceResponse {
	t.Helper()
	path := filepath.Join(t.TempDir(), "frail.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer()
	api.RegisterFrailServer(g, &sinkServer{feed: feed})
	go g.Serve(l)
	defer g.Stop()

	conn, err := grpc.NewClient("unix://"+path, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	stream, err := api.NewFrailClient(conn).Trace(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&api.TraceRequest{Request: &api.TraceRequest_Start{Start: start}}); err != nil {
		t.Fatal(err)
	}
	var all []*api.TraceResponse
	for {
		resp, err := stream.Recv()
		if err != nil {
			t.Fatalf("after %d messages: %v", len(all), err)
		}
		all = append(all, resp)
		if resp.GetSummary() != nil {
			return all
		}
	}
}

func TestStream(t *testing.T) {
	// More than two full batches, with a loss in the middle of the second.
	const total, lossAt = 2*api.MaxEvents + 100, api.MaxEvents + 17
	all := collect(t, &api.TraceStart{}, func(s *session) error {
		for i := range total {
			if i == lossAt {
				if err := s.Lost(tracer.Lost{Time: 42, Losses: tracer.Losses{RingFull: 5, Recursion: 2}}); err != nil {
					return err
				}
			}
			if err := s.Event(&bpf.Event{Kind: bpf.EventEnter, Nr: int64(i)}); err != nil {
				return err
			}
		}
		return endStopped
	})
	next := int64(0)
	for _, resp := range all {
		switch rec := resp.GetRecord().(type) {
		case *api.TraceResponse_Events:
			for _, e := range rec.Events.GetEvents() {
				if e.GetNr() != next {
					t.Fatalf("event %d comes in place of %d", e.GetNr(), next)
				}
				next++
			}
		case *api.TraceResponse_Lost:
			if next != lossAt {
				t.Errorf("the loss comes after %d events, not %d", next, lossAt)
			}
			if l := rec.Lost; l.GetTime() != 42 || l.GetCounts().GetRingFull() != 5 || l.GetCounts().GetRecursion() != 2 {
				t.Errorf("the loss is %v", l)
			}
		case *api.TraceResponse_Summary:
			if s := rec.Summary; s.GetEvents() != total || s.GetReason() != "stopped" {
				t.Errorf("the summary is %v", s)
			}
		}
	}
	if next != total {
		t.Errorf("%d events were delivered of %d", next, total)
	}
}

// A trace of a guest that hides calls begins with saying so.
func TestTraceBeginsWithWhatIsNotSeen(t *testing.T) {
	for _, blind := range []uint32{0, bpf.EntryInt80} {
		var want []bpf.Event
		if blind != 0 {
			want = append(want, bpf.Event{Vm: 7, Kind: bpf.EventCoverage, Nr: -1, Args: [6]uint64{uint64(bpf.EntrySyscall), uint64(blind)}})
		}
		want = append(want, bpf.Event{Vm: 7, Kind: bpf.EventEnter})
		all := collect(t, &api.TraceStart{}, func(s *session) error {
			if err := s.begin(bpf.Status{Vm: 7, Covered: bpf.EntrySyscall, Blind: blind}, 0); err != nil {
				return err
			}
			if err := s.Event(&bpf.Event{Vm: 7, Kind: bpf.EventEnter}); err != nil {
				return err
			}
			return endStopped
		})
		var got []bpf.Event
		for _, e := range all[0].GetEvents().GetEvents() {
			var ev bpf.Event
			e.Unpack(&ev)
			if ev.Kind == bpf.EventCoverage {
				if since := time.Since(time.Unix(0, int64(ev.Time))); since < 0 || since > time.Minute {
					t.Errorf("the record is %s old", since)
				}
				ev.Time = 0
			}
			got = append(got, ev)
		}
		if !slices.Equal(got, want) {
			t.Errorf("blind %d: %+v, want %+v", blind, got, want)
		}
	}
}

// A trace says why the VM it is of is traced no more.
func TestTraceEnds(t *testing.T) {
	running := hooks.State{Active: true, PID: 100}
	other := hooks.State{Active: true, PID: 101}
	for _, tc := range []struct {
		name     string
		snap     snapshot
		stopping bool
		want     end
	}{
		{"disabled", snapshot{State: running}, false, endDisarmed},
		{"other exits", snapshot{State: running, vm: new(device.VM)}, false, endRearmed},
		{"started again", snapshot{State: other, vm: new(device.VM)}, false, endShutOff},
		{"shut off", snapshot{}, false, endShutOff},
		{"undefined", snapshot{State: running, gone: true}, false, endShutOff},
		{"fraild stops", snapshot{State: running, gone: true}, true, endDaemon},
	} {
		stopping, stop := context.WithCancel(t.Context())
		if tc.stopping {
			stop()
		}
		if got := (&session{stopping: stopping}).disarmed(tc.snap, 100); got != tc.want {
			t.Errorf("%s: the trace ends by %q, want %q", tc.name, got, tc.want)
		}
		stop()
	}
}

// A limit ends the trace after as many events, each of them taken without an error: a tracer
// counts no other as delivered. It ends whether or not there are more.
func TestLimit(t *testing.T) {
	for _, limit := range []uint64{1, api.MaxEvents, api.MaxEvents + 1} {
		var delivered uint64
		event := func(s *session) error {
			err := s.Event(&bpf.Event{Kind: bpf.EventExit})
			if err == nil {
				delivered++
			}
			return err
		}
		all := collect(t, &api.TraceStart{Limit: limit}, func(s *session) error {
			for {
				if err := event(s); err != nil {
					return err
				}
			}
		})
		if delivered != limit {
			t.Errorf("limit %d: %d events delivered", limit, delivered)
		}
		for name, next := range map[string]func(*session) error{
			"flush":   (*session).Flush,
			"loss":    func(s *session) error { return s.Lost(tracer.Lost{Losses: tracer.Losses{RingFull: 1}}) },
			"process": func(s *session) error { return s.Process(&bpf.Process{}) },
		} {
			last := collect(t, &api.TraceStart{Limit: limit}, func(s *session) error {
				for range limit {
					if err := event(s); err != nil {
						return err
					}
				}
				if err := next(s); err != nil {
					return err
				}
				return endStopped
			})
			if sum := last[len(last)-1].GetSummary(); sum.GetReason() != "limit" || sum.GetEvents() != limit {
				t.Errorf("limit %d, then %s: summary %v", limit, name, sum)
			}
		}
		var n uint64
		for _, resp := range all {
			n += uint64(len(resp.GetEvents().GetEvents()))
		}
		sum := all[len(all)-1].GetSummary()
		if n != limit || sum.GetEvents() != limit || sum.GetReason() != "limit" {
			t.Errorf("limit %d: %d events, summary %v", limit, n, sum)
		}
	}
}

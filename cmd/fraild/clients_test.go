// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"io"
	"net"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"frail/api"
	"frail/bpf"
	"frail/bpf/bpftest"
	"frail/tracer"
)

// tracesServer serves traces of VM 7 as fraild does, but for attaching them: a test runs their
// programs.
type tracesServer struct {
	api.UnimplementedFrailServer
	stop context.Context

	mu      sync.Mutex
	tracers []*tracer.Tracer
	started chan struct{}
}

func (s *tracesServer) Trace(stream traceStream) error {
	req, err := stream.Recv()
	if err != nil {
		return err
	}
	t, err := tracer.New(tracer.Options{VMs: []uint32{7}, RingBytes: 1 << 20})
	if err != nil {
		return err
	}
	defer t.Close()
	s.mu.Lock()
	s.tracers = append(s.tracers, t)
	s.mu.Unlock()
	s.started <- struct{}{}
	ctx, cancel := context.WithCancelCause(stream.Context())
	defer cancel(nil)
	defer context.AfterFunc(s.stop, func() { cancel(endStopped) })()
	sess := &session{start: req.GetStart(), stream: stream, cancel: cancel}
	if err = t.Run(ctx, sess); err == nil {
		err = context.Cause(ctx)
	}
	return sess.finish(t, err)
}

// Of 100 clients that trace at once half read nothing. The others lose nothing, what the first
// ones lose is counted, and no event takes the guest longer because of them.
func TestClientsThatDoNotRead(t *testing.T) {
	const clients, events = 100, 10_000
	stop, end := context.WithCancel(t.Context())
	defer end()
	s := &tracesServer{stop: stop, started: make(chan struct{}, clients)}
	path := filepath.Join(t.TempDir(), "frail.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer()
	api.RegisterFrailServer(g, s)
	go g.Serve(l)
	defer g.Stop()

	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	var got [clients]struct {
		events atomic.Uint64
		sum    *api.Summary
		err    error
	}
	var readers sync.WaitGroup
	for i := range clients {
		conn, err := grpc.NewClient("unix://"+path, grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		stream, err := api.NewFrailClient(conn).Trace(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if err := stream.Send(&api.TraceRequest{Request: &api.TraceRequest_Start{Start: &api.TraceStart{}}}); err != nil {
			t.Fatal(err)
		}
		// One after the other: tracer i is client i's.
		select {
		case <-s.started:
		case <-ctx.Done():
			t.Fatalf("client %d does not trace", i)
		}
		if i%2 == 1 {
			continue // it reads nothing
		}
		readers.Go(func() {
			for {
				resp, err := stream.Recv()
				if err != nil {
					if !errors.Is(err, io.EOF) {
						got[i].err = err
					}
					return
				}
				got[i].events.Add(uint64(len(resp.GetEvents().GetEvents())))
				if sum := resp.GetSummary(); sum != nil {
					got[i].sum = sum
				}
			}
		})
	}

	k := bpftest.New(t, 1)
	*k.At(0) = bpf.Event{Vm: 7, Kind: bpf.EventEnter, Insn: bpf.InsnSyscall64, Nr: 39}
	var took [2]time.Duration // readers' and others'
	for n := range uint64(events) {
		k.At(0).Nr = int64(n)
		for i, tr := range s.tracers {
			begun := time.Now()
			k.Fire(t, tr.EnterProgram(), 0)
			took[i%2] += time.Since(begun)
		}
		// A guest goes only as fast as the readers of this machine can.
		for i := 0; n%1000 == 999 && i < clients; i += 2 {
			for got[i].events.Load()+3000 < n && ctx.Err() == nil {
				time.Sleep(time.Millisecond)
			}
		}
	}
	end()
	readers.Wait()
	for i := 0; i < clients; i += 2 {
		if c := &got[i]; c.err != nil || c.events.Load() != events || c.sum.GetEvents() != events || c.sum.GetLost().GetRingFull() != 0 {
			t.Errorf("client %d got %d of %d events, %v, %v", i, c.events.Load(), events, c.sum, c.err)
		}
	}
	for i := 1; i < clients; i += 2 {
		sum, err := s.tracers[i].Summary()
		if err != nil {
			t.Fatal(err)
		}
		if sum.Lost.RingFull == 0 {
			t.Errorf("client %d reads nothing and lost nothing: %+v", i, sum)
		}
	}
	t.Logf("%d events for each: %s for a client that reads, %s for one that does not", events,
		took[0]/(events*clients/2), took[1]/(events*clients/2))
	if took[1] > 2*took[0] {
		t.Errorf("an event takes %s for clients that read and %s for those that do not", took[0], took[1])
	}
}

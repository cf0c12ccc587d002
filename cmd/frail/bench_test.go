// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"io"
	"testing"

	"google.golang.org/grpc"

	"frail/api"
	"frail/bpf"
)

// stream is fraild's side of a trace, without the socket.
type stream struct {
	grpc.BidiStreamingClient[api.TraceRequest, api.TraceResponse]
	messages []*api.TraceResponse
}

func (s *stream) Send(*api.TraceRequest) error { return nil }
func (s *stream) CloseSend() error             { return nil }

func (s *stream) Recv() (*api.TraceResponse, error) {
	m := s.messages[0]
	s.messages = s.messages[1:]
	return m, nil
}

type streamClient struct {
	api.FrailClient
	s *stream
}

func (c *streamClient) Trace(context.Context, ...grpc.CallOption) (grpc.BidiStreamingClient[api.TraceRequest, api.TraceResponse], error) {
	return c.s, nil
}

// BenchmarkStream measures frail trace --json on one core from the messages on: fraild's
// side and the socket are not in it.
func BenchmarkStream(b *testing.B) {
	const messages = 4000
	var batch api.Batch
	for i := 0; !batch.Full(); i++ {
		batch.Add(&bpf.Event{
			Time: uint64(i) * 1000, Vm: 1, Kind: bpf.EventEnter + uint16(i%2), Insn: bpf.InsnSyscall64, Flags: 3, Nr: int64(i % 300),
			Args: [6]uint64{3, 0x7ffd00001000, 4096}, Ip: 0x7f0000001000, Sp: 0x7ffd00000000, Cr3: 1 << 20, Task: 0xffff888000001000,
			Pid: 10, Tgid: 10, Comm: [16]uint8{'s', 'h'},
		})
	}
	m := batch.Take()
	all := []*api.TraceResponse{{Record: &api.TraceResponse_Started{Started: &api.TraceStarted{Vm: 1}}}}
	for range messages {
		all = append(all, m)
	}
	all = append(all, &api.TraceResponse{Record: &api.TraceResponse_Summary{Summary: &api.Summary{Reason: "stopped"}}})
	for b.Loop() {
		t := &traceOptions{json: true}
		if err := t.run(b.Context(), &streamClient{s: &stream{messages: all}}, "vm", io.Discard, func(string) {}); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.N*messages*api.MaxEvents)/b.Elapsed().Seconds()/1e6, "Mevents/s")
}

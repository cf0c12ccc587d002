// SPDX-License-Identifier: Apache-2.0

package api_test

import (
	"testing"

	"google.golang.org/protobuf/proto"

	"frail/api"
	"frail/bpf"
)

func comm(s string) (c [bpf.CommLen]byte) {
	copy(c[:], s)
	return c
}

// An event is the same after its way through the wire format.
func TestEventRoundTrip(t *testing.T) {
	events := []bpf.Event{
		{
			Time: 1<<63 + 5, Vm: 3, Vcpu: 7, Kind: bpf.EventEnter, Insn: bpf.InsnSyscall64,
			Flags: bpf.EventIdentity | bpf.EventNr, Nr: 257, Args: [6]uint64{1<<64 - 100, 2, 3, 4, 5, 1 << 63},
			Ip: 0x7fff_dead_beef, Sp: 0x7fff_0000_1000, Cr3: 0x1234_5801, Task: 0xffff_9000_0000_4000, Who: 5,
			Pid: 1234, Tgid: 1200, Comm: comm("cat"),
		},
		{
			Time: 6, Vm: 3, Vcpu: 1, Kind: bpf.EventExit, Insn: bpf.InsnSysret32,
			Nr: -1, Ret: -2, Ip: 1, Sp: 2, Cr3: 3,
		},
		{
			Time: 7, Vm: 3, Vcpu: 1, Kind: bpf.EventExit, Insn: bpf.InsnInt80In64,
			Flags: bpf.EventNr | bpf.EventRet | bpf.EventDeferred, Nr: 20, Ret: 9,
		},
		{Time: 8, Vm: 3, Vcpu: 1, Kind: bpf.EventCoverage, Nr: -1, Args: [6]uint64{1, 6}},
		// A name that is no text and has no closing NUL.
		{Kind: bpf.EventEnter, Insn: bpf.InsnSyscall32, Flags: bpf.EventIdentity, Pid: -1, Comm: comm("\xff\x1b[31m\x80\x81\x82\x83\x84\x85\x86\x87\x88\x89\x8a")},
	}
	var b api.Batch
	for i := range events {
		b.Add(&events[i])
	}
	if b.Len() != len(events) || b.Full() {
		t.Fatalf("batch of %d events has %d, full: %t", len(events), b.Len(), b.Full())
	}
	wire, err := proto.Marshal(b.Take())
	if err != nil {
		t.Fatal(err)
	}
	if b.Len() != 0 {
		t.Errorf("batch has %d events after it was taken", b.Len())
	}
	resp := new(api.TraceResponse)
	if err := proto.Unmarshal(wire, resp); err != nil {
		t.Fatal(err)
	}
	got := resp.GetEvents().GetEvents()
	if len(got) != len(events) {
		t.Fatalf("message has %d events", len(got))
	}
	for i, e := range got {
		ev := bpf.Event{Time: 99, Args: [6]uint64{9, 9, 9, 9, 9, 9}, Comm: comm("left over")}
		if e.Unpack(&ev); ev != events[i] {
			t.Errorf("event %d is\n%+v, was\n%+v", i, ev, events[i])
		}
	}
}

// So is what its arguments point to.
func TestDataRoundTrip(t *testing.T) {
	var data bpf.Data
	data.Head = bpf.Event{Time: 5, Vm: 3, Kind: bpf.EventEnter, Nr: 59, Flags: bpf.EventNr | bpf.EventHasData, Args: [6]uint64{1, 2}}
	data.Piece[0] = bpf.Piece{Arg: 0, Kind: bpf.ReadString, Flags: bpf.PieceCut, Len: 3}
	data.Piece[1] = bpf.Piece{Arg: 1, Kind: bpf.ReadStrings, Flags: bpf.PieceFault, Len: 5}
	data.Len = uint32(copy(data.Bytes[:], "abcx\x00\x00y\xff"))
	plain := bpf.Event{Time: 6, Kind: bpf.EventEnter}
	var b api.Batch
	b.AddData(&data)
	b.Add(&plain)
	wire, err := proto.Marshal(b.Take())
	if err != nil {
		t.Fatal(err)
	}
	resp := new(api.TraceResponse)
	if err := proto.Unmarshal(wire, resp); err != nil {
		t.Fatal(err)
	}
	got := resp.GetEvents().GetEvents()
	var d bpf.Data
	if got[0].UnpackData(&d); d != data {
		t.Errorf("%+v, was %+v", d, data)
	}
	if len(got[1].GetData()) != 0 {
		t.Errorf("an event without data has %v", got[1].GetData())
	}
	// Who wants no data gets an event without.
	var ev bpf.Event
	if got[0].Unpack(&ev); ev.Flags&bpf.EventHasData != 0 || ev.Nr != 59 {
		t.Errorf("%+v", ev)
	}
}

// A message of another sender cannot write beyond what there is room for.
func TestDataFromAnywhere(t *testing.T) {
	e := &api.Event{}
	for range 10 {
		e.Data = append(e.Data, &api.Piece{Arg: 1 << 31, Kind: 1 << 31, Flags: 1 << 31, Data: make([]byte, 700)})
	}
	var d bpf.Data
	e.UnpackData(&d)
	n := 0
	d.Pieces(func(_ bpf.Piece, b []byte) { n += len(b) })
	if n > len(d.Bytes) || int(d.Len) > len(d.Bytes) {
		t.Errorf("%d bytes, length %d", n, d.Len)
	}
}

// A message of another sender cannot write beyond an event.
func TestUnpackHostile(t *testing.T) {
	e := &api.Event{Args: make([]uint64, 100), Comm: make([]byte, 1000)}
	e.Args[5], e.Args[6], e.Comm[15], e.Comm[16] = 1, 2, 'x', 'y'
	var ev bpf.Event
	e.Unpack(&ev)
	if ev.Args[5] != 1 || ev.Comm[15] != 'x' {
		t.Errorf("event is %+v", ev)
	}
}

func TestBatchAddDoesNotAllocate(t *testing.T) {
	b := new(api.Batch)
	ev := &bpf.Event{Kind: bpf.EventEnter}
	if n := testing.AllocsPerRun(api.MaxEvents-1, func() { b.Add(ev) }); n != 0 {
		t.Errorf("%v allocations per event", n)
	}
	// What a batch costs does not grow with its events.
	if !b.Full() {
		t.Fatalf("batch has %d events", b.Len())
	}
	full := testing.AllocsPerRun(100, func() {
		for !b.Full() {
			b.Add(ev)
		}
		b.Take()
	})
	if full > 8 {
		t.Errorf("%v allocations for a batch of %d events", full, api.MaxEvents)
	}
}

func TestIdentity(t *testing.T) {
	want := bpf.Process{
		Head:  bpf.Event{Time: 1, Vm: 2, Kind: bpf.EventProcess, Flags: bpf.EventIdentity, Cr3: 15, Task: 3, Who: 4, Pid: 5, Tgid: 6},
		Start: 7, Known: 8, Ppid: 9, NsPid: 10, Uid: 11, Gid: 12, Euid: 13, Egid: 14,
	}
	copy(want.Head.Comm[:], "sh")
	copy(want.Exe[:], "/bin/\xff")
	copy(want.Cgroup[:], "/a")
	var got bpf.Process
	api.PackIdentity(&want).GetIdentity().Unpack(&got)
	if got != want {
		t.Errorf("got %+v\nwant %+v", got, want)
	}
}

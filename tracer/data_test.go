// SPDX-License-Identifier: Apache-2.0

package tracer

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"frail/bpf"
	"frail/bpf/bpftest"
)

// dataRecorder takes events with what their arguments point to.
type dataRecorder struct {
	*recorder
	got []string
}

func (r *dataRecorder) Data(d *bpf.Data) error {
	d.Pieces(func(p bpf.Piece, b []byte) {
		r.got = append(r.got, fmt.Sprintf("kind %d nr %d arg %d flags %d %d %.3s", d.Head.Kind, d.Head.Nr, p.Arg, p.Flags, len(b), b))
	})
	return nil
}

func (r *dataRecorder) Event(ev *bpf.Event) error {
	r.got = append(r.got, fmt.Sprintf("kind %d nr %d flags %#x", ev.Kind, ev.Nr, ev.Flags&bpf.EventHasData))
	return nil
}

func (r *dataRecorder) Lost(l Lost) error {
	r.got = append(r.got, fmt.Sprintf("%d lost", l.Total()))
	return nil
}

// putData makes event 0 one with n bytes that argument 1 points to.
func putData(k *bpftest.Events, ev bpf.Event, n int) {
	d := k.Data(0)
	*d = bpf.Data{Head: ev, Len: uint32(n)}
	d.Head.Flags |= bpf.EventHasData
	d.Piece[0] = bpf.Piece{Arg: 1, Kind: bpf.ReadCounted, Flags: bpf.PieceCut, Len: uint32(n)}
	copy(d.Bytes[:], bytes.Repeat([]byte("abc"), n))
	clear(d.Bytes[n:])
}

func delivered(t *testing.T, tr *Tracer) []string {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	r := &dataRecorder{recorder: newRecorder()}
	must(t, tr.Run(ctx, r))
	return r.got
}

func TestData(t *testing.T) {
	k := bpftest.New(t, 8)
	for _, n := range []int{0, 1, bpf.DataSmall, bpf.DataSmall + 1, bpf.DataMedium, bpf.DataMedium + 1, len(bpf.Data{}.Bytes)} {
		for _, lost := range []uint64{0, 3} {
			tr := newTracer(t, Options{VMs: []uint32{7}, Data: true})
			tr.pending[bpf.LossRingFull].Store(lost)
			putData(k, enter(1, "one"), n)
			fire(t, tr, k, 0)
			var want []string
			if lost > 0 {
				want = append(want, "3 lost")
			}
			want = append(want, fmt.Sprintf("kind 1 nr 1 arg 1 flags 1 %d %.3s", n, k.Data(0).Bytes[:n]))
			if got := delivered(t, tr); !slices.Equal(got, want) {
				t.Errorf("%d bytes, %d events lost: %q, want %q", n, lost, got, want)
			}
		}
	}
}

// Who does not ask for data gets the event as it is without.
func TestDataIsNotWanted(t *testing.T) {
	k := bpftest.New(t, 8)
	tr := newTracer(t, Options{VMs: []uint32{7}})
	putData(k, enter(1, "one"), 100)
	fire(t, tr, k, 0)
	if got, want := delivered(t, tr), []string{"kind 1 nr 1 flags 0x0"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}

	tr = newTracer(t, Options{VMs: []uint32{7}, Data: true})
	fire(t, tr, k, 0)
	if r := drain(t, tr); len(r.events) != 1 || r.events[0].Flags&bpf.EventHasData != 0 {
		t.Errorf("a sink that takes no data: %+v", r.events)
	}
}

// A call that is shown by what it returned is shown with what its arguments pointed to when
// it was made.
func TestDataOfHeldCalls(t *testing.T) {
	s := &stage{tb: t, k: bpftest.New(t, 8)}
	s.t = newTracer(t, Options{VMs: []uint32{7}, Data: true, Filter: Filter{Errors: only(unix.ENOENT)}})
	th := &guestThread{task: 0xffff888000000000, pid: 5, tgid: 5, comm: "one"}
	for _, ret := range []int64{-int64(unix.ENOENT), 3} {
		ev := s.event(th)
		ev.Kind, ev.Nr = bpf.EventEnter, 2
		putData(s.k, ev, 70)
		fire(t, s.t, s.k, 0)
		clear(s.k.Data(0).Bytes[:])
		s.exit(th, 2, ret)
	}
	want := []string{"kind 1 nr 2 arg 1 flags 1 70 abc", "kind 2 nr 2 flags 0x0"}
	if got := delivered(t, s.t); !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

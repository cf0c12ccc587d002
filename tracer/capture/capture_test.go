// SPDX-License-Identifier: Apache-2.0

package capture

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"frail/bpf"
	"frail/tracer"
)

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

// list is a sink that keeps everything.
type list struct {
	records   []any
	processes []bpf.Process
}

func (l *list) Event(ev *bpf.Event) error { l.records = append(l.records, *ev); return nil }
func (l *list) Process(p *bpf.Process) error {
	l.processes = append(l.processes, *p)
	return nil
}
func (l *list) Lost(lost tracer.Lost) error { l.records = append(l.records, lost); return nil }
func (l *list) Flush() error                { return nil }

// traffic returns n records of some threads.
func traffic(n int, seed uint64) []any {
	w := rand.New(rand.NewPCG(seed, 1))
	var out []any
	now := uint64(1 << 50)
	for range n {
		now += uint64(w.IntN(5000))
		if w.IntN(100) == 0 {
			out = append(out, tracer.Lost{Time: now, Losses: tracer.Losses{RingFull: 1, ReadFault: w.Uint64(), Recursion: 3}})
			continue
		}
		pid := int32(w.IntN(20))
		ev := bpf.Event{
			Time: now, Vm: 1, Vcpu: uint32(w.IntN(4)), Kind: bpf.EventEnter, Insn: bpf.InsnSyscall64, Flags: 3,
			Nr: int64(w.IntN(400)), Ip: 0x7f0000000000 + uint64(w.IntN(1<<20)), Sp: 0x7ffd00000000 - uint64(w.IntN(4096)),
			Cr3: uint64(pid)<<13 | 3, Task: 0xffff888000000000 + uint64(pid)<<13, Pid: pid, Tgid: pid,
			Comm: [16]uint8{'t', byte('a' + pid)},
		}
		switch w.IntN(10) {
		case 0, 1, 2, 3:
			ev.Kind, ev.Insn, ev.Ret = bpf.EventExit, bpf.InsnSysret64, -int64(w.IntN(100))
			ev.Flags |= bpf.EventRet
		case 4:
			ev.Args = [6]uint64{w.Uint64(), 0, 1, w.Uint64(), 5, 6}
			ev.Nr, ev.Ret = -1<<63, 1<<62
		case 5:
			// Told at the next call, known or not.
			ev.Kind, ev.Insn = bpf.EventExit, bpf.InsnSyscall64+uint16(w.IntN(7))
			ev.Flags |= bpf.EventDeferred | uint32(w.IntN(2))*bpf.EventRet
		case 6:
			ev.Kind, ev.Nr = bpf.EventCoverage, -1
			ev.Args = [6]uint64{uint64(w.IntN(8)), uint64(w.IntN(8))}
		default:
			ev.Args = [6]uint64{uint64(w.IntN(10)), 0x7ffd00000000, 4096}
		}
		out = append(out, ev)
	}
	return out
}

func add(tb testing.TB, w *Writer, records []any) {
	tb.Helper()
	for _, rec := range records {
		switch rec := rec.(type) {
		case bpf.Event:
			must(tb, w.Event(&rec))
		case tracer.Lost:
			must(tb, w.Lost(rec))
		case bpf.Process:
			must(tb, w.Process(&rec))
		}
	}
}

// file writes records, with a block's end after each per.
func file(tb testing.TB, records []any, per int) []byte {
	tb.Helper()
	var out bytes.Buffer
	w, err := NewWriter(&out, Header{Domain: "guest", Started: time.Unix(1, 2).UTC(), RealtimeOffset: 7})
	must(tb, err)
	for len(records) > 0 {
		n := min(per, len(records))
		add(tb, w, records[:n])
		must(tb, w.Sync())
		records = records[n:]
	}
	must(tb, w.Close())
	must(tb, w.Close())
	return out.Bytes()
}

func readAll(tb testing.TB, text []byte, seek uint64) (*Reader, []any, error) {
	tb.Helper()
	r, err := NewReader(bytes.NewReader(text))
	if err != nil {
		return nil, nil, err
	}
	defer r.Close()
	if seek != 0 {
		must(tb, r.Seek(seek))
	}
	var l list
	err = r.Run(&l)
	return r, l.records, err
}

func TestRoundTrip(t *testing.T) {
	for _, n := range []int{0, 1, 1000, 3*blockEvents + 5} {
		records := traffic(n, uint64(n))
		r, got, err := readAll(t, file(t, records, n+1), 0)
		must(t, err)
		if !reflect.DeepEqual(got, records) {
			t.Errorf("%d records are not what was written", n)
		}
		if r.Truncated {
			t.Errorf("%d records: truncated", n)
		}
		if want := (Header{Domain: "guest", Started: time.Unix(1, 2).UTC(), RealtimeOffset: 7}); r.Header != want {
			t.Errorf("header %+v, want %+v", r.Header, want)
		}
	}
}

// A file from before there were unknown returns has none; one of a later format is refused.
func TestVersions(t *testing.T) {
	exit := bpf.Event{Kind: bpf.EventExit, Insn: bpf.InsnSysret64, Flags: bpf.EventNr, Nr: 3, Ret: -9}
	enter := bpf.Event{Kind: bpf.EventEnter, Insn: bpf.InsnSyscall64, Flags: bpf.EventNr, Nr: 3}
	known := exit
	known.Flags |= bpf.EventRet
	for version, want := range map[byte][]any{1: {enter, known}, 2: {enter, exit}, 3: {enter, exit}} {
		text, err := os.ReadFile(filepath.Join("testdata", "version2.cap"))
		must(t, err)
		text[8] = version
		if version == 3 {
			text = file(t, []any{enter, exit}, 2)
		}
		r, got, err := readAll(t, text, 0)
		must(t, err)
		if !reflect.DeepEqual(got, want) || r.Described != (version == 3) {
			t.Errorf("format %d: %+v, described %t, want %+v", version, got, r.Described, want)
		}
		text[8] = 4
		if _, _, err := readAll(t, text, 0); err == nil || err.Error() != "read capture: format 4: this version reads up to 3" {
			t.Errorf("format 4: error %v", err)
		}
	}
}

// Cut off anywhere, a file gives its whole blocks.
func TestTruncated(t *testing.T) {
	records := traffic(60, 1)
	text := file(t, records, 20)
	whole := file(t, nil, 1)
	for cut := range text {
		r, got, err := readAll(t, text[:cut], 0)
		if r == nil {
			if cut >= len(whole) {
				t.Fatalf("cut at %d of %d: %v", cut, len(text), err)
			}
			continue
		}
		must(t, err)
		if len(got)%20 != 0 || len(got) > 0 && !reflect.DeepEqual(got, records[:len(got)]) {
			t.Fatalf("cut at %d of %d: %d records", cut, len(text), len(got))
		}
		if !r.Truncated && len(got) != len(records) {
			t.Fatalf("cut at %d of %d: not said to be truncated", cut, len(text))
		}
	}
}

// Damage is told of, and never read as something else.
func TestCorrupt(t *testing.T) {
	records := traffic(60, 1)
	text := file(t, records, 20)
	for i := range text {
		bad := bytes.Clone(text)
		bad[i] ^= 0x10
		_, got, err := readAll(t, bad, 0)
		if err != nil && !errors.Is(err, ErrCorrupt) && i > 16 {
			t.Fatalf("byte %d: %v", i, err)
		}
		if len(got) > len(records) || len(got) > 0 && !reflect.DeepEqual(got, records[:len(got)]) {
			t.Fatalf("byte %d of %d: %d records, not what was written", i, len(text), len(got))
		}
	}
}

func TestSeek(t *testing.T) {
	records := traffic(500, 3)
	text := file(t, records, 20)
	noIndex := text[:len(text)-13]
	timeOf := func(rec any) uint64 {
		if l, ok := rec.(tracer.Lost); ok {
			return l.Time
		}
		return rec.(bpf.Event).Time
	}
	for _, file := range [][]byte{text, noIndex} {
		for _, at := range []int{0, 1, 19, 20, 250, 499} {
			want := at
			for want > 0 && timeOf(records[want-1]) == timeOf(records[at]) {
				want--
			}
			_, got, err := readAll(t, file, timeOf(records[at]))
			must(t, err)
			if !reflect.DeepEqual(got, records[want:]) {
				t.Errorf("from record %d: %d records, want %d", at, len(got), len(records)-want)
			}
		}
		if _, got, err := readAll(t, file, 1<<60); err != nil || len(got) != 0 {
			t.Errorf("after the end: %d records, %v", len(got), err)
		}
	}
}

func FuzzReader(f *testing.F) {
	f.Add(file(f, traffic(50, 1), 20))
	f.Fuzz(func(t *testing.T, text []byte) {
		r, err := NewReader(bytes.NewReader(text))
		if err != nil {
			return
		}
		defer r.Close()
		var l list
		if err := r.Run(&l); err != nil && !errors.Is(err, ErrCorrupt) {
			t.Error(err)
		}
	})
}

// Who the threads are is told in every block before their events, so that a capture can be read
// from any of them.
func TestProcesses(t *testing.T) {
	described := func(who uint64, exe string) bpf.Process {
		p := bpf.Process{
			Head: bpf.Event{
				Vm: 1, Kind: bpf.EventProcess, Flags: bpf.EventIdentity, Task: who << 13, Who: who, Pid: int32(who), Tgid: 3, Cr3: 1 << 20,
				Comm: [16]uint8{'x'},
			},
			Start: 4, Known: 255, Ppid: 5, NsPid: 6, Uid: 7, Gid: 8, Euid: 9, Egid: 1 << 31,
		}
		copy(p.Exe[:], exe)
		copy(p.Cgroup[:], "/system.slice")
		return p
	}
	call := func(who, time uint64) bpf.Event {
		return bpf.Event{
			Time: time, Vm: 1, Kind: bpf.EventEnter, Insn: bpf.InsnSyscall64, Flags: 3, Task: who << 13, Who: who, Pid: int32(who), Tgid: 3, Cr3: 1 << 20,
		}
	}
	long := strings.Repeat("/long", 60)[:bpf.PathLen]
	first, second := described(1, "/bin/sh"), described(2, long)
	text := file(t, []any{first, second, call(1, 10), call(2, 11), call(1, 12), call(1, 20), call(3, 21)}, 5)
	for _, tc := range []struct {
		seek uint64
		want []bpf.Process
		time []uint64
	}{
		{0, []bpf.Process{first, second, first}, []uint64{10, 11, 20}},
		{20, []bpf.Process{first}, []uint64{20}},
	} {
		r, err := NewReader(bytes.NewReader(text))
		must(t, err)
		defer r.Close()
		must(t, r.Seek(tc.seek))
		var l list
		must(t, r.Run(&l))
		for i := range tc.want {
			tc.want[i].Head.Time = tc.time[i]
		}
		if !r.Described || !reflect.DeepEqual(l.processes, tc.want) {
			t.Errorf("from %d: read\n%+v\nwrote\n%+v", tc.seek, l.processes, tc.want)
		}
		if ev := l.records[len(l.records)-1]; !reflect.DeepEqual(ev, call(3, 21)) {
			t.Errorf("from %d: the last event is %+v", tc.seek, ev)
		}
	}
}

// FuzzDecoder takes the checksum and the compression out of the way.
func FuzzDecoder(f *testing.F) {
	e := newEncoder()
	for _, rec := range traffic(20, 1) {
		switch rec := rec.(type) {
		case bpf.Event:
			e.event(&rec)
		case bpf.Process:
			e.processes.Add(&rec)
		}
	}
	f.Add(e.buf, e.events)
	f.Fuzz(func(_ *testing.T, text []byte, n uint32) {
		d := decoder{buf: text, left: n % 1000}
		var ev bpf.Event
		var lost tracer.Lost
		var process bpf.Process
		for d.left > 0 {
			if _, err := d.next(&ev, &lost, &process); err != nil {
				return
			}
		}
	})
}

// BenchmarkWrite measures capturing on one core: encoding, compression and all.
func BenchmarkWrite(b *testing.B) {
	records := traffic(1<<20, 1)
	events := make([]bpf.Event, 0, len(records))
	for _, rec := range records {
		if ev, ok := rec.(bpf.Event); ok {
			events = append(events, ev)
		}
	}
	var size int
	for b.Loop() {
		n := new(counter)
		w, err := NewWriter(n, Header{})
		must(b, err)
		for i := range events {
			if err := w.Event(&events[i]); err != nil {
				b.Fatal(err)
			}
		}
		must(b, w.Close())
		size = n.n
	}
	perEvent := float64(b.Elapsed().Nanoseconds()) / float64(b.N*len(events))
	b.ReportMetric(1e3/perEvent, "Mevents/s")
	b.ReportMetric(float64(size)/float64(len(events)), "bytes/event")
}

type counter struct{ n int }

func (c *counter) Write(b []byte) (int, error) { c.n += len(b); return len(b), nil }

var _ io.Writer = (*counter)(nil)

func ExampleWriter() {
	var file bytes.Buffer
	w, _ := NewWriter(&file, Header{Domain: "guest"})
	_ = w.Event(&bpf.Event{Kind: bpf.EventEnter, Nr: 257})
	_ = w.Close()
	r, _ := NewReader(bytes.NewReader(file.Bytes()))
	defer r.Close()
	var l list
	_ = r.Run(&l)
	fmt.Println(r.Header.Domain, len(l.records))
	// Output: guest 1
}

// SPDX-License-Identifier: Apache-2.0

package format

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"

	"frail/bpf"
	"frail/tracer"
)

// message is a decoded message: its fields in order, numbers and bytes.
type message map[protowire.Number][]any

// parse decodes the fields of a message. It fails where they end before their length.
func parse(b []byte) (message, error) {
	m := make(message)
	for len(b) > 0 {
		field, kind, n := protowire.ConsumeTag(b)
		if n < 0 {
			return m, protowire.ParseError(n)
		}
		b = b[n:]
		switch kind {
		case protowire.VarintType:
			v, n := protowire.ConsumeVarint(b)
			if n < 0 {
				return m, protowire.ParseError(n)
			}
			m[field], b = append(m[field], v), b[n:]
		case protowire.BytesType:
			v, n := protowire.ConsumeBytes(b)
			if n < 0 {
				return m, protowire.ParseError(n)
			}
			m[field], b = append(m[field], v), b[n:]
		default:
			return m, fmt.Errorf("field %d is of type %d", field, kind)
		}
	}
	return m, nil
}

func sub(t *testing.T, v any) message {
	t.Helper()
	b, ok := v.([]byte)
	if !ok {
		t.Fatalf("%v is no message", v)
	}
	m, err := parse(b)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// describe writes each packet of a trace as a line.
func describe(t *testing.T, trace message) []string {
	t.Helper()
	var lines []string
	for _, p := range trace[1] {
		p := sub(t, p)
		if fmt.Sprint(p[10]) != "[1]" {
			t.Errorf("packet of sequence %v", p[10])
		}
		switch {
		case p[6] != nil:
			for _, c := range sub(t, p[6][0])[1] {
				c := sub(t, c)
				lines = append(lines, fmt.Sprint("clock ", c[1], c[2]))
			}
		case p[60] != nil:
			d := sub(t, p[60][0])
			line := fmt.Sprint("track ", d[1])
			switch {
			case d[2] != nil:
				line += fmt.Sprintf(" %s", d[2])
			case d[3] != nil:
				process := sub(t, d[3][0])
				line += fmt.Sprintf(" process %d %s", process[1], process[6])
			case d[4] != nil:
				thread := sub(t, d[4][0])
				line += fmt.Sprintf(" thread %d %d %s", thread[1], thread[2], thread[5])
			}
			lines = append(lines, line)
		case p[11] != nil:
			e := sub(t, p[11][0])
			kind := []string{"", "begin", "end", "instant"}[e[9][0].(uint64)]
			line := fmt.Sprintf("%d %s on %d: %s", p[8], kind, e[11], e[23])
			for _, a := range e[4] {
				a := sub(t, a)
				line += fmt.Sprintf(" %s=%s", a[10][0], a[6][0])
			}
			lines = append(lines, line)
		default:
			t.Errorf("packet of %v", p)
		}
	}
	return lines
}

// perfettoTrace is a trace of two threads and one that is not known, with losses.
func perfettoTrace(f *Perfetto) []byte {
	var b []byte
	add := func(time uint64, changes ...func(*bpf.Event)) {
		ev := event(func(*bpf.Event) {})
		for _, change := range changes {
			change(ev)
		}
		ev.Time = time
		b = f.AppendEvent(b, ev)
	}
	second := func(ev *bpf.Event) { ev.Task, ev.Pid = 7, 314 }
	nobody := func(ev *bpf.Event) { ev.Flags &^= bpf.EventIdentity; ev.Comm = [16]uint8{} }
	add(100, exit(0)) // of a call before the trace
	add(110)
	add(120, second)
	add(130, exit(-2))
	b = f.AppendProcess(b, who(func(*bpf.Process) {}))
	b = f.AppendProcess(b, who(func(p *bpf.Process) { p.Head.Pid, p.Known = 314, p.Known&^bpf.ProcessExe }))
	b = f.AppendProcess(b, who(func(p *bpf.Process) { copy(p.Exe[:], "/usr/bin/dog") }))
	b = f.AppendLost(b, tracer.Lost{Time: 140, Losses: tracer.Losses{RingFull: 2}})
	add(150, second)
	add(160, second, deferred(bpf.InsnSyscall64, 257, 3))
	add(170, named("dog"), func(ev *bpf.Event) { ev.Nr, ev.Args = 72, [6]uint64{3, 3} })
	add(180, named("dog"), exit(2), func(ev *bpf.Event) { ev.Nr = 72 })
	add(190, nobody, entered(bpf.InsnInt80In32, 20))
	add(200, nobody, unknownReturn(exit(0)), entered(bpf.InsnInt80In32, 20))
	b = f.AppendEvent(b, coverage(bpf.EntrySyscall, bpf.EntryInt80))
	add(210, second, func(ev *bpf.Event) { ev.Nr, ev.Args = 231, [6]uint64{1} })
	return f.AppendSummary(b, tracer.Summary{Delivered: 9})
}

func TestPerfetto(t *testing.T) {
	b := perfettoTrace(&Perfetto{Offset: 1000})
	trace, err := parse(b)
	if err != nil {
		t.Fatal(err)
	}
	const opened = "arguments=AT_FDCWD, 0x7ffd5b1c0f10, O_RDONLY|O_CLOEXEC"
	want := strings.Split(strings.TrimSpace(`
clock [6] [100]
clock [1] [1100]
track [1] [frail]
track [2] thread [312] [313] [cat]
[100] instant on [2]: [openat] return=0
[110] begin on [2]: [openat] `+opened+`
track [3] thread [312] [314] [cat]
[120] begin on [3]: [openat] `+opened+`
[130] end on [2]: [openat] return=-1 ENOENT (No such file or directory)
track [4] process [312] [/usr/bin/cat]
track [4] process [312] [/usr/bin/dog]
[140] instant on [1]: [2 events lost: 2 because the reader was too slow]
[150] end on [3]: []
[150] begin on [3]: [openat] `+opened+`
[160] end on [3]: [openat] return=3 deferred=the time is that of the thread's next call
track [2] thread [312] [313] [dog]
[170] begin on [2]: [fcntl] arguments=3, F_GETFL
[180] end on [2]: [fcntl] return=0x2 (flags O_RDWR)
track [5] [no identity, vCPU 2]
[190] begin on [5]: [getpid@32:int80] arguments=
[200] end on [5]: [getpid@32:int80]
[5000000123] instant on [1]: [INT 0x80 is not seen now: the guest uses its debug registers]
[210] instant on [3]: [exit_group] arguments=1
`), "\n")
	if got := describe(t, trace); !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// A trace that is cut off anywhere has all packets before that.
func TestPerfettoCutOff(t *testing.T) {
	b := perfettoTrace(new(Perfetto))
	whole, err := parse(b)
	if err != nil {
		t.Fatal(err)
	}
	packets := 0
	for n := range b {
		part, err := parse(b[:n])
		if got := len(part[1]); got < packets || got > packets+1 {
			t.Fatalf("%d bytes have %d packets, those before %d", n, got, packets)
		} else if got > packets {
			packets = got
			if err != nil {
				t.Errorf("%d bytes: %v", n, err)
			}
		}
		for i, p := range part[1] {
			if !slices.Equal(p.([]byte), whole[1][i].([]byte)) {
				t.Fatalf("%d bytes: packet %d is another", n, i)
			}
		}
	}
	if packets != len(whole[1])-1 {
		t.Errorf("%d packets before the last, want %d", packets, len(whole[1])-1)
	}
}

// SPDX-License-Identifier: Apache-2.0

package ph

import (
	"fmt"

	"frail/bpf"
)

// Stide scores exact sequences (Hofmeyr, Forrest and Somayaji 1998): a window of calls is
// anomalous when the executable never made just that sequence. It tells apart what
// lookahead pairs cannot, needs memory for each sequence, and runs in user space on the
// stream of events. It is not safe for concurrent use.
type Stide struct {
	window, frame int
	grams         map[Executable]map[string]struct{}
	threads       map[threadKey]*stideThread
	limit         int
	full          uint64

	// Tell, if set, is told once when more than AlertLimit of a thread's last calls ended
	// a sequence that is not known, until none did. The alert is valid until it returns.
	Tell       func(*Alert)
	AlertLimit int
}

// Bounds of stide's settings.
const (
	// MaxStideWindow bounds the length of its sequences.
	MaxStideWindow = 32
	// MaxStideFrame bounds how many calls its locality frame looks back on.
	MaxStideFrame = 1024
	// maxStideThreads bounds the threads that are kept: those that were killed stay until
	// there are so many. Then all are forgotten until they are described anew.
	maxStideThreads = 1 << 16
	// MaxSequences bounds the sequences of one executable.
	MaxSequences = 1 << 20
)

type stideThread struct {
	who         uint64
	task, space uint64
	exe         Executable
	calls       []byte // two bytes each, the newest last
	frame       []bool // a ring
	next, count int
	alerted     bool
}

// NewStide returns a scorer of sequences of window calls, whose locality frame has frame.
func NewStide(window, frame int) (*Stide, error) {
	if window < 2 || window > MaxStideWindow {
		return nil, fmt.Errorf("stide window of %d calls: want 2 to %d", window, MaxStideWindow)
	}
	if frame < 1 || frame > MaxStideFrame {
		return nil, fmt.Errorf("stide frame of %d calls: want 1 to %d", frame, MaxStideFrame)
	}
	return &Stide{
		window: window, frame: frame, limit: MaxSequences,
		grams:   make(map[Executable]map[string]struct{}),
		threads: make(map[threadKey]*stideThread),
	}, nil
}

// StideVerdict is what came of one call.
type StideVerdict struct {
	// New: the sequence was learnt. Miss: it is not known.
	New, Miss bool
	// LFC is how many of the thread's last calls, as many as the frame has, ended a
	// sequence that is not known.
	LFC int
}

// Process takes the description of a thread, which comes before the events whose Who is its
// Head.Who.
func (s *Stide) Process(d *bpf.Process) {
	ev := &d.Head
	key := threadKey{ev.Vm, ev.Pid}
	exe, as := ExecutableOf(d), space(ev.Cr3)
	t := s.threads[key]
	if t == nil || t.task != ev.Task || t.space != as || t.exe != exe {
		if len(s.threads) >= maxStideThreads {
			clear(s.threads)
		}
		t = &stideThread{task: ev.Task, space: as, exe: exe, frame: make([]bool, s.frame)}
		s.threads[key] = t
	}
	t.who = ev.Who
}

// Call learns the sequence that a call ends, or judges it. A thread's first calls make no
// sequence until there are enough. Events that are no call of a described thread give the
// zero verdict.
func (s *Stide) Call(ev *bpf.Event, learn bool) StideVerdict {
	if ev.Kind != bpf.EventEnter || !ev.Identified() {
		return StideVerdict{}
	}
	key := threadKey{ev.Vm, ev.Pid}
	t := s.threads[key]
	if t == nil || t.who != ev.Who {
		return StideVerdict{}
	}
	n := NumberOf(ev.Table(), ev.Nr)
	if len(t.calls) == 2*s.window {
		copy(t.calls, t.calls[2:])
		t.calls = t.calls[:2*s.window-2]
	}
	t.calls = append(t.calls, byte(n), byte(n>>8))

	var v StideVerdict
	if len(t.calls) == 2*s.window {
		known := s.grams[t.exe]
		_, ok := known[string(t.calls)]
		switch {
		case ok:
		case !learn:
			v.Miss = true
		case len(known) >= s.limit:
			s.full++
		default:
			if known == nil {
				known = make(map[string]struct{})
				s.grams[t.exe] = known
			}
			known[string(t.calls)] = struct{}{}
			v.New = true
		}
	}
	if t.frame[t.next] {
		t.count--
	}
	t.frame[t.next] = v.Miss
	if v.Miss {
		t.count++
	}
	t.next = (t.next + 1) % len(t.frame)
	v.LFC = t.count
	switch {
	case t.count == 0:
		t.alerted = false
	case t.count > s.AlertLimit && !t.alerted && s.Tell != nil:
		t.alerted = true
		s.Tell(t.alert(ev))
	}
	if actionOf(n) == actExit {
		delete(s.threads, key)
	}
	return v
}

// alert returns that a thread's last calls ended too many unknown sequences.
func (t *stideThread) alert(ev *bpf.Event) *Alert {
	a := &Alert{
		Kind: AlertStide, Time: ev.Time, VM: ev.Vm, PID: ev.Pid, TGID: ev.Tgid, Executable: t.exe.Name(),
		Comm: string(ev.CommBytes()), Misses: t.count,
	}
	for i := range a.Calls {
		a.Calls[i] = NoNumber
		if at := len(t.calls) - 2*(i+1); at >= 0 {
			a.Calls[i] = Number(t.calls[at]) | Number(t.calls[at+1])<<8
		}
	}
	return a
}

// Sequences returns how many sequences of exe are known.
func (s *Stide) Sequences(exe Executable) int { return len(s.grams[exe]) }

// Full returns how many sequences were not learnt because there were [MaxSequences].
func (s *Stide) Full() uint64 { return s.full }

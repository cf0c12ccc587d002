// SPDX-License-Identifier: Apache-2.0

package tracer

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"frail/bpf"
	"frail/bpf/bpftest"
)

func ids(values ...int32) Set[int32] { return Set[int32]{Values: values} }

func only[T any](values ...T) Set[T] { return Set[T]{Values: values} }

func except[T any](values ...T) Set[T] { return Set[T]{Values: values, Except: true} }

// guestThread is a thread as its events and its description have it.
type guestThread struct {
	task, who uint64
	pid, tgid int32
	comm      string
	p         bpf.Process // what is described of it
}

// stage runs a tracer's programs as the tracepoints would.
type stage struct {
	tb testing.TB
	t  *Tracer
	k  *bpftest.Events
}

func newStage(tb testing.TB, opts Options) *stage {
	opts.VMs = []uint32{7}
	return &stage{tb: tb, t: newTracer(tb, opts), k: bpftest.New(tb, 6)}
}

// describe tells who th is, with a serial number that no thread had before.
func (s *stage) describe(th *guestThread) {
	th.who++
	p := s.k.Process(1)
	*p = th.p
	ev := s.event(th)
	ev.Kind = bpf.EventProcess
	p.Head = ev
	s.k.Fire(s.tb, s.t.objs.Process, 1)
}

func (s *stage) event(th *guestThread) bpf.Event {
	return bpf.Event{
		Vm: 7, Insn: bpf.InsnSyscall64, Flags: bpf.EventNr | bpf.EventIdentity,
		Task: th.task, Who: th.who, Pid: th.pid, Tgid: th.tgid, Comm: comm(th.comm),
	}
}

func (s *stage) enter(th *guestThread, nr int64) {
	*s.k.At(0) = s.event(th)
	s.k.At(0).Kind, s.k.At(0).Nr = bpf.EventEnter, nr
	fire(s.tb, s.t, s.k, 0)
}

func (s *stage) exit(th *guestThread, nr, ret int64, change ...func(*bpf.Event)) {
	*s.k.At(0) = s.event(th)
	ev := s.k.At(0)
	ev.Kind, ev.Insn, ev.Nr, ev.Ret = bpf.EventExit, bpf.InsnSysret64, nr, ret
	ev.Flags |= bpf.EventRet
	for _, c := range change {
		c(ev)
	}
	fire(s.tb, s.t, s.k, 0)
}

// want compares what was delivered, and how many events could not be judged.
func (s *stage) want(unjudged uint64, want ...string) {
	s.tb.Helper()
	var got []string
	for _, ev := range drain(s.tb, s.t).events {
		kind := "enter"
		if ev.Kind == bpf.EventExit {
			kind = "exit"
		}
		got = append(got, fmt.Sprintf("%s %d of %d", kind, ev.Nr, ev.Pid))
	}
	if !slices.Equal(got, want) {
		s.tb.Errorf("delivered %q, want %q", got, want)
	}
	sum, err := s.t.Summary()
	must(s.tb, err)
	if sum.Unjudged != unjudged {
		s.tb.Errorf("%d events not judged, want %d", sum.Unjudged, unjudged)
	}
}

func described(change func(*bpf.Process)) *guestThread {
	th := &guestThread{task: 0xffff888000001000, pid: 11, tgid: 10, comm: "sh"}
	th.p.Known = bpf.ProcessCred | bpf.ProcessExe | bpf.ProcessCgroup | bpf.ProcessParent | bpf.ProcessStart | bpf.ProcessNsPid
	th.p.Uid, th.p.Euid, th.p.Ppid, th.p.NsPid, th.p.Start = 1000, 0, 1, 11, 100
	copy(th.p.Exe[:], "/usr/bin/dash")
	copy(th.p.Cgroup[:], "/system.slice/docker-"+containerID+".scope/init")
	if change != nil {
		change(&th.p)
	}
	return th
}

var containerID = strings.Repeat("0f1e", 16)

// What only a description tells is judged by it.
func TestFilterByDescription(t *testing.T) {
	set := func(to []byte, s string) {
		clear(to)
		copy(to, s)
	}
	longest := "/" + strings.Repeat("x", bpf.PathLen-2)
	for _, tc := range []struct {
		name   string
		filter Filter
		change func(*bpf.Process)
		want   string // "pass", "fail" or "unknown"
	}{
		{"user", Filter{UIDs: only[uint32](1, 1000)}, nil, "pass"},
		{"another user", Filter{UIDs: only[uint32](0, 1)}, nil, "fail"},
		{"excluded user", Filter{UIDs: except[uint32](1000)}, nil, "fail"},
		{"user not excluded", Filter{UIDs: except[uint32](0)}, nil, "pass"},
		{"unknown user", Filter{UIDs: except[uint32](0)}, func(p *bpf.Process) { p.Known &^= bpf.ProcessCred }, "unknown"},

		{"executable", Filter{Executables: only("/bin/cat", "/usr/bin/dash")}, nil, "pass"},
		{"another executable", Filter{Executables: only("/bin/cat")}, nil, "fail"},
		{"an executable's beginning", Filter{Executables: only("/usr/bin/das")}, nil, "fail"},
		{"a longer executable", Filter{Executables: only("/usr/bin/dash2")}, nil, "fail"},
		{"directory", Filter{Executables: only("/usr/")}, nil, "pass"},
		{"another directory", Filter{Executables: only("/usr/sbin/")}, nil, "fail"},
		{"a directory and one in it", Filter{Executables: only("/usr/", "/usr/bin/cat")}, nil, "pass"},
		{"root", Filter{Executables: only("/")}, nil, "pass"},
		{"excluded executable", Filter{Executables: except("/usr/bin/dash")}, nil, "fail"},
		{"executable not excluded", Filter{Executables: except("/bin/cat")}, nil, "pass"},
		{"longest executable", Filter{Executables: only(longest)}, func(p *bpf.Process) { set(p.Exe[:], longest) }, "pass"},
		{"unknown executable", Filter{Executables: only("/bin/cat")}, func(p *bpf.Process) { p.Known &^= bpf.ProcessExe }, "unknown"},
		{"cut executable", Filter{Executables: except("/bin/cat")}, func(p *bpf.Process) { p.Known |= bpf.ProcessExeCut }, "unknown"},

		{"container", Filter{Containers: only("web", containerID)}, nil, "pass"},
		{"container by a part of its id", Filter{Containers: only(containerID[:12])}, nil, "pass"},
		{"another container", Filter{Containers: only(strings.Repeat("a", 64))}, nil, "fail"},
		{"excluded container", Filter{Containers: except(containerID[:12])}, nil, "fail"},
		{"container not excluded", Filter{Containers: except("web")}, nil, "pass"},
		{"container in a container", Filter{Containers: only(containerID)}, func(p *bpf.Process) {
			set(p.Cgroup[:], "/lxc/web/docker/"+containerID)
		}, "pass"},
		{"container around a container", Filter{Containers: only("web")}, func(p *bpf.Process) {
			set(p.Cgroup[:], "/lxc/web/docker/"+containerID)
		}, "pass"},
		{"container at the path's end", Filter{Containers: only("web")}, func(p *bpf.Process) {
			set(p.Cgroup[:], strings.Repeat("/a", 124)+"/lxc/web")
		}, "pass"},
		{"longest path", Filter{Containers: only("web")}, func(p *bpf.Process) {
			set(p.Cgroup[:], strings.Repeat("/", bpf.PathLen))
		}, "fail"},
		{"unknown group", Filter{Containers: only("web")}, func(p *bpf.Process) { p.Known &^= bpf.ProcessCgroup }, "unknown"},
		{"cut group, not found", Filter{Containers: except("web")}, func(p *bpf.Process) { p.Known |= bpf.ProcessCgroupCut }, "unknown"},
		{"cut group, found", Filter{Containers: only(containerID)}, func(p *bpf.Process) { p.Known |= bpf.ProcessCgroupCut }, "pass"},

		{"all", Filter{
			UIDs: only[uint32](1000), Executables: only("/usr/bin/dash"), Containers: only(containerID),
			Comms: only("sh"), Processes: ids(10), Threads: ids(11),
		}, nil, "pass"},
		{"all but one", Filter{
			UIDs: only[uint32](1000), Executables: only("/usr/bin/dash"), Containers: only("web"),
			Comms: only("sh"), Processes: ids(10), Threads: ids(11),
		}, nil, "fail"},
		{"one does not pass, one is not known", Filter{UIDs: only[uint32](1), Executables: only("/bin/cat")},
			func(p *bpf.Process) { p.Known &^= bpf.ProcessExe }, "fail"},
		{"another name", Filter{UIDs: only[uint32](1000), Comms: only("cat")}, nil, "fail"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			th := described(tc.change)
			for _, unknown := range []bool{false, true} {
				tc.filter.Unknown = unknown
				s := newStage(t, Options{Filter: tc.filter})
				s.describe(th)
				s.enter(th, 1)
				var want []string
				if tc.want == "pass" || tc.want == "unknown" && unknown {
					want = []string{"enter 1 of 11"}
				}
				s.want(uint64(word(tc.want == "unknown")), want...)
			}
		})
	}
}

// An event whose thread was not described, or has another description, is not judged by
// that of another.
func TestFilterByMissingDescription(t *testing.T) {
	s := newStage(t, Options{Filter: Filter{UIDs: only[uint32](1000)}})
	th := described(nil)
	s.enter(th, 1) // not described at all
	s.describe(th)
	s.enter(th, 2)
	th.who++
	s.enter(th, 3) // the description was lost
	th.p.Uid = 0
	s.describe(th)
	s.enter(th, 4)
	*s.k.At(0) = with(s.event(th), func(ev *bpf.Event) { ev.Flags &^= bpf.EventIdentity })
	s.k.At(0).Kind = bpf.EventEnter
	fire(t, s.t, s.k, 0)
	s.want(3, "enter 2 of 11")
}

// What does not pass costs the reader nothing: neither it nor its thread's description is in
// the ring.
func TestFilteredIsNotInTheRing(t *testing.T) {
	for name, f := range map[string]Filter{
		"user":      {UIDs: only[uint32](1)},
		"process":   {Processes: ids(1)},
		"follow":    {Processes: ids(9), Follow: true},
		"container": {Containers: only("web")},
		"error":     {Errors: only(unix.ENOENT), UIDs: only[uint32](1)},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStage(t, Options{Filter: f, Processes: true})
			th := described(nil)
			s.describe(th)
			for nr := range int64(10) {
				s.enter(th, nr)
				s.exit(th, nr, -2)
			}
			if n := s.t.reader.AvailableBytes(); n != 0 {
				t.Errorf("%d bytes in the ring", n)
			}
			s.want(0)
		})
	}
	s := newStage(t, Options{Filter: Filter{UIDs: only[uint32](1000)}, Processes: true})
	th := described(nil)
	s.describe(th)
	s.enter(th, 1)
	if r := drain(t, s.t); !slices.Equal(r.stream, []string{"process 1", "event 1"}) {
		t.Errorf("stream %q of what passes", r.stream)
	}
	// Descriptions are for the filter alone if nobody asks for them.
	s = newStage(t, Options{Filter: Filter{UIDs: only[uint32](1000)}})
	th = described(nil)
	s.describe(th)
	s.enter(th, 1)
	if r := drain(t, s.t); !slices.Equal(r.stream, []string{"event 1"}) {
		t.Errorf("stream %q without descriptions", r.stream)
	}
}

// A call and its return pass as one, by what it returned.
func TestFilterByReturn(t *testing.T) {
	const enoent, eagain = -int64(unix.ENOENT), -int64(unix.EAGAIN)
	failed := except[unix.Errno](0)
	for _, tc := range []struct {
		name   string
		filter Filter
		ret    int64
		pass   bool
	}{
		{"an error", Filter{Errors: only(unix.EAGAIN, unix.ENOENT)}, enoent, true},
		{"another error", Filter{Errors: only(unix.EAGAIN)}, enoent, false},
		{"no error", Filter{Errors: only(unix.EAGAIN)}, 3, false},
		{"not that error", Filter{Errors: except(unix.EAGAIN)}, enoent, true},
		{"not that error, none", Filter{Errors: except(unix.EAGAIN)}, 3, true},
		{"excluded error", Filter{Errors: except(unix.EAGAIN)}, eagain, false},
		{"failed", Filter{Errors: failed}, enoent, true},
		{"not failed", Filter{Errors: failed}, 0, false},
		{"the last error", Filter{Errors: failed}, -4095, true},
		{"an address, no error", Filter{Errors: failed}, -4096, false},
		{"a large address", Filter{Errors: failed}, math.MinInt64, false},
		{"a value", Filter{Returns: only(Range{1, 1}, Range{3, 3})}, 3, true},
		{"another value", Filter{Returns: only(Range{1, 1}, Range{3, 3})}, 2, false},
		{"excluded value", Filter{Returns: except(Range{3, 3})}, 3, false},
		{"a range's first", Filter{Returns: only(Range{3, 9})}, 3, true},
		{"a range's last", Filter{Returns: only(Range{3, 9})}, 9, true},
		{"before a range", Filter{Returns: only(Range{3, 9})}, 2, false},
		{"behind a range", Filter{Returns: only(Range{3, 9})}, 10, false},
		{"open range", Filter{Returns: only(Range{math.MinInt64, -1})}, enoent, true},
		{"value and error", Filter{Returns: only(Range{enoent, enoent}), Errors: failed}, enoent, true},
		{"value and not the error", Filter{Returns: only(Range{enoent, enoent}), Errors: only(unix.EAGAIN)}, enoent, false},
		{"a value of a passing user", Filter{Returns: only(Range{3, 3}), UIDs: only[uint32](1000)}, 3, true},
		{"a value of another user", Filter{Returns: only(Range{3, 3}), UIDs: only[uint32](1)}, 3, false},
		{"a value of a passing call", Filter{Returns: only(Range{3, 3}), Syscalls: filterOf(t, "write")}, 3, true},
		{"a value of another call", Filter{Returns: only(Range{3, 3}), Syscalls: filterOf(t, "read")}, 3, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := newStage(t, Options{Filter: tc.filter})
			th := described(nil)
			s.describe(th)
			s.enter(th, 1)
			if n := s.t.reader.AvailableBytes(); n != 0 {
				t.Errorf("%d bytes in the ring before the call returned", n)
			}
			made := BootTime()
			s.exit(th, 1, tc.ret)
			s.exit(th, 1, tc.ret+1000) // of a call that was not seen
			want := []string{"enter 1 of 11", "exit 1 of 11"}
			if !tc.pass {
				want = nil
			}
			r := drain(t, s.t)
			var got []string
			for _, ev := range r.events {
				got = append(got, map[uint16]string{bpf.EventEnter: "enter", bpf.EventExit: "exit"}[ev.Kind]+fmt.Sprintf(" %d of %d", ev.Nr, ev.Pid))
			}
			if len(got) > 0 && r.events[len(got)-1].Ret == tc.ret+1000 {
				got = got[:len(got)-1]
			}
			if !slices.Equal(got, want) {
				t.Errorf("delivered %q, want %q", got, want)
			}
			if tc.pass && len(got) == 2 && (r.events[0].Time > made || r.events[1].Time < made) {
				t.Errorf("a call made before %d and its return after have times %d and %d", made, r.events[0].Time, r.events[1].Time)
			}
		})
	}
}

// Of a call that is judged by its return something may be missing.
func TestFilterByReturnThatIsNotKnown(t *testing.T) {
	unknown := func(ev *bpf.Event) { ev.Flags &^= bpf.EventRet }
	noNumber := func(ev *bpf.Event) { ev.Flags, ev.Nr = ev.Flags&^bpf.EventNr, -1 }
	noIdentity := func(ev *bpf.Event) { ev.Flags &^= bpf.EventIdentity }
	other := func(ev *bpf.Event) { ev.Task, ev.Pid = ev.Task+64, 12 }
	by32 := func(ev *bpf.Event) { ev.Insn, ev.Ret = bpf.InsnSysret32, 0xfffffffe }

	for _, tc := range []struct {
		name     string
		run      func(*stage, *guestThread)
		unjudged uint64
		want     []string // what passes
		unknown  []string // with what is not known
	}{
		{"not told", func(s *stage, th *guestThread) {
			s.enter(th, 1)
			s.exit(th, 1, 0, unknown)
		}, 2, nil, []string{"enter 1", "exit 1"}},
		{"no return seen", func(s *stage, th *guestThread) {
			s.enter(th, 1)
			s.enter(th, 2)
			s.exit(th, 2, -2)
		}, 1, []string{"enter 2", "exit 2"}, []string{"enter 1", "enter 2", "exit 2"}},
		{"return of another call", func(s *stage, th *guestThread) {
			s.enter(th, 1)
			s.exit(th, 2, -2)
			s.enter(th, 3)
		}, 1, []string{"exit 2"}, []string{"exit 2", "enter 1"}},
		{"return of an unknown call", func(s *stage, th *guestThread) {
			s.enter(th, 1)
			s.exit(th, 1, -2, noNumber)
			s.enter(th, 3)
		}, 1, []string{"exit -1"}, []string{"exit -1", "enter 1"}},
		{"no identity", func(s *stage, th *guestThread) {
			*s.k.At(0) = with(s.event(th), noIdentity)
			s.k.At(0).Kind, s.k.At(0).Nr = bpf.EventEnter, 1
			fire(s.tb, s.t, s.k, 0)
			s.exit(th, 1, -2, noIdentity)
		}, 1, []string{"exit 1"}, []string{"enter 1", "exit 1"}},
		{"no call seen", func(s *stage, th *guestThread) { s.exit(th, 1, -2) }, 0, []string{"exit 1"}, []string{"exit 1"}},
		{"return of another thread", func(s *stage, th *guestThread) {
			s.enter(th, 1)
			s.exit(th, 1, -2, other)
			s.exit(th, 1, 0)
		}, 0, []string{"exit 1"}, []string{"exit 1"}},
		{"twice returned", func(s *stage, th *guestThread) {
			s.enter(th, 1)
			s.exit(th, 1, -2)
			s.exit(th, 1, -2)
		}, 0, []string{"enter 1", "exit 1", "exit 1"}, []string{"enter 1", "exit 1", "exit 1"}},
		{"32-bit error", func(s *stage, th *guestThread) { s.exit(th, 1, 0, by32) }, 0, []string{"exit 1"}, []string{"exit 1"}},
		{"32-bit return of a 64-bit call", func(s *stage, th *guestThread) {
			s.enter(th, 1)
			s.exit(th, 1, 0, by32)
			s.enter(th, 2)
		}, 1, []string{"exit 1"}, []string{"exit 1", "enter 1"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for _, pass := range []bool{false, true} {
				s := newStage(t, Options{Filter: Filter{Errors: only(unix.ENOENT), Unknown: pass}})
				th := described(nil)
				tc.run(s, th)
				var got []string
				for _, ev := range drain(t, s.t).events {
					got = append(got, map[uint16]string{bpf.EventEnter: "enter", bpf.EventExit: "exit"}[ev.Kind]+fmt.Sprintf(" %d", ev.Nr))
				}
				want := tc.want
				if pass {
					want = tc.unknown
				}
				if !slices.Equal(got, want) {
					t.Errorf("unknown: %v: delivered %q, want %q", pass, got, want)
				}
				sum, err := s.t.Summary()
				must(t, err)
				if sum.Unjudged != tc.unjudged {
					t.Errorf("unknown: %v: %d not judged, want %d", pass, sum.Unjudged, tc.unjudged)
				}
			}
		})
	}
}

// Who made a call decides, although it is somebody else when it returns.
func TestFilterByReturnOfExec(t *testing.T) {
	s := newStage(t, Options{Filter: Filter{Executables: only("/usr/bin/dash"), Returns: only(Range{0, 0})}})
	th := described(nil)
	s.describe(th)
	s.enter(th, 59)
	th.p.Exe = [bpf.PathLen]byte{}
	copy(th.p.Exe[:], "/bin/cat")
	s.describe(th)
	s.exit(th, 59, 0)
	s.enter(th, 3)
	s.exit(th, 3, 0)
	s.want(0, "enter 59 of 11", "exit 59 of 11")
}

// With the processes that pass go those that descend from them.
func TestFollow(t *testing.T) {
	const clone, getpid, exitGroup = 56, 39, 231
	process := func(pid, parent int32, name string) *guestThread {
		th := described(func(p *bpf.Process) {
			p.Ppid, p.NsPid, p.Start = parent, pid, uint64(pid)*1000
		})
		th.task, th.pid, th.tgid, th.comm = 0xffff888000000000+uint64(pid)<<12, pid, pid, name
		return th
	}
	thread := func(of *guestThread, pid int32) *guestThread {
		th := *of
		th.task, th.pid, th.p.NsPid, th.p.Start = 0xffff888000000000+uint64(pid)<<12, pid, pid, uint64(pid)*1000
		return &th
	}

	for _, tc := range []struct {
		name     string
		filter   Filter
		run      func(s *stage, init, sh *guestThread)
		unjudged uint64
		want     []string
	}{
		{"children and theirs", Filter{Processes: ids(10)}, func(s *stage, _, sh *guestThread) {
			child := process(20, 10, "child")
			s.describe(child)
			s.enter(child, 1)
			grandchild := process(30, 20, "grandchild")
			s.describe(grandchild)
			s.enter(grandchild, 1)
			s.describe(grandchild) // it has a new parent, say
			s.enter(grandchild, 2)
		}, 0, []string{"enter 39 of 10", "enter 1 of 20", "enter 1 of 30", "enter 2 of 30"}},
		{"others", Filter{Processes: ids(10)}, func(s *stage, _, sh *guestThread) {
			other := process(20, 1, "other")
			s.describe(other)
			s.enter(other, 1)
		}, 0, []string{"enter 39 of 10"}},
		{"threads", Filter{Comms: only("sh")}, func(s *stage, _, sh *guestThread) {
			th := thread(sh, 11)
			th.comm = "worker"
			s.describe(th)
			s.enter(th, 1)
			s.exit(th, clone, 12) // a thread
		}, 0, []string{"enter 39 of 10", "enter 1 of 11", "exit 56 of 11"}},
		{"a name that changes", Filter{Comms: only("worker")}, func(s *stage, _, sh *guestThread) {
			s.enter(sh, 1)
			sh.comm = "worker"
			s.enter(sh, 2)
			sh.comm = "sh"
			s.enter(sh, 3)
			child := process(20, 10, "child")
			s.describe(child)
			s.enter(child, 4)
		}, 0, []string{"enter 2 of 10", "enter 3 of 10", "enter 4 of 20"}},
		{"after exec", Filter{Executables: only("/usr/bin/dash")}, func(s *stage, init, sh *guestThread) {
			sh.p.Exe = [bpf.PathLen]byte{}
			copy(sh.p.Exe[:], "/bin/cat")
			s.describe(sh)
			s.enter(sh, 1)
		}, 0, []string{"enter 39 of 1", "enter 39 of 10", "enter 1 of 10"}},
		{"orphans", Filter{Processes: ids(10)}, func(s *stage, _, sh *guestThread) {
			s.exit(sh, clone, 20)
			s.enter(sh, exitGroup)
			child := process(20, 1, "daemon")
			s.describe(child)
			s.enter(child, 1)
		}, 0, []string{"enter 39 of 10", "exit 56 of 10", "enter 231 of 10", "enter 1 of 20"}},
		{"children of others", Filter{Processes: ids(10)}, func(s *stage, init, _ *guestThread) {
			s.exit(init, clone, 20)
			child := process(20, 1, "other")
			s.describe(child)
			s.enter(child, 1)
		}, 0, []string{"enter 39 of 10"}},
		{"an id in another namespace", Filter{Processes: ids(10)}, func(s *stage, _, sh *guestThread) {
			sh.p.NsPid = 1
			s.describe(sh)
			s.exit(sh, clone, 20)
			other := process(20, 1, "other")
			s.describe(other)
			s.enter(other, 1)
		}, 0, []string{"enter 39 of 10", "exit 56 of 10"}},
		{"what other calls return", Filter{Processes: ids(10)}, func(s *stage, _, sh *guestThread) {
			s.exit(sh, 0, 20)
			s.exit(sh, clone, -11)
			other := process(20, 1, "other")
			s.describe(other)
			s.enter(other, 1)
		}, 0, []string{"enter 39 of 10", "exit 0 of 10", "exit 56 of 10"}},
		{"an id that is another's by now", Filter{Comms: only("sh")}, func(s *stage, _, sh *guestThread) {
			other := process(10, 1, "other")
			other.p.Start, other.who = 999, 5
			s.describe(other)
			s.enter(other, 1)
		}, 0, []string{"enter 39 of 10"}},
		{"a parent that is not known", Filter{Processes: ids(10)}, func(s *stage, _, _ *guestThread) {
			child := process(20, 10, "child")
			child.p.Known &^= bpf.ProcessParent
			s.describe(child)
			s.enter(child, 1)
		}, 1, []string{"enter 39 of 10"}},
		{"calls that do not pass", Filter{Processes: ids(10), Syscalls: filterOf(t, "getpid")}, func(s *stage, _, sh *guestThread) {
			s.exit(sh, clone, 20)
			child := process(20, 1, "child")
			s.describe(child)
			s.enter(child, 1)
			s.enter(child, getpid)
		}, 0, []string{"enter 39 of 10", "enter 39 of 20"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tc.filter.Follow = true
			s := newStage(t, Options{Filter: tc.filter})
			init, sh := process(1, 0, "init"), process(10, 1, "sh")
			for _, th := range []*guestThread{init, sh} {
				s.describe(th)
				s.enter(th, getpid)
			}
			tc.run(s, init, sh)
			s.want(tc.unjudged, tc.want...)
		})
	}
}

func TestValidate(t *testing.T) {
	for _, tc := range []struct {
		filter Filter
		want   string
	}{
		{Filter{Kinds: 1 << 9}, "unknown event kinds"},
		{Filter{Kinds: Enter, Errors: only(unix.ENOENT)}, "returns do not pass"},
		{Filter{UIDs: Set[uint32]{Values: make([]uint32, MaxUIDs+1)}}, "65 user ids to filter by: at most 64"},
		{Filter{Returns: Set[Range]{Values: make([]Range, MaxReturns+1)}}, "17 ranges of return values to filter by: at most 16"},
		{Filter{Returns: only(Range{2, 1})}, "return values from 2 to 1: there are none"},
		{Filter{Errors: only[unix.Errno](4096)}, "error 4096: system calls return those up to 4095"},
		{Filter{Processes: ids(0)}, "process 0: ids go from 1 to 4194303"},
		{Filter{Threads: ids(-1)}, "thread -1: ids go from 1 to 4194303"},
		{Filter{Executables: only("")}, "empty path"},
		{Filter{Executables: only("/a\x00b")}, "NUL"},
		{Filter{Executables: only("/" + strings.Repeat("x", bpf.PathLen-1))}, "at most 255 bytes"},
		{Filter{Containers: only("a/b")}, `container "a/b"`},
		{Filter{Containers: only(strings.Repeat("a", 200))}, "the name is too long"},
	} {
		if err := tc.filter.Validate(); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%+v: error %v, want %q", tc.filter, err, tc.want)
		}
	}
}

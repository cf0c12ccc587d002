// SPDX-License-Identifier: Apache-2.0

package guest

import (
	"math"
	"reflect"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"frail/api"
	"frail/tracer"
	"frail/tracer/syscalls"
)

func TestFilter(t *testing.T) {
	calls, err := syscalls.ParseFilter("!futex")
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name  string
		start *api.TraceStart
		want  tracer.Filter
	}{
		{"none", &api.TraceStart{}, tracer.Filter{}},
		{"calls", &api.TraceStart{Syscalls: "!futex"}, tracer.Filter{Syscalls: calls}},
		{"names", &api.TraceStart{Comm: "sshd, nginx"}, tracer.Filter{Comms: tracer.Set[string]{Values: []string{"sshd", "nginx"}}}},
		{"all but a name", &api.TraceStart{Comm: "!sshd"}, tracer.Filter{Comms: tracer.Set[string]{Values: []string{"sshd"}, Except: true}}},
		{"ids", &api.TraceStart{Pid: "1,4194303", Tid: "!7"}, tracer.Filter{
			Processes: tracer.Set[int32]{Values: []int32{1, 1<<22 - 1}}, Threads: tracer.Set[int32]{Values: []int32{7}, Except: true},
		}},
		{"users", &api.TraceStart{Uid: "0,4294967294"}, tracer.Filter{UIDs: tracer.Set[uint32]{Values: []uint32{0, 1<<32 - 2}}}},
		{"paths", &api.TraceStart{Exe: "/bin/sh,/opt/", Container: "!web"}, tracer.Filter{
			Executables: tracer.Set[string]{Values: []string{"/bin/sh", "/opt/"}}, Containers: tracer.Set[string]{Values: []string{"web"}, Except: true},
		}},
		{"errors", &api.TraceStart{Error: "ENOENT,11,EWOULDBLOCK,0"}, tracer.Filter{
			Errors: tracer.Set[unix.Errno]{Values: []unix.Errno{unix.ENOENT, unix.EAGAIN, unix.EAGAIN, 0}},
		}},
		{"failed", &api.TraceStart{Failed: true}, tracer.Filter{Errors: tracer.Set[unix.Errno]{Values: []unix.Errno{0}, Except: true}}},
		{"failed, and not so", &api.TraceStart{Failed: true, Error: "!EAGAIN"}, tracer.Filter{
			Errors: tracer.Set[unix.Errno]{Values: []unix.Errno{unix.EAGAIN, 0}, Except: true},
		}},
		{"failed, and so", &api.TraceStart{Failed: true, Error: "EAGAIN"}, tracer.Filter{Errors: tracer.Set[unix.Errno]{Values: []unix.Errno{unix.EAGAIN}}}},
		{"returns", &api.TraceStart{Returns: "!-1,0x10,1..9,10..,..-5"}, tracer.Filter{Returns: tracer.Set[tracer.Range]{
			Values: []tracer.Range{{First: -1, Last: -1}, {First: 16, Last: 16}, {First: 1, Last: 9}, {First: 10, Last: math.MaxInt64}, {First: math.MinInt64, Last: -5}},
			Except: true,
		}}},
		{"follow", &api.TraceStart{Pid: "1", Follow: true, Unknown: true}, tracer.Filter{
			Processes: tracer.Set[int32]{Values: []int32{1}}, Follow: true, Unknown: true,
		}},
	} {
		if got, err := Filter(tc.start); err != nil || !reflect.DeepEqual(got, tc.want) {
			t.Errorf("%s: %+v, %v, want %+v", tc.name, got, err, tc.want)
		}
	}
}

func TestFilterErrors(t *testing.T) {
	for _, tc := range []struct {
		start *api.TraceStart
		want  []string
	}{
		{&api.TraceStart{Syscalls: "opnat"}, []string{`unknown system call "opnat"`, "openat"}},
		{&api.TraceStart{Syscalls: "%fil"}, []string{`unknown class "%fil"`, "%file"}},
		{&api.TraceStart{Error: "ENOETN"}, []string{`error "ENOETN": unknown: did you mean ENOENT`}},
		{&api.TraceStart{Error: "eagain"}, []string{"did you mean EAGAIN"}},
		{&api.TraceStart{Error: "nothing-like-it"}, []string{`error "nothing-like-it": unknown`}},
		{&api.TraceStart{Error: "4096"}, []string{"from 0, no error, to 4095"}},
		{&api.TraceStart{Error: "-2"}, []string{`error "-2": unknown`}},
		{&api.TraceStart{Error: "ENOENT,0", Failed: true}, []string{"error 0 is that of calls that do not fail"}},
		{&api.TraceStart{Returns: "x"}, []string{`return value "x": neither a number nor a range`}},
		{&api.TraceStart{Returns: "9..1"}, []string{"return values from 9 to 1: there are none"}},
		{&api.TraceStart{Returns: "9223372036854775808"}, []string{"neither a number"}},
		{&api.TraceStart{Comm: "a-name-that-is-too-long"}, []string{"first 15 bytes"}},
		{&api.TraceStart{Comm: "sh,"}, []string{`empty thread name in the list "sh,"`}},
		{&api.TraceStart{Comm: "!"}, []string{"empty thread name"}},
		{&api.TraceStart{Comm: "sh,!cat"}, []string{`"!" may only start the list`}},
		{&api.TraceStart{Pid: "0"}, []string{`process id "0": not a number from 1 to 4194303`}},
		{&api.TraceStart{Tid: "init"}, []string{`thread id "init": not a number`}},
		{&api.TraceStart{Uid: "root"}, []string{`user id "root": not a number: the guest's names are not known here`}},
		{&api.TraceStart{Uid: "-1"}, []string{`user id "-1"`}},
		{&api.TraceStart{Exe: "sh"}, []string{`executable "sh": not a path from the root`, "--filter-comm"}},
		{&api.TraceStart{Container: "a/b"}, []string{`container "a/b": no container has such an id`}},
		{&api.TraceStart{Follow: true}, []string{"to follow processes, name some"}},
		{&api.TraceStart{Follow: true, Comm: "!sh", Error: "ENOENT"}, []string{"to follow processes, name some"}},
		{&api.TraceStart{Pid: "0", Uid: "root"}, []string{`process id "0"`, `user id "root"`}},
		{&api.TraceStart{Comm: strings.Repeat("x,", maxList)}, []string{"longer than 65536 bytes"}},
	} {
		got, err := Filter(tc.start)
		if err == nil {
			t.Errorf("%v: %+v", tc.start, got)
			continue
		}
		for _, want := range tc.want {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%v: error %q, want %q in it", tc.start, err, want)
			}
		}
	}
}

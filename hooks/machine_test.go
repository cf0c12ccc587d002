// SPDX-License-Identifier: Apache-2.0

package hooks

import (
	"errors"
	"slices"
	"testing"
)

// The domain of the table below, as its sources see it.
const (
	uuidA = "aaaaaaaa-aaaa-aaaa-aaaa-aaaaaaaaaaaa"
	uuidB = "bbbbbbbb-bbbb-bbbb-bbbb-bbbbbbbbbbbb"
)

func TestMachine(t *testing.T) {
	var (
		traced  = Config{Trace: true}
		bad     = errors.New("bad metadata")
		down    = errors.New("libvirtd is down")
		forking = &statusDomain{uuid: uuidA, name: "a", id: 1, config: traced}
		forked  = &statusDomain{uuid: uuidA, name: "a", id: 1, pid: 100, config: traced}
		running = &statusDomain{uuid: uuidA, name: "a", id: 1, pid: 100, launched: true, config: traced}
		plain   = &statusDomain{uuid: uuidA, name: "a", id: 1, pid: 100, launched: true}
		again   = &statusDomain{uuid: uuidA, name: "a", id: 2, pid: 200, launched: true, config: traced}
		broken  = &statusDomain{uuid: uuidA, name: "a", pid: 100, launched: true, configless: true, configErr: bad}
		dead    = &statusDomain{uuid: uuidA, name: "a", id: 1, pid: 100, launched: true, exited: true, config: traced}
		other   = &statusDomain{uuid: uuidB, name: "a", id: 3, pid: 300, launched: true}

		off    = &listedDomain{uuid: uuidA, name: "a", config: traced}
		on     = &listedDomain{uuid: uuidA, name: "a", id: 1, active: true, config: traced}
		offBad = &listedDomain{uuid: uuidA, name: "a", configErr: bad}
		named  = &listedDomain{uuid: uuidA, name: "renamed", config: traced}

		isOff     = State{UUID: uuidA, Name: "a", Config: traced}
		isForking = State{UUID: uuidA, Name: "a", ID: 1, Active: true, Config: traced}
		isForked  = State{UUID: uuidA, Name: "a", ID: 1, Active: true, PID: 100, Config: traced}
		isRunning = State{UUID: uuidA, Name: "a", ID: 1, Active: true, PID: 100, Launched: true, Config: traced}
		isPlain   = State{UUID: uuidA, Name: "a", ID: 1, Active: true, PID: 100, Launched: true}
		isAgain   = State{UUID: uuidA, Name: "a", ID: 2, Active: true, PID: 200, Launched: true, Config: traced}
		isOther   = State{UUID: uuidB, Name: "a", ID: 3, Active: true, PID: 300, Launched: true}
	)
	changed := func(s State) Event { return Event{Kind: DomainChanged, State: s} }
	gone := func(s State) Event { return Event{Kind: DomainGone, State: s} }
	with := func(s State, change func(*State)) State { change(&s); return s }
	synced := Event{Kind: Synced}

	type step struct {
		name string
		do   func(*machine)
		want []Event
	}
	file := func(s *statusDomain) func(*machine) { return func(m *machine) { m.statusFile("a", s) } }
	look := func(l *listedDomain) func(*machine) { return func(m *machine) { m.lookup(uuidA, l) } }
	list := func(l ...listedDomain) func(*machine) { return func(m *machine) { m.list(l) } }

	for _, test := range []struct {
		name  string
		steps []step
	}{
		{"a defined domain's life", []step{
			{"listed", list(*off), []Event{changed(isOff), synced}},
			{"status file before the process", file(forking), []Event{changed(isForking)}},
			{"forked", file(forked), []Event{changed(isForked)}},
			{"vCPUs", file(running), []Event{changed(isRunning)}},
			{"rewritten without change", file(running), nil},
			{"started event", look(on), nil},
			{"metadata removed", file(plain), []Event{changed(isPlain)}},
			{"metadata set", file(running), []Event{changed(isRunning)}},
			{"reset", func(m *machine) { m.reset(uuidA) }, []Event{changed(with(isRunning, func(s *State) { s.Resets = 1 }))}},
			{"emulator exits", func(m *machine) { m.emulatorExited("a", 100) }, []Event{changed(with(isOff, func(s *State) { s.Resets = 1 }))}},
			{"file rewritten at shutdown", file(dead), nil},
			{"file removed", file(nil), nil},
			{"stopped event", look(off), nil},
			{"undefined", look(nil), []Event{gone(with(isOff, func(s *State) { s.Resets = 1 }))}},
		}},
		{"a transient domain's life", []step{
			{"listed", list(), []Event{synced}},
			{"vCPUs", file(running), []Event{changed(isRunning)}},
			{"started event", look(on), nil},
			{"stopped event first", look(nil), nil},
			{"file removed", file(nil), []Event{gone(isOff)}},
			{"another event", look(nil), nil},
		}},
		{"a transient domain whose file goes first", []step{
			{"vCPUs", file(running), []Event{changed(isRunning)}},
			{"started event", look(on), nil},
			{"file removed", file(nil), []Event{changed(isOff)}},
			{"stopped event", look(nil), []Event{gone(isOff)}},
		}},
		{"libvirt is late to notice the end", []step{
			{"running", file(running), []Event{changed(isRunning)}},
			{"listed with another live configuration", list(listedDomain{uuid: uuidA, name: "a", id: 1, active: true}), []Event{synced}},
			{"emulator exits", func(m *machine) { m.emulatorExited("a", 100) }, []Event{changed(isOff)}},
			{"still active, says libvirt", look(on), nil},
			{"file removed", file(nil), nil},
			{"still active, says libvirt again", look(on), nil},
			{"a listing says so too", list(*on), nil},
			{"stopped event", look(&listedDomain{uuid: uuidA, name: "a"}), []Event{changed(State{UUID: uuidA, Name: "a"})}},
			{"started again, seen by libvirt first", look(on), []Event{changed(isForking)}},
			{"vCPUs", file(running), []Event{changed(isRunning)}},
		}},
		{"libvirt is first to notice the end", []step{
			{"running", file(running), []Event{changed(isRunning)}},
			{"stopped event", look(off), nil},
			{"file removed", file(nil), []Event{changed(isOff)}},
			{"started again, seen by libvirt first", look(on), []Event{changed(isForking)}},
		}},
		{"a quick restart", []step{
			{"running", file(running), []Event{changed(isRunning)}},
			{"running as another process", file(again), []Event{changed(isAgain)}},
			{"the first process's exit comes late", func(m *machine) { m.emulatorExited("a", 100) }, nil},
		}},
		{"libvirtd restarts", []step{
			{"running", file(running), []Event{changed(isRunning)}},
			{"listed", list(*on), []Event{synced}},
			{"listed again", list(*on), nil},
			{"lost", func(m *machine) { m.disconnected(down) }, []Event{{Kind: Disconnected, Err: down}}},
			{"still lost", func(m *machine) { m.disconnected(errors.New("again")) }, nil},
			{"metadata edited", file(plain), []Event{changed(isPlain)}},
			{"listed after the restart", list(*on), []Event{synced}},
		}},
		{"a domain that vanished while libvirtd was away", []step{
			{"listed", list(*off), []Event{changed(isOff), synced}},
			{"lost", func(m *machine) { m.disconnected(down) }, []Event{{Kind: Disconnected, Err: down}}},
			{"listed after the restart", list(), []Event{gone(isOff), synced}},
		}},
		{"libvirt was never there", []step{
			{"no connection", func(m *machine) { m.disconnected(down) }, []Event{{Kind: Disconnected, Err: down}}},
			{"running", file(running), []Event{changed(isRunning)}},
			{"file removed", file(nil), []Event{gone(isOff)}},
		}},
		{"listed before its status file is seen", []step{
			{"listed", list(*on), []Event{changed(isForking), synced}},
			{"forked", file(forked), []Event{changed(isForked)}},
		}},
		{"bad metadata", []step{
			{"listed", list(*offBad), []Event{changed(State{UUID: uuidA, Name: "a", ConfigErr: bad}), synced}},
			{"the same again", list(*offBad), nil},
			{"repaired", look(off), []Event{changed(isOff)}},
		}},
		{"a status file that cannot be read", []step{
			{"alone", file(broken), []Event{changed(State{UUID: uuidA, Name: "a", Active: true, PID: 100, Launched: true, ConfigErr: bad})}},
			{"with libvirt's word", look(on), []Event{changed(isRunning)}},
			{"with libvirt's word on a domain that is off", look(off), []Event{changed(State{UUID: uuidA, Name: "a", Active: true, PID: 100, Launched: true, ConfigErr: bad})}},
		}},
		{"a stale status file", []step{
			{"of a dead process", file(dead), []Event{changed(isOff)}},
			{"removed", file(nil), []Event{gone(isOff)}},
		}},
		{"a renamed domain", []step{
			{"listed", list(*off), []Event{changed(isOff), synced}},
			{"renamed", look(named), []Event{changed(State{UUID: uuidA, Name: "renamed", Config: traced})}},
		}},
		{"a name taken by another domain", []step{
			{"running", file(running), []Event{changed(isRunning)}},
			{"the file is another's", file(other), []Event{gone(isOff), changed(isOther)}},
			{"the first is listed, off", look(off), []Event{changed(isOff)}},
			{"the file is the first's again", file(running), []Event{gone(State{UUID: uuidB, Name: "a"}), changed(isRunning)}},
		}},
		{"scans", []step{
			{"first", func(m *machine) { m.statusScan(map[string]*statusDomain{"a": running}) }, []Event{changed(isRunning)}},
			{"the same", func(m *machine) { m.statusScan(map[string]*statusDomain{"a": running}) }, nil},
			{"nothing", func(m *machine) { m.statusScan(nil) }, []Event{gone(isOff)}},
		}},
		{"what nobody knows", []step{
			{"no file", file(nil), nil},
			{"no domain", look(nil), nil},
			{"a reset", func(m *machine) { m.reset(uuidA) }, nil},
			{"an exit", func(m *machine) { m.emulatorExited("a", 100) }, nil},
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			var got []Event
			m := newMachine(func(ev Event) { got = append(got, ev) })
			for _, step := range test.steps {
				got = nil
				step.do(m)
				if !slices.EqualFunc(got, step.want, func(a, b Event) bool {
					return a.Kind == b.Kind && a.State.Equal(b.State) && a.Err == b.Err
				}) {
					t.Fatalf("%s:\ngot  %+v\nwant %+v", step.name, got, step.want)
				}
			}
		})
	}
}

func TestMachineForgets(t *testing.T) {
	m := newMachine(func(Event) {})
	m.statusFile("a", &statusDomain{uuid: uuidA, name: "a", pid: 1})
	m.list([]listedDomain{{uuid: uuidA, name: "a", active: true}, {uuid: uuidB, name: "b"}})
	m.statusFile("a", nil)
	m.list(nil)
	if len(m.domains) != 0 || len(m.files) != 0 {
		t.Errorf("%d domains and %d files are kept of what is gone", len(m.domains), len(m.files))
	}
}

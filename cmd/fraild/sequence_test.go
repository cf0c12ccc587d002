// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"frail/bpf"
	"frail/bpf/bpftest"
	"frail/cmd/internal/config"
	"frail/hooks"
	"frail/qmp/layout"
	"frail/tracer/ph"
	"frail/tracer/sequence"
)

const testUUID = "5e7f3f3e-5bd0-4b1f-8df4-0d3a6a5f7b11"

// guestOf makes calls of a guest by running the analysis' program on them.
type guestOf struct {
	t      *testing.T
	events *bpftest.Events
	s      *sequences
	vm     uint32
	who    uint64
}

// untold is a guest whose threads are described once, and not listed.
var untold = guestThreads{describe: func() error { return nil }}

// call makes calls of a process of its own that runs a program.
func (g *guestOf) call(pid int32, path string, nrs ...int64) {
	g.t.Helper()
	g.who++
	ev := bpf.Event{
		Vm: g.vm, Kind: bpf.EventEnter, Insn: bpf.InsnSyscall64, Flags: bpf.EventIdentity, Pid: pid, Tgid: pid,
		Task: uint64(pid) << 12, Cr3: uint64(pid) << 12, Who: g.who,
	}
	p := bpf.Process{Head: ev, Known: bpf.ProcessExe}
	copy(p.Exe[:], path)
	g.events.FireProcess(g.t, g.s.analyzer.ProcessProgram(), 0, &p)
	for _, nr := range nrs {
		ev.Nr = nr
		*g.events.At(0) = ev
		g.events.Fire(g.t, g.s.analyzer.Program(), 0)
	}
}

func sequencesIn(t *testing.T, dir string) *sequences {
	t.Helper()
	cfg := config.Default()
	cfg.Sequence.StateDir = dir
	s := newSequences(cfg, slog.New(slog.DiscardHandler))
	s.attach = func(*sequence.Analyzer) error { return nil }
	t.Cleanup(s.close)
	return s
}

func domainState(seq hooks.Sequence) hooks.State {
	return hooks.State{UUID: testUUID, Name: "guest", Active: true, Config: hooks.Config{Trace: true, Sequence: seq}}
}

// What a guest taught outlives the daemon and the VM's id, and judges then.
func TestProfilesOutliveTheDaemon(t *testing.T) {
	dir := t.TempDir()
	on := hooks.Sequence{On: true, NormalWaitPlus1: 1}
	s := sequencesIn(t, dir)
	if err := s.follow(7, domainState(on), untold); err != nil {
		t.Fatal(err)
	}
	g := &guestOf{t, bpftest.New(t, 5), s, 7, 0}
	for range 200 {
		g.call(10, "/srv/server", 0, 1, 3)
	}
	g.call(11, "/odd \x01 name", 5, 6)
	before, err := s.analyzer.Profile(ph.NewExecutable(7, "/srv/server"))
	if err != nil {
		t.Fatal(err)
	}
	if !before.Normal {
		t.Fatalf("the profile is not normal after 600 calls: %+v", before)
	}
	s.close()

	s = sequencesIn(t, dir)
	if err := s.follow(9, domainState(on), untold); err != nil {
		t.Fatal(err)
	}
	after, err := s.analyzer.Profile(ph.NewExecutable(9, "/srv/server"))
	if err != nil {
		t.Fatal(err)
	}
	after.NormalTime, before.NormalTime = 0, 0
	if !reflect.DeepEqual(after, before) {
		t.Errorf("loaded %+v\nsaved %+v", after, before)
	}
	if _, err := s.analyzer.Profile(ph.NewExecutable(9, "/odd \x01 name")); err != nil {
		t.Error(err)
	}

	_, next, changed := s.alerts.since(0)
	if next != 0 {
		t.Fatalf("%d alerts before the attack", next)
	}
	g = &guestOf{t, g.events, s, 9, g.who}
	for range 2 {
		g.call(12, "/srv/server", 0, 1, 3, 0, 1, 3, 0, 1, 3)
	}
	g.call(12, "/srv/server", 59, 41, 42, 257, 59, 41, 42, 257, 59, 41, 42, 257, 59, 41)
	select {
	case <-changed:
	case <-time.After(30 * time.Second):
		t.Fatal("no alert")
	}
	alerts, _, _ := s.alerts.since(0)
	a := alerts[0]
	if a.Kind != ph.AlertAttack || a.name != "guest" || a.uuid != testUUID || a.PID != 12 || a.Executable != "/srv/server" {
		t.Errorf("alert %+v", a)
	}
	if text := a.Sequence(); !strings.Contains(text, "execve") || !strings.Contains(text, "socket") {
		t.Errorf("sequence %q names no call of the attack", text)
	}
}

func TestSequenceSettings(t *testing.T) {
	s := sequencesIn(t, t.TempDir())
	if got := s.settings(hooks.Sequence{On: true}); got != ph.DefaultSettings() {
		t.Errorf("nothing given: %+v", got)
	}
	got := s.settings(hooks.Sequence{On: true, Learn: hooks.No, TolerizePlus1: 1, AnomalyPlus1: 6, ProcessesPlus1: 8, NormalWaitPlus1: 1})
	if want := (ph.Settings{AnomalyLimit: 5, ProcessLimit: 7}); got != want {
		t.Errorf("all given: %+v, want %+v", got, want)
	}
}

// A corrupt profile is no reason not to analyse, nor is it lost.
func TestCorruptProfile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "profiles", testUUID, "%2Fbin%2Fsh.profile")
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte("garbage"), 0o600); err != nil {
		t.Fatal(err)
	}
	s := sequencesIn(t, dir)
	if err := s.follow(1, domainState(hooks.Sequence{On: true}), untold); err != nil {
		t.Fatal(err)
	}
	kept, err := filepath.Glob(path + ".corrupt-*")
	if err != nil || len(kept) != 1 {
		t.Errorf("kept %v, %v", kept, err)
	}
}

// A thread that the guest's task list does not have is freed, once it is idle.
func TestReap(t *testing.T) {
	s := sequencesIn(t, t.TempDir())
	asked, described := 0, 0
	tasks := func(context.Context) ([]layout.Task, error) {
		asked++
		return []layout.Task{{Addr: 1 << 12, PID: 1}}, nil
	}
	if err := s.follow(1, domainState(hooks.Sequence{On: true}), guestThreads{tasks, func() error { described++; return nil }}); err != nil {
		t.Fatal(err)
	}
	g := &guestOf{t, bpftest.New(t, 5), s, 1, 0}
	g.call(1, "/living", 1)
	g.call(2, "/killed", 1)
	s.reap(t.Context())
	if asked != 0 {
		t.Error("the guest's threads are listed although none is idle")
	}
	s.reap(t.Context())
	threads, err := s.analyzer.Threads()
	if err != nil {
		t.Fatal(err)
	}
	if len(threads) != 1 || threads[0].PID != 1 || asked != 1 {
		t.Errorf("left %+v after %d lists", threads, asked)
	}
	if described != 1 {
		t.Errorf("the guest's threads are described %d times, want once", described)
	}
	// A call of a thread that was not described, or whose state was lost, is not the last.
	ev := bpf.Event{Vm: 1, Kind: bpf.EventEnter, Insn: bpf.InsnSyscall64, Flags: bpf.EventIdentity, Pid: 9, Tgid: 9, Who: 99}
	*g.events.At(0) = ev
	g.events.Fire(t, s.analyzer.Program(), 0)
	for range 2 {
		if s.reap(t.Context()); described != 2 {
			t.Errorf("after a call of a thread that was not described, threads are described %d times, want twice", described)
		}
	}
	s.restarted(1)
	if threads, err := s.analyzer.Threads(); err != nil || len(threads) != 0 {
		t.Errorf("a guest that was started anew has %+v, %v", threads, err)
	}
	s.restarted(2)
	if err := s.follow(1, domainState(hooks.Sequence{}), untold); err != nil {
		t.Fatal(err)
	}
	if infos, err := s.analyzer.List(); err != nil || len(infos) != 0 {
		t.Errorf("a domain that asks no more has %d profiles, %v", len(infos), err)
	}
}

func TestAlertLog(t *testing.T) {
	l := alertLog{max: 3, changed: make(chan struct{})}
	for i := range 5 {
		l.add(alertOf{Alert: ph.Alert{Kind: ph.AlertDrift}, uuid: testUUID, name: string(rune('a' + i))})
	}
	got, next, _ := l.since(0)
	if len(got) != 3 || got[0].name != "c" || next != 5 {
		t.Errorf("%+v, next %d", got, next)
	}
	if got, _, _ := l.since(4); len(got) != 1 || got[0].name != "e" {
		t.Errorf("from 4: %+v", got)
	}
	if got, next, _ := l.since(99); len(got) != 0 || next != 5 {
		t.Errorf("from beyond: %+v, next %d", got, next)
	}
	if got := l.count(testUUID); len(got) != 1 || got[ph.AlertDrift] != 5 {
		t.Errorf("of 5 alerts these are counted: %v", got)
	}
	l.forget(testUUID)
	if got := l.count(testUUID); len(got) != 0 {
		t.Errorf("forgotten alerts are counted: %v", got)
	}
}

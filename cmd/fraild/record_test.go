// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"frail/bpf"
	"frail/bpf/bpftest"
	"frail/cmd/internal/config"
	"frail/hooks"
	"frail/tracer"
	"frail/tracer/capture"
	"frail/tracer/ph"
	"frail/tracer/record"
)

func recordsIn(t *testing.T, dir string) *records {
	t.Helper()
	cfg := config.Default()
	cfg.Record.Dir = dir
	cfg.Record.MaxBytes = record.MinBytes
	cfg.Record.MaxFiles = 2
	r := newRecords(cfg, slog.New(slog.DiscardHandler))
	r.attach = func(*record.Recorder) error { return nil }
	t.Cleanup(r.close)
	return r
}

func recordedState(seconds uint32) hooks.State {
	return hooks.State{UUID: testUUID, Name: "guest", Active: true, Config: hooks.Config{
		Trace: true, Record: hooks.Record{SecondsPlus1: seconds + 1},
	}}
}

func noDescribe() error { return nil }

// captured counts the events of a capture.
type captured struct{ events int }

func (c *captured) Event(*bpf.Event) error { c.events++; return nil }
func (*captured) Lost(tracer.Lost) error   { return nil }
func (*captured) Flush() error             { return nil }

func eventsIn(t *testing.T, data []byte) int {
	t.Helper()
	r, err := capture.NewReader(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if r.Header.Domain != "guest" || r.Header.UUID != testUUID {
		t.Errorf("header %+v", r.Header)
	}
	var c captured
	if err := r.Run(&c); err != nil || r.Truncated {
		t.Fatalf("truncated %t, %v", r.Truncated, err)
	}
	return c.events
}

// What is recorded follows what the domain asks for, and outlives its VM.
func TestRecordFollowsTheDomain(t *testing.T) {
	r := recordsIn(t, t.TempDir())
	calls := bpftest.New(t, 1)
	call := func(vm uint32, n int) {
		*calls.At(0) = bpf.Event{Vm: vm, Kind: bpf.EventEnter}
		for range n {
			calls.Fire(t, r.recorder.Program(bpf.EventEnter), 0)
		}
	}
	if err := r.follow(7, hooks.State{UUID: testUUID, Config: hooks.Config{Trace: true}}, noDescribe); err != nil || r.recorder != nil {
		t.Fatalf("a domain that asks for nothing: %v, %v", r.recorder, err)
	}
	described := 0
	if err := r.follow(7, recordedState(30), func() error { described++; return nil }); err != nil || described != 1 {
		t.Fatalf("described %d times, %v", described, err)
	}
	call(7, 3)
	if err := r.follow(7, recordedState(60), noDescribe); err != nil {
		t.Fatal(err)
	}
	call(7, 2)
	r.leave(7)
	call(7, 1)
	data, sum, err := r.dump(r.domains[testUUID], 0)
	if err != nil {
		t.Fatal(err)
	}
	if n := eventsIn(t, data); n != 5 || sum.GetEvents() != 5 || sum.GetSeconds() != 60 || sum.GetFull() {
		t.Errorf("of 5 calls %d are held: %v", n, sum)
	}

	if err := r.follow(8, recordedState(60), noDescribe); err != nil {
		t.Fatal(err)
	}
	const room = record.MinBytes/160 - 1
	call(8, room+1)
	data, sum, err = r.dump(r.domains[testUUID], 0)
	if err != nil {
		t.Fatal(err)
	}
	if n := eventsIn(t, data); n != room || !sum.GetFull() {
		t.Errorf("of a full record %d are held: %v", n, sum)
	}
	if got := r.describe(r.domains[testUUID]); got.GetHeld() != room || got.GetRecorded() != room+1 || got.GetHeldNs() == 0 || got.GetEnded() {
		t.Errorf("described as %v", got)
	}
	if err := r.follow(8, recordedState(0), noDescribe); err != nil || len(r.domains) != 0 {
		t.Errorf("a domain that asks no more: %v, %v", r.domains, err)
	}
}

// An alert writes the record, at once; those that follow soon are in one more file. Of too many
// files the oldest go.
func TestAlertsWriteRecords(t *testing.T) {
	dir := t.TempDir()
	r := recordsIn(t, dir)
	older := filepath.Join(dir, "guest-20200101T000000.000Z.frail")
	oldest := filepath.Join(dir, "guest-20190101T000000.000Z.frail")
	others := filepath.Join(dir, "guest-2-20190101T000000.000Z.frail")
	for _, path := range []string{older, oldest, others} {
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.follow(7, recordedState(3600), noDescribe); err != nil {
		t.Fatal(err)
	}
	calls := bpftest.New(t, 1)
	*calls.At(0) = bpf.Event{Vm: 7, Kind: bpf.EventEnter}
	calls.Fire(t, r.recorder.Program(bpf.EventEnter), 0)

	r.alert(testUUID, ph.AlertLimit)
	r.alert("another", ph.AlertAttack)
	r.alert(testUUID, ph.AlertAttack)
	written := func(n int) [][]byte {
		t.Helper()
		var all [][]byte
		for deadline := time.Now().Add(30 * time.Second); len(all) != n; time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%d files are written, want %d", len(all), n)
			}
			files, err := r.list("guest")
			if err != nil {
				t.Fatal(err)
			}
			all = nil
			for _, f := range files {
				if data, err := os.ReadFile(f.GetPath()); err == nil && len(data) > 0 {
					all = append(all, data)
				}
			}
		}
		return all
	}
	if n := eventsIn(t, written(1)[0]); n != 1 {
		t.Errorf("%d events are written, want 1", n)
	}
	calls.Fire(t, r.recorder.Program(bpf.EventEnter), 0)
	r.alert(testUUID, ph.AlertAttack)
	r.alert(testUUID, ph.AlertDrift)
	r.forget(testUUID) // writes what is due
	if n := eventsIn(t, written(2)[1]); n != 2 {
		t.Errorf("%d events are written, want 2", n)
	}
	for path, want := range map[string]bool{oldest: false, older: false, others: true} {
		if _, err := os.Stat(path); (err == nil) != want {
			t.Errorf("%s is there: %t", path, !want)
		}
	}
}

// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"frail/api"
	"frail/bpf"
	"frail/bpf/bpftest"
	"frail/tracer"
)

// What the module tells reaches the user: entries, returns that are late or not known, and
// what is not seen. A domain that is armed again ends the trace in order.
func TestTraceShowsWhatIsNotKnown(t *testing.T) {
	var batch api.Batch
	for _, ev := range []bpf.Event{
		{Kind: bpf.EventCoverage, Nr: -1, Args: [6]uint64{uint64(bpf.EntrySyscall), uint64(bpf.EntryInt80 | bpf.EntrySysenter)}},
		{Kind: bpf.EventEnter, Insn: bpf.InsnSyscall64, Flags: bpf.EventNr, Nr: 39},
		{Kind: bpf.EventExit, Insn: bpf.InsnSyscall64, Flags: bpf.EventNr | bpf.EventDeferred, Nr: 39},
		{Kind: bpf.EventEnter, Insn: bpf.InsnInt80In32, Flags: bpf.EventNr, Nr: 20},
		{Kind: bpf.EventExit, Insn: bpf.InsnInt80In32, Flags: bpf.EventNr | bpf.EventDeferred | bpf.EventRet, Nr: 20, Ret: 7},
		{Kind: bpf.EventCoverage, Nr: -1, Args: [6]uint64{uint64(bpf.EntrySyscall | bpf.EntryInt80 | bpf.EntrySysenter), 0}},
	} {
		batch.Add(&ev)
	}
	s := &stream{messages: []*api.TraceResponse{
		{Record: &api.TraceResponse_Started{Started: &api.TraceStarted{Vm: 1}}},
		batch.Take(),
		{Record: &api.TraceResponse_Summary{Summary: &api.Summary{Events: 6, Reason: "armed again"}}},
	}}
	var out bytes.Buffer
	var notes []string
	err := (&traceOptions{color: colorAuto}).run(t.Context(), &streamClient{s: s}, "vm", &out, func(note string) { notes = append(notes, note) })
	if err != nil {
		t.Fatal(err)
	}
	want := `--- INT 0x80 and SYSENTER are not seen now: the guest uses its debug registers ---
[no identity]                    getpid()
[no identity]                    ... getpid = ?
[no identity]                    getpid@32:int80()
[no identity]                    ... getpid@32:int80 = 7
--- all entries are seen again ---
--- 6 events, 0 events lost ---
`
	if out.String() != want {
		t.Errorf("got\n%s\nwant\n%s", out.String(), want)
	}
	if want := []string{"domain 'vm' was armed again with other exits: trace it again"}; !slices.Equal(notes, want) {
		t.Errorf("notes %q, want %q", notes, want)
	}
}

// enterAndExit is a trace of one call.
func enterAndExit() *streamClient {
	var batch api.Batch
	for _, ev := range []bpf.Event{
		{Kind: bpf.EventEnter, Insn: bpf.InsnSyscall64, Flags: bpf.EventNr, Nr: 257, Args: [6]uint64{1<<64 - 100, 0x1000, 0x80000}},
		{Kind: bpf.EventExit, Insn: bpf.InsnSysret64, Flags: bpf.EventNr | bpf.EventRet, Nr: 257, Ret: -2},
	} {
		batch.Add(&ev)
	}
	return &streamClient{s: &stream{messages: []*api.TraceResponse{
		{Record: &api.TraceResponse_Started{Started: &api.TraceStarted{Vm: 1}}},
		batch.Take(),
		{Record: &api.TraceResponse_Summary{Summary: &api.Summary{Events: 2, Reason: "stopped"}}},
	}}}
}

func TestTraceOutputs(t *testing.T) {
	const who, end = "[no identity]                    ", "--- 2 events, 0 events lost ---\n"
	pftrace := filepath.Join(t.TempDir(), "a.pftrace")
	for _, tc := range []struct {
		name string
		t    *traceOptions
		want string
	}{
		{"text", &traceOptions{color: colorAuto}, who + "openat(AT_FDCWD, 0x1000, O_RDONLY|O_CLOEXEC)\n" +
			who + "... openat = -1 ENOENT (No such file or directory)\n" + end},
		{"raw", &traceOptions{color: colorNever, raw: true}, who + "openat(0xffffffffffffff9c, 0x1000, 0x80000, 0x0)\n" +
			who + "... openat = -2 ENOENT (no such file or directory)\n" + end},
		{"colour", &traceOptions{color: colorAlways, raw: true}, who + "\x1b[36mopenat\x1b[0m(0xffffffffffffff9c, 0x1000, 0x80000, 0x0)\n" +
			who + "... \x1b[36mopenat\x1b[0m = \x1b[31m-2 ENOENT (no such file or directory)\x1b[0m\n" + end},
		{"perfetto", &traceOptions{color: colorAuto, perfetto: pftrace}, end},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var out bytes.Buffer
			if err := tc.t.run(t.Context(), enterAndExit(), "vm", &out, func(string) {}); err != nil {
				t.Fatal(err)
			}
			if out.String() != tc.want {
				t.Errorf("got\n%q\nwant\n%q", out.String(), tc.want)
			}
		})
	}
	data, err := os.ReadFile(pftrace)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(data, []byte("AT_FDCWD, 0x1000, O_RDONLY|O_CLOEXEC")) || !bytes.Contains(data, []byte("-1 ENOENT")) {
		t.Errorf("the file does not have the call: %q", data)
	}
	bad := traceOptions{perfetto: filepath.Join(t.TempDir(), "no", "file")}
	if err := bad.run(t.Context(), enterAndExit(), "vm", new(bytes.Buffer), nil); err == nil || !strings.Contains(err.Error(), "--perfetto: ") {
		t.Errorf("a file that cannot be made: %v", err)
	}
}

// Colour is for terminals, and for who wants it elsewhere.
func TestUseColor(t *testing.T) {
	terminal, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer terminal.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	for _, tc := range []struct {
		when, noColor string
		w             io.Writer
		want          bool
	}{
		{colorAuto, "", terminal, true},
		{colorAuto, "1", terminal, false},
		{colorAuto, "", null, false},
		{colorAuto, "", new(bytes.Buffer), false},
		{colorNever, "", terminal, false},
		{colorAlways, "1", null, true},
	} {
		t.Setenv("NO_COLOR", tc.noColor)
		if got := useColor(tc.when, tc.w); got != tc.want {
			t.Errorf("--color %s with NO_COLOR=%q to %T: %v", tc.when, tc.noColor, tc.w, got)
		}
	}
	if err := checkColor("sometimes"); err == nil {
		t.Error("--color sometimes is no error")
	}
}

// A limit shows as many events as the tracer counts as delivered, and ends the trace whether or
// not there are more.
func TestLimitOfQEMU(t *testing.T) {
	for _, fired := range []int{3, 5} {
		tr, err := tracer.New(tracer.Options{VMs: []uint32{7}})
		if err != nil {
			t.Fatal(err)
		}
		defer tr.Close()
		events := bpftest.New(t, 1)
		*events.At(0) = bpf.Event{Vm: 7, Kind: bpf.EventEnter, Insn: bpf.InsnSyscall64, Nr: 39}
		for range fired {
			events.Fire(t, tr.EnterProgram(), 0)
		}
		var out bytes.Buffer
		text, err := (&traceOptions{color: colorNever}).open(&out)
		if err != nil {
			t.Fatal(err)
		}
		if err := text.Started(&api.TraceStarted{}); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := tr.Run(ctx, &limitedSink{traceText: text, limit: 3}); !errors.Is(err, errLimit) {
			t.Fatalf("%d events: the trace ends by %v", fired, err)
		}
		sum, err := tr.Summary()
		if err != nil {
			t.Fatal(err)
		}
		if err := text.Summary(sum); err != nil {
			t.Fatal(err)
		}
		if n := strings.Count(out.String(), "getpid()"); n != 3 || sum.Delivered != 3 {
			t.Errorf("%d events: %d delivered, %d shown, want 3:\n%s", fired, sum.Delivered, n, out.String())
		}
	}
}

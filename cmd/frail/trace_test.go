// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"slices"
	"testing"

	"frail/api"
	"frail/bpf"
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
	err := new(traceOptions).run(t.Context(), &streamClient{s: s}, "vm", &out, func(note string) { notes = append(notes, note) })
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

// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"frail/api"
	"frail/bpf"
	"frail/tracer"
	"frail/tracer/capture"
)

// A file is shown as the trace was, with who made the calls once.
func TestRecordShow(t *testing.T) {
	var file bytes.Buffer
	w, err := capture.NewWriter(&file, capture.Header{Domain: "guest"})
	if err != nil {
		t.Fatal(err)
	}
	ev := bpf.Event{
		Time: 1, Vm: 1, Kind: bpf.EventEnter, Insn: bpf.InsnSyscall64, Flags: bpf.EventNr | bpf.EventIdentity, Nr: 39, Task: 1, Who: 5,
		Pid: 10, Tgid: 10, Comm: [16]byte{'s', 'h'},
	}
	who := bpf.Process{Head: ev, Known: bpf.ProcessExe}
	copy(who.Exe[:], "/bin/sh")
	for _, err := range []error{
		w.Process(&who), w.Event(&ev), w.Sync(), w.Lost(tracer.Lost{Time: 2, Losses: tracer.Losses{RingFull: 3}}), w.Event(&ev), w.Close(),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	path := filepath.Join(t.TempDir(), "guest.frail")
	show := func(flags ...string) (string, error) {
		var out bytes.Buffer
		err := run(t.Context(), append([]string{"record", "show", path}, flags...), &out, &out)
		return out.String(), err
	}
	if err := os.WriteFile(path, file.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	text, err := show()
	if n := strings.Count(text, "getpid()"); err != nil || n != 2 || strings.Contains(text, "/bin/sh") ||
		!strings.HasSuffix(text, "--- 2 events, 3 events lost: 3 because the reader was too slow ---\n") {
		t.Errorf("shown, %v:\n%s", err, text)
	}
	if text, err = show("--who"); err != nil || strings.Count(text, "/bin/sh") != 1 {
		t.Errorf("shown with --who, %v:\n%s", err, text)
	}
	if err := os.WriteFile(path, file.Bytes()[:file.Len()-100], 0o600); err != nil {
		t.Fatal(err)
	}
	if text, err = show(); err == nil {
		t.Errorf("a file that is cut off is shown as whole:\n%s", text)
	}
}

func TestRecordList(t *testing.T) {
	resp := &api.RecordsResponse{
		Records: []*api.Record{
			{Name: "a", Seconds: 30, HeldNs: 12_340_000_000, Held: 5, Recorded: 9, Bytes: 70 << 20},
			{Name: "b", Seconds: 5, Ended: true},
		},
		Files: []*api.RecordFile{{Path: "/x.frail", Bytes: 7}},
	}
	var out bytes.Buffer
	if err := writeRecords(&out, resp, false, false, true); err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(strings.Fields(out.String()), " "); got != "a 30 12.3 5 70 recording, full b 5 0.0 0 0 ended" {
		t.Errorf("list %q", got)
	}
	out.Reset()
	if err := writeRecords(&out, resp, true, false, true); err != nil || strings.Join(strings.Fields(out.String()), " ") != "/x.frail 7" {
		t.Errorf("files %q, %v", out.String(), err)
	}
}

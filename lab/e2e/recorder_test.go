// SPDX-License-Identifier: Apache-2.0

//go:build lab

package e2e

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
)

// TestFlightRecorder dumps what a guest did when nobody traced it, also after it was destroyed,
// and has an alert write it.
func TestFlightRecorder(t *testing.T) {
	begin(t)
	guest := startGuest(t, "recorded", metadata(strings.Replace(analysed, "</frail:frail>", `<frail:record seconds="3600"/></frail:frail>`, 1)))
	waitGuest(t, guest)
	waitTraced(t, guest)
	runIn(t, guest, install)
	for range 2 {
		runServer(t, guest, fmt.Sprintf(serve, 20))
	}
	must(t, "frail", "profile", "normalize", guest.Name+serverPath)
	const done = `umask 0123`
	runIn(t, guest, done)

	dir := t.TempDir()
	// made says whether a file has the call, by a thread that is known.
	made := func(path string) bool {
		t.Helper()
		text := must(t, "frail", "record", "show", path, "--json")
		for _, line := range strings.Split(strings.TrimSpace(text), "\n") {
			var r record
			if err := json.Unmarshal([]byte(line), &r); err != nil {
				t.Fatalf("%v in %q", err, line)
			}
			if r.Type == recordEnter && r.Syscall == "umask" && len(r.Args) > 0 && r.Args[0] == 0o123 {
				return r.Identity && r.Comm != ""
			}
		}
		return false
	}
	running := filepath.Join(dir, "running.frail")
	t.Log(must(t, "frail", "record", "list"))
	must(t, "frail", "record", "dump", guest.Name, "-o", running)
	if !made(running) {
		t.Error("what the guest did is not in its record")
	}
	must(t, "frail", "replay", running)

	runServer(t, guest, attack)
	var doc struct{ Files []struct{ Path string } }
	eventually(t, "the alert writes the record", func() error {
		if err := json.Unmarshal([]byte(must(t, "frail", "record", "list", guest.Name, "--json")), &doc); err != nil {
			return err
		}
		if len(doc.Files) == 0 {
			return fmt.Errorf("no file")
		}
		return nil
	})
	if !made(doc.Files[0].Path) {
		t.Error("what the guest did is not in the record that the alert wrote")
	}

	must(t, "virsh", "destroy", guest.Name)
	destroyed := filepath.Join(dir, "destroyed.frail")
	eventually(t, "the record ends with the guest", func() error {
		if out := must(t, "frail", "record", "list", guest.Name); !strings.Contains(out, "ended") {
			return fmt.Errorf("%s", out)
		}
		return nil
	})
	must(t, "frail", "record", "dump", guest.Name, "-o", destroyed)
	if !made(destroyed) {
		t.Error("the record is gone with the guest")
	}
}

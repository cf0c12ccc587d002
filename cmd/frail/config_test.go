// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"frail/cmd/internal/exit"
)

// What a user reads of a configuration and of its mistakes.
func TestConfigCheck(t *testing.T) {
	dir := t.TempDir()
	file, dropIn := filepath.Join(dir, "frail.toml"), filepath.Join(dir, "conf.d", "10-log.toml")
	write := func(path, text string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(file, "[log]\nlevel = \"warn\"\n[trace]\nmax_sessions = 7\n")
	write(dropIn, "[log]\nlevel = \"debug\"\n")
	out, _, err := frailCmd(t, "config", "check", "--config", file)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"level = \"debug\" # " + dropIn + ":2\n", "max_sessions = 7 # " + file + ":4\n", "group = \"frail\" # default\n"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}

	write(dropIn, "[log]\nlevel = \"debug\"\nfile = \"x\"\n[trace]\nring_bytes = 1\n")
	out, errs, err := frailCmd(t, "config", "check", "--config", file)
	if want := "error: " + dropIn + ":3: log.file: unknown key\nerror: " + dropIn + ":5: trace.ring_bytes: 1 is not a power of two from 65536 to 268435456\n"; out != "" || errs != want || statusOf(err) != exit.Failure {
		t.Errorf("with mistakes it prints %q and\n%s\nerror %v, want\n%s", out, errs, err, want)
	}
	out, _, err = frailCmd(t, "config", "check", "--config", file, "--json")
	var doc struct {
		Configuration any
		Errors        []struct {
			File, Key string
			Line      int
		}
	}
	if jerr := json.Unmarshal([]byte(out), &doc); jerr != nil || err == nil {
		t.Fatalf("error %v, %v in\n%s", err, jerr, out)
	}
	if len(doc.Errors) != 2 || doc.Errors[1].Line != 5 || doc.Errors[1].Key != "trace.ring_bytes" || doc.Errors[1].File != dropIn || doc.Configuration != nil {
		t.Errorf("document is %+v", doc)
	}
	if _, errs, err := frailCmd(t, "config", "check", "--config", filepath.Join(dir, "none")); err == nil || !strings.Contains(errs, "none: no such file") {
		t.Errorf("of no file: %q, %v", errs, err)
	}
}

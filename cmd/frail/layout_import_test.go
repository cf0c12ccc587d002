// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The kernel that runs here has BTF in a file; what it is imported as is checked in
// qmp/layout.
func TestLayoutImport(t *testing.T) {
	const own = "/sys/kernel/btf/vmlinux"
	if _, err := os.Stat(own); err != nil {
		t.Skip(err)
	}
	id := strings.Repeat("0123456789", 4)
	dir := filepath.Join(t.TempDir(), "layouts")
	text := filepath.Join(t.TempDir(), "text")
	if err := os.WriteFile(text, []byte("no kernel"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		args []string
		out  string // or
		err  string
	}{
		{[]string{"--btf", own, "--build-id", id}, id + ": 0 symbols, types\n", ""},
		{[]string{"--btf", own}, "", "build id"},
		{[]string{"--btf", text, "--build-id", id}, "", text},
		{[]string{"--isf", text, "--build-id", id}, "", text},
		{[]string{"--vmlinux", text}, "", text},
		{[]string{"--vmlinux", "/bin/sh"}, "", "/bin/sh"},
		{nil, "", "at least one of"},
		{[]string{"--btf", own, "--isf", text}, "", "none of the others can be"},
	} {
		cmd := newLayoutImport()
		var out bytes.Buffer
		cmd.SetOut(&out)
		cmd.SetErr(&out)
		cmd.SilenceErrors, cmd.SilenceUsage = true, true
		cmd.SetArgs(append([]string{"--store", dir}, tt.args...))
		err := cmd.ExecuteContext(t.Context())
		if tt.err != "" {
			if err == nil || !strings.Contains(err.Error(), tt.err) {
				t.Errorf("%v: error %v; want one with %q", tt.args, err, tt.err)
			}
			continue
		}
		if err != nil || out.String() != tt.out {
			t.Errorf("%v: %q, %v; want %q", tt.args, out.String(), err, tt.out)
		}
	}
	files, err := os.ReadDir(dir)
	if err != nil || len(files) != 1 {
		t.Errorf("the store has %v, %v", files, err)
	}
}

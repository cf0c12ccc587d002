// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"path/filepath"
	"testing"
)

// A module that could not be loaded says why in the kernel's log.
func TestModuleCheckShowsTheLog(t *testing.T) {
	const plain = "not loaded"
	for _, tc := range []struct{ name, log, want string }{
		{"no log", "", plain},
		{"others' messages", "3,1,2,-;kvm: frail: no\n SUBSYSTEM=x\n3,2,3,-;frailty: no\n", plain},
		{"no warning", "5,1,2,-;frail: VM of process 1 not traced\n", plain},
		{"a user's message", "11,1,2,-;frail: made up\n", plain},
		{"tainting", "4,1,2,-;frail: loading out-of-tree module taints kernel.\n", plain},
		{"an error", "3,1,2,-;frail: this kernel has no symbol kvm_x, which Frail needs\n SUBSYSTEM=module\n",
			"not loaded; the kernel's log: this kernel has no symbol kvm_x, which Frail needs"},
		{"the last of many", "3,1,2,-;frail: a\n3,2,2,-;frail: b\n3,3,2,-;frail: c\n6,4,2,-;eth0: up\n4,5,2,-;frail: d\n",
			"not loaded; the kernel's log: b; c; d"},
	} {
		s := system{root: t.TempDir()}
		if tc.log != "" {
			if err := os.Mkdir(s.path("dev"), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(s.root, "dev/kmsg"), []byte(tc.log), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if c := s.module(); c.GetOk() || c.GetFix() == "" || c.GetDetail() != tc.want {
			t.Errorf("%s: %v, want the detail %q", tc.name, c, tc.want)
		}
	}
}

// The running kernel's log has an end.
func TestKernelLogIsRead(t *testing.T) {
	if len(system{root: "/"}.kmsg()) == 0 {
		t.Error("nothing read of /dev/kmsg")
	}
}

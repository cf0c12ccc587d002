// SPDX-License-Identifier: Apache-2.0

//go:build lab

package proof

import (
	"testing"

	"frail/bpf"
	"frail/lab/direct"
)

// TestRegisters looks at all that a call leaves in a program's registers. Traced with
// both exits a program sees nothing; with one it sees RF in R11, once its first calls are
// over, but for those after one whose return value an interrupt destroyed.
func TestRegisters(t *testing.T) {
	const unseen, seen = "first rf=0\nlater rf=0\nodd=0\n", "first rf=0\nlater rf=1\nodd=0\n"
	cfg := direct.Config{Script: "t-regs"}
	res, err := run(t, cfg)
	if err != nil {
		t.Fatal(err)
	}
	if res.Output != unseen {
		t.Fatalf("untraced:\n%swant:\n%s", res.Output, unseen)
	}
	for _, mode := range exitModes {
		t.Run(mode.name, func(t *testing.T) {
			want := unseen
			if mode.exits == bpf.ExitsEntry {
				want = seen
			}
			tr, err := direct.Trace(testContext(t), guest(cfg), mode.exits)
			if err != nil {
				t.Fatal(err)
			}
			if tr.Output != want || tr.Status.Enters == 0 {
				t.Errorf("after %d traced calls:\n%swant:\n%s", tr.Status.Enters, tr.Output, want)
			}
		})
	}
}

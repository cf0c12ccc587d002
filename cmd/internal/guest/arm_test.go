// SPDX-License-Identifier: Apache-2.0

package guest

import (
	"testing"

	"frail/bpf"
	"frail/hooks"
)

// The module is told to trap what the metadata asks for.
func TestExits(t *testing.T) {
	for exits, want := range map[hooks.Exits]uint32{hooks.ExitsBoth: bpf.ExitsBoth, hooks.ExitsEntry: bpf.ExitsEntry} {
		if got := Exits(exits); got != want {
			t.Errorf("%s: %d, want %d", exits, got, want)
		}
	}
}

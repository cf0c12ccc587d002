// SPDX-License-Identifier: Apache-2.0

package guest

import (
	"reflect"
	"testing"

	"frail/bpf"
	"frail/hooks"
	"frail/tracer"
	"frail/tracer/syscalls"
)

// The module is told to trap what the metadata asks for.
func TestExits(t *testing.T) {
	for exits, want := range map[hooks.Exits]uint32{hooks.ExitsBoth: bpf.ExitsBoth, hooks.ExitsEntry: bpf.ExitsEntry} {
		if got := Exits(exits); got != want {
			t.Errorf("%s: %d, want %d", exits, got, want)
		}
	}
}

func TestFilter(t *testing.T) {
	calls, err := syscalls.ParseFilter("!futex")
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		calls, comm string
		want        tracer.Filter
	}{
		{"", "", tracer.Filter{}},
		{"!futex", "sshd", tracer.Filter{Syscalls: calls, Comms: []string{"sshd"}}},
	} {
		if got, err := Filter(tc.calls, tc.comm); err != nil || !reflect.DeepEqual(got, tc.want) {
			t.Errorf("%q, %q: %+v, %v, want %+v", tc.calls, tc.comm, got, err, tc.want)
		}
	}
	if got, err := Filter("no-such-call", "sshd"); err == nil {
		t.Errorf("%+v of a call that there is not", got)
	}
}

// SPDX-License-Identifier: Apache-2.0

package main

import (
	"testing"

	"google.golang.org/protobuf/proto"

	"frail/api"
	"frail/bpf"
)

// Clients are told what the module says of a VM.
func TestDescribeVM(t *testing.T) {
	got := describeVM(bpf.Status{
		Vm: 1, Generation: 2, Vcpus: 3, ArmedVcpus: 4, Enters: 5, Exits: 6, Refetches: 7, IdentityMisses: 8,
		ExitsMode: bpf.ExitsEntry, Covered: bpf.EntrySyscall, Blind: bpf.EntrySysenter | bpf.EntryInt80,
		RetsKnown: 9, RetsUnknown: 10,
	})
	want := &api.VM{
		Id: 1, Generation: 2, Vcpus: 3, ArmedVcpus: 4, Enters: 5, Exits: 6, Refetches: 7, IdentityMisses: 8,
		ExitsMode: api.Exits_EXITS_ENTRY, Covered: []api.Entry{api.Entry_ENTRY_SYSCALL},
		Blind:     []api.Entry{api.Entry_ENTRY_INT80, api.Entry_ENTRY_SYSENTER},
		RetsKnown: 9, RetsUnknown: 10,
	}
	if !proto.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if got := describeVM(bpf.Status{}); got.GetExitsMode() != api.Exits_EXITS_BOTH || len(got.GetCovered()) != 0 {
		t.Errorf("got %v of an empty status", got)
	}
}

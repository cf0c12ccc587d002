// SPDX-License-Identifier: Apache-2.0

package guest

import (
	"frail/bpf"
	"frail/hooks"
	"frail/tracer"
	"frail/tracer/syscalls"
)

// Exits is what the module calls e.
func Exits(e hooks.Exits) uint32 {
	if e == hooks.ExitsEntry {
		return bpf.ExitsEntry
	}
	return bpf.ExitsBoth
}

// Filter is what a trace of these system calls, as [syscalls.ParseFilter] reads them, by
// threads of this name shows; an empty one is no filter.
func Filter(calls, comm string) (tracer.Filter, error) {
	var (
		f   tracer.Filter
		err error
	)
	if f.Syscalls, err = syscalls.ParseFilter(calls); err != nil {
		return tracer.Filter{}, err
	}
	if comm != "" {
		f.Comms = []string{comm}
	}
	return f, nil
}

// SPDX-License-Identifier: Apache-2.0

package tracer

import "frail/bpf"

// maxProcesses bounds what a Processes remembers: some 40 MiB. A guest may have more
// threads; they are described again when they are forgotten and Describe is called.
const maxProcesses = 1 << 16

// Processes remembers who the threads are that events are of. The zero value is empty. It
// is not safe for concurrent use.
type Processes struct {
	// A thread is what its task_struct is, and described anew when that is another's.
	byTask map[taskKey]*bpf.Process
}

type taskKey struct {
	vm   uint32
	task uint64
}

// Add remembers a copy of p in place of what its thread was before. It must be called in
// the order of the stream.
func (s *Processes) Add(p *bpf.Process) {
	if s.byTask == nil || len(s.byTask) >= maxProcesses {
		s.byTask = make(map[taskKey]*bpf.Process)
	}
	copied := *p
	s.byTask[taskKey{p.Head.Vm, p.Head.Task}] = &copied
}

// Of returns who made ev, or nil: not known, because its description was lost or forgotten.
func (s *Processes) Of(ev *bpf.Event) *bpf.Process {
	if p := s.byTask[taskKey{ev.Vm, ev.Task}]; p != nil && p.Head.Who == ev.Who && ev.Who != 0 {
		return p
	}
	return nil
}

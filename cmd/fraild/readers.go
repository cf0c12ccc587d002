// SPDX-License-Identifier: Apache-2.0

package main

import (
	"sync"

	"frail/bpf"
	"frail/kmod/device"
	"frail/tracer/syscalls/decode"
)

// readers are the traces of a domain that want to know what arguments point to. The module
// reads it while there is one, as much as the one needs that needs most. The zero value is
// ready.
type readers struct {
	mu     sync.Mutex
	vm     *device.VM // that the module reads from; nil: none
	wanted map[*session]uint32
	most   uint32 // that the module reads now
}

// add makes the module read as many bytes of each string and buffer as s wants; 0: none.
func (r *readers) add(vm *device.VM, s *session, bytes uint32) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if bytes == 0 {
		return nil
	}
	if r.vm != vm {
		// The traces of another VM are about to end.
		r.vm, r.wanted, r.most = vm, make(map[*session]uint32), 0
	}
	r.wanted[s] = bytes
	if err := r.read(); err != nil {
		delete(r.wanted, s)
		return err
	}
	return nil
}

// remove takes note that s ends. Removing one that was not added is no error.
func (r *readers) remove(s *session) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, ok := r.wanted[s]; !ok {
		return
	}
	delete(r.wanted, s)
	_ = r.read() // fails once the VM is disarmed, and then nothing is read
}

// read is called with mu held.
func (r *readers) read() error {
	most := uint32(0)
	for _, n := range r.wanted {
		most = max(most, n)
	}
	if most == r.most {
		return nil
	}
	var spec *bpf.DataSpec
	if most > 0 {
		spec = decode.DataSpec(int(most))
	}
	if err := r.vm.SetData(spec); err != nil {
		return err
	}
	r.most = most
	return nil
}

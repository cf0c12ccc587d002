// SPDX-License-Identifier: Apache-2.0

package direct

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"frail/bpf"
	"frail/kmod/device"
	"frail/tracer"
)

// Recording collects the events of VMs in memory.
type Recording struct {
	tracer *tracer.Tracer
	cancel context.CancelFunc
	done   chan error

	mu        sync.Mutex
	events    []bpf.Event
	processes []bpf.Process
}

// recordRing holds 200,000 events: a reader on the guest's own CPU may be late.
const recordRing = 32 << 20

// Record begins to record VMs. The caller closes the recording.
func Record(vms ...*device.VM) (*Recording, error) {
	opts := tracer.Options{RingBytes: recordRing, Processes: true}
	for _, vm := range vms {
		opts.VMs = append(opts.VMs, vm.ID())
	}
	t, err := tracer.New(opts)
	if err != nil {
		return nil, err
	}
	if err := t.Attach(); err != nil {
		return nil, errors.Join(err, t.Close())
	}
	ctx, cancel := context.WithCancel(context.Background())
	r := &Recording{tracer: t, cancel: cancel, done: make(chan error, 1)}
	go func() { r.done <- t.Run(ctx, (*recordSink)(r)) }()
	return r, nil
}

// Add records another VM, too, by its id.
func (r *Recording) Add(id uint32) error { return r.tracer.AddVM(id) }

// Len returns how many events there are so far.
func (r *Recording) Len() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.events)
}

// Stop ends the recording and returns all events in order. One that was lost
// is an error.
func (r *Recording) Stop() ([]bpf.Event, error) {
	r.cancel()
	if err := <-r.done; err != nil {
		return nil, fmt.Errorf("record events: %w", err)
	}
	return r.events, nil
}

// Processes returns who the threads of the events are, in order; after Stop.
func (r *Recording) Processes() []bpf.Process { return r.processes }

// Close frees the recording, ended or not.
func (r *Recording) Close() error {
	r.cancel()
	return r.tracer.Close()
}

// recordSink is the tracer's side of a Recording.
type recordSink Recording

func (s *recordSink) Event(ev *bpf.Event) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.events = append(s.events, *ev)
	return nil
}

func (s *recordSink) Process(p *bpf.Process) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.processes = append(s.processes, *p)
	return nil
}

func (s *recordSink) Lost(l tracer.Lost) error {
	return fmt.Errorf("%d events lost: %+v", l.Total(), l.Losses)
}

func (s *recordSink) Flush() error { return nil }

// SPDX-License-Identifier: Apache-2.0

package qmp

import (
	"sync"

	goqemu "github.com/digitalocean/go-qemu/qmp"
)

// eventQueue is a bounded queue of events towards one reader. A reader that
// falls behind loses the queue rather than single events, so that a gap is
// never silent.
type eventQueue struct {
	events chan goqemu.Event
	done   chan struct{}

	mu     sync.Mutex
	closed bool
}

func newEventQueue() *eventQueue {
	return &eventQueue{
		events: make(chan goqemu.Event, eventBuffer),
		done:   make(chan struct{}),
	}
}

func (q *eventQueue) push(e goqemu.Event) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return
	}
	select {
	case q.events <- e:
	default:
		q.closeLocked()
	}
}

func (q *eventQueue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closeLocked()
}

func (q *eventQueue) closeLocked() {
	if !q.closed {
		q.closed = true
		close(q.events)
		close(q.done)
	}
}

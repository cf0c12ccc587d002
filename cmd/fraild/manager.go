// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"frail/api"
	"frail/hooks"
)

// manager keeps one domain for each that libvirt knows. Its methods are safe for
// concurrent use.
type manager struct {
	host *host
	log  *slog.Logger

	// ready is closed when every domain was seen once, or libvirt could not be reached.
	ready     chan struct{}
	readyOnce sync.Once

	mu      sync.Mutex
	domains map[string]*entry // by UUID
	offline error             // why libvirt cannot be reached; nil while it can
	tasks   sync.WaitGroup
}

// entry is a domain whose goroutine runs.
type entry struct {
	*domain
	stop context.CancelFunc
}

func newManager(h *host) *manager {
	return &manager{
		host:    h,
		log:     h.log,
		ready:   make(chan struct{}),
		domains: make(map[string]*entry),
	}
}

// run follows libvirt until ctx is done, then disarms every domain. It returns an error
// when libvirt cannot be followed at all.
func (m *manager) run(ctx context.Context, opts hooks.Options) error {
	ctx, cancel := context.WithCancel(ctx)
	err := hooks.Watch(ctx, opts, func(ev hooks.Event) { m.deliver(ctx, ev) })
	stopped := ctx.Err() != nil
	cancel()
	m.tasks.Wait()
	if stopped {
		return nil
	}
	return err
}

// deliver takes one event of the watcher. It does not block.
func (m *manager) deliver(ctx context.Context, ev hooks.Event) {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch ev.Kind {
	case hooks.DomainChanged:
		if e := m.domains[ev.State.UUID]; e != nil {
			e.update(ev.State)
			return
		}
		ctx, stop := context.WithCancel(ctx)
		e := &entry{domain: newDomain(m.host, ev.State), stop: stop}
		m.domains[ev.State.UUID] = e
		m.tasks.Go(func() { e.run(ctx) })
	case hooks.DomainGone:
		if e := m.domains[ev.State.UUID]; e != nil {
			delete(m.domains, ev.State.UUID)
			e.update(ev.State)
			e.stop()
		}
	case hooks.Synced:
		m.offline = nil
		m.readyOnce.Do(func() { close(m.ready) })
	case hooks.Disconnected:
		m.offline = ev.Err
		m.readyOnce.Do(func() { close(m.ready) })
	}
}

// list returns every domain, ordered by name.
func (m *manager) list() []*domain {
	m.mu.Lock()
	all := make([]*domain, 0, len(m.domains))
	for _, e := range m.domains {
		all = append(all, e.domain)
	}
	m.mu.Unlock()
	slices.SortFunc(all, func(a, b *domain) int {
		sa, _ := a.snapshot()
		sb, _ := b.snapshot()
		return cmp.Or(cmp.Compare(sa.Name, sb.Name), cmp.Compare(sa.UUID, sb.UUID))
	})
	return all
}

// find returns the domain that key names: the id of a running one, a UUID or a name, in
// that order, as virsh does. It returns nil when there is none.
func (m *manager) find(key string) *domain {
	id, err := strconv.Atoi(key)
	numeric := err == nil && id > 0
	var byUUID, byName *domain
	for _, d := range m.list() {
		s, _ := d.snapshot()
		switch {
		case numeric && s.Active && s.ID == id:
			return d
		case strings.EqualFold(s.UUID, key):
			byUUID = d
		case s.Name == key:
			byName = d
		}
	}
	if byUUID != nil {
		return byUUID
	}
	return byName
}

// settle waits until no running domain that asks to be traced is still to be armed for the
// first time: each is, or it is known why it is not. It returns early when ctx is done, or
// after limit.
func (m *manager) settle(ctx context.Context, limit time.Duration) {
	timeout := time.NewTimer(limit)
	defer timeout.Stop()
	for _, d := range m.list() {
		for {
			snap, changed := d.snapshot()
			if snap.gone || snap.vm != nil || snap.state == api.State_STATE_ERROR || !d.asks() {
				break
			}
			select {
			case <-changed:
			case <-timeout.C:
				m.log.Warn("domains are still being armed")
				return
			case <-ctx.Done():
				return
			}
		}
	}
}

// connected returns nil while libvirt can be reached, else why it cannot.
func (m *manager) connected() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.offline
}

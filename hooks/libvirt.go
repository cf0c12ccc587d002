// SPDX-License-Identifier: Apache-2.0

package hooks

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"libvirt.org/go/libvirt"
)

const (
	// keepAliveInterval and keepAliveCount end a connection libvirtd does not
	// answer on, and so every call that hangs on it, after 20 seconds.
	keepAliveInterval = 5 // seconds
	keepAliveCount    = 3

	// connectPatience is how long a connection attempt may take before libvirt
	// counts as unreachable. The attempt itself cannot be interrupted and goes
	// on.
	connectPatience = 10 * time.Second

	// minBackoff and maxBackoff bound the pause before connecting again, which
	// doubles with each failure.
	minBackoff = 100 * time.Millisecond
	maxBackoff = 10 * time.Second

	// resyncInterval is how often everything is listed again, in case libvirt
	// lost an event.
	resyncInterval = 2 * time.Minute

	// eventLoopPause keeps an event loop that fails from spinning.
	eventLoopPause = time.Second
)

// StartEventLoop runs libvirt's event loop for the rest of the process's life.
// It must be called before the process's first libvirt connection is opened, if
// that is to be watched or kept alive; [Watch] calls it too. It is safe for
// concurrent use and to call more than once.
func StartEventLoop() error { return startEventLoop() }

var startEventLoop = sync.OnceValue(func() error {
	if err := libvirt.EventRegisterDefaultImpl(); err != nil {
		return fmt.Errorf("register libvirt's event loop: %w", err)
	}
	go func() {
		for {
			if err := libvirt.EventRunDefaultImpl(); err != nil {
				time.Sleep(eventLoopPause)
			}
		}
	}()
	return nil
})

// libvirtSource follows libvirt's domains through one connection at a time.
type libvirtSource struct {
	uri  string
	log  *slog.Logger
	send func(func(*machine)) bool

	wake chan struct{} // holds one token while there is something in pending

	mu      sync.Mutex
	pending pending
}

// pending is what events and the hook asked to look at since it was last taken.
// It is a set, so that it stays small whatever libvirt sends.
type pending struct {
	uuids  map[string]bool
	names  map[string]bool // from the hook
	resets map[string]int  // guest resets by UUID
}

func newLibvirtSource(uri string, log *slog.Logger, send func(func(*machine)) bool) *libvirtSource {
	return &libvirtSource{uri: uri, log: log, send: send, wake: make(chan struct{}, 1)}
}

// note adds to pending. Libvirt's event loop calls it, so it never blocks.
func (s *libvirtSource) note(add func(*pending)) {
	s.mu.Lock()
	if s.pending.uuids == nil {
		s.pending = pending{uuids: make(map[string]bool), names: make(map[string]bool), resets: make(map[string]int)}
	}
	// Names come from the hook unchecked; more of them than there can be
	// domains are no help.
	if len(s.pending.names) > maxStatusFiles {
		clear(s.pending.names)
	}
	add(&s.pending)
	s.mu.Unlock()
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

func (s *libvirtSource) take() pending {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.pending
	s.pending = pending{}
	return p
}

// nudge asks to look at the domain called name, and to connect now if there is
// no connection. It is safe for concurrent use.
func (s *libvirtSource) nudge(name string) {
	s.note(func(p *pending) { p.names[name] = true })
}

// run connects, follows and connects again until ctx is done.
func (s *libvirtSource) run(ctx context.Context) {
	backoff := minBackoff
	for ctx.Err() == nil {
		served, err := s.session(ctx)
		if ctx.Err() != nil {
			return
		}
		if served {
			backoff = minBackoff
		}
		s.log.Debug("no libvirt connection, trying again", "uri", s.uri, "err", err, "pause", backoff)
		s.send(func(m *machine) { m.disconnected(err) })

		pause := time.NewTimer(backoff)
		select {
		case <-ctx.Done():
		case <-s.wake:
			// Only the hook can have asked: libvirt is at work.
		case <-pause.C:
		}
		pause.Stop()
		backoff = min(2*backoff, maxBackoff)
	}
}

// session follows libvirt over one connection until that is lost or ctx is
// done. served says whether the domains were listed at least once.
func (s *libvirtSource) session(ctx context.Context) (served bool, err error) {
	conn, err := s.connect(ctx)
	if err != nil {
		return false, err
	}
	defer func() {
		// A connection that somebody still refers to would stay open for good.
		if n, err := conn.Close(); err == nil && n > 0 {
			s.log.Debug("libvirt connection still referenced", "uri", s.uri, "references", n)
		}
	}()

	lost := make(chan error, 1)
	err = conn.RegisterCloseCallback(func(_ *libvirt.Connect, reason libvirt.ConnectCloseReason) {
		select {
		case lost <- errors.New("connection closed: " + closeReason(reason)):
		default:
		}
	})
	if err != nil {
		return false, fmt.Errorf("watch the connection: %w", err)
	}
	defer conn.UnregisterCloseCallback()
	if err := conn.SetKeepAlive(keepAliveInterval, keepAliveCount); err != nil {
		return false, fmt.Errorf("keep the connection alive: %w", err)
	}

	// Events before the listing, so that no change falls in between.
	unsubscribe, err := s.subscribe(conn)
	if err != nil {
		return false, err
	}
	defer unsubscribe()

	resync := time.NewTicker(resyncInterval)
	defer resync.Stop()
	for list := true; ; {
		if list {
			if err := s.list(conn); err != nil {
				return served, err
			}
			if !served {
				s.log.Info("following libvirt's domains", "uri", s.uri)
			}
			served, list = true, false
		}
		select {
		case <-ctx.Done():
			return served, ctx.Err()
		case err := <-lost:
			return served, err
		case <-resync.C:
			list = true
		case <-s.wake:
			if err := s.lookup(conn, s.take()); err != nil {
				return served, err
			}
		}
	}
}

func closeReason(r libvirt.ConnectCloseReason) string {
	switch r {
	case libvirt.CONNECT_CLOSE_REASON_ERROR:
		return "error"
	case libvirt.CONNECT_CLOSE_REASON_EOF:
		return "libvirtd went away"
	case libvirt.CONNECT_CLOSE_REASON_KEEPALIVE:
		return "libvirtd does not answer"
	case libvirt.CONNECT_CLOSE_REASON_CLIENT:
		return "closed here"
	default:
		return fmt.Sprintf("reason %d", int(r))
	}
}

// connect opens a read-only connection, which is all that following needs. An
// attempt that takes too long is reported as an outage and then waited for.
func (s *libvirtSource) connect(ctx context.Context) (*libvirt.Connect, error) {
	type result struct {
		conn *libvirt.Connect
		err  error
	}
	opened := make(chan result, 1)
	go func() {
		conn, err := libvirt.NewConnectReadOnly(s.uri)
		opened <- result{conn, err}
	}()
	patience := time.NewTimer(connectPatience)
	defer patience.Stop()
	for {
		select {
		case r := <-opened:
			if r.err != nil {
				return nil, fmt.Errorf("connect to %s: %w", s.uri, r.err)
			}
			return r.conn, nil
		case <-patience.C:
			s.send(func(m *machine) {
				m.disconnected(fmt.Errorf("connect to %s: no answer within %s", s.uri, connectPatience))
			})
		case <-ctx.Done():
			go func() {
				if r := <-opened; r.err == nil {
					r.conn.Close()
				}
			}()
			return nil, ctx.Err()
		}
	}
}

// subscribe registers for the events that can change a State and returns a
// function that undoes it.
func (s *libvirtSource) subscribe(conn *libvirt.Connect) (unsubscribe func(), err error) {
	changed := func(dom *libvirt.Domain) {
		uuid, err := dom.GetUUIDString()
		if err == nil {
			s.note(func(p *pending) { p.uuids[uuid] = true })
		}
	}
	var ids []int
	unsubscribe = func() {
		for _, id := range ids {
			// It fails on a connection that is lost, after freeing our side.
			_ = conn.DomainEventDeregister(id)
		}
	}
	for _, register := range []func() (int, error){
		func() (int, error) {
			return conn.DomainEventLifecycleRegister(nil, func(_ *libvirt.Connect, dom *libvirt.Domain, _ *libvirt.DomainEventLifecycle) {
				changed(dom)
			})
		},
		func() (int, error) {
			return conn.DomainEventMetadataChangeRegister(nil, func(_ *libvirt.Connect, dom *libvirt.Domain, _ *libvirt.DomainEventMetadataChange) {
				changed(dom)
			})
		},
		func() (int, error) {
			return conn.DomainEventRebootRegister(nil, func(_ *libvirt.Connect, dom *libvirt.Domain) {
				uuid, err := dom.GetUUIDString()
				if err == nil {
					s.note(func(p *pending) { p.resets[uuid]++ })
				}
			})
		},
	} {
		id, err := register()
		if err != nil {
			unsubscribe()
			return nil, fmt.Errorf("subscribe to domain events: %w", err)
		}
		ids = append(ids, id)
	}
	return unsubscribe, nil
}

// list sends all domains.
func (s *libvirtSource) list(conn *libvirt.Connect) error {
	doms, err := conn.ListAllDomains(0)
	if err != nil {
		return fmt.Errorf("list domains: %w", err)
	}
	defer func() {
		for i := range doms {
			doms[i].Free()
		}
	}()
	listed := make([]listedDomain, 0, len(doms))
	for i := range doms {
		l, err := s.observe(conn, &doms[i])
		if err != nil {
			return err
		}
		if l != nil {
			listed = append(listed, *l)
		}
	}
	s.send(func(m *machine) { m.list(listed) })
	return nil
}

// lookup sends the domains in p.
func (s *libvirtSource) lookup(conn *libvirt.Connect, p pending) error {
	for name := range p.names {
		dom, err := conn.LookupDomainByName(name)
		if errors.Is(err, libvirt.ERR_NO_DOMAIN) {
			continue // a transient one that is gone; its events tell
		}
		if err != nil {
			return fmt.Errorf("look up domain: %w", err)
		}
		uuid, err := dom.GetUUIDString()
		dom.Free()
		if err != nil {
			return fmt.Errorf("look up domain: %w", err)
		}
		p.uuids[uuid] = true
	}
	for uuid := range p.uuids {
		var l *listedDomain
		dom, err := conn.LookupDomainByUUIDString(uuid)
		if err == nil {
			l, err = s.observe(conn, dom)
			dom.Free()
			if err != nil {
				return err
			}
		} else if !errors.Is(err, libvirt.ERR_NO_DOMAIN) {
			return fmt.Errorf("look up domain: %w", err)
		}
		s.send(func(m *machine) { m.lookup(uuid, l) })
	}
	for uuid, n := range p.resets {
		s.send(func(m *machine) {
			for range n {
				m.reset(uuid)
			}
		})
	}
	return nil
}

// observe reads one domain. It returns nil for one that is gone meanwhile; an
// error means that the connection is lost, as far as one can tell.
func (s *libvirtSource) observe(conn *libvirt.Connect, dom *libvirt.Domain) (*listedDomain, error) {
	doc, err := dom.GetXMLDesc(0)
	if errors.Is(err, libvirt.ERR_NO_DOMAIN) {
		return nil, nil
	}
	if err == nil {
		var l *listedDomain
		if l, err = parseListed([]byte(doc)); err == nil {
			return l, nil
		}
	} else if alive, aliveErr := conn.IsAlive(); aliveErr != nil || !alive {
		return nil, fmt.Errorf("read domain XML: %w", err)
	}

	// One domain that cannot be read must not hide the others.
	l := &listedDomain{configErr: fmt.Errorf("read domain XML: %w", err)}
	var errs [3]error
	l.uuid, errs[0] = dom.GetUUIDString()
	l.name, errs[1] = dom.GetName()
	l.active, errs[2] = dom.IsActive()
	if err := errors.Join(errs[:]...); err != nil {
		s.log.Error("cannot read a domain", "domain", l.name, "err", err)
		return nil, nil
	}
	return l, nil
}

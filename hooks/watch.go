// SPDX-License-Identifier: Apache-2.0

package hooks

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"
)

const (
	// DefaultURI is the connection [Watch] uses unless told otherwise.
	DefaultURI = "qemu:///system"

	// DefaultStatusDir is where libvirt's system QEMU driver keeps the status
	// of running domains.
	DefaultStatusDir = "/run/libvirt/qemu"

	// DefaultHookSocket is where the qemu hook hands over to the daemon.
	DefaultHookSocket = "/run/frail/hook.sock"

	// closePatience is how long Watch waits, when it ends, for a libvirt call
	// under way.
	closePatience = 2 * time.Second
)

// Options are the sources [Watch] reads. The zero value reads the system's
// libvirt without the hook.
type Options struct {
	// URI is the libvirt connection; empty means DefaultURI.
	URI string

	// StatusDir is the driver's status directory, which holds NAME.xml and
	// NAME.pid of every running domain; empty means DefaultStatusDir. It need
	// not exist yet.
	StatusDir string

	// Hook, if not nil, is a socket of [ListenHook]. Watch serves and closes it.
	Hook *HookListener

	// Log receives what Watch meets: connections lost and regained, status
	// files that cannot be read, domains whose metadata is not understood. nil
	// means no log.
	Log *slog.Logger
}

// EventKind says what an [Event] reports.
type EventKind uint8

const (
	// DomainChanged reports a domain that is new to the watcher or whose State
	// differs from the one reported last.
	DomainChanged EventKind = iota + 1

	// DomainGone reports a domain that neither runs nor is defined any more.
	DomainGone

	// Synced reports that libvirt's listing has been delivered: every domain
	// is known. It comes after each connect.
	Synced

	// Disconnected reports that libvirt cannot be reached, in Err; once for
	// each outage. Running domains are still followed through the status
	// directory.
	Disconnected
)

// String returns the kind in words.
func (k EventKind) String() string {
	switch k {
	case DomainChanged:
		return "domain changed"
	case DomainGone:
		return "domain gone"
	case Synced:
		return "synced"
	case Disconnected:
		return "disconnected"
	default:
		return "unknown"
	}
}

// Event is one change that [Watch] delivers.
type Event struct {
	Kind EventKind

	// State is the domain's state from now on for DomainChanged, its last
	// state, inactive, for DomainGone, and zero otherwise.
	State State

	// Err is the reason of Disconnected, nil otherwise.
	Err error
}

// State is all that Frail acts on of one domain.
type State struct {
	// UUID identifies the domain, in lower case with dashes.
	UUID string

	// Name is the domain's name, unique among the domains of its driver.
	Name string

	// ID is libvirt's number for the running domain, 0 when it is not running.
	ID int

	// Active says whether the domain runs, or is being started, or is paused.
	Active bool

	// PID is the emulator's process, 0 while it is not known or not running. It
	// was checked to belong to this domain. A domain that was restarted
	// quickly can change from one PID to another without an inactive state in
	// between.
	PID int

	// Launched says that PID runs the emulator and has created its vCPU
	// threads, so that its KVM descriptors exist. False with a PID: libvirt has
	// forked the process, which has not got there yet.
	Launched bool

	// Config is what the running copy of the domain's XML asks for, or, of a
	// domain that does not run, the persistent one. The zero value without the
	// element or with ConfigErr.
	Config Config

	// ConfigErr is why the element was not understood, nil if it was or is
	// absent. It is a *ConfigError, or the error of a document that could not
	// be read at all.
	ConfigErr error

	// Resets counts the guest resets libvirt reported since the watcher first
	// saw the domain. PID stays the same over a reset.
	Resets uint64
}

// Equal reports whether s and t are the same state. Errors are compared by
// their text.
func (s State) Equal(t State) bool {
	se, te := s.ConfigErr, t.ConfigErr
	s.ConfigErr, t.ConfigErr = nil, nil
	if s != t || (se == nil) != (te == nil) {
		return false
	}
	return se == nil || se.Error() == te.Error()
}

// Watch follows the domains of one libvirt driver until ctx is done and calls
// deliver for every change: first for every domain there is, then for each
// difference, never twice for the same state. The first of Synced and
// Disconnected ends the first round: a daemon is ready then.
//
// deliver is called from one goroutine at a time, in order, and never after
// Watch has returned; while it runs, nothing else is delivered, so it must not
// block.
//
// Watch returns ctx's error when it is done, and any other error only when the
// sources cannot be set up at all. A libvirt that is down or restarts and a
// status directory that does not exist yet are waited for.
func Watch(ctx context.Context, opts Options, deliver func(Event)) error {
	if opts.Hook != nil {
		defer opts.Hook.Close()
	}
	log := opts.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	if err := StartEventLoop(); err != nil {
		return fmt.Errorf("watch domains: %w", err)
	}

	outer := ctx
	ctx, cancel := context.WithCancel(ctx)
	updates := make(chan func(*machine))
	send := func(update func(*machine)) bool {
		select {
		case updates <- update:
			return true
		case <-ctx.Done():
			return false
		}
	}
	status := newStatusSource(cmp.Or(opts.StatusDir, DefaultStatusDir), log, send)
	virt := newLibvirtSource(cmp.Or(opts.URI, DefaultURI), log, send)

	var sources sync.WaitGroup
	failed := make(chan error, 2)
	ready := make(chan struct{})
	sources.Go(func() { failed <- status.run(ctx, ready) })
	if opts.Hook != nil {
		sources.Go(func() {
			failed <- serveHook(opts.Hook, log, func(name string) {
				status.refresh(name)
				virt.nudge(name)
			})
		})
	}
	virtDone := make(chan struct{})
	defer func() {
		cancel()
		if opts.Hook != nil {
			opts.Hook.Close()
		}
		sources.Wait()
		// A call to a libvirtd that hangs cannot be interrupted. It ends with
		// the keepalive and has nobody to send to.
		select {
		case <-virtDone:
		case <-time.After(closePatience):
			log.Warn("libvirt does not answer, leaving the connection behind")
		}
	}()

	events := eventLog{log: log, reported: make(map[string]string)}
	m := newMachine(func(ev Event) {
		events.event(ev)
		deliver(ev)
	})
	for {
		select {
		case <-outer.Done():
			if ready != nil {
				close(virtDone)
			}
			return outer.Err()
		case err := <-failed:
			if ready != nil {
				close(virtDone)
			}
			if outer.Err() != nil {
				return outer.Err()
			}
			return fmt.Errorf("watch domains: %w", err)
		case <-ready:
			// Only now, so that what runs is known before the first Synced or
			// Disconnected.
			ready = nil
			go func() {
				defer close(virtDone)
				virt.run(ctx)
			}()
		case update := <-updates:
			update(m)
		}
	}
}

// eventLog logs what an operator has to know of the events.
type eventLog struct {
	log      *slog.Logger
	reported map[string]string // ConfigErr by UUID, as logged last
}

func (l *eventLog) event(ev Event) {
	s := ev.State
	log := l.log.With("domain", s.Name, "uuid", s.UUID)
	switch ev.Kind {
	case Disconnected:
		l.log.Warn("cannot reach libvirt, following running domains only", "err", ev.Err)
	case DomainChanged:
		var bad string
		if s.ConfigErr != nil {
			bad = s.ConfigErr.Error()
		}
		if bad != l.reported[s.UUID] {
			if bad != "" {
				log.Error("domain is not traced", "err", s.ConfigErr)
			}
			l.reported[s.UUID] = bad
		}
		log.Debug("domain changed", "id", s.ID, "active", s.Active, "pid", s.PID,
			"launched", s.Launched, "trace", s.Config.Trace, "resets", s.Resets)
	case DomainGone:
		delete(l.reported, s.UUID)
		log.Debug("domain gone")
	}
}

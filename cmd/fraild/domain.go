// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"frail/api"
	"frail/bpf"
	"frail/hooks"
	"frail/kmod/device"
	"frail/qmp/layout"
)

// Delays between attempts to arm a domain and to resolve its guest's layout. The first
// ones are short because a starting guest is ready within milliseconds; the last ones
// bound what a domain that never succeeds costs.
const (
	minRetry = 50 * time.Millisecond
	maxRetry = 10 * time.Second
)

// domain follows one libvirt domain: it arms the VM while the domain's metadata asks for
// it, and resolves the guest kernel's layout each time one starts. Everything slow happens
// in goroutines of the domain's own, so that no guest can hold up another.
//
// Its methods are safe for concurrent use.
type domain struct {
	host *host
	log  *slog.Logger

	// kick has room for one: what there is to do is read from the fields below.
	kick chan struct{}

	readers readers

	// tasks are the goroutines that wait and resolve; run waits for them at its end.
	tasks sync.WaitGroup

	mu      sync.Mutex
	want    hooks.State
	status  bpf.Status // the newest seen of the VM armed last
	snap    snapshot
	changed chan struct{} // closed when snap is replaced
}

// snapshot is what a domain looks like at one moment.
type snapshot struct {
	hooks.State
	state   api.State
	reason  string
	release string
	vm      *device.VM     // nil while not armed
	layout  *layout.Layout // nil while not resolved
	gone    bool           // neither running nor defined any more
}

func newDomain(h *host, st hooks.State) *domain {
	d := &domain{
		host:    h,
		log:     h.log.With("domain", st.Name, "uuid", st.UUID),
		kick:    make(chan struct{}, 1),
		want:    st,
		changed: make(chan struct{}),
	}
	d.snap = snapshot{State: st, state: api.State_STATE_SHUT_OFF}
	if st.Active {
		d.snap.state = api.State_STATE_NOT_TRACED
	}
	d.nudge()
	return d
}

// update gives d its state from libvirt's point of view.
func (d *domain) update(st hooks.State) {
	d.mu.Lock()
	d.want = st
	d.mu.Unlock()
	d.nudge()
}

// asks reports whether the domain, as libvirt knows it by now, is to be traced.
func (d *domain) asks() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return wanted(d.want)
}

// nudge makes run look at what there is to do.
func (d *domain) nudge() {
	select {
	case d.kick <- struct{}{}:
	default:
	}
}

// observe gives d a status of its armed VM. Reading a status clears the module's
// notification of a new generation, whoever reads it, so every reader reports here.
func (d *domain) observe(st bpf.Status) {
	d.mu.Lock()
	// A reader may still hold a VM that was disarmed.
	news := st.Vm == d.status.Vm && st.Generation > d.status.Generation
	if news {
		d.status = st
	}
	d.mu.Unlock()
	if news {
		d.nudge()
	}
}

// snapshot returns how d looks now and a channel that is closed when that changes.
func (d *domain) snapshot() (snapshot, <-chan struct{}) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.snap, d.changed
}

// publish replaces the snapshot.
func (d *domain) publish(s snapshot) {
	d.mu.Lock()
	old := d.snap
	d.snap = s
	close(d.changed)
	d.changed = make(chan struct{})
	d.mu.Unlock()

	// Metadata that is not understood is the watcher's to log.
	if s.ConfigErr != nil || old.state == s.state && old.reason == s.reason {
		return
	}
	switch s.state {
	case api.State_STATE_ERROR:
		d.log.Error("domain is not traced", "err", s.reason)
	case api.State_STATE_NO_IDENTITY:
		d.log.Warn("system calls are traced without process names", "err", s.reason)
	case api.State_STATE_RESOLVING:
		d.log.Info("system calls are traced, resolving the guest kernel", "vm", s.vm.ID())
	case api.State_STATE_TRACED:
		d.log.Info("system calls are traced with process names", "vm", s.vm.ID(), "release", s.release)
	default:
		d.log.Info("domain " + stateText(s.state))
	}
}

func stateText(s api.State) string {
	switch s {
	case api.State_STATE_SHUT_OFF:
		return "is shut off"
	case api.State_STATE_NOT_TRACED:
		return "is not to be traced"
	case api.State_STATE_ARMING:
		return "is being armed"
	case api.State_STATE_RESOLVING:
		return "is being resolved"
	case api.State_STATE_TRACED, api.State_STATE_NO_IDENTITY:
		return "is traced"
	default:
		return "is not traced"
	}
}

// retry is a delay that doubles from minRetry to maxRetry. The zero value is ready.
type retry struct{ last time.Duration }

func (r *retry) next() time.Duration {
	r.last = min(max(2*r.last, minRetry), maxRetry)
	return r.last
}

// armed is a VM under trace.
type armed struct {
	vm         *device.VM
	pid        int
	exits      hooks.Exits
	generation uint32             // the newest one handled
	stop       context.CancelFunc // ends the goroutine that waits for generations
	abandon    context.CancelFunc // ends the one that resolves; nil when there is none
}

// progress is what an attempt to resolve a generation of a VM found: its layout, or an
// error. The last attempt is final.
type progress struct {
	vm         *device.VM
	generation uint32
	layout     *layout.Layout
	err        error
	final      bool
}

// run does the domain's work until ctx is done, then disarms it.
func (d *domain) run(ctx context.Context) {
	var (
		a        *armed
		attempt  hooks.State // what the attempts to arm are for
		due      bool        // one may be made now
		backoff  retry
		again    = time.NewTimer(0)
		resolved = make(chan progress)
	)
	again.Stop()
	disarm := func() {
		if a != nil {
			d.disarm(a)
			a = nil
		}
	}
	defer func() {
		disarm()
		d.mu.Lock()
		s := snapshot{State: d.want, gone: true, state: api.State_STATE_SHUT_OFF}
		d.mu.Unlock()
		d.publish(s)
		d.host.traces.forget(s.UUID)
		d.host.sequences.alerts.forget(s.UUID)
		d.host.records.forget(s.UUID)
		d.tasks.Wait()
	}()

	for {
		select {
		case <-ctx.Done():
			return
		case <-d.kick:
		case <-again.C:
			due = true
		case p := <-resolved:
			if a != nil && p.vm == a.vm && p.generation == a.generation {
				d.resolved(p)
			}
			continue
		}

		d.mu.Lock()
		want := d.want
		d.mu.Unlock()
		if a != nil && !a.serves(want) {
			disarm()
			attempt = hooks.State{}
		}
		if !wanted(want) {
			again.Stop()
			attempt = hooks.State{}
			d.publish(idle(want))
			continue
		}
		if a == nil {
			if !attempt.Equal(want) {
				attempt, due, backoff = want, true, retry{}
			}
			if !due {
				continue
			}
			due = false
			again.Stop()
			var err error
			if a, err = d.arm(ctx, want); err != nil {
				d.publish(snapshot{State: want, state: api.State_STATE_ERROR, reason: err.Error()})
				if !errors.Is(err, device.ErrUnsupported) {
					again.Reset(backoff.next())
				}
				continue
			}
			d.publish(snapshot{State: want, state: api.State_STATE_RESOLVING, vm: a.vm})
			d.analyse()
		} else if s, _ := d.snapshot(); !s.State.Equal(want) {
			s.State = want
			d.publish(s)
			d.analyse()
		}

		d.mu.Lock()
		status := d.status
		d.mu.Unlock()
		if status.Generation > a.generation {
			d.resolve(ctx, a, status, resolved)
		}
	}
}

// wanted says whether a domain in this state is to be traced and can be.
func wanted(st hooks.State) bool {
	return st.Active && st.PID != 0 && st.Launched && st.ConfigErr == nil && st.Config.Trace
}

// serves says whether a is what a domain in this state asks for. Exits are those a VM was
// armed with: for others it is armed again.
func (a *armed) serves(st hooks.State) bool {
	return wanted(st) && a.pid == st.PID && a.exits == st.Config.Exits
}

// idle is how a domain looks that is not wanted.
func idle(st hooks.State) snapshot {
	s := snapshot{State: st}
	switch {
	case st.ConfigErr != nil && st.Active:
		s.state, s.reason = api.State_STATE_ERROR, st.ConfigErr.Error()
	case st.ConfigErr != nil:
		s.state, s.reason = api.State_STATE_SHUT_OFF, st.ConfigErr.Error()
	case !st.Active:
		s.state = api.State_STATE_SHUT_OFF
	case st.Config.Trace:
		s.state = api.State_STATE_ARMING
	default:
		s.state = api.State_STATE_NOT_TRACED
	}
	return s
}

// arm puts the domain's VM under trace and starts to wait for its guest kernel.
func (d *domain) arm(ctx context.Context, st hooks.State) (*armed, error) {
	vm, err := d.host.arm(st)
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	d.status = bpf.Status{Vm: vm.ID()}
	d.mu.Unlock()
	ctx, stop := context.WithCancel(ctx)
	d.tasks.Go(func() {
		for {
			status, err := vm.Wait(ctx)
			if err != nil {
				if ctx.Err() == nil {
					d.log.Error("cannot follow the guest's kernel starts", "vm", vm.ID(), "err", err)
				}
				return
			}
			d.observe(status)
		}
	})
	return &armed{vm: vm, pid: st.PID, exits: st.Config.Exits, stop: stop}, nil
}

// disarm gives the VM back and tells all that runs for a to end, without waiting for it.
func (d *domain) disarm(a *armed) {
	a.stop()
	if a.abandon != nil {
		a.abandon()
	}
	d.host.sequences.leave(a.vm.ID())
	d.host.records.leave(a.vm.ID())
	if err := a.vm.Close(); err != nil {
		d.log.Error("cannot disarm", "vm", a.vm.ID(), "err", err)
	}
}

// resolve starts to look for the layout of the guest kernel that status announces, in
// place of an older one's. What it finds goes to out.
func (d *domain) resolve(ctx context.Context, a *armed, status bpf.Status, out chan<- progress) {
	if a.abandon != nil {
		a.abandon()
	}
	a.generation = status.Generation
	s, _ := d.snapshot()
	s.state, s.reason, s.release, s.layout = api.State_STATE_RESOLVING, "", "", nil
	d.publish(s)
	d.host.sequences.restarted(a.vm.ID())

	ctx, a.abandon = context.WithCancel(ctx)
	d.tasks.Go(func() {
		limited, cancel := context.WithTimeout(ctx, time.Duration(d.host.cfg.Load().Guest.ResolveTimeout))
		defer cancel()
		deadline, _ := limited.Deadline()
		var backoff retry
		for {
			p := progress{vm: a.vm, generation: status.Generation}
			p.layout, p.err = d.host.resolve(limited, s.State, status)
			wait := backoff.next()
			p.final = p.err == nil || time.Now().Add(wait).After(deadline)
			select {
			case out <- p:
			case <-ctx.Done():
				return
			}
			if p.final {
				return
			}
			select {
			case <-time.After(wait):
			case <-ctx.Done():
				return
			}
		}
	})
}

// resolved loads the layout that was found, or says why there is none.
func (d *domain) resolved(p progress) {
	s, _ := d.snapshot()
	if p.err == nil {
		p.err = p.vm.SetLayout(device.Layout(p.layout))
	}
	switch {
	case p.err == nil:
		s.state, s.reason, s.release, s.layout = api.State_STATE_TRACED, "", p.layout.Release, p.layout
	case errors.Is(p.err, unix.ESTALE), errors.Is(p.err, layout.ErrNotReady) && !p.final:
		// Stale: the guest was reset meanwhile; its next kernel is announced.
		s.state, s.reason = api.State_STATE_RESOLVING, ""
	default:
		s.state, s.reason = api.State_STATE_NO_IDENTITY, p.err.Error()
	}
	d.publish(s)
	d.analyse()
}

// analyse makes the analysis of call sequences and the flight recorder follow the domain as it
// is now.
func (d *domain) analyse() {
	s, _ := d.snapshot()
	if s.vm == nil {
		return
	}
	threads := guestThreads{describe: s.vm.Describe}
	if s.layout != nil {
		threads.list = func(ctx context.Context) ([]layout.Task, error) { return d.host.tasks(ctx, s.State, s.layout) }
	}
	if err := d.host.sequences.follow(s.vm.ID(), s.State, threads); err != nil {
		d.log.Error("call sequences are not analysed", "vm", s.vm.ID(), "err", err)
	}
	if err := d.host.records.follow(s.vm.ID(), s.State, s.vm.Describe); err != nil {
		d.log.Error("system calls are not recorded", "vm", s.vm.ID(), "err", err)
	}
}

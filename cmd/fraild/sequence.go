// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"frail/bpf"
	"frail/cmd/internal/config"
	"frail/hooks"
	"frail/qmp/layout"
	"frail/tracer/format"
	"frail/tracer/ph"
	"frail/tracer/profile"
	"frail/tracer/sequence"
)

// sequences analyses the call sequences of the domains that ask for it. It loads the
// analysis when the first one does. Its methods are safe for concurrent use.
type sequences struct {
	cfg   *config.Config
	log   *slog.Logger
	store *profile.Store

	// attach makes the analysis see calls: a test has no module to attach to.
	attach func(*sequence.Analyzer) error

	// alerted is told of each alert, with the UUID of its domain. It does not wait. Set before
	// the first call.
	alerted func(uuid string, kind ph.AlertKind)

	mu       sync.Mutex
	analyzer *sequence.Analyzer // nil until needed and after close
	stop     context.CancelFunc
	tasks    sync.WaitGroup
	closed   bool
	vms      map[uint32]*analysed

	// undescribed is how many calls there were of threads that were not described when that
	// was looked at last.
	undescribed uint64

	// measured is analyzer, for figures that must not wait for mu: it is held while files
	// are written.
	measured atomic.Pointer[sequence.Analyzer]

	alerts alertLog
}

// analysed is a VM that is followed.
type analysed struct {
	hooks.State
	vm    uint32
	saved map[string]progressOf // by executable: what the newest file has
	guestThreads
}

// guestThreads are what the analysis asks of a guest's threads.
type guestThreads struct {
	// list lists them. It is nil while their layout is not known.
	list func(context.Context) ([]layout.Task, error)
	// describe makes the module tell of each who it is, before its next call.
	describe func() error
}

// progressOf is what of a profile tells that it changed.
type progressOf struct {
	train, sequences, anomalies uint64
	normal, frozen              bool
}

func progressIn(p *ph.Profile) progressOf {
	return progressOf{p.Train, p.Sequences, p.Anomalies, p.Normal, p.Frozen}
}

func newSequences(cfg *config.Config, log *slog.Logger) *sequences {
	return &sequences{
		cfg: cfg, log: log, store: profile.NewStore(cfg.Sequence.StateDir),
		attach:  (*sequence.Analyzer).Attach,
		alerted: func(string, ph.AlertKind) {},
		vms:     make(map[uint32]*analysed),
		alerts:  alertLog{max: cfg.Sequence.MaxAlerts, changed: make(chan struct{})},
	}
}

// settings returns what a domain asks for, with the defaults of the configuration.
func (s *sequences) settings(want hooks.Sequence) ph.Settings {
	c := &s.cfg.Sequence
	out := ph.Settings{
		Learn: c.Learn, NormalWait: time.Duration(c.NormalWait),
		AnomalyLimit: c.Anomaly, TolerizeLimit: c.Tolerize, ProcessLimit: c.Processes,
	}
	if want.Learn != hooks.NotGiven {
		out.Learn = want.Learn == hooks.Yes
	}
	if want.NormalWaitPlus1 != 0 {
		out.NormalWait = want.NormalWaitPlus1 - 1
	}
	if want.AnomalyPlus1 != 0 {
		out.AnomalyLimit = want.AnomalyPlus1 - 1
	}
	if want.TolerizePlus1 != 0 {
		out.TolerizeLimit = want.TolerizePlus1 - 1
	}
	if want.ProcessesPlus1 != 0 {
		out.ProcessLimit = want.ProcessesPlus1 - 1
	}
	return out
}

// follow analyses a VM as st asks, or leaves it alone if st asks for nothing.
func (s *sequences) follow(vm uint32, st hooks.State, threads guestThreads) error {
	if !st.Config.Sequence.On {
		s.leave(vm)
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return fmt.Errorf("analyse call sequences: %w", os.ErrClosed)
	}
	if err := s.start(); err != nil {
		return err
	}
	v := s.vms[vm]
	known := v != nil
	if !known {
		v = &analysed{vm: vm, saved: make(map[string]progressOf)}
		s.load(v, st)
		s.vms[vm] = v
		s.log.Info("call sequences are analysed", "domain", st.Name, "vm", vm, "profiles", len(v.saved))
	}
	v.State, v.guestThreads = st, threads
	if err := s.analyzer.AddVM(vm, s.settings(st.Config.Sequence)); err != nil || known {
		return err
	}
	// Others may have been told already.
	return v.describe()
}

// describe makes the module describe a VM's threads anew. It is called with mu held.
func (s *sequences) describe(v *analysed) {
	if err := v.describe(); err != nil {
		s.log.Error("the threads of a guest are not described anew", "domain", v.Name, "err", err)
	}
}

// start loads the analysis if it is not. It is called with mu held.
func (s *sequences) start() error {
	if s.analyzer != nil {
		return nil
	}
	c := &s.cfg.Sequence
	a, err := sequence.New(sequence.Options{Limits: ph.Limits{Profiles: c.MaxProfiles, Rows: c.MaxRows, Threads: c.MaxThreads}})
	if err != nil {
		return err
	}
	if err := s.attach(a); err != nil {
		return errors.Join(err, a.Close())
	}
	ctx, stop := context.WithCancel(context.Background())
	s.analyzer, s.stop = a, stop
	s.measured.Store(a)
	s.tasks.Go(func() {
		if err := a.Run(ctx, s.record); err != nil && !errors.Is(err, os.ErrClosed) {
			s.log.Error("cannot follow the analysis of call sequences", "err", err)
		}
	})
	s.tasks.Go(func() { every(ctx, time.Duration(c.SaveInterval), s.saveAll) })
	s.tasks.Go(func() { every(ctx, time.Duration(c.ReapInterval), func() { s.reap(ctx) }) })
	return nil
}

// every calls f until ctx is done.
func every(ctx context.Context, interval time.Duration, f func()) {
	t := time.NewTicker(interval)
	defer t.Stop()
	for {
		select {
		case <-t.C:
			f()
		case <-ctx.Done():
			return
		}
	}
}

// load gives a VM the profiles of its domain. What cannot be read is logged: the guest is
// analysed all the same. It is called with mu held.
func (s *sequences) load(v *analysed, st hooks.State) {
	files, err := s.store.Load(st.UUID)
	if err != nil {
		s.log.Error("profiles are not loaded", "domain", st.Name, "err", err)
	}
	for _, f := range files {
		f.NormalTime = monotonic(f.NormalAt)
		if err := s.analyzer.Load(ph.NewExecutable(v.vm, f.Name), &f.Profile); err != nil {
			s.log.Error("a profile is not loaded", "domain", st.Name, "err", err)
			continue
		}
		v.saved[f.Name] = progressIn(&f.Profile)
	}
}

// monotonic returns the CLOCK_MONOTONIC of a time of day, 1 if that is past.
func monotonic(t time.Time) uint64 {
	return uint64(max(1, monotonicNow()+int64(time.Until(t))))
}

func monotonicNow() int64 {
	var ts unix.Timespec
	// Cannot fail: the clock exists and the pointer is good.
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts)
	return ts.Nano()
}

// leave saves what was learnt of a VM and forgets it. A VM that is not followed is no error.
func (s *sequences) leave(vm uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	v := s.vms[vm]
	if v == nil {
		return
	}
	delete(s.vms, vm)
	// First, so that what is saved is all.
	if err := s.analyzer.RemoveVM(vm); err != nil {
		s.log.Error("cannot leave a guest's call sequences alone", "domain", v.Name, "err", err)
	}
	infos := s.save(v)
	for _, info := range infos {
		if err := s.analyzer.Delete(info.Executable); err != nil {
			s.log.Error("cannot free a profile", "domain", v.Name, "err", err)
		}
	}
}

// restarted frees what is kept of the threads of a guest that was started anew. A VM that is
// not followed is no error.
func (s *sequences) restarted(vm uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	v := s.vms[vm]
	if v == nil {
		return
	}
	v.list = nil
	if err := s.analyzer.FreeThreads(vm); err != nil {
		s.log.Error("cannot free the state of threads", "domain", v.Name, "err", err)
	}
}

// saveAll saves what changed.
func (s *sequences) saveAll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, v := range s.vms {
		s.save(v)
	}
}

// save saves the profiles of a VM that changed and returns all there are. It is called
// with mu held.
func (s *sequences) save(v *analysed) []sequence.Info {
	infos, err := s.list(v.vm)
	if err != nil {
		s.log.Error("profiles are not saved", "domain", v.Name, "err", err)
	}
	for _, info := range infos {
		name, now := info.Executable.Name(), progressIn(&info.Profile)
		if v.saved[name] == now {
			continue
		}
		f, err := s.file(v, info.Executable)
		if err == nil {
			err = s.store.Save(f)
		}
		if err != nil {
			s.log.Error("a profile is not saved", "domain", v.Name, "err", err)
			continue
		}
		v.saved[name] = progressIn(&f.Profile)
	}
	return infos
}

// list returns the profiles of a VM, or of all for 0. It is called with mu held.
func (s *sequences) list(vm uint32) ([]sequence.Info, error) {
	if s.analyzer == nil {
		return nil, nil
	}
	all, err := s.analyzer.List()
	out := all[:0]
	for _, info := range all {
		if info.Executable.VM == vm || vm == 0 {
			out = append(out, info)
		}
	}
	return out, err
}

// file returns the profile of an executable as it is kept. It is called with mu held.
func (s *sequences) file(v *analysed, exe ph.Executable) (*profile.File, error) {
	p, err := s.analyzer.Profile(exe)
	if err != nil {
		return nil, err
	}
	f := &profile.File{Profile: *p, Domain: v.UUID, Saved: time.Now()}
	if p.Frozen {
		f.NormalAt = f.Saved.Add(time.Duration(int64(p.NormalTime) - monotonicNow()))
	}
	return f, nil
}

// reap frees the state of threads that are no more, and has those described that were missed.
func (s *sequences) reap(ctx context.Context) {
	s.mu.Lock()
	a := s.analyzer
	if c, err := a.Counters(); err == nil && c.NoProgram != s.undescribed {
		s.undescribed = c.NoProgram
		for _, v := range s.vms {
			s.describe(v)
		}
	}
	lists := make(map[uint32]func(context.Context) ([]layout.Task, error))
	for vm, v := range s.vms {
		lists[vm] = v.list
	}
	s.mu.Unlock()

	idle, err := a.Idle()
	if errors.Is(err, os.ErrClosed) {
		return
	}
	if err != nil {
		s.log.Error("cannot look for threads that are no more", "err", err)
		return
	}
	type task struct {
		addr uint64
		pid  int32
	}
	// nil: not known, so that all of that guest are left.
	living := make(map[uint32]map[task]bool)
	dead := idle[:0]
	for _, t := range idle {
		known, asked := living[t.VM]
		if list := lists[t.VM]; !asked && list != nil {
			tasks, err := list(ctx)
			if err == nil {
				known = make(map[task]bool, len(tasks))
				for _, t := range tasks {
					known[task{t.Addr, t.PID}] = true
				}
			} else {
				s.log.Debug("cannot list a guest's threads", "vm", t.VM, "err", err)
			}
			living[t.VM] = known
		}
		if known != nil && !known[task{t.Task, t.PID}] {
			dead = append(dead, t)
		}
	}
	n, err := a.Free(dead)
	switch {
	case errors.Is(err, os.ErrClosed):
	case err != nil:
		s.log.Error("cannot free the state of threads", "err", err)
	case n > 0:
		s.log.Debug("threads that are no more are freed", "threads", n)
	}
}

// record takes what the analysis tells.
func (s *sequences) record(rec *bpf.PhRecord) error {
	var room [4]ph.Alert
	for _, a := range ph.AlertsOf(room[:0], rec) {
		s.mu.Lock()
		v := s.vms[a.VM]
		var uuid, name string
		if v != nil {
			uuid, name = v.UUID, v.Name
		}
		s.mu.Unlock()
		offset, err := format.WallOffset()
		if err != nil {
			return err
		}
		s.log.Warn("alert", "domain", name, "kind", a.Kind.String(), "alert", a.String())
		s.alerts.add(alertOf{Alert: a, uuid: uuid, name: name, at: time.Unix(0, int64(a.Time)).Add(offset)})
		s.alerted(uuid, a.Kind)
	}
	return nil
}

// close saves everything and ends the analysis.
func (s *sequences) close() {
	s.mu.Lock()
	s.closed = true
	vms := make([]uint32, 0, len(s.vms))
	for vm := range s.vms {
		vms = append(vms, vm)
	}
	s.mu.Unlock()
	for _, vm := range vms {
		s.leave(vm)
	}
	s.mu.Lock()
	a := s.analyzer
	s.mu.Unlock()
	if a == nil {
		return
	}
	s.stop()
	s.tasks.Wait()
	if err := a.Close(); err != nil {
		s.log.Error("cannot end the analysis of call sequences", "err", err)
	}
}

// alertOf is an alert with its domain and time of day.
type alertOf struct {
	ph.Alert
	uuid, name string
	at         time.Time
}

// alertLog remembers the newest alerts and counts all. Its methods are safe for concurrent
// use.
type alertLog struct {
	max int

	mu      sync.Mutex
	counts  map[string]map[ph.AlertKind]uint64 // by UUID of the domain
	first   uint64                             // number of the oldest that is remembered
	alerts  []alertOf
	changed chan struct{} // closed when one is added
}

func (l *alertLog) add(a alertOf) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.alerts) == l.max {
		l.alerts = append(l.alerts[:0], l.alerts[1:]...)
		l.first++
	}
	l.alerts = append(l.alerts, a)
	if l.counts == nil {
		l.counts = make(map[string]map[ph.AlertKind]uint64)
	}
	if l.counts[a.uuid] == nil {
		l.counts[a.uuid] = make(map[ph.AlertKind]uint64)
	}
	l.counts[a.uuid][a.Kind]++
	close(l.changed)
	l.changed = make(chan struct{})
}

// count returns how many alerts of a domain there were, by kind.
func (l *alertLog) count(uuid string) map[ph.AlertKind]uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return maps.Clone(l.counts[uuid])
}

// forget drops the count of a domain that is no more.
func (l *alertLog) forget(uuid string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.counts, uuid)
}

// since returns the alerts from number n on, the number of the next one, and a channel that
// is closed when it comes.
func (l *alertLog) since(n uint64) ([]alertOf, uint64, <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	next := l.first + uint64(len(l.alerts))
	n = min(max(n, l.first), next)
	return append([]alertOf(nil), l.alerts[n-l.first:]...), next, l.changed
}

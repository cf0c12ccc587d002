// SPDX-License-Identifier: Apache-2.0

package hooks

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"libvirt.org/go/libvirt"

	"frail/hooks/libvirttest"
)

// patience is how long a test waits for what must come.
const patience = 60 * time.Second

const traceElement = `<frail:frail xmlns:frail="urn:frail:domain:1.0"><frail:trace/></frail:frail>`

// watcher runs Watch and keeps what it delivered.
type watcher struct {
	tb     testing.TB
	cancel context.CancelFunc
	done   chan error

	mu      sync.Mutex
	changed chan struct{} // closed and replaced with each event
	events  []Event
}

func startWatch(tb testing.TB, opts Options) *watcher {
	tb.Helper()
	opts.Log = testLog(tb)
	ctx, cancel := testContext()
	w := &watcher{tb: tb, cancel: cancel, done: make(chan error, 1), changed: make(chan struct{})}
	go func() {
		w.done <- Watch(ctx, opts, func(ev Event) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.events = append(w.events, ev)
			close(w.changed)
			w.changed = make(chan struct{})
		})
	}()
	tb.Cleanup(w.stop)
	return w
}

func testLog(tb testing.TB) *slog.Logger {
	return slog.New(slog.NewTextHandler(tb.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// testContext returns a context that does not outlive the test's patience by
// much: the longest tests wait for several things in turn.
func testContext() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), 10*patience)
}

// stop ends Watch and waits for it. It may be called more than once.
func (w *watcher) stop() {
	w.cancel()
	select {
	case err, ok := <-w.done:
		if !ok {
			return
		}
		close(w.done)
		if !errors.Is(err, context.Canceled) {
			w.tb.Errorf("Watch returned %v, want context.Canceled", err)
		}
	case <-time.After(patience):
		w.tb.Error("Watch does not return")
	}
}

// wait returns the first event from number from on that is wanted, and the
// number after it.
func (w *watcher) wait(what string, from int, wanted func(Event) bool) (Event, int) {
	w.tb.Helper()
	deadline := time.After(patience)
	for {
		w.mu.Lock()
		for ; from < len(w.events); from++ {
			if wanted(w.events[from]) {
				ev := w.events[from]
				w.mu.Unlock()
				return ev, from + 1
			}
		}
		changed := w.changed
		w.mu.Unlock()
		select {
		case <-changed:
		case <-deadline:
			w.tb.Fatalf("no event %q; there were:\n%s", what, w)
		}
	}
}

// state waits for a state of the domain called name, likewise.
func (w *watcher) state(what string, from int, name string, wanted func(State) bool) (State, int) {
	w.tb.Helper()
	ev, next := w.wait(what, from, func(ev Event) bool {
		return ev.Kind == DomainChanged && ev.State.Name == name && wanted(ev.State)
	})
	return ev.State, next
}

func (w *watcher) kind(kind EventKind, from int) (Event, int) {
	w.tb.Helper()
	return w.wait(kind.String(), from, func(ev Event) bool { return ev.Kind == kind })
}

// now returns the number of the next event.
func (w *watcher) now() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.events)
}

func (w *watcher) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var b strings.Builder
	for _, ev := range w.events {
		fmt.Fprintf(&b, "  %s %+v %v\n", ev.Kind, ev.State, ev.Err)
	}
	return b.String()
}

func connect(tb testing.TB, d *libvirttest.Daemon) *libvirt.Connect {
	tb.Helper()
	if err := StartEventLoop(); err != nil {
		tb.Fatal(err)
	}
	conn, err := libvirt.NewConnect(d.URI)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { conn.Close() })
	return conn
}

func define(tb testing.TB, conn *libvirt.Connect, name, metadata string) *libvirt.Domain {
	tb.Helper()
	dom, err := conn.DomainDefineXML(libvirttest.DomainXML(name, metadata))
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { dom.Free() })
	return dom
}

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

func isRunning(s State) bool  { return s.Active && s.Launched }
func isInactive(s State) bool { return !s.Active }

// checkEmulator fails the test unless pid is the emulator of the domain name.
func checkEmulator(tb testing.TB, pid int, name string) {
	tb.Helper()
	line, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cmdline")
	if err != nil {
		tb.Fatal(err)
	}
	if !strings.Contains(string(line), "guest="+name+",") {
		tb.Fatalf("process %d is not the emulator of %s: %q", pid, name, line)
	}
}

func TestWatchFollowsADomainsLife(t *testing.T) {
	d := libvirttest.Start(t)
	conn := connect(t, d)
	w := startWatch(t, Options{URI: d.URI, StatusDir: d.StatusDir})
	_, n := w.kind(Synced, 0)

	dom := define(t, conn, "life", traceElement)
	uuid, err := dom.GetUUIDString()
	must(t, err)
	s, n := w.state("defined", n, "life", isInactive)
	if !s.Config.Trace || s.UUID != uuid || s.PID != 0 || s.ID != 0 {
		t.Errorf("defined: %+v, want Trace and UUID %s and nothing that runs", s, uuid)
	}

	must(t, dom.Create())
	s, n = w.state("forked", n, "life", func(s State) bool { return s.PID != 0 })
	if s.Launched {
		t.Errorf("forked: %+v, want a process that is no emulator yet", s)
	}
	pid := s.PID
	s, n = w.state("running", n, "life", isRunning)
	if !s.Config.Trace || s.PID != pid || s.ID <= 0 {
		t.Errorf("running: %+v, want Trace, PID %d and an ID", s, pid)
	}
	checkEmulator(t, s.PID, "life")

	must(t, dom.Reset(0))
	s, n = w.state("reset", n, "life", func(s State) bool { return s.Resets == 1 })
	if s.PID != pid || !s.Active {
		t.Errorf("reset: %+v, want the same process %d", s, pid)
	}

	must(t, Disable(dom, true, false))
	s, n = w.state("disabled", n, "life", func(s State) bool { return !s.Config.Trace })
	if !s.Active || s.PID != pid {
		t.Errorf("disabled: %+v, want it running on as %d", s, pid)
	}
	must(t, Enable(dom, true, false, nil))
	_, n = w.state("enabled", n, "life", func(s State) bool { return s.Config.Trace && s.Active })

	must(t, dom.Destroy())
	s, n = w.state("destroyed", n, "life", isInactive)
	if s.PID != 0 || s.ID != 0 || s.Launched || !s.Config.Trace {
		t.Errorf("destroyed: %+v, want the persistent configuration and nothing that runs", s)
	}

	must(t, dom.Undefine())
	ev, _ := w.kind(DomainGone, n)
	if ev.State.UUID != uuid || ev.State.Name != "life" {
		t.Errorf("gone: %+v, want %s", ev.State, uuid)
	}
	checkDiffed(t, w)
}

// checkDiffed fails the test if a domain's state was delivered twice in a row.
func checkDiffed(tb testing.TB, w *watcher) {
	tb.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	last := make(map[string]State)
	for _, ev := range w.events {
		switch ev.Kind {
		case DomainChanged:
			if prior, ok := last[ev.State.UUID]; ok && prior.Equal(ev.State) {
				tb.Errorf("delivered twice: %+v", ev.State)
			}
			last[ev.State.UUID] = ev.State
		case DomainGone:
			delete(last, ev.State.UUID)
		}
	}
}

func TestWatchFindsWhatRunsAlready(t *testing.T) {
	d := libvirttest.Start(t)
	conn := connect(t, d)
	asked, plain := define(t, conn, "asked", traceElement), define(t, conn, "plain", "")
	define(t, conn, "off", traceElement)
	must(t, asked.Create())
	must(t, plain.Create())

	w := startWatch(t, Options{URI: d.URI, StatusDir: d.StatusDir})
	_, synced := w.kind(Synced, 0)
	s, n := w.state("asked", 0, "asked", isRunning)
	if n > synced || !s.Config.Trace {
		t.Errorf("asked: %+v as event %d, want Trace and before Synced, event %d", s, n, synced)
	}
	checkEmulator(t, s.PID, "asked")
	s, n = w.state("plain", 0, "plain", isRunning)
	if n > synced || s.Config != (Config{}) || s.ConfigErr != nil {
		t.Errorf("plain: %+v as event %d, want nothing asked for and before Synced, event %d", s, n, synced)
	}
	s, n = w.state("off", 0, "off", isInactive)
	if n > synced || !s.Config.Trace {
		t.Errorf("off: %+v as event %d, want Trace and before Synced, event %d", s, n, synced)
	}
	checkDiffed(t, w)
}

func TestWatchSurvivesLibvirtdRestarts(t *testing.T) {
	d := libvirttest.Start(t)
	conn := connect(t, d)
	keeps, dies := define(t, conn, "keeps", traceElement), define(t, conn, "dies", traceElement)
	must(t, keeps.Create())
	must(t, dies.Create())

	w := startWatch(t, Options{URI: d.URI, StatusDir: d.StatusDir})
	_, n := w.kind(Synced, 0)
	kept, _ := w.state("running", 0, "keeps", isRunning)
	dead, _ := w.state("running", 0, "dies", isRunning)
	open := openFiles(t)

	d.Kill(t)
	_, n = w.kind(Disconnected, n)
	// With libvirtd down, the end of an emulator is noticed all the same.
	must(t, unix.Kill(dead.PID, unix.SIGKILL))
	s, n := w.state("killed", n, "dies", isInactive)
	if s.PID != 0 {
		t.Errorf("killed: %+v, want no process", s)
	}

	d.Start(t)
	_, n = w.kind(Synced, n)
	for range 3 {
		d.Stop(t)
		_, n = w.kind(Disconnected, n)
		d.Start(t)
		_, n = w.kind(Synced, n)
	}
	w.mu.Lock()
	for _, ev := range w.events {
		if ev.Kind == DomainChanged && ev.State.Name == "keeps" && ev.State.PID != kept.PID && ev.State.Active {
			t.Errorf("the running domain was reported as %+v, want PID %d throughout", ev.State, kept.PID)
		}
	}
	w.mu.Unlock()
	if now := openFiles(t); now > open {
		t.Errorf("%d open files after the restarts, %d before", now, open)
	}

	// Still followed: a change after the restarts arrives.
	conn = connect(t, d)
	again, err := conn.LookupDomainByName("keeps")
	must(t, err)
	defer again.Free()
	must(t, Disable(again, true, true))
	w.state("disabled", n, "keeps", func(s State) bool { return s.Active && !s.Config.Trace })
	checkDiffed(t, w)
}

// openFiles returns how many files the process has open.
func openFiles(tb testing.TB) int {
	tb.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	must(tb, err)
	return len(fds)
}

func TestWatchWaitsForLibvirtd(t *testing.T) {
	d := libvirttest.New(t)
	w := startWatch(t, Options{URI: d.URI, StatusDir: d.StatusDir})
	ev, n := w.kind(Disconnected, 0)
	if ev.Err == nil {
		t.Error("Disconnected without a reason")
	}
	d.Start(t)
	_, n = w.kind(Synced, n)
	conn := connect(t, d)
	dom, err := conn.DomainCreateXML(libvirttest.DomainXML("transient", traceElement), 0)
	must(t, err)
	defer dom.Free()
	s, n := w.state("running", n, "transient", isRunning)
	if !s.Config.Trace {
		t.Errorf("running: %+v, want Trace", s)
	}
	checkEmulator(t, s.PID, "transient")
	must(t, dom.Destroy())
	w.kind(DomainGone, n)
}

func TestWatchFollowsRunningDomainsWhileLibvirtdHangs(t *testing.T) {
	d := libvirttest.Start(t)
	conn := connect(t, d)
	dom := define(t, conn, "hung", traceElement)
	must(t, dom.Create())
	d.Freeze(t)
	// Neither the first state nor the end waits for libvirt.
	w := startWatch(t, Options{URI: d.URI, StatusDir: d.StatusDir})
	s, n := w.state("running", 0, "hung", isRunning)
	must(t, unix.Kill(s.PID, unix.SIGKILL))
	w.state("killed", n, "hung", isInactive)
	ev, n := w.kind(Disconnected, 0)
	t.Logf("reported as %v", ev.Err)
	d.Thaw(t)
	w.kind(Synced, n)
}

func TestWatchReportsBadMetadata(t *testing.T) {
	d := libvirttest.Start(t)
	conn := connect(t, d)
	w := startWatch(t, Options{URI: d.URI, StatusDir: d.StatusDir})
	_, n := w.kind(Synced, 0)

	dom := define(t, conn, "bad", `<f:frail xmlns:f="urn:frail:domain:1.0"><f:trance/></f:frail>`)
	must(t, dom.Create())
	s, n := w.state("running", n, "bad", isRunning)
	if s.Config.Trace || s.ConfigErr == nil || !strings.Contains(s.ConfigErr.Error(), "frail/trance: unknown element") {
		t.Errorf("running: %+v, want it untraced, with an error about frail/trance", s)
	}

	var bad *ConfigError
	if err := Enable(dom, true, true, nil); !errors.As(err, &bad) {
		t.Errorf("Enable over bad metadata: %v, want a *ConfigError", err)
	}
	must(t, Disable(dom, true, true))
	_, n = w.state("repaired", n, "bad", func(s State) bool { return s.Active && s.ConfigErr == nil })
	must(t, Enable(dom, true, true, nil))
	w.state("enabled", n, "bad", func(s State) bool { return s.Active && s.Config.Trace })
}

func TestEnableAndDisableFollowVirsh(t *testing.T) {
	d := libvirttest.Start(t)
	conn := connect(t, d)
	dom := define(t, conn, "edit", `<other:app xmlns:other="urn:other"/>`)

	// check compares both copies; live is not looked at of a domain that is off.
	check := func(step string, live, config bool) {
		t.Helper()
		active, err := dom.IsActive()
		must(t, err)
		for target, want := range map[libvirt.DomainXMLFlags]bool{0: live, libvirt.DOMAIN_XML_INACTIVE: config} {
			if target == 0 && !active {
				continue
			}
			doc, err := dom.GetXMLDesc(target)
			must(t, err)
			cfg, err := ParseConfig([]byte(doc))
			if err != nil || cfg.Trace != want {
				t.Errorf("%s: flags %d: %+v, %v, want Trace %v", step, target, cfg, err, want)
			}
			if !strings.Contains(doc, "urn:other") {
				t.Errorf("%s: flags %d: another application's metadata is gone", step, target)
			}
		}
	}

	must(t, Enable(dom, false, false, nil))
	check("current, off", false, true)
	must(t, Enable(dom, false, true, nil))
	check("config again", false, true)
	if err := Enable(dom, true, false, nil); !errors.Is(err, libvirt.ERR_OPERATION_INVALID) {
		t.Errorf("live, off: %v, want libvirt's operation invalid", err)
	}
	if err := Enable(dom, true, true, nil); !errors.Is(err, libvirt.ERR_OPERATION_INVALID) {
		t.Errorf("live and config, off: %v, want libvirt's operation invalid", err)
	}
	must(t, Disable(dom, false, false))
	check("disable current, off", false, false)
	must(t, Disable(dom, false, false))

	must(t, dom.Create())
	must(t, Enable(dom, false, false, nil))
	check("current, on", true, false)
	must(t, Enable(dom, true, true, nil))
	check("live and config, on", true, true)
	must(t, Disable(dom, true, false))
	check("disable live, on", false, true)
	must(t, Disable(dom, true, true))
	check("disable both, on", false, false)

	transient, err := conn.DomainCreateXML(libvirttest.DomainXML("passing", ""), 0)
	must(t, err)
	defer transient.Free()
	if err := Enable(transient, false, true, nil); !errors.Is(err, libvirt.ERR_OPERATION_INVALID) {
		t.Errorf("config, transient: %v, want libvirt's operation invalid", err)
	}
}

// Other exits are asked for without what else is asked for being lost.
func TestEnableChangesExits(t *testing.T) {
	d := libvirttest.Start(t)
	conn := connect(t, d)
	dom := define(t, conn, "exits", `<x:frail xmlns:x="urn:frail:domain:1.0"><x:trace/><x:sequence tolerize="3" normal-wait="7d"/></x:frail>`)
	sequence := Sequence{On: true, TolerizePlus1: 4, NormalWaitPlus1: 7*24*time.Hour + 1}
	must(t, dom.Create())
	w := startWatch(t, Options{URI: d.URI, StatusDir: d.StatusDir})
	_, n := w.kind(Synced, 0)

	entry, both := ExitsEntry, ExitsBoth
	check := func(step string, target libvirt.DomainModificationImpact, want Exits) {
		t.Helper()
		cfg, err := readConfig(dom, target)
		if want := (Config{Trace: true, Exits: want, Sequence: sequence}); err != nil || cfg != want {
			t.Errorf("%s: %+v, %v, want %+v", step, cfg, err, want)
		}
	}
	must(t, Enable(dom, true, false, &entry))
	check("live", libvirt.DOMAIN_AFFECT_LIVE, ExitsEntry)
	check("live", libvirt.DOMAIN_AFFECT_CONFIG, ExitsBoth)
	s, n := w.state("entry", n, "exits", func(s State) bool { return s.Config.Exits == ExitsEntry })
	if !isRunning(s) || s.Config.Sequence != sequence {
		t.Errorf("entry: %+v, want it running and analysed as before", s)
	}
	must(t, Enable(dom, true, true, nil))
	check("as they are", libvirt.DOMAIN_AFFECT_LIVE, ExitsEntry)
	check("as they are", libvirt.DOMAIN_AFFECT_CONFIG, ExitsBoth)
	must(t, Enable(dom, false, true, &entry))
	check("config", libvirt.DOMAIN_AFFECT_CONFIG, ExitsEntry)
	must(t, Enable(dom, true, true, &both))
	check("back", libvirt.DOMAIN_AFFECT_LIVE, ExitsBoth)
	check("back", libvirt.DOMAIN_AFFECT_CONFIG, ExitsBoth)
	w.state("both", n, "exits", func(s State) bool { return isRunning(s) && s.Config.Exits == ExitsBoth })
}

func TestHookHandsOverAndNeverFails(t *testing.T) {
	d := libvirttest.New(t)
	build := exec.Command("go", "build", "-o", filepath.Join(d.HookDir, "frail"), "frail/cmd/frail-libvirt-hook")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the hook: %v\n%s", err, out)
	}
	d.Start(t)
	conn := connect(t, d)

	// Nobody listens: the domain starts, and survives a libvirtd restart.
	dom := define(t, conn, "alone", traceElement)
	must(t, dom.Create())
	d.Kill(t)
	d.Start(t)
	conn = connect(t, d)
	dom, err := conn.LookupDomainByName("alone")
	must(t, err)
	defer dom.Free()
	// Waits until libvirtd has taken the domain back, and its hook has run.
	if err := dom.Reset(0); err != nil {
		t.Fatalf("the domain does not run after libvirtd's restart: %v", err)
	}

	// Inside the daemon's namespace this is DefaultHookSocket.
	socket := filepath.Join(d.Dir, DefaultHookSocket)
	must(t, os.MkdirAll(filepath.Dir(socket), 0o755))
	l, err := ListenHook(socket)
	must(t, err)
	defer l.Close()
	calls := make(chan string, 64)
	go func() {
		defer close(calls)
		for {
			m, err := l.Receive()
			if err != nil {
				return
			}
			cfg, err := ParseConfig([]byte(m.XML))
			calls <- fmt.Sprintf("%s %s %s %s trace=%v %v", m.Guest, m.Op, m.SubOp, m.Extra, cfg.Trace, err)
		}
	}()
	heard := define(t, conn, "heard", traceElement)
	must(t, heard.Create())
	must(t, heard.Destroy())
	want := []string{
		"heard prepare begin - trace=true <nil>",
		"heard start begin - trace=true <nil>",
		"heard started begin - trace=true <nil>",
		"heard stopped end - trace=true <nil>",
		"heard release end - trace=true <nil>",
	}
	deadline := time.After(patience)
	for _, want := range want {
		select {
		case got := <-calls:
			if got != want {
				t.Errorf("the hook handed over %q, want %q", got, want)
			}
		case <-deadline:
			t.Fatalf("the hook did not hand over %q", want)
		}
	}
}

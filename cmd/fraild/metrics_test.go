// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"frail/api"
	"frail/bpf"
	"frail/bpf/bpftest"
	"frail/cmd/internal/config"
	"frail/hooks"
	"frail/kmod/device"
	"frail/qmp/layout"
	"frail/tracer"
	"frail/tracer/ph"
)

// figuresOf returns what the figures of from are now, by key.
func figuresOf[S any](figures []figure[S], from S) map[string]float64 {
	out := make(map[string]float64)
	for _, f := range figures {
		f.read(from, func(v float64, labels ...string) { out[f.key(labels)] = v })
	}
	return out
}

// Every figure of a domain comes from where it belongs.
func TestDomainFigures(t *testing.T) {
	idle := map[string]float64{
		"armed": 0, "alerts.attack": 2, "alerts.processes": 0, "alerts.drift": 0, "alerts.limit": 1,
		"events": 30, "events_lost.ring_full": 31, "events_lost.read_fault": 32, "events_lost.recursion": 33,
	}
	armed := maps.Clone(idle)
	maps.Copy(armed, map[string]float64{
		"armed": 1, "vm_exits.syscall": 1, "vm_exits.sysret": 2, "vm_exits.refetch": 3,
		"deferred_returns.known": 4, "deferred_returns.unknown": 5, "identity_misses": 6,
		"entry_blind.syscall": 0, "entry_blind.int80": 1, "entry_blind.sysenter": 0,
		"layout_state.looking": 0, "layout_state.known": 1, "layout_state.failed": 0, "layout_resolve_seconds": 0.75,
		"session_events.9": 10, "session_events_lost.9.ring_full": 11, "session_events_lost.9.read_fault": 12, "session_events_lost.9.recursion": 13,
	})
	from := &domainSource{
		alerts: map[ph.AlertKind]uint64{ph.AlertAttack: 2, ph.AlertLimit: 1},
		total:  tracer.Summary{Delivered: 30, Lost: tracer.Losses{RingFull: 31, ReadFault: 32, Recursion: 33}},
	}
	if got := figuresOf(domainFigures, from); !maps.Equal(got, idle) {
		t.Errorf("not armed: %v\nwant %v", got, idle)
	}
	from.vm = &bpf.Status{
		Enters: 1, Exits: 2, Refetches: 3, RetsKnown: 4, RetsUnknown: 5, IdentityMisses: 6, Blind: bpf.EntryInt80,
	}
	from.state = api.State_STATE_TRACED
	from.layout = &layout.Layout{Timing: layout.Timing{Find: 500 * time.Millisecond, Checks: 250 * time.Millisecond}}
	from.traces = map[uint64]tracer.Summary{9: {Delivered: 10, Lost: tracer.Losses{RingFull: 11, ReadFault: 12, Recursion: 13}}}
	if got := figuresOf(domainFigures, from); !maps.Equal(got, armed) {
		t.Errorf("armed: %v\nwant %v", got, armed)
	}
	for state, want := range map[api.State]string{api.State_STATE_RESOLVING: "looking", api.State_STATE_NO_IDENTITY: "failed"} {
		from.state = state
		got := figuresOf(domainFigures, from)
		if got["layout_state."+want] != 1 || got["layout_state.looking"]+got["layout_state.known"]+got["layout_state.failed"] != 1 {
			t.Errorf("%s: %v", state, got)
		}
	}
}

// testServer is a server that knows domains of these states, with real goroutines of theirs.
func testServer(t *testing.T, states ...hooks.State) *server {
	t.Helper()
	seq := sequencesIn(t, t.TempDir())
	h := &host{log: seq.log, sequences: seq, records: newRecords(seq.cfg, seq.log)}
	h.cfg.Store(seq.cfg)
	m := newManager(h)
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(func() {
		cancel()
		m.tasks.Wait()
	})
	for _, st := range states {
		m.deliver(ctx, hooks.Event{Kind: hooks.DomainChanged, State: st})
	}
	return newServer(ctx, m)
}

// stateOf is a domain's that runs and is not to be traced.
func stateOf(name string, n int) hooks.State {
	return hooks.State{UUID: fmt.Sprintf("00000000-0000-0000-0000-%012d", n), Name: name, ID: n, PID: n, Active: true, Launched: true}
}

// serveMetrics serves the metrics of s and returns a client that knows where.
func serveMetrics(t *testing.T, s *server) *http.Client {
	t.Helper()
	at := config.ListenAddress{Network: "unix", Address: filepath.Join(t.TempDir(), "metrics.sock")}
	l, lock, err := listenMetrics(at, "")
	if err != nil {
		t.Fatal(err)
	}
	h := newMetricsServer(s, slog.New(slog.DiscardHandler))
	served := make(chan error, 1)
	go func() { served <- h.Serve(l) }()
	client := &http.Client{
		Timeout: 30 * time.Second,
		Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, at.Network, at.Address)
		}},
	}
	t.Cleanup(func() {
		client.CloseIdleConnections()
		h.Close()
		lock.Close()
		if err := <-served; err != http.ErrServerClosed {
			t.Error(err)
		}
	})
	return client
}

// scrape returns the values of a scrape by series, and its status.
func scrape(client *http.Client) (map[string]float64, int, error) {
	resp, err := client.Get("http://fraild/metrics")
	if err != nil {
		return nil, 0, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		return nil, resp.StatusCode, err
	}
	out := make(map[string]float64)
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(line, "#") {
			continue
		}
		i := strings.LastIndexByte(line, ' ')
		v, err := strconv.ParseFloat(strings.TrimSpace(line[i+1:]), 64)
		if err != nil {
			return nil, resp.StatusCode, err
		}
		out[line[:i]] = v
	}
	return out, resp.StatusCode, nil
}

// mustScrape is scrape where it has to succeed.
func mustScrape(t *testing.T, client *http.Client) map[string]float64 {
	t.Helper()
	values, code, err := scrape(client)
	if err != nil || code != http.StatusOK {
		t.Fatalf("scrape: %d, %v", code, err)
	}
	return values
}

// waitState waits until fraild does this with a domain.
func waitState(t *testing.T, s *server, key string, want api.State) {
	t.Helper()
	timeout := time.After(30 * time.Second)
	for {
		snap, changed := s.manager.find(key).snapshot()
		if snap.state == want {
			return
		}
		select {
		case <-changed:
		case <-timeout:
			t.Fatalf("%s is %s, not %s", key, snap.state, want)
		}
	}
}

// Prometheus gets the figures of all domains, whatever they are in the midst of.
func TestMetrics(t *testing.T) {
	off := stateOf("off", 1)
	off.Active = false
	asks := stateOf("asks \"it\"", 3)
	asks.Config.Trace = true
	s := testServer(t, off, stateOf("plain", 2), asks)
	waitState(t, s, asks.UUID, api.State_STATE_ERROR) // there is no module
	// A domain whose VM's descriptor is closed, as while it is disarmed.
	snap := snapshot{State: stateOf("leaving", 4), state: api.State_STATE_TRACED, vm: new(device.VM)}
	leaving := newDomain(s.manager.host, snap.State)
	leaving.snap = snap
	s.manager.mu.Lock()
	s.manager.domains[snap.UUID] = &entry{domain: leaving, stop: func() {}}
	s.manager.mu.Unlock()
	client := serveMetrics(t, s)

	got := mustScrape(t, client)
	for series, want := range map[string]float64{
		`frail_domains{state="shut_off"}`:                                                         1,
		`frail_domains{state="not_traced"}`:                                                       1,
		`frail_domains{state="arming"}`:                                                           0,
		`frail_domains{state="traced"}`:                                                           1,
		`frail_domains{state="error"}`:                                                            1,
		`frail_sessions`:                                                                          0,
		`frail_armed{domain="asks \"it\"",uuid="` + asks.UUID + `"}`:                              0,
		`frail_armed{domain="leaving",uuid="` + snap.UUID + `"}`:                                  0,
		`frail_events_lost_total{cause="ring_full",domain="off",uuid="` + off.UUID + `"}`:         0,
		`frail_build_info{goversion="` + runtime.Version() + `",version="` + api.Version() + `"}`: 1,
	} {
		if v, ok := got[series]; !ok || v != want {
			t.Errorf("%s is %v, %t, want %v", series, v, ok, want)
		}
	}
	for series := range got {
		if strings.HasPrefix(series, "frail_vm_exits_total") || strings.HasPrefix(series, "frail_bpf_") {
			t.Errorf("%s of no armed VM, or no measured program", series)
		}
	}
	if resp, err := client.Get("http://fraild/"); err != nil || resp.StatusCode != http.StatusNotFound {
		t.Errorf("elsewhere: %v, %v", resp, err)
	} else {
		resp.Body.Close()
	}
}

// The same by TCP, where an address is taken already.
func TestMetricsPort(t *testing.T) {
	l, lock, err := listenMetrics(config.ListenAddress{Network: "tcp", Address: "127.0.0.1:0"}, "")
	if err != nil || lock != nil {
		t.Fatal(lock, err)
	}
	h := newMetricsServer(testServer(t, stateOf("plain", 1)), slog.New(slog.DiscardHandler))
	defer h.Close()
	go h.Serve(l)
	resp, err := http.Get("http://" + l.Addr().String() + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil || !strings.Contains(string(text), "\nfrail_armed{domain=\"plain\"") {
		t.Errorf("%s, %v:\n%s", resp.Status, err, text)
	}
	if _, _, err := listenMetrics(config.ListenAddress{Network: "tcp", Address: l.Addr().String()}, ""); err == nil {
		t.Error("a port that is taken is no error")
	}
}

// Scrapes at the same time, while domains come and go, traces begin and end and the analysis
// writes its files, neither fail nor wait.
func TestConcurrentScrapes(t *testing.T) {
	s := testServer(t, stateOf("plain", 1))
	client := serveMetrics(t, s)
	s.manager.host.sequences.mu.Lock() // held while files are written
	defer s.manager.host.sequences.mu.Unlock()

	ctx, stop := context.WithCancel(t.Context())
	var churn, scrapes sync.WaitGroup
	churn.Go(func() {
		for n := 2; ctx.Err() == nil; n++ {
			st := stateOf("guest", n)
			s.manager.deliver(ctx, hooks.Event{Kind: hooks.DomainChanged, State: st})
			d := s.manager.find("guest")
			snap, _ := d.snapshot()
			snap.state, snap.vm = api.State_STATE_TRACED, new(device.VM)
			d.publish(snap)
			s.manager.deliver(ctx, hooks.Event{Kind: hooks.DomainGone, State: st})
		}
	})
	churn.Go(func() {
		for ctx.Err() == nil {
			tr, err := tracer.New(tracer.Options{RingBytes: config.MinRingBytes})
			if err != nil {
				t.Error(err)
				return
			}
			end := s.manager.host.traces.begin(stateOf("plain", 1).UUID, tr)
			tr.Close()
			end()
		}
	})
	for range maxScrapes {
		scrapes.Go(func() {
			for range 10 {
				begin := time.Now()
				values, code, err := scrape(client)
				if err != nil || code != http.StatusOK || values["frail_sessions"] != 0 || len(values) < 10 {
					t.Errorf("scrape: %d, %v, %d values", code, err, len(values))
				}
				if took := time.Since(begin); took > scrapeTimeout {
					t.Errorf("a scrape took %s", took)
				}
			}
		})
	}
	scrapes.Wait()
	stop()
	churn.Wait()
}

// A reading that hangs ends the scrapes that wait for it, and keeps no later one from coming.
func TestScrapeTimeout(t *testing.T) {
	s := testServer(t, stateOf("plain", 1))
	client := serveMetrics(t, s)
	s.manager.mu.Lock()
	unlock := sync.OnceFunc(s.manager.mu.Unlock)
	defer unlock()
	var scrapes sync.WaitGroup
	for range 2 {
		scrapes.Go(func() {
			begin := time.Now()
			_, code, err := scrape(client)
			if err != nil || code != http.StatusServiceUnavailable {
				t.Errorf("scrape: %d, %v", code, err)
			}
			if took := time.Since(begin); took > 2*scrapeTimeout {
				t.Errorf("it took %s", took)
			}
		})
	}
	scrapes.Wait()
	unlock()
	if got := mustScrape(t, client); got["frail_sessions"] != 0 {
		t.Errorf("then: %v", got)
	}
}

// programsOf returns the ids of the kernel's BPF programs of a name.
func programsOf(t *testing.T, name string) map[ebpf.ProgramID]bool {
	t.Helper()
	ids := make(map[ebpf.ProgramID]bool)
	for id, err := ebpf.ProgramGetNextID(0); err == nil; id, err = ebpf.ProgramGetNextID(id) {
		p, err := ebpf.NewProgramFromID(id)
		if err != nil {
			continue // it was unloaded meanwhile
		}
		if info, err := p.Info(); err == nil && info.Name == name {
			ids[id] = true
		}
		p.Close()
	}
	return ids
}

// tracedCalls makes a tracer of VM 7 and runs its program on n calls, more than its ring holds.
func tracedCalls(t *testing.T, n int) *tracer.Tracer {
	t.Helper()
	before := programsOf(t, bpf.TracepointEnter)
	tr, err := tracer.New(tracer.Options{VMs: []uint32{7}, RingBytes: 4096})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tr.Close() })
	events := bpftest.New(t, 1)
	*events.At(0) = bpf.Event{Vm: 7, Kind: bpf.EventEnter, Insn: bpf.InsnSyscall64, Nr: 1}
	fired := false
	for id := range programsOf(t, bpf.TracepointEnter) {
		if before[id] {
			continue
		}
		prog, err := ebpf.NewProgramFromID(id)
		if err != nil {
			t.Fatal(err)
		}
		defer prog.Close()
		for range n {
			events.Fire(t, prog, 0)
		}
		fired = true
	}
	if !fired {
		t.Fatal("the tracer's program is not found")
	}
	return tr
}

// The sums of traces do not fall when one ends, and are of its domain.
func TestTraceSums(t *testing.T) {
	stats, err := ebpf.EnableStats(uint32(unix.BPF_STATS_RUN_TIME))
	if err != nil {
		t.Fatal(err)
	}
	defer stats.Close()
	var all traces
	sums := func() traceSums {
		t.Helper()
		s, err := all.sums()
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	if s := sums(); len(s.running)+len(s.total)+len(s.programs) != 0 {
		t.Errorf("before the first: %+v", s)
	}

	const calls = 200
	first, second := tracedCalls(t, calls), tracedCalls(t, calls)
	endFirst, endSecond := all.begin("a", first), all.begin("a", second)
	one, err := first.Summary()
	if err != nil {
		t.Fatal(err)
	}
	if one.Lost.RingFull == 0 || one.Lost.RingFull >= calls {
		t.Fatalf("a ring of 4096 bytes loses %+v of %d calls", one, calls)
	}
	both := addSummary(one, one)
	s := sums()
	if s.running["a"][1] != one || s.running["a"][2] != one || s.total["a"] != both || s.programs[bpf.TracepointEnter].Runs != 2*calls {
		t.Errorf("two that run: %+v, each %+v", s, one)
	}
	runTime := s.programs[bpf.TracepointEnter].RunTime
	if runTime <= 0 {
		t.Error("the programs took no time")
	}

	// Between closing a tracer and counting it as ended nothing may be missing either.
	first.Close()
	for range 2 {
		s = sums()
		if s.total["a"] != both || s.programs[bpf.TracepointEnter] != (tracer.ProgramStats{Name: bpf.TracepointEnter, Runs: 2 * calls, RunTime: runTime}) {
			t.Errorf("one closed: %+v, want %+v", s, both)
		}
		if len(s.running["a"]) == 2 {
			endFirst()
		}
	}
	if len(s.running["a"]) != 1 || s.running["a"][2] != one {
		t.Errorf("one ended: %+v", s)
	}
	second.Close()
	all.forget("a")
	endSecond()
	if s = sums(); len(s.total) != 0 || len(s.running) != 0 || s.programs[bpf.TracepointEnter].Runs != 2*calls {
		t.Errorf("a domain that is no more: %+v", s)
	}
}

// A trace that a client asks for is counted while it runs.
func TestTraceIsCounted(t *testing.T) {
	s := testServer(t, stateOf("plain", 1))
	path := filepath.Join(t.TempDir(), "frail.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	g := s.grpc(rootOnly)
	go g.Serve(l)
	defer g.Stop()
	conn, err := grpc.NewClient("unix://"+path, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	stream, err := api.NewFrailClient(conn).Trace(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	start := &api.TraceStart{Domain: "plain", Wait: true}
	if err := stream.Send(&api.TraceRequest{Request: &api.TraceRequest_Start{Start: start}}); err != nil {
		t.Fatal(err)
	}
	// There is no tracepoint to attach to: it ends at once.
	if _, err := stream.Recv(); status.Code(err) != codes.FailedPrecondition {
		t.Fatal(err)
	}
	all := &s.manager.host.traces
	sums, err := all.sums()
	if err != nil {
		t.Fatal(err)
	}
	if _, known := sums.total[stateOf("plain", 1).UUID]; all.last != 1 || len(sums.running) != 0 || !known {
		t.Errorf("%d traces began, %+v", all.last, sums)
	}

	// With the domain its sums go.
	alerts := &s.manager.host.sequences.alerts
	alerts.add(alertOf{uuid: stateOf("plain", 1).UUID})
	s.manager.deliver(t.Context(), hooks.Event{Kind: hooks.DomainGone, State: stateOf("plain", 1)})
	s.manager.tasks.Wait()
	if sums, err = all.sums(); err != nil || len(sums.total) != 0 || len(alerts.count(stateOf("plain", 1).UUID)) != 0 {
		t.Errorf("of a domain that is no more: %+v, %v", sums, err)
	}
}

// The analysis' programs and losses are told from its first use until fraild stops.
func TestSequenceFigures(t *testing.T) {
	stats, err := ebpf.EnableStats(uint32(unix.BPF_STATS_RUN_TIME))
	if err != nil {
		t.Fatal(err)
	}
	defer stats.Close()
	s := testServer(t, stateOf("plain", 1))
	client := serveMetrics(t, s)
	const runs = `frail_bpf_runs_total{object="sequence",program="guest_sys_enter"}`
	const lost = `frail_sequence_lost_total{cause="read_fault"}`
	if got := mustScrape(t, client); got[runs] != 0 || got[lost] != 0 {
		t.Errorf("before: %v", got)
	}
	seq := s.manager.host.sequences
	if err := seq.follow(7, domainState(hooks.Sequence{On: true}), untold); err != nil {
		t.Fatal(err)
	}
	g := &guestOf{t, bpftest.New(t, 5), seq, 7, 0}
	g.call(10, "server", 0, 1, 3)
	if _, err := seq.analyzer.Program().Run(&ebpf.RunOptions{Context: bpf.EventArgs{Event: 8, Vm: 7, Kind: bpf.EventEnter}}); err != nil {
		t.Fatal(err)
	}
	got := mustScrape(t, client)
	if got[runs] != 4 || got[`frail_bpf_run_seconds_total{object="sequence",program="guest_sys_enter"}`] <= 0 || got[lost] != 1 {
		t.Errorf("after 4 calls, one of them not readable: %v", got)
	}
	seq.close()
	if got := mustScrape(t, client); got[runs] != 0 {
		t.Errorf("at the end: %v", got)
	}
}

// SPDX-License-Identifier: Apache-2.0

//go:build lab

package e2e

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"frail/lab/kmsg"
	"frail/lab/vm"
)

// Everything here runs two emulated machines deep: what takes a second on
// hardware may take a minute. A limit only ends a test that has failed.
var (
	bootLimit = slowness() * 6 * time.Minute
	waitLimit = slowness() * 4 * time.Minute
)

// poll is how often a test looks whether what it waits for has come.
const poll = 200 * time.Millisecond

// slowness is how many times longer than on other hosts everything may take:
// a debug kernel checks each of its own memory accesses.
func slowness() time.Duration {
	release, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err == nil && bytes.Contains(release, []byte("-debug")) {
		return 4
	}
	return 1
}

const (
	guestKernel = "/frail/guest/vmlinuz"
	guestInitrd = "/frail/guest/initramfs.cpio.gz"
)

// testContext is done when the test is.
func testContext(t *testing.T, limit time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeoutCause(t.Context(), limit, fmt.Errorf("limit of %v", limit))
	t.Cleanup(cancel)
	return ctx
}

// begin is the first call of every test: at the test's end, after everything
// else, the host's kernel must have had nothing to warn of and fraild must be
// running.
func begin(t *testing.T) {
	t.Helper()
	kernel, err := kmsg.Open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		defer kernel.Close()
		for _, line := range kernel.Warnings() {
			t.Errorf("the host's kernel warns: %s", line)
		}
		if out, err := exec.Command("systemctl", "is-active", "fraild.service").CombinedOutput(); err != nil {
			t.Errorf("fraild is %s at the end of the test", bytes.TrimSpace(out))
		}
	})
}

// guestConfig changes a guest before it is defined.
type guestConfig func(*vm.Config)

func traced(c *vm.Config) { c.Metadata = vm.Traced }

// tracedEntry asks for one exit per call.
const tracedEntry = `<frail:frail xmlns:frail="urn:frail:domain:1.0"><frail:trace exits="entry"/></frail:frail>`

func metadata(xml string) guestConfig { return func(c *vm.Config) { c.Metadata = xml } }

func vcpus(n int) guestConfig { return func(c *vm.Config) { c.VCPUs = n } }

// startGuest starts a guest as virsh start does and does not wait for it. The
// guest is gone at the end of the test; if the test failed, its console is
// logged.
func startGuest(t *testing.T, name string, options ...guestConfig) *vm.VM {
	t.Helper()
	cfg := vm.Config{Name: name, Kernel: guestKernel, Initrd: guestInitrd}
	for _, o := range options {
		o(&cfg)
	}
	v, err := vm.Define(testContext(t, waitLimit), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			explain(t, v)
		}
		// The test's context is done.
		ctx, cancel := context.WithTimeout(context.Background(), waitLimit)
		defer cancel()
		if err := v.Destroy(ctx); err != nil {
			t.Error(err)
		}
		if err := v.Undefine(ctx); err != nil {
			t.Error(err)
		}
	})
	if err := v.Start(testContext(t, waitLimit)); err != nil {
		t.Fatal(err)
	}
	return v
}

// explain logs what can be known of a guest from outside, for a failed test.
func explain(t *testing.T, v *vm.VM) {
	ctx, cancel := context.WithTimeout(context.Background(), waitLimit)
	defer cancel()
	if console, err := v.Console(); err == nil {
		t.Logf("console of %s:\n%s", v.Name, console)
	}
	// Twice: does it move?
	for range 2 {
		regs, err := v.HMP(ctx, "info registers -a")
		if err != nil {
			t.Log(err)
			return
		}
		t.Logf("%s:\n%s", v.Name, regs)
	}
	if list, err := vm.Command("frail", "list", "--all", "--json"); err == nil {
		t.Log(list)
	}
	if log, err := vm.Command("journalctl", "--boot", "--unit=fraild.service", "--no-pager", "--lines=40"); err == nil {
		t.Log(log)
	}
}

// waitGuest waits until the guest takes commands.
func waitGuest(t *testing.T, v *vm.VM) {
	t.Helper()
	if err := v.WaitReady(testContext(t, bootLimit)); err != nil {
		t.Fatal(err)
	}
}

// runIn runs a command line in a guest.
func runIn(t *testing.T, v *vm.VM, command string) vm.Result {
	t.Helper()
	res, err := v.Run(testContext(t, waitLimit), command)
	if err != nil {
		t.Fatal(err)
	}
	return res
}

// eventually waits until check returns no error; the last one is the test's.
func eventually(t *testing.T, what string, check func() error) {
	t.Helper()
	ctx := testContext(t, waitLimit)
	tick := time.NewTicker(poll)
	defer tick.Stop()
	for {
		err := check()
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("%s: not within %v: %v", what, waitLimit, err)
		case <-tick.C:
		}
	}
}

// command runs a program on the host; ok says whether it must succeed.
func command(t *testing.T, name string, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	cmd := exec.CommandContext(testContext(t, waitLimit), name, args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err = cmd.Run()
	return out.String(), errs.String(), err
}

// must runs a program on the host that has to succeed and returns its output.
func must(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, errs, err := command(t, name, args...)
	if err != nil {
		t.Fatalf("%s %s: %v\n%s%s", name, strings.Join(args, " "), err, out, errs)
	}
	return out
}

// domainState is a domain in "frail list --json".
type domainState struct {
	Name   string `json:"name"`
	Active bool   `json:"active"`
	State  string `json:"state"`
	Reason string `json:"reason"`
	VM     *struct {
		ID         uint32 `json:"id"`
		Generation uint32 `json:"generation"`
		Armed      uint32 `json:"armed_vcpus"`
		VCPUs      uint32 `json:"vcpus"`
		Release    string `json:"release"`
	} `json:"vm"`
}

// States as frail list --json names them.
const (
	stateNotTraced = "STATE_NOT_TRACED"
	stateTraced    = "STATE_TRACED"
	stateError     = "STATE_ERROR"
)

// listed returns what frail list says of a domain.
func listed(t *testing.T, name string) (domainState, error) {
	t.Helper()
	out, errs, err := command(t, "frail", "list", "--all", "--json")
	if err != nil {
		return domainState{}, fmt.Errorf("frail list: %w: %s", err, errs)
	}
	var list struct {
		Domains []domainState `json:"domains"`
	}
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		return domainState{}, fmt.Errorf("parse frail list: %w", err)
	}
	for _, d := range list.Domains {
		if d.Name == name {
			return d, nil
		}
	}
	return domainState{}, fmt.Errorf("frail list does not have %s", name)
}

// waitTraced waits until a guest's system calls are traced with identity. An
// idle guest makes none from which its kernel could be found, so it is kept
// busy. The guest must take commands.
func waitTraced(t *testing.T, v *vm.VM) domainState {
	t.Helper()
	var last domainState
	eventually(t, v.Name+" is traced", func() error {
		var err error
		last, err = listed(t, v.Name)
		if err == nil && last.State != stateTraced {
			err = fmt.Errorf("it is %s %q", last.State, last.Reason)
			runIn(t, v, "true")
		}
		return err
	})
	return last
}

// waitState waits until frail list shows a domain in a state and returns it.
func waitState(t *testing.T, name, state string) domainState {
	t.Helper()
	var last domainState
	eventually(t, name+" in "+state, func() error {
		var err error
		last, err = listed(t, name)
		if err == nil && last.State != state {
			err = fmt.Errorf("it is %s %q", last.State, last.Reason)
		}
		return err
	})
	return last
}

// trace is a running "frail trace --json".
type trace struct {
	t      *testing.T
	cmd    *exec.Cmd
	stdout bytes.Buffer
	stderr bytes.Buffer
	exited chan error
	ended  sync.Once
}

// startTrace runs frail trace and returns when it records.
func startTrace(t *testing.T, domain string, args ...string) *trace {
	t.Helper()
	ready := filepath.Join(t.TempDir(), "ready")
	tr := &trace{t: t, exited: make(chan error, 1)}
	args = append([]string{"trace", domain, "--json", "--ready-file", ready}, args...)
	tr.cmd = exec.CommandContext(t.Context(), "frail", args...)
	tr.cmd.Stdout, tr.cmd.Stderr = &tr.stdout, &tr.stderr
	if err := tr.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { tr.exited <- tr.cmd.Wait() }()
	eventually(t, "frail trace records", func() error {
		select {
		case err := <-tr.exited:
			t.Fatalf("frail trace ended: %v\n%s", err, &tr.stderr)
		default:
		}
		_, err := os.Stat(ready)
		return err
	})
	return tr
}

// stop ends the trace as Ctrl-C does and returns all it recorded. Nothing may
// have been lost.
func (tr *trace) stop() []record {
	tr.t.Helper()
	if err := tr.cmd.Process.Signal(os.Interrupt); err != nil {
		tr.t.Fatalf("end frail trace: %v\n%s", err, &tr.stderr)
	}
	return tr.wait()
}

// wait waits for the trace to end by itself.
func (tr *trace) wait() []record {
	tr.t.Helper()
	select {
	case err := <-tr.exited:
		if err != nil {
			tr.t.Fatalf("frail trace: %v\n%s", err, &tr.stderr)
		}
	case <-time.After(waitLimit):
		tr.t.Fatalf("frail trace does not end\n%s", &tr.stderr)
	}
	records := parseRecords(tr.t, tr.stdout.Bytes())
	if len(records) == 0 || records[len(records)-1].Type != recordSummary {
		tr.t.Fatalf("the trace of %d records has no summary at its end\n%s", len(records), &tr.stderr)
	}
	events := uint64(0)
	for _, r := range records {
		switch r.Type {
		case recordLost:
			tr.t.Fatalf("the trace lost events: %+v", r)
		case recordEnter, recordExit:
			events++
		}
	}
	summary := records[len(records)-1]
	if summary.Lost.Total != 0 {
		tr.t.Errorf("the summary counts %d lost events", summary.Lost.Total)
	}
	if summary.Delivered != events {
		tr.t.Errorf("the summary counts %d events, the trace has %d", summary.Delivered, events)
	}
	return records
}

func parseRecords(t *testing.T, data []byte) []record {
	t.Helper()
	var records []record
	lines := bufio.NewScanner(bytes.NewReader(data))
	for lines.Scan() {
		var r record
		if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
			t.Fatalf("parse %q: %v", lines.Bytes(), err)
		}
		records = append(records, r)
	}
	return records
}

// tracepoints counts frail's tracepoints by the tracing file system alone, in
// an instance of its own.
type tracepoints struct {
	t   *testing.T
	dir string
}

// watchTracepoints begins to record both tracepoints.
func watchTracepoints(t *testing.T) *tracepoints {
	t.Helper()
	tp := &tracepoints{t, filepath.Join("/sys/kernel/tracing/instances", strings.ReplaceAll(t.Name(), "/", "_"))}
	if err := os.Mkdir(tp.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		tp.write("events/frail/enable", "0")
		if err := os.Remove(tp.dir); err != nil {
			t.Error(err)
		}
	})
	tp.write("buffer_size_kb", "8192")
	tp.write("events/frail/enable", "1")
	return tp
}

func (tp *tracepoints) write(file, value string) {
	tp.t.Helper()
	if err := os.WriteFile(filepath.Join(tp.dir, file), []byte(value), 0); err != nil {
		tp.t.Fatal(err)
	}
}

// take returns the lines recorded since the last call.
func (tp *tracepoints) take() []string {
	tp.t.Helper()
	data, err := os.ReadFile(filepath.Join(tp.dir, "trace"))
	if err != nil {
		tp.t.Fatal(err)
	}
	tp.write("trace", "\n")
	var lines []string
	for line := range strings.Lines(string(data)) {
		if !strings.HasPrefix(line, "#") {
			lines = append(lines, strings.TrimSpace(line))
		}
	}
	return lines
}

// SPDX-License-Identifier: Apache-2.0

//go:build lab

package proof

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"frail/lab/direct"
)

var command = flag.String("command", "/frail/lab/frail", "the frail command")

// qmpScript makes calls when it is told to.
const qmpScript = `
exec 3</dev/ttyS0
echo ready >/dev/console
read -r _ <&3
t-opens
echo opened >/dev/console
read -r _ <&3
t-opens
`

// frail starts the command with arguments; done is closed when it has ended, and out and
// errs may be read then.
func frail(t *testing.T, ctx context.Context, args ...string) (done <-chan error, out, errs *bytes.Buffer) {
	t.Helper()
	cmd := exec.CommandContext(ctx, *command, args...)
	out, errs = new(bytes.Buffer), new(bytes.Buffer)
	cmd.Stdout, cmd.Stderr = out, errs
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() {
		ended <- cmd.Wait()
		close(ended)
	}()
	t.Cleanup(func() { // a test that failed waits for nobody
		_ = cmd.Process.Kill()
		<-ended
	})
	return ended, out, errs
}

// traceSummary is the last record of frail trace --json.
type traceSummary struct {
	Type      string
	Delivered uint64
	Lost      struct{ Total uint64 }
}

// traceLines returns how many calls frail trace --json told of t-opens by its name, and the
// last record.
func traceLines(t *testing.T, out []byte) (opens int, last traceSummary) {
	t.Helper()
	for line := range bytes.Lines(out) {
		var rec struct {
			traceSummary
			Comm string
		}
		if err := json.Unmarshal(line, &rec); err != nil {
			t.Fatalf("%v in %q", err, line)
		}
		if rec.Type == "enter" && rec.Comm == "t-opens" {
			opens++
		}
		last = rec.traceSummary
	}
	return opens, last
}

// TestQMP has the command trace, and look into, the guest of a QEMU without libvirt and
// without fraild.
func TestQMP(t *testing.T) {
	if _, err := os.Stat(*command); errors.Is(err, os.ErrNotExist) {
		t.Skip("this host has no room for the command")
	}
	for _, mode := range exitModes {
		t.Run(mode.name, func(t *testing.T) {
			ctx := testContext(t)
			dir := t.TempDir()
			socket, second, ready := filepath.Join(dir, "qmp"), filepath.Join(dir, "second"), filepath.Join(dir, "ready")
			g := start(t, ctx, guest(direct.Config{VCPUs: 2, QMP: []string{socket, second}, Script: qmpScript}))

			// From the first instruction on.
			ended, out, errs := frail(t, ctx, "trace", "--qmp", socket, "--json", "--exits", mode.name, "--ready-file", ready)
			eventually(t, "the trace begins", func() error {
				select {
				case err := <-ended:
					t.Fatalf("frail trace ended: %v: %s", err, errs)
				default:
				}
				_, err := os.Stat(ready)
				return err
			})
			if err := errors.Join(g.Resume(ctx), g.Await(ctx, "ready")); err != nil {
				t.Fatal(err)
			}
			lookInside(t, ctx, second)
			if err := errors.Join(g.Send("go"), g.Await(ctx, "opened")); err != nil {
				t.Fatal(err)
			}

			// Who traces already is told so, and the guest's end ends the trace.
			busy, _, busyErrs := frail(t, ctx, "trace", "--qmp", second)
			if err := <-busy; err == nil || !strings.Contains(busyErrs.String(), "armed already") {
				t.Errorf("a second trace: %v: %s", err, busyErrs)
			}
			if err := g.Send("go"); err != nil {
				t.Fatal(err)
			}
			if _, err := g.Wait(ctx); err != nil {
				t.Fatal(err)
			}
			if err := <-ended; err != nil {
				t.Fatalf("frail trace: %v: %s", err, errs)
			}
			if !strings.Contains(errs.String(), "shut off") {
				t.Errorf("frail trace says %q at the guest's end", errs)
			}
			opens, last := traceLines(t, out.Bytes())
			if opens == 0 || opens%2 != 0 {
				t.Errorf("%d calls of t-opens, which ran twice", opens)
			}
			if last.Type != "summary" || last.Delivered == 0 || last.Lost.Total != 0 {
				t.Errorf("the last record is %+v", last)
			}
		})
	}
}

// lookInside reads a guest that is traced by another process.
func lookInside(t *testing.T, ctx context.Context, socket string) {
	t.Helper()
	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{"ps", "--tree"}, "[kthreadd]"},
		{[]string{"dmesg"}, "Linux version "},
		{[]string{"layout"}, "process_vm_readv"},
	} {
		ended, out, errs := frail(t, ctx, append(tt.args, "--qmp", socket)...)
		if err := <-ended; err != nil || !strings.Contains(out.String(), tt.want) {
			t.Errorf("frail %v: %v: %s%s", tt.args, err, out, errs)
		}
	}
}

// SPDX-License-Identifier: Apache-2.0

//go:build lab

package proof

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"testing"

	"frail/lab/direct"
)

const (
	debugCalls = 20000 // of the guest in all
	debugFrom  = 3000  // of them made before a debugger stops it
	debugSteps = 1000  // instructions that the debugger steps at least, some 400 a call
	debugMost  = 50000 // and at most: an interrupt's work may come in between
	debugLed   = 2     // times that the steps must lead into the kernel, and out of it
)

// TestDebugger has a debugger step a guest through its system calls. It must stop behind
// each instruction, SYSCALL and SYSRET among them, and the guest must not notice.
func TestDebugger(t *testing.T) {
	for _, mode := range exitModes {
		t.Run(mode.name, func(t *testing.T) {
			ctx := testContext(t)
			g := start(t, ctx, guest(direct.Config{Script: fmt.Sprintf("t-getppid %d | tail -n 1", debugCalls)}))
			vm, err := g.Arm(mode.exits)
			if err != nil {
				t.Fatal(err)
			}
			defer vm.Close()
			if err := g.Resume(ctx); err != nil {
				t.Fatal(err)
			}
			st, err := vm.Wait(ctx)
			if err != nil {
				t.Fatal(err)
			}
			eventually(t, "the guest is busy", func() error {
				if st, err = vm.Status(); err == nil && st.Enters < debugFrom {
					err = fmt.Errorf("%d calls", st.Enters)
				}
				return err
			})

			d := attachDebugger(t, ctx, g)
			steps, made, returned := d.steps(t, st.Lstar)
			t.Logf("%d steps, %d into the kernel and %d out of it", steps, made, returned)
			if made < debugLed || returned < debugLed {
				t.Errorf("%d steps led into the kernel %d times and out of it %d times", steps, made, returned)
			}
			d.send(t, "D")

			res, err := g.Wait(ctx)
			if err != nil {
				t.Fatal(err)
			}
			if want := fmt.Sprintf("rounds=%d\n", debugCalls); res.Output != want || res.Status != 0 {
				t.Errorf("the guest said %q, status %d, want %q", res.Output, res.Status, want)
			}
			if st, err = vm.Status(); err != nil || st.Enters < debugCalls {
				t.Errorf("%d calls trapped, want %d at least: %v", st.Enters, debugCalls, err)
			}
		})
	}
}

// debugger speaks gdb's remote protocol.
type debugger struct {
	conn net.Conn
	in   *bufio.Reader
}

// attachDebugger connects to a guest, which stops it.
func attachDebugger(t *testing.T, ctx context.Context, g *direct.Guest) *debugger {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "gdb")
	command := fmt.Sprintf(`{"execute":"human-monitor-command","arguments":{"command-line":"gdbserver unix:%s,server=on,wait=off"}}`, socket)
	if _, err := g.Monitor().RunContext(ctx, []byte(command)); err != nil {
		t.Fatal(err)
	}
	conn, err := new(net.Dialer).DialContext(ctx, "unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if deadline, ok := ctx.Deadline(); ok {
		conn.SetDeadline(deadline)
	}
	d := &debugger{conn, bufio.NewReader(conn)}
	if reply := d.ask(t, "?"); !strings.HasPrefix(reply, "T") {
		t.Fatalf("the guest has not stopped for the debugger: %q", reply)
	}
	return d
}

// send sends a packet.
func (d *debugger) send(t *testing.T, packet string) {
	t.Helper()
	var sum byte
	for _, c := range []byte(packet) {
		sum += c
	}
	if _, err := fmt.Fprintf(d.conn, "$%s#%02x", packet, sum); err != nil {
		t.Fatal(err)
	}
}

// ask sends a packet and returns the one that answers it.
func (d *debugger) ask(t *testing.T, packet string) string {
	t.Helper()
	d.send(t, packet)
	return d.answer(t)
}

// answer returns the next packet that comes.
func (d *debugger) answer(t *testing.T) string {
	t.Helper()
	// Acknowledgements come before it.
	if _, err := d.in.ReadString('$'); err != nil {
		t.Fatalf("wait for an answer: %v", err)
	}
	reply, err := d.in.ReadString('#')
	if err != nil {
		t.Fatalf("wait for an answer: %v", err)
	}
	if _, err := d.in.Discard(2); err != nil { // the sum
		t.Fatal(err)
	}
	if _, err := d.conn.Write([]byte("+")); err != nil {
		t.Fatal(err)
	}
	return strings.TrimSuffix(reply, "#")
}

// rip returns the address of the instruction that comes next.
func (d *debugger) rip(t *testing.T) uint64 {
	t.Helper()
	const register, size = 16, 8 // its place in the answer
	reply := d.ask(t, "g")
	// That the guest has stopped is told once more if it was on its way.
	for strings.HasPrefix(reply, "T") {
		reply = d.answer(t)
	}
	regs, err := hex.DecodeString(reply[:min(len(reply), 2*size*(register+1))])
	if err != nil || len(regs) < size*(register+1) {
		t.Fatalf("read the registers: %q: %v", reply, err)
	}
	return binary.LittleEndian.Uint64(regs[register*size:])
}

// steps steps through the guest and returns how many steps that were and how often they
// led from a program into its kernel, which must be to the first instruction of the
// kernel's entry, and back, which must be to behind where it came from.
func (d *debugger) steps(t *testing.T, lstar uint64) (steps, made, returned int) {
	t.Helper()
	const insn = 2 // SYSCALL's length
	user := func(ip uint64) bool { return ip < 1<<47 }
	at := d.rip(t)
	var called uint64
	for ; steps < debugMost && (steps < debugSteps || made < debugLed || returned < debugLed); steps++ {
		if reply := d.ask(t, "s"); !strings.HasPrefix(reply, "T05") {
			t.Fatalf("a step from %#x ends with %q", at, reply)
		}
		next := d.rip(t)
		switch {
		case user(at) && !user(next):
			if next != lstar {
				t.Fatalf("a step from %#x leads to %#x, not to the kernel's entry at %#x", at, next, lstar)
			}
			made++
			called = at
		case !user(at) && user(next):
			if called != 0 && next != called+insn {
				t.Fatalf("a call at %#x returns to %#x", called, next)
			}
			returned++
		}
		at = next
	}
	return steps, made, returned
}

// SPDX-License-Identifier: Apache-2.0

package qmp_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	goqemu "github.com/digitalocean/go-qemu/qmp"
	"libvirt.org/go/libvirt"

	"frail/qmp"
	"frail/qmp/qmptest"
)

// limit bounds what a test waits for.
const limit = 30 * time.Second

func TestSocketReplyAbove64KiB(t *testing.T) {
	q := qmptest.StartProcess(t)
	mon := dial(t, q.Socket)
	if v := mon.Version(); v.QEMU.Major < 7 {
		t.Errorf("QEMU version %s", v.String())
	}
	reply, err := mon.Run([]byte(`{"execute":"query-qmp-schema"}`))
	if err != nil {
		t.Fatal(err)
	}
	var schema struct{ Return []json.RawMessage }
	if err := json.Unmarshal(reply, &schema); err != nil {
		t.Fatal(err)
	}
	if len(reply) <= 64<<10 || len(schema.Return) == 0 {
		t.Errorf("reply of %d bytes with %d entries", len(reply), len(schema.Return))
	}
}

func TestSocketErrors(t *testing.T) {
	q := qmptest.StartProcess(t)
	mon := dial(t, q.Socket)
	_, err := mon.Run([]byte(`{"execute":"no-such-command"}`))
	var qerr *qmp.Error
	if !errors.As(err, &qerr) || qerr.Class != "CommandNotFound" {
		t.Errorf("unknown command: %v", err)
	}
	for _, command := range []string{"", "{", "[]", "null", "7"} {
		if _, err := mon.Run([]byte(command)); err == nil {
			t.Errorf("command %q: no error", command)
		}
	}
	// None of it disturbs the next command.
	if _, err := mon.Run([]byte(`{"execute":"query-status","id":"mine"}`)); err != nil {
		t.Error(err)
	}
	if err := mon.Disconnect(); err != nil {
		t.Error(err)
	}
	if _, err := mon.Run([]byte(`{"execute":"query-status"}`)); !errors.Is(err, qmp.ErrDisconnected) {
		t.Errorf("run after Disconnect: %v", err)
	}
	if _, err := mon.Events(t.Context()); !errors.Is(err, qmp.ErrDisconnected) {
		t.Errorf("events after Disconnect: %v", err)
	}
	if err := mon.Connect(); !errors.Is(err, qmp.ErrDisconnected) {
		t.Errorf("connect after Disconnect: %v", err)
	}
}

// Every caller gets the reply to its own command.
func TestSocketConcurrentCommands(t *testing.T) {
	q := qmptest.StartProcess(t, "-m", "64M")
	mon := dial(t, q.Socket)
	var callers sync.WaitGroup
	for i := range 50 {
		callers.Go(func() {
			addr := fmt.Sprintf("%#x", i*0x1000+0x10)
			command := fmt.Sprintf(`{"execute":"human-monitor-command","arguments":{"command-line":"gpa2hva %s"}}`, addr)
			reply, err := mon.Run([]byte(command))
			if err != nil {
				t.Error(err)
			} else if !bytes.Contains(reply, []byte("address for "+addr+" ")) {
				t.Errorf("asked for %s, got %s", addr, reply)
			}
		})
	}
	callers.Wait()
}

func TestSocketEvents(t *testing.T) {
	q := qmptest.StartProcess(t)
	mon := dial(t, q.Socket)
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	var channels []<-chan goqemu.Event
	for range 2 {
		events, err := mon.Events(ctx)
		if err != nil {
			t.Fatal(err)
		}
		channels = append(channels, events)
	}
	for _, command := range []string{"cont", "stop"} {
		if _, err := mon.Run([]byte(`{"execute":"` + command + `"}`)); err != nil {
			t.Fatal(err)
		}
	}
	for _, events := range channels {
		for _, want := range []string{"RESUME", "STOP"} {
			if e := <-events; e.Event != want || e.Timestamp.Seconds == 0 {
				t.Errorf("event %+v, want %s", e, want)
			}
		}
	}
	cancel()
	for _, events := range channels {
		for range events {
		}
	}
}

// QEMU serves one client at a time: a second one gets no greeting.
func TestDialHonoursContext(t *testing.T) {
	q := qmptest.StartProcess(t)
	dial(t, q.Socket)
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(50*time.Millisecond, cancel)
	if _, err := qmp.Dial(ctx, q.Socket); !errors.Is(err, context.Canceled) {
		t.Errorf("dial of a busy socket: %v", err)
	}
	if _, err := qmp.Dial(t.Context(), filepath.Join(t.TempDir(), "none")); err == nil {
		t.Error("dial of no socket: no error")
	}
}

// serve answers the first client on a socket with greeting, then talks to it.
func serve(t *testing.T, greeting string, talk func(conn net.Conn, line func() string)) string {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "s")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(limit))
		if _, err := io.WriteString(conn, greeting); err != nil || talk == nil {
			return
		}
		dec := json.NewDecoder(conn)
		talk(conn, func() string {
			var command struct{ ID string }
			_ = dec.Decode(&command)
			return command.ID
		})
	}()
	t.Cleanup(func() {
		listener.Close()
		<-done
	})
	return socket
}

const helloQMP = `{"QMP":{"version":{"qemu":{"major":9,"minor":1,"micro":2}},"capabilities":[]}}` + "\n"

func TestHostileServer(t *testing.T) {
	for name, greeting := range map[string]string{
		"not QMP":              "SSH-2.0-OpenSSH_9.2\r\n",
		"other JSON":           "{}\n",
		"cut short":            `{"QMP":`,
		"nothing":              "",
		"a line without end":   strings.Repeat("x", 17<<20),
		"nested without bound": strings.Repeat("[", 1<<20) + "\n",
	} {
		t.Run("greeting is "+name, func(t *testing.T) {
			if _, err := qmp.Dial(t.Context(), serve(t, greeting, nil)); err == nil {
				t.Error("no error")
			}
		})
	}
	t.Run("reply without end", func(t *testing.T) {
		mon := dial(t, serve(t, helloQMP, func(conn net.Conn, id func() string) {
			fmt.Fprintf(conn, `{"return":{},"id":%q}`+"\n", id())
			id()
			chunk := bytes.Repeat([]byte("x"), 1<<20)
			for {
				if _, err := conn.Write(chunk); err != nil {
					return
				}
			}
		}))
		if _, err := mon.Run([]byte(`{"execute":"x"}`)); !errors.Is(err, qmp.ErrDisconnected) {
			t.Errorf("error %v, want ErrDisconnected", err)
		}
	})
	t.Run("late reply to an abandoned command", func(t *testing.T) {
		mon := dial(t, serve(t, helloQMP, func(conn net.Conn, id func() string) {
			fmt.Fprintf(conn, `{"return":{},"id":%q}`+"\n", id())
			first, second := id(), id()
			fmt.Fprintf(conn, `{"return":"late","id":%q}`+"\n", first)
			fmt.Fprintf(conn, `{"return":"stray","id":"frail-999"}`+"\n")
			fmt.Fprintf(conn, `{"return":"wanted","id":%q}`+"\n", second)
			id() // until the client disconnects
		}))
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(50*time.Millisecond, cancel)
		if _, err := mon.RunContext(ctx, []byte(`{"execute":"slow"}`)); !errors.Is(err, context.Canceled) {
			t.Errorf("abandoned command: %v", err)
		}
		reply, err := mon.Run([]byte(`{"execute":"fast"}`))
		if err != nil || !bytes.Contains(reply, []byte(`"wanted"`)) {
			t.Errorf("reply %s, %v", reply, err)
		}
	})
	t.Run("more events than anybody reads", func(t *testing.T) {
		mon := dial(t, serve(t, helloQMP, func(conn net.Conn, id func() string) {
			fmt.Fprintf(conn, `{"return":{},"id":%q}`+"\n", id())
			next := id()
			for i := range 1000 {
				fmt.Fprintf(conn, `{"event":"E","data":{"i":%d}}`+"\n", i)
			}
			fmt.Fprintf(conn, `{"return":{},"id":%q}`+"\n", next)
			id()
		}))
		events, err := mon.Events(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		// The reply comes through although nobody reads the events.
		if _, err := mon.Run([]byte(`{"execute":"x"}`)); err != nil {
			t.Fatal(err)
		}
		next := 0.0
		for e := range events {
			if e.Data["i"] != next {
				t.Fatalf("event %v, want %v: a gap without an end", e.Data["i"], next)
			}
			next++
		}
		if next == 0 || next >= 1000 {
			t.Errorf("%v events before the channel was closed", next)
		}
	})
}

func TestLibvirtMonitor(t *testing.T) {
	if err := libvirt.EventRegisterDefaultImpl(); err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	var loop sync.WaitGroup
	loop.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				if err := libvirt.EventRunDefaultImpl(); err != nil {
					t.Error(err)
					return
				}
			}
		}
	})
	// The loop looks at stop each time something happens.
	timer, err := libvirt.EventAddTimeout(100, func(int) {})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		close(stop)
		loop.Wait()
		_ = libvirt.EventRemoveTimeout(timer)
	})

	g := qmptest.Start(t, qmptest.Config{Paused: true, MemoryMiB: 128})
	mon := qmp.NewLibvirt(g.Dom)
	if err := mon.Connect(); err != nil {
		t.Fatal(err)
	}
	reply, err := mon.Run([]byte(`{"execute":"query-qmp-schema"}`))
	if err != nil {
		t.Fatal(err)
	}
	if len(reply) <= 64<<10 {
		t.Errorf("reply of %d bytes", len(reply))
	}
	_, err = mon.Run([]byte(`{"execute":"no-such-command"}`))
	var qerr *qmp.Error
	if !errors.As(err, &qerr) || qerr.Class != "CommandNotFound" {
		t.Errorf("unknown command: %v", err)
	}
	done, cancelled := context.WithCancel(t.Context())
	cancelled()
	if _, err := mon.RunContext(done, []byte(`{"execute":"query-status"}`)); !errors.Is(err, context.Canceled) {
		t.Errorf("run with an ended context: %v", err)
	}

	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	events, err := mon.Events(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := g.Dom.Resume(); err != nil {
		t.Fatal(err)
	}
	if e := <-events; e.Event != "RESUME" || e.Timestamp.Seconds == 0 {
		t.Errorf("event %+v, want RESUME", e)
	}
	cancel()
	for range events {
	}
	if err := mon.Disconnect(); err != nil {
		t.Error(err)
	}
}

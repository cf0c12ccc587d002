// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"frail/hooks/libvirttest"
)

// lockedBuffer is a buffer that a daemon logs to while a test reads it.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// told are the messages to a service manager.
type told struct {
	t *testing.T
	l *net.UnixConn
}

// next returns the next message that begins with what.
func (m *told) next(what string) string {
	m.t.Helper()
	var buf [4096]byte
	for {
		if err := m.l.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
			m.t.Fatal(err)
		}
		n, err := m.l.Read(buf[:])
		if err != nil {
			m.t.Fatalf("the service manager is not told %s: %v", what, err)
		}
		if msg := string(buf[:n]); strings.HasPrefix(msg, what) {
			return msg
		}
	}
}

// The daemon says that it is ready, that it lives, and how it is; it reads its configuration
// again when it is asked to, and goes on with the one before if there is a mistake in it.
func TestServiceManager(t *testing.T) {
	libvirtd := libvirttest.Start(t)
	dir := t.TempDir()
	file := filepath.Join(dir, "frail.toml")
	write := func(more string) {
		t.Helper()
		text := fmt.Sprintf("[libvirt]\nuri = %q\nstatus_dir = %q\n[api]\nsocket = %q\n[hook]\nsocket = %q\n[sequence]\nstate_dir = %q\n%s",
			libvirtd.URI, libvirtd.StatusDir, filepath.Join(dir, "s"), filepath.Join(dir, "h"), filepath.Join(dir, "state"), more)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("")
	path := filepath.Join(dir, "notify")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	t.Setenv("NOTIFY_SOCKET", path)
	t.Setenv("WATCHDOG_USEC", "500000")
	t.Setenv("WATCHDOG_PID", fmt.Sprint(os.Getpid()))

	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var log lockedBuffer
	ended := make(chan error, 1)
	go func() { ended <- run(ctx, []string{"-config", file}, &log, &log) }()
	manager := &told{t, l}
	if msg := manager.next("READY=1"); !strings.Contains(msg, "\nSTATUS=0 of 0 running domains traced") {
		t.Errorf("told %q", msg)
	}
	manager.next("WATCHDOG=1")
	manager.next("WATCHDOG=1")

	reload := func(more string) {
		t.Helper()
		write(more)
		if err := unix.Kill(os.Getpid(), unix.SIGHUP); err != nil {
			t.Fatal(err)
		}
		if msg := manager.next("RELOADING=1"); !strings.Contains(msg, "\nMONOTONIC_USEC=") {
			t.Errorf("told %q", msg)
		}
		manager.next("READY=1")
	}
	logged := func(text string) {
		t.Helper()
		if !strings.Contains(log.String(), text) {
			t.Errorf("no %q in the log:\n%s", text, log.String())
		}
	}
	reload("[log]\nlevel = \"debug\"\n[trace]\nring_bytes = 131072\nmax_sessions = 5\n")
	logged(`changed="trace.ring_bytes log.level"`)
	logged("keys=trace.max_sessions")
	reload("[log]\nlevel = \"loud\"\n")
	logged("configuration is not changed")
	logged("frail.toml:11")
	// What held before still does, so that this is one change.
	reload("[log]\nlevel = \"info\"\n[trace]\nring_bytes = 131072\n")
	logged(`changed=log.level`)

	stop()
	manager.next("STOPPING=1")
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

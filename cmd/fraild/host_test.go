// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"frail/bpf"
	"frail/cmd/internal/config"
	"frail/hooks"
	"frail/hooks/libvirttest"
	"frail/kmod/device"
	"frail/qmp/layout"
	"frail/qmp/qmptest"
)

func TestMain(m *testing.M) { libvirttest.Main(m) }

// The way from a domain to what the module is told, on a real guest without KVM.
func TestHostResolve(t *testing.T) {
	g := qmptest.Start(t, qmptest.Config{Paused: true})
	uri, err := g.Conn.GetURI()
	if err != nil {
		t.Fatal(err)
	}
	uuid, err := g.Dom.GetUUIDString()
	if err != nil {
		t.Fatal(err)
	}
	cfg := config.Default()
	cfg.Libvirt.URI = uri
	h := &host{log: slog.New(slog.DiscardHandler)}
	h.cfg.Store(cfg)
	st := hooks.State{UUID: uuid, Name: "guest", PID: g.PID, Active: true, Launched: true, Config: hooks.Config{Trace: true}}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()

	if _, err := h.resolve(ctx, st, bpf.Status{}); !errors.Is(err, layout.ErrNotReady) {
		t.Errorf("a guest that has not started: %v, want %v", err, layout.ErrNotReady)
	}
	if _, err := h.arm(st); !errors.Is(err, device.ErrNotLoaded) && !errors.Is(err, device.ErrNoKVMVM) {
		t.Errorf("arm a guest without KVM: %v", err)
	}

	g.Resume(t)
	l, err := h.resolve(ctx, st, bpf.Status{})
	if err != nil {
		t.Fatal(err)
	}
	if want := strings.TrimSpace(g.Run(t, "uname -r")); l.Release != want {
		t.Errorf("the kernel is %q, its guest says %q", l.Release, want)
	}
	if again, err := h.resolve(ctx, st, bpf.Status{}); err != nil || !again.Rebased {
		t.Errorf("the kernel is not known the second time: %+v, %v", again, err)
	}
	m := device.Layout(l)
	if entry, ok := l.Symbol("entry_SYSCALL_64"); !ok || m.Lstar != entry.Addr {
		t.Errorf("the module gets lstar %#x, the kernel has %+v", m.Lstar, entry)
	}
	if m.TaskTgid != m.TaskPid+4 || m.TaskComm == 0 || m.CurrentTask == 0 || m.DirectMap>>63 != 1 || m.DirectMapSize < 512<<20 {
		t.Errorf("the module gets %+v", m)
	}
	if _, err := h.resolve(ctx, st, bpf.Status{Lstar: m.Lstar + 0x200000}); !errors.Is(err, layout.ErrRejected) {
		t.Errorf("a kernel elsewhere: %v, want %v", err, layout.ErrRejected)
	}
}

// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"libvirt.org/go/libvirt"

	"frail/bpf"
	"frail/cmd/internal/config"
	"frail/cmd/internal/guest"
	"frail/hooks"
	"frail/kmod/device"
	"frail/qmp"
	"frail/qmp/layout"
)

// host is the way to the kernel module, libvirt and QEMU. It keeps nothing open: a module
// loaded later and a restarted libvirt are found at the next use. Safe for concurrent use.
type host struct {
	// cfg is replaced when the configuration is read again.
	cfg atomic.Pointer[config.Config]
	log *slog.Logger

	sequences *sequences
	records   *records
	layouts   layout.Resolver
	traces    traces
}

// arm puts the VM of a running domain under trace.
func (h *host) arm(st hooks.State) (*device.VM, error) {
	vm, err := device.ArmProcess(st.PID, guest.Exits(st.Config.Exits))
	if errors.Is(err, device.ErrNoKVMVM) {
		err = fmt.Errorf("%w: only domains of type kvm can be traced", err)
	}
	return vm, err
}

// Keepalive of the connections to libvirt: one that does not answer fails after about 15
// seconds instead of never.
const (
	keepaliveSeconds = 5
	keepaliveCount   = 3
)

// resolve finds the layout of the kernel that runs in a domain's guest; vm is its status at
// that kernel's first system call. The error is layout.ErrNotReady's when the kernel has not
// come far enough.
func (h *host) resolve(ctx context.Context, st hooks.State, vm bpf.Status) (*layout.Layout, error) {
	var l *layout.Layout
	err := h.withMemory(ctx, st, func(mem *qmp.Memory) (err error) {
		l, err = h.layouts.Resolve(ctx, mem, mem.Ranges(), layout.Hint{LSTAR: vm.Lstar, CR3: vm.Cr3})
		return err
	})
	return l, err
}

// tasksTimeout bounds how long a guest's threads may take to list.
const tasksTimeout = 10 * time.Second

// tasks lists the threads of a domain's guest, whose kernel has layout l.
func (h *host) tasks(ctx context.Context, st hooks.State, l *layout.Layout) ([]layout.Task, error) {
	ctx, cancel := context.WithTimeout(ctx, tasksTimeout)
	defer cancel()
	var tasks []layout.Task
	err := h.withMemory(ctx, st, func(mem *qmp.Memory) (err error) {
		tasks, err = l.Tasks(ctx, mem)
		return err
	})
	return tasks, err
}

// withMemory calls f with the memory of a domain's guest.
func (h *host) withMemory(ctx context.Context, st hooks.State, f func(*qmp.Memory) error) error {
	// Keepalive needs it, and it must be there before the connection.
	if err := hooks.StartEventLoop(); err != nil {
		return err
	}
	conn, err := libvirt.NewConnect(h.cfg.Load().Libvirt.URI)
	if err != nil {
		return fmt.Errorf("connect to libvirt: %w", err)
	}
	defer conn.Close()
	if err := conn.SetKeepAlive(keepaliveSeconds, keepaliveCount); err != nil {
		return fmt.Errorf("connect to libvirt: %w", err)
	}
	dom, err := conn.LookupDomainByUUIDString(st.UUID)
	if err != nil {
		return fmt.Errorf("look up domain: %w", err)
	}
	defer dom.Free()

	mem, err := qmp.OpenMemory(ctx, qmp.MemoryOptions{
		Monitor: qmp.NewLibvirt(dom),
		PID:     st.PID,
		Domain:  qmp.LibvirtMemory{Domain: dom},
	})
	if err != nil {
		return err
	}
	defer mem.Close()
	if slow := mem.SlowReason(); slow != nil {
		h.log.Debug("guest memory is read slowly", "domain", st.Name, "path", mem.Path(), "err", slow)
	}
	return f(mem)
}

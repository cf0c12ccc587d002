// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"golang.org/x/sys/unix"
	"libvirt.org/go/libvirt"

	"frail/bpf"
	"frail/hooks"
	"frail/kmod/device"
	"frail/qmp"
	"frail/qmp/layout"
)

// host is the way to the kernel module, libvirt and QEMU. It keeps nothing open: a module
// loaded later and a restarted libvirt are found at the next use. Safe for concurrent use.
type host struct {
	cfg *config
	log *slog.Logger
}

// arm puts the VM of a running domain under trace.
func (h *host) arm(st hooks.State) (*device.VM, error) {
	dev, err := device.Open()
	if err != nil {
		return nil, err
	}
	defer dev.Close()
	fd, err := device.KVMVM(st.PID)
	if errors.Is(err, device.ErrNoKVMVM) {
		return nil, fmt.Errorf("%w: only domains of type kvm can be traced", err)
	}
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	return dev.Arm(fd)
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
	// Keepalive needs it, and it must be there before the connection.
	if err := hooks.StartEventLoop(); err != nil {
		return nil, err
	}
	conn, err := libvirt.NewConnect(h.cfg.Libvirt.URI)
	if err != nil {
		return nil, fmt.Errorf("connect to libvirt: %w", err)
	}
	defer conn.Close()
	if err := conn.SetKeepAlive(keepaliveSeconds, keepaliveCount); err != nil {
		return nil, fmt.Errorf("connect to libvirt: %w", err)
	}
	dom, err := conn.LookupDomainByUUIDString(st.UUID)
	if err != nil {
		return nil, fmt.Errorf("look up domain: %w", err)
	}
	defer dom.Free()

	mem, err := qmp.OpenMemory(ctx, qmp.MemoryOptions{
		Monitor: qmp.NewLibvirt(dom),
		PID:     st.PID,
		Domain:  dom,
	})
	if err != nil {
		return nil, err
	}
	defer mem.Close()
	if slow := mem.SlowReason(); slow != nil {
		h.log.Debug("guest memory is read slowly", "domain", st.Name, "path", mem.Path(), "err", slow)
	}
	return layout.Resolve(ctx, mem, mem.Ranges(), layout.Hint{LSTAR: vm.Lstar, CR3: vm.Cr3})
}

// moduleLayout is what the module needs of l.
func moduleLayout(l *layout.Layout) bpf.Layout {
	return bpf.Layout{
		TaskPid:       l.TaskPID,
		TaskTgid:      l.TaskTGID,
		TaskComm:      l.TaskComm,
		Lstar:         l.LSTAR,
		CurrentTask:   l.CurrentTask,
		DirectMap:     l.DirectMap,
		DirectMapSize: l.DirectMapSize,
	}
}

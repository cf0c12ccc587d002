// SPDX-License-Identifier: Apache-2.0

//go:build cgo

package qmp

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	goqemu "github.com/digitalocean/go-qemu/qmp"
	"libvirt.org/go/libvirt"
)

var (
	_ goqemu.Monitor = (*LibvirtMonitor)(nil)
	_ Peeker         = LibvirtMemory{}
)

// LibvirtMemory reads the memory of a domain, which stays the caller's.
type LibvirtMemory struct {
	Domain *libvirt.Domain
}

// Peek implements [Peeker].
func (m LibvirtMemory) Peek(addr uint64, size int) ([]byte, error) {
	return m.Domain.MemoryPeek(addr, uint64(size), libvirt.MEMORY_PHYSICAL)
}

// LibvirtMonitor passes QMP through libvirt to a domain's QEMU. libvirt notes
// the first such command in its log as the taint "custom-monitor".
//
// It is safe for concurrent use; libvirt runs one command at a time.
type LibvirtMonitor struct {
	dom *libvirt.Domain
}

// NewLibvirt returns a monitor for dom, which stays the caller's and must not
// be freed while the monitor is used.
func NewLibvirt(dom *libvirt.Domain) *LibvirtMonitor {
	return &LibvirtMonitor{dom: dom}
}

// Connect reports whether the domain runs. There is no connection of the
// monitor's own to make, and calling it is optional.
func (m *LibvirtMonitor) Connect() error {
	active, err := m.dom.IsActive()
	if err != nil {
		return fmt.Errorf("ask whether the domain runs: %w", err)
	}
	if !active {
		return fmt.Errorf("connect monitor: %w: the domain is shut off", ErrDisconnected)
	}
	return nil
}

// Disconnect does nothing: the connection is libvirt's.
func (m *LibvirtMonitor) Disconnect() error { return nil }

// Run is RunContext with a time limit of 30 seconds.
func (m *LibvirtMonitor) Run(command []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(context.Background(), runTimeout)
	defer cancel()
	return m.RunContext(ctx, command)
}

// RunContext runs a QMP command and returns the whole reply. A command that
// QEMU refused is an [*Error]. When ctx ends first, libvirt may still complete
// the command.
func (m *LibvirtMonitor) RunContext(ctx context.Context, command []byte) ([]byte, error) {
	// The call may outlive this one: it needs a reference of its own.
	if err := m.dom.Ref(); err != nil {
		return nil, fmt.Errorf("reference the domain: %w", err)
	}
	reply, err := abandonable(ctx, func() (string, error) {
		defer m.dom.Free()
		return m.dom.QemuMonitorCommand(string(command), libvirt.DOMAIN_QEMU_MONITOR_COMMAND_DEFAULT)
	})
	if err != nil {
		return nil, err
	}
	if len(reply) > maxReply {
		return nil, fmt.Errorf("read reply: longer than %d bytes", maxReply)
	}
	if err := replyError([]byte(reply)); err != nil {
		return nil, err
	}
	return []byte(reply), nil
}

// Events returns the domain's QMP events until ctx ends or the reader falls
// more than 256 events behind; then the channel is closed. libvirt's event loop
// must run.
func (m *LibvirtMonitor) Events(ctx context.Context) (<-chan goqemu.Event, error) {
	conn, err := m.dom.DomainGetConnect()
	if err != nil {
		return nil, fmt.Errorf("find the domain's connection: %w", err)
	}
	queue := newEventQueue()
	id, err := conn.DomainQemuMonitorEventRegister(m.dom, ".*", func(_ *libvirt.Connect, _ *libvirt.Domain, e *libvirt.DomainQemuMonitorEvent) {
		event := goqemu.Event{Event: e.Event}
		event.Timestamp.Seconds = e.Seconds
		event.Timestamp.Microseconds = int64(e.Micros)
		// Details are QEMU's JSON object; an event without is an empty string.
		if e.Details != "" && json.Unmarshal([]byte(e.Details), &event.Data) != nil {
			return
		}
		queue.push(event)
	}, libvirt.CONNECT_DOMAIN_QEMU_MONITOR_EVENT_REGISTER_REGEX)
	if err != nil {
		_, closeErr := conn.Close()
		return nil, fmt.Errorf("register for monitor events: %w", errors.Join(err, closeErr))
	}
	go func() {
		select {
		case <-ctx.Done():
		case <-queue.done:
		}
		// Nothing is left to be told when the connection is gone already.
		_ = conn.DomainQemuEventDeregister(id)
		_, _ = conn.Close()
		queue.close()
	}()
	return queue.events, nil
}

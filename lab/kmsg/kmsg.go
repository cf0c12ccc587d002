// SPDX-License-Identifier: Apache-2.0

// Package kmsg reads what a host's kernel warns of while a test runs.
package kmsg

import (
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"syscall"
)

// harmless are warnings of an emulated host that runs plain guests without
// Frail: its clock is slow, its guests try MSRs that it does not have, and newer kernels
// have something to say of bpftrace's way to the tracepoints and of device-mapper.
var harmless = regexp.MustCompile(strings.Join([]string{
	`^hrtimer: interrupt took `,
	`^kvm: SMP vm created on host with unstable TSC`,
	`^(kvm: )?kvm \[\d+\]: vcpu\d+, guest rIP: 0x[0-9a-f]+ Unhandled (WR|RD)MSR`,
	`^clocksource: `,
	`^Clocksource `,
	`^NOTICE: Automounting of tracing to debugfs is deprecated`,
	`^device-mapper: core: CONFIG_IMA_DISABLE_HTABLE is disabled`,
}, "|"))

// Log is the kernel's log from when it was opened on.
type Log struct{ fd int }

// Open opens the log at its end. The caller closes it.
func Open() (*Log, error) {
	fd, err := syscall.Open("/dev/kmsg", syscall.O_RDONLY|syscall.O_NONBLOCK|syscall.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open the kernel's log: %w", err)
	}
	if _, err := syscall.Seek(fd, 0, 2); err != nil {
		syscall.Close(fd)
		return nil, fmt.Errorf("seek the kernel's log: %w", err)
	}
	return &Log{fd}, nil
}

// Close closes the log.
func (l *Log) Close() error { return syscall.Close(l.fd) }

// Warnings returns the kernel's messages of level warning and worse that came
// since the last call, but for those that every emulated host has. That some
// could not be read is one.
func (l *Log) Warnings() []string {
	var bad []string
	buf := make([]byte, 8192)
	for {
		n, err := syscall.Read(l.fd, buf)
		switch {
		case errors.Is(err, syscall.EAGAIN):
			return bad
		case errors.Is(err, syscall.EPIPE):
			bad = append(bad, "(messages were overwritten before they could be read)")
			continue
		case err != nil:
			return append(bad, fmt.Sprintf("(read the kernel's log: %v)", err))
		}
		head, text, _ := strings.Cut(string(buf[:n]), ";")
		prio, _, _ := strings.Cut(head, ",")
		level, err := strconv.Atoi(prio)
		const levels, warning = 8, 4
		// Facility 0 is the kernel; systemd writes here too.
		if err != nil || level/levels != 0 || level%levels > warning {
			continue
		}
		text, _, _ = strings.Cut(text, "\n")
		if !harmless.MatchString(text) {
			bad = append(bad, text)
		}
	}
}

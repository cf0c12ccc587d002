// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"log/slog"
	"net"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"frail/api"
)

// notify tells the service manager state, as sd_notify(3) does. Without a service
// manager it does nothing.
func notify(state string) error {
	path := os.Getenv("NOTIFY_SOCKET")
	if path == "" {
		return nil
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return fmt.Errorf("notify service manager: %w", err)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte(state)); err != nil {
		return fmt.Errorf("notify service manager: %w", err)
	}
	return nil
}

// serviceManager tells systemd how the daemon is. Its methods are called by one goroutine.
type serviceManager struct {
	log     *slog.Logger
	manager *manager
	status  string // told last
}

func (s *serviceManager) tell(state string) {
	if status := s.statusText(); status != s.status {
		state, s.status = state+"\nSTATUS="+status, status
	}
	if err := notify(state); err != nil {
		s.log.Warn("service manager not told", "err", err)
	}
}

// reloading says that the configuration is read again, until "READY=1".
func (s *serviceManager) reloading() {
	var now unix.Timespec
	// Cannot fail: the clock exists and the pointer is good.
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &now)
	s.tell("RELOADING=1\nMONOTONIC_USEC=" + strconv.FormatInt(now.Nano()/1000, 10))
}

// watchdog returns when to call alive: twice in the time after which systemd takes the daemon
// for dead, or every minute, for the status, where there is no such time. The caller calls
// stop.
func (s *serviceManager) watchdog() (when <-chan time.Time, stop func()) {
	interval := time.Minute
	usec, err := strconv.ParseInt(os.Getenv("WATCHDOG_USEC"), 10, 64)
	pid := os.Getenv("WATCHDOG_PID")
	if err == nil && usec > 1 && (pid == "" || pid == strconv.Itoa(os.Getpid())) {
		interval = time.Duration(usec) * time.Microsecond / 2
	}
	t := time.NewTicker(interval)
	return t.C, t.Stop
}

// alive says that the daemon does its work: what it needs for that is not held for ever by
// anybody, and every domain can be looked at. One that hangs there says nothing.
func (s *serviceManager) alive() {
	s.tell("WATCHDOG=1")
}

// statusText is what "systemctl status" shows.
func (s *serviceManager) statusText() string {
	if err := s.manager.connected(); err != nil {
		return "libvirt cannot be reached"
	}
	running, asking, traced := 0, 0, 0
	for _, d := range s.manager.list() {
		snap, _ := d.snapshot()
		if !snap.Active {
			continue
		}
		running++
		if wanted(snap.State) {
			asking++
		}
		if snap.vm != nil {
			traced++
		}
	}
	text := fmt.Sprintf("%d of %d running domains traced", traced, running)
	if asking != traced {
		text += fmt.Sprintf(", %d ask for it", asking)
	}
	return text + ", version " + api.Version()
}

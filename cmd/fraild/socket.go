// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// socketMode lets the socket's owner and group connect, and nobody else.
const socketMode = 0o660

// listen opens the unix socket at path for root and, if there is one of that name, group.
// The lock beside the socket keeps a second daemon away and makes it safe to remove a
// socket that a killed one left behind. The caller closes both.
func listen(path, group string) (net.Listener, *os.File, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, nil, fmt.Errorf("make the socket's directory: %w", err)
	}
	lock, err := os.OpenFile(path+".lock", os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, nil, fmt.Errorf("open lock: %w", err)
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		lock.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, nil, fmt.Errorf("another fraild serves %s", path)
		}
		return nil, nil, fmt.Errorf("lock %s: %w", lock.Name(), err)
	}
	l, err := listenLocked(path, group)
	if err != nil {
		lock.Close()
		return nil, nil, err
	}
	return l, lock, nil
}

func listenLocked(path, group string) (net.Listener, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("remove stale socket: %w", err)
	}
	// The socket must never be open to others, not even until the chmod below.
	old := syscall.Umask(0o177)
	l, err := net.Listen("unix", path)
	syscall.Umask(old)
	if err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	if err := setOwner(path, group); err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

func setOwner(path, group string) error {
	if group != "" {
		g, err := user.LookupGroup(group)
		if _, unknown := errors.AsType[user.UnknownGroupError](err); unknown {
			g, err = nil, nil
		}
		if err != nil {
			return fmt.Errorf("look up group of the socket: %w", err)
		}
		if g != nil {
			gid, err := strconv.Atoi(g.Gid)
			if err != nil {
				return fmt.Errorf("look up group of the socket: %w", err)
			}
			if err := os.Chown(path, -1, gid); err != nil {
				return fmt.Errorf("give the socket to its group: %w", err)
			}
		}
	}
	if err := os.Chmod(path, socketMode); err != nil {
		return fmt.Errorf("set the socket's mode: %w", err)
	}
	return nil
}

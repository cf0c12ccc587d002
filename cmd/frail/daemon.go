// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"frail/api"
	"frail/cmd/internal/exit"
)

// dialTimeout bounds the first contact with fraild. Its socket is local: only a daemon
// that hangs takes longer.
const dialTimeout = 5 * time.Second

// daemon is a client of fraild.
type daemon struct {
	api.FrailClient
	conn *grpc.ClientConn
}

// Close ends the connection.
func (d *daemon) Close() error { return d.conn.Close() }

// dialDaemon connects to fraild's socket. Its errors say what to do.
func dialDaemon(socket string) (*daemon, error) {
	path, err := filepath.Abs(socket)
	if err != nil {
		return nil, fmt.Errorf("find fraild's socket: %w", err)
	}
	// gRPC connects on first use and hides why that failed.
	probe, err := net.DialTimeout("unix", path, dialTimeout)
	switch {
	case errors.Is(err, os.ErrPermission):
		return nil, exit.With(exit.Unreachable, fmt.Errorf("no permission to use %s: run as root or join the group that owns it", path))
	case errors.Is(err, os.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return nil, exit.With(exit.Unreachable, fmt.Errorf("fraild does not run (nothing listens on %s): systemctl start fraild", path))
	case err != nil:
		return nil, exit.With(exit.Unreachable, fmt.Errorf("connect to fraild: %w", err))
	}
	probe.Close()

	conn, err := grpc.NewClient("unix://"+path, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, fmt.Errorf("connect to fraild: %w", err)
	}
	return &daemon{FrailClient: api.NewFrailClient(conn), conn: conn}, nil
}

// checkURI returns an error when the user asked for a libvirt connection that is not the
// one fraild watches.
func (o *options) checkURI(watched string) error {
	asked := o.uri
	if asked == "" {
		asked = os.Getenv("LIBVIRT_DEFAULT_URI")
	}
	if asked != "" && asked != watched {
		return fmt.Errorf("fraild watches %s, not %s: set libvirt.uri in its configuration", watched, asked)
	}
	return nil
}

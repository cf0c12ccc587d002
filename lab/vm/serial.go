// SPDX-License-Identifier: Apache-2.0

package vm

import (
	"bufio"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"
)

const (
	// maxLine and maxOutput bound what a guest may answer.
	maxLine   = 1 << 10
	maxOutput = 4 << 20

	// dialPoll is how often a socket that is not there yet is tried.
	dialPoll = 200 * time.Millisecond

	// helloInterval is how often a guest is asked whether it is up.
	helloInterval = time.Second

	// nudgeInterval is longer than all but a few commands take.
	nudgeInterval = 20 * time.Second

	ready = "frail guest ready"
)

// Result is what a command in the guest left.
type Result struct {
	Output string // stdout and stderr together
	Status int    // exit status, 128 + the signal if one ended it
}

// serial is a connection to a guest's init.
type serial struct {
	conn net.Conn
	r    *bufio.Reader
	next int
}

// WaitReady waits until the guest's init takes commands.
func (v *VM) WaitReady(ctx context.Context) error {
	if err := v.dial(ctx); err != nil {
		return fmt.Errorf("wait for guest %s: %w", v.Name, err)
	}
	stop := v.deadline(ctx)
	defer stop()

	// A greeting before this connection is lost, and so is what is sent before
	// the guest has opened its port: ask until it answers.
	answered := make(chan struct{})
	asked := make(chan struct{})
	go func(conn net.Conn) {
		defer close(asked)
		for {
			if _, err := fmt.Fprint(conn, "\nhello\n"); err != nil {
				return // the reader meets the same error
			}
			select {
			case <-answered:
				return
			case <-time.After(helloInterval):
			}
		}
	}(v.serial.conn)
	defer func() { <-asked }()
	defer close(answered)
	for {
		line, err := v.serial.line()
		if err != nil {
			return fmt.Errorf("wait for guest %s: %w", v.Name, orContext(ctx, err))
		}
		if line == ready {
			return nil
		}
	}
}

// Run runs a command line with the guest's shell and returns its result. An
// error means that there is none. Not safe for concurrent use.
func (v *VM) Run(ctx context.Context, command string) (Result, error) {
	res, err := v.run(ctx, command)
	if err != nil {
		return Result{}, fmt.Errorf("run %q in guest %s: %w", command, v.Name, orContext(ctx, err))
	}
	return res, nil
}

func (v *VM) run(ctx context.Context, command string) (Result, error) {
	if strings.ContainsAny(command, "\n\r") {
		return Result{}, errors.New("the command has more than one line")
	}
	if err := v.dial(ctx); err != nil {
		return Result{}, err
	}
	stop := v.deadline(ctx)
	defer stop()
	defer v.nudge(ctx)()
	s := v.serial
	id := fmt.Sprintf("%d-%d", time.Now().UnixNano(), s.next)
	s.next++
	if _, err := fmt.Fprintf(s.conn, "run %s %s\n", id, command); err != nil {
		return Result{}, err
	}
	for {
		line, err := s.line()
		if err != nil {
			return Result{}, err
		}
		if line == "begin "+id {
			break
		}
	}
	var encoded strings.Builder
	for {
		line, err := s.line()
		if err != nil {
			return Result{}, err
		}
		if status, ok := strings.CutPrefix(line, "end "+id+" "); ok {
			n, err := strconv.Atoi(status)
			if err != nil {
				return Result{}, fmt.Errorf("parse the exit status: %w", err)
			}
			output, err := base64.StdEncoding.DecodeString(encoded.String())
			if err != nil {
				return Result{}, fmt.Errorf("decode the output: %w", err)
			}
			return Result{Output: string(output), Status: n}, nil
		}
		if encoded.Len() > maxOutput {
			return Result{}, fmt.Errorf("the output exceeds %d bytes", maxOutput)
		}
		encoded.WriteString(line)
	}
}

// nudge asks the emulator for its state now and then until the function it returns is
// called. Now and then a guest with two vCPUs halts for good on an emulated host, with
// input pending, until its monitor is asked anything.
func (v *VM) nudge(ctx context.Context) func() {
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			select {
			case <-ctx.Done():
				return
			case <-time.After(nudgeInterval):
				// It only fails where the command will.
				_, _ = v.HMP(ctx, "info status")
			}
		}
	}()
	return func() {
		cancel()
		<-ended
	}
}

// Close ends the connection to the guest's init; the guest goes on.
func (v *VM) Close() {
	if v.serial != nil {
		v.serial.conn.Close()
		v.serial = nil
	}
}

func (v *VM) dial(ctx context.Context) error {
	if v.serial != nil {
		return nil
	}
	var d net.Dialer
	for {
		conn, err := d.DialContext(ctx, "unix", socketPath(v.Name))
		if err == nil {
			v.serial = &serial{conn: conn, r: bufio.NewReaderSize(conn, maxLine)}
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w (last: %w)", context.Cause(ctx), err)
		case <-time.After(dialPoll):
		}
	}
}

// deadline makes reads and writes end when ctx does.
func (v *VM) deadline(ctx context.Context) func() bool {
	conn := v.serial.conn
	conn.SetDeadline(time.Time{})
	return context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
}

func orContext(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("%w: %w", context.Cause(ctx), err)
	}
	return err
}

// line returns the next line without its end.
func (s *serial) line() (string, error) {
	line, err := s.r.ReadSlice('\n')
	if errors.Is(err, bufio.ErrBufferFull) {
		return "", fmt.Errorf("a line exceeds %d bytes", maxLine)
	}
	if err != nil {
		return "", err
	}
	return strings.TrimRight(string(line), "\r\n"), nil
}

// SPDX-License-Identifier: Apache-2.0

package qmp

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	goqemu "github.com/digitalocean/go-qemu/qmp"
)

const (
	// maxReply bounds one QMP message. libvirt bounds its own at 4 MiB;
	// `info mtree -f` of a large guest is some hundred KiB.
	maxReply = 16 << 20

	// runTimeout bounds a command that was run without a context.
	runTimeout = 30 * time.Second

	// eventBuffer is how many events a subscriber may fall behind before its
	// channel is closed.
	eventBuffer = 256
)

// ErrDisconnected is returned by a monitor that is not connected, or whose
// connection ended.
var ErrDisconnected = errors.New("monitor is disconnected")

// Error is a command's failure as QEMU reported it.
type Error struct {
	// Class is QEMU's error class, such as "CommandNotFound".
	Class string
	// Desc is QEMU's message for humans.
	Desc string
}

func (e *Error) Error() string {
	return fmt.Sprintf("qemu: %s (%s)", e.Desc, e.Class)
}

// contextRunner is a monitor whose commands can be abandoned. Both monitors of
// this package are.
type contextRunner interface {
	RunContext(ctx context.Context, command []byte) ([]byte, error)
}

// runContext runs a raw command and returns when the reply is there or ctx is
// done, whichever comes first.
func runContext(ctx context.Context, mon goqemu.Monitor, command []byte) ([]byte, error) {
	if r, ok := mon.(contextRunner); ok {
		return r.RunContext(ctx, command)
	}
	return abandonable(ctx, func() ([]byte, error) { return mon.Run(command) })
}

// abandonable calls fn, which cannot be cancelled, on a goroutine of its own
// and gives up waiting for it once ctx is done.
func abandonable[T any](ctx context.Context, fn func() (T, error)) (T, error) {
	type result struct {
		value T
		err   error
	}
	if err := ctx.Err(); err != nil {
		var zero T
		return zero, err
	}
	done := make(chan result, 1)
	go func() {
		value, err := fn()
		done <- result{value, err}
	}()
	select {
	case r := <-done:
		return r.value, r.err
	case <-ctx.Done():
		var zero T
		return zero, ctx.Err()
	}
}

// execute runs a command and decodes its return value into out, which may be
// nil.
func execute(ctx context.Context, mon goqemu.Monitor, name string, args, out any) error {
	command, err := json.Marshal(goqemu.Command{Execute: name, Args: args})
	if err != nil {
		return fmt.Errorf("encode %s: %w", name, err)
	}
	reply, err := runContext(ctx, mon, command)
	if err != nil {
		return fmt.Errorf("run %s: %w", name, err)
	}
	if out == nil {
		return nil
	}
	var r struct {
		Return json.RawMessage `json:"return"`
	}
	if err := json.Unmarshal(reply, &r); err != nil {
		return fmt.Errorf("decode the reply to %s: %w", name, err)
	}
	if err := json.Unmarshal(r.Return, out); err != nil {
		return fmt.Errorf("decode the reply to %s: %w", name, err)
	}
	return nil
}

// humanCommand runs a command of QEMU's human monitor and returns its output.
func humanCommand(ctx context.Context, mon goqemu.Monitor, line string) (string, error) {
	args := struct {
		Line string `json:"command-line"`
	}{line}
	var out string
	if err := execute(ctx, mon, "human-monitor-command", args, &out); err != nil {
		return "", fmt.Errorf("monitor command %q: %w", line, err)
	}
	return out, nil
}

// replyError returns the error in a QMP reply, or nil when it has none.
func replyError(reply []byte) error {
	var r struct {
		Return json.RawMessage `json:"return"`
		Error  *Error          `json:"error"`
	}
	if err := json.Unmarshal(reply, &r); err != nil {
		return fmt.Errorf("decode reply: %w", err)
	}
	if r.Error != nil {
		return r.Error
	}
	if len(bytes.TrimSpace(r.Return)) == 0 {
		return errors.New("decode reply: it has neither a return value nor an error")
	}
	return nil
}

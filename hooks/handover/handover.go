// SPDX-License-Identifier: Apache-2.0

// Package handover carries what libvirt tells its qemu hook to the daemon: one
// datagram for each hook call, over a unix socket only root can write to. The
// hook never waits for an answer, because libvirt waits for the hook.
package handover

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// maxMessage bounds a datagram. It stays below the kernel's default socket
	// buffer (net.core.wmem_default, 212992), which a datagram must fit into.
	maxMessage = 192 << 10

	// maxName bounds each of a message's strings but the XML, in bytes. The
	// longest is a domain's name, which libvirt makes a file name of.
	maxName = 4096
)

// Message is one call of the hook, as libvirt made it.
type Message struct {
	Guest string `json:"guest"` // the domain's name
	Op    string `json:"op"`    // such as "prepare", "started", "stopped"
	SubOp string `json:"subop"` // such as "begin", "end"
	Extra string `json:"extra"` // "-" unless libvirt has more to say

	// XML is the domain's XML. It is empty when it was too large to hand over.
	XML string `json:"xml,omitempty"`
}

// check reports whether m is within the bounds of a message.
func (m *Message) check() error {
	if m.Guest == "" || m.Op == "" {
		return errors.New("no guest or no operation")
	}
	for _, s := range []string{m.Guest, m.Op, m.SubOp, m.Extra} {
		if len(s) > maxName {
			return fmt.Errorf("a string of %d bytes is longer than the limit of %d", len(s), maxName)
		}
	}
	return nil
}

// Send hands m over to the listener at path and returns by deadline. An error
// that wraps fs.ErrNotExist or unix.ECONNREFUSED means that nobody listens. The
// XML is left out if the message would be too large with it.
func Send(path string, m Message, deadline time.Time) error {
	if err := m.check(); err != nil {
		return fmt.Errorf("hand over: %w", err)
	}
	data, err := encode(m)
	if err == nil && len(data) > maxMessage {
		m.XML = ""
		data, err = encode(m)
	}
	if err != nil {
		return fmt.Errorf("hand over: %w", err)
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return fmt.Errorf("hand over: %w", err)
	}
	defer conn.Close()
	if err := conn.SetWriteDeadline(deadline); err != nil {
		return fmt.Errorf("hand over: %w", err)
	}
	if _, err := conn.Write(data); err != nil {
		return fmt.Errorf("hand over: %w", err)
	}
	return nil
}

func encode(m Message) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	// Keep the XML's size: no six-byte escapes for < and >.
	enc.SetEscapeHTML(false)
	err := enc.Encode(m)
	return b.Bytes(), err
}

// Listener receives messages. It is safe for concurrent use.
type Listener struct {
	conn  *net.UnixConn
	path  string
	close func() error
}

// Listen opens a socket at path, with mode 0600, in place of one that nobody
// listens on any more. It fails when somebody does, or when path is something
// else.
func Listen(path string) (*Listener, error) {
	if err := removeStale(path); err != nil {
		return nil, fmt.Errorf("listen for the hook: %w", err)
	}
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return nil, fmt.Errorf("listen for the hook: %w", err)
	}
	l := &Listener{conn: conn, path: path}
	l.close = sync.OnceValue(l.doClose)
	if err := os.Chmod(path, 0o600); err != nil {
		conn.Close()
		return nil, fmt.Errorf("listen for the hook: %w", err)
	}
	return l, nil
}

// removeStale removes the socket an earlier listener left at path.
func removeStale(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("%s exists and is no socket", path)
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"})
	if err == nil {
		conn.Close()
		return fmt.Errorf("%s is in use by another process", path)
	}
	if !errors.Is(err, unix.ECONNREFUSED) {
		return err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// Receive returns the next message. A datagram that is no message gives an
// error that wraps [ErrInvalid], and the next call goes on; after Close the
// error wraps net.ErrClosed.
func (l *Listener) Receive() (Message, error) {
	// One byte more than allowed tells a message that was cut.
	buf := make([]byte, maxMessage+1)
	n, err := l.conn.Read(buf)
	if err != nil {
		return Message{}, fmt.Errorf("receive from the hook: %w", err)
	}
	m, err := decode(buf[:n])
	if err != nil {
		return Message{}, fmt.Errorf("receive from the hook: %w: %w", ErrInvalid, err)
	}
	return m, nil
}

// ErrInvalid is wrapped by the error of a datagram that is no message.
var ErrInvalid = errors.New("not a message of the hook")

func decode(data []byte) (Message, error) {
	if len(data) > maxMessage {
		return Message{}, fmt.Errorf("more than %d bytes", maxMessage)
	}
	var m Message
	if err := json.Unmarshal(data, &m); err != nil {
		return Message{}, err
	}
	return m, m.check()
}

// Close ends Receive and removes the socket. It is safe to call more than once.
func (l *Listener) Close() error { return l.close() }

func (l *Listener) doClose() error {
	err := l.conn.Close()
	// net does not remove datagram sockets. One that is alive now is another
	// daemon's and stays.
	_ = removeStale(l.path)
	return err
}

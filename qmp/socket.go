// SPDX-License-Identifier: Apache-2.0

package qmp

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"sync"
	"syscall"
	"time"

	goqemu "github.com/digitalocean/go-qemu/qmp"
	"golang.org/x/sys/unix"
)

var _ goqemu.Monitor = (*SocketMonitor)(nil)

// SocketMonitor speaks QMP over a unix socket. QEMU serves one client per
// socket at a time: a second one waits until the first disconnects.
//
// It is safe for concurrent use. Commands run in the order in which they were
// sent; replies are told apart by id, so an abandoned command's late reply
// never reaches another.
type SocketMonitor struct {
	conn    net.Conn
	version goqemu.Version

	writeMu sync.Mutex

	mu      sync.Mutex
	nextID  uint64
	pending map[string]chan []byte
	queues  map[*eventQueue]struct{}
	err     error // why the connection ended; nil while it lives

	ended chan struct{} // closed once the reader is gone
}

// Dial connects to the QMP unix socket at the path socket and negotiates
// capabilities. The connection outlives ctx, which bounds only Dial.
func Dial(ctx context.Context, socket string) (*SocketMonitor, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, fmt.Errorf("connect to QMP socket: %w", err)
	}
	m := &SocketMonitor{
		conn:    conn,
		pending: make(map[string]chan []byte),
		queues:  make(map[*eventQueue]struct{}),
		ended:   make(chan struct{}),
	}
	// QEMU greets late when another client holds the socket.
	stop := context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Unix(1, 0)) })
	r := bufio.NewReader(conn)
	err = m.greet(r)
	if !stop() {
		err = ctx.Err()
	}
	if err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("read QMP greeting of %s: %w", socket, err)
	}
	go m.read(r)

	if err := execute(ctx, m, "qmp_capabilities", nil, nil); err != nil {
		_ = m.Disconnect()
		return nil, fmt.Errorf("negotiate QMP capabilities: %w", err)
	}
	return m, nil
}

func (m *SocketMonitor) greet(r *bufio.Reader) error {
	line, err := readLine(r)
	if err != nil {
		return err
	}
	var greeting struct {
		QMP *struct {
			Version goqemu.Version `json:"version"`
		} `json:"QMP"`
	}
	if err := json.Unmarshal(line, &greeting); err != nil {
		return err
	}
	if greeting.QMP == nil {
		return errors.New("not a QMP server")
	}
	m.version = greeting.QMP.Version
	return nil
}

// Version returns the QEMU version that the greeting stated.
func (m *SocketMonitor) Version() goqemu.Version { return m.version }

// PeerPID returns the id of the process that listens on the socket: QEMU's, unless it forked
// since (-daemonize).
func (m *SocketMonitor) PeerPID() (int, error) {
	conn, ok := m.conn.(syscall.Conn)
	if !ok {
		return 0, errors.New("find QEMU's pid: not a unix socket")
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0, fmt.Errorf("find QEMU's pid: %w", err)
	}
	var cred *unix.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return 0, fmt.Errorf("find QEMU's pid: %w", err)
	}
	if credErr != nil {
		return 0, fmt.Errorf("find QEMU's pid: %w", credErr)
	}
	return int(cred.Pid), nil
}

// Connect reports whether the connection, which Dial made, still lives.
func (m *SocketMonitor) Connect() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.err
}

// Disconnect closes the connection and ends every command and event channel.
// Calling it again does nothing.
func (m *SocketMonitor) Disconnect() error {
	m.fail(ErrDisconnected)
	err := m.conn.Close()
	<-m.ended
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// Run is RunContext with a time limit of 30 seconds.
func (m *SocketMonitor) Run(command []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(context.Background(), runTimeout)
	defer cancel()
	return m.RunContext(ctx, command)
}

// RunContext runs a QMP command, a JSON object, and returns the whole reply.
// An id in the command is replaced. A command that QEMU refused is an [*Error].
// When ctx ends first, QEMU may still complete the command.
func (m *SocketMonitor) RunContext(ctx context.Context, command []byte) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	var object map[string]json.RawMessage
	if err := json.Unmarshal(command, &object); err != nil {
		return nil, fmt.Errorf("parse command: %w", err)
	}
	if object == nil {
		return nil, errors.New("parse command: not a JSON object")
	}

	reply := make(chan []byte, 1)
	m.mu.Lock()
	if m.err != nil {
		m.mu.Unlock()
		return nil, m.err
	}
	m.nextID++
	id := "frail-" + strconv.FormatUint(m.nextID, 10)
	m.pending[id] = reply
	m.mu.Unlock()
	defer func() {
		m.mu.Lock()
		delete(m.pending, id)
		m.mu.Unlock()
	}()

	object["id"] = json.RawMessage(strconv.Quote(id))
	line, err := json.Marshal(object)
	if err != nil {
		return nil, fmt.Errorf("encode command: %w", err)
	}
	if err := m.write(ctx, append(line, '\n')); err != nil {
		return nil, fmt.Errorf("send command: %w", err)
	}
	select {
	case b := <-reply:
		if err := replyError(b); err != nil {
			return nil, err
		}
		return b, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-m.ended:
		return nil, m.Connect()
	}
}

func (m *SocketMonitor) write(ctx context.Context, line []byte) error {
	m.writeMu.Lock()
	defer m.writeMu.Unlock()
	deadline := time.Now().Add(runTimeout)
	if d, ok := ctx.Deadline(); ok && d.Before(deadline) {
		deadline = d
	}
	if err := m.conn.SetWriteDeadline(deadline); err != nil {
		return err
	}
	n, err := m.conn.Write(line)
	if err != nil && n > 0 {
		// Half a command is on the wire: nothing can follow it.
		m.fail(fmt.Errorf("%w: %w", ErrDisconnected, err))
		_ = m.conn.Close()
	}
	return err
}

// Events returns QEMU's events until ctx ends, the connection ends, or the
// reader falls more than 256 events behind; then the channel is closed. It may
// be called more than once: every caller gets every event.
func (m *SocketMonitor) Events(ctx context.Context) (<-chan goqemu.Event, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.err != nil {
		return nil, m.err
	}
	queue := newEventQueue()
	m.queues[queue] = struct{}{}
	go func() {
		select {
		case <-ctx.Done():
		case <-queue.done:
		}
		m.mu.Lock()
		delete(m.queues, queue)
		m.mu.Unlock()
		queue.close()
	}()
	return queue.events, nil
}

// fail records why the connection ended; the first reason stays.
func (m *SocketMonitor) fail(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.err == nil {
		m.err = err
	}
}

// read tells replies and events apart until the connection ends.
func (m *SocketMonitor) read(r *bufio.Reader) {
	defer close(m.ended)
	for {
		line, err := readLine(r)
		if err == nil {
			err = m.dispatch(line)
		}
		if err != nil {
			m.fail(fmt.Errorf("%w: %w", ErrDisconnected, err))
			break
		}
	}
	_ = m.conn.Close()

	m.mu.Lock()
	defer m.mu.Unlock()
	for q := range m.queues {
		q.close()
	}
}

func (m *SocketMonitor) dispatch(line []byte) error {
	var head struct {
		Event string `json:"event"`
		ID    string `json:"id"`
	}
	if err := json.Unmarshal(line, &head); err != nil {
		return fmt.Errorf("parse QMP message: %w", err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if head.Event == "" {
		if reply, ok := m.pending[head.ID]; ok {
			delete(m.pending, head.ID)
			reply <- line
		}
		return nil
	}
	if len(m.queues) == 0 {
		return nil
	}
	var event goqemu.Event
	if err := json.Unmarshal(line, &event); err != nil {
		return fmt.Errorf("parse QMP event: %w", err)
	}
	for q := range m.queues {
		q.push(event)
	}
	return nil
}

// readLine reads one line of at most maxReply bytes. The result is the
// caller's.
func readLine(r *bufio.Reader) ([]byte, error) {
	var line []byte
	for {
		part, err := r.ReadSlice('\n')
		line = append(line, part...)
		if len(line) > maxReply {
			return nil, fmt.Errorf("read QMP message: longer than %d bytes", maxReply)
		}
		switch {
		case err == nil:
			if line = bytes.TrimSpace(line); len(line) > 0 {
				return line, nil
			}
		case errors.Is(err, bufio.ErrBufferFull):
		case errors.Is(err, io.EOF) && len(line) > 0:
			return nil, io.ErrUnexpectedEOF
		default:
			return nil, err
		}
	}
}

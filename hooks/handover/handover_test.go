// SPDX-License-Identifier: Apache-2.0

package handover

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func soon() time.Time { return time.Now().Add(10 * time.Second) }

func listen(t *testing.T) (*Listener, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "hook.sock")
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l, path
}

func TestMessagesArriveAsSent(t *testing.T) {
	l, path := listen(t)
	for _, m := range []Message{
		{Guest: "vm", Op: "started", SubOp: "begin", Extra: "-", XML: "<domain a='1' b=\"2\">&amp;é\n</domain>"},
		{Guest: "a b\"'<>&", Op: "release", SubOp: "end", Extra: "destroyed"},
		{Guest: strings.Repeat("n", maxName), Op: "start", XML: strings.Repeat("<a/>\n", 100<<10/5)},
	} {
		if err := Send(path, m, soon()); err != nil {
			t.Fatal(err)
		}
		got, err := l.Receive()
		if err != nil || got != m {
			t.Errorf("got %.100v, %v, want %.100v", got, err, m)
		}
	}
}

func TestALargeDocumentIsLeftOut(t *testing.T) {
	l, path := listen(t)
	if err := Send(path, Message{Guest: "vm", Op: "started", XML: strings.Repeat("<", maxMessage)}, soon()); err != nil {
		t.Fatal(err)
	}
	got, err := l.Receive()
	if want := (Message{Guest: "vm", Op: "started"}); err != nil || got != want {
		t.Errorf("got %.100v, %v, want %v", got, err, want)
	}
}

func TestSendRefusesWhatIsNoMessage(t *testing.T) {
	_, path := listen(t)
	for _, m := range []Message{{}, {Guest: "vm"}, {Op: "started"}, {Guest: strings.Repeat("n", maxName+1), Op: "started"}} {
		if err := Send(path, m, soon()); err == nil {
			t.Errorf("sent %.100v", m)
		}
	}
}

func TestSendDoesNotWaitForAFullListener(t *testing.T) {
	_, path := listen(t)
	start := time.Now()
	deadline := start.Add(200 * time.Millisecond)
	var err error
	sent := 0
	// Nobody receives: the queue fills up, and the send after that gives up.
	for ; err == nil && sent < 1<<20; sent++ {
		err = Send(path, Message{Guest: "vm", Op: "started"}, deadline)
	}
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("after %d messages: %v, want the deadline", sent, err)
	}
	if waited := time.Since(start); waited > 5*time.Second {
		t.Errorf("the sender waited %s", waited)
	}
}

func TestReceiveSkipsWhatIsNoMessage(t *testing.T) {
	l, path := listen(t)
	conn, err := net.Dial("unixgram", path)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for _, data := range []string{"", "{", "[]", `{"guest":"vm"}`, `{"guest":1,"op":"x"}`, strings.Repeat(" ", maxMessage+1)} {
		if _, err := conn.Write([]byte(data)); err != nil {
			t.Fatal(err)
		}
		if m, err := l.Receive(); !errors.Is(err, ErrInvalid) {
			t.Errorf("%.20q was received as %.100v, %v, want ErrInvalid", data, m, err)
		}
	}
	if err := Send(path, Message{Guest: "vm", Op: "started"}, soon()); err != nil {
		t.Fatal(err)
	}
	if m, err := l.Receive(); err != nil || m.Guest != "vm" {
		t.Errorf("got %v, %v after invalid datagrams, want the message", m, err)
	}
}

func TestSocketIsPrivate(t *testing.T) {
	_, path := listen(t)
	info, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode() != fs.ModeSocket|0o600 {
		t.Errorf("the socket's mode is %v, want Srw-------", info.Mode())
	}
}

func TestListenReplacesOnlyADeadSocket(t *testing.T) {
	l, path := listen(t)
	if _, err := Listen(path); err == nil || !strings.Contains(err.Error(), "in use") {
		t.Errorf("a second listener: %v, want in use", err)
	}

	// As a killed daemon leaves it: the file stays, nobody listens.
	l.conn.Close()
	if err := Send(path, Message{Guest: "vm", Op: "started"}, soon()); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("send to a dead socket: %v, want connection refused", err)
	}
	next, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	// The first one's Close must not remove the second one's socket.
	l.Close()
	if err := Send(path, Message{Guest: "vm", Op: "started"}, soon()); err != nil {
		t.Error(err)
	}
	if err := errors.Join(next.Close(), next.Close()); err != nil {
		t.Error(err)
	}
	if err := Send(path, Message{Guest: "vm", Op: "started"}, soon()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("send after close: %v, want no such file", err)
	}
	if _, err := next.Receive(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("receive after close: %v, want net.ErrClosed", err)
	}

	if err := os.WriteFile(path, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(path); err == nil {
		t.Error("a file that is no socket was replaced")
	}
}

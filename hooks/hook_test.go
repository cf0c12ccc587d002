// SPDX-License-Identifier: Apache-2.0

package hooks

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"frail/hooks/handover"
)

func TestServeHookPassesOnlyNamesOfDomains(t *testing.T) {
	path := filepath.Join(t.TempDir(), "hook.sock")
	l, err := ListenHook(path)
	must(t, err)
	nudged := make(chan string, 16)
	done := make(chan error, 1)
	go func() { done <- serveHook(l, testLog(t), func(name string) { nudged <- name }) }()

	conn, err := net.Dial("unixgram", path)
	must(t, err)
	defer conn.Close()
	_, err = conn.Write([]byte("no message"))
	must(t, err)
	for _, name := range []string{"a", "../a", "a\nb", "a\x00", strings.Repeat("n", unix.NAME_MAX), "..", "z"} {
		must(t, handover.Send(path, handover.Message{Guest: name, Op: "started"}, time.Now().Add(patience)))
	}
	for _, want := range []string{"a", "..", "z"} {
		select {
		case got := <-nudged:
			if got != want {
				t.Errorf("nudged for %q, want %q", got, want)
			}
		case <-time.After(patience):
			t.Fatalf("not nudged for %q", want)
		}
	}
	must(t, l.Close())
	if err := <-done; !errors.Is(err, net.ErrClosed) {
		t.Errorf("serveHook ended with %v, want net.ErrClosed", err)
	}
}

func TestWatchLooksWhereTheHookPoints(t *testing.T) {
	dir := t.TempDir()
	emulator := startProcess(t, uuidA)
	socket := filepath.Join(t.TempDir(), "hook.sock")
	l, err := ListenHook(socket)
	must(t, err)
	w := startWatch(t, Options{
		URI:       "qemu+unix:///system?socket=" + filepath.Join(dir, "no-libvirt"),
		StatusDir: dir,
		Hook:      l,
	})
	_, n := w.kind(Disconnected, 0)

	// A hard link under another name: inotify reports it as IN_CREATE, which
	// is not watched, so only the hook can point to it.
	must(t, os.WriteFile(filepath.Join(dir, "new"), []byte(statusXML("a", uuidA, emulator.Process.Pid, traceElement)), 0o600))
	must(t, os.Link(filepath.Join(dir, "new"), filepath.Join(dir, "a.xml")))
	must(t, handover.Send(socket, handover.Message{Guest: "a", Op: "started"}, time.Now().Add(patience)))
	w.state("pointed to", n, "a", isRunning)

	w.stop()
	if _, err := os.Lstat(socket); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the hook's socket after Watch: %v, want it removed", err)
	}
}

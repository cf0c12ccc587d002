// SPDX-License-Identifier: Apache-2.0

package hooks

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// statusXML returns a status file as libvirt writes it for a running domain.
func statusXML(name, uuid string, pid int, metadata string) string {
	return fmt.Sprintf(`<domstatus state='running' reason='booted' pid='%d'>
  <vcpus><vcpu id='0' pid='%d'/></vcpus>
  <domain type='qemu' id='1'><name>%s</name><uuid>%s</uuid><metadata>%s</metadata></domain>
</domstatus>
`, pid, pid+1, name, uuid, metadata)
}

// writeStatus writes a file as libvirt does, by renaming a new one.
func writeStatus(tb testing.TB, dir, file, contents string) {
	tb.Helper()
	path := filepath.Join(dir, file)
	must(tb, os.WriteFile(path+".new", []byte(contents), 0o600))
	must(tb, os.Rename(path+".new", path))
}

// startProcess starts a process with a domain's UUID on its command line, as an
// emulator has, which ends with the test.
func startProcess(tb testing.TB, uuid string) *exec.Cmd {
	tb.Helper()
	cmd := exec.Command("sh", "-c", "echo runs; read line", "sh", "-uuid", uuid)
	stdin, err := cmd.StdinPipe()
	must(tb, err)
	stdout, err := cmd.StdoutPipe()
	must(tb, err)
	must(tb, cmd.Start())
	tb.Cleanup(func() {
		stdin.Close()
		cmd.Wait()
	})
	// Start returns before the kernel knows the new command line.
	_, err = io.ReadFull(stdout, make([]byte, len("runs\n")))
	must(tb, err)
	return cmd
}

// watchDir watches dir without a libvirt.
func watchDir(tb testing.TB, dir string) *watcher {
	return startWatch(tb, Options{
		URI:       "qemu+unix:///system?socket=" + filepath.Join(tb.TempDir(), "no-libvirt"),
		StatusDir: dir,
	})
}

func TestStatusDirectoryComesAndGoes(t *testing.T) {
	top := t.TempDir()
	dir := filepath.Join(top, "run", "libvirt", "qemu")
	w := watchDir(t, dir)
	_, n := w.kind(Disconnected, 0)
	emulator := startProcess(t, uuidA)

	for range 2 {
		must(t, os.MkdirAll(dir, 0o755))
		writeStatus(t, dir, "a.xml", statusXML("a", uuidA, emulator.Process.Pid, traceElement))
		var s State
		s, n = w.state("running", n, "a", isRunning)
		if s.PID != emulator.Process.Pid || !s.Config.Trace || s.ID != 1 {
			t.Errorf("running: %+v, want PID %d and Trace", s, emulator.Process.Pid)
		}
		must(t, os.RemoveAll(filepath.Join(top, "run")))
		_, n = w.kind(DomainGone, n)
	}
	checkDiffed(t, w)
}

func TestStatusFileEditsAreFollowed(t *testing.T) {
	dir := t.TempDir()
	emulator := startProcess(t, uuidA)
	pid := emulator.Process.Pid
	writeStatus(t, dir, "a.xml", statusXML("a", uuidA, pid, ""))
	writeStatus(t, dir, "autostarted", "")
	must(t, os.Mkdir(filepath.Join(dir, "slirp.xml"), 0o700))

	w := watchDir(t, dir)
	s, n := w.state("running", 0, "a", isRunning)
	if s.Config.Trace {
		t.Errorf("running: %+v, want nothing asked for", s)
	}
	writeStatus(t, dir, "a.xml", statusXML("a", uuidA, pid, traceElement))
	_, n = w.state("enabled", n, "a", func(s State) bool { return s.Config.Trace })
	writeStatus(t, dir, "a.xml", statusXML("a", uuidA, pid, `<f:frail xmlns:f="urn:frail:domain:1.0">x</f:frail>`))
	s, n = w.state("bad", n, "a", func(s State) bool { return s.ConfigErr != nil })
	if s.Config.Trace || !s.Active {
		t.Errorf("bad metadata: %+v, want it untraced and running", s)
	}

	must(t, emulator.Process.Kill())
	emulator.Wait()
	_, n = w.state("exited", n, "a", isInactive)
	must(t, os.Remove(filepath.Join(dir, "a.xml")))
	w.kind(DomainGone, n)
	checkDiffed(t, w)
}

func TestStatusFileOfAnotherProcess(t *testing.T) {
	dir := t.TempDir()
	stranger := startProcess(t, uuidB)
	writeStatus(t, dir, "a.xml", statusXML("a", uuidA, stranger.Process.Pid, traceElement))
	writeStatus(t, dir, "self.xml", statusXML("self", uuidB, os.Getpid(), traceElement))
	w := watchDir(t, dir)
	for _, name := range []string{"a", "self"} {
		s, _ := w.state("stale", 0, name, func(State) bool { return true })
		if s.Active || s.PID != 0 || s.Launched {
			t.Errorf("%s: %+v, want nothing that runs", name, s)
		}
	}
}

func TestUnreadableStatusFilesFallBackOnThePIDFile(t *testing.T) {
	for _, test := range []struct {
		name string
		make func(t *testing.T, path string)
		want string
	}{
		{"no XML", func(t *testing.T, path string) { must(t, os.WriteFile(path, []byte("?"), 0o600)) }, "no root element"},
		{"another document", func(t *testing.T, path string) { must(t, os.WriteFile(path, []byte("<domain/>"), 0o600)) }, "not <domstatus>"},
		{"no domain", func(t *testing.T, path string) { must(t, os.WriteFile(path, []byte("<domstatus/>"), 0o600)) }, "no name and UUID"},
		{"a bad process id", func(t *testing.T, path string) {
			must(t, os.WriteFile(path, []byte("<domstatus pid='-1'/>"), 0o600))
		}, `"-1" is not a process id`},
		{"too large", func(t *testing.T, path string) {
			must(t, os.WriteFile(path, nil, 0o600))
			must(t, os.Truncate(path, maxXMLBytes+1))
		}, "larger than the limit"},
		{"a pipe", func(t *testing.T, path string) { must(t, unix.Mkfifo(path, 0o600)) }, "not a regular file"},
		{"a symlink", func(t *testing.T, path string) { must(t, os.Symlink("/dev/zero", path)) }, "too many levels of symbolic links"},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := t.TempDir()
			emulator := startProcess(t, uuidA)
			must(t, os.WriteFile(filepath.Join(dir, "a.pid"), fmt.Appendln(nil, emulator.Process.Pid), 0o600))
			test.make(t, filepath.Join(dir, "a.xml"))
			w := watchDir(t, dir)
			s, n := w.state("fallback", 0, "a", func(State) bool { return true })
			if s.UUID != uuidA || s.PID != emulator.Process.Pid || !s.Launched || s.Config.Trace {
				t.Errorf("got %+v, want PID %d and nothing asked for", s, emulator.Process.Pid)
			}
			if s.ConfigErr == nil || !strings.Contains(s.ConfigErr.Error(), test.want) {
				t.Errorf("ConfigErr is %v, want %q in it", s.ConfigErr, test.want)
			}
			writeStatus(t, dir, "a.xml", statusXML("a", uuidA, emulator.Process.Pid, traceElement))
			w.state("readable", n, "a", func(s State) bool { return s.Config.Trace && s.ConfigErr == nil })
		})
	}
}

func TestInotifyOverflowLosesNothing(t *testing.T) {
	limit, err := os.ReadFile("/proc/sys/fs/inotify/max_queued_events")
	must(t, err)
	var queue int
	_, err = fmt.Sscan(string(limit), &queue)
	must(t, err)

	dir := t.TempDir()
	emulator := startProcess(t, uuidA)
	held := make(chan struct{})
	release := make(chan struct{})
	var events []Event
	seen := make(chan struct{}, 1)
	m := newMachine(func(ev Event) {
		events = append(events, ev)
		if ev.State.Name == "late" {
			seen <- struct{}{}
		}
	})
	var holding bool
	source := newStatusSource(dir, testLog(t), func(update func(*machine)) bool {
		// Called with the source's lock held, so this needs none.
		if holding {
			holding = false
			close(held)
			<-release
		}
		update(m)
		return true
	})
	ready := make(chan struct{})
	done := make(chan error, 1)
	ctx, cancel := testContext()
	defer func() { cancel(); <-done }()
	go func() { done <- source.run(ctx, ready) }()
	<-ready

	// Stop the reader in the middle of an event and fill the queue behind it.
	source.mu.Lock()
	holding = true
	source.mu.Unlock()
	writeStatus(t, dir, "early.xml", statusXML("early", uuidB, 0, ""))
	<-held
	a, b := filepath.Join(dir, "x.xml"), filepath.Join(dir, "y.xml")
	must(t, os.WriteFile(a, nil, 0o600))
	for range queue/2 + 2 { // each rename is two events
		must(t, os.Rename(a, b))
		a, b = b, a
	}
	must(t, os.Remove(a))
	writeStatus(t, dir, "late.xml", statusXML("late", uuidA, emulator.Process.Pid, traceElement))
	close(release)
	<-seen
}

func TestParseInotifyRejectsShortBuffers(t *testing.T) {
	name := make([]byte, unix.SizeofInotifyEvent)
	name[12] = 1
	for _, buf := range [][]byte{make([]byte, unix.SizeofInotifyEvent-1), name} {
		if ev, err := parseInotify(buf); err == nil {
			t.Errorf("%d bytes were accepted as %+v", len(buf), ev)
		}
	}
}

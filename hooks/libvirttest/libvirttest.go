// SPDX-License-Identifier: Apache-2.0

// Package libvirttest runs a private libvirtd for tests: the real system
// daemon, with QEMU, in a mount namespace with directories of its own, so that
// it neither sees nor touches the machine's. It needs root, libvirtd and
// qemu-system-x86_64, but no KVM.
//
// Everything the daemon starts ends with the test, also when the test is
// killed, and at the latest after a time limit.
package libvirttest

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// supervisorEnv, set to a Daemon's directory, makes the test binary its
	// supervisor.
	supervisorEnv = "FRAIL_LIBVIRTTEST_DIR"

	// limit ends a daemon and all it started, whatever the test does.
	limit = 10 * time.Minute

	// startLimit is how long libvirtd may take to open its socket. It probes
	// every emulator installed at the first start.
	startLimit = 60 * time.Second

	// qemuConf keeps QEMU root's and everything libvirt would otherwise share
	// with the machine out of the way.
	qemuConf = `user = "root"
group = "root"
security_driver = "none"
namespaces = [ ]
cgroup_controllers = [ ]
stdio_handler = "file"
remember_owner = 0
`
)

// ownDirs are libvirt's directories, each replaced by one below Daemon's.
var ownDirs = map[string]string{
	"run":   "/run",
	"etc":   "/etc/libvirt",
	"lib":   "/var/lib/libvirt",
	"log":   "/var/log/libvirt",
	"cache": "/var/cache/libvirt",
}

// Main runs a test binary that uses this package: call it from TestMain, as
// func TestMain(m *testing.M) { libvirttest.Main(m) }.
func Main(m *testing.M) {
	if dir := os.Getenv(supervisorEnv); dir != "" {
		if err := supervise(dir, os.Stdin, os.Stdout); err != nil {
			fmt.Fprintf(os.Stderr, "libvirttest: %v\n", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// Daemon is a private libvirtd. It is safe for concurrent use.
type Daemon struct {
	// URI connects to the daemon from outside its namespace.
	URI string

	// Dir holds the daemon's directories: run (its /run), etc (its
	// /etc/libvirt), lib, log and cache (likewise in /var).
	Dir string

	// StatusDir is the QEMU driver's status directory.
	StatusDir string

	// HookDir is where the daemon, when it starts, looks for qemu hooks.
	HookDir string

	mu      sync.Mutex
	control io.WriteCloser
	replies *bufio.Reader
}

// New prepares a private libvirtd for tb without starting it, so that hooks can
// be put into HookDir. It is taken down when tb ends.
func New(tb testing.TB) *Daemon {
	tb.Helper()
	if os.Geteuid() != 0 {
		tb.Fatal("libvirttest needs root")
	}
	// A short path: unix sockets live below it.
	dir, err := os.MkdirTemp("", "frail-libvirt-")
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { os.RemoveAll(dir) }) // if the supervisor was never started
	for name := range ownDirs {
		if err := os.Mkdir(filepath.Join(dir, name), 0o755); err != nil {
			tb.Fatal(err)
		}
	}
	d := &Daemon{
		URI:       "qemu+unix:///system?socket=" + filepath.Join(dir, "run/libvirt/libvirt-sock"),
		Dir:       dir,
		StatusDir: filepath.Join(dir, "run/libvirt/qemu"),
		HookDir:   filepath.Join(dir, "etc/hooks/qemu.d"),
	}
	if err := os.MkdirAll(d.HookDir, 0o755); err != nil {
		tb.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "etc/qemu.conf"), []byte(qemuConf), 0o644); err != nil {
		tb.Fatal(err)
	}

	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), supervisorEnv+"="+dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS, Setpgid: true}
	cmd.Stderr = os.Stderr
	if d.control, err = cmd.StdinPipe(); err != nil {
		tb.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		tb.Fatal(err)
	}
	d.replies = bufio.NewReader(stdout)
	if err := cmd.Start(); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if tb.Failed() {
			if log, err := os.ReadFile(filepath.Join(dir, "log/libvirtd.log")); err == nil {
				tb.Logf("libvirtd's log:\n%s", log)
			}
		}
		// The supervisor takes everything down when its input ends.
		d.control.Close()
		if err := cmd.Wait(); err != nil {
			tb.Errorf("supervisor of libvirtd: %v", err)
		}
	})
	return d
}

// Start returns a private libvirtd that runs.
func Start(tb testing.TB) *Daemon {
	tb.Helper()
	d := New(tb)
	d.Start(tb)
	return d
}

// Start starts libvirtd, which must not run, and waits for its socket.
func (d *Daemon) Start(tb testing.TB) {
	tb.Helper()
	d.do(tb, "start")
}

// Stop ends libvirtd as a service manager does, and waits for its end. Domains
// go on running.
func (d *Daemon) Stop(tb testing.TB) {
	tb.Helper()
	d.do(tb, "stop")
}

// Kill ends libvirtd with SIGKILL. Domains go on running.
func (d *Daemon) Kill(tb testing.TB) {
	tb.Helper()
	d.do(tb, "kill")
}

// Freeze stops libvirtd with SIGSTOP, so that it holds its connections and
// answers nothing; Thaw lets it go on.
func (d *Daemon) Freeze(tb testing.TB) {
	tb.Helper()
	d.do(tb, "freeze")
}

// Thaw undoes Freeze.
func (d *Daemon) Thaw(tb testing.TB) {
	tb.Helper()
	d.do(tb, "thaw")
}

// do has the supervisor do one thing.
func (d *Daemon) do(tb testing.TB, command string) {
	tb.Helper()
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, err := fmt.Fprintln(d.control, command); err != nil {
		tb.Fatalf("%s libvirtd: %v", command, err)
	}
	reply, err := d.replies.ReadString('\n')
	if err != nil {
		tb.Fatalf("%s libvirtd: supervisor: %v", command, err)
	}
	if reply = strings.TrimSpace(reply); reply != "ok" {
		tb.Fatalf("%s libvirtd: %s", command, reply)
	}
}

// DomainXML returns a small domain that runs nothing but its firmware, without
// KVM. metadata is the contents of its metadata element.
func DomainXML(name, metadata string) string {
	return `<domain type='qemu'>
  <name>` + name + `</name>
  <metadata>` + metadata + `</metadata>
  <memory unit='MiB'>16</memory>
  <vcpu>1</vcpu>
  <os><type arch='x86_64' machine='q35'>hvm</type></os>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <controller type='usb' model='none'/>
    <memballoon model='none'/>
  </devices>
</domain>`
}

// supervisor runs libvirtd in its own mount namespace and is the reaper of
// everything that comes from it.
type supervisor struct {
	dir string

	mu   sync.Mutex
	exit map[int]chan struct{} // closed when the child was reaped
	pid  int                   // libvirtd, 0 when it does not run
}

// supervise does what commands says until its end, then takes everything down.
func supervise(dir string, commands io.Reader, replies io.Writer) error {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("become the reaper: %w", err)
	}
	for name, target := range ownDirs {
		if err := unix.Mount(filepath.Join(dir, name), target, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("mount over %s: %w", target, err)
		}
	}
	s := &supervisor{dir: dir, exit: make(map[int]chan struct{})}
	time.AfterFunc(limit, func() {
		s.end()
		fmt.Fprintf(os.Stderr, "libvirttest: time limit of %s reached\n", limit)
		os.Exit(1)
	})
	defer s.end()

	for in := bufio.NewScanner(commands); in.Scan(); {
		reply := "ok"
		if err := s.do(in.Text()); err != nil {
			reply = err.Error()
		}
		if _, err := fmt.Fprintln(replies, reply); err != nil {
			return err
		}
	}
	return nil
}

func (s *supervisor) do(command string) error {
	switch command {
	case "start":
		return s.start()
	case "stop":
		return s.endDaemon(unix.SIGTERM)
	case "kill":
		return s.endDaemon(unix.SIGKILL)
	case "freeze":
		return unix.Kill(s.pid, unix.SIGSTOP)
	case "thaw":
		return unix.Kill(s.pid, unix.SIGCONT)
	default:
		return fmt.Errorf("unknown command %q", command)
	}
}

func (s *supervisor) start() error {
	path, err := exec.LookPath("libvirtd")
	if err != nil {
		return err
	}
	log, err := os.OpenFile(filepath.Join(s.dir, "log/libvirtd.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		return err
	}
	defer null.Close()
	// A socket of a daemon that was killed would look like a start.
	if err := os.Remove("/run/libvirt/libvirt-sock"); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}

	s.mu.Lock()
	// os.StartProcess, not exec: the reaper waits for every child.
	proc, err := os.StartProcess(path, []string{path}, &os.ProcAttr{Files: []*os.File{null, log, log}, Env: os.Environ()})
	if err == nil {
		s.pid = proc.Pid
		s.exit[s.pid] = make(chan struct{})
	}
	exited := s.exit[s.pid]
	s.mu.Unlock()
	if err != nil {
		return err
	}
	go s.reap()
	deadline := time.After(startLimit)
	for poll := time.NewTicker(10 * time.Millisecond); ; {
		select {
		case <-poll.C:
			// The socket exists a moment before it listens.
			if conn, err := net.Dial("unix", "/run/libvirt/libvirt-sock"); err == nil {
				poll.Stop()
				return conn.Close()
			}
		case <-exited:
			return errors.New("libvirtd exited")
		case <-deadline:
			return fmt.Errorf("libvirtd opened no socket within %s", startLimit)
		}
	}
}

// endDaemon sends libvirtd a signal and waits for its end.
func (s *supervisor) endDaemon(sig unix.Signal) error {
	s.mu.Lock()
	pid, exited := s.pid, s.exit[s.pid]
	s.pid = 0
	s.mu.Unlock()
	if pid == 0 {
		return errors.New("libvirtd does not run")
	}
	if err := unix.Kill(pid, sig); err != nil {
		return err
	}
	select {
	case <-exited:
		return nil
	case <-time.After(startLimit):
		return errors.New("libvirtd does not end")
	}
}

// reap reaps children until there are none. QEMU is one of them when libvirtd,
// which starts it in the background, is not its parent any more; libvirt waits
// for it to vanish.
func (s *supervisor) reap() {
	for {
		pid, err := unix.Wait4(-1, nil, 0, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return
		}
		s.mu.Lock()
		if exited, ok := s.exit[pid]; ok {
			close(exited)
			delete(s.exit, pid)
		}
		s.mu.Unlock()
	}
}

// end kills every descendant, again and again until none is left, because the
// children of those that die become ours, and removes the daemon's directories.
func (s *supervisor) end() {
	for pids := children(); len(pids) > 0; pids = children() {
		for _, pid := range pids {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
		_, _ = unix.Wait4(-1, nil, 0, nil)
	}
	// It may fail on what still belongs to the test; the test removes that.
	_ = os.RemoveAll(s.dir)
}

// children returns the pids of the process's own children. Not every kernel has
// /proc/self/task/*/children, so it looks at every process's parent.
func children() []int {
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	self := strconv.Itoa(os.Getpid())
	var pids []int
	for _, path := range stats {
		stat, _ := os.ReadFile(path)
		// pid (comm) state ppid ...; comm may hold anything, a ")" too.
		fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		if len(fields) < 2 || fields[1] != self {
			continue
		}
		if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path))); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

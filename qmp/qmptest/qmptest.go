// SPDX-License-Identifier: Apache-2.0

// Package qmptest runs real guests for tests: the lab's Debian guest, emulated,
// in a private libvirtd, and plain QEMU processes. Every one ends with its test.
package qmptest

import (
	"bufio"
	"compress/gzip"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"libvirt.org/go/libvirt"

	"frail/hooks/libvirttest"
	"frail/lab/cache"
	"frail/lab/image"
	"frail/lab/vm"
)

const (
	// bootLimit is how long an emulated guest may take to greet, and
	// commandLimit how long one command in it may take.
	bootLimit    = 3 * time.Minute
	commandLimit = 2 * time.Minute

	// processLimit ends a plain QEMU whatever the test does.
	processLimit = "300"

	poll = 10 * time.Millisecond

	// name is the domain's.
	name = "guest"

	// greeting is what the guest's init says first.
	greeting = "frail guest ready"
)

// Config says what machine a guest gets. The zero value is the lab's guest with
// 512 MiB, one CPU of QEMU's default model and nothing on its command line.
type Config struct {
	// Kernel and Initrd are files to boot instead of the lab guest's. The
	// initramfs must have the lab guest's init.
	Kernel, Initrd string

	MemoryMiB int
	VCPUs     int
	// CPU is the XML of libvirt's cpu element, or empty.
	CPU string
	// Cmdline is added to the kernel's command line.
	Cmdline string
	// Memory is the XML of libvirt's memoryBacking element, or empty.
	Memory string
	// Features is the XML within libvirt's features element, or empty.
	Features string
	// Disk gives the guest an empty disk, in which libvirt can keep snapshots.
	Disk bool
	// Paused leaves the guest before its first instruction.
	Paused bool
}

// Guest is a running libvirt domain. It is not safe for concurrent use.
type Guest struct {
	Dom  *libvirt.Domain
	Conn *libvirt.Connect
	// PID is QEMU's process id.
	PID int
	// Libvirt is the daemon that owns it.
	Libvirt *libvirttest.Daemon

	socket string
	conn   net.Conn
	lines  *bufio.Scanner
	next   int
}

// kernelEnv names another kernel to boot instead of the lab guest's: the tests
// hold for every kernel whose layout can be resolved.
const kernelEnv = "FRAIL_TEST_KERNEL"

// Files returns the lab guest's kernel and initramfs.
func Files(tb testing.TB) (kernel, initrd string) {
	tb.Helper()
	dir, err := cache.Dir()
	if err != nil {
		tb.Fatal(err)
	}
	built := filepath.Join(dir, "guest-"+image.DefaultHost)
	kernel = filepath.Join(built, "vmlinuz")
	initrd = filepath.Join(built, "initramfs.cpio.gz")
	if k := os.Getenv(kernelEnv); k != "" {
		kernel = k
	}
	for _, f := range []string{kernel, initrd} {
		if _, err := os.Stat(f); err != nil {
			tb.Fatalf("the lab's guest is not built; run make lab-guest: %v", err)
		}
	}
	return kernel, initrd
}

// Start starts the lab's guest in a private libvirtd and, unless it is paused,
// waits until it takes commands. The test binary's TestMain must be
// libvirttest.Main.
func Start(tb testing.TB, cfg Config) *Guest {
	tb.Helper()
	if cfg.Kernel == "" {
		cfg.Kernel, cfg.Initrd = Files(tb)
	}
	d := libvirttest.Start(tb)
	conn, err := libvirt.NewConnect(d.URI)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _, _ = conn.Close() })

	g := &Guest{Conn: conn, Libvirt: d, socket: filepath.Join(d.Dir, "guest.sock")}
	if cfg.MemoryMiB == 0 {
		cfg.MemoryMiB = 512
	}
	if cfg.VCPUs == 0 {
		cfg.VCPUs = 1
	}
	disk := ""
	if cfg.Disk {
		file := filepath.Join(d.Dir, "disk.qcow2")
		if err := os.WriteFile(file, vm.EmptyDisk(), 0o644); err != nil {
			tb.Fatal(err)
		}
		disk = fmt.Sprintf("<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='%s'/><target dev='vda' bus='virtio'/></disk>", file)
	}
	xml := fmt.Sprintf(`<domain type='qemu'>
  <name>%s</name>
  <memory unit='MiB'>%d</memory>
  %s
  <vcpu>%d</vcpu>
  %s
  <os>
    <type arch='x86_64' machine='q35'>hvm</type>
    <kernel>%s</kernel>
    <initrd>%s</initrd>
    <cmdline>console=ttyS0 panic=-1 %s</cmdline>
  </os>
  <features>%s</features>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <controller type='usb' model='none'/>
    <memballoon model='none'/>
    %s
    <serial type='file'><source path='%s'/><target port='0'/></serial>
    <serial type='unix'><source mode='bind' path='%s'/><target port='1'/></serial>
  </devices>
</domain>`, name, cfg.MemoryMiB, cfg.Memory, cfg.VCPUs, cfg.CPU, cfg.Kernel, cfg.Initrd, cfg.Cmdline, cfg.Features, disk, filepath.Join(d.Dir, "console"), g.socket)

	// Paused, so that nobody misses the greeting.
	g.Dom, err = conn.DomainCreateXML(xml, libvirt.DOMAIN_START_PAUSED)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = g.Dom.Free() })
	tb.Cleanup(func() {
		if tb.Failed() {
			if b, err := os.ReadFile(filepath.Join(d.Dir, "console")); err == nil {
				tb.Logf("end of the guest's console:\n%s", b[max(0, len(b)-4096):])
			}
		}
	})
	g.attach(tb)
	tb.Cleanup(func() { g.conn.Close() })
	if !cfg.Paused {
		g.Resume(tb)
	}
	return g
}

// attach finds the domain's QEMU and talks to its guest.
func (g *Guest) attach(tb testing.TB) {
	tb.Helper()
	b, err := os.ReadFile(filepath.Join(g.Libvirt.StatusDir, name+".pid"))
	if err != nil {
		tb.Fatal(err)
	}
	if g.PID, err = strconv.Atoi(strings.TrimSpace(string(b))); err != nil {
		tb.Fatal(err)
	}
	if g.conn, err = net.Dial("unix", g.socket); err != nil {
		tb.Fatal(err)
	}
	g.lines = bufio.NewScanner(g.conn)
}

// Save saves the guest to a file, which ends its QEMU.
func (g *Guest) Save(tb testing.TB, file string) {
	tb.Helper()
	if err := g.Dom.Save(file); err != nil {
		tb.Fatal(err)
	}
	g.conn.Close()
}

// Restore continues a guest that was saved to the file, in another QEMU.
func (g *Guest) Restore(tb testing.TB, file string) {
	tb.Helper()
	if err := g.Conn.DomainRestore(file); err != nil {
		tb.Fatal(err)
	}
	dom, err := g.Conn.LookupDomainByName(name)
	if err != nil {
		tb.Fatal(err)
	}
	_ = g.Dom.Free() // of a domain that is gone
	g.Dom = dom
	g.attach(tb)
}

// Snapshot takes a snapshot of the guest, which must have a disk, and lets it run on.
func (g *Guest) Snapshot(tb testing.TB) *libvirt.DomainSnapshot {
	tb.Helper()
	snapshot, err := g.Dom.CreateSnapshotXML("<domainsnapshot/>", 0)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = snapshot.Free() })
	return snapshot
}

// Revert makes the guest what it was at a snapshot.
func (g *Guest) Revert(tb testing.TB, snapshot *libvirt.DomainSnapshot) {
	tb.Helper()
	g.conn.Close() // a new QEMU may take the place of the old one
	if err := snapshot.RevertToSnapshot(libvirt.DOMAIN_SNAPSHOT_REVERT_RUNNING); err != nil {
		tb.Fatal(err)
	}
	g.attach(tb)
}

// Resume lets a paused guest run and waits until it takes commands.
func (g *Guest) Resume(tb testing.TB) {
	tb.Helper()
	if err := g.Dom.Resume(); err != nil {
		tb.Fatal(err)
	}
	g.waitReady(tb)
}

// Reset resets the guest and waits until it takes commands again.
func (g *Guest) Reset(tb testing.TB) {
	tb.Helper()
	if err := g.Dom.Reset(0); err != nil {
		tb.Fatal(err)
	}
	g.waitReady(tb)
}

func (g *Guest) waitReady(tb testing.TB) {
	tb.Helper()
	g.deadline(tb, bootLimit)
	for g.line(tb) != greeting {
	}
}

func (g *Guest) deadline(tb testing.TB, d time.Duration) {
	tb.Helper()
	if err := g.conn.SetDeadline(time.Now().Add(d)); err != nil {
		tb.Fatal(err)
	}
}

func (g *Guest) line(tb testing.TB) string {
	tb.Helper()
	if !g.lines.Scan() {
		tb.Fatalf("read the guest's answer: %v", g.lines.Err())
	}
	return strings.TrimRight(g.lines.Text(), "\r")
}

// Run runs a command line with the guest's shell and returns its output. The
// test fails unless the exit status is 0.
func (g *Guest) Run(tb testing.TB, command string) string {
	tb.Helper()
	g.deadline(tb, commandLimit)
	g.next++
	id := strconv.Itoa(g.next)
	if _, err := fmt.Fprintf(g.conn, "run %s %s\n", id, command); err != nil {
		tb.Fatal(err)
	}
	for g.line(tb) != "begin "+id {
	}
	var encoded strings.Builder
	for {
		line := g.line(tb)
		if status, ok := strings.CutPrefix(line, "end "+id+" "); ok {
			output, err := base64.StdEncoding.DecodeString(encoded.String())
			if err != nil {
				tb.Fatal(err)
			}
			if status != "0" {
				tb.Fatalf("%q in the guest: exit status %s: %s", command, status, output)
			}
			return string(output)
		}
		encoded.WriteString(line)
	}
}

// ownSymbols lists the symbols of the guest's kernel proper, in its order.
const ownSymbols = `grep -v '\[' /proc/kallsyms`

// CompareSymbols holds lines, as /proc/kallsyms has them, against those of the guest's
// kernel proper: by their digest, because an emulated serial port is slow, and by themselves
// only when that differs.
func (g *Guest) CompareSymbols(tb testing.TB, lines []string) error {
	tb.Helper()
	digest := sha256.New()
	for _, line := range lines {
		fmt.Fprintln(digest, line)
	}
	answer := strings.Fields(g.Run(tb, ownSymbols+" | tee /tmp/symbols | sha256sum; wc -l </tmp/symbols"))
	if len(answer) != 3 {
		return fmt.Errorf("digest of the guest's symbols: %q", answer)
	}
	if answer[0] == fmt.Sprintf("%x", digest.Sum(nil)) {
		if answer[2] != strconv.Itoa(len(lines)) {
			return fmt.Errorf("%d symbols have the digest of the guest's %s", len(lines), answer[2])
		}
		return nil
	}
	zr, err := gzip.NewReader(strings.NewReader(g.Run(tb, "gzip -c /tmp/symbols")))
	if err != nil {
		return fmt.Errorf("read the guest's symbols: %w", err)
	}
	all, err := io.ReadAll(zr)
	if err != nil {
		return fmt.Errorf("read the guest's symbols: %w", err)
	}
	want := strings.Split(strings.TrimSuffix(string(all), "\n"), "\n")
	i := 0
	for i < min(len(lines), len(want)) && lines[i] == want[i] {
		i++
	}
	at := func(lines []string) string {
		if i < len(lines) {
			return lines[i]
		}
		return ""
	}
	return fmt.Errorf("%d symbols, the guest says %d; symbol %d is %q, the guest says %q", len(lines), len(want), i, at(lines), at(want))
}

// Process is a plain QEMU with a QMP socket.
type Process struct {
	// Socket is the QMP socket's path, Dir an empty directory that the test
	// and QEMU can write to.
	Socket, Dir string
	PID         int
}

// StartProcess starts QEMU, emulating, with the given further arguments. It
// does not start its CPUs.
func StartProcess(tb testing.TB, args ...string) *Process {
	tb.Helper()
	dir, err := os.MkdirTemp("", "frail-qemu-") // short: a socket lies in it
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { os.RemoveAll(dir) })
	p := &Process{Socket: filepath.Join(dir, "qmp"), Dir: filepath.Join(dir, "files")}
	if err := os.Mkdir(p.Dir, 0o700); err != nil {
		tb.Fatal(err)
	}
	pidFile := filepath.Join(dir, "pid")
	// QEMU inherits the socket, so that it is there before QEMU is.
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: p.Socket, Net: "unix"})
	if err != nil {
		tb.Fatal(err)
	}
	listener.SetUnlinkOnClose(false)
	inherit, err := listener.File()
	if err != nil {
		tb.Fatal(err)
	}
	defer inherit.Close()
	defer listener.Close()
	args = append([]string{
		"--foreground", processLimit, "qemu-system-x86_64", "-accel", "tcg", "-nodefaults", "-display", "none", "-S",
		"-pidfile", pidFile, "-chardev", "socket,id=qmp,fd=3,server=on,wait=off", "-mon", "chardev=qmp,mode=control",
	}, args...)
	cmd := exec.Command("timeout", args...)
	cmd.ExtraFiles = []*os.File{inherit}
	var stderr strings.Builder
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		tb.Fatal(err)
	}
	exited := make(chan error, 1)
	go func() { exited <- cmd.Wait() }()
	tb.Cleanup(func() {
		if p.PID != 0 {
			if proc, err := os.FindProcess(p.PID); err == nil {
				_ = proc.Kill()
			}
		} else {
			_ = cmd.Process.Kill()
		}
		<-exited
	})
	for deadline := time.Now().Add(bootLimit); ; time.Sleep(poll) {
		if b, err := os.ReadFile(pidFile); err == nil && strings.HasSuffix(string(b), "\n") {
			if p.PID, err = strconv.Atoi(strings.TrimSpace(string(b))); err != nil {
				tb.Fatal(err)
			}
			return p
		}
		select {
		case err := <-exited:
			exited <- err
			tb.Fatalf("QEMU exited: %v: %s", err, stderr.String())
		default:
		}
		if time.Now().After(deadline) {
			tb.Fatal("QEMU wrote no pid file")
		}
	}
}

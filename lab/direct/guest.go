// SPDX-License-Identifier: Apache-2.0

package direct

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	goqemu "github.com/digitalocean/go-qemu/qmp"
	"golang.org/x/sys/unix"

	"frail/lab/child"
	"frail/qmp"
)

// Where make lab-files puts the guest, as the lab's hosts see it.
const (
	DefaultKernel = "/frail/guest/vmlinuz"
	DefaultInitrd = "/frail/guest/initramfs.cpio.gz"
)

// Config describes a guest.
type Config struct {
	Kernel, Initrd string // files; "" means the Default ones
	Cmdline        string // added to the kernel's command line
	VCPUs          int    // 0 means 1
	MemoryMiB      int    // 0 means 256

	// Script is run with sh in the directory where Files are. What it leaves
	// in /out is in the Result.
	Script string

	// Files has files and directories of this host by their names in the guest.
	Files map[string]string

	// DiskMiB bounds Files and Result; 0 means 64.
	DiskMiB int

	// QMP are paths of further QMP sockets, which QEMU makes; each serves one client
	// at a time.
	QMP []string

	// Reboot lets the guest boot again when it is reset; otherwise that ends it.
	Reboot bool
}

func (c Config) withDefaults() Config {
	if c.Kernel == "" {
		c.Kernel = DefaultKernel
	}
	if c.Initrd == "" {
		c.Initrd = DefaultInitrd
	}
	if c.VCPUs == 0 {
		c.VCPUs = 1
	}
	if c.MemoryMiB == 0 {
		c.MemoryMiB = 256
	}
	if c.DiskMiB == 0 {
		c.DiskMiB = 64
	}
	return c
}

// Names of a guest's files in its directory. QEMU adds .in and .out to the console's.
const (
	diskFile    = "disk"
	consoleFile = "console"
	inputFile   = consoleFile + ".in"
	outputFile  = consoleFile + ".out"
	socketFile  = "qmp"
)

// qmpFD is the number under which QEMU gets its monitor's socket.
const qmpFD = 3

func (c Config) args(dir string, used int64) []string {
	args := []string{
		"-nodefaults", "-no-user-config", "-display", "none", "-S",
		"-machine", "microvm,rtc=on", "-accel", "kvm", "-cpu", "host",
		"-smp", strconv.Itoa(c.VCPUs), "-m", strconv.Itoa(c.MemoryMiB),
		"-kernel", c.Kernel, "-initrd", c.Initrd,
		"-append", strings.TrimSpace(fmt.Sprintf("console=ttyS0 panic=-1 quiet guest.disk=%d %s", used, c.Cmdline)),
		"-serial", "pipe:" + filepath.Join(dir, consoleFile),
		"-drive", "id=disk,if=none,format=raw,cache=unsafe,file=" + filepath.Join(dir, diskFile),
		"-device", "virtio-blk-device,drive=disk",
		"-chardev", fmt.Sprintf("socket,id=qmp,fd=%d,server=on,wait=off", qmpFD),
		"-mon", "chardev=qmp,mode=control",
	}
	for _, socket := range c.QMP {
		args = append(args, "-qmp", "unix:"+socket+",server=on,wait=off")
	}
	if !c.Reboot {
		args = append(args, "-no-reboot")
	}
	return args
}

// Guest is a guest's QEMU. Its methods may be called concurrently.
type Guest struct {
	dir      string
	cmd      *exec.Cmd
	messages bytes.Buffer // of QEMU; to be read after exited
	monitor  *qmp.SocketMonitor

	exited chan struct{} // closed when QEMU has ended
	err    error         // QEMU's end; to be read after exited
	stuck  atomic.Bool   // KVM could not go on with the guest, which was ended for that

	closing  sync.Once
	closeErr error
}

// Start starts a guest, which is paused before its first instruction. It ends
// when ctx does. The caller closes it.
func Start(ctx context.Context, cfg Config) (*Guest, error) {
	g, err := start(ctx, cfg.withDefaults())
	if err != nil {
		return nil, fmt.Errorf("start the guest: %w", err)
	}
	return g, nil
}

func start(ctx context.Context, cfg Config) (_ *Guest, err error) {
	dir, err := os.MkdirTemp("", "frail-guest-")
	if err != nil {
		return nil, err
	}
	g := &Guest{dir: dir, exited: make(chan struct{})}
	defer func() {
		if err != nil {
			err = errors.Join(err, g.Close())
		}
	}()
	used, err := writeDisk(filepath.Join(dir, diskFile), cfg)
	if err != nil {
		close(g.exited)
		return nil, fmt.Errorf("write its disk: %w", err)
	}
	if err := makeConsole(dir); err != nil {
		close(g.exited)
		return nil, fmt.Errorf("make its console: %w", err)
	}
	if err := g.run(ctx, cfg, used); err != nil {
		close(g.exited)
		return nil, err
	}
	g.monitor, err = qmp.Dial(ctx, filepath.Join(dir, socketFile))
	if err != nil {
		err = errors.Join(err, g.kill())
		return nil, fmt.Errorf("%w: %s", err, bytes.TrimSpace(g.messages.Bytes()))
	}
	events, err := g.monitor.Events(ctx)
	if err != nil {
		return nil, err
	}
	go g.watch(events)
	return g, nil
}

// watch ends a guest that KVM cannot go on with: QEMU stops it, and it would stay so. The
// emulated CPU of the lab's host now and then brings even an untraced guest to that.
func (g *Guest) watch(events <-chan goqemu.Event) {
	for ev := range events {
		if ev.Event != "STOP" {
			continue
		}
		var reply struct {
			Return struct {
				Status string `json:"status"`
			} `json:"return"`
		}
		out, err := g.monitor.Run([]byte(`{"execute":"query-status"}`))
		if err == nil {
			err = json.Unmarshal(out, &reply)
		}
		if err == nil && reply.Return.Status == "internal-error" {
			g.stuck.Store(true)
			_ = g.kill() // it may have ended by itself
			return
		}
	}
}

// makeConsole makes the console's files: what is said to the guest waits in a FIFO,
// what the guest says stays in a file.
func makeConsole(dir string) error {
	if err := unix.Mkfifo(filepath.Join(dir, inputFile), 0o600); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, outputFile), nil, 0o600)
}

// run starts QEMU with a socket that takes a connection from now on.
func (g *Guest) run(ctx context.Context, cfg Config, used int64) error {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(g.dir, socketFile), Net: "unix"})
	if err != nil {
		return err
	}
	defer l.Close()
	l.SetUnlinkOnClose(false)
	socket, err := l.File()
	if err != nil {
		return err
	}
	defer socket.Close()
	g.cmd = exec.CommandContext(ctx, "qemu-system-x86_64", cfg.args(g.dir, used)...)
	g.cmd.Stdout, g.cmd.Stderr = &g.messages, &g.messages
	g.cmd.ExtraFiles = []*os.File{socket}
	exited, err := child.Start(g.cmd)
	if err != nil {
		return err
	}
	go func() {
		g.err = <-exited
		close(g.exited)
	}()
	return nil
}

// PID returns QEMU's process id.
func (g *Guest) PID() int { return g.cmd.Process.Pid }

// Monitor returns QEMU's monitor.
func (g *Guest) Monitor() *qmp.SocketMonitor { return g.monitor }

// Resume lets the guest run.
func (g *Guest) Resume(ctx context.Context) error { return g.command(ctx, "cont") }

// Pause stops the guest.
func (g *Guest) Pause(ctx context.Context) error { return g.command(ctx, "stop") }

// Reset resets the guest as its reset button would.
func (g *Guest) Reset(ctx context.Context) error { return g.command(ctx, "system_reset") }

func (g *Guest) command(ctx context.Context, name string) error {
	if _, err := g.monitor.RunContext(ctx, []byte(`{"execute":"`+name+`"}`)); err != nil {
		return fmt.Errorf("tell the guest to %s: %w", name, err)
	}
	return nil
}

// Exited returns a channel that is closed when the guest has ended.
func (g *Guest) Exited() <-chan struct{} { return g.exited }

// Wait waits until the guest turns itself off and returns what it left.
func (g *Guest) Wait(ctx context.Context) (*Result, error) {
	select {
	case <-g.exited:
	case <-ctx.Done():
		return nil, fmt.Errorf("wait for the guest: %w; its console:\n%s", context.Cause(ctx), g.Console())
	}
	if g.stuck.Load() {
		return nil, fmt.Errorf("wait for the guest: KVM cannot go on with it: %s; its console:\n%s", bytes.TrimSpace(g.messages.Bytes()), g.Console())
	}
	if g.err != nil {
		return nil, fmt.Errorf("wait for the guest: %w: %s", g.err, bytes.TrimSpace(g.messages.Bytes()))
	}
	res, err := readDisk(filepath.Join(g.dir, diskFile))
	if err != nil {
		return nil, fmt.Errorf("read what the guest left: %w; its console:\n%s", err, g.Console())
	}
	return res, nil
}

// Console returns what the guest has written to its console.
func (g *Guest) Console() string {
	// Without a file there is nothing in it.
	data, _ := os.ReadFile(filepath.Join(g.dir, outputFile))
	return string(data)
}

// awaitPoll is how often the console is looked at.
const awaitPoll = 20 * time.Millisecond

// Await waits until the console has a line with text.
func (g *Guest) Await(ctx context.Context, text string) error {
	for !strings.Contains(g.Console(), text) {
		var err error
		select {
		case <-g.exited:
			err = errors.New("it has ended")
		case <-ctx.Done():
			err = context.Cause(ctx)
		case <-time.After(awaitPoll):
		}
		if err != nil {
			return fmt.Errorf("wait for the guest to say %q: %w; its console:\n%s", text, err, g.Console())
		}
	}
	return nil
}

// Send writes a line to the guest's console, which loses it unless the script has
// /dev/ttyS0 open.
func (g *Guest) Send(line string) error {
	// QEMU has the other end, or there is nobody to wait for.
	f, err := os.OpenFile(filepath.Join(g.dir, inputFile), os.O_WRONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return fmt.Errorf("talk to the guest: %w", err)
	}
	_, err = io.WriteString(f, line+"\n")
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("talk to the guest: %w", err)
	}
	return nil
}

// kill ends QEMU and waits for its end, which is not reported: it was asked for.
func (g *Guest) kill() error {
	if err := g.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	<-g.exited
	return nil
}

// Close ends the guest, if it runs, and removes its files. Closing twice is no
// error.
func (g *Guest) Close() error {
	g.closing.Do(func() {
		select {
		case <-g.exited:
		default:
			g.closeErr = g.kill()
		}
		if g.monitor != nil {
			g.closeErr = errors.Join(g.closeErr, g.monitor.Disconnect())
		}
		g.closeErr = errors.Join(g.closeErr, os.RemoveAll(g.dir))
	})
	return g.closeErr
}

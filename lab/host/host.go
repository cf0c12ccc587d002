// SPDX-License-Identifier: Apache-2.0

// Package host boots the lab's emulated AMD hosts and runs commands on it.
package host

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"frail/lab/image"
)

const (
	// BootTimeout is how long a host may take to reach its first command; it
	// takes 15 to 30 seconds on an idle machine. A debug host may take
	// DebugBootTimeout.
	BootTimeout      = 5 * time.Minute
	DebugBootTimeout = 15 * time.Minute

	// BootTries is how often a host that does not reach its first command is
	// booted again: the emulator itself fails a boot now and then. A command
	// that has begun is never run twice.
	BootTries = 3

	// startPoll is how often a boot is looked at.
	startPoll = 200 * time.Millisecond

	// logsGrace is how long a host may take to end a command whose time is over
	// and to write its logs.
	logsGrace = time.Minute
)

// ExitTimeout is the status of a command that took longer than its limit, as
// timeout(1) has it.
const ExitTimeout = 124

// Config describes a host to boot.
type Config struct {
	Image    *image.Host
	Emulator *image.Emulator

	// Share is a directory that the host mounts at /frail.
	Share string

	// Results is an existing directory that the host mounts at /lab; its
	// console, journal and kernel log are left there. Names of the lab's own
	// files in it: command, limit, started, status, console.log, journal.log,
	// dmesg.log, libvirt/.
	Results string

	// CPUs and MemoryMiB are the host's size; 0 means 1 CPU and 4096 MiB, or
	// 6144 MiB for a debug host, whose kernel keeps books on its memory. With
	// two CPUs a guest that exits often (t-cpuid) stops answering after some
	// 200,000 exits although frail.ko is not loaded, under QEMU 10.0; with one
	// it does not. Guests may have as many vCPUs as they like.
	CPUs, MemoryMiB int

	// Cmdline is words for the end of the host kernel's command line.
	Cmdline string

	// Firmware is a directory with UEFI firmware, code.fd, and its variables,
	// vars.fd, which a boot does not change; empty: the host has a BIOS.
	Firmware string

	// Log takes one line per step; nil discards them.
	Log io.Writer
}

// ErrPanic is returned by Run when the host's kernel panicked or oopsed.
var ErrPanic = errors.New("the host's kernel panicked")

func (c Config) withDefaults() Config {
	if c.CPUs == 0 {
		c.CPUs = 1
	}
	if c.MemoryMiB == 0 {
		c.MemoryMiB = 4096
		if c.Image.Debug {
			c.MemoryMiB = 6144
		}
	}
	if c.Log == nil {
		c.Log = io.Discard
	}
	return c
}

func (c Config) args(extra ...string) []string {
	if c.Firmware != "" {
		extra = append(extra,
			"-drive", "if=pflash,format=raw,unit=0,readonly=on,file="+filepath.Join(c.Firmware, "code.fd"),
			"-drive", "if=pflash,format=raw,unit=1,snapshot=on,file="+filepath.Join(c.Firmware, "vars.fd"))
	}
	return append([]string{
		"-nodefaults", "-no-user-config", "-no-reboot", "-display", "none",
		"-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", "EPYC,+svm,+npt",
		"-smp", strconv.Itoa(c.CPUs), "-m", strconv.Itoa(c.MemoryMiB),
		"-drive", "file=" + c.Image.Disk + ",format=raw,if=virtio,snapshot=on",
		"-virtfs", "local,path=" + c.Share + ",mount_tag=frail,security_model=none,multidevs=remap",
		"-virtfs", "local,path=" + c.Results + ",mount_tag=lab,security_model=none,multidevs=remap",
		"-kernel", c.Image.Kernel, "-initrd", c.Image.Initrd,
	}, extra...)
}

// cmdline is the host kernel's command line. Mitigations cost an emulated CPU
// time and protect nobody here; panic=-1 ends the emulator at a panic.
const cmdline = "root=/dev/vda rw console=ttyS0 mitigations=off panic=-1 oops=panic nowatchdog tsc=unstable"

// Shell boots the host with its serial console, on which root is logged in, on
// this process's terminal, and returns when the host is turned off.
func Shell(ctx context.Context, cfg Config) error {
	cfg = cfg.withDefaults()
	cmd := cfg.Emulator.Command(ctx, cfg.args(
		"-serial", "mon:stdio", "-append", cmdline+" quiet "+cfg.Cmdline)...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("run the host: %w", err)
	}
	return nil
}

// Run boots the host, runs script on it with sh as root, copies its output to
// stdout and stderr as it comes, and returns its exit status. The time limit
// counts from when the script starts; one that exceeds it is killed and its
// status is ExitTimeout. An error means that there is no exit status: the host
// did not boot, died, or hangs.
func Run(ctx context.Context, cfg Config, script string, limit time.Duration, stdout, stderr io.Writer) (int, error) {
	cfg = cfg.withDefaults()
	for name, text := range map[string]string{
		"command": script,
		"limit":   strconv.Itoa(int(limit.Seconds())),
	} {
		if err := os.WriteFile(filepath.Join(cfg.Results, name), []byte(text), 0o644); err != nil {
			return 0, fmt.Errorf("write the command: %w", err)
		}
	}
	for try := 1; ; try++ {
		status, started, err := runOnce(ctx, cfg, limit, stdout, stderr)
		if err == nil || started || try == BootTries || ctx.Err() != nil {
			return status, err
		}
		fmt.Fprintf(cfg.Log, "lab: boot %d of %d failed: %v\n", try, BootTries, err)
	}
}

func runOnce(ctx context.Context, cfg Config, limit time.Duration, stdout, stderr io.Writer) (status int, started bool, err error) {
	for _, name := range []string{"started", "status", "console.log"} {
		if err := os.Remove(filepath.Join(cfg.Results, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return 0, false, fmt.Errorf("clear the results: %w", err)
		}
	}
	ports, err := os.MkdirTemp("", "frail-lab-")
	if err != nil {
		return 0, false, fmt.Errorf("create the ports: %w", err)
	}
	defer os.RemoveAll(ports)
	var copies sync.WaitGroup
	defer copies.Wait()
	args := []string{"-device", "virtio-serial-pci"}
	for name, dst := range map[string]io.Writer{"stdout": stdout, "stderr": stderr} {
		path := filepath.Join(ports, name)
		l, err := net.Listen("unix", path)
		if err != nil {
			return 0, false, fmt.Errorf("create port %s: %w", name, err)
		}
		defer l.Close()
		copies.Add(1)
		go func() {
			defer copies.Done()
			conn, err := l.Accept()
			if err != nil {
				return // the listener was closed: no emulator came
			}
			defer conn.Close()
			io.Copy(dst, conn)
		}()
		args = append(args, "-chardev", "socket,id="+name+",path="+path,
			"-device", "virtserialport,chardev="+name+",name=frail."+name)
	}
	console := filepath.Join(cfg.Results, "console.log")
	args = append(args, "-serial", "file:"+console, "-append", cmdline+" lab.command "+cfg.Cmdline)

	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	cmd := cfg.Emulator.Command(ctx, cfg.args(args...)...)
	var messages bytes.Buffer
	cmd.Stdout, cmd.Stderr = &messages, &messages
	begin := time.Now()
	exited, err := start(cmd)
	if err != nil {
		return 0, false, err
	}
	fmt.Fprintln(cfg.Log, "lab: booting the host")

	bootTimeout := BootTimeout
	if cfg.Image.Debug {
		bootTimeout = DebugBootTimeout
	}
	boot := time.NewTimer(bootTimeout)
	defer boot.Stop()
	var over <-chan time.Time
	poll := time.NewTicker(startPoll)
	defer poll.Stop()
	for {
		select {
		case err := <-exited:
			return finish(ctx, cfg, started, err, messages.String())
		case <-boot.C:
			cancel(fmt.Errorf("the host did not start within %v", bootTimeout))
		case <-over:
			cancel(fmt.Errorf("the host hangs: it did not end a command limited to %v", limit))
		case <-poll.C:
			if started {
				continue
			}
			if _, err := os.Stat(filepath.Join(cfg.Results, "started")); err == nil {
				started = true
				boot.Stop()
				poll.Stop()
				over = time.After(limit + logsGrace)
				fmt.Fprintf(cfg.Log, "lab: the host is up after %.0f s\n", time.Since(begin).Seconds())
			}
		}
	}
}

func finish(ctx context.Context, cfg Config, started bool, exit error, messages string) (int, bool, error) {
	text, err := os.ReadFile(filepath.Join(cfg.Results, "status"))
	if err == nil {
		status, err := strconv.Atoi(strings.TrimSpace(string(text)))
		if err != nil {
			return 0, started, fmt.Errorf("read the exit status: %w", err)
		}
		return status, started, nil
	}
	if cause := context.Cause(ctx); cause != nil {
		return 0, started, cause
	}
	console, err := os.ReadFile(filepath.Join(cfg.Results, "console.log"))
	if err == nil && bytes.Contains(console, []byte("Kernel panic")) {
		return 0, started, fmt.Errorf("%w: see %s", ErrPanic, filepath.Join(cfg.Results, "console.log"))
	}
	if exit == nil {
		exit = errors.New("it turned itself off")
	}
	return 0, started, fmt.Errorf("the host ended without an exit status: %w %s", exit, strings.TrimSpace(messages))
}

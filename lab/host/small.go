// SPDX-License-Identifier: Apache-2.0

package host

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"frail/lab/image"
)

// SmallConfig describes a small host to boot and what runs on it. Image,
// Results and one of Emulator and Bochs are required.
type SmallConfig struct {
	Image *image.Small

	// Emulator makes it an AMD host, Bochs an Intel host.
	Emulator *image.Emulator
	Bochs    *image.Bochs

	// Files has files and directories of this machine by what they are called
	// on the host below /frail.
	Files map[string]string

	// Command is a script for sh, run as root in /root.
	Command string

	// Limit is how long the command may take.
	Limit time.Duration

	// Icount makes an AMD host deterministic and its time count instructions:
	// one takes one nanosecond, the host's and its guests' alike.
	Icount bool

	MemoryMiB int // 0 means 1024

	// Results is an existing directory where the console and the kernel's log
	// are left, as console.log and dmesg.log.
	Results string

	// Log takes one line per step; nil discards them.
	Log io.Writer
}

// SmallBootTimeout is how long a small host may take to begin its command: Bochs needs 100 s
// of a processor, and a busy machine has less than one.
const SmallBootTimeout = 10 * time.Minute

// smallCmdline is the small host's kernel command line. A panic stays on the
// console, where it is seen whichever emulator runs: Bochs would boot again.
const smallCmdline = "console=ttyS0 mitigations=off panic=0 oops=panic nowatchdog cryptomgr.notests loglevel=5 "

// RunSmall boots a small host, runs the command on it, copies its output to
// out as it comes, and returns its exit status. An error means that there is
// none: the host did not begin the command in BootTries boots, panicked, or
// did not end the command within its limit.
func RunSmall(ctx context.Context, cfg SmallConfig, out io.Writer) (int, error) {
	if cfg.MemoryMiB == 0 {
		cfg.MemoryMiB = 1024
	}
	if cfg.Log == nil {
		cfg.Log = io.Discard
	}
	if cfg.Icount && cfg.Emulator == nil {
		return 0, errors.New("count instructions: only the AMD host's emulator can")
	}
	dir, err := os.MkdirTemp("", "frail-small-")
	if err != nil {
		return 0, fmt.Errorf("create the host's files: %w", err)
	}
	defer os.RemoveAll(dir)
	initrd := filepath.Join(dir, "initrd")
	if err := writeSmallInitrd(ctx, cfg, initrd); err != nil {
		return 0, fmt.Errorf("write the host's initramfs: %w", err)
	}
	command := func(ctx context.Context) (*exec.Cmd, error) { return cfg.qemu(ctx, initrd), nil }
	if cfg.Bochs != nil {
		disc := filepath.Join(dir, "disc")
		if err := cfg.Bochs.WriteDisc(ctx, disc, cfg.Image, initrd, smallCmdline+image.BochsCmdline); err != nil {
			return 0, err
		}
		command = func(ctx context.Context) (*exec.Cmd, error) {
			return cfg.Bochs.Command(ctx, dir, disc, cfg.MemoryMiB, consoleFile, portFile)
		}
	}
	for try := 1; ; try++ {
		status, begun, err := runSmallOnce(ctx, cfg, command, out)
		if err == nil || begun || try == BootTries || ctx.Err() != nil {
			return status, err
		}
		fmt.Fprintf(cfg.Log, "lab: boot %d of %d failed: %v\n", try, BootTries, err)
	}
}

// The emulator's ends of the host's two serial ports.
const (
	consoleFile = "/dev/fd/3"
	portFile    = "/dev/fd/4"
)

func (c SmallConfig) qemu(ctx context.Context, initrd string) *exec.Cmd {
	accel, tsc := []string{"-accel", "tcg,thread=multi"}, "tsc=unstable"
	if c.Icount {
		accel, tsc = []string{"-accel", "tcg,thread=single", "-icount", "shift=0,sleep=off"}, "tsc=reliable"
	}
	return c.Emulator.Command(ctx, append(accel,
		"-nodefaults", "-no-user-config", "-no-reboot", "-display", "none",
		"-machine", "q35", "-cpu", "EPYC,+svm,+npt", "-smp", "1", "-m", strconv.Itoa(c.MemoryMiB),
		"-kernel", c.Image.Kernel, "-initrd", initrd, "-append", smallCmdline+tsc,
		"-serial", "file:"+consoleFile, "-serial", "file:"+portFile)...)
}

// lastLines returns the end of an emulator's messages, of which some have many.
func lastLines(messages string) string {
	const lines = 6
	all := strings.Split(strings.TrimSpace(messages), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// writeSmallInitrd writes the image's initramfs and the files of this run.
func writeSmallInitrd(ctx context.Context, cfg SmallConfig, dst string) error {
	tree, err := os.MkdirTemp("", "frail-small-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tree)
	for name, src := range cfg.Files {
		if !filepath.IsLocal(name) {
			return fmt.Errorf("place %s: not a name below /frail", name)
		}
		if err := copyTo(filepath.Join(tree, "frail", name), src); err != nil {
			return err
		}
	}
	if err := os.Mkdir(filepath.Join(tree, "lab"), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(tree, "lab/command"), []byte(cfg.Command), 0o644); err != nil {
		return err
	}
	files, err := image.Pack(ctx, tree)
	if err != nil {
		return err
	}
	base, err := os.ReadFile(cfg.Image.Initrd)
	if err != nil {
		return err
	}
	return os.WriteFile(dst, append(base, files...), 0o644)
}

// copyTo copies a file or a directory.
func copyTo(dst, src string) error {
	info, err := os.Stat(src)
	if err != nil {
		return err
	}
	if info.IsDir() {
		return os.CopyFS(dst, os.DirFS(src))
	}
	data, err := os.ReadFile(src)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(dst), 0o755); err != nil {
		return err
	}
	return os.WriteFile(dst, data, info.Mode().Perm())
}

func runSmallOnce(ctx context.Context, cfg SmallConfig, command func(context.Context) (*exec.Cmd, error), out io.Writer) (status int, begun bool, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	cmd, err := command(ctx)
	if err != nil {
		return 0, false, err
	}
	var messages bytes.Buffer
	cmd.Stdout, cmd.Stderr = &messages, &messages

	log, err := os.Create(filepath.Join(cfg.Results, "console.log"))
	if err != nil {
		return 0, false, fmt.Errorf("create the console's log: %w", err)
	}
	defer log.Close()
	dmesg, err := os.Create(filepath.Join(cfg.Results, "dmesg.log"))
	if err != nil {
		return 0, false, fmt.Errorf("create the kernel's log: %w", err)
	}
	defer dmesg.Close()
	var ports [2]*os.File // what the console and the second port say
	for i := range ports {
		r, w, err := os.Pipe()
		if err != nil {
			return 0, false, fmt.Errorf("create the ports: %w", err)
		}
		defer r.Close()
		defer w.Close()
		ports[i], cmd.ExtraFiles = r, append(cmd.ExtraFiles, w)
	}
	begin := time.Now()
	exited, err := start(cmd)
	if err != nil {
		return 0, false, err
	}
	// The ports end with the emulator.
	for _, w := range cmd.ExtraFiles {
		w.Close()
	}
	fmt.Fprintln(cfg.Log, "lab: booting the small host")

	began := make(chan struct{})
	type ending struct {
		status int
		err    error
	}
	ended := make(chan ending, 1)
	go func() {
		status, err := readPort(ports[1], func() { close(began) }, out, dmesg)
		ended <- ending{status, err}
	}()
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		if watchConsole(ports[0], log) {
			cancel(fmt.Errorf("%w: see %s", ErrPanic, log.Name()))
			io.Copy(io.Discard, ports[0])
		}
	}()

	over := time.After(SmallBootTimeout)
	for {
		select {
		case <-began:
			began, begun = nil, true
			over = time.After(cfg.Limit)
			fmt.Fprintf(cfg.Log, "lab: the small host is up after %.0f s\n", time.Since(begin).Seconds())
		case <-over:
			if begun {
				cancel(fmt.Errorf("the command did not end within %v", cfg.Limit))
			} else {
				cancel(fmt.Errorf("the host did not start within %v", SmallBootTimeout))
			}
		case end := <-ended:
			cause := context.Cause(ctx)
			cancel(nil)
			exit := <-exited
			<-watched
			switch {
			case end.err == nil:
				return end.status, true, nil
			case cause != nil:
				return 0, begun, cause
			case exit != nil:
				end.err = fmt.Errorf("%w: %w", end.err, exit)
			}
			return 0, begun, fmt.Errorf("%w: %s", end.err, lastLines(messages.String()))
		}
	}
}

// SPDX-License-Identifier: Apache-2.0

package image

import (
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"text/template"
)

// BochsSuite is the Debian release that Bochs comes from. The next one's does
// not enter guests with the CPU that the lab emulates.
const BochsSuite = "bookworm"

// bochsPackages are Bochs and what makes discs that it boots.
var bochsPackages = []string{"bochs", "bochsbios", "vgabios", "grub-common", "grub-pc-bin", "xorriso"}

// Bochs is an unpacked emulator of an Intel CPU with VMX. Like Emulator, it is
// not installed.
type Bochs struct {
	root string
}

// BuildBochs returns Bochs, whose files are unpacked into the cache first if
// it does not have them.
func BuildBochs(ctx context.Context, log io.Writer) (*Bochs, error) {
	root, err := unpackPackages(ctx, "bochs", BochsSuite, bochsPackages, log)
	if err != nil {
		return nil, err
	}
	return &Bochs{root}, nil
}

// program returns a program of the root, ready to start.
func (b *Bochs) program(ctx context.Context, name string, args ...string) *exec.Cmd {
	lib := filepath.Join(b.root, "lib/x86_64-linux-gnu")
	return exec.CommandContext(ctx, filepath.Join(lib, "ld-linux-x86-64.so.2"), append([]string{
		"--library-path", lib + ":" + filepath.Join(b.root, "usr/lib/x86_64-linux-gnu"),
		filepath.Join(b.root, "usr/bin", name),
	}, args...)...)
}

// WriteDisc writes to dst an image of a disc that boots a small host's kernel
// with this initramfs and command line. The debug kernel is not for it.
func (b *Bochs) WriteDisc(ctx context.Context, dst string, s *Small, initrd, cmdline string) error {
	if s.Multiboot == "" {
		return errors.New("write the disc: the debug kernel does not boot by multiboot: use HOST=bookworm, or VENDOR=amd")
	}
	work, err := os.MkdirTemp("", "frail-disc-")
	if err != nil {
		return fmt.Errorf("write the disc: %w", err)
	}
	defer os.RemoveAll(work)
	config, loader := filepath.Join(work, "grub.cfg"), filepath.Join(work, "loader")
	script := "multiboot /boot/kernel " + cmdline + "\nmodule /boot/initrd\nboot\n"
	if err := os.WriteFile(config, []byte(script), 0o644); err != nil {
		return fmt.Errorf("write the disc: %w", err)
	}
	for _, cmd := range []*exec.Cmd{
		b.program(ctx, "grub-mkimage", "--directory", filepath.Join(b.root, "usr/lib/grub/i386-pc"),
			"--format", "i386-pc-eltorito", "--prefix", "/boot", "--config", config, "--output", loader,
			"biosdisk", "iso9660", "multiboot", "boot"),
		b.program(ctx, "xorriso", "-as", "mkisofs", "-quiet", "-r", "-graft-points", "-o", dst,
			"-b", "boot/loader", "-no-emul-boot", "-boot-load-size", "4", "-boot-info-table",
			"boot/loader="+loader, "boot/kernel="+s.Multiboot, "boot/initrd="+initrd),
	} {
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("write the disc: %w: %s", err, bytes.TrimSpace(out))
		}
	}
	return nil
}

// bochsMHz is the rate of the emulated time: so many instructions take one
// microsecond. A low one keeps short what the kernel and the serial ports wait.
const bochsMHz = 100

// BochsCmdline is what a kernel needs to be told under Bochs: the time stamp
// counter counts instructions too, not the 3.5 GHz that the CPU model says.
const BochsCmdline = "tsc=reliable tsc_early_khz=100000 no_timer_check"

// bochsConfig: errors are not logged, there are millions; the display, which
// is not needed, is the one that needs no terminal.
var bochsConfig = template.Must(template.New("bochsrc").Parse(`display_library: rfb, options="timeout=0"
romimage: file={{.Root}}/usr/share/bochs/BIOS-bochs-latest
vgaromimage: file={{.Root}}/usr/share/bochs/VGABIOS-lgpl-latest
cpu: model=corei7_skylake_x, count=1, ips={{.MHz}}000000, reset_on_triple_fault=0, ignore_bad_msrs=1
memory: guest={{.MemoryMiB}}, host={{.MemoryMiB}}
clock: sync=none, time0=utc
ata0: enabled=1
ata0-master: type=cdrom, path={{.Disc}}, status=inserted
boot: cdrom
com1: enabled=1, mode=file, dev={{.Console}}
com2: enabled=1, mode=file, dev={{.Port}}
plugin_ctrl: speaker=0, parallel=0, gameport=0, biosdev=0
sound: waveoutdrv=dummy, waveindrv=dummy, midioutdrv=dummy
log: /dev/null
panic: action=fatal
error: action=ignore
info: action=ignore
debug: action=ignore
`))

// Command returns Bochs, ready to start from a disc, with what its two serial
// ports send going to the files console and port. dir is an existing directory
// for its own files.
func (b *Bochs) Command(ctx context.Context, dir, disc string, memoryMiB int, console, port string) (*exec.Cmd, error) {
	var config strings.Builder
	err := bochsConfig.Execute(&config, struct {
		Root, Disc, Console, Port string
		MemoryMiB, MHz            int
	}{b.root, disc, console, port, memoryMiB, bochsMHz})
	if err != nil {
		return nil, fmt.Errorf("configure Bochs: %w", err)
	}
	file := filepath.Join(dir, "bochsrc")
	if err := os.WriteFile(file, []byte(config.String()), 0o644); err != nil {
		return nil, fmt.Errorf("configure Bochs: %w", err)
	}
	cmd := b.program(ctx, "bochs-bin", "-q", "-f", file)
	cmd.Env = []string{
		"LTDL_LIBRARY_PATH=" + filepath.Join(b.root, "usr/lib/x86_64-linux-gnu/bochs/plugins"),
		"BXSHARE=" + filepath.Join(b.root, "usr/share/bochs"),
	}
	// Debian builds it with its debugger, which waits for a command to go on.
	cmd.Stdin = strings.NewReader("continue\n")
	// The display listens on all addresses: of a network of its own.
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	return cmd, nil
}

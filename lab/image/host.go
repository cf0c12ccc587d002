// SPDX-License-Identifier: Apache-2.0

// Package image builds the lab's images: the root of the emulated host, and
// the guests' kernel and initramfs.
package image

import (
	"bytes"
	"context"
	"embed"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"frail/lab/cache"
)

// rootSize is the size of the host's file system, most of it free: the drive
// is sparse and every boot starts from the same content.
const rootSize = "6G"

// hostPackages is what a host is made of beyond Debian's essential packages.
var hostPackages = []string{
	"bpftrace", "busybox-static", "dbus", "gcc", "initramfs-tools", "iproute2",
	"kmod", "libvirt-clients", "libvirt-daemon-driver-qemu", "libvirt-daemon-system",
	"linux-headers-amd64", "linux-image-amd64", "make", "procps",
	"qemu-system-x86", "systemd", "systemd-sysv", "udev", "zstd",
}

//go:embed files
var hostFiles embed.FS

// Host is a built image of an emulated host.
type Host struct {
	Name    string // as BuildHost takes it
	Root    string // directory: the host's root, for building modules in
	Disk    string // file: the same as an ext4 file system
	Kernel  string // file: the kernel to boot
	Initrd  string // file: its initramfs
	Release string // the kernel's release, as uname -r gives it
	Debug   bool   // the kernel checks itself: slower, and needs more memory

	// GuestRelease is the release of the kernel that its guests run, which is
	// Debian's and in the root too.
	GuestRelease string
}

// BuildHost returns the image of the host called name, one of HostNames, built
// first if the cache has none of these inputs. Building needs root and takes
// about three minutes, and the debug host's kernel more; progress goes to log.
func BuildHost(ctx context.Context, name string, log io.Writer) (*Host, error) {
	spec, err := findHost(name)
	if err != nil {
		return nil, err
	}
	kernel := "" // directory of the packages of a kernel other than Debian's
	if spec.debug {
		if kernel, err = buildDebugKernel(ctx, spec.suite, log); err != nil {
			return nil, err
		}
	}
	key := cache.NewKey()
	key.Add("suite", []byte(spec.suite))
	key.Add("kernel", []byte(filepath.Base(kernel)))
	key.Add("size", []byte(rootSize))
	key.Add("packages", []byte(strings.Join(hostPackages, " ")))
	key.Add("modules", []byte(strings.Join(initrdModules, " ")))
	if err := key.AddFS(hostFiles); err != nil {
		return nil, fmt.Errorf("read the host's files: %w", err)
	}
	dir, err := cache.Build(ctx, "host-"+name, key.String(), func(ctx context.Context, dir string) error {
		return fillHost(ctx, dir, spec.suite, kernel, log)
	})
	if err != nil {
		return nil, err
	}
	h := &Host{
		Name: name, Root: filepath.Join(dir, "root"), Disk: filepath.Join(dir, "root.ext4"), Debug: spec.debug,
	}
	if h.GuestRelease, err = findRelease(h.Root, debianKernel); err != nil {
		return nil, fmt.Errorf("host image %s: %w", dir, err)
	}
	h.Release = h.GuestRelease
	if spec.debug {
		if h.Release, err = findRelease(h.Root, debugKernel); err != nil {
			return nil, fmt.Errorf("host image %s: %w", dir, err)
		}
	}
	h.Kernel = filepath.Join(h.Root, "boot/vmlinuz-"+h.Release)
	h.Initrd = filepath.Join(h.Root, "boot/initrd.img-"+h.Release)
	return h, nil
}

// findRelease returns the release of the only kernel in root whose release has
// this suffix.
func findRelease(root, suffix string) (string, error) {
	kernels, err := filepath.Glob(filepath.Join(root, "boot/vmlinuz-*"+suffix))
	if err != nil {
		return "", err
	}
	if len(kernels) != 1 {
		return "", fmt.Errorf("want one kernel %s, found %q", suffix, kernels)
	}
	return strings.TrimPrefix(filepath.Base(kernels[0]), "vmlinuz-"), nil
}

// initrdModules is all the host's initramfs must load to reach its root; the
// default set takes an emulated CPU ten seconds to unpack.
var initrdModules = []string{"virtio_pci", "virtio_blk", "ext4"}

func fillHost(ctx context.Context, dir, suite, kernel string, log io.Writer) error {
	if os.Geteuid() != 0 {
		return errors.New("needs root: run it as root or with sudo")
	}
	root := filepath.Join(dir, "root")
	fmt.Fprintf(log, "lab: building the host image (about 3 minutes): Debian %s, %d packages\n", suite, len(hostPackages))
	if err := installRoot(ctx, root, suite, "minbase", hostPackages, log); err != nil {
		return err
	}
	if err := customize(root); err != nil {
		return fmt.Errorf("write the host's files: %w", err)
	}
	if kernel != "" {
		if err := installKernel(ctx, root, kernel, log); err != nil {
			return fmt.Errorf("install the host's kernel: %w", err)
		}
	}
	fmt.Fprintln(log, "lab: building the host's initramfs")
	if err := inRoot(ctx, root, log, "update-initramfs", "-u", "-k", "all"); err != nil {
		return err
	}
	for _, unit := range hostMasked {
		if err := os.Symlink("/dev/null", filepath.Join(root, "etc/systemd/system", unit)); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	for _, unit := range hostEnabled {
		wants := filepath.Join(root, "etc/systemd/system/multi-user.target.wants")
		if err := os.MkdirAll(wants, 0o755); err != nil {
			return err
		}
		if err := os.Symlink("/etc/systemd/system/"+unit, filepath.Join(wants, unit)); err != nil {
			return err
		}
	}
	fmt.Fprintln(log, "lab: writing the host's disk")
	disk := filepath.Join(dir, "root.ext4")
	return runLogged(exec.CommandContext(ctx, "mke2fs", "-q", "-t", "ext4", "-L", "frail-lab",
		"-E", "root_owner=0:0,lazy_itable_init=1", "-d", root, disk, rootSize), log)
}

// hostMasked are units that only cost an emulated host time.
var hostMasked = []string{
	"apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer",
	"e2scrub_all.timer", "e2scrub_reap.service", "fstrim.timer",
	"libvirt-guests.service", "systemd-timesyncd.service",
}

// hostEnabled are the lab's own units.
var hostEnabled = []string{"frail-lab.service"}

// customize copies the embedded files into root; a file's mode is 0755 if it
// begins with "#!", else 0644.
func customize(root string) error {
	err := fs.WalkDir(hostFiles, "files", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel("files", path)
		if err != nil {
			return err
		}
		dst := filepath.Join(root, rel)
		if d.IsDir() {
			return os.MkdirAll(dst, 0o755)
		}
		data, err := hostFiles.ReadFile(path)
		if err != nil {
			return err
		}
		perm := fs.FileMode(0o644)
		if bytes.HasPrefix(data, []byte("#!")) {
			perm = 0o755
		}
		if err := os.WriteFile(dst, data, perm); err != nil {
			return err
		}
		return os.Chmod(dst, perm)
	})
	if err != nil {
		return err
	}
	modules := filepath.Join(root, "etc/initramfs-tools/modules")
	if err := os.WriteFile(modules, []byte(strings.Join(initrdModules, "\n")+"\n"), 0o644); err != nil {
		return err
	}
	// Nobody can reach the host but over its own console.
	for _, name := range []string{"frail", "lab"} {
		if err := os.MkdirAll(filepath.Join(root, name), 0o755); err != nil {
			return err
		}
	}
	return nil
}

// runLogged runs cmd; its output goes to log only if it fails.
func runLogged(cmd *exec.Cmd, log io.Writer) error {
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		log.Write(out.Bytes())
		return fmt.Errorf("run %s: %w", filepath.Base(cmd.Path), err)
	}
	return nil
}

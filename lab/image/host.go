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
	"slices"
	"strings"

	"frail/lab/cache"
)

// Suite is the Debian release of the lab's hosts.
const Suite = "bookworm"

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

// Host is a built image of the emulated host.
type Host struct {
	Root    string // directory: the host's root, for building modules in
	Disk    string // file: the same as an ext4 file system
	Kernel  string // file: the kernel to boot
	Initrd  string // file: its initramfs
	Release string // the kernel's release, as uname -r gives it
}

// BuildHost returns the host's image, built first if the cache has none of
// these inputs. Building needs root and takes about three minutes; progress
// goes to log.
func BuildHost(ctx context.Context, log io.Writer) (*Host, error) {
	key := cache.NewKey()
	key.Add("suite", []byte(Suite))
	key.Add("size", []byte(rootSize))
	key.Add("packages", []byte(strings.Join(hostPackages, " ")))
	key.Add("modules", []byte(strings.Join(initrdModules, " ")))
	if err := key.AddFS(hostFiles); err != nil {
		return nil, fmt.Errorf("read the host's files: %w", err)
	}
	dir, err := cache.Build(ctx, "host", key.String(), func(ctx context.Context, dir string) error {
		return fillHost(ctx, dir, log)
	})
	if err != nil {
		return nil, err
	}
	kernels, err := filepath.Glob(filepath.Join(dir, "root/boot/vmlinuz-*"))
	if err != nil || len(kernels) != 1 {
		return nil, fmt.Errorf("host image %s: want one kernel, found %q", dir, kernels)
	}
	release := strings.TrimPrefix(filepath.Base(kernels[0]), "vmlinuz-")
	return &Host{
		Root:    filepath.Join(dir, "root"),
		Disk:    filepath.Join(dir, "root.ext4"),
		Kernel:  kernels[0],
		Initrd:  filepath.Join(dir, "root/boot/initrd.img-"+release),
		Release: release,
	}, nil
}

// initrdModules is all the host's initramfs must load to reach its root; the
// default set takes an emulated CPU ten seconds to unpack.
var initrdModules = []string{"virtio_pci", "virtio_blk", "ext4"}

func fillHost(ctx context.Context, dir string, log io.Writer) error {
	if os.Geteuid() != 0 {
		return errors.New("needs root: run it as root or with sudo")
	}
	root := filepath.Join(dir, "root")
	sources, err := aptSources(ctx, Suite)
	if err != nil {
		return err
	}
	fmt.Fprintf(log, "lab: building the host image (about 3 minutes): Debian %s, %d packages\n", Suite, len(hostPackages))
	args := []string{
		"--variant=minbase", "--include=" + strings.Join(hostPackages, ","),
		`--aptopt=Acquire::Languages "none"`,
		"--dpkgopt=path-exclude=/usr/share/doc/*",
		"--dpkgopt=path-exclude=/usr/share/man/*",
		"--dpkgopt=path-exclude=/usr/share/locale/*",
		Suite, root,
	}
	cmd := exec.CommandContext(ctx, "mmdebstrap", append(args, sources...)...)
	if err := runLogged(cmd, log); err != nil {
		return err
	}
	if err := customize(root); err != nil {
		return fmt.Errorf("write the host's files: %w", err)
	}
	fmt.Fprintln(log, "lab: building the host's initramfs")
	if err := inRoot(ctx, root, log, "update-initramfs", "-u"); err != nil {
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

// aptSources returns sources for a Debian release at the mirrors this machine
// was set up with. It is empty, which leaves mmdebstrap its default, when apt
// knows none.
func aptSources(ctx context.Context, suite string) ([]string, error) {
	out, err := exec.CommandContext(ctx, "apt-get", "indextargets",
		"--format", "$(ORIGIN) $(RELEASE) $(COMPONENT) $(REPO_URI)", "Created-By: Packages").Output()
	if err != nil {
		return nil, fmt.Errorf("ask apt for its sources: %w", err)
	}
	var sources []string
	found := false
	for line := range strings.Lines(string(out)) {
		f := strings.Fields(line)
		if len(f) != 4 || f[0] != "Debian" || f[2] != "main" {
			continue
		}
		_, pocket, _ := strings.Cut(f[1], "-")
		switch pocket {
		case "":
			found = true
		case "updates", "security":
			pocket = "-" + pocket
		default:
			continue
		}
		// Whatever release the machine runs, its mirror has the others.
		sources = append(sources, fmt.Sprintf("deb %s %s%s main", f[3], suite, pocket))
	}
	if !found {
		return nil, nil
	}
	return slices.Compact(sources), nil
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

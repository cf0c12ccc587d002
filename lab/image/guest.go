// SPDX-License-Identifier: Apache-2.0

package image

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"

	"frail/lab/cache"
	"frail/lab/guest"
)

// Guest is a built guest.
type Guest struct {
	Kernel string // file: the kernel of the host's Debian release
	Initrd string // file: initramfs of busybox and the test programs
}

// progFlags build a test program: no C library, no start files, nothing that
// would make a system call of its own.
var progFlags = []string{
	"-O2", "-Wall", "-Wextra", "-Werror", "-ffreestanding", "-fno-builtin",
	"-nostdlib", "-static", "-no-pie", "-fno-pie", "-fno-stack-protector",
	"-fcf-protection=none", "-fno-asynchronous-unwind-tables",
	"-Wl,--build-id=none", "-Wl,-z,noseparate-code",
}

// guestModules are what the guest's init loads, unless the kernel has it built in.
var guestModules = []string{
	"arch/x86/kernel/msr.ko",
	"drivers/virtio/virtio.ko", "drivers/virtio/virtio_ring.ko", "drivers/virtio/virtio_mmio.ko",
	"drivers/block/virtio_blk.ko",
}

// prog32 marks the programs that are built for i386 by their name.
const prog32 = "t-32"

// BuildGuest returns the guest, built first if the cache has none of these
// inputs, which include the host's image.
func BuildGuest(ctx context.Context, h *Host, log io.Writer) (*Guest, error) {
	key := cache.NewKey()
	key.Add("host", []byte(filepath.Base(filepath.Dir(h.Root))))
	key.Add("flags", []byte(strings.Join(progFlags, " ")))
	key.Add("modules", []byte(strings.Join(guestModules, " ")))
	if err := key.AddFS(guest.Sources); err != nil {
		return nil, fmt.Errorf("read the guest's sources: %w", err)
	}
	dir, err := cache.Build(ctx, "guest-"+h.Name, key.String(), func(ctx context.Context, dir string) error {
		return fillGuest(ctx, dir, h, log)
	})
	if err != nil {
		return nil, err
	}
	return &Guest{
		Kernel: filepath.Join(dir, "vmlinuz"),
		Initrd: filepath.Join(dir, "initramfs.cpio.gz"),
	}, nil
}

func fillGuest(ctx context.Context, dir string, h *Host, log io.Writer) error {
	fmt.Fprintln(log, "lab: building the guest of", h.Name)
	tree := filepath.Join(dir, "tree")
	if err := fillTree(ctx, tree, filepath.Join(h.Root, "bin/busybox"), log); err != nil {
		return err
	}
	kernel, err := os.ReadFile(filepath.Join(h.Root, "boot/vmlinuz-"+h.GuestRelease))
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "vmlinuz"), kernel, 0o644); err != nil {
		return err
	}
	modules := filepath.Join(h.Root, "lib/modules", h.GuestRelease)
	if err := copyModules(ctx, filepath.Join(tree, "lib"), modules, guestModules); err != nil {
		return err
	}
	return writeInitramfs(ctx, tree, filepath.Join(dir, "initramfs.cpio.gz"))
}

// fillTree makes the tree of a guest's initramfs, without modules.
func fillTree(ctx context.Context, tree, busybox string, log io.Writer) error {
	for _, d := range []string{"bin", "dev", "lib"} {
		if err := os.MkdirAll(filepath.Join(tree, d), 0o755); err != nil {
			return err
		}
	}
	program, err := os.ReadFile(busybox)
	if err != nil {
		return err
	}
	init, err := guest.Sources.ReadFile("init")
	if err != nil {
		return err
	}
	for name, data := range map[string][]byte{"bin/busybox": program, "init": init} {
		if err := os.WriteFile(filepath.Join(tree, name), data, 0o755); err != nil {
			return err
		}
	}
	// sh is needed before init can link the rest.
	if err := os.Symlink("busybox", filepath.Join(tree, "bin/sh")); err != nil {
		return err
	}
	return buildProgs(ctx, filepath.Join(tree, "bin"), log)
}

// copyModules copies these modules of the kernel in the directory modules to dst,
// but for those that it has built in.
func copyModules(ctx context.Context, dst, modules string, names []string) error {
	builtin, err := os.ReadFile(filepath.Join(modules, "modules.builtin"))
	if err != nil {
		return err
	}
	for _, name := range names {
		if bytes.Contains(builtin, []byte("kernel/"+name+"\n")) {
			continue
		}
		data, err := readModule(ctx, filepath.Join(modules, "kernel", name))
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dst, path.Base(name)), data, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// readModule returns a module of a kernel, which newer releases of Debian compress.
func readModule(ctx context.Context, path string) ([]byte, error) {
	data, err := os.ReadFile(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return data, err
	}
	const xz = ".xz"
	if data, err = os.ReadFile(path + xz); err != nil {
		return nil, err
	}
	return unpack(ctx, xz, data)
}

// buildProgs compiles every progs/t-*.c into bin.
func buildProgs(ctx context.Context, bin string, log io.Writer) error {
	src, err := os.MkdirTemp("", "frail-progs-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(src)
	entries, err := guest.Sources.ReadDir("progs")
	if err != nil {
		return err
	}
	for _, e := range entries {
		data, err := guest.Sources.ReadFile(path.Join("progs", e.Name()))
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(src, e.Name()), data, 0o644); err != nil {
			return err
		}
	}
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), ".c")
		if !ok {
			continue
		}
		args := append([]string{}, progFlags...)
		if strings.HasPrefix(name, prog32) {
			args = append(args, "-m32")
		}
		args = append(args, "-o", filepath.Join(bin, name), filepath.Join(src, e.Name()))
		if err := runLogged(exec.CommandContext(ctx, "gcc", args...), log); err != nil {
			return fmt.Errorf("build %s: %w", name, err)
		}
	}
	return nil
}

// writeInitramfs packs and compresses tree.
func writeInitramfs(ctx context.Context, tree, dst string) error {
	archive, err := Pack(ctx, tree)
	if err != nil {
		return err
	}
	f, err := os.Create(dst)
	if err != nil {
		return err
	}
	z := gzip.NewWriter(f)
	if _, err := z.Write(archive); err != nil {
		f.Close()
		return err
	}
	if err := z.Close(); err != nil {
		f.Close()
		return err
	}
	return f.Close()
}

// Install copies the guest's files into dir, where hosts can see them.
func (g *Guest) Install(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("install the guest: %w", err)
	}
	for _, from := range []string{g.Kernel, g.Initrd} {
		data, err := os.ReadFile(from)
		if err != nil {
			return fmt.Errorf("install the guest: %w", err)
		}
		if err := replaceFile(filepath.Join(dir, filepath.Base(from)), data); err != nil {
			return fmt.Errorf("install the guest: %w", err)
		}
	}
	return nil
}

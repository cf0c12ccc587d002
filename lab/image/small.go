// SPDX-License-Identifier: Apache-2.0

package image

import (
	"bytes"
	"context"
	"debug/elf"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"frail/lab/cache"
)

// Small is a small host: a host's kernel and an initramfs, which is all of its
// root, with busybox, KVM and the host's QEMU. It starts in seconds where a
// whole host is too slow (Bochs), and does nothing of its own where that would
// be counted (instruction counts).
type Small struct {
	Kernel    string // file: the host's kernel, uncompressed but for the debug kernel
	Multiboot string // file: the same for a multiboot loader; empty for the debug kernel
	Initrd    string // file: the initramfs, to which the files of a run are appended
}

var (
	//go:embed small/init
	smallInit []byte

	//go:embed small/boot.c
	bootSource []byte
)

// smallModules are the kernel modules a small host can load, with all they
// depend on.
var smallModules = []string{"kvm_amd", "kvm_intel", "msr"}

// smallFirmware is what QEMU needs to boot a kernel given to it on the
// machines microvm, q35 and pc, without display and network.
var smallFirmware = []string{
	"bios-256k.bin", "bios-microvm.bin", "kvmvapic.bin", "linuxboot_dma.bin", "pvh.bin", "qboot.rom",
}

const (
	smallQEMU      = "usr/bin/qemu-system-x86_64"
	smallLibraries = "usr/lib/x86_64-linux-gnu"
	smallLoader    = "ld-linux-x86-64.so.2"
)

// BuildSmall returns the small host of h, built first if the cache has none of
// these inputs.
func BuildSmall(ctx context.Context, h *Host, log io.Writer) (*Small, error) {
	key := cache.NewKey()
	key.Add("host", []byte(filepath.Base(filepath.Dir(h.Root))))
	key.Add("init", smallInit)
	key.Add("boot", bootSource)
	key.Add("flags", []byte(strings.Join(bootFlags, " ")))
	key.Add("modules", []byte(strings.Join(smallModules, " ")))
	key.Add("firmware", []byte(strings.Join(smallFirmware, " ")))
	dir, err := cache.Build(ctx, "small-"+h.Name, key.String(), func(ctx context.Context, dir string) error {
		return fillSmall(ctx, dir, h, log)
	})
	if err != nil {
		return nil, err
	}
	s := &Small{Initrd: filepath.Join(dir, "initramfs.cpio")}
	if h.Debug {
		// KASAN instruments what 6.1 runs at its PVH entry, before there is a shadow memory.
		s.Kernel = h.Kernel
	} else {
		s.Kernel, s.Multiboot = filepath.Join(dir, "vmlinux"), filepath.Join(dir, "vmlinux.multiboot")
	}
	return s, nil
}

func fillSmall(ctx context.Context, dir string, h *Host, log io.Writer) error {
	fmt.Fprintln(log, "lab: building the small host of", h.Name)
	if !h.Debug {
		if err := writeUnpacked(ctx, filepath.Join(dir, "vmlinux"), h.Kernel); err != nil {
			return err
		}
		if err := writeMultiboot(ctx, filepath.Join(dir, "vmlinux.multiboot"), h.Kernel, log); err != nil {
			return err
		}
	}
	root, err := os.OpenRoot(h.Root)
	if err != nil {
		return err
	}
	defer root.Close()
	tree := filepath.Join(dir, "tree")
	if err := os.Mkdir(tree, 0o755); err != nil {
		return err
	}
	s := smallTree{root, tree}
	if err := s.write("init", smallInit, 0o755); err != nil {
		return err
	}
	if err := s.copyAs("bin/busybox", "usr/bin/busybox"); err != nil {
		return err
	}
	// sh is needed before init can link the rest.
	if err := os.Symlink("busybox", filepath.Join(tree, "bin/sh")); err != nil {
		return err
	}
	if err := s.copyModules(ctx, h.Release); err != nil {
		return fmt.Errorf("copy the kernel's modules: %w", err)
	}
	if err := s.copyQEMU(); err != nil {
		return fmt.Errorf("copy QEMU: %w", err)
	}
	data, err := Pack(ctx, tree)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "initramfs.cpio"), data, 0o644); err != nil {
		return err
	}
	return os.RemoveAll(tree)
}

// smallTree is a small host's root being filled from a host's.
type smallTree struct {
	root *os.Root
	tree string
}

func (s smallTree) write(name string, data []byte, perm fs.FileMode) error {
	dst := filepath.Join(s.tree, name)
	if err := os.MkdirAll(filepath.Dir(dst), 0o755); err != nil {
		return err
	}
	return os.WriteFile(dst, data, perm)
}

// copyAs copies a program or library of the host.
func (s smallTree) copyAs(dst, src string) error {
	data, err := s.root.ReadFile(src)
	if err != nil {
		return err
	}
	return s.write(dst, data, 0o755)
}

// copyModules copies smallModules, unpacked, and an index for modprobe.
func (s smallTree) copyModules(ctx context.Context, release string) error {
	dir := path.Join("usr/lib/modules", release)
	index, err := s.root.ReadFile(path.Join(dir, "modules.dep"))
	if err != nil {
		return err
	}
	builtin, err := s.root.ReadFile(path.Join(dir, "modules.builtin"))
	if err != nil {
		return err
	}
	// A line has a module's file and those of all it depends on.
	needs := map[string][]string{}
	file := map[string]string{}
	for line := range strings.Lines(string(index)) {
		name, deps, _ := strings.Cut(strings.TrimSpace(line), ":")
		needs[name] = strings.Fields(deps)
		file[moduleName(name)] = name
	}
	var wanted []string
	for _, m := range smallModules {
		name, ok := file[m]
		if !ok && !slices.ContainsFunc(strings.Fields(string(builtin)), func(b string) bool { return moduleName(b) == m }) {
			return fmt.Errorf("find %s: %w", m, fs.ErrNotExist)
		}
		if ok {
			wanted = append(append(wanted, name), needs[name]...)
		}
	}
	slices.Sort(wanted)
	var reduced strings.Builder
	for _, name := range slices.Compact(wanted) {
		data, err := s.root.ReadFile(path.Join(dir, name))
		if err != nil {
			return err
		}
		data, err = unpack(ctx, path.Ext(name), data)
		if err != nil {
			return fmt.Errorf("unpack %s: %w", name, err)
		}
		if err := s.write(path.Join("lib/modules", release, unpackedName(name)), data, 0o644); err != nil {
			return err
		}
		reduced.WriteString(unpackedName(name) + ":")
		for _, dep := range needs[name] {
			reduced.WriteString(" " + unpackedName(dep))
		}
		reduced.WriteString("\n")
	}
	return s.write(path.Join("lib/modules", release, "modules.dep"), []byte(reduced.String()), 0o644)
}

// moduleName is the name of the module in a file, as the kernel has it.
func moduleName(file string) string {
	name, _, _ := strings.Cut(path.Base(file), ".")
	return strings.ReplaceAll(name, "-", "_")
}

// unpackedName is a module file's name without its compression's suffix.
func unpackedName(file string) string {
	return strings.TrimSuffix(strings.TrimSuffix(file, ".xz"), ".zst")
}

// unpack undoes the compression that a file's extension names; busybox loads
// no compressed module.
func unpack(ctx context.Context, ext string, data []byte) ([]byte, error) {
	program, ok := map[string]string{".xz": "xz", ".zst": "zstd", ".gz": "gzip"}[ext]
	if !ok {
		return data, nil
	}
	cmd := exec.CommandContext(ctx, program, "--decompress", "--stdout")
	cmd.Stdin = bytes.NewReader(data)
	return cmd.Output()
}

// copyQEMU copies QEMU, the libraries it is linked with and smallFirmware.
func (s smallTree) copyQEMU() error {
	if err := s.copyAs(smallQEMU, smallQEMU); err != nil {
		return err
	}
	if err := s.copyAs(path.Join("lib64", smallLoader), path.Join(smallLibraries, smallLoader)); err != nil {
		return err
	}
	if err := s.copyLibraries(smallQEMU, map[string]bool{smallLoader: true}); err != nil {
		return err
	}
	for _, name := range smallFirmware {
		dst := path.Join("usr/share/qemu", name)
		err := s.copyAs(dst, dst)
		if errors.Is(err, fs.ErrNotExist) {
			err = s.copyAs(dst, path.Join("usr/share/seabios", name))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// copyLibraries copies the libraries that the file in the tree is linked with,
// and theirs, but for those that are done.
func (s smallTree) copyLibraries(file string, done map[string]bool) error {
	f, err := elf.Open(filepath.Join(s.tree, file))
	if err != nil {
		return fmt.Errorf("read %s: %w", file, err)
	}
	needed, err := f.ImportedLibraries()
	f.Close()
	if err != nil {
		return fmt.Errorf("read %s: %w", file, err)
	}
	for _, name := range needed {
		if done[name] {
			continue
		}
		done[name] = true
		lib := path.Join(smallLibraries, name)
		if err := s.copyAs(lib, lib); err != nil {
			return err
		}
		if err := s.copyLibraries(lib, done); err != nil {
			return err
		}
	}
	return nil
}

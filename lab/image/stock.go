// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"frail/lab/cache"
	"frail/lab/guest"
)

// Stock is a guest with a kernel as Debian ships it, and nothing of that release
// but the kernel: its user space is the lab guest's.
type Stock struct {
	Release string // as uname prints it
	Kernel  string // file
	Initrd  string // file: initramfs of busybox, the test programs and stockModules
}

// stockModules are put into /lib of a stock guest, unless its kernel has them built
// in. Nothing loads them by itself. The first tells a vmcoreinfo device where the
// kernel describes itself.
var stockModules = []string{"drivers/firmware/qemu_fw_cfg.ko"}

// stockBusybox is the machine's own: every kernel runs it.
const stockBusybox = "/bin/busybox"

// BuildStock returns the guest with the kernel of a release (a Debian code name) and
// flavour ("amd64", "cloud-amd64" or "rt-amd64"), fetched and built first if the cache
// has none of these inputs. The cache keeps the kernel that was the release's newest
// then.
func BuildStock(ctx context.Context, suite, flavour string, log io.Writer) (*Stock, error) {
	key := cache.NewKey()
	key.Add("suite", []byte(suite))
	key.Add("without pockets", []byte(withoutPockets[suite]))
	key.Add("flavour", []byte(flavour))
	key.Add("flags", []byte(strings.Join(progFlags, " ")))
	key.Add("modules", []byte(strings.Join(stockModules, " ")))
	if err := key.AddFS(guest.Sources); err != nil {
		return nil, fmt.Errorf("read the guest's sources: %w", err)
	}
	dir, err := cache.Build(ctx, "stock-"+suite+"-"+flavour, key.String(), func(ctx context.Context, dir string) error {
		return fillStock(ctx, dir, suite, flavour, log)
	})
	if err != nil {
		return nil, err
	}
	release, err := os.ReadFile(filepath.Join(dir, "release"))
	if err != nil {
		return nil, fmt.Errorf("read the kernel's release: %w", err)
	}
	return &Stock{
		Release: string(release),
		Kernel:  filepath.Join(dir, "vmlinuz"),
		Initrd:  filepath.Join(dir, "initramfs.cpio.gz"),
	}, nil
}

func fillStock(ctx context.Context, dir, suite, flavour string, log io.Writer) error {
	name := "linux-image-" + flavour
	fmt.Fprintf(log, "lab: fetching %s of Debian %s (about a minute)\n", name, suite)
	root := filepath.Join(dir, "root")
	if err := installRoot(ctx, root, suite, "extract", []string{name}, log); err != nil {
		return err
	}
	// Debian 13 moved modules below /usr, and what follows it the kernel beside them.
	modules, err := onlyFile(filepath.Join(root, "usr/lib/modules/*"), filepath.Join(root, "lib/modules/*"))
	if err != nil {
		return err
	}
	release := filepath.Base(modules)
	kernel, err := onlyFile(filepath.Join(modules, "vmlinuz"), filepath.Join(root, "boot/vmlinuz-"+release))
	if err != nil {
		return err
	}
	if err := os.Rename(kernel, filepath.Join(dir, "vmlinuz")); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "release"), []byte(release), 0o644); err != nil {
		return err
	}
	tree := filepath.Join(dir, "tree")
	if err := fillTree(ctx, tree, stockBusybox, log); err != nil {
		return err
	}
	if err := copyModules(ctx, filepath.Join(tree, "lib"), modules, stockModules); err != nil {
		return err
	}
	if err := writeInitramfs(ctx, tree, filepath.Join(dir, "initramfs.cpio.gz")); err != nil {
		return err
	}
	return errors.Join(os.RemoveAll(tree), os.RemoveAll(root))
}

// onlyFile returns the one file that the patterns match.
func onlyFile(patterns ...string) (string, error) {
	var files []string
	for _, pattern := range patterns {
		found, err := filepath.Glob(pattern)
		if err != nil {
			return "", err
		}
		files = append(files, found...)
	}
	if len(files) != 1 {
		return "", fmt.Errorf("want one of %q, found %q", patterns, files)
	}
	return files[0], nil
}

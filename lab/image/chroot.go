// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
)

// chrootEnv is all a command in the root sees of an environment.
var chrootEnv = []string{
	"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LC_ALL=C.UTF-8",
	"DEBIAN_FRONTEND=noninteractive",
}

// inRoot runs a command in the tree with /proc mounted, which objtool and
// initramfs-tools need, in a mount namespace of its own: nothing stays mounted
// when it ends, however it ends.
func inRoot(ctx context.Context, root string, log io.Writer, args ...string) error {
	script := `mount --make-rprivate / && mount -t proc proc "$0/proc" && exec chroot "$0" "$@"`
	cmd := exec.CommandContext(ctx, "unshare", append([]string{"--mount", "sh", "-c", script, root}, args...)...)
	cmd.Env = chrootEnv
	return runLogged(cmd, log)
}

// BuildModule builds the kernel module whose source is in src against the
// host's kernel headers with the host's compiler, and writes NAME.ko to dst.
// Warnings are errors. Output of a failed build goes to log.
func (h *Host) BuildModule(ctx context.Context, src, dst string, log io.Writer) error {
	if os.Geteuid() != 0 {
		return fmt.Errorf("build %s: needs root: run it as root or with sudo", filepath.Base(src))
	}
	work, err := os.MkdirTemp("", "frail-module-")
	if err != nil {
		return fmt.Errorf("build %s: %w", filepath.Base(src), err)
	}
	defer os.RemoveAll(work)
	// The module's source may include the ABI header and the version beside it, if
	// they are there, so the layout of the repository is kept.
	for _, dir := range []string{filepath.Base(src), "bpf"} {
		err := copyDir(filepath.Join(work, dir), filepath.Join(filepath.Dir(src), dir))
		if err != nil && !(dir == "bpf" && errors.Is(err, fs.ErrNotExist)) {
			return fmt.Errorf("build %s: %w", filepath.Base(src), err)
		}
	}
	version, err := os.ReadFile(filepath.Join(filepath.Dir(src), "VERSION"))
	if err == nil {
		err = os.WriteFile(filepath.Join(work, "VERSION"), version, 0o644)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("build %s: %w", filepath.Base(src), err)
	}
	script := `mount --make-rprivate / && mount -t proc proc "$0/proc" && mount -t tmpfs tmpfs "$0/mnt" &&
mount --bind "$1" "$0/mnt" && shift && exec chroot "$0" "$@"`
	cmd := exec.CommandContext(ctx, "unshare", "--mount", "sh", "-c", script, h.Root, work,
		"make", "-C", "/mnt/"+filepath.Base(src), "KDIR=/lib/modules/"+h.Release+"/build")
	cmd.Env = chrootEnv
	if err := runLogged(cmd, log); err != nil {
		return fmt.Errorf("build %s: %w", filepath.Base(src), err)
	}
	built, err := filepath.Glob(filepath.Join(work, filepath.Base(src), "*.ko"))
	if err != nil || len(built) == 0 {
		return fmt.Errorf("build %s: make left no module behind", filepath.Base(src))
	}
	if err := os.MkdirAll(dst, 0o755); err != nil {
		return fmt.Errorf("build %s: %w", filepath.Base(src), err)
	}
	for _, ko := range built {
		data, err := os.ReadFile(ko)
		if err != nil {
			return fmt.Errorf("build %s: %w", filepath.Base(src), err)
		}
		if err := replaceFile(filepath.Join(dst, filepath.Base(ko)), data); err != nil {
			return fmt.Errorf("build %s: %w", filepath.Base(src), err)
		}
	}
	return nil
}

// copyDir copies the regular files of a source directory, not the ones a
// build left there, and its subdirectories.
func copyDir(dst, src string) error {
	if err := os.MkdirAll(dst, 0o755); err != nil {
		return err
	}
	entries, err := os.ReadDir(src)
	if err != nil {
		return err
	}
	for _, e := range entries {
		from, to := filepath.Join(src, e.Name()), filepath.Join(dst, e.Name())
		switch {
		case e.IsDir():
			if err := copyDir(to, from); err != nil {
				return err
			}
		case e.Type().IsRegular():
			switch filepath.Ext(e.Name()) {
			case ".o", ".ko", ".mod", ".cmd":
				continue
			}
			data, err := os.ReadFile(from)
			if err != nil {
				return err
			}
			if err := os.WriteFile(to, data, 0o644); err != nil {
				return err
			}
		}
	}
	return nil
}

// replaceFile writes data to path so that no reader sees half of it.
func replaceFile(path string, data []byte) error {
	tmp := path + ".tmp"
	if err := os.WriteFile(tmp, data, 0o644); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}

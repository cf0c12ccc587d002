// SPDX-License-Identifier: Apache-2.0

package image

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"os/exec"
	"path/filepath"
)

// Pack returns tree as an initramfs, uncompressed; several may follow each
// other. Every file in it belongs to root, whoever packs it. It needs no
// /dev/console: the kernel's built-in initramfs has one.
func Pack(ctx context.Context, tree string) ([]byte, error) {
	var names bytes.Buffer
	err := filepath.WalkDir(tree, func(p string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(tree, p)
		names.WriteString(rel + "\n")
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("pack the initramfs: %w", err)
	}
	var archive, messages bytes.Buffer
	cmd := exec.CommandContext(ctx, "cpio", "--create", "--format=newc", "--owner=0:0", "--quiet", "--reproducible")
	cmd.Dir, cmd.Stdin, cmd.Stdout, cmd.Stderr = tree, &names, &archive, &messages
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("pack the initramfs: %w: %s", err, messages.Bytes())
	}
	return archive.Bytes(), nil
}

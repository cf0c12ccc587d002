// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"strings"

	"frail/lab/cache"
)

// EmulatorSuite is the Debian release the lab's emulator comes from. It is
// newer than the hosts: QEMU 7.2, which bookworm has, breaks the kernels of
// newer hosts.
const EmulatorSuite = "trixie"

// emulatorPackages are all an emulator without display and network needs.
var emulatorPackages = []string{"qemu-system-x86", "seabios"}

// Emulator is an unpacked emulator. It is not installed: nothing of the
// machine's own changes.
type Emulator struct {
	root string
}

// Command returns QEMU with args, ready to start; ctx as in exec.CommandContext.
func (e *Emulator) Command(ctx context.Context, args ...string) *exec.Cmd {
	usr := filepath.Join(e.root, "usr")
	return exec.CommandContext(ctx, filepath.Join(usr, "lib64/ld-linux-x86-64.so.2"), append([]string{
		"--library-path", filepath.Join(usr, "lib/x86_64-linux-gnu"),
		filepath.Join(usr, "bin/qemu-system-x86_64"),
		"-L", filepath.Join(usr, "share/qemu"), "-L", filepath.Join(usr, "share/seabios"),
	}, args...)...)
}

// BuildEmulator returns the lab's emulator, whose files are unpacked into the
// cache first if it does not have them.
func BuildEmulator(ctx context.Context, log io.Writer) (*Emulator, error) {
	root, err := unpackPackages(ctx, "emulator", EmulatorSuite, emulatorPackages, log)
	if err != nil {
		return nil, err
	}
	return &Emulator{root}, nil
}

// unpackPackages returns a directory of the cache with these packages of a
// Debian release and all they depend on, unpacked, not configured.
func unpackPackages(ctx context.Context, name, suite string, packages []string, log io.Writer) (string, error) {
	key := cache.NewKey()
	key.Add("suite", []byte(suite))
	key.Add("packages", []byte(strings.Join(packages, " ")))
	dir, err := cache.Build(ctx, name, key.String(), func(ctx context.Context, dir string) error {
		fmt.Fprintf(log, "lab: fetching %s of Debian %s (about a minute)\n", name, suite)
		return installRoot(ctx, filepath.Join(dir, "root"), suite, "extract", packages, log)
	})
	if err != nil {
		return "", err
	}
	return filepath.Join(dir, "root"), nil
}

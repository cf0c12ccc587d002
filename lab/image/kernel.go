// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	_ "embed"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"frail/lab/cache"
)

// Suffixes of kernels' releases.
const (
	debianKernel = "-amd64"
	debugKernel  = "-frail-debug" // CONFIG_LOCALVERSION of debug.config
)

// debugConfig is for make allnoconfig: what it does not name is off.
//
//go:embed kernel/debug.config
var debugConfig []byte

// debugSource is the Debian package of the debug kernel's source.
const debugSource = "linux-source-6.1"

// debugPackages are what building the debug kernel takes.
var debugPackages = []string{
	debugSource, "bc", "bison", "cpio", "dpkg-dev", "dwarves", "flex", "gcc", "kmod",
	"libelf-dev", "libssl-dev", "make", "python3-minimal", "rsync", "xz-utils",
}

// debugScript runs in the build root's /build, which has debug.config, and
// leaves packages in /. It gives way to whatever else the machine does.
const debugScript = `set -e
cd /build
tar --strip-components=1 -xf /usr/src/` + debugSource + `.tar.xz
make -s KCONFIG_ALLCONFIG=debug.config allnoconfig
# An option that this version does not have or cannot have must not go unnoticed.
grep '^CONFIG_' debug.config | while read -r option; do
	grep -qxF "$option" .config || { echo "error: the kernel did not take $option" >&2; exit 1; }
done
exec nice -n 15 make -s -j"$(nproc)" KDEB_COMPRESS=none DPKG_FLAGS=-d bindeb-pkg
`

// buildDebugKernel returns a directory with the Debian packages of the kernel
// and of its headers, built in a root of their own first if the cache has none
// of these inputs.
func buildDebugKernel(ctx context.Context, suite string, log io.Writer) (string, error) {
	key := cache.NewKey()
	key.Add("suite", []byte(suite))
	key.Add("packages", []byte(strings.Join(debugPackages, " ")))
	key.Add("config", debugConfig)
	key.Add("script", []byte(debugScript))
	return cache.Build(ctx, "kernel-debug", key.String(), func(ctx context.Context, dir string) error {
		fmt.Fprintf(log, "lab: building the debug kernel (about 30 minutes): %s of Debian %s\n", debugSource, suite)
		root := filepath.Join(dir, "root")
		if err := installRoot(ctx, root, suite, "minbase", debugPackages, log); err != nil {
			return err
		}
		build := filepath.Join(root, "build")
		if err := os.Mkdir(build, 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(build, "debug.config"), debugConfig, 0o644); err != nil {
			return err
		}
		if err := inRoot(ctx, root, log, "sh", "-c", debugScript); err != nil {
			return err
		}
		for _, name := range []string{"image", "headers"} {
			built, err := filepath.Glob(filepath.Join(root, "linux-"+name+"-*"+debugKernel+"_*.deb"))
			if err != nil {
				return err
			}
			if len(built) != 1 {
				return fmt.Errorf("want one package of the kernel's %s, found %q", name, built)
			}
			if err := os.Rename(built[0], filepath.Join(dir, name+".deb")); err != nil {
				return err
			}
		}
		return os.RemoveAll(root)
	})
}

// installKernel installs into root what buildDebugKernel left in dir.
func installKernel(ctx context.Context, root, dir string, log io.Writer) error {
	var packages []string
	for _, name := range []string{"image.deb", "headers.deb"} {
		data, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			return err
		}
		copied := filepath.Join(root, name)
		if err := os.WriteFile(copied, data, 0o644); err != nil {
			return err
		}
		defer os.Remove(copied)
		packages = append(packages, "/"+name)
	}
	return inRoot(ctx, root, log, append([]string{"dpkg", "--install"}, packages...)...)
}

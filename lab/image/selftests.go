// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"frail/lab/cache"
)

// selftestsPackages are what building the kernel's x86 self-tests takes. They
// are unpacked into a root of their own, not installed: nothing else needs
// gcc's 32-bit half.
var selftestsPackages = []string{
	"base-files", "binutils", "coreutils", "dash", "gcc", "gcc-multilib", "linux-source", "make", "tar", "xz-utils",
}

// selftestsScript runs in that root and leaves in /out the programs (tests) and
// what they are loaded with (root). They are linked as the kernel's Makefile
// links them, to the C library of the suite: a static one finds no vDSO, which
// is what some of them test.
const selftestsScript = `set -e
mkdir -p /src /out/tests /out/root
tar -C /src --strip-components=1 --wildcards -xf /usr/src/linux-source-*.tar.xz \
	'*/tools/testing/selftests/*.mk' '*/tools/testing/selftests/*.h' '*/tools/testing/selftests/x86' \
	'*/arch/x86/include/asm/desc_defs.h'
make -s -j"$(nproc)" -C /src/tools/testing/selftests/x86 OUTPUT=/out/tests all_32 all_64
strip /out/tests/*
lib() { # FLAG LIBRARY DIRECTORY
	mkdir -p "/out/root/$3"
	cp -L "$(gcc "$1" -print-file-name="$2")" "/out/root/$3"
}
lib -m32 ld-linux.so.2 lib
lib -m64 ld-linux-x86-64.so.2 lib64
for name in libc.so.6 libgcc_s.so.1; do
	lib -m32 $name lib32
	lib -m64 $name lib/x86_64-linux-gnu
done
lib -m32 libm.so.6 lib32
`

// BuildSelftests returns a directory with the kernel's x86 self-tests, 32- and
// 64-bit, built first if the cache has none of these inputs: the programs in
// "tests", and in "root" the C libraries that they need, where they look for
// them. The source is of the Debian release of the host called name.
func BuildSelftests(ctx context.Context, name string, log io.Writer) (string, error) {
	spec, err := findHost(name)
	if err != nil {
		return "", err
	}
	key := cache.NewKey()
	key.Add("suite", []byte(spec.suite))
	key.Add("packages", []byte(strings.Join(selftestsPackages, " ")))
	key.Add("script", []byte(selftestsScript))
	return cache.Build(ctx, "selftests-"+spec.suite, key.String(), func(ctx context.Context, dir string) error {
		fmt.Fprintf(log, "lab: building the x86 self-tests of Debian %s's kernel (about 2 minutes)\n", spec.suite)
		root := filepath.Join(dir, "build")
		if err := installRoot(ctx, root, spec.suite, "extract", selftestsPackages, log); err != nil {
			return err
		}
		if err := inRoot(ctx, root, log, "sh", "-c", selftestsScript); err != nil {
			return err
		}
		for _, name := range []string{"tests", "root"} {
			if err := os.Rename(filepath.Join(root, "out", name), filepath.Join(dir, name)); err != nil {
				return err
			}
		}
		return os.RemoveAll(root)
	})
}

// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"frail/lab/cache"
)

// installRoot makes a Debian root directory of the release suite with the
// packages and what they need. The variant is one of mmdebstrap's.
func installRoot(ctx context.Context, root, suite, variant string, packages []string, log io.Writer) error {
	sources, err := aptSources(ctx, suite)
	if err != nil {
		return err
	}
	args := []string{
		"--variant=" + variant, "--include=" + strings.Join(packages, ","),
		`--aptopt=Acquire::Languages "none"`,
		"--dpkgopt=path-exclude=/usr/share/doc/*",
		"--dpkgopt=path-exclude=/usr/share/man/*",
		"--dpkgopt=path-exclude=/usr/share/locale/*",
	}
	if suite == "sid" {
		// A mirror's sid may be a frozen one, whose index is past its date.
		args = append(args, `--aptopt=Acquire::Check-Valid-Until "false"`)
	}
	args = append(append(args, suite, root), sources...)
	return runLogged(exec.CommandContext(ctx, "mmdebstrap", args...), log)
}

// BuildRoot returns the root directory of a Debian release with the packages installed,
// made first if the cache has none. Nothing may be changed in it: users mount something
// over it.
func BuildRoot(ctx context.Context, name, suite string, packages []string, log io.Writer) (string, error) {
	key := cache.NewKey()
	key.Add("suite", []byte(suite))
	key.Add("packages", []byte(strings.Join(packages, " ")))
	dir, err := cache.Build(ctx, "root-"+name, key.String(), func(ctx context.Context, dir string) error {
		fmt.Fprintf(log, "lab: installing Debian %s for %s (some minutes)\n", suite, name)
		return installRoot(ctx, filepath.Join(dir, "root"), suite, "apt", packages, log)
	})
	if err != nil {
		return "", err
	}
	return filepath.Join(dir, "root"), nil
}

// withoutPockets has the releases of which only the archive proper is used, and why.
var withoutPockets = map[string]string{
	"sid":      "it has no others",
	"bullseye": "mirrors have lost parts of the others since their support ended",
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
		if pocket != "" && withoutPockets[suite] != "" {
			continue
		}
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

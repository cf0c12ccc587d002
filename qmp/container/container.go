// SPDX-License-Identifier: Apache-2.0

// Package container knows containers by the control groups that their runtimes make.
package container

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Container is what a control group's path says of a container. The zero value: the
// process is in none that is known.
type Container struct {
	// Runtime is what made the container: "docker", "podman", "cri-o", "containerd",
	// "systemd-nspawn" or "lxc"; empty if the path does not say.
	Runtime string
	// ID is the container's id, of 64 hexadecimal digits, or the name that an
	// operator gave it where the runtime has no ids.
	ID string
}

// patterns are names of control groups by which the runtimes call theirs, with
// systemd and without. The last group is the id.
var patterns = []struct {
	runtime string
	pattern *regexp.Regexp
}{
	{"docker", regexp.MustCompile(`^docker-([0-9a-f]{64})\.scope$`)},
	{"podman", regexp.MustCompile(`^libpod-([0-9a-f]{64})(?:\.scope)?$`)},
	{"cri-o", regexp.MustCompile(`^crio-([0-9a-f]{64})(?:\.scope)?$`)},
	{"containerd", regexp.MustCompile(`^cri-containerd-([0-9a-f]{64})\.scope$`)},
	{"systemd-nspawn", regexp.MustCompile(`^systemd-nspawn@(.+)\.service$`)},
	{"systemd-nspawn", regexp.MustCompile(`^machine-(.+)\.scope$`)},
	{"lxc", regexp.MustCompile(`^lxc\.payload\.(.+)$`)},
}

var (
	id64       = regexp.MustCompile(`^[0-9a-f]{64}$`)
	unitEscape = regexp.MustCompile(`\\x[0-9a-f]{2}`)
)

// Of returns the innermost container of a control group's path.
func Of(path string) Container {
	names := strings.Split(path, "/")
	for i := len(names) - 1; i > 0; i-- {
		name, above := names[i], names[i-1]
		for _, p := range patterns {
			m := p.pattern.FindStringSubmatch(name)
			if m == nil {
				continue
			}
			id := m[1]
			if p.runtime == "systemd-nspawn" {
				id = unescapeUnit(id)
			}
			return Container{Runtime: p.runtime, ID: id}
		}
		switch {
		case above == "docker" && id64.MatchString(name):
			return Container{Runtime: "docker", ID: name}
		case (above == "lxc" || above == "lxc.payload") && name != "":
			return Container{Runtime: "lxc", ID: name}
		case id64.MatchString(name):
			return Container{ID: name} // below kubepods, say
		}
	}
	return Container{}
}

// unescapeUnit undoes systemd's escapes in a unit's name, of which a machine's name
// needs only the numeric ones.
func unescapeUnit(name string) string {
	return unitEscape.ReplaceAllStringFunc(name, func(s string) string {
		const hex, bits = 16, 8
		c, err := strconv.ParseUint(s[2:], hex, bits)
		if err != nil {
			return s
		}
		return string([]byte{byte(c)})
	})
}

const (
	// minID is how many digits of an id are enough to name a container: what runtimes
	// show of it.
	minID = 12
	// MaxPrefixes is how many [Prefixes] there are at most.
	MaxPrefixes = 19
)

var idPart = regexp.MustCompile(`^[0-9a-f]{` + strconv.Itoa(minID) + `,64}$`)

// Prefixes returns what may follow a slash in the path of a control group, whatever comes
// after it, of a process that is in the container of that id or name: of an id at least the
// first 12 digits. The path's end is a NUL. Of containers in containers it tells all, not
// only the innermost.
func Prefixes(id string) ([]string, error) {
	if id == "" || strings.ContainsAny(id, "/\x00") {
		return nil, fmt.Errorf("container %q: no container has such an id or name", id)
	}
	var all []string
	if idPart.MatchString(id) {
		for _, of := range []string{"docker-", "libpod-", "crio-", "cri-containerd-", ""} {
			all = append(all, of+id)
		}
	}
	names := []string{"lxc.payload." + id, "lxc.payload/" + id, "lxc/" + id}
	for _, machine := range slices.Compact([]string{id, strings.ReplaceAll(id, "-", `\x2d`)}) {
		names = append(names, "systemd-nspawn@"+machine+".service", "machine-"+machine+".scope")
	}
	for _, name := range names {
		all = append(all, name+"/", name+"\x00")
	}
	return all, nil
}

// SPDX-License-Identifier: Apache-2.0

package layout

import (
	"regexp"
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

// containerPatterns are names of control groups by which the runtimes call theirs, with
// systemd and without. The last group is the id.
var containerPatterns = []struct {
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
	containerID = regexp.MustCompile(`^[0-9a-f]{64}$`)
	unitEscape  = regexp.MustCompile(`\\x[0-9a-f]{2}`)
)

// containerOf returns the innermost container of a control group's path.
func containerOf(path string) Container {
	names := strings.Split(path, "/")
	for i := len(names) - 1; i > 0; i-- {
		name, above := names[i], names[i-1]
		for _, p := range containerPatterns {
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
		case above == "docker" && containerID.MatchString(name):
			return Container{Runtime: "docker", ID: name}
		case (above == "lxc" || above == "lxc.payload") && name != "":
			return Container{Runtime: "lxc", ID: name}
		case containerID.MatchString(name):
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

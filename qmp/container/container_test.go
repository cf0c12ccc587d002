// SPDX-License-Identifier: Apache-2.0

package container

import (
	"slices"
	"strings"
	"testing"
)

func TestOf(t *testing.T) {
	id := strings.Repeat("0f", 32)
	other := strings.Repeat("a1", 32)
	for path, want := range map[string]Container{
		"/":                                     {},
		"/init.scope":                           {},
		"/user.slice/user-0.slice":              {},
		"/docker/" + id:                         {"docker", id},
		"/docker/" + id + "/init":               {"docker", id},
		"/system.slice/docker-" + id + ".scope": {"docker", id},
		"/system.slice/docker-" + id + ".scope/system.slice/docker-" + other + ".scope": {"docker", other},
		"/system.slice/docker-" + id[1:] + ".scope":                                     {},
		"/system.slice/docker.service":                                                  {},
		"/machine.slice/libpod-" + id + ".scope/container":                              {"podman", id},
		"/machine.slice/libpod-conmon-" + id + ".scope":                                 {},
		"/libpod_parent/libpod-" + id:                                                   {"podman", id},
		"/kubepods.slice/kubepods-pod1.slice/crio-" + id + ".scope":                     {"cri-o", id},
		"/kubepods.slice/kubepods-pod1.slice/crio-conmon-" + id + ".scope":              {},
		"/kubepods.slice/kubepods-pod1.slice/cri-containerd-" + id + ".scope":           {"containerd", id},
		"/kubepods/besteffort/pod12/" + id:                                              {"", id},
		"/machine.slice/systemd-nspawn@web.service/payload/init.scope":                  {"systemd-nspawn", "web"},
		`/machine.slice/systemd-nspawn@web\x2d1.service`:                                {"systemd-nspawn", "web-1"},
		`/machine.slice/machine-web\x2d1.scope`:                                         {"systemd-nspawn", "web-1"},
		"/lxc/db/system.slice":                                                          {"lxc", "db"},
		"/lxc.payload.db/init.scope":                                                    {"lxc", "db"},
		"/lxc.monitor.db":                                                               {},
	} {
		if got := Of(path); got != want {
			t.Errorf("%s: %+v, want %+v", path, got, want)
		}
	}
}

// A container is found in a path by the id and by the name that the path says.
func TestPrefixes(t *testing.T) {
	id := strings.Repeat("0f", 32)
	for path, is := range map[string][]string{
		"/":                            nil,
		"/docker/" + id:                {id, id[:12]},
		"/docker/" + id + "/init":      {id, id[:12]},
		"/a/docker-" + id + ".scope/b": {id, id[:12]},
		"/machine.slice/libpod-" + id + ".scope/container":                         {id, id[:20]},
		"/kubepods.slice/crio-" + id + ".scope":                                    {id},
		"/kubepods.slice/kubepods-pod1.slice/cri-containerd-" + id + ".scope":      {id},
		"/kubepods/besteffort/pod12/" + id:                                         {id},
		"/machine.slice/systemd-nspawn@web.service/payload/init.scope":             {"web"},
		`/machine.slice/systemd-nspawn@web\x2d1.service`:                           {"web-1"},
		`/machine.slice/machine-web\x2d1.scope`:                                    {"web-1"},
		"/lxc/db/system.slice":                                                     {"db"},
		"/lxc.payload.db/docker/" + id:                                             {"db", id},
		"/lxc.payload/db":                                                          {"db"},
		"/lxc.monitor.db":                                                          nil,
		"/system.slice/docker-" + strings.Repeat("a1", 32) + ".scope/system.slice": {strings.Repeat("a1", 32)},
	} {
		for _, of := range []string{id, id[:12], id[:20], strings.Repeat("a1", 32), "web", "web-1", "we", "db", "d"} {
			prefixes, err := Prefixes(of)
			if err != nil || len(prefixes) > MaxPrefixes {
				t.Fatalf("%q: %d prefixes: %v", of, len(prefixes), err)
			}
			got := false
			for at := range path {
				for _, prefix := range prefixes {
					got = got || path[at] == '/' && strings.HasPrefix(path[at+1:]+"\x00", prefix)
				}
			}
			if want := slices.Contains(is, of) || slices.ContainsFunc(is, func(s string) bool {
				return len(s) == 64 && len(of) >= 12 && strings.HasPrefix(s, of)
			}); got != want {
				t.Errorf("%s is of %q: %v, want %v", path, of, got, want)
			}
		}
	}
	for _, bad := range []string{"", "a/b", "a\x00"} {
		if _, err := Prefixes(bad); err == nil {
			t.Errorf("%q: no error", bad)
		}
	}
}

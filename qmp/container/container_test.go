// SPDX-License-Identifier: Apache-2.0

package container

import (
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

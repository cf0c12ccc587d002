// SPDX-License-Identifier: Apache-2.0

package layout

import (
	"strings"
	"testing"
)

func TestContainerOf(t *testing.T) {
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
		if got := containerOf(path); got != want {
			t.Errorf("%s: %+v, want %+v", path, got, want)
		}
	}
}

// States are those of include/linux/sched.h.
func TestStateLetter(t *testing.T) {
	for _, tt := range []struct {
		state, exit uint64
		want        byte
	}{
		{0, 0, 'R'}, {1, 0, 'S'}, {2, 0, 'D'}, {0x102, 0, 'D'}, {4, 0, 'T'}, {0x104, 0, 'T'}, {8, 0, 't'}, {0x80, 0x10, 'X'},
		{0x80, 0x20, 'Z'}, {0x40, 0, 'P'}, {0x402, 0, 'I'}, {0x1000, 0, 'D'}, {0x8000, 0, 'D'}, {0x200, 0, 'R'},
		{1<<64 - 1, 1<<64 - 1, 'D'}, {0xf7f, 0, 'I'},
	} {
		if got := stateLetter(tt.state, tt.exit); got != tt.want {
			t.Errorf("state %#x, exit state %#x: %c, want %c", tt.state, tt.exit, got, tt.want)
		}
	}
}

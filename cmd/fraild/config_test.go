// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"
)

func TestParseConfig(t *testing.T) {
	for _, test := range []struct {
		name, text string
		// want is part of the error; empty: no error.
		want string
	}{
		{"empty file", "", ""},
		{"every kind of value", "[libvirt]\nuri = \"qemu:///session\"\n[trace]\nring_bytes = 65536\n[guest]\nresolve_timeout = \"1s\"\n[log]\nlevel = \"debug\"\n", ""},
		{"unknown key in a section", "[trace]\nring_bytes = 65536\n\nring_size = 3\n", `line 4: unknown key "trace.ring_size"`},
		{"unknown section", "[libvirt]\nuri = \"x\"\n[libvrit]\nuri = \"y\"\n", `line 3: unknown key "libvrit"`},
		{"unknown key at top level", "# c\nuri = \"x\"\n", `line 2: unknown key "uri"`},
		{"unknown quoted key", "[log]\n\"a \\\"b\" = 1\n", `line 2: unknown key`},
		{"unknown array of tables", "[[trce]]\nx = 1\n", `line 1: unknown key "trce"`},
		{"not toml", "[log]\nlevel\n", "line 2"},
		{"wrong type", "[trace]\nmax_sessions = \"many\"\n", `line 2 (last key "trace.max_sessions")`},
		{"bad level", "[log]\nlevel = \"loud\"\n", `line 2 (last key "log.level")`},
		{"negative duration", "[guest]\nresolve_timeout = \"-1s\"\n", "not above zero"},
		{"ring not a power of two", "[trace]\nring_bytes = 100000\n", "power of two"},
		{"ring too large", "[trace]\nring_bytes = 2147483648\n", "power of two"},
		{"no sessions", "[trace]\nmax_sessions = 0\n", "not in 1 to 1024"},
		{"relative socket", "[api]\nsocket = \"frail.sock\"\n", "not an absolute path"},
		{"metrics at a socket", "[metrics]\nlisten = \"unix:/run/frail/metrics.sock\"\n", ""},
		{"metrics at a port", "[metrics]\nlisten = \"127.0.0.1:9472\"\n", ""},
		{"metrics at a port of IPv6", "[metrics]\nlisten = \"[::1]:9472\"\n", ""},
		{"metrics nowhere", "[metrics]\nlisten = \"\"\n", ""},
		{"metrics for everybody", "[metrics]\nlisten = \"0.0.0.0:9472\"\n", `line 2 (last key "metrics.listen"): "0.0.0.0:9472": 0.0.0.0 is not a loopback address: nothing asks a client who it is`},
		{"metrics at another address", "[metrics]\nlisten = \"[2001:db8::1]:9472\"\n", "2001:db8::1 is not a loopback address"},
		{"metrics at all of IPv6", "[metrics]\nlisten = \"[::]:9472\"\n", ":: is not a loopback address"},
		{"metrics at a port alone", "[metrics]\nlisten = \":9472\"\n", "neither"},
		{"metrics at a name", "[metrics]\nlisten = \"localhost:9472\"\n", "neither"},
		{"metrics without a port", "[metrics]\nlisten = \"127.0.0.1\"\n", "neither"},
		{"metrics at port 0", "[metrics]\nlisten = \"127.0.0.1:0\"\n", "port 0"},
		{"metrics at a relative path", "[metrics]\nlisten = \"unix:metrics.sock\"\n", `"metrics.sock" is not an absolute path`},
		{"metrics at the API's socket", "[metrics]\nlisten = \"unix:/run/frail/frail.sock\"\n", "metrics.listen: /run/frail/frail.sock is another socket"},
		{"empty uri", "[libvirt]\nuri = \"\"\n", "libvirt.uri is empty"},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := parseConfig(test.text)
			switch {
			case test.want == "" && err != nil:
				t.Fatal("unexpected error:", err)
			case test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)):
				t.Fatalf("error is %v, want one with %q", err, test.want)
			}
		})
	}
}

func TestLoadConfig(t *testing.T) {
	path := filepath.Join(t.TempDir(), "frail.toml")
	if _, err := loadConfig(path, true); err == nil {
		t.Error("a file asked for and missing is no error")
	}
	c, err := loadConfig(path, false)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(c, defaultConfig()) {
		t.Errorf("without a file the configuration is %+v", c)
	}
	if err := os.WriteFile(path, []byte("[guest]\nresolve_timeout = \"2ms\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if c, err = loadConfig(path, false); err != nil {
		t.Fatal(err)
	}
	if got := time.Duration(c.Guest.ResolveTimeout); got != 2*time.Millisecond {
		t.Errorf("resolve_timeout is %s", got)
	}
	if err := os.WriteFile(path, make([]byte, maxConfigBytes+1), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := loadConfig(path, false); err == nil || !strings.Contains(err.Error(), "larger than") {
		t.Errorf("error for a huge file is %v", err)
	}
}

// The shipped file shows every key with its default.
func TestShippedConfig(t *testing.T) {
	text, err := os.ReadFile("../../packaging/frail.toml")
	if err != nil {
		t.Fatal(err)
	}
	active := regexp.MustCompile(`(?m)^#([a-z_]+ = )`).ReplaceAllString(string(text), "$1")
	c, err := parseConfig(active)
	if err != nil {
		t.Fatal(err)
	}
	if want := defaultConfig(); !reflect.DeepEqual(c, want) {
		t.Errorf("shipped file says\n%+v, defaults are\n%+v", c, want)
	}
	typ := reflect.TypeFor[config]()
	for i := range typ.NumField() {
		section := typ.Field(i)
		for j := range section.Type.NumField() {
			key := section.Type.Field(j).Tag.Get("toml")
			if !regexp.MustCompile(`(?m)^` + key + ` = `).MatchString(active) {
				t.Errorf("%s.%s is not in the shipped file", section.Tag.Get("toml"), key)
			}
		}
	}
}

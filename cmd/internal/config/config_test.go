// SPDX-License-Identifier: Apache-2.0

package config

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	"frail/packaging"
)

// write writes files below a new directory and returns the path of frail.toml in it.
func write(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return filepath.Join(dir, "frail.toml")
}

func TestMistakes(t *testing.T) {
	for _, test := range []struct {
		name, text string
		// want are the errors without the file's path; empty: none.
		want []string
	}{
		{"empty file", "", nil},
		{"every kind of value", "[libvirt]\nuri = \"qemu:///session\"\n[trace]\nring_bytes = 65536\n[guest]\nresolve_timeout = \"1s\"\n" +
			"[sequence]\nlearn = false\nnormal_wait = \"2w\"\n[log]\nlevel = \"debug\"\n", nil},
		{"dotted keys and inline tables", "log.level = \"warn\"\nlibvirt = {uri = \"x\"}\n", nil},
		{"unknown key in a section", "[trace]\nring_bytes = 65536\n\nring_size = 3\n", []string{":4: trace.ring_size: unknown key"}},
		{"a key in capitals", "[libvirt]\nURI = \"x\"\n", []string{":2: libvirt.URI: unknown key"}},
		{"unknown section", "[libvirt]\nuri = \"x\"\n[libvrit]\nuri = \"y\"\n", []string{":3: libvrit: unknown key"}},
		{"unknown key at top level", "# c\nuri = \"x\"\n", []string{":2: uri: unknown key"}},
		{"unknown quoted key", "[log]\n\"a \\\"b\" = 1\n", []string{`:2: log."a \"b": unknown key`}},
		{"keys that are none in Go", "[log]\n\"-\" = 1\n\"a,b\" = 2\n", []string{":2: log.-: unknown key", ":3: log.\"a,b\": unknown key"}},
		{"unknown dotted key", "\nlog.levle = 1\nlgo.level = 2\nlgo.file = 3\n", []string{":2: log.levle: unknown key", ":3: lgo: unknown key"}},
		{"many tables below an unknown one", "[x.y.z]\n[x.y.a]\nb = {c = 1}\n", []string{":1: x: unknown key"}},
		{"unknown array of tables", "[[trce]]\nx = 1\n", []string{":1: trce: unknown key"}},
		{"array of tables", "[[trace]]\nmax_sessions = 1\n", []string{":1: trace: is a section"}},
		{"section as a value", "log = \"debug\"\n", []string{":1: log: is a section"}},
		{"table in place of a value", "[log.level]\nx = 1\n", []string{":1: log.level: "}},
		{"table below a section", "[log]\n[log.more]\nx = 1\n", []string{":2: log.more: unknown key"}},
		{"not toml", "[log]\nlevel\n", []string{":2: "}},
		{"wrong type", "[trace]\nmax_sessions = \"many\"\n", []string{":2: trace.max_sessions: incompatible types"}},
		{"bad level", "[log]\nlevel = \"loud\"\n", []string{":2: log.level: \"loud\" is not debug, info, warn or error"}},
		{"negative duration", "[guest]\nresolve_timeout = \"-1s\"\n", []string{":2: guest.resolve_timeout: duration -1s is not above zero"}},
		{"a number as duration", "[guest]\nresolve_timeout = 5\n", []string{":2: guest.resolve_timeout: time: missing unit"}},
		{"ring not a power of two", "[trace]\nring_bytes = 100000\n", []string{":2: trace.ring_bytes: 100000 is not a power of two"}},
		{"ring too large", "[trace]\nring_bytes = 2147483648\n", []string{":2: trace.ring_bytes: 2147483648 is not a power of two"}},
		{"no sessions", "[trace]\nmax_sessions = 0\n", []string{":2: trace.max_sessions: 0 is not in 1 to 1024"}},
		{"relative socket", "\n[api]\nsocket = \"frail.sock\"\n", []string{`:3: api.socket: "frail.sock" is not an absolute path`}},
		{"metrics at a socket", "[metrics]\nlisten = \"unix:/run/frail/metrics.sock\"\n", nil},
		{"metrics at a port", "[metrics]\nlisten = \"127.0.0.1:9472\"\n", nil},
		{"metrics at a port of IPv6", "[metrics]\nlisten = \"[::1]:9472\"\n", nil},
		{"metrics nowhere", "[metrics]\nlisten = \"\"\n", nil},
		{"metrics for everybody", "[metrics]\nlisten = \"0.0.0.0:9472\"\n",
			[]string{`:2: metrics.listen: "0.0.0.0:9472": 0.0.0.0 is not a loopback address: nothing asks a client who it is`}},
		{"metrics at another address", "[metrics]\nlisten = \"[2001:db8::1]:9472\"\n", []string{`:2: metrics.listen: "[2001:db8::1]:9472": 2001:db8::1 is not a loopback address`}},
		{"metrics at all of IPv6", "[metrics]\nlisten = \"[::]:9472\"\n", []string{`:2: metrics.listen: "[::]:9472": :: is not a loopback address`}},
		{"metrics at a port alone", "[metrics]\nlisten = \":9472\"\n", []string{`:2: metrics.listen: ":9472" is neither`}},
		{"metrics at a name", "[metrics]\nlisten = \"localhost:9472\"\n", []string{`:2: metrics.listen: "localhost:9472" is neither`}},
		{"metrics without a port", "[metrics]\nlisten = \"127.0.0.1\"\n", []string{`:2: metrics.listen: "127.0.0.1" is neither`}},
		{"metrics at port 0", "[metrics]\nlisten = \"127.0.0.1:0\"\n", []string{`:2: metrics.listen: "127.0.0.1:0": no client would know port 0`}},
		{"metrics at a relative path", "[metrics]\nlisten = \"unix:metrics.sock\"\n", []string{`:2: metrics.listen: "unix:metrics.sock": "metrics.sock" is not an absolute path`}},
		{"metrics at the API's socket", "[metrics]\nlisten = \"unix:/run/frail/frail.sock\"\n", []string{":2: metrics.listen: /run/frail/frail.sock is another socket"}},
		{"empty uri", "[libvirt]\nuri = \"\"\n", []string{":2: libvirt.uri: is empty"}},
		{"several", "[trace]\nmax_sessions = 0\nring = 1\n[log]\nlevel = 3\n[x]\n", []string{
			":2: trace.max_sessions: 0 is not", ":3: trace.ring: unknown key", ":5: log.level: \"3\" is not debug", ":6: x: unknown key"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			path := write(t, map[string]string{"frail.toml": test.text})
			_, err := Load(path, true)
			if len(test.want) == 0 {
				if err != nil {
					t.Fatal("unexpected error:", err)
				}
				return
			}
			if err == nil {
				t.Fatalf("no error, want %q", test.want)
			}
			lines := strings.Split(err.Error(), "\n")
			if len(lines) != len(test.want) {
				t.Fatalf("errors are\n%s\nwant %q", err, test.want)
			}
			for i, line := range lines {
				if !strings.HasPrefix(line, path+test.want[i]) {
					t.Errorf("error is %q, want it to begin with %q", line, path+test.want[i])
				}
			}
		})
	}
}

// What a later file says of a key counts, and only that.
func TestDropIns(t *testing.T) {
	path := write(t, map[string]string{
		"frail.toml":            "[trace]\nmax_sessions = 1\nring_bytes = 65536\n[log]\nlevel = \"warn\"\n",
		"conf.d/10-a.toml":      "[trace]\nmax_sessions = 2\n",
		"conf.d/9-b.toml":       "# after 10-a: in the order of characters\n\n[trace]\nmax_sessions = 3\n",
		"conf.d/zz.toml.bak":    "no toml\n",
		"conf.d/.hidden.toml":   "no toml\n",
		"conf.d/dir/other.toml": "no toml\n",
	})
	l, err := Load(path, true)
	if err != nil {
		t.Fatal(err)
	}
	want := Default()
	want.Trace.MaxSessions, want.Trace.RingBytes, want.Log.Level = 3, 65536, Level(slog.LevelWarn)
	if !reflect.DeepEqual(l.Config, want) {
		t.Errorf("got %+v, want %+v", l.Config, want)
	}
	dir := filepath.Join(filepath.Dir(path), "conf.d")
	if files := []string{path, filepath.Join(dir, "10-a.toml"), filepath.Join(dir, "9-b.toml")}; !reflect.DeepEqual(l.Files, files) {
		t.Errorf("read %q, want %q", l.Files, files)
	}

	// As text it says where each value is from, and is a configuration of the same values.
	var text bytes.Buffer
	if err := l.WriteTOML(&text); err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{
		"max_sessions = 3 # " + filepath.Join(dir, "9-b.toml") + ":4\n",
		"ring_bytes = 65536 # " + path + ":3\n",
		"level = \"warn\" # " + path + ":5\n",
		"normal_wait = \"7d\" # default\n", "resolve_timeout = \"5m\" # default\n", "uri = \"qemu:///system\" # default\n",
	} {
		if !strings.Contains(text.String(), line) {
			t.Errorf("no line %q in\n%s", line, text.String())
		}
	}
	again, err := Load(write(t, map[string]string{"frail.toml": text.String()}), true)
	if err != nil || !reflect.DeepEqual(again.Config, want) {
		t.Errorf("read again: %v\n%s", err, text.String())
	}
	var doc struct {
		Files  []string
		Values map[string]struct {
			Value any
			File  string
			Line  int
		}
	}
	js, err := json.Marshal(l)
	if err == nil {
		err = json.Unmarshal(js, &doc)
	}
	if err != nil {
		t.Fatal(err)
	}
	if v := doc.Values["trace.max_sessions"]; v.Value != 3.0 || v.Line != 4 || len(doc.Files) != 3 || len(doc.Values) != len(want.fields()) {
		t.Errorf("as JSON: %s", js)
	}
	if v := doc.Values["sequence.normal_wait"]; v.Value != "7d" || v.File != "" {
		t.Errorf("as JSON the default is %+v", v)
	}

	// Mistakes of all files are told; a value out of bounds is the fault of the last one.
	for name, text := range map[string]string{"conf.d/10-a.toml": "[trace]\nx = 1\n", "conf.d/9-b.toml": "[trace]\nmax_sessions = 0\n", "frail.toml": "[trace]\nmax_sessions = -1\n"} {
		if err := os.WriteFile(filepath.Join(filepath.Dir(path), name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	_, err = Load(path, true)
	if want := filepath.Join(dir, "10-a.toml") + ":2: trace.x: unknown key\n" +
		filepath.Join(dir, "9-b.toml") + ":2: trace.max_sessions: 0 is not in 1 to 1024"; err == nil || err.Error() != want {
		t.Errorf("errors are\n%v\nwant\n%s", err, want)
	}
}

func TestLoad(t *testing.T) {
	path := write(t, nil)
	if _, err := Load(path, true); err == nil || err.Error() != path+": no such file or directory" {
		t.Errorf("for a file asked for and missing the error is %v", err)
	}
	l, err := Load(path, false)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(l.Config, Default()) || len(l.Files) != 0 {
		t.Errorf("without a file the configuration is %+v of %q", l.Config, l.Files)
	}
	path = write(t, map[string]string{"conf.d/a.toml": "[guest]\nresolve_timeout = \"2ms\"\n"})
	if l, err = Load(path, false); err != nil {
		t.Fatal(err)
	}
	if got := time.Duration(l.Guest.ResolveTimeout); got != 2*time.Millisecond {
		t.Errorf("resolve_timeout is %s", got)
	}
	path = write(t, map[string]string{"frail.toml": string(make([]byte, maxFileBytes+1)), "conf.d/d.toml/x": ""})
	_, err = Load(path, false)
	if mistakes, ok := errors.AsType[Errors](err); !ok || len(mistakes) != 2 || !strings.Contains(err.Error(), "larger than") ||
		!strings.Contains(err.Error(), "d.toml: is a directory") {
		t.Errorf("for a huge file and a directory the error is %v", err)
	}
}

// active is the shipped file with every key active.
var active = regexp.MustCompile(`(?m)^#([a-z_]+ = )`).ReplaceAllString(packaging.Config, "$1")

// The shipped file shows every key with its default.
func TestShipped(t *testing.T) {
	l, err := Load(write(t, map[string]string{"frail.toml": active}), true)
	if err != nil {
		t.Fatal(err)
	}
	if want := Default(); !reflect.DeepEqual(l.Config, want) {
		t.Errorf("shipped file says\n%+v, defaults are\n%+v", l.Config, want)
	}
	for _, f := range l.fields() {
		if _, ok := l.origin[f.name()]; !ok {
			t.Errorf("%s is not in the shipped file", f.name())
		}
	}
}

// Whatever is in a file, it is read or every mistake in it has its place.
func FuzzParse(f *testing.F) {
	f.Add("[trace]\nring_bytes = 65536\n[guest]\nresolve_timeout = \"1s\"\n[sequence]\nlearn = false\n")
	f.Add("[log]\nlevel = 3\n\"\" = 1\n[[trace]]\n[a.b.\"c\"]\nx.y = {z = [1]}\n")
	f.Fuzz(func(t *testing.T, text string) {
		l := &Loaded{Config: Default(), origin: make(map[string]place)}
		err := l.parse("f", text)
		if err == nil {
			return
		}
		mistakes, ok := errors.AsType[Errors](err)
		if !ok || len(mistakes) == 0 {
			t.Fatalf("%q: error %v", text, err)
		}
		for _, m := range mistakes {
			if m.File != "f" || m.Message == "" {
				t.Errorf("%q: %+v", text, m)
			}
		}
	})
}

var update = flag.Bool("update", false, "write docs/configuration.md")

// docs/configuration.md has what the shipped file says of every key.
func TestDocument(t *testing.T) {
	const path = "../../../docs/configuration.md"
	want := "# Configuration\n\n<!-- Code generated from packaging/frail.toml by make generate. DO NOT EDIT. -->\n\n" + Markdown()
	if *update {
		if err := os.WriteFile(path, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != want {
		t.Error("docs/configuration.md is not what packaging/frail.toml says: make generate")
	}
	// Every key has a text of its own, or of the keys it stands with.
	section := ""
	documented := make(map[string]bool)
	paragraphs := strings.Split(string(got), "\n\n")
	for i, p := range paragraphs {
		if name, ok := strings.CutPrefix(p, "## ["); ok {
			section = strings.Trim(name, "]\n")
		}
		for line := range strings.Lines(p) {
			key, _, ok := strings.Cut(line, " = ")
			if key, is := strings.CutPrefix(key, "    "); ok && is && i+1 < len(paragraphs) {
				next := paragraphs[i+1]
				documented[section+"."+key] = next != "" && !strings.HasPrefix(next, "#") && !strings.HasPrefix(next, " ")
			}
		}
	}
	for _, f := range Default().fields() {
		if !documented[f.name()] {
			t.Errorf("%s has no text", f.name())
		}
	}
}

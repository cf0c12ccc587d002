// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"frail/hooks"
	"frail/hooks/handover"
)

// hookEnv makes the test binary the hook itself.
const hookEnv = "FRAIL_TEST_HOOK"

func TestMain(m *testing.M) {
	if os.Getenv(hookEnv) != "" {
		main()
	}
	os.Exit(m.Run())
}

func TestNamespaceIsTheOneOfHooks(t *testing.T) {
	if namespaceURI != hooks.NamespaceURI {
		t.Errorf("the hook looks for %q, hooks for %q", namespaceURI, hooks.NamespaceURI)
	}
	if socketPath != hooks.DefaultHookSocket {
		t.Errorf("the hook sends to %q, hooks listens at %q", socketPath, hooks.DefaultHookSocket)
	}
}

func TestRunHandsOver(t *testing.T) {
	path := filepath.Join(t.TempDir(), "hook.sock")
	l, err := handover.Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for _, test := range []struct {
		name string
		xml  io.Reader
		want string
	}{
		{"with its XML", strings.NewReader("<domain/>"), "<domain/>"},
		{"without", strings.NewReader(""), ""},
		{"with too much", strings.NewReader(strings.Repeat(" ", maxXML+1)), ""},
		{"with a broken pipe", io.MultiReader(strings.NewReader("<domain"), broken{}), ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			if err := run([]string{"vm", "started", "begin", "-"}, test.xml, path); err != nil {
				t.Fatal(err)
			}
			got, err := l.Receive()
			want := handover.Message{Guest: "vm", Op: "started", SubOp: "begin", Extra: "-", XML: test.want}
			if err != nil || got != want {
				t.Errorf("got %.100v, %v, want %v", got, err, want)
			}
		})
	}
}

// broken is a reader that fails.
type broken struct{}

func (broken) Read([]byte) (int, error) { return 0, errors.New("broken") }

func TestRunComplainsOnlyWhereItMatters(t *testing.T) {
	const enabled = `<domain><metadata><f:frail xmlns:f="urn:frail:domain:1.0"/></metadata></domain>`
	nobody := filepath.Join(t.TempDir(), "hook.sock")
	for _, test := range []struct {
		name, op, xml string
		complains     bool
	}{
		{"an enabled domain has started", "started", enabled, true},
		{"an enabled domain is prepared", "prepare", enabled, false},
		{"a plain domain has started", "started", "<domain/>", false},
	} {
		t.Run(test.name, func(t *testing.T) {
			err := run([]string{"vm", test.op, "begin", "-"}, strings.NewReader(test.xml), nobody)
			if (err != nil) != test.complains {
				t.Errorf("got %v, want a complaint: %v", err, test.complains)
			}
		})
	}
}

func TestHookAlwaysExitsWithZero(t *testing.T) {
	for _, test := range []struct {
		name  string
		args  []string
		stdin func() io.Reader
	}{
		{"as libvirt calls it", []string{"vm", "started", "begin", "-"}, func() io.Reader { return strings.NewReader("<domain/>") }},
		{"without arguments", nil, func() io.Reader { return strings.NewReader("") }},
		{"without a guest", []string{"", "", "", ""}, func() io.Reader { return strings.NewReader("") }},
		{"with a standard input that never ends", []string{"vm", "started", "begin", "-"}, func() io.Reader {
			r, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { r.Close(); w.Close() })
			return r
		}},
		{"with a closed standard input", []string{"vm", "started", "begin", "-"}, func() io.Reader { return nil }},
	} {
		t.Run(test.name, func(t *testing.T) {
			cmd := exec.Command("/proc/self/exe", test.args...)
			cmd.Env = []string{hookEnv + "=1"}
			cmd.Stdin = test.stdin()
			start := time.Now()
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Errorf("the hook ended with %v: %s", err, out)
			}
			if took := time.Since(start); took > timeLimit+5*time.Second {
				t.Errorf("the hook took %s", took)
			}
		})
	}
}

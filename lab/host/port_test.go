// SPDX-License-Identifier: Apache-2.0

package host

import (
	"errors"
	"strings"
	"testing"
)

func TestReadPort(t *testing.T) {
	const log = "[ 0.1] a line\n"
	for name, tc := range map[string]struct {
		port, out, dmesg string
		status           int
		err              error
	}{
		"status":             {"noise\x01begin\none\ntwo\n\x01end 3\n" + log + "\x01done\n", "one\ntwo\n", log, 3, nil},
		"unfinished line":    {"\x01begin\none\x01end 0\n\x01done\n", "one", "", 0, nil},
		"mark in the output": {"\x01begin\na\x01b c\n\x01end 0\n\x01done\n", "a\x01b c\n", "", 0, nil},
		"no begin":           {"noise", "", "", 0, errNoStatus},
		"no end":             {"\x01begin\none\n", "one\n", "", 0, errNoStatus},
		"no log":             {"\x01begin\n\x01end 0\n" + log, "", log, 0, errNoStatus},
		"cut mark":           {"\x01begin\n\x01en", "", "", 0, errNoStatus},
		"second boot":        {"\x01begin\none\n\x01begin\n", "one\n", "", 0, errAgain},
	} {
		t.Run(name, func(t *testing.T) {
			var out, dmesg strings.Builder
			begun := 0
			status, err := readPort(strings.NewReader(tc.port), func() { begun++ }, &out, &dmesg)
			if !errors.Is(err, tc.err) || status != tc.status {
				t.Errorf("got %d, %v, want %d, %v", status, err, tc.status, tc.err)
			}
			if out.String() != tc.out || dmesg.String() != tc.dmesg {
				t.Errorf("got output %q and log %q, want %q and %q", &out, &dmesg, tc.out, tc.dmesg)
			}
			if want := strings.Contains(tc.port, "\x01begin\n"); (begun == 1) != want {
				t.Errorf("the begin was told %d times", begun)
			}
		})
	}
}

func TestWatchConsole(t *testing.T) {
	for console, want := range map[string]bool{
		"[ 1.0] fine\n": false,
		"":              false,
		"[ 2.0] Kernel panic - not syncing: oops\n[ 2.1] ---[ end Kernel panic - not syncing: oops ]---\n": true,
		strings.Repeat("x", 10000) + "\n[ 2.1] ---[ end Kernel panic ]---\n":                               true,
	} {
		var log strings.Builder
		if got := watchConsole(strings.NewReader(console), &log); got != want {
			t.Errorf("console %.80q: got %v, want %v", console, got, want)
		}
		if log.String() != console {
			t.Errorf("console %.80q: the log differs", console)
		}
	}
}

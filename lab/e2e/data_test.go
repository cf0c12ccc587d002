// SPDX-License-Identifier: Apache-2.0

//go:build lab

package e2e

import (
	"regexp"
	"slices"
	"strings"
	"testing"

	"frail/lab/vm"
)

// TestStrings checks what is shown of what arguments point to: all that a program passes and
// gets, as strace shows it, and nothing of memory that the program may not read itself.
func TestStrings(t *testing.T) {
	begin(t)
	both, entry := startGuest(t, "strings", traced), startGuest(t, "strings-entry", metadata(tracedEntry))
	for _, v := range []*vm.VM{both, entry} {
		waitGuest(t, v)
		waitTraced(t, v)
	}
	// What the program chose, or its kernel for it.
	address := regexp.MustCompile(`0x[0-9a-f]{5,}`)
	unknown := regexp.MustCompile(`nodename="[^"]*"|st_size=\d+`)
	const limit = "32"
	enters := []string{
		`openat(AT_FDCWD, "/no/such/place/across", O_RDONLY)`,
		`openat(AT_FDCWD, ADDRESS, O_RDONLY)`,
		`openat(AT_FDCWD, "/` + strings.Repeat("z", 254) + `"..., O_RDONLY)`,
		`openat(AT_FDCWD, 0x1000, O_RDONLY)`,
		`openat(AT_FDCWD, ADDRESS, O_RDONLY)`,
		`pipe2(ADDRESS, O_CLOEXEC)`,
		`write(4, "hello\0\1\n", 8)`,
		`read(3, ADDRESS, 512)`,
		`writev(4, [{iov_base="ab", iov_len=2}, {iov_base="01234567890123456789012345678901"..., iov_len=40}], 2)`,
		`nanosleep({tv_sec=0, tv_nsec=1000}, NULL)`,
		`uname(ADDRESS)`,
		`newfstatat(AT_FDCWD, "/", ADDRESS, 0)`,
		`execve("/nonexistent", ["a", "b c"], NULL)`,
		`write(1, "across=-2\ncut=-14\nlong=-36\nlow=-"..., 109)`,
	}
	left := []string{
		`pipe2([3, 4])`, `read("hello\0\1\n")`, `uname({sysname="Linux", nodename=?, ...})`,
		`newfstatat({st_mode=S_IFDIR|0755, st_size=?, ...})`,
	}
	for _, v := range []*vm.VM{both, entry} {
		t.Run(v.Name, func(t *testing.T) {
			tr := startTrace(t, v.Name, "--decode", "--string-limit", limit, "--filter-comm", "t-data", "--filter-syscall", "!mmap,munmap,exit_group")
			res := runIn(t, v, "t-data")
			records := tr.stop()
			if res.Status != 0 {
				t.Fatalf("t-data: status %d\n%s", res.Status, res.Output)
			}
			var gotEnters, gotLeft []string
			for _, r := range records {
				switch {
				case r.Type == recordEnter && r.Comm == "t-data":
					gotEnters = append(gotEnters, address.ReplaceAllString(r.Syscall+"("+r.Text+")", "ADDRESS"))
				case r.Type == recordExit && r.Left != "":
					gotLeft = append(gotLeft, unknown.ReplaceAllStringFunc(r.Syscall+r.Left, func(s string) string {
						name, _, _ := strings.Cut(s, "=")
						return name + "=?"
					}))
				}
			}
			if !slices.Equal(gotEnters, enters) {
				t.Errorf("calls:\n%s\nwant:\n%s", strings.Join(gotEnters, "\n"), strings.Join(enters, "\n"))
			}
			if !slices.Equal(gotLeft, left) {
				t.Errorf("left in memory:\n%s\nwant:\n%s", strings.Join(gotLeft, "\n"), strings.Join(left, "\n"))
			}
		})
	}

	t.Run("only where it is asked for", func(t *testing.T) {
		with := startTrace(t, both.Name, "--decode", "--filter-comm", "t-data", "--filter-syscall", "openat")
		without := startTrace(t, both.Name, "--string-limit", "0", "--filter-comm", "t-data", "--filter-syscall", "openat")
		failed := startTrace(t, both.Name, "--decode", "--filter-comm", "t-data", "--filter-error", "ENOENT")
		runIn(t, both, "t-data")
		for name, tc := range map[string]struct {
			tr         *trace
			data, text int
		}{"with": {with, 2, 2}, "without": {without, 0, 0}, "calls that fail": {failed, 2, 2}} {
			data, text := 0, 0
			for _, r := range tc.tr.stop() {
				if r.Type == recordEnter && len(r.Data) > 0 && !r.Data[0].Fault {
					data++
				}
				if r.Type == recordEnter && strings.Contains(r.Text, `"/`) {
					text++
				}
			}
			if data != tc.data || text != tc.text {
				t.Errorf("%s: %d calls with data, %d with a path, want %d and %d", name, data, text, tc.data, tc.text)
			}
		}
	})
}

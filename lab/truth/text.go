// SPDX-License-Identifier: Apache-2.0

package truth

import (
	"fmt"
	"strings"

	"frail/tracer/syscalls"
)

// String names the call. A guest's is named as one of the 64-bit table.
func (c *call) String() string {
	var b strings.Builder
	name := syscalls.Name(syscalls.Table(c.table), c.nr)
	if name == "" {
		name = fmt.Sprintf("syscall_%d", c.nr)
	}
	b.WriteString(name)
	for i, arg := range c.args {
		b.WriteString([]string{"(", ", "}[min(i, 1)])
		fmt.Fprintf(&b, "%#x", arg)
	}
	return b.String() + ")"
}

// contextCalls is how many calls are shown before a difference and from it on.
const contextCalls = 3

// context shows what both sides have around a difference, a call a line.
func context(guest []*call, gi int, host []*call, hi int) string {
	var b strings.Builder
	for _, side := range []struct {
		name  string
		calls []*call
		at    int
	}{{"guest", guest, gi}, {"host", host, hi}} {
		for i := max(0, side.at-contextCalls); i < min(len(side.calls), side.at+contextCalls); i++ {
			mark := ' '
			if i == side.at {
				mark = '>'
			}
			fmt.Fprintf(&b, "\n%c %-5s %6d  %v", mark, side.name, i, side.calls[i])
		}
		if side.at == len(side.calls) {
			fmt.Fprintf(&b, "\n> %-5s %6d  (the end)", side.name, side.at)
		}
	}
	return b.String()
}

// SPDX-License-Identifier: Apache-2.0

package main

import (
	"strings"
	"testing"
)

func TestWriteTable(t *testing.T) {
	for _, test := range []struct {
		name   string
		header []string
		rows   [][]string
		want   string
	}{
		{"header alone", []string{"Id", "Name"}, nil, " Id   Name\n------------\n"},
		{"rows alone", nil, [][]string{{"1", "a"}}, " 1   a\n"},
		{"wide cells", []string{"Id", "Name", "State"}, [][]string{{"10", "guest1", "traced"}, {"-", "ü", "shut off"}},
			" Id   Name     State\n-------------------------\n 10   guest1   traced\n -    ü        shut off\n"},
		{"control characters", nil, [][]string{{"\x1b[31mred\n", "\xff"}}, " \\x1b[31mred\\n   \\xff\n"},
	} {
		t.Run(test.name, func(t *testing.T) {
			var b strings.Builder
			if err := writeTable(&b, test.header, test.rows); err != nil {
				t.Fatal(err)
			}
			if b.String() != test.want {
				t.Errorf("table is\n%s, want\n%s", b.String(), test.want)
			}
		})
	}
}

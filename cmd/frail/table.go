// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"io"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// columnGap separates the columns of a table, as in virsh.
const columnGap = "   "

// writeTable prints rows in columns like virsh: with header, above a line of dashes. A nil
// header prints the rows alone. Every row has as many cells as the others.
func writeTable(w io.Writer, header []string, rows [][]string) error {
	var width []int
	measure := func(row []string) {
		for i, cell := range row {
			if i == len(width) {
				width = append(width, 0)
			}
			width[i] = max(width[i], utf8.RuneCountInString(printable(cell)))
		}
	}
	measure(header)
	for _, row := range rows {
		measure(row)
	}

	out := bufio.NewWriter(w)
	line := func(row []string) {
		var b strings.Builder
		for i, cell := range row {
			if i > 0 {
				b.WriteString(columnGap)
			} else {
				b.WriteByte(' ')
			}
			cell = printable(cell)
			b.WriteString(cell)
			b.WriteString(strings.Repeat(" ", width[i]-utf8.RuneCountInString(cell)))
		}
		out.WriteString(strings.TrimRight(b.String(), " "))
		out.WriteByte('\n')
	}
	if header != nil {
		line(header)
		total := 0
		for _, n := range width {
			total += n + len(columnGap)
		}
		out.WriteString(strings.Repeat("-", total))
		out.WriteByte('\n')
	}
	for _, row := range rows {
		line(row)
	}
	return out.Flush()
}

// printable returns s with everything escaped that a terminal would act on: names and
// reasons may come from a guest or from another user's XML.
func printable(s string) string {
	if strings.IndexFunc(s, func(r rune) bool { return r == utf8.RuneError || !unicode.IsPrint(r) }) < 0 {
		return s
	}
	q := strconv.Quote(s)
	return q[1 : len(q)-1]
}

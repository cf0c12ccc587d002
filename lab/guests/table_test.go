// SPDX-License-Identifier: Apache-2.0

package guests

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"frail/qmp"
	"frail/qmp/layout"
)

// outcome is what became of one boot.
type outcome struct {
	cell    cell
	machine machine
	release string // of the kernel, as Debian's package names it

	path        qmp.Path      // by which memory was read
	found       string        // by what the kernel was, and its symbols
	cold, known time.Duration // from nothing to a layout, and the same of a kernel met before
	open        time.Duration // until there was memory to read, of cold
	steps       layout.Timing // the rest of cold
	peak        uint64        // bytes: the most that the process had resident meanwhile
	symbols     int           // compared
	threads     int           // compared
	processes   int           // compared

	err error
}

// columns are the table's.
const columns = "| Debian | flavour | kernel | boots | symbols | threads | processes | cold, ms | known, ms | memory, find, kallsyms, BTF, checks, ms | read by | found by | peak RSS, MiB |"

// row is a line of the table: what the boots of one cell came to. Figures are those of
// the boots that succeeded.
func row(outcomes []*outcome) string {
	var good []*outcome
	for _, o := range outcomes {
		if o.err == nil {
			good = append(good, o)
		}
	}
	first := outcomes[0]
	head := fmt.Sprintf("%s %s | %d of %d", rowKey(first.cell), first.release, len(good), len(outcomes))
	if len(good) == 0 {
		return head + strings.Repeat(" | -", strings.Count(columns, "|")-strings.Count(head, "|")-1) + " |"
	}
	times := func(of func(*outcome) time.Duration) []float64 {
		var ms []float64
		for _, o := range good {
			ms = append(ms, of(o).Seconds()*1e3)
		}
		slices.Sort(ms)
		return ms
	}
	median := func(of func(*outcome) time.Duration) float64 {
		ms := times(of)
		return (ms[len(ms)/2] + ms[(len(ms)-1)/2]) / 2
	}
	spread := func(of func(*outcome) time.Duration) string {
		ms := times(of)
		return fmt.Sprintf("%.0f (max %.0f)", median(of), ms[len(ms)-1])
	}
	distinct := func(of func(*outcome) string) string {
		var all []string
		for _, o := range good {
			all = append(all, of(o))
		}
		slices.Sort(all)
		return strings.Join(slices.Compact(all), ", ")
	}
	threads, processes, peak := 0, 0, uint64(0)
	for _, o := range good {
		threads, processes, peak = threads+o.threads, processes+o.processes, max(peak, o.peak)
	}
	return fmt.Sprintf("%s | %s | %d | %d | %s | %s | %.1f, %.1f, %.1f, %.1f, %.1f | %s | %s | %d |", head,
		distinct(func(o *outcome) string { return fmt.Sprint(o.symbols) }), threads, processes,
		spread(func(o *outcome) time.Duration { return o.cold }),
		spread(func(o *outcome) time.Duration { return o.known }),
		median(func(o *outcome) time.Duration { return o.open }),
		median(func(o *outcome) time.Duration { return o.steps.Find }),
		median(func(o *outcome) time.Duration { return o.steps.Symbols }),
		median(func(o *outcome) time.Duration { return o.steps.Types }),
		median(func(o *outcome) time.Duration { return o.steps.Checks }),
		distinct(func(o *outcome) string { return string(o.path) }),
		distinct(func(o *outcome) string { return o.found }), (peak+1<<20-1)>>20)
}

// rowKey is how the row of a cell begins.
func rowKey(c cell) string { return fmt.Sprintf("| %s | %s |", c.suite, c.kernel()) }

// The table in a document lies between these lines.
const (
	tableBegin = "<!-- make guests -->\n"
	tableEnd   = "<!-- end of make guests -->\n"
)

// replaceRows returns the document with these rows in place of those of the same cells;
// all is the rows' order. Rows of cells that are not among them stay.
func replaceRows(doc string, rows map[cell]string, all []cell) (string, error) {
	head, rest, ok := strings.Cut(doc, tableBegin)
	old, tail, end := strings.Cut(rest, tableEnd)
	if !ok || !end {
		return "", fmt.Errorf("find the table: no lines %q and %q", tableBegin, tableEnd)
	}
	var out strings.Builder
	fmt.Fprintf(&out, "%s%s%s\n|%s\n", head, tableBegin, columns, strings.Repeat(" --- |", strings.Count(columns, "|")-1))
	good, boots := 0, 0
	for _, c := range all {
		line := rows[c]
		if line == "" {
			for l := range strings.Lines(old) {
				if strings.HasPrefix(l, rowKey(c)) {
					line = strings.TrimSuffix(l, "\n")
				}
			}
		}
		if line == "" {
			continue
		}
		var g, b int
		fields := strings.Split(line, " | ")
		if len(fields) < 4 {
			return "", fmt.Errorf("read the row %q: too short", line)
		}
		if _, err := fmt.Sscanf(fields[3], "%d of %d", &g, &b); err != nil {
			return "", fmt.Errorf("read the row %q: %w", line, err)
		}
		good, boots = good+g, boots+b
		fmt.Fprintln(&out, line)
	}
	fmt.Fprintf(&out, "\n%d of %d boots: everything equal.\n%s%s", good, boots, tableEnd, tail)
	return out.String(), nil
}

// writeRows replaces the rows in the document at path.
func writeRows(path string, rows map[cell]string) error {
	doc, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("read the document: %w", err)
	}
	text, err := replaceRows(string(doc), rows, cells)
	if err != nil {
		return fmt.Errorf("change %s: %w", path, err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		return fmt.Errorf("write the document: %w", err)
	}
	return nil
}

func TestRow(t *testing.T) {
	boots := []*outcome{
		{cell: cells[1], release: "5.10.0-1-cloud-amd64", path: qmp.PathProcessVM, found: "a note", cold: 30 * time.Millisecond, known: 10 * time.Millisecond, open: 2 * time.Millisecond, peak: 1<<20 + 1, symbols: 7, threads: 4, processes: 2},
		{cell: cells[1], release: "5.10.0-1-cloud-amd64", err: errors.New("it is another")},
		{cell: cells[1], release: "5.10.0-1-cloud-amd64", path: qmp.PathPeek, found: "a note", cold: 50 * time.Millisecond, known: 20 * time.Millisecond, open: 2 * time.Millisecond, symbols: 7, threads: 5, processes: 3},
	}
	const want = "| bullseye | cloud-amd64 | 5.10.0-1-cloud-amd64 | 2 of 3 | 7 | 9 | 5 | 40 (max 50) | 15 (max 20) | 2.0, 0.0, 0.0, 0.0, 0.0 | process_vm_readv, virDomainMemoryPeek | a note | 2 |"
	if got := row(boots); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	failed := row(boots[1:2])
	if strings.Count(failed, "|") != strings.Count(columns, "|") || !strings.Contains(failed, "| 0 of 1 | -") {
		t.Errorf("got %s", failed)
	}
}

func TestReplaceRows(t *testing.T) {
	const doc = "# Title\n\n" + tableBegin + tableEnd + "\nEnd.\n"
	a, b := cells[0], cells[5]
	once, err := replaceRows(doc, map[cell]string{b: rowKey(b) + " 6 | 1 of 2 | x |"}, cells)
	if err != nil {
		t.Fatal(err)
	}
	twice, err := replaceRows(once, map[cell]string{a: rowKey(a) + " 5 | 3 of 3 | x |"}, cells)
	if err != nil {
		t.Fatal(err)
	}
	want := "5 | 3 of 3 | x |\n" + rowKey(b) + " 6 | 1 of 2 | x |\n\n4 of 5 boots: everything equal.\n" + tableEnd + "\nEnd.\n"
	if !strings.HasPrefix(twice, "# Title\n") || !strings.HasSuffix(twice, want) || strings.Count(twice, "\n|") != 4 {
		t.Errorf("got %s", twice)
	}
	if _, err := replaceRows("no table", nil, cells); err == nil {
		t.Error("a document without a table was changed")
	}
}

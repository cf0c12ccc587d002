// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"frail/api"
)

func newLayoutCmd(opts *options) *cobra.Command {
	var g guestOptions
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "layout DOMAIN | layout --qmp SOCKET",
		Short: "Show a guest's kernel and where it keeps what Frail reads",
		Long: `Show a guest's kernel, how and how fast it was found in the guest's memory, and where it
keeps what Frail reads: addresses, and offsets in structures.

Of a domain that is traced it is the layout in use. "anchored" means that a running process's
page tables agree with it, which no process of the guest can forge.`,
		Example: `  frail layout guest1
  frail layout --qmp /run/vm.qmp --json`,
		RunE: func(cmd *cobra.Command, args []string) error {
			return g.withGuest(cmd.Context(), opts, args, func(in insight) error {
				l, err := in.Layout(cmd.Context())
				if err != nil {
					return err
				}
				if asJSON {
					return writeLayoutJSON(cmd.OutOrStdout(), l)
				}
				return writeLayout(cmd.OutOrStdout(), l, !opts.quiet)
			})
		},
	}
	cmd.AddCommand(newLayoutImport())
	g.addTo(cmd, opts)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON, one document")
	return cmd
}

func writeLayout(w io.Writer, l *api.GuestLayout, header bool) error {
	hex := func(v uint64) string { return fmt.Sprintf("%#x", v) }
	const mib = 1 << 20
	memory := fmt.Sprintf("%d MiB, read by %s", l.GetMemoryBytes()/mib, l.GetMemoryPath())
	if slow := l.GetMemorySlowReason(); slow != "" {
		memory += " because faster ways fail: " + slow
	}
	build := l.GetBuildId()
	if build == "" {
		build = "not known"
	}
	anchored := "no"
	if l.GetAnchored() {
		anchored = "yes"
	}
	rows := [][]string{
		{"Release:", l.GetRelease()},
		{"Build id:", build},
		{"Found by:", l.GetFound()},
		{"Anchored:", anchored},
		{"Memory:", memory},
		{"KASLR offset:", hex(l.GetKaslr())},
		{"Physical base:", hex(l.GetPhysBase())},
		{"Page table:", fmt.Sprintf("%#x, %d levels", l.GetPageTable(), l.GetLevels())},
		{"Direct map:", fmt.Sprintf("%#x, %#x bytes", l.GetDirectMap(), l.GetDirectMapSize())},
		{"LSTAR:", hex(l.GetLstar())},
		{"init_task:", hex(l.GetInitTask())},
		{"Current task:", hex(l.GetCurrentTask()) + " from the CPU's area"},
		{"Symbols:", fmt.Sprint(l.GetSymbols())},
	}
	var total time.Duration
	for _, s := range l.GetSteps() {
		total += time.Duration(s.GetNano())
		rows = append(rows, []string{"Time for " + s.GetName() + ":", milliseconds(s.GetNano())})
	}
	rows = append(rows, []string{"Time in all:", milliseconds(int64(total))})
	if err := writeTable(w, nil, rows); err != nil {
		return err
	}
	if _, err := fmt.Fprintln(w); err != nil {
		return err
	}
	rows = nil
	for _, m := range l.GetMembers() {
		rows = append(rows, []string{m.GetName(), fmt.Sprint(m.GetOffset()), fmt.Sprint(m.GetSize())})
	}
	var names []string
	if header {
		names = []string{"Member", "Offset", "Size"}
	}
	return writeTable(w, names, rows)
}

func milliseconds(nano int64) string {
	return fmt.Sprintf("%.1f ms", float64(nano)/float64(time.Millisecond))
}

func writeLayoutJSON(w io.Writer, l *api.GuestLayout) error {
	hex := func(v uint64) string { return fmt.Sprintf("%#x", v) } // more than JSON's numbers hold
	steps := make(map[string]float64)
	for _, s := range l.GetSteps() {
		steps[s.GetName()] = time.Duration(s.GetNano()).Seconds()
	}
	type member struct {
		Offset uint32 `json:"offset"`
		Size   uint32 `json:"size"`
	}
	members := make(map[string]member)
	for _, m := range l.GetMembers() {
		members[m.GetName()] = member{m.GetOffset(), m.GetSize()}
	}
	text, err := appendJSON(nil, map[string]any{
		"release": l.GetRelease(), "build_id": l.GetBuildId(), "found": l.GetFound(), "anchored": l.GetAnchored(),
		"kaslr": hex(l.GetKaslr()), "phys_base": hex(l.GetPhysBase()), "page_table": hex(l.GetPageTable()),
		"levels": l.GetLevels(), "direct_map": hex(l.GetDirectMap()), "direct_map_size": hex(l.GetDirectMapSize()),
		"lstar": hex(l.GetLstar()), "init_task": hex(l.GetInitTask()), "current_task": hex(l.GetCurrentTask()),
		"symbols": l.GetSymbols(), "memory_path": l.GetMemoryPath(), "memory_slow_reason": l.GetMemorySlowReason(),
		"memory_bytes": l.GetMemoryBytes(), "seconds": steps, "members": members,
	})
	return writeAll(w, text, err)
}

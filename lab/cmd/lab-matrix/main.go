// SPDX-License-Identifier: Apache-2.0

// Command lab-matrix runs the tests on every host of the lab and prints what became
// of them. "make lab-matrix" calls it.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"frail/lab/image"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := newRoot().ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

// cell is one of make's targets on one host. libvirt does not fit on an Intel host.
type cell struct{ host, vendor, target string }

var cells = []cell{
	{"bookworm", "amd", "lab-proof"},
	{"bookworm", "intel", "lab-proof"},
	{"bookworm", "amd", "lab-test"},
	{"trixie", "amd", "lab-proof"},
	{"trixie", "intel", "lab-proof"},
	{"trixie", "amd", "lab-test"},
	{"sid", "amd", "lab-proof"},
	{"sid", "amd", "lab-test"},
}

func (c cell) String() string { return c.host + "/" + c.vendor + "/" + c.target }

// isOf reports whether name is the cell's, up to one of its slashes.
func (c cell) isOf(name string) bool { return strings.HasPrefix(c.String()+"/", name+"/") }

// selectCells returns the cells of these names, all if there is none.
func selectCells(names []string) ([]cell, error) {
	if len(names) == 0 {
		return cells, nil
	}
	for _, name := range names {
		if !slices.ContainsFunc(cells, func(c cell) bool { return c.isOf(name) }) {
			return nil, fmt.Errorf("no cell is called %q: want some of %v, or their beginnings", name, cells)
		}
	}
	var selected []cell
	for _, c := range cells {
		if slices.ContainsFunc(names, c.isOf) {
			selected = append(selected, c)
		}
	}
	return selected, nil
}

func newRoot() *cobra.Command {
	return &cobra.Command{
		Use:   "lab-matrix [CELL...]",
		Short: "Run the tests on every host of the lab, and print what became of them",
		Long: fmt.Sprintf(`Run the tests on every host of the lab and print what became of them and what the
comparisons of records found. Two cells run at a time, never two of one host and
vendor. A cell that fails does not keep the others from running; the exit status is
1 then. What each printed is left in
%s.

A CELL is HOST/VENDOR/TARGET, HOST/VENDOR or HOST. There are:
  %s`, logDir, strings.Trim(strings.ReplaceAll(fmt.Sprint(cells), " ", "\n  "), "[]")),
		SilenceErrors: true,
		SilenceUsage:  true,
		RunE: func(cmd *cobra.Command, args []string) error {
			selected, err := selectCells(args)
			if err != nil {
				return err
			}
			if err := os.MkdirAll(logDir, 0o755); err != nil {
				return fmt.Errorf("create the directory of logs: %w", err)
			}
			results := runAll(cmd.Context(), selected)
			writeTables(cmd.OutOrStdout(), results)
			bad := 0
			for _, r := range results {
				if r.problem() != "" {
					bad++
				}
			}
			if bad > 0 {
				return fmt.Errorf("%d of %d cells failed", bad, len(results))
			}
			return nil
		},
	}
}

// logDir is where the output of each cell is left.
const logDir = "build/lab/matrix"

// result is what became of a cell.
type result struct {
	cell
	release string // of the host's kernel
	output
	err  error         // of the lab, or make's exit status
	took time.Duration // with the building of what it needs
}

// parallel is how many cells run at once: an emulator keeps one processor busy.
const parallel = 2

// runAll runs cells and shows what they print.
func runAll(ctx context.Context, selected []cell) []*result {
	results := make([]*result, len(selected))
	for i, c := range selected {
		results[i] = &result{cell: c}
	}
	schedule(results, func(r *result) {
		start := time.Now()
		r.err = r.make(ctx)
		r.took = time.Since(start)
	})
	return results
}

// schedule calls run for each of results, in order but for those that have to wait: cells
// of one host and vendor build in one directory, so only one of them runs at a time.
func schedule(results []*result, run func(*result)) {
	var (
		workers sync.WaitGroup
		mu      sync.Mutex
		freed   = sync.NewCond(&mu)
		waiting = slices.Clone(results)
		busy    = map[cell]bool{} // without their targets
	)
	place := func(r *result) cell { return cell{host: r.host, vendor: r.vendor} }
	for range parallel {
		workers.Go(func() {
			mu.Lock()
			defer mu.Unlock()
			for len(waiting) > 0 {
				i := slices.IndexFunc(waiting, func(r *result) bool { return !busy[place(r)] })
				if i < 0 {
					freed.Wait()
					continue
				}
				r := waiting[i]
				waiting = slices.Delete(waiting, i, i+1)
				busy[place(r)] = true
				mu.Unlock()
				run(r)
				mu.Lock()
				delete(busy, place(r))
				freed.Broadcast()
			}
		})
	}
	workers.Wait()
}

func (r *result) make(ctx context.Context) error {
	h, err := image.BuildHost(ctx, r.host, os.Stderr)
	if err != nil {
		return err
	}
	r.release = h.Release
	log, err := os.Create(filepath.Join(logDir, strings.ReplaceAll(r.cell.String(), "/", "-")+".log"))
	if err != nil {
		return fmt.Errorf("create the log: %w", err)
	}
	defer log.Close()
	// Other variables of make's command line are in MAKEFLAGS.
	cmd := exec.CommandContext(ctx, "make", "--no-print-directory", r.target, "HOST="+r.host, "VENDOR="+r.vendor)
	shown := &lines{each: func(line string) error {
		_, err := fmt.Printf("%s: %s\n", r.cell, line)
		return err
	}}
	defer shown.flush()
	all := io.MultiWriter(shown, log, &lines{each: r.output.read})
	cmd.Stdout, cmd.Stderr = all, all
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	fmt.Fprintln(os.Stderr, "lab-matrix:", cmd)
	return errors.Join(cmd.Run(), ctx.Err())
}

// problem says why a cell failed; "" if it did not.
func (r *result) problem() string {
	unfinished := r.ended("")
	switch n := len(r.ended(failed)); {
	case n > 0:
		return fmt.Sprintf("failed: %d tests", n)
	case len(unfinished) > 0:
		return "failed: cut off in " + unfinished[len(unfinished)-1]
	case r.err != nil:
		return "failed: " + r.err.Error()
	case len(r.tests) == 0:
		return "failed: no test ran"
	}
	return ""
}

// writeTables writes what comparisons found and what became of the cells: what failed, and
// why, comes last, where it is still seen of a long output.
func writeTables(w io.Writer, results []*result) {
	writeReports(w, results)
	fmt.Fprintf(w, "\n| host | kernel | vendor | target | passed | failed | skipped | min | result |\n|%s\n", strings.Repeat(" --- |", 9))
	var skips, fails strings.Builder
	for _, r := range results {
		problem := r.problem()
		if problem == "" {
			problem = "passed"
		}
		fmt.Fprintf(w, "| %s | %s | %s | %s | %d | %d | %d | %.1f | %s |\n", r.host, r.release, r.vendor, r.target,
			len(r.ended(passed)), len(r.ended(failed)), len(r.ended(skipped)), r.took.Minutes(), problem)
		if names := r.ended(skipped); len(names) > 0 {
			fmt.Fprintf(&skips, "%s: %s: %s\n", r.cell, skipped, strings.Join(names, ", "))
		}
		for _, name := range slices.Concat(r.ended(failed), r.ended("")) {
			fmt.Fprintf(&fails, "%s: %s: %s\n", r.cell, failed, strings.Join(slices.Insert(r.notes[name], 0, name), "\n\t"))
		}
	}
	fmt.Fprintf(w, "\n%s%s", skips.String(), fails.String())
}

func writeReports(w io.Writer, results []*result) {
	if !slices.ContainsFunc(results, func(r *result) bool { return len(r.reports) > 0 }) {
		return
	}
	fmt.Fprintf(w, "\n| host | vendor | test | tasks | calls | missing | extra | differing | returns | known | unknown | wrong |\n|%s\n",
		strings.Repeat(" --- |", 12))
	for _, r := range results {
		for _, rep := range r.reports {
			fmt.Fprintf(w, "| %s | %s | %s | %d | %d | %d | %d | %d | %d | %.2f %% | %d | %d |\n", r.host, r.vendor, rep.test,
				rep.Tasks, rep.Calls, rep.Missing, rep.Extra, rep.Differing, rep.Returns, rep.KnownPercent(), rep.Unknown, rep.Wrong)
		}
	}
}

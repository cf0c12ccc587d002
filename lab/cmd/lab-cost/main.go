// SPDX-License-Identifier: Apache-2.0

// Command lab-cost measures, on a host that counts instructions, what tracing a
// guest's system call takes: instructions of host and guest together, the same in
// every run.
package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"regexp"
	"strconv"
	"text/tabwriter"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/spf13/cobra"

	"frail/bpf"
	"frail/kmod/device"
	"frail/lab/direct"
	"frail/tracer"
)

const (
	// skipped are reports of the guest that may span a change; counted are those
	// whose least is taken.
	skipped, counted = 2, 3

	poll = 50 * time.Millisecond

	// stalled is how long a guest may take to its next report, and tries how many guests
	// may stall: an emulator that counts instructions delivers an interrupt twice now and
	// then, which ends a guest's timer (docs/proof.md). By the host's clock, which counts
	// instructions, too: a guest boots in two seconds and reports ten times a second.
	stalled = 20 * time.Second
	tries   = 4
)

// errStalled says that a guest reports nothing any more.
var errStalled = errors.New("the guest stalled")

// The goals, in exits by CPUID above an untraced call.
const (
	goalEntry, goalFiltered, goalBoth = 1.05, 1.5, 2.1
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := newRoot().ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

func newRoot() *cobra.Command {
	var cfg direct.Config
	var module string
	var limit time.Duration
	cmd := &cobra.Command{
		Use:           "lab-cost",
		Short:         "Count the instructions of a traced system call",
		Args:          cobra.NoArgs,
		SilenceErrors: true,
		SilenceUsage:  true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), limit)
			defer cancel()
			// Until it is killed: what it says on its console is all that is wanted.
			cfg.Script = "while t-cost >/dev/console; do :; done"
			return measure(ctx, cfg, module)
		},
	}
	cmd.Flags().StringVar(&cfg.Kernel, "kernel", "/frail/guest/vmlinuz", "the guest's kernel")
	cmd.Flags().StringVar(&cfg.Initrd, "initrd", "/frail/guest/initramfs.cpio.gz", "the guest's initramfs")
	cmd.Flags().StringVar(&module, "module", "", "frail.ko, which is not loaded yet")
	cmd.Flags().DurationVar(&limit, "limit", 30*time.Minute, "how long all of it may take")
	return cmd
}

// cost is what one system call and one CPUID take, in instructions.
type cost struct{ call, cpuid int }

// consumers are those a call's tracepoint may have; each returns what takes it away.
var consumers = []struct {
	name   string
	attach func(vm *device.VM) (func() error, error)
}{
	{"no consumer", func(*device.VM) (func() error, error) {
		return func() error { return nil }, nil
	}},
	{"identity, and a BPF program that returns", func(*device.VM) (func() error, error) {
		return attachEmpty()
	}},
	{"identity, and a BPF filter nothing passes", func(vm *device.VM) (func() error, error) {
		return attachTracer(tracer.Options{VMs: []uint32{vm.ID()}, Filter: tracer.Filter{Comms: tracer.Set[string]{Values: []string{"t-nobody"}}}})
	}},
	{"identity, who that is, and a BPF filter nothing passes", func(vm *device.VM) (func() error, error) {
		return attachTracer(tracer.Options{
			VMs: []uint32{vm.ID()}, Filter: tracer.Filter{Comms: tracer.Set[string]{Values: []string{"t-nobody"}}}, Processes: true,
		})
	}},
	{"identity, and every event into a ring buffer", func(vm *device.VM) (func() error, error) {
		return attachTracer(tracer.Options{VMs: []uint32{vm.ID()}, RingBytes: tracer.MaxRingBytes})
	}},
}

func attachEmpty() (func() error, error) {
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type:         ebpf.RawTracepoint,
		License:      "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()},
	})
	if err != nil {
		return nil, fmt.Errorf("load an empty program: %w", err)
	}
	closers := []func() error{prog.Close}
	end := func() error {
		var errs []error
		for _, c := range closers {
			errs = append(errs, c())
		}
		return errors.Join(errs...)
	}
	for _, name := range []string{bpf.TracepointEnter, bpf.TracepointExit} {
		l, err := link.AttachRawTracepoint(link.RawTracepointOptions{Name: name, Program: prog})
		if err != nil {
			return nil, errors.Join(fmt.Errorf("attach an empty program: %w", err), end())
		}
		closers = append(closers, l.Close)
	}
	return end, nil
}

func attachTracer(opts tracer.Options) (func() error, error) {
	t, err := tracer.New(opts)
	if err != nil {
		return nil, err
	}
	if err := t.Attach(); err != nil {
		return nil, errors.Join(err, t.Close())
	}
	return t.Close, nil
}

// inGuest returns what f measures in a guest, in another one if it stalls.
func inGuest(ctx context.Context, cfg direct.Config, f func(*direct.Guest) ([]cost, error)) (costs []cost, err error) {
	for range tries {
		if costs, err = tryGuest(ctx, cfg, f); !errors.Is(err, errStalled) {
			return costs, err
		}
		fmt.Fprintln(os.Stderr, "lab-cost:", err)
	}
	return nil, err
}

func tryGuest(ctx context.Context, cfg direct.Config, f func(*direct.Guest) ([]cost, error)) ([]cost, error) {
	g, err := direct.Start(ctx, cfg)
	if err != nil {
		return nil, err
	}
	defer g.Close()
	if err := g.Resume(ctx); err != nil {
		return nil, err
	}
	return f(g)
}

// untraced returns what a call takes in a guest that is not armed.
func untraced(ctx context.Context, cfg direct.Config, what string) (cost, error) {
	costs, err := inGuest(ctx, cfg, func(g *direct.Guest) ([]cost, error) {
		c, err := next(ctx, g, what)
		return []cost{c}, err
	})
	if err != nil {
		return cost{}, err
	}
	return costs[0], nil
}

func measure(ctx context.Context, cfg direct.Config, module string) error {
	bare, err := untraced(ctx, cfg, "the untraced guest")
	if err != nil {
		return fmt.Errorf("measure the untraced guest: %w", err)
	}
	if out, err := exec.CommandContext(ctx, "insmod", module).CombinedOutput(); err != nil {
		return fmt.Errorf("load %s: %w: %s", module, err, bytes.TrimSpace(out))
	}
	loaded, err := untraced(ctx, cfg, "the untraced guest, module loaded")
	if err != nil {
		return fmt.Errorf("measure the untraced guest, module loaded: %w", err)
	}

	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	defer w.Flush()
	fmt.Fprintf(w, "\tinstructions\tabove untraced\tx a CPUID exit\tgoal\t\n")
	fmt.Fprintf(w, "getppid untraced\t%d\t\t\t\t\n", bare.call)
	fmt.Fprintf(w, "CPUID exit\t%d\t\t1.00\t\t\n", bare.cpuid)
	fmt.Fprintf(w, "getppid untraced, module loaded\t%d\t%+d\t\t+0\t\n", loaded.call, loaded.call-bare.call)
	fmt.Fprintf(w, "CPUID exit, module loaded\t%d\t%+d\t\t+0\t\n", loaded.cpuid, loaded.cpuid-bare.cpuid)
	for _, mode := range []struct {
		name  string
		exits uint32
		goals []float64 // as consumers; 0: none
	}{
		{"entry", bpf.ExitsEntry, []float64{goalEntry, 0, goalFiltered, goalFiltered, 0}},
		{"both", bpf.ExitsBoth, []float64{goalBoth, 0, 0, 0, 0}},
	} {
		costs, err := inGuest(ctx, cfg, func(g *direct.Guest) ([]cost, error) { return traced(ctx, g, mode.exits) })
		if err != nil {
			return fmt.Errorf("measure exits=%s: %w", mode.name, err)
		}
		for i, c := range costs {
			above := c.call - bare.call
			goal := ""
			if mode.goals[i] != 0 {
				goal = fmt.Sprintf("%.2f", mode.goals[i])
			}
			fmt.Fprintf(w, "%s, %s\t%d\t%+d\t%.3f\t%s\t\n", mode.name, consumers[i].name,
				c.call, above, float64(above)/float64(bare.cpuid), goal)
		}
		fmt.Fprintf(w, "CPUID exit, armed with exits=%s\t%d\t%+d\t\t+0\t\n", mode.name, costs[0].cpuid, costs[0].cpuid-bare.cpuid)
	}
	return nil
}

// traced returns what a call takes with each consumer while the guest is armed.
func traced(ctx context.Context, g *direct.Guest, exits uint32) ([]cost, error) {
	if _, err := reports(ctx, g, 1); err != nil {
		return nil, err // it has not booted
	}
	vm, err := g.Arm(exits)
	if err != nil {
		return nil, err
	}
	defer vm.Close()
	st, err := vm.Wait(ctx)
	if err != nil {
		return nil, err
	}
	l, err := g.Resolve(ctx, st)
	if err != nil {
		return nil, err
	}
	if err := vm.SetLayout(device.Layout(l)); err != nil {
		return nil, err
	}
	var costs []cost
	for _, c := range consumers {
		detach, err := c.attach(vm)
		if err != nil {
			return nil, err
		}
		n, err := next(ctx, g, c.name)
		if err := errors.Join(err, detach()); err != nil {
			return nil, fmt.Errorf("with %s: %w", c.name, err)
		}
		costs = append(costs, n)
	}
	return costs, nil
}

var report = regexp.MustCompile(`call=([0-9]+)\r?\ncpuid=([0-9]+)\r?\ncost\r?\n`)

// next returns the least of what the guest reports from now on; what is for the
// reader who waits: an emulator that counts instructions takes minutes for each.
func next(ctx context.Context, g *direct.Guest, what string) (cost, error) {
	fmt.Fprintln(os.Stderr, "lab-cost: measuring", what)
	costs, err := reports(ctx, g, skipped+counted)
	if err != nil {
		return cost{}, err
	}
	least := costs[skipped]
	for _, c := range costs[skipped:] {
		least.call = min(least.call, c.call)
		least.cpuid = min(least.cpuid, c.cpuid)
	}
	return least, nil
}

// reports returns the next n of the guest's reports.
func reports(ctx context.Context, g *direct.Guest, n int) ([]cost, error) {
	old := len(report.FindAllString(g.Console(), -1))
	tick := time.NewTicker(poll)
	defer tick.Stop()
	count, since := old, time.Now()
	for {
		said := report.FindAllStringSubmatch(g.Console(), -1)
		if len(said) >= old+n {
			costs := make([]cost, n)
			for i, r := range said[old : old+n] {
				// The expression matches numbers only.
				costs[i].call, _ = strconv.Atoi(r[1])
				costs[i].cpuid, _ = strconv.Atoi(r[2])
			}
			return costs, nil
		}
		if len(said) > count {
			count, since = len(said), time.Now()
		}
		if time.Since(since) > stalled {
			return nil, fmt.Errorf("%w: no report for %v; its console: %s", errStalled, stalled, g.Console())
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("the guest reports nothing: %w; its console: %s", context.Cause(ctx), g.Console())
		case <-g.Exited():
			return nil, fmt.Errorf("the guest ended; its console: %s", g.Console())
		case <-tick.C:
		}
	}
}

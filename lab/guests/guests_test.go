// SPDX-License-Identifier: Apache-2.0

package guests

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"os"
	"runtime/debug"
	"strconv"
	"strings"
	"testing"
	"time"

	"frail/hooks/libvirttest"
	"frail/lab/image"
	"frail/qmp"
	"frail/qmp/layout"
	"frail/qmp/qmptest"
)

func TestMain(m *testing.M) {
	libvirttest.Main(m)
}

var (
	guestNames = flag.String("guests", "bookworm/amd64 trixie/cloud", "the guests to boot: all, SUITE or SUITE/FLAVOUR, separated by spaces")
	boots      = flag.Int("boots", 1, "how often to boot each guest; 5 try every two settings of the machine in all ways")
	document   = flag.String("document", "", "the file whose table gets the results")
)

// TestGuests boots kernels as Debian ships them and holds what is found in their memory
// against what they say of themselves.
func TestGuests(t *testing.T) {
	selected, err := selectCells(*guestNames)
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for _, c := range selected {
		var outcomes []*outcome
		t.Run(c.String(), func(t *testing.T) {
			stock := buildStock(t, c)
			for n := range *boots {
				o := &outcome{cell: c, machine: c.boot(n), release: stock.Release}
				outcomes = append(outcomes, o)
				t.Run(o.machine.String(), func(t *testing.T) {
					// Stays if the guest does not get as far as an answer.
					o.err = errors.New("the guest failed")
					if o.err = o.run(t, stock); o.err != nil {
						t.Error(o.err)
						return
					}
					t.Logf("%d symbols, %d threads and %d processes are equal; %v cold by %s and %s (%v to open memory, %+v), %v known, at most %d MiB",
						o.symbols, o.threads, o.processes, o.cold, o.path, o.found, o.open, o.steps, o.known, o.peak>>20)
				})
			}
		})
		if len(outcomes) == 0 {
			continue // skipped
		}
		line := row(outcomes)
		lines = append(lines, line)
		if *document != "" {
			if err := writeRows(*document, map[cell]string{c: line}); err != nil {
				t.Fatal(err)
			}
		}
	}
	t.Logf("\n%s\n%s", columns, strings.Join(lines, "\n"))
}

// buildStock returns the guest of a cell. Without a document to write, and so without
// being asked for, a guest that cannot be fetched is skipped.
func buildStock(t *testing.T, c cell) *image.Stock {
	t.Helper()
	var log bytes.Buffer
	stock, err := image.BuildStock(t.Context(), c.suite, c.kernel(), &log)
	switch {
	case err == nil:
		return stock
	case *document == "":
		t.Skipf("the guest cannot be built: %v\n%s", err, log.Bytes())
	default:
		t.Fatalf("%v\n%s", err, log.Bytes())
	}
	return nil
}

// run boots the guest and compares.
func (o *outcome) run(t *testing.T, stock *image.Stock) error {
	t.Helper()
	m := o.machine
	g := qmptest.Start(t, qmptest.Config{
		Kernel: stock.Kernel, Initrd: stock.Initrd, MemoryMiB: m.memoryMiB, VCPUs: m.vcpus,
		Cmdline: "pti=" + m.ptiWord(), Features: m.features(),
	})
	if err := checkMachine(t, g, m, stock); err != nil {
		return err
	}
	startKnown(t, g)

	mem, l, err := o.resolve(t, g)
	if err != nil {
		return err
	}
	defer mem.Close()
	if l.Release != stock.Release {
		return fmt.Errorf("the kernel is %q, not %q", l.Release, stock.Release)
	}
	if o.symbols, err = compareSymbols(t, g, l); err != nil {
		return err
	}
	if o.threads, err = compareTasks(t, g, mem, l); err != nil {
		return err
	}
	o.processes, err = compareProcesses(t, g, mem, l)
	return err
}

// checkMachine checks that the guest is what it is to be, and has it tell a vmcoreinfo
// device where the kernel describes itself.
func checkMachine(t *testing.T, g *qmptest.Guest, m machine, stock *image.Stock) error {
	t.Helper()
	if got := strings.TrimSpace(g.Run(t, "uname -r")); got != stock.Release {
		return fmt.Errorf("the guest runs %q, not %q", got, stock.Release)
	}
	if got := strings.TrimSpace(g.Run(t, "nproc")); got != strconv.Itoa(m.vcpus) {
		return fmt.Errorf("the guest has %s CPUs, not %d", got, m.vcpus)
	}
	// The CPU's flags have it from 5.10 on.
	if got := g.Run(t, "grep -m 1 ^flags /proc/cpuinfo"); strings.Contains(got+" ", " pti ") != m.pti {
		return fmt.Errorf("page table isolation is to be %s, the guest says %s", m.ptiWord(), got)
	}
	g.Run(t, "test ! -e /lib/qemu_fw_cfg.ko || insmod /lib/qemu_fw_cfg.ko")
	if got := g.Run(t, "cat /sys/firmware/qemu_fw_cfg/by_name/etc/vmcoreinfo/size 2>/dev/null; true"); (got != "") != m.vmcoreinfo {
		return fmt.Errorf("the guest's vmcoreinfo device: %q", got)
	}
	return nil
}

// resolve finds the layout from nothing, and once more knowing the kernel. The memory is
// the caller's to close.
func (o *outcome) resolve(t *testing.T, g *qmptest.Guest) (*qmp.Memory, *layout.Layout, error) {
	t.Helper()
	var (
		resolver layout.Resolver
		mem      *qmp.Memory
		l        *layout.Layout
		open     time.Duration
	)
	once := func() error {
		start := time.Now()
		var err error
		if mem, err = openMemory(t, g); err != nil {
			return err
		}
		open = time.Since(start)
		if l, err = resolver.Resolve(t.Context(), mem, mem.Ranges(), layout.Hint{}); err != nil {
			return errors.Join(err, mem.Close())
		}
		return nil
	}
	var err error
	if o.cold, o.peak, err = measure(once); err != nil {
		return nil, nil, err
	}
	o.path, o.found, o.open, o.steps = mem.Path(), string(l.Source), open, l.Timing
	if l.SymbolSource != layout.OriginNote {
		o.found += ", " + string(l.SymbolSource)
	}
	if err := mem.Close(); err != nil {
		return nil, nil, err
	}
	cold := l
	if o.known, _, err = measure(once); err != nil {
		return nil, nil, err
	}
	if cold.Rebased || !l.Rebased || l.LSTAR != cold.LSTAR {
		return nil, nil, errors.Join(fmt.Errorf("of a kernel met before: rebased %v, at %#x; before: %v, %#x", l.Rebased, l.LSTAR, cold.Rebased, cold.LSTAR), mem.Close())
	}
	return mem, l, nil
}

func openMemory(t *testing.T, g *qmptest.Guest) (*qmp.Memory, error) {
	t.Helper()
	return qmp.OpenMemory(t.Context(), qmp.MemoryOptions{Monitor: qmp.NewLibvirt(g.Dom), PID: g.PID, Domain: qmp.LibvirtMemory{Domain: g.Dom}})
}

// measure calls f with no memory at hand but what is in use, and returns how long it
// took and how many bytes the process had resident at most.
func measure(f func() error) (time.Duration, uint64, error) {
	debug.FreeOSMemory()
	// Resets the peak, see proc(5).
	if err := os.WriteFile("/proc/self/clear_refs", []byte("5"), 0); err != nil {
		return 0, 0, fmt.Errorf("reset the peak of resident memory: %w", err)
	}
	start := time.Now()
	err := f()
	took := time.Since(start)
	if err != nil {
		return 0, 0, err
	}
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0, 0, fmt.Errorf("read the peak of resident memory: %w", err)
	}
	for line := range strings.Lines(string(status)) {
		var kib uint64
		if _, err := fmt.Sscanf(line, "VmHWM: %d kB", &kib); err == nil {
			return took, kib << 10, nil
		}
	}
	return 0, 0, errors.New("read the peak of resident memory: there is none")
}

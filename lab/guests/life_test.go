// SPDX-License-Identifier: Apache-2.0

package guests

import (
	"errors"
	"path/filepath"
	"testing"

	"frail/qmp"
	"frail/qmp/layout"
	"frail/qmp/qmptest"
)

// lifeCell is the guest whose life is followed.
var lifeCell = cell{"bookworm", plain}

func startLife(t *testing.T) *qmptest.Guest {
	t.Helper()
	stock := buildStock(t, lifeCell)
	return qmptest.Start(t, qmptest.Config{
		Kernel: stock.Kernel, Initrd: stock.Initrd, Features: machine{}.features(), Disk: true,
	})
}

// resolveEqual finds the layout of the guest as it is now, from nothing, and holds its
// symbols, threads and processes against the guest's.
func resolveEqual(t *testing.T, g *qmptest.Guest) *layout.Layout {
	t.Helper()
	mem, err := openMemory(t, g)
	if err != nil {
		t.Fatal(err)
	}
	defer mem.Close()
	if mem.Path() != qmp.PathProcessVM {
		t.Errorf("memory is read by %s: %v", mem.Path(), mem.SlowReason())
	}
	l, err := layout.Resolve(t.Context(), mem, mem.Ranges(), layout.Hint{})
	if err != nil {
		t.Fatal(err)
	}
	n, err := compareSymbols(t, g, l)
	if err != nil {
		t.Fatal(err)
	}
	threads, err := compareTasks(t, g, mem, l)
	if err != nil {
		t.Fatal(err)
	}
	processes, err := compareProcesses(t, g, mem, l)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d symbols, %d threads and %d processes are equal; the kernel is at %#x", n, threads, processes, l.KASLR)
	return l
}

// TestKernelsComeAndGo resets a guest, reverts it to a snapshot, and saves and restores
// it: each time the kernel that runs is found, not one that left its memory behind.
func TestKernelsComeAndGo(t *testing.T) {
	g := startLife(t)
	startKnown(t, g)
	first := resolveEqual(t, g)
	snapshot := g.Snapshot(t)

	// Where a kernel comes up is chance, which may repeat itself, hardly so often.
	const resets = 5
	for n, next := 1, first; next.KASLR == first.KASLR; n++ {
		if n > resets {
			t.Fatalf("%d resets at one address: nothing was followed", resets)
		}
		g.Reset(t)
		startKnown(t, g)
		next = resolveEqual(t, g)
		if next.LSTAR != first.LSTAR {
			rejectKernel(t, g, first.LSTAR)
		}
	}

	// The domain is a transient one, which forgets its snapshots when it is saved.
	g.Revert(t, snapshot)
	sameKernel(t, "revert", resolveEqual(t, g), first)

	pid := g.PID
	file := filepath.Join(t.TempDir(), "saved")
	g.Save(t, file)
	g.Restore(t, file)
	if g.PID == pid {
		t.Fatalf("after the restore the guest is in the QEMU of before, %d", pid)
	}
	sameKernel(t, "restore", resolveEqual(t, g), first)
}

// rejectKernel checks that no layout is found of a kernel that a CPU entered at lstar,
// which is not the guest's any more.
func rejectKernel(t *testing.T, g *qmptest.Guest, lstar uint64) {
	t.Helper()
	mem, err := openMemory(t, g)
	if err != nil {
		t.Fatal(err)
	}
	defer mem.Close()
	if l, err := layout.Resolve(t.Context(), mem, mem.Ranges(), layout.Hint{LSTAR: lstar}); !errors.Is(err, layout.ErrRejected) {
		t.Errorf("of the kernel before, which was entered at %#x: %+v, %v; want ErrRejected", lstar, l, err)
	}
}

func sameKernel(t *testing.T, after string, got, want *layout.Layout) {
	t.Helper()
	if got.LSTAR != want.LSTAR || got.PageTable != want.PageTable {
		t.Errorf("after the %s the kernel is at %#x, %#x; it was at %#x, %#x", after, got.LSTAR, got.PageTable, want.LSTAR, want.PageTable)
	}
}

// SPDX-License-Identifier: Apache-2.0

package guests

import (
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
		Kernel: stock.Kernel, Initrd: stock.Initrd, Features: machine{}.features(),
	})
}

// resolveEqual finds the layout of the guest as it is now, from nothing, and holds its
// symbols and threads against the guest's.
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
	t.Logf("%d symbols and %d threads are equal; the kernel is at %#x", n, threads, l.KASLR)
	return l
}

// TestReset resets a guest until its kernel comes up elsewhere. What the kernel before
// left in memory is not taken for the one that runs.
func TestReset(t *testing.T) {
	g := startLife(t)
	g.Run(t, startKnown)
	old := resolveEqual(t, g)
	const resets = 5 // chance may repeat an address, hardly so often
	for range resets {
		g.Reset(t)
		g.Run(t, startKnown)
		if l := resolveEqual(t, g); l.KASLR != old.KASLR {
			return
		}
	}
	t.Fatalf("%d resets at one address: nothing was followed", resets)
}

// TestSaveRestore saves a guest and restores it, in another QEMU: the kernel, which is
// still the one of before, is found again.
func TestSaveRestore(t *testing.T) {
	g := startLife(t)
	g.Run(t, startKnown)
	old := resolveEqual(t, g)
	pid := g.PID
	file := filepath.Join(t.TempDir(), "saved")
	g.Save(t, file)
	g.Restore(t, file)
	if g.PID == pid {
		t.Fatalf("the guest is still in the QEMU of before, %d", pid)
	}
	if l := resolveEqual(t, g); l.LSTAR != old.LSTAR || l.PageTable != old.PageTable {
		t.Errorf("after the restore the kernel is at %#x, %#x; before it was at %#x, %#x", l.LSTAR, l.PageTable, old.LSTAR, old.PageTable)
	}
}

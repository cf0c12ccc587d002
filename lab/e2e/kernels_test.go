// SPDX-License-Identifier: Apache-2.0

//go:build lab

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"frail/lab/vm"
)

// TestKernelsComeAndGo has libvirt put other times of a kernel into a traced guest. Each
// time it is traced again, with identities, and nobody had to ask.
func TestKernelsComeAndGo(t *testing.T) {
	begin(t)
	guest := startGuest(t, "changes", traced, func(c *vm.Config) { c.Disk = true })
	waitGuest(t, guest)
	waitTraced(t, guest)
	checkTraced(t, guest)

	t.Run("save and restore", func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "saved")
		runIn(t, guest, "touch /tmp/before")
		changes(t, guest, func() {
			must(t, "virsh", "save", guest.Name, file)
			guest.Close()
			must(t, "virsh", "restore", file)
		})
		if err := os.Remove(file); err != nil {
			t.Error(err)
		}
		if res := runIn(t, guest, "test -e /tmp/before"); res.Status != 0 {
			t.Error("the guest that was restored is not the one that was saved")
		}
	})
	t.Run("snapshot", func(t *testing.T) {
		must(t, "virsh", "snapshot-create-as", guest.Name, "before")
		waitGuest(t, guest)
		checkTraced(t, guest)
		runIn(t, guest, "touch /tmp/after")
		changes(t, guest, func() {
			must(t, "virsh", "snapshot-revert", guest.Name, "before")
			guest.Close()
		})
		if res := runIn(t, guest, "test -e /tmp/before && ! test -e /tmp/after"); res.Status != 0 {
			t.Error("the guest is not as it was when the snapshot was taken")
		}
	})
}

// changes has a guest's kernel replaced, and checks that the new one is traced.
func changes(t *testing.T, guest *vm.VM, replace func()) {
	t.Helper()
	before := waitTraced(t, guest).VM
	replace()
	waitGuest(t, guest)
	eventually(t, "the new kernel is traced", func() error {
		d, err := listed(t, guest.Name)
		switch {
		case err != nil:
			return err
		case d.State == stateTraced && (d.VM.ID != before.ID || d.VM.Generation != before.Generation):
			return nil
		}
		runIn(t, guest, "true")
		return fmt.Errorf("it is %s %q, %+v", d.State, d.Reason, d.VM)
	})
	checkTraced(t, guest)
}

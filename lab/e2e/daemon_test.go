// SPDX-License-Identifier: Apache-2.0

//go:build lab

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"frail/lab/vm"
)

// TestDaemonKilled kills fraild with SIGKILL while it traces: the guest goes
// on untraced, new guests start, and a new fraild traces again.
func TestDaemonKilled(t *testing.T) {
	begin(t)
	tp := watchTracepoints(t)
	// Without this systemd would start it again before anybody could look.
	dropIn := "/run/systemd/system/fraild.service.d"
	if err := os.MkdirAll(dropIn, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dropIn, "e2e.conf"), []byte("[Service]\nRestart=no\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	must(t, "systemctl", "daemon-reload")
	t.Cleanup(func() {
		if err := os.RemoveAll(dropIn); err != nil {
			t.Error(err)
		}
		must2(t, "systemctl", "daemon-reload")
		must2(t, "systemctl", "restart", "fraild.service")
	})

	guest := startGuest(t, "killed", traced, vcpus(2))
	waitGuest(t, guest)
	first := waitTraced(t, guest)
	checkTraced(t, guest)

	// Two processes in the middle of calls, one on each vCPU.
	runIn(t, guest, "t-getppid 0 >/dev/null & t-getppid 0 >/dev/null &")
	tp.take()
	eventually(t, "the guest's calls pass the tracepoint", func() error {
		if len(tp.take()) == 0 {
			return fmt.Errorf("none did")
		}
		return nil
	})
	must(t, "systemctl", "kill", "--signal=KILL", "fraild.service")
	eventually(t, "fraild is dead", func() error {
		out, _, _ := command(t, "systemctl", "show", "--property=ActiveState", "--value", "fraild.service")
		if state := strings.TrimSpace(out); state != "failed" {
			return fmt.Errorf("it is %s", state)
		}
		return nil
	})
	eventually(t, "the guest is untraced", func() error {
		if lines := tp.take(); len(lines) != 0 {
			return fmt.Errorf("%d events, the last one %s", len(lines), lines[len(lines)-1])
		}
		return nil
	})
	if res := runIn(t, guest, "t-opens; t-32"); res.Status != 32 {
		t.Errorf("after fraild's death: %+v", res)
	}
	if lines := tp.take(); len(lines) != 0 {
		t.Errorf("%d events although nobody traces: %s", len(lines), lines[0])
	}
	if _, errs, err := command(t, "frail", "list"); err == nil || !strings.Contains(errs, "error: ") {
		t.Errorf("frail list without fraild: %v, %q", err, errs)
	}

	// libvirt's hook finds nobody to hand over to and lets the guest start.
	other := startGuest(t, "meanwhile", traced)
	waitGuest(t, other)

	must(t, "systemctl", "start", "fraild.service")
	again := waitTraced(t, guest)
	if again.VM.ID == first.VM.ID {
		t.Errorf("the VM's id is %d again", again.VM.ID)
	}
	waitTraced(t, other)
	runIn(t, guest, "killall t-getppid")
	checkTraced(t, guest)
	checkTraced(t, other)
}

// must2 is must for a cleanup, when the test's context is done.
func must2(t *testing.T, name string, args ...string) {
	t.Helper()
	if _, err := vm.Command(name, args...); err != nil {
		t.Error(err)
	}
}

// checkTraced runs a program in a traced guest and checks its record.
func checkTraced(t *testing.T, v *vm.VM) {
	t.Helper()
	tr := startTrace(t, v.Name)
	res := runIn(t, v, "t-opens")
	checkCalls(t, known[0], res.Output, tr.stop(), false)
}

// TestEnableDisable turns tracing on and off in a running guest with frail.
func TestEnableDisable(t *testing.T) {
	begin(t)
	tp := watchTracepoints(t)
	guest := startGuest(t, "switched", vcpus(2))
	waitGuest(t, guest)
	waitState(t, guest.Name, stateNotTraced)
	if _, errs, err := command(t, "frail", "trace", guest.Name); err == nil || !strings.Contains(errs, "error: ") {
		t.Errorf("frail trace of a domain that is not traced: %v, %q", err, errs)
	}
	// Calls in flight at every switch.
	runIn(t, guest, "t-getppid 0 >/dev/null & t-getppid 0 >/dev/null &")

	for range 3 {
		must(t, "frail", "enable", guest.Name, "--live")
		waitTraced(t, guest)
		checkTraced(t, guest)
		must(t, "frail", "disable", guest.Name, "--live")
		waitState(t, guest.Name, stateNotTraced)
		tp.take()
		if res := runIn(t, guest, "t-opens; t-32"); res.Status != 32 {
			t.Errorf("untraced again: %+v", res)
		}
		if lines := tp.take(); len(lines) != 0 {
			t.Errorf("%d events although tracing is off: %s", len(lines), lines[0])
		}
	}
	// virsh does the same.
	must(t, "virsh", "metadata", guest.Name, "--uri", "urn:frail:domain:1.0", "--key", "frail", "--live",
		"--set", "<frail><trace/></frail>")
	waitTraced(t, guest)
	runIn(t, guest, "killall t-getppid")
	checkTraced(t, guest)

	xml := must(t, "virsh", "dumpxml", "--inactive", guest.Name)
	if strings.Contains(xml, "urn:frail:domain:1.0") {
		t.Errorf("--live changed the persistent configuration:\n%s", xml)
	}
	must(t, "frail", "enable", guest.Name, "--config")
	xml = must(t, "virsh", "dumpxml", "--inactive", guest.Name)
	if !strings.Contains(xml, "urn:frail:domain:1.0") {
		t.Errorf("--config did not change the persistent configuration:\n%s", xml)
	}
}

// TestBadMetadata starts a guest whose element is not understood: it runs,
// untraced, and the reason is where a user looks.
func TestBadMetadata(t *testing.T) {
	begin(t)
	tp := watchTracepoints(t)
	guest := startGuest(t, "bad", metadata(`<frail:frail xmlns:frail="urn:frail:domain:1.0"><frail:tracce/></frail:frail>`))
	waitGuest(t, guest)
	if state := waitState(t, guest.Name, stateError); !strings.Contains(state.Reason, "tracce") {
		t.Errorf("frail list gives the reason %q, which does not name the bad element", state.Reason)
	}
	if out := must(t, "frail", "list"); !strings.Contains(out, "error: ") {
		t.Errorf("frail list has no error:\n%s", out)
	}
	log := must(t, "journalctl", "--boot", "--unit", "fraild.service", "--no-pager")
	if !strings.Contains(log, "tracce") {
		t.Errorf("fraild's log does not name the bad element:\n%s", log)
	}
	if res := runIn(t, guest, "t-opens"); res.Status != 0 {
		t.Errorf("t-opens: %+v", res)
	}
	if lines := tp.take(); len(lines) != 0 {
		t.Errorf("%d events of a guest that must not be traced: %s", len(lines), lines[0])
	}
	// Mended, it is traced without a restart.
	must(t, "frail", "disable", guest.Name, "--live")
	waitState(t, guest.Name, stateNotTraced)
	must(t, "frail", "enable", guest.Name, "--live")
	waitTraced(t, guest)
	checkTraced(t, guest)
}

// TestGuestReset resets a traced guest: a new kernel at another address in
// the same emulator, whose processes are known again.
func TestGuestReset(t *testing.T) {
	begin(t)
	guest := startGuest(t, "reboot", traced)
	waitGuest(t, guest)
	first := waitTraced(t, guest)
	checkTraced(t, guest)

	must(t, "virsh", "reset", guest.Name)
	eventually(t, "the new kernel is traced", func() error {
		d, err := listed(t, guest.Name)
		switch {
		case err != nil:
			return err
		case d.State != stateTraced || d.VM == nil:
			return fmt.Errorf("it is %s %q", d.State, d.Reason)
		case d.VM.Generation == first.VM.Generation:
			return fmt.Errorf("the kernel is still the first one")
		}
		return nil
	})
	waitGuest(t, guest)
	waitTraced(t, guest)
	checkTraced(t, guest)
}

// TestDoctor checks that a host on which everything works is found well, and
// one without fraild is not.
func TestDoctor(t *testing.T) {
	begin(t)
	must(t, "frail", "doctor")
	must(t, "systemctl", "stop", "fraild.service")
	t.Cleanup(func() { must2(t, "systemctl", "start", "fraild.service") })
	out, _, err := command(t, "frail", "doctor")
	if err == nil || !strings.Contains(out, "systemctl start fraild") {
		t.Errorf("frail doctor without fraild: %v\n%s", err, out)
	}
}

// TestModuleReload takes the module out while a guest runs, once nobody uses
// it, and puts it back.
func TestModuleReload(t *testing.T) {
	begin(t)
	guest := startGuest(t, "reload", traced, vcpus(2))
	waitGuest(t, guest)
	waitTraced(t, guest)
	runIn(t, guest, "t-getppid 0 >/dev/null & t-getppid 0 >/dev/null &")

	if out, errs, err := command(t, "rmmod", "frail"); err == nil {
		t.Fatalf("rmmod succeeded while a VM is traced\n%s%s", out, errs)
	}
	must(t, "systemctl", "stop", "fraild.service")
	t.Cleanup(func() { must2(t, "systemctl", "start", "fraild.service") })
	must(t, "rmmod", "frail")
	if res := runIn(t, guest, "t-opens; t-32"); res.Status != 32 {
		t.Errorf("without the module: %+v", res)
	}
	must(t, "modprobe", "frail")
	must(t, "systemctl", "start", "fraild.service")
	waitTraced(t, guest)
	runIn(t, guest, "killall t-getppid")
	checkTraced(t, guest)
}

// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/encoding/protojson"

	"frail/api"
	"frail/kmod/device"
)

func newDoctorCmd(opts *options) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Check everything that tracing needs and say how to fix what is missing",
		Long: `Check everything that tracing needs and say how to fix what is missing.

The exit status is 1 if a check failed. A warning is of something tracing can do
without.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			checks := system{root: "/"}.checks()
			checks = append(checks, opts.checkLibvirt())
			checks = append(checks, opts.checkDaemon(cmd.Context())...)
			if err := writeChecks(cmd.OutOrStdout(), checks, asJSON); err != nil {
				return err
			}
			for _, c := range checks {
				if !c.GetOk() && !c.GetOptional() {
					return errReported
				}
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON, one document")
	return cmd
}

// writeChecks prints the checks and the fixes of those that failed.
func writeChecks(w io.Writer, checks []*api.Check, asJSON bool) error {
	if asJSON {
		text, err := protojson.MarshalOptions{Multiline: true, UseProtoNames: true, EmitUnpopulated: true}.
			Marshal(&api.DoctorResponse{Checks: checks})
		if err != nil {
			return fmt.Errorf("format checks: %w", err)
		}
		_, err = fmt.Fprintf(w, "%s\n", text)
		return err
	}
	width := 0
	for _, c := range checks {
		width = max(width, len(c.GetName()))
	}
	out := bufio.NewWriter(w)
	for _, c := range checks {
		result := "PASS"
		switch {
		case !c.GetOk() && c.GetOptional():
			result = "WARN"
		case !c.GetOk():
			result = "FAIL"
		}
		fmt.Fprintf(out, "%s  %-*s  %s\n", result, width, c.GetName(), printable(c.GetDetail()))
		if !c.GetOk() && c.GetFix() != "" {
			fmt.Fprintf(out, "      %-*s  fix: %s\n", width, "", printable(c.GetFix()))
		}
	}
	return out.Flush()
}

// system is the machine whose files are below root.
type system struct{ root string }

// maxSysfsBytes bounds what is read of a file that holds one short value.
const maxSysfsBytes = 4096

// maxKallsymsBytes bounds what is read of /proc/kallsyms: a large kernel has 15 MB.
const maxKallsymsBytes = 64 << 20

func (s system) path(name string) string { return filepath.Join(s.root, name) }

// value returns the trimmed content of a short file.
func (s system) value(name string) (string, error) {
	f, err := os.Open(s.path(name))
	if err != nil {
		return "", err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxSysfsBytes))
	return strings.TrimSpace(string(b)), err
}

func (s system) exists(name string) bool {
	_, err := os.Stat(s.path(name))
	return err == nil
}

// checks are those that need no daemon.
func (s system) checks() []*api.Check {
	return []*api.Check{
		s.kvm(),
		s.symbols(),
		s.btf(),
		s.module(),
		s.device(),
		s.hook(),
	}
}

// kvm checks for KVM and its vendor module.
func (s system) kvm() *api.Check {
	c := &api.Check{Name: "KVM"}
	switch {
	case s.exists("sys/module/kvm_amd"):
		c.Ok, c.Detail = true, "kvm_amd is loaded"
	case s.exists("sys/module/kvm_intel"):
		c.Ok, c.Detail = true, "kvm_intel is loaded"
	case s.exists("sys/module/kvm"):
		c.Detail = "kvm is loaded, but neither kvm_amd nor kvm_intel"
		c.Fix = "enable virtualization in the firmware's setup, then modprobe kvm_amd or kvm_intel"
	default:
		c.Detail = "KVM is not loaded"
		c.Fix = "modprobe kvm_amd or kvm_intel"
	}
	return c
}

// symbols checks for what the module needs of the kernel to hook a function: kprobes, to
// find symbols, and ftrace that can change a function's course.
func (s system) symbols() *api.Check {
	c := &api.Check{Name: "kernel ftrace"}
	need := map[string]bool{"register_kprobe": false, "register_ftrace_function": false, "ftrace_set_filter_ip": false}
	f, err := os.Open(s.path("proc/kallsyms"))
	if err != nil {
		c.Detail = "cannot list kernel symbols: " + err.Error()
		c.Fix = "use a kernel with CONFIG_KALLSYMS"
		return c
	}
	defer f.Close()
	missing := len(need)
	lines := bufio.NewScanner(io.LimitReader(f, maxKallsymsBytes))
	for missing > 0 && lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 3 {
			continue
		}
		if seen, ok := need[fields[2]]; ok && !seen {
			need[fields[2]] = true
			missing--
		}
	}
	if err := lines.Err(); err != nil {
		c.Detail = "cannot list kernel symbols: " + err.Error()
		return c
	}
	if missing > 0 {
		c.Detail = "the kernel cannot redirect functions by ftrace"
		c.Fix = "use a kernel with CONFIG_KPROBES and CONFIG_DYNAMIC_FTRACE_WITH_REGS, as every distribution's"
		return c
	}
	enabled, err := s.value("proc/sys/kernel/ftrace_enabled")
	if err == nil && enabled == "0" {
		c.Detail = "ftrace is switched off"
		c.Fix = "sysctl kernel.ftrace_enabled=1"
		return c
	}
	c.Ok, c.Detail = true, "functions can be redirected"
	return c
}

// btf checks for the kernel's own type information.
func (s system) btf() *api.Check {
	c := &api.Check{Name: "kernel BTF"}
	if !s.exists("sys/kernel/btf/vmlinux") {
		c.Detail = "/sys/kernel/btf/vmlinux does not exist"
		c.Fix = "use a kernel with CONFIG_DEBUG_INFO_BTF, as every distribution's since 2021"
		return c
	}
	c.Ok, c.Detail = true, "/sys/kernel/btf/vmlinux"
	return c
}

// module checks for frail.ko.
func (s system) module() *api.Check {
	c := &api.Check{Name: "frail.ko"}
	if s.exists("sys/module/frail") {
		c.Ok, c.Detail = true, "loaded"
		if v, err := s.value("sys/module/frail/version"); err == nil {
			c.Detail = "loaded, version " + v
		}
		return c
	}
	c.Detail = "not loaded"
	c.Fix = "modprobe frail; if that finds no module, install frail-dkms"
	if log := s.moduleLog(); len(log) > 0 {
		c.Detail = "not loaded; the kernel's log: " + strings.Join(log, "; ")
		c.Fix = "follow what the log says, then modprobe frail"
	}
	if mode, err := s.value("sys/kernel/security/lockdown"); err == nil && !strings.Contains(mode, "[none]") && mode != "" {
		c.Fix = "the kernel is locked down (Secure Boot) and takes only signed modules: enrol DKMS's key with mokutil --import, restart, then modprobe frail"
	}
	return c
}

// device checks for /dev/frail and that only root may use it.
func (s system) device() *api.Check {
	c := &api.Check{Name: device.Path}
	info, err := os.Stat(s.path(device.Path))
	switch {
	case errors.Is(err, os.ErrNotExist):
		c.Detail = "does not exist"
		c.Fix = "modprobe frail"
	case err != nil:
		c.Detail = err.Error()
	case info.Mode()&os.ModeCharDevice == 0:
		c.Detail = "is not a character device"
		c.Fix = "rm " + device.Path + ", then modprobe -r frail and modprobe frail"
	case info.Mode().Perm()&0o077 != 0:
		c.Detail = fmt.Sprintf("mode is %04o: users other than root may arm VMs", info.Mode().Perm())
		c.Fix = "chmod 0600 " + device.Path + ", and look for the udev rule that opens it"
	default:
		c.Ok, c.Detail = true, fmt.Sprintf("mode %04o", info.Mode().Perm())
	}
	return c
}

// hookPath is where Frail's hook is installed. libvirt runs every executable there.
const hookPath = "/etc/libvirt/hooks/qemu.d/frail"

// hook checks for libvirt's qemu hook. Tracing works without it.
func (s system) hook() *api.Check {
	c := &api.Check{Name: "libvirt hook", Optional: true}
	info, err := os.Lstat(s.path(hookPath))
	switch {
	case errors.Is(err, os.ErrNotExist):
		c.Detail = hookPath + " does not exist; guests are found through libvirt's events alone"
		c.Fix = "install the package frail-libvirt-hook, or packaging/qemu-hook as " + hookPath + " and reload libvirtd or virtqemud"
	case err != nil:
		c.Detail = err.Error()
	case !info.Mode().IsRegular():
		c.Detail = hookPath + " is not a regular file: AppArmor lets libvirt run no link"
		c.Fix = "replace it with a copy of packaging/qemu-hook, or install the package frail-libvirt-hook again"
	case info.Mode().Perm()&0o111 == 0:
		c.Detail = hookPath + " is not executable"
		c.Fix = "chmod 0755 " + hookPath
	default:
		c.Ok, c.Detail = true, hookPath
	}
	return c
}

// checkLibvirt checks the connection that enable and disable use.
func (o *options) checkLibvirt() *api.Check {
	c := &api.Check{Name: "libvirt"}
	conn, err := connect(o.uri)
	if err != nil {
		c.Detail = message(err)
		c.Fix = "systemctl start libvirtd (or virtqemud); as a user, join the group libvirt"
		return c
	}
	defer conn.Close()
	uri, err := conn.GetURI()
	if err != nil {
		c.Detail = message(err)
		return c
	}
	version, err := conn.GetLibVersion()
	if err != nil {
		c.Detail = message(err)
		return c
	}
	c.Ok = true
	c.Detail = fmt.Sprintf("%s, libvirt %d.%d.%d", uri, version/1000000, version/1000%1000, version%1000)
	return c
}

// checkDaemon checks that fraild answers, and passes on its own checks.
func (o *options) checkDaemon(ctx context.Context) []*api.Check {
	c := &api.Check{Name: "fraild"}
	client, err := dialDaemon(o.socket)
	if err != nil {
		c.Detail, c.Fix, _ = strings.Cut(message(err), ": ")
		return []*api.Check{c}
	}
	defer client.Close()
	st, err := client.Status(ctx, &api.StatusRequest{})
	if err != nil {
		c.Detail = message(err)
		c.Fix = "journalctl -u fraild says more"
		return []*api.Check{c}
	}
	c.Ok = true
	c.Detail = fmt.Sprintf("version %s, pid %d, watches %s, traces %d domains", st.GetVersion(), st.GetPid(), st.GetUri(), st.GetTraced())
	if err := o.checkURI(st.GetUri()); err != nil {
		c.Ok = false
		c.Detail, c.Fix, _ = strings.Cut(message(err), ": set ")
		c.Fix = "set " + c.Fix
	}
	checks := []*api.Check{c}
	theirs, err := client.Doctor(ctx, &api.DoctorRequest{})
	if err != nil {
		return append(checks, &api.Check{Name: "fraild's checks", Detail: message(err), Fix: "journalctl -u fraild says more"})
	}
	return append(checks, theirs.GetChecks()...)
}

// stopSignals end a trace in order.
var stopSignals = []os.Signal{unix.SIGINT, unix.SIGTERM}

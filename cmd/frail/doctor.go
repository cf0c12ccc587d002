// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/encoding/protojson"
	"libvirt.org/go/libvirt"

	"frail/api"
	"frail/cmd/internal/config"
	"frail/hooks"
	"frail/kmod/device"
)

func newDoctorCmd(opts *options) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Check everything that tracing needs and say how to fix what is missing",
		Long: `Check everything that tracing needs and say how to fix what is missing.

It looks at the kernel, KVM, frail.ko with its signature and device, libvirt's hook and what
SELinux and AppArmor make of it, fraild's configuration and socket, libvirt and the domains
that ask to be traced, and asks fraild what it sees. As root it sees most.

The exit status is 1 if a check failed. A warning is of something tracing can do
without.`,
		Example: `  frail doctor
  frail doctor --json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			socket, err := filepath.Abs(opts.socket)
			if err != nil {
				return fmt.Errorf("find fraild's socket: %w", err)
			}
			checks := system{root: "/"}.checks(socket)
			checks = append(checks, opts.checkLibvirt()...)
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

// checks are those that need no daemon. socket is where fraild is asked.
func (s system) checks(socket string) []*api.Check {
	return []*api.Check{
		s.kernel(),
		s.kvm(),
		s.symbols(),
		s.btf(),
		s.installed(),
		s.signature(),
		s.module(),
		s.device(),
		s.hook(),
		s.selinux(),
		s.apparmor(),
		s.configuration(),
		s.socket(socket),
	}
}

// The oldest kernel that frail.ko is built for: see kmod/compat.h.
const minMajor, minMinor = 6, 1

// kernel checks the version of the kernel that runs.
func (s system) kernel() *api.Check {
	c := &api.Check{Name: "kernel"}
	release, err := s.value("proc/sys/kernel/osrelease")
	if err != nil {
		c.Detail = "cannot tell which kernel runs: " + err.Error()
		return c
	}
	var major, minor int
	if _, err := fmt.Sscanf(release, "%d.%d", &major, &minor); err != nil {
		c.Detail = fmt.Sprintf("release %q has no version", release)
		return c
	}
	c.Detail = release
	if c.Ok = major > minMajor || major == minMajor && minor >= minMinor; !c.Ok {
		c.Fix = fmt.Sprintf("use Linux %d.%d or later", minMajor, minMinor)
	}
	return c
}

// kvm checks for KVM and its vendor module.
func (s system) kvm() *api.Check {
	c := &api.Check{Name: "KVM"}
	switch {
	case s.exists("sys/module/kvm_amd"):
		c.Ok, c.Detail = true, "kvm_amd is loaded"+s.nested("kvm_amd")
	case s.exists("sys/module/kvm_intel"):
		c.Ok, c.Detail = true, "kvm_intel is loaded"+s.nested("kvm_intel")
	case s.exists("sys/module/kvm"):
		c.Detail = "kvm is loaded, but neither kvm_amd nor kvm_intel"
		c.Fix = "enable virtualization in the firmware's setup, then modprobe kvm_amd or kvm_intel"
	default:
		c.Detail = "KVM is not loaded"
		c.Fix = "modprobe kvm_amd or kvm_intel"
	}
	return c
}

// nested says that guests may have guests of their own.
func (s system) nested(module string) string {
	if v, err := s.value("sys/module/" + module + "/parameters/nested"); err == nil && (v == "1" || v == "Y") {
		return "; calls of a guest's own guests are not seen"
	}
	return ""
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
	case info.Mode().Perm()&0o022 != 0:
		c.Detail = fmt.Sprintf("%s has mode %04o: libvirt runs as root what others may write", hookPath, info.Mode().Perm())
		c.Fix = "look at what is in it, then chmod 0755 " + hookPath
		c.Optional = false
	default:
		c.Ok, c.Detail = true, hookPath
	}
	return c
}

// configuration checks what fraild would read.
func (s system) configuration() *api.Check {
	c := &api.Check{Name: "configuration"}
	loaded, err := config.Load(s.path(config.DefaultPath), false)
	switch {
	case err != nil:
		first, _, more := strings.Cut(err.Error(), "\n")
		if c.Detail = first; more {
			c.Detail += ", and more"
		}
		c.Fix = "correct what frail config check says, then systemctl restart fraild"
	case len(loaded.Files) == 0:
		c.Ok, c.Detail = true, "no files: defaults"
	default:
		c.Ok, c.Detail = true, strings.Join(loaded.Files, ", ")
	}
	return c
}

// socket checks who may use fraild's socket at path.
func (s system) socket(path string) *api.Check {
	c := &api.Check{Name: "fraild's socket"}
	if loaded, err := config.Load(s.path(config.DefaultPath), false); err == nil && path == api.DefaultSocket && loaded.API.Socket != path {
		c.Detail = fmt.Sprintf("api.socket is %s, frail looks for %s", loaded.API.Socket, path)
		c.Fix = "frail --socket " + loaded.API.Socket
		return c
	}
	info, err := os.Stat(s.path(path))
	if err != nil {
		c.Optional = true // fraild's own check fails
		c.Detail = strings.TrimPrefix(err.Error(), "stat ")
		c.Fix = "systemctl start fraild"
		return c
	}
	mode := info.Mode()
	var gid uint32
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		gid = st.Gid
	}
	switch {
	case mode&os.ModeSocket == 0:
		c.Detail = path + " is not a socket"
		c.Fix = "systemctl restart fraild"
	case mode.Perm()&0o007 != 0:
		c.Detail = fmt.Sprintf("mode is %04o: every user may look into every guest", mode.Perm())
		c.Fix = "systemctl restart fraild, and look for what changed it"
	case gid == 0:
		c.Ok, c.Detail = true, fmt.Sprintf("mode %04o, for root alone; members of a group that api.group names may use it, too", mode.Perm())
	default:
		c.Ok, c.Detail = true, fmt.Sprintf("mode %04o, for root and group %s", mode.Perm(), s.groupName(gid))
	}
	return c
}

// groupName returns a group's name, its number if it has none here.
func (s system) groupName(gid uint32) string {
	number := strconv.FormatUint(uint64(gid), 10)
	text, err := os.ReadFile(s.path("etc/group"))
	if err != nil {
		return number
	}
	for line := range strings.Lines(string(text)) {
		if f := strings.Split(line, ":"); len(f) > 2 && f[2] == number {
			return f[0]
		}
	}
	return number
}

// checkLibvirt checks the connection that enable and disable use, and the domains in it.
func (o *options) checkLibvirt() []*api.Check {
	c := &api.Check{Name: "libvirt"}
	conn, err := connect(o.uri)
	if err != nil {
		c.Detail = message(err)
		c.Fix = "systemctl start libvirtd (or virtqemud); as a user, join the group libvirt"
		return []*api.Check{c}
	}
	defer conn.Close()
	uri, err := conn.GetURI()
	if err != nil {
		c.Detail = message(err)
		return []*api.Check{c}
	}
	version, err := conn.GetLibVersion()
	if err != nil {
		c.Detail = message(err)
		return []*api.Check{c}
	}
	c.Detail = fmt.Sprintf("%s, libvirt %s", uri, versionText(version))
	if emulator, err := conn.GetVersion(); err == nil {
		c.Detail += ", QEMU " + versionText(emulator)
	}
	if c.Ok = version >= minLibvirt; !c.Ok {
		c.Optional = true // the hook is
		c.Detail += ": it runs no hooks in qemu.d"
		c.Fix = "use libvirt " + versionText(minLibvirt) + " or later; without the hook tracing begins a little later"
	}
	return []*api.Check{c, checkDomains(conn)}
}

// minLibvirt is the first libvirt that runs hooks in qemu.d, as libvirt counts versions.
const minLibvirt = 6005000

func versionText(v uint32) string {
	return fmt.Sprintf("%d.%d.%d", v/1000000, v/1000%1000, v%1000)
}

// checkDomains looks at the XML of the domains that ask to be traced, whether they run or
// not, for what keeps them from it.
func checkDomains(conn *libvirt.Connect) *api.Check {
	c := &api.Check{Name: "domains"}
	domains, err := conn.ListAllDomains(0)
	if err != nil {
		c.Detail = message(err)
		return c
	}
	asks := 0
	var obstacles []string
	for i := range domains {
		dom := &domains[i]
		defer dom.Free()
		name, err := dom.GetName()
		if err != nil {
			continue // undefined since
		}
		text, err := dom.GetXMLDesc(0)
		if err != nil {
			continue
		}
		traced, obstacle := obstacleIn(text)
		if traced {
			asks++
		}
		if obstacle != "" {
			obstacles = append(obstacles, name+": "+obstacle)
		}
	}
	if len(obstacles) > 0 {
		c.Detail = strings.Join(obstacles, "; ")
		c.Fix = "virsh edit it, or frail disable it"
		return c
	}
	c.Ok, c.Detail = true, fmt.Sprintf("%d ask to be traced", asks)
	return c
}

// obstacleIn returns whether a domain's XML asks for tracing, and what in it keeps the
// domain from being traced; empty: nothing known before it starts.
func obstacleIn(text string) (traced bool, obstacle string) {
	cfg, err := hooks.ParseConfig([]byte(text))
	if err != nil {
		return false, err.Error()
	}
	if !cfg.Trace {
		return false, ""
	}
	var dom struct {
		Type     string `xml:"type,attr"`
		Security struct {
			Type string `xml:"type,attr"`
		} `xml:"launchSecurity"`
		Features []struct {
			Name   string `xml:"name,attr"`
			Policy string `xml:"policy,attr"`
		} `xml:"cpu>feature"`
	}
	if err := xml.Unmarshal([]byte(text), &dom); err != nil {
		return true, "its XML: " + err.Error()
	}
	switch {
	case dom.Type != "kvm":
		return true, "it is of type " + dom.Type + ": only domains of type kvm can be traced"
	case dom.Security.Type == "sev" || dom.Security.Type == "sev-snp" || dom.Security.Type == "tdx":
		return true, "its memory is encrypted (launchSecurity " + dom.Security.Type + "): the host cannot see into it"
	}
	for _, f := range dom.Features {
		if (f.Name == "fred" || f.Name == "shstk") && (f.Policy == "require" || f.Policy == "force") {
			return true, "its CPU has " + f.Name + ": such guests are not traced"
		}
	}
	return true, ""
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
	if ours := api.Version(); ours != st.GetVersion() {
		checks = append(checks, &api.Check{
			Name: "versions", Optional: true, Detail: fmt.Sprintf("frail is %s, fraild %s", ours, st.GetVersion()),
			Fix: "systemctl restart fraild, if it is from before an upgrade",
		})
	}
	theirs, err := client.Doctor(ctx, &api.DoctorRequest{})
	if err != nil {
		return append(checks, &api.Check{Name: "fraild's checks", Detail: message(err), Fix: "journalctl -u fraild says more"})
	}
	return append(checks, theirs.GetChecks()...)
}

// stopSignals end a trace in order.
var stopSignals = []os.Signal{unix.SIGINT, unix.SIGTERM}

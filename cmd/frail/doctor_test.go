// SPDX-License-Identifier: Apache-2.0

package main

import (
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
	"golang.org/x/sys/unix"

	"frail/api"
)

// A module that could not be loaded says why in the kernel's log.
func TestModuleCheckShowsTheLog(t *testing.T) {
	const plain = "not loaded"
	for _, tc := range []struct{ name, log, want string }{
		{"no log", "", plain},
		{"others' messages", "3,1,2,-;kvm: frail: no\n SUBSYSTEM=x\n3,2,3,-;frailty: no\n", plain},
		{"no warning", "5,1,2,-;frail: VM of process 1 not traced\n", plain},
		{"a user's message", "11,1,2,-;frail: made up\n", plain},
		{"tainting", "4,1,2,-;frail: loading out-of-tree module taints kernel.\n", plain},
		{"an error", "3,1,2,-;frail: this kernel has no symbol kvm_x, which Frail needs\n SUBSYSTEM=module\n",
			"not loaded; the kernel's log: this kernel has no symbol kvm_x, which Frail needs"},
		{"the last of many", "3,1,2,-;frail: a\n3,2,2,-;frail: b\n3,3,2,-;frail: c\n6,4,2,-;eth0: up\n4,5,2,-;frail: d\n",
			"not loaded; the kernel's log: b; c; d"},
	} {
		s := system{root: t.TempDir()}
		if tc.log != "" {
			if err := os.Mkdir(s.path("dev"), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(s.root, "dev/kmsg"), []byte(tc.log), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if c := s.module(); c.GetOk() || c.GetFix() == "" || c.GetDetail() != tc.want {
			t.Errorf("%s: %v, want the detail %q", tc.name, c, tc.want)
		}
	}
}

// The running kernel's log has an end.
func TestKernelLogIsRead(t *testing.T) {
	if len(system{root: "/"}.kmsg()) == 0 {
		t.Error("nothing read of /dev/kmsg")
	}
}

// root makes a machine of files, by path. A name that ends in a slash is a directory.
func root(t *testing.T, files map[string]string) system {
	t.Helper()
	s := system{root: t.TempDir()}
	for name, text := range files {
		path := s.path(name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if strings.HasSuffix(name, "/") {
			if err := os.MkdirAll(path, 0o755); err != nil {
				t.Fatal(err)
			}
			continue
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

// with returns base and more, which goes before it.
func with(base, more map[string]string) map[string]string {
	all := maps.Clone(base)
	maps.Copy(all, more)
	return all
}

// Each check passes on a machine that has what it looks for, and tells a fix on one that
// has not.
func TestDoctorChecks(t *testing.T) {
	const release, dir = "6.1.0-39-amd64", "lib/modules/6.1.0-39-amd64/"
	kernel := map[string]string{"proc/sys/kernel/osrelease": release + "\n"}
	hook := map[string]string{hookPath: "#!/bin/true\n"}
	symbols := "0 T register_kprobe\n0 T register_ftrace_function\n0 T ftrace_set_filter_ip\n"
	enforced := with(kernel, map[string]string{"sys/module/module/parameters/sig_enforce": "Y\n", dir + "modules.dep": "kernel/x.ko:\nupdates/dkms/frail.ko: kernel/arch/x86/kvm/kvm.ko\n"})
	locked := with(kernel, map[string]string{"sys/kernel/security/lockdown": "none [integrity] confidentiality\n", secureBootVariable: "\x06\x00\x00\x00\x01"})
	selinux := with(hook, map[string]string{"sys/fs/selinux/enforce": "1"})
	apparmor := with(hook, map[string]string{
		"sys/module/apparmor/parameters/enabled":  "Y\n",
		"sys/kernel/security/apparmor/profiles":   "/usr/bin/man (enforce)\nlibvirtd (enforce)\nlibvirtd//qemu_bridge_helper (enforce)\n",
		"etc/apparmor.d/usr.sbin.libvirtd":        "profile libvirtd /usr/sbin/libvirtd {\n  /** rwmkl,\n  /etc/libvirt/hooks/** rmix,\n}\n",
		"etc/apparmor.d/local/usr.sbin.virtqemud": "# empty\n",
	})
	const denied = "5,1,2,-;audit: type=1400 audit(1:2): apparmor=\"DENIED\" operation=\"exec\" profile=\"libvirtd\" name=\"/etc/libvirt/hooks/qemu.d/frail\"\n"
	type outcome int
	const (
		pass outcome = iota
		warn
		fail
	)
	for _, tc := range []struct {
		name  string
		check func(system) *api.Check
		files map[string]string
		want  outcome
		text  string // part of the detail or the fix
	}{
		{"kernel", system.kernel, kernel, pass, release},
		{"newer kernel", system.kernel, map[string]string{"proc/sys/kernel/osrelease": "7.2.0\n"}, pass, "7.2.0"},
		{"old kernel", system.kernel, map[string]string{"proc/sys/kernel/osrelease": "6.0.19-x\n"}, fail, "Linux 6.1 or later"},

		{"AMD", system.kvm, map[string]string{"sys/module/kvm_amd/": ""}, pass, "kvm_amd is loaded"},
		{"Intel, nested", system.kvm, map[string]string{"sys/module/kvm_intel/parameters/nested": "Y\n"}, pass, "a guest's own guests are not seen"},
		{"not nested", system.kvm, map[string]string{"sys/module/kvm_amd/parameters/nested": "0\n"}, pass, "kvm_amd is loaded"},
		{"no virtualization", system.kvm, map[string]string{"sys/module/kvm/": ""}, fail, "firmware"},
		{"no KVM", system.kvm, nil, fail, "modprobe kvm_amd or kvm_intel"},

		{"ftrace", system.symbols, map[string]string{"proc/kallsyms": symbols, "proc/sys/kernel/ftrace_enabled": "1"}, pass, "can be redirected"},
		{"ftrace off", system.symbols, map[string]string{"proc/kallsyms": symbols, "proc/sys/kernel/ftrace_enabled": "0"}, fail, "sysctl"},
		{"no ftrace", system.symbols, map[string]string{"proc/kallsyms": "0 T register_kprobe\n"}, fail, "CONFIG_DYNAMIC_FTRACE"},
		{"BTF", system.btf, map[string]string{"sys/kernel/btf/vmlinux": ""}, pass, "vmlinux"},
		{"no BTF", system.btf, nil, fail, "CONFIG_DEBUG_INFO_BTF"},

		{"module installed", system.installed, with(kernel, map[string]string{dir + "modules.dep": "updates/frail.ko.xz:\n", dir + "updates/frail.ko.xz": ""}), pass, "/" + dir + "updates/frail.ko.xz"},
		{"module of another kernel", system.installed, with(kernel, map[string]string{"lib/modules/6.12.0/updates/frail.ko": ""}), fail, "none for kernel " + release},
		{"no depmod", system.installed, with(kernel, map[string]string{dir + "updates/dkms/frail.ko.zst": "", dir + "modules.dep": "kernel/x.ko:\n"}), fail, "depmod"},
		{"module deleted", system.installed, with(kernel, map[string]string{dir + "modules.dep": "extra/frail.ko:\n"}), fail, "is gone"},
		{"loaded, not installed", system.installed, with(kernel, map[string]string{"sys/module/frail/": ""}), warn, "none for kernel"},

		{"no signature needed", system.signature, with(kernel, map[string]string{"sys/module/module/parameters/sig_enforce": "N\n", "sys/kernel/security/lockdown": "[none] integrity confidentiality\n"}), pass, "takes modules without"},
		{"Secure Boot alone", system.signature, with(kernel, map[string]string{secureBootVariable: "\x06\x00\x00\x00\x01"}), pass, "in spite of Secure Boot"},
		{"unsigned", system.signature, with(enforced, map[string]string{dir + "updates/dkms/frail.ko": "\x7fELF"}), fail, "is not signed"},
		{"signed, not loaded", system.signature, with(enforced, map[string]string{dir + "updates/dkms/frail.ko": "\x7fELF" + signatureMark}), warn, "mokutil"},
		{"signed with a key nobody knows", system.signature, with(enforced, map[string]string{dir + "updates/dkms/frail.ko": "\x7fELF" + signatureMark,
			"dev/kmsg": "5,901,1,-;Loading of module with unavailable key is rejected\n"}), fail, "unavailable key is rejected"},
		{"signed and loaded", system.signature, with(enforced, map[string]string{"sys/module/frail/": ""}), pass, "took this one"},
		{"locked down", system.signature, locked, fail, "(lockdown, Secure Boot); there is no frail.ko"},

		{"loaded", system.module, map[string]string{"sys/module/frail/version": "0.1.0\n"}, pass, "loaded, version 0.1.0"},

		{"no device", system.device, nil, fail, "modprobe frail"},
		{"no character device", system.device, map[string]string{"dev/frail": ""}, fail, "rm /dev/frail"},

		{"no hook", system.hook, nil, warn, "install the package frail-libvirt-hook"},

		{"no SELinux", system.selinux, hook, pass, "off"},
		{"permissive", system.selinux, with(hook, map[string]string{"sys/fs/selinux/enforce": "0"}), pass, "permissive"},
		{"no hook under SELinux", system.selinux, map[string]string{"sys/fs/selinux/enforce": "1"}, pass, "no hook"},
		{"no boolean", system.selinux, selinux, pass, "does not confine"},
		{"boolean on", system.selinux, with(selinux, map[string]string{"sys/fs/selinux/booleans/virt_hooks_unconfined": "1 1"}), pass, "is on"},
		{"boolean off", system.selinux, with(selinux, map[string]string{"sys/fs/selinux/booleans/virt_hooks_unconfined": "0 0"}), fail, "setsebool -P virt_hooks_unconfined on"},

		{"no AppArmor", system.apparmor, hook, pass, "off"},
		{"no hook under AppArmor", system.apparmor, map[string]string{"sys/module/apparmor/parameters/enabled": "Y"}, pass, "no hook"},
		{"profile allows hooks", system.apparmor, apparmor, pass, "the profile of libvirtd lets it run"},
		{"profile lacks hooks", system.apparmor, with(apparmor, map[string]string{"etc/apparmor.d/usr.sbin.libvirtd": "profile libvirtd /usr/sbin/libvirtd {\n  /** rwmkl,\n}\n"}), warn, "apparmor_parser -r"},
		{"host adds hooks", system.apparmor, with(apparmor, map[string]string{"etc/apparmor.d/usr.sbin.libvirtd": "", "etc/apparmor.d/local/usr.sbin.libvirtd": "/etc/libvirt/hooks/qemu.d/* rmix,\n"}), pass, "lets it run"},
		{"hook denied", system.apparmor, with(apparmor, map[string]string{"dev/kmsg": denied}), fail, "DENIED"},
		{"another denial", system.apparmor, with(apparmor, map[string]string{"dev/kmsg": strings.ReplaceAll(denied, "qemu.d/frail", "qemu.d/x")}), pass, "lets it run"},
		{"not confined", system.apparmor, with(apparmor, map[string]string{"sys/kernel/security/apparmor/profiles": "libvirtd (complain)\n"}), pass, "not confined"},

		{"no configuration", system.configuration, nil, pass, "defaults"},
		{"drop-in alone", system.configuration, map[string]string{"etc/frail/conf.d/a.toml": "[log]\nlevel = \"warn\"\n"}, pass, "conf.d/a.toml"},
		{"bad configuration", system.configuration, map[string]string{"etc/frail/frail.toml": "\n[log]\nlevle = 1\nx = 1\n"}, fail, "frail.toml:3: log.levle: unknown key, and more"},

		{"no socket", func(s system) *api.Check { return s.socket(api.DefaultSocket) }, nil, warn, "systemctl start fraild"},
		{"no socket, but a file", func(s system) *api.Check { return s.socket(api.DefaultSocket) }, map[string]string{"run/frail/frail.sock": ""}, fail, "is not a socket"},
		{"another socket", func(s system) *api.Check { return s.socket(api.DefaultSocket) }, map[string]string{"etc/frail/frail.toml": "[api]\nsocket = \"/run/x\"\n"}, fail, "frail --socket /run/x"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := tc.check(root(t, tc.files))
			got := fail
			switch {
			case c.GetOk():
				got = pass
			case c.GetOptional():
				got = warn
			}
			if got != tc.want || !strings.Contains(c.GetDetail()+"\n"+c.GetFix(), tc.text) || !c.GetOk() && c.GetFix() == "" {
				t.Errorf("outcome %d, want %d, with %q: %v", got, tc.want, tc.text, c)
			}
		})
	}
}

// What depends on the mode or kind of a file.
func TestDoctorModes(t *testing.T) {
	s := root(t, map[string]string{hookPath: "", "dev/": "", "run/": "", "etc/group": "root:x:0:\nfrail:x:64999:alice\n"})
	for _, tc := range []struct {
		mode           os.FileMode
		ok, optional   bool
		detail, remedy string
	}{
		{0o755, true, true, hookPath, ""},
		{0o644, false, true, "not executable", "chmod 0755"},
		{0o777, false, false, "mode 0777", "chmod 0755"},
	} {
		if err := os.Chmod(s.path(hookPath), tc.mode); err != nil {
			t.Fatal(err)
		}
		if c := s.hook(); c.GetOk() != tc.ok || c.GetOptional() != tc.optional || !strings.Contains(c.GetDetail(), tc.detail) || !strings.Contains(c.GetFix(), tc.remedy) {
			t.Errorf("hook of mode %04o: %v", tc.mode, c)
		}
	}
	if err := os.Remove(s.path(hookPath)); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/bin/true", s.path(hookPath)); err != nil {
		t.Fatal(err)
	}
	if c := s.hook(); c.GetOk() || !strings.Contains(c.GetFix(), "copy") {
		t.Errorf("hook that is a link: %v", c)
	}

	const null = 1<<8 | 3 // as /dev/null
	if err := unix.Mknod(s.path("dev/frail"), unix.S_IFCHR|0o600, null); err != nil {
		t.Fatal(err)
	}
	if c := s.device(); !c.GetOk() {
		t.Errorf("device: %v", c)
	}
	if err := os.Chmod(s.path("dev/frail"), 0o666); err != nil {
		t.Fatal(err)
	}
	if c := s.device(); c.GetOk() || !strings.Contains(c.GetDetail(), "0666") || c.GetFix() == "" {
		t.Errorf("device that is open: %v", c)
	}

	l, err := net.Listen("unix", s.path("run/frail.sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for _, tc := range []struct {
		mode   os.FileMode
		gid    int
		ok     bool
		detail string
	}{
		{0o660, 0, true, "root alone"},
		{0o660, 64999, true, "root and group frail"},
		{0o660, 64998, true, "root and group 64998"},
		{0o666, 64999, false, "every user"},
	} {
		if err := errors.Join(os.Chown(s.path("run/frail.sock"), 0, tc.gid), os.Chmod(s.path("run/frail.sock"), tc.mode)); err != nil {
			t.Fatal(err)
		}
		if c := s.socket("/run/frail.sock"); c.GetOk() != tc.ok || !strings.Contains(c.GetDetail(), tc.detail) || c.GetOk() == (c.GetFix() != "") {
			t.Errorf("socket of mode %04o and group %d: %v", tc.mode, tc.gid, c)
		}
	}
}

// A module's signature is at its end, also when the module is compressed.
func TestIsSigned(t *testing.T) {
	compress := map[string]func(io.Writer) (io.WriteCloser, error){
		"":     func(w io.Writer) (io.WriteCloser, error) { return nopCloser{w}, nil },
		".xz":  func(w io.Writer) (io.WriteCloser, error) { return xz.NewWriter(w) },
		".gz":  func(w io.Writer) (io.WriteCloser, error) { return gzip.NewWriter(w), nil },
		".zst": func(w io.Writer) (io.WriteCloser, error) { return zstd.NewWriter(w) },
	}
	for ext, compressor := range compress {
		for text, want := range map[string]bool{"\x7fELF code signature" + signatureMark: true, "\x7fELF code": false, signatureMark + "x": false} {
			path := filepath.Join(t.TempDir(), "frail.ko"+ext)
			f, err := os.Create(path)
			if err != nil {
				t.Fatal(err)
			}
			w, err := compressor(f)
			if err == nil {
				_, err = io.WriteString(w, text)
			}
			if err = errors.Join(err, w.Close(), f.Close()); err != nil {
				t.Fatal(err)
			}
			if got, err := isSigned(path); err != nil || got != want {
				t.Errorf("frail.ko%s of %q: signed %t, error %v", ext, text, got, err)
			}
		}
	}
	bad := filepath.Join(t.TempDir(), "frail.ko.xz")
	if err := os.WriteFile(bad, []byte("no xz"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := isSigned(bad); err == nil {
		t.Error("a file that is not compressed as it is called is no error")
	}
}

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }

// Debian's own profile of libvirtd, where it is installed.
func TestRealAppArmorProfile(t *testing.T) {
	if _, err := os.Stat("/etc/apparmor.d/usr.sbin.libvirtd"); err != nil {
		t.Skip("libvirt's AppArmor profile is not installed: ", err)
	}
	if !(system{root: "/"}).profileAllows("libvirtd") {
		t.Error("it is not seen that the profile lets hooks run")
	}
}

// What in a domain's XML keeps it from being traced.
func TestObstacles(t *testing.T) {
	xml := func(typ, metadata, more string) string {
		return fmt.Sprintf("<domain type='%s'><name>x</name><metadata>%s</metadata>%s</domain>", typ, metadata, more)
	}
	for _, tc := range []struct {
		name, xml string
		traced    bool
		want      string
	}{
		{"plain", xml("qemu", "", ""), false, ""},
		{"asks", xml("kvm", element, "<cpu><feature policy='disable' name='shstk'/></cpu>"), true, ""},
		{"emulated", xml("qemu", element, ""), true, "of type qemu"},
		{"SEV", xml("kvm", element, "<launchSecurity type='sev'><policy>0x0001</policy></launchSecurity>"), true, "encrypted (launchSecurity sev)"},
		{"SNP", xml("kvm", element, "<launchSecurity type='sev-snp'/>"), true, "encrypted"},
		{"TDX", xml("kvm", element, "<launchSecurity type='tdx'/>"), true, "encrypted"},
		{"encrypted, does not ask", xml("kvm", "", "<launchSecurity type='sev'/>"), false, ""},
		{"FRED", xml("kvm", element, "<cpu><feature policy='require' name='fred'/></cpu>"), true, "has fred"},
		{"shadow stacks", xml("kvm", element, "<cpu><feature policy='force' name='shstk'/></cpu>"), true, "has shstk"},
		{"bad element", xml("kvm", strings.ReplaceAll(element, "trace/", "trase/"), ""), false, "unknown element"},
	} {
		traced, got := obstacleIn(tc.xml)
		if traced != tc.traced || !strings.Contains(got, tc.want) || tc.want == "" && got != "" {
			t.Errorf("%s: %t, %q, want %t, %q", tc.name, traced, got, tc.traced, tc.want)
		}
	}
}

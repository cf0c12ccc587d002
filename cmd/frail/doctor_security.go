// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"

	"frail/api"
)

// maxModuleBytes bounds what is read of frail.ko: with debug information it has 5 MB.
const maxModuleBytes = 256 << 20

// signatureMark ends a signed module: MODULE_SIG_STRING of the kernel.
const signatureMark = "~Module signature appended~\n"

// moduleFile returns where frail.ko is for the kernel that runs, as modprobe finds it, and
// whether depmod knows it there. No name means that there is none.
func (s system) moduleFile() (name string, indexed bool) {
	release, err := s.value("proc/sys/kernel/osrelease")
	if err != nil {
		return "", false
	}
	dir := "lib/modules/" + release
	if index, err := os.ReadFile(s.path(dir + "/modules.dep")); err == nil {
		for line := range strings.Lines(string(index)) {
			file, _, _ := strings.Cut(line, ":")
			if strings.HasPrefix(filepath.Base(file), "frail.ko") {
				return dir + "/" + file, true
			}
		}
	}
	// Where DKMS, kmod packages and "make install" put it.
	for _, sub := range []string{"updates", "updates/dkms", "extra", "weak-updates"} {
		if found, err := filepath.Glob(s.path(dir + "/" + sub + "/frail.ko*")); err == nil && len(found) > 0 {
			return dir + "/" + sub + "/" + filepath.Base(found[0]), false
		}
	}
	return "", false
}

// installed checks that modprobe finds frail.ko for the kernel that runs.
func (s system) installed() *api.Check {
	c := &api.Check{Name: "frail.ko's file", Optional: s.exists("sys/module/frail")}
	release, err := s.value("proc/sys/kernel/osrelease")
	if err != nil {
		c.Detail = "cannot tell which kernel runs: " + err.Error()
		return c
	}
	name, indexed := s.moduleFile()
	switch {
	case name == "":
		c.Detail = "there is none for kernel " + release
		c.Fix = "install frail-dkms and linux-headers-" + release + ", or as root in Frail's sources: make build kmod install RELEASE=" + release + " && depmod"
	case !s.exists(name):
		c.Detail = "/" + name + " is gone"
		c.Fix = "install it again, then depmod"
	case !indexed:
		c.Detail = "/" + name + " is there, but modprobe does not know it"
		c.Fix = "depmod"
	default:
		c.Ok, c.Detail = true, "/"+name
	}
	return c
}

// secureBootVariable has four bytes of attributes, then 1 if Secure Boot is on.
const secureBootVariable = "sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"

// signature checks that the kernel takes frail.ko for what its signature says.
func (s system) signature() *api.Check {
	c := &api.Check{Name: "frail.ko's signature"}
	var why []string
	if v, err := s.value("sys/module/module/parameters/sig_enforce"); err == nil && (v == "Y" || v == "1") {
		why = append(why, "module.sig_enforce")
	}
	if mode, err := s.value("sys/kernel/security/lockdown"); err == nil && mode != "" && !strings.Contains(mode, "[none]") {
		why = append(why, "lockdown")
	}
	secureBoot := false
	if v, err := os.ReadFile(s.path(secureBootVariable)); err == nil && len(v) == 5 && v[4] == 1 {
		secureBoot = true
	}
	if len(why) == 0 {
		c.Ok, c.Detail = true, "not needed: the kernel takes modules without one"
		if secureBoot {
			c.Detail += ", in spite of Secure Boot"
		}
		return c
	}
	only := "the kernel takes only signed modules (" + strings.Join(why, ", ")
	if secureBoot {
		only += ", Secure Boot"
	}
	only += ")"
	const enrol = "enrol the key with mokutil --import /var/lib/dkms/mok.pub, restart and confirm at the console, then modprobe frail"
	if s.exists("sys/module/frail") {
		c.Ok, c.Detail = true, only+" and took this one"
		return c
	}
	name, _ := s.moduleFile()
	if name == "" {
		c.Detail = only + "; there is no frail.ko to look at"
		c.Fix = "install frail-dkms, which signs it; " + enrol
		return c
	}
	switch signed, err := isSigned(s.path(name)); {
	case err != nil:
		c.Detail = fmt.Sprintf("%s; cannot read /%s: %v", only, name, err)
		c.Fix = "run frail doctor as root"
	case !signed:
		c.Detail = only + ", /" + name + " is not signed"
		c.Fix = "sign it: with mokutil and openssl installed, dkms install --force frail does; " + enrol
	default:
		c.Detail = only + "; /" + name + " is signed"
		if rejection := s.rejection(); rejection != "" {
			c.Detail += ", the kernel's log says: " + rejection
			c.Fix = enrol
			return c
		}
		// Only the kernel knows the keys that it trusts.
		c.Optional = true
		c.Detail += ", but not loaded"
		c.Fix = "modprobe frail; if the key is rejected, " + enrol
	}
	return c
}

// rejection returns the last message of the kernel's log that a module's key is not one
// that it trusts; the message does not say which module.
func (s system) rejection() string {
	last := ""
	for line := range strings.Lines(string(s.kmsg())) {
		_, text, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ";")
		if strings.HasPrefix(text, "Loading of module with unavailable key is rejected") {
			last = text
		}
	}
	return last
}

// isSigned reports whether a module has a signature, by whatever key.
func isSigned(path string) (bool, error) {
	f, err := os.Open(path)
	if err != nil {
		return false, err
	}
	defer f.Close()
	r := io.Reader(f)
	switch filepath.Ext(path) {
	case ".xz":
		r, err = xz.NewReader(f)
	case ".gz":
		r, err = gzip.NewReader(f)
	case ".zst":
		var z *zstd.Decoder
		if z, err = zstd.NewReader(f, zstd.WithDecoderConcurrency(1)); err == nil {
			defer z.Close()
			r = z
		}
	}
	if err != nil {
		return false, err
	}
	text, err := io.ReadAll(io.LimitReader(r, maxModuleBytes))
	return bytes.HasSuffix(text, []byte(signatureMark)), err
}

// hookBoolean lets libvirt's hooks do what they do. Where a policy has it and it is off, a
// hook that is denied something can keep every domain from starting.
const hookBoolean = "virt_hooks_unconfined"

// selinux checks that SELinux lets libvirt run the hook.
func (s system) selinux() *api.Check {
	c := &api.Check{Name: "SELinux and the hook"}
	mode, err := s.value("sys/fs/selinux/enforce")
	switch {
	case errors.Is(err, os.ErrNotExist):
		c.Ok, c.Detail = true, "SELinux is off"
		return c
	case err != nil:
		c.Detail, c.Optional = err.Error(), true
		return c
	case mode != "1":
		c.Ok, c.Detail = true, "SELinux is permissive"
		return c
	case !s.exists(hookPath):
		c.Ok, c.Detail = true, "there is no hook"
		return c
	}
	// "CURRENT PENDING", each 0 or 1.
	value, err := s.value("sys/fs/selinux/booleans/" + hookBoolean)
	switch {
	case errors.Is(err, os.ErrNotExist):
		c.Ok, c.Detail = true, "the policy does not confine hooks"
	case err != nil:
		c.Detail, c.Optional = err.Error(), true
		c.Fix = "run frail doctor as root"
	case strings.HasPrefix(value, "1"):
		c.Ok, c.Detail = true, hookBoolean+" is on"
	default:
		c.Detail = hookBoolean + " is off: a hook that is denied something keeps every domain from starting"
		c.Fix = "setsebool -P " + hookBoolean + " on; or remove the hook, Frail works without it"
	}
	return c
}

// apparmor checks that AppArmor lets libvirt run the hook.
func (s system) apparmor() *api.Check {
	c := &api.Check{Name: "AppArmor and the hook"}
	if v, err := s.value("sys/module/apparmor/parameters/enabled"); err != nil || v != "Y" {
		c.Ok, c.Detail = true, "AppArmor is off"
		return c
	}
	if !s.exists(hookPath) {
		c.Ok, c.Detail = true, "there is no hook"
		return c
	}
	profiles, err := os.ReadFile(s.path("sys/kernel/security/apparmor/profiles"))
	if err != nil {
		c.Detail, c.Optional = err.Error(), true
		c.Fix = "run frail doctor as root"
		return c
	}
	confined := ""
	for _, daemon := range []string{"libvirtd", "virtqemud"} {
		if !bytes.Contains(append([]byte("\n"), profiles...), []byte("\n"+daemon+" (enforce)")) {
			continue
		}
		confined = daemon
		profile := "usr.sbin." + daemon
		c.Fix = "add the line \"/etc/libvirt/hooks/** rmix,\" to /etc/apparmor.d/local/" + profile + ", then apparmor_parser -r /etc/apparmor.d/" + profile
		if denial := s.denial(daemon); denial != "" {
			c.Detail = "the kernel's log: " + denial
			return c
		}
		if !s.profileAllows(daemon) {
			c.Optional = true // a rule may be written in ways that are not known here
			c.Detail = "the profile of " + daemon + " has no rule for hooks"
			return c
		}
	}
	c.Ok, c.Detail, c.Fix = true, "libvirt is not confined", ""
	if confined != "" {
		c.Detail = "the profile of " + confined + " lets it run"
	}
	return c
}

// profileAllows reports whether a daemon's profile, with what the host adds to it, has a
// rule to execute hooks.
func (s system) profileAllows(daemon string) bool {
	for _, dir := range []string{"etc/apparmor.d/", "etc/apparmor.d/local/"} {
		text, err := os.ReadFile(s.path(dir + "usr.sbin." + daemon))
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(text)) {
			path, access, ok := strings.Cut(strings.TrimSpace(line), " ")
			if ok && strings.HasPrefix(path, "/etc/libvirt/hooks/") && strings.Contains(access, "x") {
				return true
			}
		}
	}
	return false
}

// denial returns the last message of the kernel's log that AppArmor denied a daemon, or
// what it executes, the hook.
func (s system) denial(daemon string) string {
	last := ""
	for line := range strings.Lines(string(s.kmsg())) {
		_, text, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ";")
		if strings.Contains(text, `apparmor="DENIED"`) && strings.Contains(text, `profile="`+daemon) && strings.Contains(text, hookPath) {
			last = text
		}
	}
	return last
}

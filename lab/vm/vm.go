// SPDX-License-Identifier: Apache-2.0

// Package vm defines, starts and drives the lab's guests: libvirt domains
// whose init takes command lines over a serial port. It runs on the lab's
// host, or with TCG domains on any machine with libvirt.
package vm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"text/template"
	"time"
)

// Traced is the metadata element that asks for a domain to be traced.
const Traced = `<frail:frail xmlns:frail="urn:frail:domain:1.0"><frail:trace/></frail:frail>`

// dir holds the guests' kernel and sockets: libvirt gives files there to the
// user its emulators run as.
const dir = "/var/lib/libvirt/images/frail-lab"

// Config describes a guest. Name is required.
type Config struct {
	Name     string
	Metadata string // content of <metadata>; "" for none
	VCPUs    int    // 0 means 1
	Cmdline  string // added to the kernel's command line

	// Kernel and Initrd are the guest's files, which are copied to where
	// libvirt can use them.
	Kernel, Initrd string

	// Disk gives the guest an empty disk, on which libvirt can keep snapshots.
	Disk bool
}

// VM is a domain that Define made. Methods other than Run may be called
// concurrently.
type VM struct {
	Name   string
	serial *serial
}

var domain = template.Must(template.New("domain").Parse(`<domain type='kvm'>
  <name>{{.Name}}</name>
{{- if .Metadata}}
  <metadata>{{.Metadata}}</metadata>
{{- end}}
  <memory unit='MiB'>384</memory>
  <vcpu>{{.VCPUs}}</vcpu>
  <os>
    <type arch='x86_64' machine='q35'>hvm</type>
    <kernel>{{.Kernel}}</kernel>
    <initrd>{{.Initrd}}</initrd>
    <cmdline>console=ttyS0 panic=-1 quiet {{.Cmdline}}</cmdline>
  </os>
  <features><acpi/><apic/></features>
  <cpu mode='host-passthrough'/>
  <on_reboot>restart</on_reboot>
  <on_crash>destroy</on_crash>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <controller type='usb' model='none'/>
    <memballoon model='none'/>
{{- if .Disk}}
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2'/>
      <source file='{{.DiskPath}}'/>
      <target dev='vda' bus='virtio'/>
    </disk>
{{- end}}
    <serial type='file'><source path='{{.Console}}'/><target port='0'/></serial>
    <serial type='unix'><source mode='bind' path='{{.Socket}}'/><target port='1'/></serial>
  </devices>
</domain>
`))

func consolePath(name string) string { return filepath.Join("/var/log/libvirt/qemu", name+".console") }
func socketPath(name string) string  { return filepath.Join(dir, name+".sock") }
func diskPath(name string) string    { return filepath.Join(dir, name+".qcow2") }

// Define makes a persistent domain, which is not started, in place of one of
// the same name that is shut off.
func Define(ctx context.Context, cfg Config) (*VM, error) {
	if cfg.VCPUs == 0 {
		cfg.VCPUs = 1
	}
	if err := os.MkdirAll(dir, 0o777); err != nil {
		return nil, fmt.Errorf("define %s: %w", cfg.Name, err)
	}
	// The emulator's user makes its socket here.
	if err := os.Chmod(dir, 0o777); err != nil {
		return nil, fmt.Errorf("define %s: %w", cfg.Name, err)
	}
	for _, file := range []*string{&cfg.Kernel, &cfg.Initrd} {
		copied := filepath.Join(dir, filepath.Base(*file))
		if err := copyNew(copied, *file); err != nil {
			return nil, fmt.Errorf("define %s: %w", cfg.Name, err)
		}
		*file = copied
	}
	if cfg.Disk {
		if err := os.WriteFile(diskPath(cfg.Name), EmptyDisk(), 0o644); err != nil {
			return nil, fmt.Errorf("define %s: %w", cfg.Name, err)
		}
	}
	var xml bytes.Buffer
	err := domain.Execute(&xml, struct {
		Config
		Console, Socket, DiskPath string
	}{cfg, consolePath(cfg.Name), socketPath(cfg.Name), diskPath(cfg.Name)})
	if err != nil {
		return nil, fmt.Errorf("define %s: %w", cfg.Name, err)
	}
	f, err := os.CreateTemp("", "frail-domain-*.xml")
	if err != nil {
		return nil, fmt.Errorf("define %s: %w", cfg.Name, err)
	}
	defer os.Remove(f.Name())
	if _, err := f.Write(xml.Bytes()); err != nil {
		f.Close()
		return nil, fmt.Errorf("define %s: %w", cfg.Name, err)
	}
	if err := f.Close(); err != nil {
		return nil, fmt.Errorf("define %s: %w", cfg.Name, err)
	}
	if _, err := Virsh(ctx, "define", f.Name()); err != nil {
		return nil, err
	}
	return &VM{Name: cfg.Name}, nil
}

// Find returns a domain that Define made in another process.
func Find(name string) *VM { return &VM{Name: name} }

// copyNew copies a file unless a copy of its size and time is there: a domain
// that runs holds the old one open, so it is replaced and not written to.
func copyNew(dst, src string) error {
	from, err := os.Stat(src)
	if err != nil {
		return err
	}
	to, err := os.Stat(dst)
	if err == nil && to.Size() == from.Size() && to.ModTime().Equal(from.ModTime()) {
		return nil
	}
	data, err := os.ReadFile(src)
	if err != nil {
		return err
	}
	tmp := dst + ".tmp"
	if err := os.WriteFile(tmp, data, 0o644); err != nil {
		return err
	}
	if err := os.Chtimes(tmp, time.Time{}, from.ModTime()); err != nil {
		return err
	}
	return os.Rename(tmp, dst)
}

// Start starts the domain as a user would, and returns without waiting for
// the guest to come up.
func (v *VM) Start(ctx context.Context) error {
	_, err := Virsh(ctx, "start", v.Name)
	return err
}

// Destroy ends the domain at once; it is no error if it does not run.
func (v *VM) Destroy(ctx context.Context) error {
	v.Close()
	_, err := Virsh(ctx, "destroy", v.Name)
	if err != nil && strings.Contains(err.Error(), "domain is not running") {
		return nil
	}
	return err
}

// Undefine removes the domain, its disk and its snapshots.
func (v *VM) Undefine(ctx context.Context) error {
	if _, err := Virsh(ctx, "undefine", "--snapshots-metadata", v.Name); err != nil {
		return err
	}
	if err := os.Remove(diskPath(v.Name)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("undefine %s: %w", v.Name, err)
	}
	return nil
}

// State returns the domain's state in virsh's words, such as "running".
func (v *VM) State(ctx context.Context) (string, error) {
	out, err := Virsh(ctx, "domstate", v.Name)
	return strings.TrimSpace(out), err
}

// PID returns the emulator's process.
func (v *VM) PID() (int, error) {
	data, err := os.ReadFile(filepath.Join("/run/libvirt/qemu", v.Name+".pid"))
	if err != nil {
		return 0, fmt.Errorf("find the emulator of %s: %w", v.Name, err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil {
		return 0, fmt.Errorf("find the emulator of %s: %w", v.Name, err)
	}
	return pid, nil
}

// Console returns what the guest's kernel has written to its console.
func (v *VM) Console() (string, error) {
	data, err := os.ReadFile(consolePath(v.Name))
	return string(data), err
}

// HMP sends a command to the emulator's human monitor and returns its answer.
func (v *VM) HMP(ctx context.Context, command string) (string, error) {
	return Virsh(ctx, "qemu-monitor-command", v.Name, "--hmp", command)
}

// ErrVirsh wraps a failed virsh's own message.
var ErrVirsh = errors.New("virsh")

// Virsh runs virsh on the system's libvirt and returns its output.
func Virsh(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "virsh", append([]string{"--quiet", "--connect", "qemu:///system"}, args...)...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%w %s: %w: %s", ErrVirsh, args[0], err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}

// Command runs a program on the host, bounded by a minute, and returns its
// output.
func Command(name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, bytes.TrimSpace(out))
	}
	return string(out), nil
}

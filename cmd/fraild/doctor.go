// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"

	"frail/api"
	"frail/kmod/device"
	"frail/tracer"
)

// Doctor implements api.FrailServer.
func (s *server) Doctor(context.Context, *api.DoctorRequest) (*api.DoctorResponse, error) {
	return &api.DoctorResponse{Checks: []*api.Check{
		s.checkLibvirt(),
		s.checkStatusDir(),
		checkDevice(),
		checkBPF(),
		s.checkEmulators(),
		s.checkDomains(),
	}}, nil
}

func (s *server) checkLibvirt() *api.Check {
	c := &api.Check{Name: "fraild: libvirt"}
	uri := s.manager.host.cfg.Load().Libvirt.URI
	if err := s.manager.connected(); err != nil {
		c.Detail = fmt.Sprintf("%s: %v", uri, err)
		c.Fix = "systemctl start libvirtd (or virtqemud)"
		return c
	}
	c.Ok = true
	c.Detail = fmt.Sprintf("%s, %d domains", uri, len(s.manager.list()))
	return c
}

// checkStatusDir looks for the directory by which guests are armed before their first
// instruction.
func (s *server) checkStatusDir() *api.Check {
	dir := s.manager.host.cfg.Load().Libvirt.StatusDir
	c := &api.Check{Name: "fraild: status directory", Optional: true}
	if _, err := os.ReadDir(dir); err != nil {
		c.Detail = err.Error() + "; guests are armed later than they could be"
		c.Fix = "set libvirt.status_dir to where libvirt keeps NAME.xml of running domains"
		return c
	}
	c.Ok, c.Detail = true, dir
	return c
}

func checkDevice() *api.Check {
	c := &api.Check{Name: "fraild: " + device.Path}
	dev, err := device.Open()
	if err != nil {
		c.Detail = err.Error()
		c.Fix = "modprobe frail; if it is loaded, look at DeviceAllow= in systemctl cat fraild"
		return c
	}
	defer dev.Close()
	c.Ok, c.Detail = true, "opens"
	return c
}

// checkBPF loads the programs of a trace and attaches them.
func checkBPF() *api.Check {
	c := &api.Check{Name: "fraild: BPF"}
	t, err := tracer.New(tracer.Options{})
	if err != nil {
		c.Detail = err.Error()
		c.Fix = "look at CapabilityBoundingSet= in systemctl cat fraild; the kernel must be 5.12 or newer"
		return c
	}
	defer t.Close()
	if err := t.Attach(); err != nil {
		c.Detail = err.Error()
		c.Fix = "modprobe frail"
		return c
	}
	c.Ok, c.Detail = true, "programs load and attach"
	return c
}

// checkEmulators looks into the QEMU processes of running domains, as arming does.
func (s *server) checkEmulators() *api.Check {
	c := &api.Check{Name: "fraild: QEMU processes"}
	seen := 0
	for _, d := range s.manager.list() {
		snap, _ := d.snapshot()
		if snap.PID == 0 {
			continue
		}
		dir := "/proc/" + strconv.Itoa(snap.PID) + "/fd"
		_, err := os.ReadDir(dir)
		if os.IsNotExist(err) {
			continue // ended since
		}
		if err != nil {
			c.Detail = err.Error()
			c.Fix = "run fraild as root with CAP_SYS_PTRACE: look at systemctl cat fraild"
			return c
		}
		seen++
	}
	c.Ok, c.Detail = true, fmt.Sprintf("%d running domains can be looked into", seen)
	return c
}

// checkDomains tells which running domains ask to be traced and are not, or not in full.
func (s *server) checkDomains() *api.Check {
	c := &api.Check{Name: "fraild: domains"}
	traced := 0
	var failed, nameless []string
	for _, d := range s.manager.list() {
		switch snap, _ := d.snapshot(); snap.state {
		case api.State_STATE_ERROR:
			failed = append(failed, snap.Name+": "+snap.reason)
		case api.State_STATE_NO_IDENTITY:
			nameless = append(nameless, snap.Name+": no process names: "+snap.reason)
		case api.State_STATE_RESOLVING, api.State_STATE_TRACED:
			traced++
		}
	}
	c.Ok, c.Optional = len(failed)+len(nameless) == 0, len(failed) == 0
	if c.Ok {
		c.Detail = fmt.Sprintf("%d traced", traced)
		return c
	}
	c.Detail = strings.Join(append(failed, nameless...), "; ")
	c.Fix = "do what the reason says; operating.md, \"When something is wrong\", explains some, journalctl -u fraild has more"
	return c
}

// SPDX-License-Identifier: Apache-2.0

package guests

import (
	"fmt"
	"slices"
	"strings"
)

// cell is a row of the table: one of Debian's kernels.
type cell struct {
	suite   string // of Debian: its code name
	flavour string // without the architecture, which is the whole name of the plain one
}

const plain = "amd64"

// cells are the table's rows in order.
var cells = func() (all []cell) {
	for _, suite := range []string{"bullseye", "bookworm", "trixie", "sid"} {
		for _, flavour := range []string{plain, "cloud", "rt"} {
			all = append(all, cell{suite, flavour})
		}
	}
	return all
}()

func (c cell) String() string { return c.suite + "/" + c.flavour }

// kernel is the flavour as Debian's packages call it.
func (c cell) kernel() string {
	if c.flavour == plain {
		return plain
	}
	return c.flavour + "-" + plain
}

// selectCells returns the cells of these names, separated by spaces: SUITE/FLAVOUR or
// SUITE. The name "all" is all of them.
func selectCells(names string) ([]cell, error) {
	var selected []cell
	for name := range strings.FieldsSeq(names) {
		n := len(selected)
		for _, c := range cells {
			if name == "all" || name == c.suite || name == c.String() {
				selected = append(selected, c)
			}
		}
		if len(selected) == n {
			return nil, fmt.Errorf("no guest is called %q: want all or some of %v", name, cells)
		}
	}
	if len(selected) == 0 {
		return nil, fmt.Errorf("no guest is named: want all or some of %v", cells)
	}
	return selected, nil
}

// machine is what a guest boots on.
type machine struct {
	pti        bool // the kernel's page table isolation
	vcpus      int
	memoryMiB  int
	vmcoreinfo bool // has a device that the kernel tells where it describes itself
}

// machines are five machines among which every two settings occur in all four ways: one
// has none of the settings, and each of the others all but one.
var machines = []machine{
	{false, 1, 512, false},
	{false, 2, 6144, true},
	{true, 1, 6144, true},
	{true, 2, 512, true},
	{true, 2, 6144, false},
}

func (m machine) String() string {
	s := fmt.Sprintf("pti=%s,%dvcpu,%dMiB", m.ptiWord(), m.vcpus, m.memoryMiB)
	if m.vmcoreinfo {
		s += ",vmcoreinfo"
	}
	return s
}

func (m machine) ptiWord() string {
	if m.pti {
		return "on"
	}
	return "off"
}

// features is the XML of libvirt's features.
func (m machine) features() string {
	f := "<acpi/><apic/>"
	if m.vmcoreinfo {
		f += "<vmcoreinfo state='on'/>"
	}
	return f
}

// boot is the machine of a cell's boot: a few boots of many cells try all of them.
func (c cell) boot(n int) machine {
	return machines[(slices.Index(cells, c)+n)%len(machines)]
}

// SPDX-License-Identifier: Apache-2.0

package image

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// DefaultHost is the name of the host that the lab boots unless told otherwise.
const DefaultHost = "bookworm"

// hostSpec is what one of the lab's hosts differs from the others in.
type hostSpec struct {
	suite string // Debian release
	debug bool   // its kernel is the debug kernel
}

// hosts are the lab's hosts by name.
var hosts = map[string]hostSpec{
	"bookworm": {suite: "bookworm"},
	"trixie":   {suite: "trixie"},
	"sid":      {suite: "sid"},
	"debug":    {suite: "bookworm", debug: true},
}

// HostNames returns the names of the lab's hosts, sorted.
func HostNames() []string { return slices.Sorted(maps.Keys(hosts)) }

// findHost returns what the host called name is.
func findHost(name string) (hostSpec, error) {
	spec, ok := hosts[name]
	if !ok {
		return hostSpec{}, fmt.Errorf("no host is called %q: want one of %s", name, strings.Join(HostNames(), ", "))
	}
	return spec, nil
}

// SPDX-License-Identifier: Apache-2.0

package guest

import (
	"frail/bpf"
	"frail/hooks"
)

// Exits is what the module calls e.
func Exits(e hooks.Exits) uint32 {
	if e == hooks.ExitsEntry {
		return bpf.ExitsEntry
	}
	return bpf.ExitsBoth
}

// SPDX-License-Identifier: Apache-2.0

package api

import "runtime/debug"

// Version returns the version of the running program: what the build stamped from
// version control, "unknown" without it.
func Version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok || info.Main.Version == "" {
		return "unknown"
	}
	return info.Main.Version
}

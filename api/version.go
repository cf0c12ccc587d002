// SPDX-License-Identifier: Apache-2.0

package api

import "frail"

// Version returns the version of the running program.
func Version() string { return frail.Version() }

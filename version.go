// SPDX-License-Identifier: Apache-2.0

// Package frail knows the version of this tree. The module, the programs and the
// packages take it from the file VERSION.
package frail

import (
	_ "embed"
	"strings"
)

//go:embed VERSION
var version string

// Version is that of the release this tree becomes, such as "0.1.0".
func Version() string { return strings.TrimSpace(version) }

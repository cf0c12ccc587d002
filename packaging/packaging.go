// SPDX-License-Identifier: Apache-2.0

// Package packaging has the files beside it that the programs show, too.
package packaging

import _ "embed"

// Config is the configuration file that is installed. It shows every key with its default
// and is the home of what is said about it.
//
//go:embed frail.toml
var Config string

// Fraild is fraild(8) in Markdown, but for its title line and the exit statuses.
//
//go:embed fraild.8.md
var Fraild string

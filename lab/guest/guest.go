// SPDX-License-Identifier: Apache-2.0

// Package guest holds the sources of the lab's guest: its init and the test
// programs, each of which does one thing with a known list of system calls.
package guest

import "embed"

// Sources are the guest's init ("init") and test programs ("progs/*").
//
//go:embed init progs
var Sources embed.FS

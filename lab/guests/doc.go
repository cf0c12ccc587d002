// SPDX-License-Identifier: Apache-2.0

// Package guests has the test of qmp/layout on the kernels that Debian ships: it boots
// them under libvirt, emulated, and holds what is found in their memory against what
// they say of themselves. "make guests" boots all and writes the table in
// docs/guests.md.
package guests

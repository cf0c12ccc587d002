// SPDX-License-Identifier: Apache-2.0

// Package device speaks to frail.ko through /dev/frail.
//
// A [Device] arms virtual machines, a [VM] is one under trace: closing it, or the death
// of the process that holds it, disarms the machine. [KVMVM] takes the descriptor by which
// the module knows a machine from the QEMU process that owns it.
package device

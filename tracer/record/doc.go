// SPDX-License-Identifier: Apache-2.0

// Package record is the flight recorder: it keeps the newest events of VMs in memory until
// somebody wants to see them.
//
// A BPF program writes each event over the VM's oldest one. User space does nothing meanwhile;
// to read a record it looks at the same memory, and the program does not wait for it.
package record

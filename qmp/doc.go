// SPDX-License-Identifier: Apache-2.0

// Package qmp talks to QEMU and reads the memory of its guests.
//
// Two monitors implement go-qemu's qmp.Monitor: [LibvirtMonitor] for a guest
// that libvirt owns and [SocketMonitor] for a QMP socket. [Memory] reads guest
// physical memory by the fastest way that the host permits. Without cgo all but
// libvirt's parts is there.
//
// What QEMU says and what guest memory holds is untrusted: every reply, count
// and length is bounded.
package qmp

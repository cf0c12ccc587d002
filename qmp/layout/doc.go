// SPDX-License-Identifier: Apache-2.0

// Package layout finds where a Linux guest's kernel keeps what Frail reads, from
// the guest's memory alone: no System.map, debug information or profile.
//
// The kernel describes itself in three places: the VMCOREINFO note says where
// its image and symbol tables lie, kallsyms names its symbols, and BTF holds its
// types. Without the first, the page tables of a CPU lead to the image, and the
// tables in it are found by what they look like; what a kernel was built without
// can be imported into a [Store]. The guest controls all of them, so every length
// and count is bounded, and a layout is accepted only after cross-checks that a
// wrong one fails.
//
// With a layout the guest can be read: [Layout.Processes] lists its processes and
// [Layout.KernelLog] its kernel's messages, while it runs and changes them.
package layout

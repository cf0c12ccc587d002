// SPDX-License-Identifier: Apache-2.0

// Package bpf holds Frail's BPF programs and the Go side of frail_abi.h.
//
// Types and numbers are generated from the C header that the kernel module,
// the BPF programs and this package share. The compiled programs are checked
// in; regenerating needs clang, llvm and libbpf's headers.
package bpf

//go:generate sh generate.sh

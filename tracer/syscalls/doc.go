// SPDX-License-Identifier: Apache-2.0

// Package syscalls knows the system calls of Linux on x86-64 by name and number, in its
// three tables: 64-bit, i386 and x32.
//
// The numbers come from golang.org/x/sys, which follows the newest kernels.
package syscalls

//go:generate go run ./internal/gen tables.go

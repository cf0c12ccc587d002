// SPDX-License-Identifier: Apache-2.0

// Package sequence analyses the system call sequences of guests in the kernel.
//
// An [Analyzer] loads pH in BPF and attaches it to frail.ko's tracepoint. The analysis of
// package [frail/tracer/ph] is done there for every call of the followed VMs; user space
// is told only of what matters: a new process or pair, a profile's new state, an anomaly,
// an alert, a limit reached.
package sequence

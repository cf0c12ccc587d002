// SPDX-License-Identifier: Apache-2.0

// Package tracer delivers the system calls of traced guests.
//
// A [Tracer] loads its own copy of Frail's BPF programs, with its own filter and its own
// ring buffer, attaches them to frail.ko's tracepoints and hands what passes the filter to
// a [Sink], without an allocation per event. What is lost on the way is counted by cause
// and delivered in the stream, where it is missing.
package tracer

// SPDX-License-Identifier: Apache-2.0

// Package ph is pH, the analysis of system call sequences of Somayaji (2002), in plain Go.
//
// It is the reference: the BPF programs do the same, and a test compares every verdict. It
// learns, for each executable, which call followed which at a distance of one to eight
// calls, and judges each call by pairs its executable never made before. An [Analyzer]
// takes the calls of all threads in the order they were made.
package ph

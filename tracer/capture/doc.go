// SPDX-License-Identifier: Apache-2.0

// Package capture writes traced system calls to files and reads them again.
//
// A file is a header and blocks. Each block stands for itself: it has its length, a
// checksum, how many records it holds and the time of its first and last, then the records,
// compressed with zstd. A file that was cut off is read up to its last whole block. An index
// at the end makes seeking fast; without it the blocks' heads are enough.
package capture

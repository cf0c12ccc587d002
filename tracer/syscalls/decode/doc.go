// SPDX-License-Identifier: Apache-2.0

// Package decode writes the arguments and the return value of a system call as strace does:
// flags and constants by their names, descriptors and sizes in decimal, modes in octal,
// addresses in hexadecimal, errors with their meaning.
//
// A call is known by its registers alone. What an argument points to is an address; the
// tables tell paths and other strings ([text]) from other memory ([pointer]), so that events
// that carry some of the guest's memory can have it written in place of the address.
//
// The tables were read off strace 6.1 itself, by what it makes of every bit and value of every
// argument, and the tests compare each name of each of them with strace again. The values are
// those of golang.org/x/sys. Libraries that decode in Go were no help: gVisor's
// pkg/sentry/strace reads the memory of its own tasks, knows 64-bit calls only, and brings 205
// packages of its kernel; Tracee's argument parsers are 33 functions that allocate, bring 32
// packages, name what strace does not (O_DIRECTORY|O_TMPFILE for O_TMPFILE), and leave to the
// caller which argument of which call is what. Neither has i386 or x32.
package decode

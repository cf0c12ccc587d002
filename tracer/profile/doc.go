// SPDX-License-Identifier: Apache-2.0

// Package profile keeps the profiles of guest executables in files, and shows, compares
// and joins them.
//
// A file is a line "frail-profile VERSION SHA256" and a JSON document with that hash.
// System calls are in it by name, so that it is of use on another host and architecture.
package profile

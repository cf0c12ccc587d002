// SPDX-License-Identifier: Apache-2.0

// Package config is fraild's configuration: files, bounds and documentation of its keys,
// for the daemon and for the frail command, which checks and explains it.
package config

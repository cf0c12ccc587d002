// SPDX-License-Identifier: Apache-2.0

// Package hooks follows libvirt's domains and what their XML asks of Frail.
//
// The metadata element of a domain is read by [ParseConfig] and written by
// [Enable] and [Disable]. [Watch] reports every domain and every change of one,
// from libvirt's status directory, libvirt's events and listing, and the qemu
// hook; it only reads, so a domain without the element is never touched.
package hooks

// SPDX-License-Identifier: Apache-2.0

// Package e2e holds the end-to-end tests, which run on the lab's host as root
// with Frail installed (make lab-test): real libvirt domains under real KVM
// with the real module, driven by virsh and frail as a user would.
//
// Its tests have the build tag "lab", so that "go test ./..." elsewhere does
// not run them.
package e2e

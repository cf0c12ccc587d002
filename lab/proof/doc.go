// SPDX-License-Identifier: Apache-2.0

// Package proof holds the tests that need a host with KVM and frail.ko and
// nothing else: no libvirt, no daemon, no systemd. They run as root on every
// host of the lab, also the small one, where libvirt does not fit.
//
// Its tests have the build tag "lab". Flags of the test binary say where the
// guest is, if not where the lab puts it, and how much it does.
package proof

// SPDX-License-Identifier: Apache-2.0

// Package direct runs the lab's guests with QEMU alone and traces them: no
// libvirt, no daemon. A guest runs a script and turns itself off; files go in and
// out on a disk, and a script that waits for the host reads a line of its console,
// /dev/ttyS0. It needs KVM, root and, to trace, frail.ko,
// and works on every host of the lab, the smallest included.
//
// [Trace] does all of it. The pieces, for those who need them:
//
//	g, err := direct.Start(ctx, cfg)     // paused
//	defer g.Close()
//	vm, err := g.Arm(bpf.ExitsBoth)
//	rec, err := direct.Record(vm)
//	go g.Follow(ctx, vm)                 // gives the events identity
//	g.Resume(ctx)
//	res, err := g.Wait(ctx)
//	events, err := rec.Stop()
package direct

// SPDX-License-Identifier: Apache-2.0

//go:build lab && life

package e2e

import (
	"fmt"
	"slices"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"frail/lab/vm"
)

// TestTwoGuestsAtOnce runs known programs in two traced guests at the same time, in opposite
// order, one with both exits and one with one: each guest's record is exactly its own. Then
// one's emulator is killed, which the other does not notice.
func TestTwoGuestsAtOnce(t *testing.T) {
	begin(t)
	var programs [2][]program
	for _, p := range known {
		switch p.name {
		case "t-opens", "t-forks", "t-execs", "t-threads", "t-segvh", "t-args", "t-getppid", "t-32":
			programs[0] = append(programs[0], p)
		}
	}
	programs[1] = slices.Clone(programs[0])
	slices.Reverse(programs[1])

	guests := []*vm.VM{startGuest(t, "left", traced), startGuest(t, "right", metadata(tracedEntry))}
	var ids []uint32
	var traces []*trace
	for _, g := range guests {
		waitGuest(t, g)
		ids = append(ids, waitTraced(t, g).VM.ID)
		traces = append(traces, startTrace(t, g.Name))
	}
	if ids[0] == ids[1] {
		t.Fatalf("both VMs have the id %d", ids[0])
	}

	outputs := make([][]vm.Result, len(guests))
	errs := make([]error, len(guests))
	var both sync.WaitGroup
	for i, g := range guests {
		ctx := testContext(t, waitLimit)
		both.Go(func() {
			for _, p := range programs[i] {
				res, err := g.Run(ctx, p.name+" "+p.args)
				if err != nil {
					errs[i] = err
					return
				}
				outputs[i] = append(outputs[i], res)
			}
		})
	}
	both.Wait()
	for i, g := range guests {
		if errs[i] != nil {
			t.Fatal(errs[i])
		}
		records := traces[i].stop()
		for _, r := range records {
			if r.isEvent() && r.VM != ids[i] {
				t.Fatalf("the record of VM %d has one of VM %d: %s", ids[i], r.VM, r)
			}
		}
		for j, p := range programs[i] {
			t.Run(g.Name+"/"+p.name, func(t *testing.T) {
				if res := outputs[i][j]; res.Status != p.status {
					t.Errorf("exit status %d, want %d", res.Status, p.status)
				}
				checkCalls(t, p, outputs[i][j].Output, records, i == 1)
			})
		}
	}

	pid, err := guests[1].PID()
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "fraild lets go of the VM of a dead emulator", func() error {
		if d, err := listed(t, guests[1].Name); err != nil || d.VM != nil {
			return fmt.Errorf("it has %+v, %v", d, err)
		}
		return nil
	})
	waitFreed(t, pid)
	checkTraced(t, guests[0])
}

// SPDX-License-Identifier: Apache-2.0

package guest

import (
	"time"

	"frail/bpf"
)

// CoverageEvent returns the event by which a trace that begins now tells what is not seen of
// its VM, whose status st is; nil if all is. Later changes are events of their own. offset
// makes the time of day of an event's time.
func CoverageEvent(st bpf.Status, offset time.Duration) *bpf.Event {
	if st.Blind == 0 {
		return nil
	}
	return &bpf.Event{
		Time: uint64(time.Now().UnixNano() - int64(offset)),
		Vm:   st.Vm,
		Kind: bpf.EventCoverage,
		Nr:   -1,
		Args: [6]uint64{uint64(st.Covered), uint64(st.Blind)},
	}
}

// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"fmt"

	"github.com/cilium/ebpf"
)

// RecordSlot is an entry of a VM's flight record, as struct frail_record_slot of record.h,
// which says what each field means.
type RecordSlot = recordFrailRecordSlot

// Traced returns the entry's event. It aliases s.
func (s *recordFrailRecordSlot) Traced() *Event { return (*Event)(&s.Event) }

// RecordBusy is in [RecordSlot].Ticket while its event is written.
const RecordBusy = uint64(1) << 63

// RecordThreads is how many descriptions of threads are kept of a VM.
const RecordThreads = int(recordFrailRecordLimitsFRAIL_RECORD_THREADS)

// LoadRecord parses the compiled flight recorder. It allocates nothing in the kernel.
func LoadRecord() (*ebpf.CollectionSpec, error) {
	spec, err := loadRecord()
	if err != nil {
		return nil, fmt.Errorf("parse BPF programs: %w", err)
	}
	return spec, nil
}

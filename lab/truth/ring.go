// SPDX-License-Identifier: Apache-2.0

package truth

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// The pages of the kernel's trace buffer, as trace_pipe_raw gives them: a
// header of a time and the bytes that follow, then events. An event begins with
// 32 bits: its type or length in the low 5, the time since the one before in
// the others (include/linux/ring_buffer.h, kernel/trace/ring_buffer.c).
const (
	pageSize   = 4096
	pageHeader = 16
	pageMissed = 3 << 30 // flags of a page's length: events are missing before it

	typeMask    = 1<<5 - 1
	deltaBits   = 27
	typePadding = 29
	typeExtend  = 30
	typeStamp   = 31
)

var order = binary.LittleEndian

// readRing calls fn for each event of a CPU's pages, with its time.
func readRing(data []byte, fn func(time uint64, entry []byte) error) error {
	if len(data)%pageSize != 0 {
		return fmt.Errorf("%d bytes are not whole pages", len(data))
	}
	for ; len(data) > 0; data = data[pageSize:] {
		time := order.Uint64(data)
		length := order.Uint64(data[8:])
		if length&pageMissed != 0 {
			return errors.New("events were overwritten")
		}
		if length > pageSize-pageHeader {
			return fmt.Errorf("a page of %d bytes", length)
		}
		if err := readPage(data[pageHeader:pageHeader+length], time, fn); err != nil {
			return err
		}
	}
	return nil
}

func readPage(page []byte, time uint64, fn func(time uint64, entry []byte) error) error {
	for len(page) > 0 {
		if len(page) < 8 {
			return fmt.Errorf("%d bytes are left of a page", len(page))
		}
		head, first := order.Uint32(page), order.Uint32(page[4:])
		delta := uint64(head >> (32 - deltaBits))
		skip, size := 4, 0 // before and of what the event holds
		hasEntry := true
		switch kind := head & typeMask; kind {
		case typePadding:
			if delta == 0 {
				return nil // to the end of the page
			}
			delta, size, hasEntry = 0, int(first), false
		case typeExtend:
			delta += uint64(first) << deltaBits
			size, hasEntry = 4, false
		case typeStamp:
			time, delta = delta+uint64(first)<<deltaBits, 0
			size, hasEntry = 4, false
		case 0:
			skip, size = 8, int(first)-4
		default:
			size = 4 * int(kind)
		}
		if size < 0 || skip+size > len(page) {
			return fmt.Errorf("an event of %d bytes in a page's last %d", size, len(page))
		}
		time += delta
		if hasEntry {
			if err := fn(time, page[skip:skip+size]); err != nil {
				return err
			}
		}
		page = page[skip+size:]
	}
	return nil
}

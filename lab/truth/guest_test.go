// SPDX-License-Identifier: Apache-2.0

package truth

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

// The formats are a 6.1 kernel's.
const common = `	field:unsigned short common_type;	offset:0;	size:2;	signed:0;
	field:unsigned char common_flags;	offset:2;	size:1;	signed:0;
	field:unsigned char common_preempt_count;	offset:3;	size:1;	signed:0;
	field:int common_pid;	offset:4;	size:4;	signed:1;

	field:long id;	offset:8;	size:8;	signed:1;
`

const (
	enterFormat = "name: sys_enter\nID: 348\nformat:\n" + common +
		"	field:unsigned long args[6];	offset:16;	size:48;	signed:0;\n\nprint fmt: \"\"\n"
	exitFormat = "name: sys_exit\nID: 347\nformat:\n" + common +
		"	field:long ret;	offset:16;	size:8;	signed:1;\n\nprint fmt: \"\"\n"
)

// entry is an event as it lies in a page, with the time since the one before.
func entry(delta uint32, id uint16, task int32, nr int64, rest ...int64) []byte {
	var data []byte
	data = order.AppendUint16(data, id)
	data = append(data, 0, 0)
	data = order.AppendUint32(data, uint32(task))
	for _, v := range append([]int64{nr}, rest...) {
		data = order.AppendUint64(data, uint64(v))
	}
	head := order.AppendUint32(nil, delta<<5|uint32(len(data)/4))
	return append(head, data...)
}

// words is an event of 32-bit words, the first of which has the type.
func words(kind, delta uint32, w ...uint32) []byte {
	b := order.AppendUint32(nil, delta<<5|kind)
	for _, v := range w {
		b = order.AppendUint32(b, v)
	}
	return b
}

// page is a page of events, the first of which is that much after time.
func page(time uint64, flags uint64, events ...[]byte) []byte {
	data := slices.Concat(events...)
	b := order.AppendUint64(nil, time)
	b = order.AppendUint64(b, uint64(len(data))|flags)
	return append(append(b, data...), make([]byte, pageSize-pageHeader-len(data))...)
}

func stats(read, overrun int) []byte {
	return fmt.Appendf(nil, "entries: 0\noverrun: %d\ncommit overrun: 0\nbytes: 0\n"+
		"oldest event ts: 0.0\nnow ts: 0.1\ndropped events: 0\nread events: %d\n", overrun, read)
}

func record() map[string][]byte {
	return map[string][]byte{
		"sys_enter": []byte(enterFormat),
		"sys_exit":  []byte(exitFormat),
		"cpu0.raw": slices.Concat(
			page(10, 0,
				entry(1, 348, 7, 39, 1, 2, 3, 4, 5, 6), // at 11
				words(typePadding, 1, 4),
				words(typeExtend, 2, 1),
				entry(3, 347, 7, 39, -4), // at 16 + 1<<27
				words(typePadding, 0, 0)),
			page(0, 0,
				words(typeStamp, 5, 2),
				entry(0, 347, 8, -1, 9))), // at 5 + 2<<27
		"cpu0.stats": stats(3, 0),
		"cpu1.raw":   page(11, 0, entry(1, 348, 8, 1, 0, 0, 0, 0, 0, 0)), // at 12
		"cpu1.stats": stats(1, 0),
	}
}

func TestReadGuest(t *testing.T) {
	got, err := ReadGuest(record())
	if err != nil {
		t.Fatal(err)
	}
	want := []GuestEvent{
		{Seq: 11, Task: 7, Nr: 39, Args: [6]uint64{1, 2, 3, 4, 5, 6}},
		{Seq: 12, CPU: 1, Task: 8, Nr: 1},
		{Seq: 16 + 1<<27, Task: 7, Exit: true, Nr: 39, Ret: -4},
		{Seq: 5 + 2<<27, Task: 8, Exit: true, Nr: -1, Ret: 9},
	}
	if !slices.Equal(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

func TestReadGuestIncomplete(t *testing.T) {
	for name, test := range map[string]struct {
		file string
		data []byte
		want string
	}{
		"overrun":   {"cpu0.stats", stats(3, 1), "of overrun"},
		"unread":    {"cpu1.stats", stats(2, 0), "of read events"},
		"missed":    {"cpu1.raw", page(11, 1<<31, entry(1, 348, 8, 1, 0, 0, 0, 0, 0, 0)), "overwritten"},
		"cut off":   {"cpu1.raw", record()["cpu1.raw"][:100], "whole pages"},
		"other":     {"cpu1.raw", page(11, 0, entry(1, 99, 8, 1)), "unknown type 99"},
		"long":      {"cpu1.raw", page(11, 0, words(28, 1, 0)), "an event of 112 bytes"},
		"no format": {"sys_exit", nil, "no ID"},
	} {
		files := record()
		files[test.file] = test.data
		if _, err := ReadGuest(files); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want an error with %q", name, err, test.want)
		}
	}
}

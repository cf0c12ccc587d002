// SPDX-License-Identifier: Apache-2.0

package qmp

import (
	"slices"
	"strings"
	"testing"
)

// flatView is QEMU 7.2's answer for a q35 guest of 5 GiB under KVM, shortened.
const flatView = `FlatView #0
 AS "I/O", root: io
 Root memory region: io
  0000000000000000-0000000000000007 (prio 0, ram): decoy

FlatView #1
 AS "memory", root: system
 AS "cpu-memory-0", root: system
 Root memory region: system
  0000000000000000-000000000009ffff (prio 0, ram): pc.ram KVM
  00000000000a0000-00000000000bffff (prio 1, i/o): vga-lowmem
  00000000000c0000-00000000000c3fff (prio 0, rom): pc.ram @00000000000c0000 KVM
  00000000000c4000-000000007fffffff (prio 0, ram): pc.ram @00000000000c4000 KVM
  00000000fd000000-00000000fdffffff (prio 1, ramd): 0000:00:02.0 BAR 1
  00000000fffc0000-00000000ffffffff (prio 0, romd): system.flash0
  0000000100000000-00000001bfffffff (prio 0, ram): pc.ram @0000000080000000 KVM
  0000000200000000-000000023fffffff (prio 0, nv-ram): nvdimm0

FlatView #2
 AS "cpu-smm-0", root: memory
  0000000000000000-00000000000fffff (prio 0, ram): smram
`

func TestParseFlatView(t *testing.T) {
	got, err := parseFlatView(flatView)
	want := []Range{{0, 0xa0000}, {0xc4000, 0x80000000 - 0xc4000}, {1 << 32, 0xc0000000}, {0x200000000, 0x40000000}}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("got %x, %v; want %x", got, err, want)
	}

	region := func(bounds string) string {
		return "FlatView #0\n AS \"memory\", root: system\n  " + bounds + " (prio 0, ram): r\n"
	}
	var many strings.Builder
	many.WriteString("FlatView #0\n AS \"memory\", root: system\n")
	for range maxRegions + 1 {
		many.WriteString("  0000000000000000-0000000000000000 (prio 0, ram): r\n")
	}
	for name, text := range map[string]string{
		"empty":              "",
		"no memory space":    "FlatView #0\n AS \"I/O\", root: io\n  0000000000000000-0000000000000007 (prio 0, ram): r\n",
		"no RAM":             "FlatView #0\n AS \"memory\", root: system\n",
		"end before start":   region("0000000000002000-0000000000001fff"),
		"beyond 52 bits":     region("0000000000000000-ffffffffffffffff"),
		"overlap":            region("0000000000000000-0000000000001fff (prio 0, ram): r\n  0000000000001000-0000000000002fff"),
		"descending":         region("0000000000002000-0000000000002fff (prio 0, ram): r\n  0000000000000000-0000000000000fff"),
		"too many":           many.String(),
		"unknown to old HMP": "unknown option -f\n",
	} {
		if got, err := parseFlatView(text); err == nil {
			t.Errorf("%s: no error, ranges %x", name, got)
		}
	}
}

func TestParseHostAddress(t *testing.T) {
	got, err := parseHostAddress("Host virtual address for 0x100000 (pc.ram) is 0x7f1673f00000\r\n")
	if err != nil || got != 0x7f1673f00000 {
		t.Errorf("got %#x, %v", got, err)
	}
	for _, text := range []string{
		"", "No memory is mapped at address 0xfe000000", "Memory at address 0x0 is not RAM",
		"Host virtual address for 0x0 (r) is (nil)", "Host virtual address for 0x0 (r) is 0x11111111111111111",
		"Host virtual address for 0x0 (r) is 0x1000\nmore",
	} {
		if got, err := parseHostAddress(text); err == nil {
			t.Errorf("%q: no error, address %#x", text, got)
		}
	}
}

func TestParseMaps(t *testing.T) {
	const text = `7f0000000000-7f0040000000 rw-p 00000000 00:00 0
7f0040000000-7f0080000000 rw-s 00000000 00:01 123 /memfd:pc.ram (deleted)
7f0080000000-7f0080001000 ---p 00000000 00:00 0
7fff00000000-7fff00021000 r--p 00000000 00:00 0                          [stack]
`
	maps, err := parseMaps(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		want Range
		ok   bool
	}{
		{Range{0x7f0000000000, 0x80000000}, true},
		{Range{0x7f0000001000, 0x1000}, true},
		{Range{0x7f0000000000, 0x80000001}, false}, // into what cannot be read
		{Range{0x7effffffffff, 2}, false},
		{Range{0x7fff00020fff, 1}, true},
		{Range{0x7fff00021000, 1}, false},
		{Range{0x7fff00000000, 1<<64 - 1}, false},
	} {
		if got := covered(maps, tt.want); got != tt.ok {
			t.Errorf("covered(%x) = %v", tt.want, got)
		}
	}
	for _, text := range []string{"x\n", "2000-1000 rw-p\n", "1000 rw-p\n", strings.Repeat("x", 1<<17)} {
		if _, err := parseMaps(strings.NewReader(text)); err == nil {
			t.Errorf("%.20q: no error", text)
		}
	}
}

func FuzzParseFlatView(f *testing.F) {
	f.Add(flatView)
	f.Fuzz(func(t *testing.T, text string) {
		regions, err := parseFlatView(text)
		if err != nil {
			return
		}
		if len(regions) == 0 || len(regions) > maxRegions {
			t.Fatalf("%d regions", len(regions))
		}
		end := uint64(0)
		for _, r := range mergeRanges(regions) {
			if r.Size == 0 || r.Start < end || r.End()-1 > maxAddress {
				t.Fatalf("regions %x", regions)
			}
			end = r.End() + 1 // merged ranges do not touch
		}
	})
}

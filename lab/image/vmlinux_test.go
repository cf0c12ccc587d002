// SPDX-License-Identifier: Apache-2.0

package image

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"os/exec"
	"testing"
)

// kernel is an ELF file of one loaded segment and a note with a PVH entry.
func kernel(t *testing.T, text []byte) []byte {
	t.Helper()
	note := []byte("\x04\x00\x00\x00\x04\x00\x00\x00\x12\x00\x00\x00Xen\x00\x90\x05\x00\x01")
	file, err := joinSegments([]segment{
		{elf.ProgHeader{Type: elf.PT_LOAD, Flags: elf.PF_R | elf.PF_X, Paddr: 0x1000000, Memsz: 0x8000}, text},
		{elf.ProgHeader{Type: elf.PT_NOTE, Memsz: uint64(len(note))}, note},
	}, 0x1000590)
	if err != nil {
		t.Fatal(err)
	}
	return file
}

func TestJoinSegments(t *testing.T) {
	text := []byte("text\x00\x00data")
	file := kernel(t, append(bytes.Clone(text), 0, 0, 0))
	all, err := segments(file)
	if err != nil {
		t.Fatal(err)
	}
	if len(all) != 2 || !bytes.Equal(all[0].data, text) || all[0].Memsz != 0x8000 || all[0].Paddr != 0x1000000 {
		t.Errorf("got segments %+v", all)
	}
	if entry, err := pvhEntry(all); err != nil || entry != 0x1000590 {
		t.Errorf("got entry %#x, %v", entry, err)
	}
	if _, err := pvhEntry(all[:1]); err == nil {
		t.Error("a kernel without a note has a PVH entry")
	}
}

func TestUnpackKernel(t *testing.T) {
	want := kernel(t, []byte("text"))
	for _, program := range []string{"xz", "zstd"} {
		cmd := exec.Command(program, "--stdout")
		cmd.Stdin = bytes.NewReader(want)
		packed, err := cmd.Output()
		if err != nil {
			t.Fatalf("run %s: %v", program, err)
		}
		// One boot sector, one sector of setup, and ten bytes into the rest the payload.
		image := make([]byte, 2*512+10)
		image[0x1f1] = 1
		binary.LittleEndian.PutUint32(image[0x248:], 10)
		binary.LittleEndian.PutUint32(image[0x24c:], uint32(len(packed)+4))
		image = append(image, packed...)
		image = binary.LittleEndian.AppendUint32(image, uint32(len(want)))
		if got, err := unpackKernel(t.Context(), image); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: got %d bytes, %v, want the kernel's %d", program, len(got), err, len(want))
		}
		if _, err := unpackKernel(t.Context(), image[:len(image)-1]); err == nil {
			t.Errorf("%s: a file that is cut off unpacks", program)
		}
	}
}

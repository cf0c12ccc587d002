// SPDX-License-Identifier: Apache-2.0

package image

import (
	"bytes"
	"context"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
)

// unpackKernel returns the ELF file, vmlinux, in a bzImage.
func unpackKernel(ctx context.Context, bzImage []byte) ([]byte, error) {
	// The setup header, see the kernel's Documentation/arch/x86/boot.rst.
	const (
		setupSects    = 0x1f1
		payloadOffset = 0x248
		payloadLength = 0x24c
		sector        = 512
		sizeLen       = 4 // the unpacked size, after the compressed data
	)
	if len(bzImage) < sector*2 {
		return nil, errors.New("unpack the kernel: the file is too short")
	}
	begin := (uint64(bzImage[setupSects])+1)*sector + uint64(binary.LittleEndian.Uint32(bzImage[payloadOffset:]))
	end := begin + uint64(binary.LittleEndian.Uint32(bzImage[payloadLength:]))
	if end > uint64(len(bzImage)) || end < begin+sizeLen {
		return nil, errors.New("unpack the kernel: the payload is not in the file")
	}
	payload := bzImage[begin : end-sizeLen]
	for magic, ext := range map[string]string{"\xfd7zXZ\x00": ".xz", "\x28\xb5\x2f\xfd": ".zst", "\x1f\x8b": ".gz"} {
		if bytes.HasPrefix(payload, []byte(magic)) {
			if ext == ".gz" {
				payload = bzImage[begin:end] // the size is part of the format
			}
			data, err := unpack(ctx, ext, payload)
			if err != nil {
				return nil, fmt.Errorf("unpack the kernel: %w", err)
			}
			return data, nil
		}
	}
	return nil, fmt.Errorf("unpack the kernel: unknown compression % x", payload[:min(sizeLen, len(payload))])
}

// segment is a part of an ELF file that a loader handles.
type segment struct {
	elf.ProgHeader
	data []byte // without zeros at its end
}

// segments returns what of an ELF file is loaded, and its notes.
func segments(file []byte) ([]segment, error) {
	f, err := elf.NewFile(bytes.NewReader(file))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var all []segment
	for _, p := range f.Progs {
		if p.Type != elf.PT_LOAD && p.Type != elf.PT_NOTE {
			continue
		}
		data, err := io.ReadAll(p.Open())
		if err != nil {
			return nil, err
		}
		if p.Type == elf.PT_LOAD {
			data = bytes.TrimRight(data, "\x00")
		}
		all = append(all, segment{p.ProgHeader, data})
	}
	return all, nil
}

// pvhEntry returns the physical address of a kernel's PVH entry, which a note
// has.
func pvhEntry(all []segment) (uint32, error) {
	const entryNote = 18
	for _, s := range all {
		if s.Type != elf.PT_NOTE {
			continue
		}
		pad := func(n uint32) uint32 { return (n + 3) &^ 3 }
		for notes := s.data; len(notes) >= 12; {
			nameLen, descLen := binary.LittleEndian.Uint32(notes), binary.LittleEndian.Uint32(notes[4:])
			kind, rest := binary.LittleEndian.Uint32(notes[8:]), notes[12:]
			size := uint64(pad(nameLen)) + uint64(pad(descLen))
			if size > uint64(len(rest)) {
				break
			}
			if kind == entryNote && descLen >= 4 && string(rest[:nameLen]) == "Xen\x00" {
				return binary.LittleEndian.Uint32(rest[pad(nameLen):]), nil
			}
			notes = rest[size:]
		}
	}
	return 0, errors.New("find the kernel's PVH entry: it has none")
}

// joinSegments returns an ELF file of only these segments, which are loaded
// at, and entered by, physical addresses.
func joinSegments(all []segment, entry uint64) ([]byte, error) {
	const page = 4096
	var head, body bytes.Buffer
	h := elf.Header64{
		Type: uint16(elf.ET_EXEC), Machine: uint16(elf.EM_X86_64), Version: uint32(elf.EV_CURRENT), Entry: entry,
	}
	copy(h.Ident[:], elf.ELFMAG)
	h.Ident[elf.EI_CLASS], h.Ident[elf.EI_DATA], h.Ident[elf.EI_VERSION] = byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)
	h.Ehsize, h.Phentsize, h.Phnum = uint16(binary.Size(h)), uint16(binary.Size(elf.Prog64{})), uint16(len(all))
	h.Phoff = uint64(h.Ehsize)
	if err := binary.Write(&head, binary.LittleEndian, h); err != nil {
		return nil, err
	}
	for _, s := range all {
		p := elf.Prog64{
			Type: uint32(s.Type), Flags: uint32(s.Flags), Off: uint64(page + body.Len()),
			Vaddr: s.Paddr, Paddr: s.Paddr, Filesz: uint64(len(s.data)), Memsz: s.Memsz, Align: s.Align,
		}
		if err := binary.Write(&head, binary.LittleEndian, p); err != nil {
			return nil, err
		}
		body.Write(s.data)
		body.Write(make([]byte, -body.Len()&(page-1)))
	}
	if head.Len() > page {
		return nil, fmt.Errorf("write the kernel: %d segments are too many", len(all))
	}
	head.Write(make([]byte, page-head.Len()))
	return append(head.Bytes(), body.Bytes()...), nil
}

// writeUnpacked writes the kernel of a bzImage uncompressed to dst, in a form
// that QEMU boots.
func writeUnpacked(ctx context.Context, dst, bzImage string) error {
	all, entry, err := kernelSegments(ctx, bzImage)
	if err != nil {
		return err
	}
	file, err := joinSegments(all, uint64(entry))
	if err != nil {
		return err
	}
	return os.WriteFile(dst, file, 0o644)
}

// bootFlags build small/boot.c, which is loaded at bootAddress.
var bootFlags = []string{
	"-m32", "-march=i686", "-O2", "-Wall", "-Wextra", "-Werror", "-ffreestanding", "-nostdlib", "-static",
	"-no-pie", "-fno-pie", "-fno-stack-protector", "-fcf-protection=none",
	"-fno-asynchronous-unwind-tables", "-fno-zero-initialized-in-bss",
	"-Wl,--build-id=none", "-Wl,--omagic", "-Wl,-Ttext=0x100000",
}

// writeMultiboot writes the kernel of a bzImage uncompressed to dst, in a form
// that GRUB's command multiboot boots.
func writeMultiboot(ctx context.Context, dst, bzImage string, log io.Writer) error {
	all, entry, err := kernelSegments(ctx, bzImage)
	if err != nil {
		return err
	}
	work, err := os.MkdirTemp("", "frail-boot-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	src, built := filepath.Join(work, "boot.c"), filepath.Join(work, "boot")
	if err := os.WriteFile(src, bootSource, 0o644); err != nil {
		return err
	}
	args := append([]string{"-o", built, fmt.Sprintf("-DPVH_ENTRY=%#x", entry), src}, bootFlags...)
	if err := runLogged(exec.CommandContext(ctx, "gcc", args...), log); err != nil {
		return fmt.Errorf("build the kernel's starter: %w", err)
	}
	starter, err := os.ReadFile(built)
	if err != nil {
		return err
	}
	f, err := elf.NewFile(bytes.NewReader(starter))
	if err != nil {
		return fmt.Errorf("read the kernel's starter: %w", err)
	}
	defer f.Close()
	loaded, err := segments(starter)
	if err != nil {
		return fmt.Errorf("read the kernel's starter: %w", err)
	}
	// The starter comes first: its header must be near the file's begin.
	file, err := joinSegments(append(loaded, all...), f.Entry)
	if err != nil {
		return err
	}
	return os.WriteFile(dst, file, 0o644)
}

// kernelSegments returns the segments of a bzImage's kernel and its PVH entry.
func kernelSegments(ctx context.Context, bzImage string) ([]segment, uint32, error) {
	packed, err := os.ReadFile(bzImage)
	if err != nil {
		return nil, 0, err
	}
	file, err := unpackKernel(ctx, packed)
	if err != nil {
		return nil, 0, err
	}
	all, err := segments(file)
	if err != nil {
		return nil, 0, fmt.Errorf("read the kernel: %w", err)
	}
	entry, err := pvhEntry(all)
	return all, entry, err
}

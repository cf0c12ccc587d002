// SPDX-License-Identifier: Apache-2.0

package layout

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

const (
	// The kernel's image is mapped here, and nothing that a process can
	// write: __START_KERNEL_map and the largest KERNEL_IMAGE_SIZE of Linux.
	imageStart = 0xffffffff80000000
	imageEnd   = imageStart + 1<<30

	// kernelHalf is the lowest address of the kernel under 5-level paging.
	kernelHalf = 0xff00000000000000

	// pageMask selects the physical address in CR3 and page table entries.
	pageMask = 0x000ffffffffff000

	pagePresent  = 1 << 0
	pageWritable = 1 << 1
	pageLarge    = 1 << 7
	pageNoExec   = 1 << 63

	entriesPerTable = 512

	// maxCachedTables bounds the page tables that a space remembers: 4 MiB.
	maxCachedTables = 1024
)

// errNotMapped is returned for a virtual address without a translation.
var errNotMapped = errors.New("address is not mapped")

// imagePhysical translates an address of the kernel's image.
func imagePhysical(va, physBase uint64) (uint64, error) {
	if va < imageStart || va >= imageEnd {
		return 0, fmt.Errorf("%#x is outside the kernel's image", va)
	}
	pa := va - imageStart + physBase
	if pa&^uint64(pageMask|(pageSize-1)) != 0 {
		return 0, fmt.Errorf("%#x has the physical address %#x", va, pa)
	}
	return pa, nil
}

// space is a virtual address space of the guest. It remembers page tables, so
// it is for one short task and one goroutine.
type space struct {
	mem    io.ReaderAt
	root   uint64
	levels int
	tables map[uint64]*[entriesPerTable]uint64
}

func newSpace(mem io.ReaderAt, root uint64, levels int) *space {
	return &space{mem: mem, root: root, levels: levels, tables: make(map[uint64]*[entriesPerTable]uint64)}
}

func (s *space) table(pa uint64) (*[entriesPerTable]uint64, error) {
	if t, ok := s.tables[pa]; ok {
		return t, nil
	}
	var page [pageSize]byte
	if _, err := s.mem.ReadAt(page[:], int64(pa)); err != nil {
		return nil, fmt.Errorf("read page table: %w", err)
	}
	t := new([entriesPerTable]uint64)
	for i := range t {
		t[i] = binary.LittleEndian.Uint64(page[8*i:])
	}
	if len(s.tables) >= maxCachedTables {
		clear(s.tables)
	}
	s.tables[pa] = t
	return t, nil
}

// mapping is what the page tables say of an address.
type mapping struct {
	// size is how many bytes from the address on have the same entry, mapped or
	// not.
	size    uint64
	present bool

	// Of what is present:
	pa                   uint64
	writable, executable bool
}

// walk returns the mapping of va. It fails only if a page table cannot be read.
func (s *space) walk(va uint64) (mapping, error) {
	const (
		pageShift  = 12
		tableShift = 9
		lastLarge  = 3 // 1 GiB pages are mapped by the third level
	)
	m := mapping{writable: true, executable: true}
	table := s.root
	for level := s.levels; ; level-- {
		t, err := s.table(table)
		if err != nil {
			return mapping{}, fmt.Errorf("translate %#x: %w", va, err)
		}
		shift := pageShift + tableShift*(level-1)
		entry := t[va>>shift%entriesPerTable]
		size := uint64(1) << shift
		offset := va & (size - 1)
		m.size = size - offset
		m.writable = m.writable && entry&pageWritable != 0
		m.executable = m.executable && entry&pageNoExec == 0
		leaf := level == 1 || entry&pageLarge != 0
		if entry&pagePresent == 0 || leaf && level > lastLarge {
			return mapping{size: m.size}, nil
		}
		if leaf {
			m.present = true
			m.pa = entry&pageMask&^(size-1) | offset
			return m, nil
		}
		table = entry & pageMask
	}
}

// translate returns the physical address of va and how many bytes from there on
// are mapped in one piece.
func (s *space) translate(va uint64) (pa, size uint64, err error) {
	m, err := s.walk(va)
	if err != nil {
		return 0, 0, err
	}
	if !m.present {
		return 0, 0, fmt.Errorf("translate %#x: %w", va, errNotMapped)
	}
	return m.pa, m.size, nil
}

// read fills p from the virtual address va.
func (s *space) read(p []byte, va uint64) error {
	for len(p) > 0 {
		pa, size, err := s.translate(va)
		if err != nil {
			return err
		}
		// What is contiguous in memory is read at once: on the slow paths to
		// memory the calls are what costs.
		for size < uint64(len(p)) {
			next, more, err := s.translate(va + size)
			if err != nil || next != pa+size {
				break
			}
			size += more
		}
		n := min(uint64(len(p)), size)
		if _, err := s.mem.ReadAt(p[:n], int64(pa)); err != nil {
			return err
		}
		p = p[n:]
		va += n
	}
	return nil
}

func (s *space) uint64(va uint64) (uint64, error) {
	var b [8]byte
	err := s.read(b[:], va)
	return binary.LittleEndian.Uint64(b[:]), err
}

func (s *space) uint32(va uint64) (uint32, error) {
	var b [4]byte
	err := s.read(b[:], va)
	return binary.LittleEndian.Uint32(b[:]), err
}

// cstring reads a NUL-padded string of a field of size bytes.
func (s *space) cstring(va uint64, size int) (string, error) {
	b := make([]byte, size)
	if err := s.read(b, va); err != nil {
		return "", err
	}
	for i, c := range b {
		if c == 0 {
			return string(b[:i]), nil
		}
	}
	return string(b), nil
}

// checkImage reports an error unless the space maps the image address va where
// physBase says.
func (s *space) checkImage(va, physBase uint64) error {
	want, err := imagePhysical(va, physBase)
	if err != nil {
		return err
	}
	got, _, err := s.translate(va)
	if err != nil {
		return err
	}
	if got != want {
		return fmt.Errorf("the kernel's address %#x is mapped to %#x, not %#x", va, got, want)
	}
	return nil
}

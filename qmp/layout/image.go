// SPDX-License-Identifier: Apache-2.0

package layout

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
)

const (
	// maxImage bounds what is searched of a kernel's image: 7.2 has 60 MiB.
	maxImage = 256 << 20

	// imageAlign is the alignment of the image, by virtual and physical
	// address: the least CONFIG_PHYSICAL_ALIGN.
	imageAlign = 2 << 20

	// linkedAt is where Debian's and all other usual kernels are linked:
	// __START_KERNEL_map and the default CONFIG_PHYSICAL_START.
	linkedAt = imageStart + 0x1000000

	// maxNotes bounds the kernel's ELF notes.
	maxNotes = 16 << 10

	// maxBanner bounds the start of the kernel's banner: its words up to the
	// release.
	maxBanner = 128
)

// run is a stretch of the kernel's image with the same rights.
type run struct {
	addr, size           uint64
	writable, executable bool
}

// imageRuns returns what a space maps of the kernel's image, by address.
func (s *space) imageRuns() ([]run, error) {
	var runs []run
	for va := uint64(imageStart); va < imageEnd; {
		m, err := s.walk(va)
		if err != nil {
			return nil, err
		}
		size := min(m.size, imageEnd-va)
		if m.present {
			r := run{va, size, m.writable, m.executable}
			if n := len(runs); n > 0 && runs[n-1].addr+runs[n-1].size == va && runs[n-1].writable == r.writable && runs[n-1].executable == r.executable {
				runs[n-1].size += size
			} else {
				runs = append(runs, r)
			}
		}
		va += size
	}
	return runs, nil
}

// byTrust sorts runs by how likely they hold the kernel's constants and how
// unlikely anything else: the kernel makes them read-only before user space
// starts, and pages of its image that it gives away are writable.
func byTrust(runs []run) []run {
	rank := func(r run) int {
		switch {
		case r.writable:
			return 2
		case r.executable:
			return 1
		default:
			return 0
		}
	}
	runs = slices.Clone(runs)
	slices.SortStableFunc(runs, func(a, b run) int { return cmp.Compare(rank(a), rank(b)) })
	return runs
}

// searchRuns calls found with the address of each occurrence of digitTokens in
// runs, until it returns false.
func searchRuns(ctx context.Context, m memory, runs []run, found func(uint64) bool) error {
	buf := make([]byte, scanChunk)
	var searched uint64
	for _, r := range runs {
		kept := 0 // of the chunk before, in case the tokens lie on both sides
		for at := r.addr; at < r.addr+r.size; {
			if err := ctx.Err(); err != nil {
				return err
			}
			n := int(min(uint64(len(buf)-kept), r.addr+r.size-at))
			if searched += uint64(n); searched > maxImage {
				return fmt.Errorf("gave up after %d bytes of the kernel's image", maxImage)
			}
			if m.read(buf[kept:kept+n], at) != nil {
				kept = 0 // not RAM
				at += uint64(n)
				continue
			}
			have := buf[:kept+n]
			start := at - uint64(kept)
			if !findDigits(have, func(i int) bool { return found(start + uint64(i)) }) {
				return nil
			}
			at += uint64(n)
			kept = copy(buf, have[max(0, len(have)-len(digitTokens)+1):])
		}
	}
	return nil
}

// searchImage finds the symbol tables in the kernel's image as sp maps it. accept
// tells the right encoding. A table whose names lie in memory that is writable is
// taken only if there is no other.
func searchImage(ctx context.Context, sp *space, accept func(*symbols) bool) (*symbols, kallsymsTables, error) {
	runs, err := sp.imageRuns()
	if err != nil {
		return nil, kallsymsTables{}, err
	}
	var (
		s    *symbols
		t    kallsymsTables
		hits int
		why  error
	)
	err = searchRuns(ctx, sp, byTrust(runs), func(hit uint64) bool {
		if hits++; hits > maxTableHits {
			return false
		}
		var f *foundTables
		if f, why = examineTables(ctx, sp, hit); why == nil {
			s, t, why = f.symbols(sp, accept)
		}
		return s == nil && ctx.Err() == nil
	})
	switch {
	case ctx.Err() != nil:
		return nil, t, ctx.Err()
	case s != nil:
		return s, t, nil
	case err != nil:
		return nil, t, err
	case why != nil:
		return nil, t, fmt.Errorf("%w: %w", errNoTables, why)
	default:
		return nil, t, errNoTables
	}
}

// physical is the guest's physical memory.
type physical struct{ io.ReaderAt }

func (p physical) read(b []byte, addr uint64) error {
	_, err := p.ReadAt(b, int64(addr))
	return err
}

// place finds out where the image lies whose symbol tables were found in physical
// memory, at table: its own page tables must map it there. The symbols it returns
// have virtual addresses.
//
// Symbols stored relative to their own place have physical addresses so far, and
// the page tables say which virtual ones. All others have virtual addresses: every
// place is tried at which the image can have its tables at table.
func place(mem io.ReaderAt, s *symbols, table uint64) (*space, *symbols, uint64, error) {
	const entry, pageTable = "entry_SYSCALL_64", "init_top_pgt"
	var at [2]uint64
	for i, name := range []string{entry, pageTable} {
		symbol, ok := s.lookup(name)
		if !ok {
			return nil, nil, 0, missing{"symbol " + name}
		}
		at[i] = symbol.Addr
	}
	if s.encoding == encodingPlace {
		for _, levels := range []int{4, 5} {
			sp := newSpace(mem, at[1], levels)
			for va := uint64(imageStart) + at[0]%imageAlign; va < imageEnd; va += imageAlign {
				if pa, _, err := sp.translate(va); err == nil && pa == at[0] {
					return sp, s.moved(va - pa), pa - va + imageStart, nil
				}
			}
		}
		return nil, nil, 0, fmt.Errorf("the page table at %#x does not map its kernel", at[1])
	}
	for image := table &^ (imageAlign - 1); ; image -= imageAlign {
		// The entry's address modulo the alignment is the same by both.
		pa := image + at[0]%imageAlign
		physBase := pa - at[0] + imageStart
		if root, err := imagePhysical(at[1], physBase); err == nil && root%pageSize == 0 {
			for _, levels := range []int{4, 5} {
				sp := newSpace(mem, root, levels)
				if sp.checkImage(at[0], physBase) == nil {
					return sp, s, physBase, nil
				}
			}
		}
		if image < imageAlign || table-image > maxImage {
			return nil, nil, 0, fmt.Errorf("no page table maps a kernel with symbol tables at %#x", table)
		}
	}
}

// readBuildID returns the build id among the ELF notes at va, in hexadecimal, or
// an empty string.
func readBuildID(m memory, va, size uint64) string {
	if size > maxNotes {
		return ""
	}
	b := make([]byte, size)
	if m.read(b, va) != nil {
		return ""
	}
	return parseBuildID(b)
}

// parseBuildID returns the GNU build id among ELF notes.
func parseBuildID(b []byte) string {
	const head, align, gnuBuildID = 12, 4, 3
	le := binary.LittleEndian
	for len(b) >= head {
		name, desc, kind := uint64(le.Uint32(b)), uint64(le.Uint32(b[4:])), le.Uint32(b[8:])
		b = b[head:]
		up := func(n uint64) uint64 { return (n + align - 1) &^ (align - 1) }
		if up(name)+desc > uint64(len(b)) {
			return ""
		}
		text := b[:name]
		content := b[up(name) : up(name)+desc]
		if id := hex.EncodeToString(content); kind == gnuBuildID && string(text) == "GNU\x00" && isHex(id) {
			return id
		}
		b = b[min(up(name)+up(desc), uint64(len(b))):]
	}
	return ""
}

// imageBuildIDs returns the build ids in the image's constants that are not those
// of a vDSO, at most a few: the kernel's is among them where nothing says where
// its notes are.
func imageBuildIDs(ctx context.Context, sp *space) []string {
	const maxIDs = 4
	var (
		buildIDHead = []byte("\x14\x00\x00\x00\x03\x00\x00\x00GNU\x00")
		elfMagic    = []byte("\x7fELF")
		ids         []string
	)
	runs, err := sp.imageRuns()
	if err != nil {
		return nil
	}
	buf := make([]byte, scanChunk)
	for _, r := range byTrust(runs) {
		if r.writable {
			break
		}
		for at := r.addr; at < r.addr+min(r.size, maxImage) && ctx.Err() == nil; at += scanChunk {
			b := buf[:min(scanChunk, r.addr+r.size-at)]
			if sp.read(b, at) != nil {
				continue
			}
			for i := 0; len(ids) < maxIDs; i++ {
				j := bytes.Index(b[i:], buildIDHead)
				if j < 0 {
					break
				}
				if i += j; i < 4 {
					continue
				}
				id := parseBuildID(b[i-4:])
				page := i &^ (pageSize - 1)
				vdso := bytes.HasPrefix(b[page:], elfMagic) || page > 0 && bytes.HasPrefix(b[page-pageSize:], elfMagic)
				if id != "" && !vdso && !slices.Contains(ids, id) {
					ids = append(ids, id)
				}
			}
		}
	}
	return ids
}

// readRelease returns the kernel's release as its banner says.
func readRelease(m memory, s *symbols) (string, error) {
	banner, ok := s.lookup("linux_banner")
	if !ok {
		return "", missing{"symbol linux_banner"}
	}
	b := make([]byte, maxBanner)
	if err := m.read(b, banner.Addr); err != nil {
		return "", fmt.Errorf("read the kernel's banner: %w", err)
	}
	rest, ok := strings.CutPrefix(string(b), "Linux version ")
	release, _, end := strings.Cut(rest, " ")
	if !ok || !end || release == "" || len(release) > maxRelease || !printable(release) {
		return "", fmt.Errorf("the kernel's banner is %.40q", b)
	}
	return release, nil
}

// missing is something that the kernel does not say of itself and that can be
// imported.
type missing struct{ what string }

func (m missing) Error() string { return "the kernel has no " + m.what }

func isMissing(err error) bool {
	_, ok := errors.AsType[missing](err)
	return ok
}

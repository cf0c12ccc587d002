// SPDX-License-Identifier: Apache-2.0

package layout

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"
	"strconv"
	"strings"

	"frail/qmp"
)

const (
	pageSize = 4096

	// scanStart is where the search begins: Linux leaves the first MiB alone.
	scanStart = 1 << 20

	// scanChunk is how much is read at a time: below libvirt's limit of 4 MiB
	// a call, and small enough to stay in the cache.
	scanChunk = 1 << 20

	// maxNote bounds the note's body, for which the kernel reserves a page.
	maxNote = 16 << 10

	// maxRelease bounds a kernel release: uname's fields have 65 bytes.
	maxRelease = 65
)

// noteHead is how the note begins: an ELF note header, whose second word is the
// length of the body, the name, and the first key.
var (
	noteHead = []byte("\x0b\x00\x00\x00")
	noteName = []byte("\x00\x00\x00\x00VMCOREINFO\x00\x00OSRELEASE=")
)

const (
	noteLenAt  = 4
	noteNameAt = 8
	noteBodyAt = 24
)

// note is what Resolve uses of VMCOREINFO.
type note struct {
	addr uint64 // where it was found

	release      string
	buildID      string
	kernelOffset uint64
	physBase     uint64
	levels       int
	stext        uint64
	initTopPgt   uint64

	// kallsyms is zero before Linux 6.0, whose notes do not say.
	kallsyms kallsymsTables
}

// residency is memory that knows which of its pages the host holds. Pages that
// it does not hold were never written, and reading one may make the host
// allocate it: a search leaves them alone.
type residency interface {
	Resident(addr uint64, pages []bool) error
}

// scanNotes yields the notes in RAM. It ends after the first error. What looks
// like a note but does not parse is passed over.
//
// The kernel allocates the note early, from an end of its memory: near the start
// of RAM in a guest without memory above 4 GiB, some 100 MiB below its top in
// the others. So the search goes from both ends of each range inwards.
//
// Into tables go the addresses of what may be kallsyms' token tables, for a kernel
// that has no note.
func scanNotes(ctx context.Context, mem io.ReaderAt, ranges []qmp.Range, tables *tableHits) iter.Seq2[*note, error] {
	return func(yield func(*note, error) bool) {
		s := &scanner{mem: mem, buf: make([]byte, scanChunk), tables: tables}
		s.residency, _ = mem.(residency)
		var spans []qmp.Range
		for _, r := range ranges {
			start := (max(r.Start, scanStart) + pageSize - 1) &^ (pageSize - 1)
			if end := r.End() &^ (pageSize - 1); start < end {
				spans = append(spans, qmp.Range{Start: start, Size: end - start})
			}
		}
		for len(spans) > 0 {
			rest := spans[:0]
			for _, r := range spans {
				chunks := []qmp.Range{{Start: r.Start, Size: min(r.Size, scanChunk)}}
				r.Start += chunks[0].Size
				r.Size -= chunks[0].Size
				if n := min(r.Size, scanChunk); n > 0 {
					r.Size -= n
					chunks = append(chunks, qmp.Range{Start: r.End(), Size: n})
				}
				for _, c := range chunks {
					if err := ctx.Err(); err != nil {
						yield(nil, err)
						return
					}
					if !s.scan(c, yield) {
						return
					}
				}
				if r.Size > 0 {
					rest = append(rest, r)
				}
			}
			spans = rest
		}
	}
}

// scanner searches memory for notes.
type scanner struct {
	mem       io.ReaderAt
	residency residency // nil: not known
	buf       []byte
	pages     [scanChunk / pageSize]bool
	tables    *tableHits
}

// tableHits are physical addresses of digitTokens, the first ones found.
type tableHits struct {
	addrs []uint64
	// edges are the ends of what was searched so far, by the address where it
	// ends or begins: the tokens may lie on both sides.
	edges map[uint64]*[2][]byte
}

// search looks for the tokens in memory that begins at the address start.
func (h *tableHits) search(start uint64, b []byte) {
	h.find(start, b)
	if h.edges == nil {
		h.edges = make(map[uint64]*[2][]byte)
	}
	n := len(digitTokens) - 1
	for side, edge := range [2][]byte{b[len(b)-n:], b[:n]} {
		at := start
		if side == 0 {
			at += uint64(len(b))
		}
		e := h.edges[at]
		if e == nil {
			e = new([2][]byte)
			h.edges[at] = e
		}
		if e[side] = bytes.Clone(edge); e[0] != nil && e[1] != nil {
			h.find(at-uint64(n), slices.Concat(e[0], e[1]))
			delete(h.edges, at)
		}
	}
}

func (h *tableHits) find(start uint64, b []byte) {
	findDigits(b, func(at int) bool {
		if len(h.addrs) < maxTableHits {
			h.addrs = append(h.addrs, start+uint64(at))
		}
		return len(h.addrs) < maxTableHits
	})
}

// scan yields the notes in a chunk of whole pages and reports whether to go on.
func (s *scanner) scan(c qmp.Range, yield func(*note, error) bool) bool {
	pages := s.pages[:c.Size/pageSize]
	for i := range pages {
		pages[i] = true
	}
	if s.residency != nil {
		if err := s.residency.Resident(c.Start, pages); err != nil {
			yield(nil, err)
			return false
		}
	}
	for i := 0; i < len(pages); {
		if !pages[i] {
			i++
			continue
		}
		first := i
		for i < len(pages) && pages[i] {
			i++
		}
		start := c.Start + uint64(first)*pageSize
		run := s.buf[:(i-first)*pageSize]
		if _, err := s.mem.ReadAt(run, int64(start)); err != nil {
			yield(nil, err)
			return false
		}
		s.tables.search(start, run)
		for at := 0; at < len(run); at += pageSize {
			if !isNote(run[at:]) {
				continue
			}
			n, err := readNote(s.mem, start+uint64(at))
			if err != nil {
				continue
			}
			if !yield(n, nil) {
				return false
			}
		}
	}
	return true
}

func isNote(page []byte) bool {
	return bytes.HasPrefix(page, noteHead) && bytes.HasPrefix(page[noteNameAt:], noteName)
}

func readNote(mem io.ReaderAt, addr uint64) (*note, error) {
	var head [noteBodyAt]byte
	if _, err := mem.ReadAt(head[:], int64(addr)); err != nil {
		return nil, err
	}
	size := binary.LittleEndian.Uint32(head[noteLenAt:])
	if size > maxNote {
		return nil, fmt.Errorf("a body of %d bytes", size)
	}
	body := make([]byte, size)
	if _, err := mem.ReadAt(body, int64(addr+noteBodyAt)); err != nil {
		return nil, err
	}
	n, err := parseNote(body)
	if err != nil {
		return nil, err
	}
	n.addr = addr
	return n, nil
}

// parseNote parses the note's body: lines of KEY=VALUE.
func parseNote(body []byte) (*note, error) {
	values := make(map[string]string)
	for line := range strings.Lines(string(body)) {
		key, value, ok := strings.Cut(strings.TrimRight(line, "\n"), "=")
		if _, dup := values[key]; ok && !dup {
			values[key] = value
		}
	}
	var errs []error
	number := func(key string, base int) uint64 {
		text, ok := values[key]
		if !ok {
			errs = append(errs, fmt.Errorf("no %s", key))
			return 0
		}
		// NUMBER(phys_base) is signed.
		if v, err := strconv.ParseInt(text, base, 64); err == nil {
			return uint64(v)
		}
		v, err := strconv.ParseUint(text, base, 64)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", key, err))
		}
		return v
	}
	optional := func(key string, base int) uint64 {
		if _, ok := values[key]; !ok {
			return 0
		}
		return number(key, base)
	}
	symbol := func(name string) uint64 { return number("SYMBOL("+name+")", 16) }

	n := &note{
		release:      values["OSRELEASE"],
		kernelOffset: optional("KERNELOFFSET", 16),
		physBase:     number("NUMBER(phys_base)", 10),
		stext:        symbol("_stext"),
		levels:       4,
	}
	if _, ok := values["SYMBOL(kallsyms_names)"]; ok {
		n.kallsyms = kallsymsTables{
			names:        symbol("kallsyms_names"),
			numSyms:      symbol("kallsyms_num_syms"),
			tokenTable:   symbol("kallsyms_token_table"),
			tokenIndex:   symbol("kallsyms_token_index"),
			addresses:    optional("SYMBOL(kallsyms_addresses)", 16),
			relativeBase: optional("SYMBOL(kallsyms_relative_base)", 16),
		}
		if n.kallsyms.addresses == 0 {
			n.kallsyms.offsets = symbol("kallsyms_offsets")
		}
	}
	if n.initTopPgt = optional("SYMBOL(init_top_pgt)", 16); n.initTopPgt == 0 {
		n.initTopPgt = symbol("swapper_pg_dir")
	}
	if optional("NUMBER(pgtable_l5_enabled)", 10) != 0 {
		n.levels = 5
	}
	if n.release == "" || len(n.release) > maxRelease || !printable(n.release) {
		errs = append(errs, fmt.Errorf("OSRELEASE %.80q", n.release))
	}
	// Some stable kernels publish garbage as their build id.
	if id := values["BUILD-ID"]; isHex(id) {
		n.buildID = id
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return n, nil
}

func printable(s string) bool {
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' {
			return false
		}
	}
	return true
}

func isHex(s string) bool {
	const sha1, sha256 = 40, 64
	return (len(s) == sha1 || len(s) == sha256) && strings.Trim(s, "0123456789abcdef") == ""
}

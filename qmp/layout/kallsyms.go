// SPDX-License-Identifier: Apache-2.0

package layout

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"strings"
)

const (
	// maxSymbols bounds the symbol table. Linux 7.2 as Debian builds it has
	// 186,798.
	maxSymbols = 1 << 20

	// maxSymbolName bounds a name: KSYM_NAME_LEN is 512.
	maxSymbolName = 512

	// maxNames bounds the compressed names: 7.2 has 4 MB. maxExpanded bounds
	// them expanded.
	maxNames    = 16 << 20
	maxExpanded = 48 << 20

	// namesChunk is how much of the names is read at a time: the table does
	// not state its size.
	namesChunk = 1 << 20

	// Names are sequences of tokens: one byte each names one of 256 strings,
	// whose places in the token table are 16 bits wide.
	tokens        = 256
	maxTokenTable = 1 << 16

	// symbolsPerCheck is how often the parser looks whether time is up.
	symbolsPerCheck = 1 << 14
)

// symbols is a parsed kallsyms table.
type symbols struct {
	names  string // all names, each after its type letter
	ends   []uint32
	addrs  []uint64
	byName map[string]uint32 // the first of each name
}

func (s *symbols) len() int { return len(s.ends) }

func (s *symbols) at(i int) Symbol {
	var start uint32
	if i > 0 {
		start = s.ends[i-1]
	}
	entry := s.names[start:s.ends[i]]
	return Symbol{Addr: s.addrs[i], Type: entry[0], Name: entry[1:]}
}

func (s *symbols) lookup(name string) (Symbol, bool) {
	i, ok := s.byName[name]
	if !ok {
		return Symbol{}, false
	}
	return s.at(int(i)), true
}

func (s *symbols) all() iter.Seq[Symbol] {
	return func(yield func(Symbol) bool) {
		for i := range s.ends {
			if !yield(s.at(i)) {
				return
			}
		}
	}
}

// readSymbols parses the kernel's symbol table and checks that it puts _stext
// where the note does.
func readSymbols(ctx context.Context, sp *space, n *note) (*symbols, error) {
	t := n.kallsyms
	for _, table := range []struct {
		name string
		addr uint64
	}{
		{"kallsyms_names", t.names}, {"kallsyms_num_syms", t.numSyms}, {"kallsyms_token_table", t.tokenTable},
		{"kallsyms_token_index", t.tokenIndex}, {"kallsyms_offsets", t.offsets},
	} {
		if table.addr < imageStart || table.addr >= imageEnd {
			return nil, fmt.Errorf("%s at %#x is outside the kernel's image", table.name, table.addr)
		}
	}
	count, err := sp.uint32(t.numSyms)
	if err != nil {
		return nil, fmt.Errorf("count of symbols: %w", err)
	}
	if count == 0 || count > maxSymbols {
		return nil, fmt.Errorf("%d symbols; at most %d are believed", count, maxSymbols)
	}
	table, err := readTokens(sp, t)
	if err != nil {
		return nil, err
	}
	s, err := expandNames(ctx, &imageReader{sp: sp, next: t.names}, int(count), table)
	if err != nil {
		return nil, err
	}

	raw := make([]byte, 4*count)
	if err := sp.read(raw, t.offsets); err != nil {
		return nil, fmt.Errorf("offsets: %w", err)
	}
	offsets := make([]int32, count)
	for i := range offsets {
		offsets[i] = int32(binary.LittleEndian.Uint32(raw[4*i:]))
	}
	var base uint64
	if t.relativeBase != 0 {
		if base, err = sp.uint64(t.relativeBase); err != nil {
			return nil, fmt.Errorf("relative base: %w", err)
		}
	}
	stext, ok := s.byName["_stext"]
	if !ok {
		return nil, errors.New("no symbol _stext")
	}
	decode, err := chooseEncoding(offsets, int(stext), t, base, n.stext)
	if err != nil {
		return nil, err
	}
	s.addrs = make([]uint64, count)
	for i, offset := range offsets {
		s.addrs[i] = decode(i, offset)
	}
	return s, nil
}

// chooseEncoding returns the decoder of offsets that puts the symbol at index
// stext where it is known to be. Which one a kernel uses cannot be read off it.
func chooseEncoding(offsets []int32, stext int, t kallsymsTables, base, want uint64) (func(int, int32) uint64, error) {
	var encodings []func(int, int32) uint64
	if t.relativeBase != 0 {
		encodings = append(encodings,
			// Linux 4.6 to 6.14 with CONFIG_KALLSYMS_ABSOLUTE_PERCPU.
			func(_ int, o int32) uint64 {
				if o >= 0 {
					return uint64(o)
				}
				return base - 1 - uint64(int64(o))
			},
			// Linux 4.6 to 6.19: unsigned, relative to one base.
			func(_ int, o int32) uint64 { return base + uint64(uint32(o)) },
		)
	}
	// Since Linux 7.0: relative to the offset's own place.
	encodings = append(encodings, func(i int, o int32) uint64 { return t.offsets + 4*uint64(i) + uint64(int64(o)) })
	for _, decode := range encodings {
		if decode(stext, offsets[stext]) == want {
			return decode, nil
		}
	}
	return nil, fmt.Errorf("no known encoding puts _stext at %#x", want)
}

// readTokens reads the 256 strings that names are made of.
func readTokens(sp *space, t kallsymsTables) ([]string, error) {
	var index [2 * tokens]byte
	if err := sp.read(index[:], t.tokenIndex); err != nil {
		return nil, fmt.Errorf("token index: %w", err)
	}
	last := int(binary.LittleEndian.Uint16(index[2*(tokens-1):]))
	// The last token ends somewhere after its start; the index follows the
	// table in the image, so reading on is harmless.
	raw := make([]byte, min(last+maxSymbolName, maxTokenTable))
	if err := sp.read(raw, t.tokenTable); err != nil {
		return nil, fmt.Errorf("token table: %w", err)
	}
	text := string(raw)
	out := make([]string, tokens)
	for i := range out {
		at := int(binary.LittleEndian.Uint16(index[2*i:]))
		if at >= len(text) {
			return nil, fmt.Errorf("token %d lies outside the token table", i)
		}
		token, _, ok := strings.Cut(text[at:], "\x00")
		if !ok || len(token) > maxSymbolName {
			return nil, fmt.Errorf("token %d has no end", i)
		}
		out[i] = token
	}
	return out, nil
}

// imageReader reads the kernel's image byte by byte from an address on, at most
// maxNames bytes.
type imageReader struct {
	sp   *space
	next uint64
	buf  []byte
	have []byte
	used int
}

var errNamesEnd = errors.New("names have no end")

func (r *imageReader) readByte() (byte, error) {
	if len(r.have) == 0 {
		if r.used >= maxNames {
			return 0, fmt.Errorf("%w within %d bytes", errNamesEnd, maxNames)
		}
		if r.buf == nil {
			r.buf = make([]byte, namesChunk)
		}
		n, err := r.fill()
		if err != nil {
			return 0, err
		}
		r.have = r.buf[:n]
		r.next += uint64(n)
		r.used += n
	}
	b := r.have[0]
	r.have = r.have[1:]
	return b, nil
}

// fill reads as much as is mapped, at least a byte.
func (r *imageReader) fill() (int, error) {
	if r.sp.read(r.buf, r.next) == nil {
		return len(r.buf), nil
	}
	// The names may end just before memory that is not mapped.
	n := 0
	for n < len(r.buf) {
		step := min(pageSize-int((r.next+uint64(n))%pageSize), len(r.buf)-n)
		if err := r.sp.read(r.buf[n:n+step], r.next+uint64(n)); err != nil {
			if n == 0 {
				return 0, err
			}
			break
		}
		n += step
	}
	return n, nil
}

// expandNames decompresses count names.
func expandNames(ctx context.Context, r *imageReader, count int, table []string) (*symbols, error) {
	s := &symbols{ends: make([]uint32, count)}
	var arena strings.Builder
	const typical = 24 // bytes of a name
	arena.Grow(count * typical)
	for i := range s.ends {
		if i%symbolsPerCheck == 0 {
			if err := ctx.Err(); err != nil {
				return nil, err
			}
		}
		b, err := r.readByte()
		if err != nil {
			return nil, fmt.Errorf("name %d: %w", i, err)
		}
		length := int(b)
		// Since Linux 6.1 the top bit says that a second byte follows.
		const more = 0x80
		if length&more != 0 {
			if b, err = r.readByte(); err != nil {
				return nil, fmt.Errorf("name %d: %w", i, err)
			}
			length = length&^more | int(b)<<7
		}
		start := arena.Len()
		for range length {
			if b, err = r.readByte(); err != nil {
				return nil, fmt.Errorf("name %d: %w", i, err)
			}
			arena.WriteString(table[b])
			if arena.Len()-start > maxSymbolName {
				return nil, fmt.Errorf("name %d is longer than %d bytes", i, maxSymbolName)
			}
		}
		if arena.Len() == start {
			return nil, fmt.Errorf("name %d is empty", i)
		}
		if arena.Len() > maxExpanded {
			return nil, fmt.Errorf("names take more than %d bytes", maxExpanded)
		}
		s.ends[i] = uint32(arena.Len())
	}
	s.names = arena.String()
	s.byName = make(map[string]uint32, count)
	start := uint32(0)
	for i, end := range s.ends {
		name := s.names[start+1 : end]
		if _, dup := s.byName[name]; !dup {
			s.byName[name] = uint32(i)
		}
		start = end
	}
	return s, nil
}

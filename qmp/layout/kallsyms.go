// SPDX-License-Identifier: Apache-2.0

package layout

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/maphash"
	"iter"
	"strings"
)

const (
	// maxSymbols bounds the symbol table. Linux 7.2 as Debian builds it has
	// 186,798.
	maxSymbols = 1 << 20

	// maxSymbolName bounds a name: KSYM_NAME_LEN is 512.
	maxSymbolName = 512

	// maxNames bounds the compressed names with the small tables that follow
	// them: 7.2 has 4 MB.
	maxNames = 16 << 20

	// maxExpanded bounds the names expanded, and so the time to expand them.
	maxExpanded = 48 << 20

	// Names are sequences of tokens: one byte each names one of 256 strings,
	// whose places in the token table are 16 bits wide.
	tokens        = 256
	tokenIndexLen = 2 * tokens
	maxTokenTable = 1 << 16

	// symbolsPerCheck is how often the parser looks whether time is up.
	symbolsPerCheck = 1 << 14

	// namesPerMarker is how many names lie between two markers.
	namesPerMarker = 256
)

// memory is what tables are read from: a virtual address space or the guest's
// physical memory.
type memory interface {
	read(p []byte, addr uint64) error
}

// kallsymsTables are the addresses of the kernel's symbol tables.
type kallsymsTables struct {
	names, numSyms, tokenTable, tokenIndex uint64

	// Either offsets, of 32 bits each, or addresses, of 64.
	offsets, addresses uint64
	relativeBase       uint64 // 0: there is none
}

// check reports an error unless the tables lie in the kernel's image.
func (t kallsymsTables) check() error {
	for _, table := range []struct {
		name string
		addr uint64
	}{
		{"kallsyms_names", t.names}, {"kallsyms_num_syms", t.numSyms}, {"kallsyms_token_table", t.tokenTable},
		{"kallsyms_token_index", t.tokenIndex}, {"kallsyms_offsets", t.offsets + t.addresses},
	} {
		if table.addr < imageStart || table.addr >= imageEnd {
			return fmt.Errorf("%s at %#x is outside the kernel's image", table.name, table.addr)
		}
	}
	return nil
}

// symbolTable is what the build of a kernel decided of its symbols: all its
// boots share it. It keeps the names as the kernel does, compressed.
type symbolTable struct {
	names  []byte
	starts []uint32 // of the length of each in names
	tokens [tokens]string

	// index finds names: a hash table with open addressing. The seed is secret,
	// so nobody can make names collide.
	index []uint64
	seed  maphash.Seed
}

// symbols is a kernel's symbol table at the addresses of one boot.
type symbols struct {
	*symbolTable
	encoding encoding
	offsets  []int32  // nil with encodingAbsolute
	addrs    []uint64 // nil with all others
	base     uint64   // of the encoding; moves with the kernel
}

// encoding is how addresses are stored.
type encoding uint8

const (
	// encodingPerCPU is Linux 4.6 to 6.14 with CONFIG_KALLSYMS_ABSOLUTE_PERCPU:
	// values from 0 up are absolute, those below relative to one base.
	encodingPerCPU encoding = iota
	// encodingBase is Linux 4.6 to 6.19: unsigned, relative to one base.
	encodingBase
	// encodingPlace is Linux since 7.0: relative to the offset's own place, of
	// which the first is the base.
	encodingPlace
	// encodingAbsolute is Linux up to 6.10 without
	// CONFIG_KALLSYMS_BASE_RELATIVE, and a file's symbols. The base is how far
	// the image moved since.
	encodingAbsolute
)

func (s *symbols) len() int {
	if s == nil || s.symbolTable == nil {
		return 0
	}
	return len(s.starts)
}

// addr returns the address of symbol i.
func (s *symbols) addr(i int) uint64 {
	switch s.encoding {
	case encodingPerCPU:
		if o := s.offsets[i]; o < 0 {
			return s.base - 1 - uint64(int64(o))
		}
		return uint64(s.offsets[i])
	case encodingBase:
		return s.base + uint64(uint32(s.offsets[i]))
	case encodingPlace:
		return s.base + 4*uint64(i) + uint64(int64(s.offsets[i]))
	default:
		if a := s.addrs[i]; a >= imageStart && a < imageEnd {
			return a + s.base
		}
		return s.addrs[i]
	}
}

// moved returns the symbols of a kernel whose image lies by bytes further up.
func (s *symbols) moved(by uint64) *symbols {
	c := *s
	c.base += by
	return &c
}

func (s *symbols) at(i int) Symbol {
	text := s.expand(nil, i)
	return Symbol{Addr: s.addr(i), Type: text[0], Name: string(text[1:])}
}

func (s *symbols) lookup(name string) (Symbol, bool) {
	if s.len() == 0 {
		return Symbol{}, false
	}
	slot, ok := s.slot([]byte(name), maphash.String(s.seed, name))
	if !ok {
		return Symbol{}, false
	}
	return s.at(int(s.index[slot]&indexMask - 1)), true
}

func (s *symbols) all() iter.Seq[Symbol] {
	return func(yield func(Symbol) bool) {
		for i := range s.len() {
			if !yield(s.at(i)) {
				return
			}
		}
	}
}

// nameLength returns the compressed length of the name at the start of b and how
// many bytes say so: 0 if b is too short.
func nameLength(b []byte) (length, size int) {
	// Since Linux 6.1 the top bit says that a second byte follows.
	const more = 0x80
	switch {
	case len(b) == 0:
		return 0, 0
	case b[0]&more == 0:
		return int(b[0]), 1
	case len(b) == 1:
		return 0, 0
	default:
		return int(b[0]&^more) | int(b[1])<<7, 2
	}
}

// expand appends the type letter and name of symbol i to b.
func (t *symbolTable) expand(b []byte, i int) []byte {
	name := t.names[t.starts[i]:]
	length, size := nameLength(name)
	for _, c := range name[size : size+length] {
		b = append(b, t.tokens[c]...)
	}
	return b
}

// parseNames checks and indexes count names at the start of raw, which it keeps.
// Of several of one name the first can be found.
func parseNames(ctx context.Context, raw []byte, count int, tokens [tokens]string) (*symbolTable, error) {
	t := &symbolTable{starts: make([]uint32, count), tokens: tokens, seed: maphash.MakeSeed()}
	size := 1
	for size < 2*count {
		size *= 2
	}
	t.index = make([]uint64, size)
	var text []byte
	at, expanded := 0, 0
	for i := range t.starts {
		if i%symbolsPerCheck == 0 {
			if err := ctx.Err(); err != nil {
				return nil, err
			}
		}
		length, head := nameLength(raw[at:])
		if head == 0 || head+length > len(raw)-at {
			return nil, fmt.Errorf("name %d of %d: no end within %d bytes", i, count, len(raw))
		}
		t.starts[i] = uint32(at)
		name := raw[at+head : at+head+length]
		at += head + length

		text = text[:0]
		for _, c := range name {
			if text = append(text, tokens[c]...); len(text) > maxSymbolName {
				return nil, fmt.Errorf("name %d is longer than %d bytes", i, maxSymbolName)
			}
		}
		if len(text) == 0 {
			return nil, fmt.Errorf("name %d is empty", i)
		}
		if expanded += len(text); expanded > maxExpanded {
			return nil, fmt.Errorf("names take more than %d bytes", maxExpanded)
		}
		t.names = raw[:at:at]
		hash := maphash.Bytes(t.seed, text[1:])
		if slot, found := t.slot(text[1:], hash); !found {
			t.index[slot] = hash&^indexMask | uint64(i+1)
		}
	}
	return t, nil
}

// indexMask selects the index of a symbol, plus one, in a slot. The rest of a slot
// is of its name's hash.
const indexMask = 1<<32 - 1

// slot returns the slot that has a symbol of that name, whose hash is given, or the
// free one that is to get it.
func (t *symbolTable) slot(name []byte, hash uint64) (at uint64, found bool) {
	var text []byte
	mask := uint64(len(t.index) - 1)
	for at = hash & mask; t.index[at] != 0; at = (at + 1) & mask {
		if (t.index[at]^hash)&^indexMask != 0 {
			continue
		}
		if text = t.expand(text[:0], int(t.index[at]&indexMask-1)); bytes.Equal(text[1:], name) {
			return at, true
		}
	}
	return at, false
}

// readSymbols parses a kernel's symbol table. Which encoding the kernel uses
// cannot be read off it: accept tells the right one by the addresses it gives.
func readSymbols(ctx context.Context, m memory, t kallsymsTables, accept func(*symbols) bool) (*symbols, error) {
	table, err := readNames(ctx, m, t)
	if err != nil {
		return nil, err
	}
	all, err := readAddresses(m, t, table)
	if err != nil {
		return nil, err
	}
	for _, s := range all {
		if accept(s) {
			return s, nil
		}
	}
	return nil, errors.New("no known encoding of the addresses fits")
}

// putsAt returns a function that tells symbols with name at addr.
func putsAt(name string, addr uint64) func(*symbols) bool {
	return func(s *symbols) bool {
		got, ok := s.lookup(name)
		return ok && got.Addr == addr
	}
}

// readNames reads count, tokens and names.
func readNames(ctx context.Context, m memory, t kallsymsTables) (*symbolTable, error) {
	var word [4]byte
	if err := m.read(word[:], t.numSyms); err != nil {
		return nil, fmt.Errorf("count of symbols: %w", err)
	}
	count := binary.LittleEndian.Uint32(word[:])
	if count == 0 || count > maxSymbols {
		return nil, fmt.Errorf("%d symbols; at most %d are believed", count, maxSymbols)
	}
	tokens, err := readTokens(m, t)
	if err != nil {
		return nil, err
	}
	// All kernels put the tokens after the names; how long these are they do
	// not say.
	if t.tokenTable <= t.names || t.tokenTable-t.names > maxNames {
		return nil, fmt.Errorf("names at %#x, tokens at %#x: at most %d bytes between them are believed", t.names, t.tokenTable, maxNames)
	}
	raw := make([]byte, t.tokenTable-t.names)
	if err := m.read(raw, t.names); err != nil {
		return nil, fmt.Errorf("names: %w", err)
	}
	return parseNames(ctx, raw, int(count), tokens)
}

// readAddresses reads the addresses of the symbols in table in all encodings
// that may be the kernel's.
func readAddresses(m memory, t kallsymsTables, table *symbolTable) ([]*symbols, error) {
	count := len(table.starts)
	if t.addresses != 0 {
		raw := make([]byte, 8*count)
		if err := m.read(raw, t.addresses); err != nil {
			return nil, fmt.Errorf("addresses: %w", err)
		}
		s := &symbols{symbolTable: table, encoding: encodingAbsolute, addrs: make([]uint64, count)}
		for i := range s.addrs {
			s.addrs[i] = binary.LittleEndian.Uint64(raw[8*i:])
		}
		return []*symbols{s}, nil
	}
	raw := make([]byte, 4*count)
	if err := m.read(raw, t.offsets); err != nil {
		return nil, fmt.Errorf("offsets: %w", err)
	}
	offsets := make([]int32, count)
	for i := range offsets {
		offsets[i] = int32(binary.LittleEndian.Uint32(raw[4*i:]))
	}
	place := &symbols{symbolTable: table, encoding: encodingPlace, offsets: offsets, base: t.offsets}
	if t.relativeBase == 0 {
		return []*symbols{place}, nil
	}
	var word [8]byte
	if err := m.read(word[:], t.relativeBase); err != nil {
		return nil, fmt.Errorf("relative base: %w", err)
	}
	base := binary.LittleEndian.Uint64(word[:])
	return []*symbols{
		{symbolTable: table, encoding: encodingPerCPU, offsets: offsets, base: base},
		{symbolTable: table, encoding: encodingBase, offsets: offsets, base: base},
		place,
	}, nil
}

// readTokens reads the 256 strings that names are made of.
func readTokens(m memory, t kallsymsTables) (out [tokens]string, err error) {
	var index [tokenIndexLen]byte
	if err := m.read(index[:], t.tokenIndex); err != nil {
		return out, fmt.Errorf("token index: %w", err)
	}
	last := int(binary.LittleEndian.Uint16(index[2*(tokens-1):]))
	// The last token ends somewhere after its start; the index follows the
	// table in the image, so reading on is harmless.
	raw := make([]byte, min(last+maxSymbolName, maxTokenTable))
	if err := m.read(raw, t.tokenTable); err != nil {
		return out, fmt.Errorf("token table: %w", err)
	}
	text := string(raw)
	for i := range out {
		at := int(binary.LittleEndian.Uint16(index[2*i:]))
		if at >= len(text) {
			return out, fmt.Errorf("token %d lies outside the token table", i)
		}
		token, _, ok := strings.Cut(text[at:min(at+maxSymbolName+1, len(text))], "\x00")
		if !ok {
			return out, fmt.Errorf("token %d has no end", i)
		}
		out[i] = token
	}
	return out, nil
}

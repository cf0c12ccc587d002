// SPDX-License-Identifier: Apache-2.0

package layout

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
)

// Where nothing says where the symbol tables lie they are found by what they look
// like, as vmlinux-to-elf does: the names' tokens include the ten digits one after
// the other, the token index must fit the tokens, and the markers before them must
// fit the names. What scripts/kallsyms.c writes, in order:
//
//	to 6.3:   offsets, relative base, count, names, markers, (order by name), tokens, token index
//	from 6.4: count, names, markers, tokens, token index, offsets, relative base (to 6.19), (order by name)
//
// or addresses instead of offsets and relative base. Each begins at a multiple of
// 8 bytes, since 7.0 of 4.

const (
	// typicalNames is how much memory before the tokens is looked at first.
	typicalNames = 6 << 20

	// maxSearchSteps bounds the search for the names of one token table to some
	// 100 ms.
	maxSearchSteps = 1 << 25

	// maxTableHits bounds how many token tables are examined.
	maxTableHits = 64
)

// digitTokens are the tokens of the digits. Symbols of any kernel have all ten at
// places where no longer token fits.
var digitTokens = []byte("0\x001\x002\x003\x004\x005\x006\x007\x008\x009\x00")

var errNoTables = errors.New("no symbol tables found")

// findDigits yields the offsets of digitTokens in b.
func findDigits(b []byte, yield func(int) bool) bool {
	for at := 0; ; {
		i := bytes.Index(b[at:], digitTokens)
		if i < 0 {
			return true
		}
		if !yield(at + i) {
			return false
		}
		at += i + 1
	}
}

// foundTables is a parsed table of names and where its addresses may lie, one of
// which is right.
type foundTables struct {
	*symbolTable
	places []kallsymsTables
}

// examineTables looks whether the digits at the address hit belong to a kernel's
// symbol tables.
func examineTables(ctx context.Context, m memory, hit uint64) (*foundTables, error) {
	start, index, tokens, err := examineTokens(m, hit)
	if err != nil {
		return nil, err
	}
	for _, size := range []uint64{typicalNames, maxNames} {
		before := readBack(m, start, size)
		var at, numSyms int
		at, numSyms, err = findNames(before)
		if err != nil {
			if uint64(len(before)) < size {
				break
			}
			continue
		}
		count := binary.LittleEndian.Uint32(before[numSyms:])
		table, err := parseNames(ctx, slices.Clone(before[at:]), int(count), tokens)
		if err != nil {
			return nil, err
		}
		base := start - uint64(len(before))
		return &foundTables{table, tablePlaces(base+uint64(at), base+uint64(numSyms), start, index, uint64(count))}, nil
	}
	return nil, err
}

// examineTokens finds the token table around hit, and its index.
func examineTokens(m memory, hit uint64) (start, index uint64, out [tokens]string, err error) {
	const first = int('0') // the token at hit
	ahead := readAhead(m, hit, maxTokenTable)
	var ends [tokens]int // of each token from first on, after its NUL
	end := 0
	for i := first; i < tokens; i++ {
		n := bytes.IndexByte(ahead[end:], 0)
		if n < 0 || n > maxSymbolName {
			return 0, 0, out, fmt.Errorf("token %d has no end", i)
		}
		end += n + 1
		ends[i] = end
	}
	for _, align := range []uint64{4, 8} {
		index = (hit + uint64(end) + align - 1) &^ (align - 1)
		at := int(index - hit)
		if at+tokenIndexLen > len(ahead) {
			break
		}
		place := func(i int) int { return int(binary.LittleEndian.Uint16(ahead[at+2*i:])) }
		fits := place(0) == 0 && place(first) > 0
		for i := first + 1; fits && i < tokens; i++ {
			fits = place(i)-place(first) == ends[i-1]
		}
		if !fits {
			continue
		}
		start = hit - uint64(place(first))
		out, err = readTokens(m, kallsymsTables{tokenTable: start, tokenIndex: index})
		return start, index, out, err
	}
	return 0, 0, out, errors.New("no token index after the tokens")
}

// findNames finds the names and the count of symbols in the memory before a token
// table, at which b ends. Between the two lie the markers: where every 256th name
// begins, the first at 0.
func findNames(b []byte) (names, numSyms int, err error) {
	word := func(at int) int { return int(binary.LittleEndian.Uint32(b[at:])) }
	const (
		minBlock = 2 * namesPerMarker
		maxBlock = (maxSymbolName + 2) * namesPerMarker
	)
	budget := maxSearchSteps
	for markers := len(b)&^3 - 12; markers >= 0; markers -= 4 {
		if word(markers) != 0 {
			continue
		}
		n := 1 // markers that follow each other like such
		for ; markers+4*n+4 <= len(b); n++ {
			if d := word(markers+4*n) - word(markers+4*n-4); d < minBlock || d > maxBlock {
				break
			}
		}
		// What follows may look like another one.
		for blocks := n; blocks > 2 && blocks >= n-1; blocks-- {
			end := markers - word(markers+4*blocks-4)
			for at := end &^ 3; at >= max(8, end-maxBlock); at -= 4 {
				if budget--; budget <= 0 {
					return 0, 0, fmt.Errorf("gave up the search for names after %d steps", maxSearchSteps)
				}
				for _, numSyms := range [...]int{at - 4, at - 8} {
					count := word(numSyms)
					if (count+namesPerMarker-1)/namesPerMarker == blocks && fitsMarkers(b, at, count, markers, &budget) {
						return at, numSyms, nil
					}
				}
			}
		}
	}
	return 0, 0, errors.New("no names before the tokens")
}

// fitsMarkers reports whether count names begin at names and end at markers, and
// markers says where every 256th begins. It takes what it looks at off budget.
func fitsMarkers(b []byte, names, count, markers int, budget *int) bool {
	marker := func(i int) int { return int(binary.LittleEndian.Uint32(b[markers+4*i:])) }
	at := names
	for i := range count {
		if i%namesPerMarker == 0 {
			if *budget -= namesPerMarker; *budget <= 0 || at-names != marker(i/namesPerMarker) {
				return false
			}
		}
		length, size := nameLength(b[at:markers])
		if at += size + length; size == 0 || length == 0 || at > markers {
			return false
		}
	}
	const align = 8
	return markers-at < align
}

// tablePlaces returns where the addresses of count symbols may lie.
func tablePlaces(names, numSyms, tokenTable, tokenIndex, count uint64) []kallsymsTables {
	const align = 8
	up := func(v uint64) uint64 { return (v + align - 1) &^ (align - 1) }
	common := kallsymsTables{names: names, numSyms: numSyms, tokenTable: tokenTable, tokenIndex: tokenIndex}
	var out []kallsymsTables
	add := func(offsets, addresses, base uint64) {
		t := common
		t.offsets, t.addresses, t.relativeBase = offsets, addresses, base
		out = append(out, t)
	}
	after := tokenIndex + tokenIndexLen
	add(after, 0, up(after+4*count))
	add(numSyms-align-up(4*count), 0, numSyms-align)
	add(0, after, 0)
	add(0, numSyms-8*count, 0)
	return out
}

// symbols returns the symbols in the encoding that accept accepts, and where their
// tables lie.
func (f *foundTables) symbols(m memory, accept func(*symbols) bool) (*symbols, kallsymsTables, error) {
	for _, t := range f.places {
		all, err := readAddresses(m, t, f.symbolTable)
		if err != nil {
			continue // there is something else
		}
		for _, s := range all {
			if accept(s) {
				return s, t, nil
			}
		}
	}
	return nil, kallsymsTables{}, fmt.Errorf("%d symbols: no known encoding of the addresses fits", len(f.starts))
}

// readAhead reads up to size bytes from addr on, as many as there are.
func readAhead(m memory, addr, size uint64) []byte {
	b := make([]byte, size)
	if m.read(b, addr) == nil {
		return b
	}
	var n uint64
	for n < size {
		step := min(pageSize-(addr+n)%pageSize, size-n)
		if m.read(b[n:n+step], addr+n) != nil {
			break
		}
		n += step
	}
	return b[:n]
}

// readBack reads up to size bytes before end, as many as there are.
func readBack(m memory, end, size uint64) []byte {
	size = min(size, end)
	b := make([]byte, size)
	n := uint64(0) // read so far, from the end
	step := uint64(scanChunk)
	for n < size {
		// To a boundary of step, so that whole pages fail or do not.
		part := min((end-n-1)%step+1, size-n)
		if m.read(b[size-n-part:size-n], end-n-part) == nil {
			n += part
			continue
		}
		if step == pageSize {
			break
		}
		step = pageSize
	}
	return b[size-n:]
}

// SPDX-License-Identifier: Apache-2.0

package layout

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// arrangements are the orders in which kernels keep their tables, by the versions
// that do: what follows what, and on what alignment.
var arrangements = map[string]struct {
	parts []string
	align int
}{
	"to 6.1":           {[]string{"offsets", "base", "count", "names", "markers", "tokens", "index"}, 8},
	"6.2 and 6.3":      {[]string{"offsets", "base", "count", "names", "markers", "order", "tokens", "index"}, 8},
	"6.4 to 6.19":      {[]string{"count", "names", "markers", "tokens", "index", "offsets", "base", "order"}, 8},
	"from 7.0":         {[]string{"count", "names", "markers", "tokens", "index", "offsets", "order"}, 4},
	"to 6.3, absolute": {[]string{"addresses", "count", "names", "markers", "order", "tokens", "index"}, 8},
	"6.4, absolute":    {[]string{"count", "names", "markers", "tokens", "index", "addresses", "order"}, 8},
}

// buildTables returns symbol tables as a kernel arranges them, at the address va.
func buildTables(va uint64, symbols []Symbol, arrangement string) []byte {
	le := binary.LittleEndian
	var names, markers, tokenTable, tokenIndex, order, addresses []byte
	for i, s := range symbols {
		if i%namesPerMarker == 0 {
			markers = le.AppendUint32(markers, uint32(len(names)))
		}
		n := len(s.Name) + 1
		if n < 0x80 {
			names = append(names, byte(n))
		} else {
			names = append(names, byte(n)|0x80, byte(n>>7))
		}
		names = append(append(names, s.Type), s.Name...)
		order = append(order, byte(i>>16), byte(i>>8), byte(i))
		addresses = le.AppendUint64(addresses, s.Addr)
	}
	for i := range tokens {
		tokenIndex = le.AppendUint16(tokenIndex, uint16(len(tokenTable)))
		tokenTable = append(append(tokenTable, string(rune(i))...), 0)
	}
	a := arrangements[arrangement]
	var out []byte
	for _, part := range a.parts {
		for len(out)%a.align != 0 {
			out = append(out, 0)
		}
		switch part {
		case "base":
			out = le.AppendUint64(out, testStext)
		case "count":
			out = le.AppendUint32(out, uint32(len(symbols)))
		case "offsets":
			place := va + uint64(len(out))
			for i, s := range symbols {
				switch {
				case arrangement == "from 7.0":
					out = le.AppendUint32(out, uint32(s.Addr-place-4*uint64(i)))
				case s.Addr < 1<<31:
					out = le.AppendUint32(out, uint32(s.Addr))
				default:
					out = le.AppendUint32(out, uint32(testStext-1-s.Addr))
				}
			}
		default:
			out = append(out, map[string][]byte{
				"names": names, "markers": markers, "tokens": tokenTable, "index": tokenIndex, "order": order, "addresses": addresses,
			}[part]...)
		}
	}
	return out
}

// manySymbols returns more than some markers' worth of symbols.
func manySymbols(arrangement string) []Symbol {
	var out []Symbol
	if arrangement != "from 7.0" {
		out = append(out, Symbol{0x1fb80, 'A', "current_task"})
	}
	out = append(out, Symbol{testStext, 'T', "_stext"})
	for i := range 3000 {
		out = append(out, Symbol{testStext + 16*uint64(i), 't', fmt.Sprintf("function_%d%s", i, strings.Repeat("x", i%200))})
	}
	return out
}

func TestSearchImage(t *testing.T) {
	for name := range arrangements {
		t.Run(name, func(t *testing.T) {
			want := manySymbols(name)
			for _, at := range []uint64{0x40000, 0x40008, 0x7f000} {
				content := make([]byte, at)
				content = append(content, buildTables(imageStart+at, want, name)...)
				sp, _ := newImage(content)
				got, _, err := searchImage(t.Context(), sp, putsAt("_stext", testStext))
				if err != nil {
					t.Fatalf("at %#x: %v", at, err)
				}
				if all := slices.Collect(got.all()); !slices.Equal(all, want) {
					t.Errorf("at %#x: %d symbols, want %d, or others", at, len(all), len(want))
				}
				if _, _, err := searchImage(t.Context(), sp, putsAt("_stext", testStext+8)); err == nil {
					t.Error("with another _stext: no error")
				}
			}
		})
	}
}

// The tokens are found wherever they lie, across the ends of what is read at a time
// too.
func TestSearchAcrossChunks(t *testing.T) {
	for back := range len(digitTokens) + 2 {
		at := scanChunk - back
		content := make([]byte, at+len(digitTokens))
		copy(content[at:], digitTokens)
		sp, image := newImage(content)
		var got []uint64
		err := searchRuns(t.Context(), sp, []run{{addr: imageStart, size: imageLen}}, func(hit uint64) bool {
			got = append(got, hit)
			return true
		})
		if want := imageStart + uint64(at); err != nil || !slices.Equal(got, []uint64{want}) {
			t.Errorf("%d bytes before the end of a chunk: %#x, %v", back, got, err)
		}
		var h tableHits
		h.search(scanChunk, image[scanChunk:])
		h.search(0, image[:scanChunk])
		if !slices.Equal(h.addrs, []uint64{uint64(at)}) {
			t.Errorf("%d bytes before the end of a chunk of memory: %#x", back, h.addrs)
		}
	}
}

// Memory that offers ever other beginnings of the names is given up.
func TestSearchIsBounded(t *testing.T) {
	le := binary.LittleEndian
	var index, table []byte
	for i := range tokens {
		index = le.AppendUint16(index, uint16(len(table)))
		table = append(append(table, string(rune(i))...), 0)
	}
	// Names of 7 bytes, each of which contains a count and so may be the last
	// thing before the names.
	const names, count = 1<<20 + 1<<17, 1 << 17
	var content []byte
	for range names / 8 {
		content = append(content, 7, 1, 1, 1)
		content = le.AppendUint32(content, count)
	}
	content = append(content, make([]byte, 16)...) // so none ends at the markers
	for range 8 {
		content = append(content, 0, 0, 0, 0)
		for i := range count / namesPerMarker {
			content = le.AppendUint32(content, uint32(8*namesPerMarker*(i+1)))
		}
	}
	content = append(append(content, table...), make([]byte, -len(table)&7)...)
	content = append(content, index...)
	sp, _ := newImage(content)
	started := time.Now()
	if s, _, err := searchImage(t.Context(), sp, func(*symbols) bool { return true }); err == nil {
		t.Errorf("found %d symbols", s.len())
	}
	if d := time.Since(started); d > fuzzLimit {
		t.Errorf("it took %v", d)
	}
}

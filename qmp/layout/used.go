// SPDX-License-Identifier: Apache-2.0

package layout

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
)

const (
	// maxUsedName bounds a name among the types in use, and maxUsedStrings all
	// of them.
	maxUsedName    = 512
	maxUsedStrings = 1 << 20
)

// used returns the types that were looked at since parseBTF: some kilobytes of a
// kernel's megabytes, from which the same questions get the same answers. Types
// that nobody asked for become void.
func (b *btfTypes) used() (*btfTypes, error) {
	ids := slices.Sorted(maps.Keys(b.touched))
	renumbered := make(map[uint32]uint32, len(ids))
	for i, id := range ids {
		renumbered[id] = uint32(i) + 1
	}
	out := &btfTypes{strings: []byte{0}, offsets: []uint32{0}}
	places := map[uint32]uint32{0: 0}
	var failed error
	name := func(at []byte) {
		from := binary.LittleEndian.Uint32(at)
		to, ok := places[from]
		if !ok {
			rest := b.strings[min(uint64(from), uint64(len(b.strings))):]
			n := bytes.IndexByte(rest, 0)
			if n < 0 || n > maxUsedName || len(out.strings) > maxUsedStrings {
				failed = fmt.Errorf("name at %d is too long", from)
				return
			}
			to = uint32(len(out.strings))
			out.strings = append(out.strings, rest[:n+1]...)
			places[from] = to
		}
		binary.LittleEndian.PutUint32(at, to)
	}
	ref := func(at []byte) {
		binary.LittleEndian.PutUint32(at, renumbered[binary.LittleEndian.Uint32(at)])
	}
	for _, id := range ids {
		h, err := b.head(id)
		if err != nil {
			return nil, err
		}
		extra := kindExtra[h.kind]
		start := len(out.types)
		out.offsets = append(out.offsets, uint32(start))
		out.types = append(out.types, b.types[b.offsets[id]:][:btfTypeSize+extra.fixed+extra.each*h.vlen]...)
		t := out.types[start:]
		name(t)
		body := t[btfTypeSize:]
		switch h.kind {
		case kindPtr, kindTypedef, kindVolatile, kindConst, kindRestrict, kindTypeTag, kindFunc, kindVar, kindDeclTag, kindFuncProto:
			const typeAt = 8
			ref(t[typeAt:])
		case kindArray:
			ref(body)
			ref(body[4:])
		}
		for i := range h.vlen {
			element := body[extra.each*i:]
			switch h.kind {
			case kindStruct, kindUnion, kindFuncProto:
				name(element)
				ref(element[4:])
			case kindEnum, kindEnum64:
				name(element)
			case kindDatasec:
				ref(element)
			}
		}
	}
	return out, failed
}

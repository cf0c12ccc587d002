// SPDX-License-Identifier: Apache-2.0

package layout

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// This reader exists beside cilium/ebpf's because that one decodes a type
// together with all that it leads to, recursively: a guest could make it
// recurse a million levels deep. This one touches only what is asked for, never
// recurses, and needs a tenth of the time.

const (
	// maxBTF bounds the BTF blob: Debian's 6.1 has 4.1 MB.
	maxBTF = 32 << 20

	// maxTypes bounds the types in it.
	maxTypes = 1 << 20

	// maxTypeChain bounds typedefs and qualifiers around a type, and maxNesting
	// anonymous structs and unions around a member.
	maxTypeChain = 32
	maxNesting   = 16

	// maxMembersVisited bounds the search for one member.
	maxMembersVisited = 1 << 16

	btfMagic      = 0xeb9f
	btfVersion    = 1
	btfHeaderSize = 24
	btfTypeSize   = 12
	btfMemberSize = 12
)

// Kinds of types, from linux/btf.h.
const (
	kindInt       = 1
	kindPtr       = 2
	kindArray     = 3
	kindStruct    = 4
	kindUnion     = 5
	kindEnum      = 6
	kindFwd       = 7
	kindTypedef   = 8
	kindVolatile  = 9
	kindConst     = 10
	kindRestrict  = 11
	kindFunc      = 12
	kindFuncProto = 13
	kindVar       = 14
	kindDatasec   = 15
	kindFloat     = 16
	kindDeclTag   = 17
	kindTypeTag   = 18
	kindEnum64    = 19
)

// kindExtra is what follows a type: a fixed number of bytes, or bytes for each
// of its vlen elements.
var kindExtra = [kindEnum64 + 1]struct{ fixed, each int }{
	kindInt: {fixed: 4}, kindPtr: {}, kindArray: {fixed: 12}, kindStruct: {each: btfMemberSize},
	kindUnion: {each: btfMemberSize}, kindEnum: {each: 8}, kindFwd: {}, kindTypedef: {}, kindVolatile: {},
	kindConst: {}, kindRestrict: {}, kindFunc: {}, kindFuncProto: {each: 8}, kindVar: {fixed: 4},
	kindDatasec: {each: 12}, kindFloat: {}, kindDeclTag: {fixed: 4}, kindTypeTag: {}, kindEnum64: {each: 12},
}

// btfTypes is a parsed BTF blob.
type btfTypes struct {
	types   []byte
	strings []byte
	offsets []uint32 // of each type in types; type 0, void, has none

	// touched are the types that were looked at. Nil: nobody wants to know, and
	// the types are safe for concurrent use.
	touched map[uint32]struct{}
}

type typeHead struct {
	name, size, kind uint32 // size is another type's id in some kinds
	vlen             int
	bitfields        bool
	body             []byte
}

// parseBTF checks the blob's structure and indexes its types.
func parseBTF(raw []byte) (*btfTypes, error) {
	if len(raw) < btfHeaderSize {
		return nil, fmt.Errorf("%d bytes are no header", len(raw))
	}
	le := binary.LittleEndian
	if magic, version := le.Uint16(raw), raw[2]; magic != btfMagic || version != btfVersion {
		return nil, fmt.Errorf("magic %#x, version %d", magic, version)
	}
	headerLen := uint64(le.Uint32(raw[4:]))
	section := func(at int) ([]byte, error) {
		start := headerLen + uint64(le.Uint32(raw[at:]))
		end := start + uint64(le.Uint32(raw[at+4:]))
		if headerLen < btfHeaderSize || end > uint64(len(raw)) {
			return nil, fmt.Errorf("section of bytes %d to %d in a blob of %d", start, end, len(raw))
		}
		return raw[start:end], nil
	}
	const typesAt, stringsAt = 8, 16
	types, err := section(typesAt)
	if err != nil {
		return nil, fmt.Errorf("types: %w", err)
	}
	stringTable, err := section(stringsAt)
	if err != nil {
		return nil, fmt.Errorf("strings: %w", err)
	}
	// The first one is empty: the name of what has none.
	if n := len(stringTable); n == 0 || stringTable[0] != 0 || stringTable[n-1] != 0 {
		return nil, errors.New("strings: no empty one first, or the last one has no end")
	}
	const typical = 28 // bytes of a type
	b := &btfTypes{types: types, strings: stringTable, offsets: make([]uint32, 1, min(len(types)/typical, maxTypes)+1), touched: make(map[uint32]struct{})}
	for at := 0; at < len(types); {
		if len(b.offsets) >= maxTypes {
			return nil, fmt.Errorf("more than %d types", maxTypes)
		}
		if len(types)-at < btfTypeSize {
			return nil, fmt.Errorf("type %d is cut short", len(b.offsets))
		}
		info := le.Uint32(types[at+4:])
		kind := btfKind(info)
		if kind == 0 || int(kind) >= len(kindExtra) {
			return nil, fmt.Errorf("type %d has the unknown kind %d", len(b.offsets), kind)
		}
		extra := kindExtra[kind]
		size := btfTypeSize + extra.fixed + extra.each*btfVlen(info)
		if len(types)-at < size {
			return nil, fmt.Errorf("type %d is cut short", len(b.offsets))
		}
		b.offsets = append(b.offsets, uint32(at))
		at += size
	}
	return b, nil
}

func btfKind(info uint32) uint32 { return info >> 24 & 0x1f }

func btfVlen(info uint32) int { return int(info & 0xffff) }

func (b *btfTypes) head(id uint32) (typeHead, error) {
	if id == 0 || uint64(id) >= uint64(len(b.offsets)) {
		return typeHead{}, fmt.Errorf("no type %d", id)
	}
	b.touch(id)
	t := b.types[b.offsets[id]:]
	info := binary.LittleEndian.Uint32(t[4:])
	const bitfieldFlag = 1 << 31
	return typeHead{
		name:      binary.LittleEndian.Uint32(t),
		size:      binary.LittleEndian.Uint32(t[8:]),
		kind:      btfKind(info),
		vlen:      btfVlen(info),
		bitfields: info&bitfieldFlag != 0,
		body:      t[btfTypeSize:],
	}, nil
}

func (b *btfTypes) touch(id uint32) {
	if b.touched != nil {
		b.touched[id] = struct{}{}
	}
}

// hasName reports whether the string at offset at is name.
func (b *btfTypes) hasName(at uint32, name string) bool {
	end := uint64(at) + uint64(len(name))
	return end < uint64(len(b.strings)) && b.strings[end] == 0 && string(b.strings[at:end]) == name
}

// find returns the id of the first struct or union of each name; names without
// one are missing in the result.
func (b *btfTypes) find(names ...string) map[string]uint32 {
	found := make(map[string]uint32, len(names))
	for id := uint32(1); int(id) < len(b.offsets) && len(found) < len(names); id++ {
		at := b.offsets[id]
		switch btfKind(binary.LittleEndian.Uint32(b.types[at+4:])) {
		case kindStruct, kindUnion:
		default:
			continue
		}
		name := binary.LittleEndian.Uint32(b.types[at:])
		for _, want := range names {
			if _, dup := found[want]; !dup && b.hasName(name, want) {
				found[want] = id
				b.touch(id)
			}
		}
	}
	return found
}

// member returns the byte offset of a member of the struct or union id, and the
// member's type. Members of anonymous structs and unions within count as its
// own.
func (b *btfTypes) member(id uint32, name string) (offset, typ uint32, err error) {
	type level struct {
		head typeHead
		next int
		base uint64 // bits
	}
	h, err := b.head(id)
	if err != nil {
		return 0, 0, err
	}
	if h.kind != kindStruct && h.kind != kindUnion {
		return 0, 0, fmt.Errorf("type %d is no struct", id)
	}
	stack := []level{{head: h}}
	for visited := 0; len(stack) > 0; {
		l := &stack[len(stack)-1]
		if l.next >= l.head.vlen {
			stack = stack[:len(stack)-1]
			continue
		}
		if visited++; visited > maxMembersVisited {
			return 0, 0, fmt.Errorf("more than %d members", maxMembersVisited)
		}
		m := l.head.body[btfMemberSize*l.next:]
		l.next++
		memberName := binary.LittleEndian.Uint32(m)
		memberType := binary.LittleEndian.Uint32(m[4:])
		bits := binary.LittleEndian.Uint32(m[8:])
		if l.head.bitfields {
			const offsetBits = 0xffffff
			bits &= offsetBits
		}
		at := l.base + uint64(bits)
		if b.hasName(memberName, name) {
			const maxOffset = 1 << 20
			if at%8 != 0 || at/8 > maxOffset {
				return 0, 0, fmt.Errorf("member %s at bit %d", name, at)
			}
			return uint32(at / 8), memberType, nil
		}
		if !b.hasName(memberName, "") {
			continue
		}
		inner, _, err := b.strip(memberType)
		if err != nil {
			return 0, 0, err
		}
		if inner.kind != kindStruct && inner.kind != kindUnion {
			continue
		}
		if len(stack) >= maxNesting {
			return 0, 0, fmt.Errorf("anonymous members nested more than %d deep", maxNesting)
		}
		stack = append(stack, level{head: inner, base: at})
	}
	return 0, 0, fmt.Errorf("no member %s", name)
}

// strip removes typedefs and qualifiers.
func (b *btfTypes) strip(id uint32) (typeHead, uint32, error) {
	for range maxTypeChain {
		h, err := b.head(id)
		if err != nil {
			return typeHead{}, 0, err
		}
		switch h.kind {
		case kindTypedef, kindVolatile, kindConst, kindRestrict, kindTypeTag:
			id = h.size
		default:
			return h, id, nil
		}
	}
	return typeHead{}, 0, fmt.Errorf("type %d: more than %d typedefs", id, maxTypeChain)
}

// sizeof returns a type's size in bytes.
func (b *btfTypes) sizeof(id uint32) (uint64, error) {
	const pointer, maxSize = 8, 1 << 40
	count := uint64(1)
	for range maxTypeChain {
		h, _, err := b.strip(id)
		if err != nil {
			return 0, err
		}
		switch h.kind {
		case kindPtr:
			return count * pointer, nil
		case kindInt, kindStruct, kindUnion, kindEnum, kindFloat, kindEnum64:
			return count * uint64(h.size), nil
		case kindArray:
			id = binary.LittleEndian.Uint32(h.body)
			const lengthAt = 8
			count *= uint64(binary.LittleEndian.Uint32(h.body[lengthAt:]))
			if count > maxSize {
				return 0, fmt.Errorf("type %d is too large", id)
			}
		default:
			return 0, fmt.Errorf("type %d has no size", id)
		}
	}
	return 0, fmt.Errorf("type %d: more than %d array dimensions", id, maxTypeChain)
}

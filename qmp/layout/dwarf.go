// SPDX-License-Identifier: Apache-2.0

package layout

import (
	"context"
	"debug/dwarf"
	"errors"
	"fmt"
	"slices"

	"github.com/cilium/ebpf/btf"
)

// maxNested bounds how deep structs of a file lie in one another.
const maxNested = 64

var errTooNested = fmt.Errorf("types nested more than %d deep", maxNested)

// dwarfTypes returns, as BTF, the structs of debug information that layouts are
// made of. It stops to look as soon as it has all; a kernel of which one is missing
// is read to its end.
func dwarfTypes(ctx context.Context, d *dwarf.Data) ([]byte, error) {
	var types []btf.Type
	wanted := slices.Clone(structNames)
	c := &dwarfConverter{structs: make(map[*dwarf.StructType]btf.Type)}
	r := d.Reader()
	for len(wanted) > 0 {
		entry, err := r.Next()
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return nil, err
		}
		if entry == nil {
			break
		}
		if entry.Tag == dwarf.TagCompileUnit {
			continue
		}
		if entry.Tag == dwarf.TagStructType || entry.Tag == dwarf.TagUnionType {
			name, _ := entry.Val(dwarf.AttrName).(string)
			declared, _ := entry.Val(dwarf.AttrDeclaration).(bool)
			if i := slices.Index(wanted, name); i >= 0 && !declared {
				t, err := d.Type(entry.Offset)
				if err != nil {
					return nil, fmt.Errorf("struct %s: %w", name, err)
				}
				converted, err := c.convert(t, 0)
				if err != nil {
					return nil, fmt.Errorf("struct %s: %w", name, err)
				}
				types = append(types, converted)
				wanted = slices.Delete(wanted, i, i+1)
			}
		}
		r.SkipChildren()
	}
	return marshalTypes(types)
}

// marshalTypes returns types as BTF.
func marshalTypes(types []btf.Type) ([]byte, error) {
	if len(types) == 0 {
		return nil, errors.New("none of a kernel")
	}
	b, err := btf.NewBuilder(types, nil)
	if err != nil {
		return nil, err
	}
	return b.Marshal(nil, nil)
}

// dwarfConverter makes BTF of what a struct consists of. What it points to is left
// out.
type dwarfConverter struct {
	structs map[*dwarf.StructType]btf.Type
}

func (c *dwarfConverter) convert(t dwarf.Type, depth int) (btf.Type, error) {
	if depth > maxNested {
		return nil, errTooNested
	}
	switch t := t.(type) {
	case *dwarf.QualType:
		return c.convert(t.Type, depth+1)
	case *dwarf.TypedefType:
		return c.convert(t.Type, depth+1)
	case *dwarf.PtrType:
		return &btf.Pointer{Target: &btf.Void{}}, nil
	case *dwarf.EnumType:
		return &btf.Enum{Name: t.EnumName, Size: uint32(max(t.ByteSize, 0))}, nil
	case *dwarf.ArrayType:
		element, err := c.convert(t.Type, depth+1)
		if err != nil {
			return nil, err
		}
		return newArray(element, t.Count), nil
	case *dwarf.StructType:
		return c.convertStruct(t, depth)
	case *dwarf.VoidType, *dwarf.FuncType, nil:
		return &btf.Void{}, nil
	default:
		return newInt(t.Common().Name, t.Size()), nil
	}
}

func (c *dwarfConverter) convertStruct(t *dwarf.StructType, depth int) (btf.Type, error) {
	if done, ok := c.structs[t]; ok {
		return done, nil
	}
	var members []btf.Member
	for _, f := range t.Field {
		typ, err := c.convert(f.Type, depth+1)
		if err != nil {
			return nil, err
		}
		m := btf.Member{Name: f.Name, Type: typ, Offset: btf.Bits(8 * f.ByteOffset), BitfieldSize: btf.Bits(f.BitSize)}
		switch {
		case f.BitSize == 0:
		case f.DataBitOffset != 0:
			m.Offset = btf.Bits(f.DataBitOffset)
		case f.ByteSize != 0:
			// DWARF 2 and 3 count from the most significant bit.
			m.Offset += btf.Bits(8*f.ByteSize - f.BitOffset - f.BitSize)
		}
		members = append(members, m)
	}
	done := newStruct(t.Kind == "union", t.StructName, t.ByteSize, members)
	c.structs[t] = done
	return done, nil
}

func newStruct(union bool, name string, size int64, members []btf.Member) btf.Type {
	if union {
		return &btf.Union{Name: name, Size: uint32(max(size, 0)), Members: members}
	}
	return &btf.Struct{Name: name, Size: uint32(max(size, 0)), Members: members}
}

func newArray(element btf.Type, count int64) btf.Type {
	return &btf.Array{Type: element, Index: newInt("int", 4), Nelems: uint32(max(count, 0))}
}

func newInt(name string, size int64) *btf.Int {
	if name == "" {
		name = fmt.Sprintf("int%d", 8*size)
	}
	return &btf.Int{Name: name, Size: uint32(min(max(size, 1), 16))}
}

// SPDX-License-Identifier: Apache-2.0

package layout

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/cilium/ebpf/btf"
)

// isf is the part of Volatility 3's intermediate symbol format that layouts are
// made of, as dwarf2json writes it.
type isf struct {
	BaseTypes map[string]struct {
		Size int64 `json:"size"`
	} `json:"base_types"`
	UserTypes map[string]json.RawMessage `json:"user_types"`
	Enums     map[string]struct {
		Size int64 `json:"size"`
	} `json:"enums"`
	Symbols map[string]struct {
		Address uint64 `json:"address"`
	} `json:"symbols"`
}

type isfStruct struct {
	Kind   string `json:"kind"`
	Size   int64  `json:"size"`
	Fields map[string]struct {
		Offset    int64   `json:"offset"`
		Type      isfType `json:"type"`
		Anonymous bool    `json:"anonymous"`
	} `json:"fields"`
}

type isfType struct {
	Kind    string   `json:"kind"`
	Name    string   `json:"name"`
	Count   int64    `json:"count"`   // of an array
	Subtype *isfType `json:"subtype"` // of an array or pointer
	// Of a bitfield:
	BitPosition int64    `json:"bit_position"`
	BitLength   int64    `json:"bit_length"`
	Type        *isfType `json:"type"`
}

// parseISF reads the symbols and types of a kernel.
func parseISF(ctx context.Context, r io.Reader) (*imported, error) {
	var file isf
	if err := json.NewDecoder(r).Decode(&file); err != nil {
		return nil, fmt.Errorf("parse ISF: %w", err)
	}
	imp := new(imported)
	var list []Symbol
	for _, name := range slices.Sorted(maps.Keys(file.Symbols)) {
		// The format does not say what a symbol is.
		list = append(list, Symbol{Addr: file.Symbols[name].Address, Type: '?', Name: name})
	}
	var err error
	if imp.symbols, err = newSymbols(ctx, list); err != nil {
		return nil, fmt.Errorf("parse ISF: symbols: %w", err)
	}
	c := &isfConverter{file: &file, structs: make(map[string]btf.Type)}
	var types []btf.Type
	for _, name := range structNames {
		if _, ok := file.UserTypes[name]; !ok {
			continue
		}
		t, err := c.convertStruct(name, 0)
		if err != nil {
			return nil, fmt.Errorf("parse ISF: struct %s: %w", name, err)
		}
		types = append(types, t)
	}
	if len(types) == 0 {
		return imp, nil
	}
	if imp.btf, err = marshalTypes(types); err != nil {
		return nil, fmt.Errorf("parse ISF: types: %w", err)
	}
	return imp, nil
}

// isfConverter makes BTF of what a struct consists of. What it points to is left
// out.
type isfConverter struct {
	file    *isf
	structs map[string]btf.Type
	members int
}

func (c *isfConverter) convert(t *isfType, depth int) (btf.Type, error) {
	if depth > maxNested {
		return nil, errTooNested
	}
	if t == nil {
		return nil, errors.New("a type is missing")
	}
	switch t.Kind {
	case "pointer":
		return &btf.Pointer{Target: &btf.Void{}}, nil
	case "function":
		return &btf.Void{}, nil
	case "array":
		element, err := c.convert(t.Subtype, depth+1)
		if err != nil {
			return nil, err
		}
		return newArray(element, t.Count), nil
	case "struct", "union", "class":
		return c.convertStruct(t.Name, depth+1)
	case "enum":
		return &btf.Enum{Name: t.Name, Size: uint32(max(c.file.Enums[t.Name].Size, 0))}, nil
	case "base":
		if t.Name == "void" {
			return &btf.Void{}, nil
		}
		base, ok := c.file.BaseTypes[t.Name]
		if !ok {
			return nil, fmt.Errorf("no base type %q", t.Name)
		}
		return newInt(t.Name, base.Size), nil
	default:
		return nil, fmt.Errorf("unknown kind %q", t.Kind)
	}
}

func (c *isfConverter) convertStruct(name string, depth int) (btf.Type, error) {
	if done, ok := c.structs[name]; ok {
		return done, nil
	}
	if depth > maxNested {
		return nil, errTooNested
	}
	raw, ok := c.file.UserTypes[name]
	if !ok {
		return nil, fmt.Errorf("no struct %q", name)
	}
	var s isfStruct
	if err := json.Unmarshal(raw, &s); err != nil {
		return nil, fmt.Errorf("struct %q: %w", name, err)
	}
	var members []btf.Member
	for _, field := range slices.Sorted(maps.Keys(s.Fields)) {
		f := s.Fields[field]
		const maxOffset = 1 << 20
		if c.members++; c.members > maxMembersVisited {
			return nil, fmt.Errorf("more than %d members", maxMembersVisited)
		}
		if f.Offset < 0 || f.Offset > maxOffset {
			return nil, fmt.Errorf("struct %q: member %q at %d", name, field, f.Offset)
		}
		m := btf.Member{Name: field, Offset: btf.Bits(8 * f.Offset)}
		// Before it had a word for it, dwarf2json made up names.
		if f.Anonymous || strings.HasPrefix(field, "unnamed_field_") {
			m.Name = ""
		}
		t := &f.Type
		if t.Kind == "bitfield" {
			m.Offset += btf.Bits(t.BitPosition & 0xff)
			m.BitfieldSize = btf.Bits(t.BitLength & 0xff)
			t = t.Type
		}
		var err error
		if m.Type, err = c.convert(t, depth+1); err != nil {
			return nil, fmt.Errorf("struct %q: member %q: %w", name, field, err)
		}
		members = append(members, m)
	}
	slices.SortStableFunc(members, func(a, b btf.Member) int { return int(a.Offset) - int(b.Offset) })
	label := name
	if strings.HasPrefix(label, "unnamed_") {
		label = ""
	}
	done := newStruct(s.Kind == "union", label, s.Size, members)
	c.structs[name] = done
	return done, nil
}

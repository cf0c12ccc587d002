// SPDX-License-Identifier: Apache-2.0

package layout

import (
	"bufio"
	"bytes"
	"cmp"
	"compress/gzip"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"github.com/ulikunitz/xz"
)

// maxImport bounds a file's content. A kernel's debug information stays in its
// file and is not bounded by it.
const maxImport = 512 << 20

// Imported says what an import found.
type Imported struct {
	// BuildID is the kernel it is of.
	BuildID string
	// Symbols is how many there were, Types whether there were types.
	Symbols int
	Types   bool
	// Path is the file of the store.
	Path string
}

// ImportVmlinux imports a kernel's uncompressed image: symbols from its symbol
// table, types from its BTF or else its DWARF, whichever there are. buildID may be
// empty; if not, it must be the file's.
func (s *Store) ImportVmlinux(ctx context.Context, path, buildID string) (Imported, error) {
	f, err := elf.Open(path)
	if err != nil {
		return Imported{}, fmt.Errorf("import %s: %w", path, err)
	}
	defer f.Close()
	if f.Machine != elf.EM_X86_64 || f.Class != elf.ELFCLASS64 {
		return Imported{}, fmt.Errorf("import %s: it is for %v", path, f.Machine)
	}
	id := elfBuildID(f)
	switch {
	case id == "" && buildID == "":
		return Imported{}, fmt.Errorf("import %s: it has no build id: give one", path)
	case id != "" && buildID != "" && id != buildID:
		return Imported{}, fmt.Errorf("import %s: its build id is %s, not %s", path, id, buildID)
	}
	imp := new(imported)
	if imp.symbols, err = elfSymbols(ctx, f); err != nil {
		return Imported{}, fmt.Errorf("import %s: symbols: %w", path, err)
	}
	if section := f.Section(".BTF"); section != nil && section.Size <= maxBTF {
		imp.btf, err = section.Data()
	} else if d, dwarfErr := f.DWARF(); dwarfErr == nil {
		imp.btf, err = dwarfTypes(ctx, d)
	}
	if err != nil {
		return Imported{}, fmt.Errorf("import %s: types: %w", path, err)
	}
	return s.add(path, cmp.Or(id, buildID), imp)
}

// ImportBTF imports a BTF file, such as a kernel's /sys/kernel/btf/vmlinux, for
// the kernel of that build id.
func (s *Store) ImportBTF(path, buildID string) (Imported, error) {
	f, err := os.Open(path)
	if err != nil {
		return Imported{}, fmt.Errorf("import BTF: %w", err)
	}
	defer f.Close()
	raw, err := readAtMost(f, maxBTF)
	if err != nil {
		return Imported{}, fmt.Errorf("import %s: %w", path, err)
	}
	return s.add(path, buildID, &imported{btf: raw})
}

// ImportISF imports Volatility 3's description of a kernel, which may be compressed
// by xz or gzip, for the kernel of that build id.
func (s *Store) ImportISF(ctx context.Context, path, buildID string) (Imported, error) {
	f, err := os.Open(path)
	if err != nil {
		return Imported{}, fmt.Errorf("import ISF: %w", err)
	}
	defer f.Close()
	r, err := decompress(f)
	if err != nil {
		return Imported{}, fmt.Errorf("import %s: %w", path, err)
	}
	imp, err := parseISF(ctx, io.LimitReader(r, maxImport))
	if err != nil {
		return Imported{}, fmt.Errorf("import %s: %w", path, err)
	}
	return s.add(path, buildID, imp)
}

// add checks what was read from a file and saves it with what was imported for the
// kernel before and is not replaced by it.
func (s *Store) add(path, buildID string, imp *imported) (Imported, error) {
	if !isHex(buildID) {
		return Imported{}, fmt.Errorf("import %s: build id %q: give it as 40 or 64 digits and small letters", path, buildID)
	}
	if imp.btf != nil {
		types, err := parseBTF(imp.btf)
		if err != nil {
			return Imported{}, fmt.Errorf("import %s: BTF: %w", path, err)
		}
		imp.types = types
		for _, name := range []string{"task_struct", "pt_regs"} {
			if _, ok := types.find(name)[name]; !ok {
				return Imported{}, fmt.Errorf("import %s: no struct %s: these are no kernel's types", path, name)
			}
		}
	}
	if imp.symbols != nil {
		for _, name := range []string{"_stext", "init_task", "init_top_pgt", "entry_SYSCALL_64"} {
			if _, ok := imp.symbols.lookup(name); !ok {
				return Imported{}, fmt.Errorf("import %s: no symbol %s: these are no kernel's symbols", path, name)
			}
		}
	}
	if imp.symbols == nil && imp.types == nil {
		return Imported{}, fmt.Errorf("import %s: it has neither symbols nor types", path)
	}
	out := Imported{BuildID: buildID, Symbols: imp.symbols.len(), Types: imp.types != nil, Path: s.path(buildID)}
	before, err := s.load(buildID)
	switch {
	case err == nil:
		if imp.symbols == nil {
			imp.symbols = before.symbols
		}
		if imp.btf == nil {
			imp.btf, imp.types = before.btf, before.types
		}
	case !errors.Is(err, ErrNotImported) && !errors.Is(err, errCorrupt) && !errors.Is(err, errOtherVersion):
		return Imported{}, err
	}
	if imp.symbols != nil && imp.types != nil {
		if err := (&Layout{symbols: imp.symbols}).takeOffsets(imp.types); err != nil {
			return Imported{}, fmt.Errorf("import %s: %w", path, err)
		}
	}
	if err := s.save(buildID, imp); err != nil {
		return Imported{}, fmt.Errorf("save imported layout: %w", err)
	}
	return out, nil
}

// elfBuildID returns an ELF file's GNU build id, or an empty string.
func elfBuildID(f *elf.File) string {
	for _, s := range f.Sections {
		if s.Type != elf.SHT_NOTE || s.Size > maxNotes {
			continue
		}
		if b, err := s.Data(); err == nil {
			if id := parseBuildID(b); id != "" {
				return id
			}
		}
	}
	return ""
}

// elfSymbols returns the symbols of an ELF file by address, or nil if it has none.
func elfSymbols(ctx context.Context, f *elf.File) (*symbols, error) {
	list, err := f.Symbols()
	if errors.Is(err, elf.ErrNoSymbols) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var out []Symbol
	for _, s := range list {
		kind := elf.ST_TYPE(s.Info)
		if s.Name == "" || s.Section == elf.SHN_UNDEF || kind == elf.STT_SECTION || kind == elf.STT_FILE {
			continue
		}
		out = append(out, Symbol{Addr: s.Value, Type: elfType(f, s), Name: s.Name})
	}
	return newSymbols(ctx, out)
}

// elfType returns the letter that nm gives a symbol, more or less.
func elfType(f *elf.File, s elf.Symbol) byte {
	letter := byte('D')
	if i := int(s.Section); s.Section >= elf.SHN_LORESERVE || i >= len(f.Sections) {
		letter = 'A'
	} else if section := f.Sections[i]; section.Flags&elf.SHF_EXECINSTR != 0 {
		letter = 'T'
	} else if section.Type == elf.SHT_NOBITS {
		letter = 'B'
	} else if section.Flags&elf.SHF_WRITE == 0 {
		letter = 'R'
	}
	if elf.ST_BIND(s.Info) == elf.STB_LOCAL {
		letter += 'a' - 'A'
	}
	return letter
}

// newSymbols makes a table of symbols that come from a file, and sorts them.
func newSymbols(ctx context.Context, list []Symbol) (*symbols, error) {
	if len(list) == 0 {
		return nil, nil
	}
	if len(list) > maxSymbols {
		return nil, fmt.Errorf("%d symbols; at most %d are believed", len(list), maxSymbols)
	}
	slices.SortStableFunc(list, func(a, b Symbol) int { return cmp.Compare(a.Addr, b.Addr) })
	var names []byte
	s := &symbols{encoding: encodingAbsolute, addrs: make([]uint64, len(list))}
	for i, symbol := range list {
		n := len(symbol.Name) + 1
		if n > maxSymbolName {
			return nil, fmt.Errorf("symbol %d has a name of %d bytes", i, n-1)
		}
		s.addrs[i] = symbol.Addr
		names = append(names, byte(n)|0x80, byte(n>>7), symbol.Type)
		names = append(names, symbol.Name...)
	}
	if len(names) > maxNames {
		return nil, fmt.Errorf("names of %d bytes; at most %d are believed", len(names), maxNames)
	}
	var err error
	s.symbolTable, err = parseNames(ctx, names, len(list), byteTokens())
	return s, err
}

// byteTokens are the tokens of names that are not compressed.
func byteTokens() (out [tokens]string) {
	for i := range out {
		out[i] = string([]byte{byte(i)})
	}
	return out
}

// decompress returns the content of a file that may be compressed.
func decompress(f io.Reader) (io.Reader, error) {
	br := bufio.NewReader(f)
	head, err := br.Peek(6)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	switch {
	case bytes.HasPrefix(head, []byte("\xfd7zXZ\x00")):
		return xz.NewReader(br)
	case bytes.HasPrefix(head, []byte("\x1f\x8b")):
		return gzip.NewReader(br)
	default:
		return br, nil
	}
}

// readAtMost reads all of r, which must not have more than limit bytes.
func readAtMost(r io.Reader, limit int64) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err == nil && int64(len(b)) > limit {
		err = fmt.Errorf("it has more than %d bytes", limit)
	}
	return b, err
}

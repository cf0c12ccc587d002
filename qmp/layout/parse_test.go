// SPDX-License-Identifier: Apache-2.0

package layout

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf/btf"

	"frail/qmp"
)

// ram is guest memory from address 0 on.
type ram []byte

func (r ram) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || off >= int64(len(r)) {
		return 0, qmp.ErrNotRAM
	}
	n := copy(p, r[off:])
	if n < len(p) {
		return n, qmp.ErrNotRAM
	}
	return n, nil
}

const (
	large    = 2 << 20
	imageLen = large
	// Where newImage puts the page tables and the image.
	pgd, pud, pmd = 0x1000, 0x2000, 0x3000
	imageBase     = large
)

// newImage returns a guest whose kernel's image is imageLen bytes of content,
// mapped by 4-level page tables, and the image within its memory.
func newImage(content []byte) (*space, []byte) {
	mem := make(ram, imageBase+imageLen)
	binary.LittleEndian.PutUint64(mem[pgd+8*511:], pud|pagePresent)
	binary.LittleEndian.PutUint64(mem[pud+8*510:], pmd|pagePresent)
	binary.LittleEndian.PutUint64(mem[pmd:], imageBase|pagePresent|pageLarge)
	image := mem[imageBase:]
	copy(image, content)
	return newSpace(mem, pgd, 4), image
}

// Where the tests' tables lie in the image.
var testTables = kallsymsTables{
	numSyms:      imageStart,
	relativeBase: imageStart + 8,
	names:        imageStart + 0x100,
	tokenTable:   imageStart + 0x2000,
	tokenIndex:   imageStart + 0x2400,
	offsets:      imageStart + 0x2600,
}

const testStext = imageStart + 0x1000000

// putSymbols writes symbol tables as the kernel's scripts/kallsyms does, with a
// token for each byte and some for longer strings.
func putSymbols(image []byte, symbols []Symbol, encode func(i int, addr uint64) uint32) {
	at := func(va uint64) []byte { return image[va-imageStart:] }
	binary.LittleEndian.PutUint32(at(testTables.numSyms), uint32(len(symbols)))
	binary.LittleEndian.PutUint64(at(testTables.relativeBase), testStext)
	longer := map[byte]string{0x80: "sys_", 0xff: "kernel"}
	var table []byte
	for i := range tokens {
		binary.LittleEndian.PutUint16(at(testTables.tokenIndex)[2*i:], uint16(len(table)))
		text := string(rune(i))
		if i >= 0x80 {
			text = longer[byte(i)]
		}
		table = append(append(table, text...), 0)
	}
	copy(at(testTables.tokenTable), table)
	var names []byte
	for i, s := range symbols {
		text := string(s.Type) + s.Name
		for b, t := range longer {
			text = strings.ReplaceAll(text, t, "\x00"+string([]byte{b}))
		}
		text = strings.ReplaceAll(text, "\x00", "")
		if n := len(text); n < 0x80 {
			names = append(names, byte(n))
		} else {
			names = append(names, byte(n)|0x80, byte(n>>7))
		}
		names = append(names, text...)
		binary.LittleEndian.PutUint32(at(testTables.offsets)[4*i:], encode(i, s.Addr))
	}
	copy(at(testTables.names), names)
}

// encodings are those that kernels use, by the versions that do.
var encodings = map[string]func(i int, addr uint64) uint32{
	"absolute per-CPU, 4.6 to 6.14": func(_ int, addr uint64) uint32 {
		if addr < 1<<31 {
			return uint32(addr)
		}
		return uint32(testStext - 1 - addr)
	},
	"relative to a base, 4.6 to 6.19": func(_ int, addr uint64) uint32 { return uint32(addr - testStext) },
	"relative to its place, 7.0":      func(i int, addr uint64) uint32 { return uint32(addr - testTables.offsets - 4*uint64(i)) },
}

func testSymbols(encoding string) []Symbol {
	symbols := []Symbol{
		{testStext, 'T', "_stext"},
		{testStext, 'T', "_text"},
		{testStext + 0x10, 'T', "__x64_sys_openat"},
		{testStext + 0x20, 't', "twice"},
		{testStext + 0x30, 't', "twice"},
		{testStext + 0x40, 'D', strings.Repeat("kernel_long_name_", 11)},
		{testStext + 0x50, 'D', strings.Repeat("x", maxSymbolName-1)},
	}
	if strings.HasPrefix(encoding, "absolute") {
		symbols = append(symbols, Symbol{0x1fb80, 'A', "current_task"})
	}
	return symbols
}

func TestSymbolEncodings(t *testing.T) {
	for name, encode := range encodings {
		t.Run(name, func(t *testing.T) {
			want := testSymbols(name)
			sp, image := newImage(nil)
			putSymbols(image, want, encode)
			got, err := readSymbols(t.Context(), sp, testTables, putsAt("_stext", testStext))
			if err != nil {
				t.Fatal(err)
			}
			if all := slices.Collect(got.all()); !slices.Equal(all, want) {
				t.Errorf("got %+v\nwant %+v", all, want)
			}
			if s, ok := got.lookup("twice"); !ok || s != want[3] {
				t.Errorf("lookup found %+v, want the first of two", s)
			}
			_, err = readSymbols(t.Context(), sp, testTables, putsAt("_stext", testStext+1))
			if err == nil || !strings.Contains(err.Error(), "no known encoding") {
				t.Errorf("with another _stext: %v", err)
			}
		})
	}
}

func TestTranslate(t *testing.T) {
	sp, image := newImage([]byte("first"))
	copy(image[imageLen-4:], "last")
	if got, err := sp.cstring(imageStart, 16); err != nil || got != "first" {
		t.Errorf("read %q, %v", got, err)
	}
	if got, err := sp.cstring(imageStart+imageLen-4, 4); err != nil || got != "last" {
		t.Errorf("read %q, %v", got, err)
	}
	for _, va := range []uint64{0, imageStart - 1, imageStart + imageLen, imageStart + imageLen - 1, ^uint64(0)} {
		b := make([]byte, 2)
		if err := sp.read(b, va); err == nil {
			t.Errorf("read at %#x: no error", va)
		}
	}
	if err := sp.checkImage(imageStart+5, imageBase); err != nil {
		t.Error(err)
	}
	if err := sp.checkImage(imageStart+5, imageBase+pageSize); err == nil {
		t.Error("another phys_base: no error")
	}
}

const goodNote = `OSRELEASE=6.1.0-56-amd64
BUILD-ID=eb4fbcd037e7253717950bf2b93bd5566f47c56f
SYMBOL(_stext)=ffffffff90c00000
SYMBOL(kallsyms_names)=ffffffff91dbdac0
SYMBOL(kallsyms_num_syms)=ffffffff91dbdab8
SYMBOL(kallsyms_token_table)=ffffffff91f2ddd8
SYMBOL(kallsyms_token_index)=ffffffff91f2e170
SYMBOL(kallsyms_offsets)=ffffffff91d619c8
SYMBOL(kallsyms_relative_base)=ffffffff91dbdab0
NUMBER(phys_base)=-681574400
SYMBOL(init_top_pgt)=ffffffff92610000
NUMBER(pgtable_l5_enabled)=1
KERNELOFFSET=fc00000
`

func TestParseNote(t *testing.T) {
	got, err := parseNote([]byte(goodNote))
	if err != nil {
		t.Fatal(err)
	}
	physBase := int64(-681574400)
	want := note{
		release: "6.1.0-56-amd64", buildID: "eb4fbcd037e7253717950bf2b93bd5566f47c56f",
		kernelOffset: 0xfc00000, physBase: uint64(physBase), levels: 5, stext: 0xffffffff90c00000, initTopPgt: 0xffffffff92610000,
		kallsyms: kallsymsTables{
			names: 0xffffffff91dbdac0, numSyms: 0xffffffff91dbdab8, tokenTable: 0xffffffff91f2ddd8,
			tokenIndex: 0xffffffff91f2e170, offsets: 0xffffffff91d619c8, relativeBase: 0xffffffff91dbdab0,
		},
	}
	if *got != want {
		t.Errorf("got %+v\nwant %+v", *got, want)
	}
	for line := range strings.Lines(goodNote) {
		key, _, _ := strings.Cut(line, "=")
		n, err := parseNote([]byte(strings.Replace(goodNote, line, "", 1)))
		switch key {
		case "BUILD-ID", "SYMBOL(kallsyms_names)", "SYMBOL(kallsyms_relative_base)", "NUMBER(pgtable_l5_enabled)", "KERNELOFFSET":
			if err != nil {
				t.Errorf("without %s: %v", key, err)
			}
		default:
			if err == nil {
				t.Errorf("without %s: no error, %+v", key, n)
			}
		}
	}
	for from, to := range map[string]string{
		"6.1.0-56-amd64": "6.1\x1b[2J", "56-amd64": strings.Repeat("5", maxRelease), "-681574400": "0x12", "ffffffff90c00000": "fffffffff90c00000",
	} {
		if n, err := parseNote([]byte(strings.Replace(goodNote, from, to, 1))); err == nil {
			t.Errorf("%q for %q: no error, %+v", to, from, n)
		}
	}
	n, err := parseNote([]byte(strings.Replace(goodNote, "eb4fbcd0", "\xff\x00zz", 1)))
	if err != nil || n.buildID != "" {
		t.Errorf("garbage as build id: %q, %v", n.buildID, err)
	}
}

// testTypes returns BTF with a struct of every kind of member.
func testTypes(tb testing.TB) []byte {
	tb.Helper()
	number := &btf.Int{Name: "int", Size: 4, Encoding: btf.Signed}
	char := &btf.Int{Name: "char", Size: 1}
	inner := &btf.Struct{Size: 24, Members: []btf.Member{
		{Name: "pid", Type: &btf.Typedef{Name: "pid_t", Type: number}, Offset: 0},
		{Name: "comm", Type: &btf.Array{Type: char, Index: number, Nelems: 16}, Offset: 32},
	}}
	task := &btf.Struct{Name: "task_struct", Size: 64, Members: []btf.Member{
		{Name: "flags", Type: number, Offset: 0, BitfieldSize: 3},
		{Name: "stack", Type: &btf.Pointer{Target: &btf.Void{}}, Offset: 64},
		{Type: &btf.Union{Size: 24, Members: []btf.Member{{Type: inner, Offset: 0}}}, Offset: 128},
		{Name: "matrix", Type: &btf.Array{Index: number, Nelems: 3, Type: &btf.Array{Index: number, Nelems: 2, Type: &btf.Const{Type: number}}}, Offset: 320},
	}}
	task.Members = append(task.Members, btf.Member{Name: "self", Type: &btf.Pointer{Target: task}, Offset: 448})
	builder, err := btf.NewBuilder([]btf.Type{&btf.Union{Name: "thread_union", Size: 16384}, task}, nil)
	if err != nil {
		tb.Fatal(err)
	}
	raw, err := builder.Marshal(nil, nil)
	if err != nil {
		tb.Fatal(err)
	}
	return raw
}

func TestBTF(t *testing.T) {
	types, err := parseBTF(testTypes(t))
	if err != nil {
		t.Fatal(err)
	}
	ids := types.find("task_struct", "thread_union", "pcpu_hot")
	if _, ok := ids["pcpu_hot"]; ok || len(ids) != 2 {
		t.Fatalf("found %v", ids)
	}
	for _, tt := range []struct {
		member       string
		offset, size uint64
	}{
		{"stack", 8, 8}, {"pid", 16, 4}, {"comm", 20, 16}, {"matrix", 40, 24}, {"self", 56, 8},
	} {
		offset, typ, err := types.member(ids["task_struct"], tt.member)
		if err != nil {
			t.Errorf("%s: %v", tt.member, err)
			continue
		}
		if size, err := types.sizeof(typ); err != nil || uint64(offset) != tt.offset || size != tt.size {
			t.Errorf("%s: offset %d, size %d, %v; want %d and %d", tt.member, offset, size, err, tt.offset, tt.size)
		}
	}
	for _, member := range []string{"", "pi", "pidx", "none"} {
		if offset, _, err := types.member(ids["task_struct"], member); err == nil && member != "" {
			t.Errorf("%q: no error, offset %d", member, offset)
		}
	}
}

func FuzzNote(f *testing.F) {
	f.Add([]byte(goodNote))
	f.Fuzz(func(t *testing.T, body []byte) {
		n, err := parseNote(body)
		if err == nil && (n.release == "" || !printable(n.release) || n.levels < 4 || n.levels > 5) {
			t.Errorf("accepted %+v", n)
		}
	})
}

func FuzzBTF(f *testing.F) {
	f.Add(testTypes(f))
	f.Fuzz(func(t *testing.T, raw []byte) {
		types, err := parseBTF(raw)
		if err != nil {
			return
		}
		// The answers are the same from the types in use alone.
		ask := func(types *btfTypes) (out []string) {
			ids := types.find("task_struct", "thread_union")
			for _, structure := range []string{"task_struct", "thread_union"} {
				id, ok := ids[structure]
				if !ok {
					continue
				}
				for _, name := range []string{"pid", "comm", "stack", "matrix", "none"} {
					offset, typ, err := types.member(id, name)
					size, sizeErr := types.sizeof(typ)
					out = append(out, fmt.Sprint(offset, err == nil, size, sizeErr == nil))
				}
				size, err := types.sizeof(id)
				out = append(out, fmt.Sprint(size, err == nil))
			}
			return out
		}
		want := ask(types)
		if used, err := types.used(); err == nil {
			if got := ask(used); !slices.Equal(got, want) {
				t.Errorf("types in use say %q, all types %q", got, want)
			}
		}
		l := &Layout{symbols: &symbols{}}
		if l.takeOffsets(types) == nil {
			t.Error("accepted types without the symbols that go with them")
		}
	})
}

func FuzzSymbols(f *testing.F) {
	for name, encode := range encodings {
		_, image := newImage(nil)
		putSymbols(image, testSymbols(name), encode)
		f.Add(image[:0x3000])
	}
	f.Fuzz(func(t *testing.T, content []byte) {
		sp, _ := newImage(content)
		s, err := readSymbols(t.Context(), sp, testTables, putsAt("_stext", testStext))
		if err != nil {
			return
		}
		if got, ok := s.lookup("_stext"); !ok || got.Addr != testStext {
			t.Errorf("accepted symbols that put _stext at %#x", got.Addr)
		}
		n := 0
		for symbol := range s.all() {
			if len(symbol.Name) >= maxSymbolName {
				t.Errorf("a name of %d bytes", len(symbol.Name))
			}
			n++
		}
		if n != s.len() || n > maxSymbols {
			t.Errorf("%d symbols of %d", n, s.len())
		}
	})
}

func FuzzPageTables(f *testing.F) {
	sp, _ := newImage(nil)
	f.Add([]byte(sp.mem.(ram)[:0x4000]), uint64(imageStart))
	loop := make([]byte, 0x4000)
	for i := 0; i < len(loop); i += 8 {
		binary.LittleEndian.PutUint64(loop[i:], pgd|pagePresent)
	}
	f.Add(loop, uint64(0xffff888000000000))
	f.Fuzz(func(t *testing.T, mem []byte, va uint64) {
		for _, levels := range []int{4, 5} {
			sp := newSpace(ram(mem), pgd, levels)
			if pa, size, err := sp.translate(va); err == nil && (size == 0 || size > 1<<30 || pa&^uint64(pageMask|(pageSize-1)) != 0) {
				t.Errorf("%#x is mapped to %#x, %d bytes", va, pa, size)
			}
			_ = sp.read(make([]byte, 3*pageSize), va)
			_, _ = (&Layout{PageTable: pgd, Levels: levels, InitTask: va}).Tasks(t.Context(), ram(mem))
		}
	})
}

// A guest whose whole memory is whatever it likes.
func FuzzResolve(f *testing.F) {
	head := fmt.Sprintf("\x0b\x00\x00\x00%c%c\x00\x00\x00\x00\x00\x00VMCOREINFO\x00\x00", len(goodNote)%256, len(goodNote)/256)
	f.Add([]byte(head + goodNote))
	f.Add([]byte(head + strings.Replace(goodNote, "-681574400", "-306184192", 1))) // init_top_pgt at 0
	f.Fuzz(func(t *testing.T, content []byte) {
		mem := make(ram, scanStart+(len(content)+pageSize-1)&^(pageSize-1))
		copy(mem[scanStart:], content)
		l, err := Resolve(t.Context(), mem, []qmp.Range{{Size: uint64(len(mem))}}, Hint{LSTAR: testStext, CR3: scanStart})
		if (l == nil) == (err == nil) {
			t.Errorf("layout %v, error %v", l, err)
		}
	})
}

// SPDX-License-Identifier: Apache-2.0

package layout

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cilium/ebpf/btf"
	"github.com/ulikunitz/xz"

	"frail/qmp/qmptest"
)

// A guest whose kernel hides something of itself is resolved in another way, and
// the layout is the same.
func TestResolveWays(t *testing.T) {
	g := qmptest.Start(t, qmptest.Config{MemoryMiB: 384, Cmdline: "pti=on"})
	mem := openMemory(t, g, g.PID)
	// Still, so that a CPU's page tables stay what they are.
	want, err := Resolve(t.Context(), mem, mem.Ranges(), Hint{})
	if err != nil {
		t.Fatal(err)
	}
	compareSymbols(t, g, want)
	if err := g.Dom.Suspend(); err != nil {
		t.Fatal(err)
	}
	cr3 := readRegisters(t, g)[0].cr3

	n := firstNote(t, mem)
	symbol := func(name string) (va, pa uint64) {
		s, ok := want.Symbol(name)
		if !ok {
			t.Fatalf("no symbol %s", name)
		}
		pa, err := imagePhysical(s.Addr, want.PhysBase)
		if err != nil {
			t.Fatal(err)
		}
		return s.Addr, pa
	}
	notePage := make([]byte, pageSize)
	if _, err := mem.ReadAt(notePage, int64(n.addr)); err != nil {
		t.Fatal(err)
	}
	btfVA, btfPA := symbol("__start_BTF")
	btfEnd, _ := symbol("__stop_BTF")
	types := make([]byte, btfEnd-btfVA)
	if err := newSpace(mem, want.PageTable, want.Levels).read(types, btfVA); err != nil {
		t.Fatal(err)
	}
	_, notesPA := symbol("__start_notes")
	tokenIndex, err := imagePhysical(n.kallsyms.tokenIndex, want.PhysBase)
	if err != nil {
		t.Fatal(err)
	}
	if want.BuildID != n.buildID || want.BuildID == "" {
		t.Errorf("build id %q, the note says %q", want.BuildID, n.buildID)
	}

	noNote := map[uint64][]byte{n.addr: make([]byte, 4)}
	oldNote := map[uint64][]byte{n.addr: bytes.ReplaceAll(notePage, []byte("SYMBOL(kallsyms_"), []byte("SYMBOL(callsyms_"))}
	wrongID := map[uint64][]byte{n.addr: bytes.ReplaceAll(notePage, []byte(n.buildID), []byte(strings.Repeat("7", len(n.buildID))))}
	noBTF := map[uint64][]byte{btfPA: make([]byte, btfHeaderSize)}
	noSymbols := map[uint64][]byte{tokenIndex: make([]byte, tokenIndexLen)}
	maps := func(all ...map[uint64][]byte) map[uint64][]byte {
		out := make(map[uint64][]byte)
		for _, m := range all {
			for k, v := range m {
				out[k] = v
			}
		}
		return out
	}
	same := func(t *testing.T, l *Layout) {
		t.Helper()
		if a, b := plain(l), plain(want); !reflect.DeepEqual(a, b) {
			t.Errorf("layout\n%+v, want\n%+v", a, b)
		}
		if l.SymbolSource == OriginImport {
			return
		}
		if !slices.Equal(slices.Collect(l.Symbols()), slices.Collect(want.Symbols())) {
			t.Error("symbols differ")
		}
	}

	for _, tt := range []struct {
		name    string
		patches map[uint64][]byte
		hint    Hint
		source  Source
		symbols Origin
	}{
		{"the note", nil, Hint{}, SourceNote, OriginNote},
		{"the note with another build id", wrongID, Hint{}, SourceNote, OriginNote},
		{"the note of an old kernel", oldNote, Hint{}, SourceNote, OriginImage},
		{"a CPU's page tables", nil, Hint{LSTAR: want.LSTAR, CR3: cr3}, SourceCPU, OriginImage},
		{"a CPU's page tables, user's half", nil, Hint{LSTAR: want.LSTAR, CR3: cr3 | 1<<12}, SourceCPU, OriginImage},
		{"a CPU's page tables without a note", noNote, Hint{LSTAR: want.LSTAR, CR3: cr3}, SourceCPU, OriginImage},
		{"page tables that are none", nil, Hint{LSTAR: want.LSTAR, CR3: n.addr}, SourceNote, OriginNote},
		{"memory", noNote, Hint{}, SourceScan, OriginImage},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var r Resolver
			l, err := r.Resolve(t.Context(), patched{mem, tt.patches}, mem.Ranges(), tt.hint)
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("%v: %+v", l.Timing.Total(), l.Timing)
			if l.Source != tt.source || l.SymbolSource != tt.symbols || l.TypeSource != OriginBTF || l.Rebased {
				t.Errorf("found by %s, symbols by %s, types by %s, rebased %v", l.Source, l.SymbolSource, l.TypeSource, l.Rebased)
			}
			if anchored := tt.source == SourceCPU; l.Anchored != anchored {
				t.Errorf("anchored: %v", l.Anchored)
			}
			same(t, l)
			again, err := r.Resolve(t.Context(), patched{mem, tt.patches}, mem.Ranges(), tt.hint)
			if err != nil {
				t.Fatal(err)
			}
			if again.Rebased != (tt.source != SourceScan) {
				t.Errorf("known the second time: %v", again.Rebased)
			}
			same(t, again)
		})
	}

	t.Run("a kernel of the same build id with other types", func(t *testing.T) {
		var r Resolver
		// The last string of its BTF has another letter.
		liar := patched{mem, map[uint64][]byte{btfPA + uint64(len(types)) - 2: {types[len(types)-2] ^ 1}}}
		if _, err := r.Resolve(t.Context(), liar, mem.Ranges(), Hint{}); err != nil {
			t.Fatal(err)
		}
		for rebased := range 2 {
			l, err := r.Resolve(t.Context(), mem, mem.Ranges(), Hint{})
			if err != nil || l.Rebased != (rebased == 1) {
				t.Errorf("resolve %d: %+v, %v", rebased, l, err)
			}
		}
	})

	t.Run("imports", func(t *testing.T) {
		spec, err := btf.LoadSpecFromReader(bytes.NewReader(types))
		if err != nil {
			t.Fatal(err)
		}
		dir := t.TempDir()
		btfFile := filepath.Join(dir, "btf")
		if err := os.WriteFile(btfFile, types, 0o600); err != nil {
			t.Fatal(err)
		}
		isfFile := filepath.Join(dir, "isf.json.xz")
		writeISF(t, isfFile, spec, want)
		vmlinux := filepath.Join(dir, "vmlinux")
		buildVmlinux(t, vmlinux, btfFile, spec, want)

		for _, tt := range []struct {
			name    string
			patches map[uint64][]byte
			hint    Hint
			do      func(*Store) (Imported, error)
			symbols Origin
		}{
			{"types from BTF", noBTF, Hint{}, func(s *Store) (Imported, error) { return s.ImportBTF(btfFile, want.BuildID) }, OriginNote},
			{"types from an image with DWARF", noBTF, Hint{}, func(s *Store) (Imported, error) {
				return s.ImportVmlinux(t.Context(), vmlinux, want.BuildID)
			}, OriginNote},
			{"all from ISF", maps(noBTF, noSymbols), Hint{LSTAR: want.LSTAR, CR3: cr3}, func(s *Store) (Imported, error) {
				return s.ImportISF(t.Context(), isfFile, want.BuildID)
			}, OriginImport},
			{"all from an image with DWARF", maps(noBTF, noSymbols), Hint{LSTAR: want.LSTAR, CR3: cr3}, func(s *Store) (Imported, error) {
				return s.ImportVmlinux(t.Context(), vmlinux, "")
			}, OriginImport},
			{"all from an image with DWARF, by an old note", maps(noBTF, noSymbols, oldNote), Hint{}, func(s *Store) (Imported, error) {
				return s.ImportVmlinux(t.Context(), vmlinux, want.BuildID)
			}, OriginImport},
		} {
			t.Run(tt.name, func(t *testing.T) {
				r := Resolver{Store: &Store{Dir: filepath.Join(t.TempDir(), "layouts")}}
				guest := patched{mem, tt.patches}
				_, err := r.Resolve(t.Context(), guest, mem.Ranges(), tt.hint)
				if !errors.Is(err, ErrRejected) || !strings.Contains(err.Error(), "frail layout import") || !strings.Contains(err.Error(), want.BuildID) {
					t.Fatalf("before the import: %v; want ErrRejected with what to do", err)
				}
				t.Logf("before the import: %v", err)
				imp, err := tt.do(r.Store)
				if err != nil {
					t.Fatal(err)
				}
				t.Logf("%+v", imp)
				for rebased := range 2 {
					l, err := r.Resolve(t.Context(), guest, mem.Ranges(), tt.hint)
					if err != nil {
						t.Fatal(err)
					}
					if l.TypeSource != OriginImport || l.SymbolSource != tt.symbols || l.Rebased != (rebased == 1) {
						t.Errorf("symbols by %s, types by %s, rebased %v", l.SymbolSource, l.TypeSource, l.Rebased)
					}
					same(t, l)
				}
				// The guest's own word goes before the operator's.
				if l, err := (&Resolver{Store: r.Store}).Resolve(t.Context(), mem, mem.Ranges(), tt.hint); err != nil || l.TypeSource != OriginBTF {
					t.Errorf("with all in place: %+v, %v", l, err)
				}
			})
		}
	})

	t.Run("another build id in the image", func(t *testing.T) {
		r := Resolver{Store: &Store{Dir: t.TempDir()}}
		other := strings.Repeat("ab", 20)
		id := bytes.Repeat([]byte{0xab}, 20)
		all := make([]byte, maxNotes)
		if _, err := mem.ReadAt(all, int64(notesPA)); err != nil {
			t.Fatal(err)
		}
		at := bytes.Index(all, []byte("GNU\x00"))
		l, err := r.Resolve(t.Context(), patched{mem, map[uint64][]byte{notesPA + uint64(at) + 4: id}}, mem.Ranges(), Hint{})
		if err != nil || l.BuildID != other {
			t.Errorf("build id %+v, %v; want the image's own", l, err)
		}
	})

	t.Run("memory that changes", func(t *testing.T) {
		for seed := range uint64(20) {
			ctx, cancel := context.WithTimeout(t.Context(), rejectLimit)
			m := &changing{ReaderAt: mem, random: rand.New(rand.NewPCG(seed, 0))}
			started := time.Now()
			_, err := Resolve(ctx, m, mem.Ranges(), Hint{LSTAR: want.LSTAR, CR3: cr3})
			cancel()
			if errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("seed %d: no end after %v and %d reads", seed, time.Since(started), m.reads.Load())
			}
		}
	})
}

// changing is memory of which a few bytes are others at each read.
type changing struct {
	io.ReaderAt
	random *rand.Rand
	reads  atomic.Int64
}

func (c *changing) ReadAt(b []byte, off int64) (int, error) {
	n, err := c.ReaderAt.ReadAt(b, off)
	if c.reads.Add(1); n > 0 && c.random.IntN(8) == 0 {
		b[c.random.IntN(n)] ^= byte(1 << c.random.IntN(8))
	}
	return n, err
}

// linked returns the symbols of a layout at the addresses that the kernel was linked
// for, each name once.
func linked(l *Layout) []Symbol {
	var out []Symbol
	seen := make(map[string]bool)
	for s := range l.Symbols() {
		if s.Addr >= imageStart && s.Addr < imageEnd {
			s.Addr -= l.KASLR
		}
		if !seen[s.Name] {
			out = append(out, s)
		}
		seen[s.Name] = true
	}
	return out
}

// buildVmlinux builds an ELF file with a kernel's build id, symbols and, as DWARF,
// types.
func buildVmlinux(t *testing.T, path, btfFile string, spec *btf.Spec, l *Layout) {
	t.Helper()
	dir := t.TempDir()
	run := func(out, name string, args ...string) {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), name, args...)
		var stderr bytes.Buffer
		cmd.Stderr, cmd.Dir = &stderr, dir
		text, err := cmd.Output()
		if err != nil {
			t.Fatalf("%s: %v: %s", cmd, err, stderr.Bytes())
		}
		if out != "" {
			if err := os.WriteFile(filepath.Join(dir, out), text, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	run("types.h", "bpftool", "btf", "dump", "file", btfFile, "format", "c")
	var source strings.Builder
	source.WriteString("#define BPF_NO_PRESERVE_ACCESS_INDEX\n#include \"types.h\"\n")
	for i, name := range structNames {
		typ, err := spec.AnyTypeByName(name)
		if err != nil {
			continue
		}
		kind := "struct"
		if _, ok := typ.(*btf.Union); ok {
			kind = "union"
		}
		fmt.Fprintf(&source, "%s %s frail_test_%d;\n", kind, name, i)
	}
	var assembly strings.Builder
	for _, s := range linked(l) {
		fmt.Fprintf(&assembly, ".globl %q\n.set %q, %#x\n", s.Name, s.Name, s.Addr)
	}
	for name, text := range map[string]string{"types.c": source.String(), "symbols.s": assembly.String()} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	run("", "clang", "-g", "-w", "-ffreestanding", "-c", "types.c")
	run("", "clang", "-c", "symbols.s")
	run("", "ld", "--build-id=0x"+l.BuildID, "-e", "0", "-o", path, "types.o", "symbols.o")
}

// writeISF writes a kernel's symbols and types in Volatility's format, compressed.
func writeISF(t *testing.T, path string, spec *btf.Spec, l *Layout) {
	t.Helper()
	type object = map[string]any
	base, users, enums, symbols := object{}, object{}, object{}, object{}
	var convert func(typ btf.Type) object
	unnamed := 0
	names := make(map[btf.Type]string)
	composite := func(typ btf.Type, kind, name string, size uint32, members []btf.Member) object {
		if known, ok := names[typ]; ok {
			return object{"kind": kind, "name": known}
		}
		if name == "" {
			unnamed++
			name = fmt.Sprintf("unnamed_%x", unnamed)
		}
		names[typ] = name
		fields := object{}
		for i, m := range members {
			field := object{"offset": m.Offset / 8, "type": convert(m.Type)}
			if m.BitfieldSize > 0 {
				field["type"] = object{"kind": "bitfield", "bit_position": m.Offset % 8, "bit_length": m.BitfieldSize, "type": convert(m.Type)}
			}
			label := m.Name
			if label == "" {
				label = fmt.Sprintf("unnamed_field_%x", i)
				field["anonymous"] = true
			}
			fields[label] = field
		}
		users[name] = object{"kind": kind, "size": size, "fields": fields}
		return object{"kind": kind, "name": name}
	}
	convert = func(typ btf.Type) object {
		switch typ := btf.UnderlyingType(typ).(type) {
		case *btf.Pointer:
			return object{"kind": "pointer", "subtype": object{"kind": "base", "name": "void"}}
		case *btf.Array:
			return object{"kind": "array", "count": typ.Nelems, "subtype": convert(typ.Type)}
		case *btf.Struct:
			return composite(typ, "struct", typ.Name, typ.Size, typ.Members)
		case *btf.Union:
			return composite(typ, "union", typ.Name, typ.Size, typ.Members)
		case *btf.Enum:
			enums[typ.Name] = object{"size": typ.Size, "base": "int", "constants": object{}}
			return object{"kind": "enum", "name": typ.Name}
		case *btf.Int:
			base[typ.Name] = object{"size": typ.Size, "kind": "int", "signed": true, "endian": "little"}
			return object{"kind": "base", "name": typ.Name}
		default:
			return object{"kind": "base", "name": "void"}
		}
	}
	for _, name := range structNames {
		if typ, err := spec.AnyTypeByName(name); err == nil {
			convert(typ)
		}
	}
	for _, s := range linked(l) {
		symbols[s.Name] = object{"address": s.Addr}
	}
	raw, err := json.Marshal(object{
		"metadata": object{"format": "6.2.0"}, "base_types": base, "user_types": users, "enums": enums, "symbols": symbols,
	})
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	w, err := xz.NewWriter(&b)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(raw); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestStore(t *testing.T) {
	id := strings.Repeat("0123456789", 4)
	isfText := smallISF
	dir := t.TempDir()
	plainFile, gz := filepath.Join(dir, "a.json"), filepath.Join(dir, "a.json.gz")
	var b bytes.Buffer
	zw := gzip.NewWriter(&b)
	if _, err := io.WriteString(zw, isfText); err != nil {
		t.Fatal(err)
	}
	if err := zw.Close(); err != nil {
		t.Fatal(err)
	}
	for path, text := range map[string][]byte{plainFile: []byte(isfText), gz: b.Bytes()} {
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, file := range []string{plainFile, gz} {
		s := &Store{Dir: filepath.Join(t.TempDir(), "new")}
		if _, err := s.load(id); !errors.Is(err, ErrNotImported) {
			t.Fatalf("of an empty store: %v", err)
		}
		got, err := s.ImportISF(t.Context(), file, id)
		if err != nil {
			t.Fatal(err)
		}
		if got.Symbols != 5 || !got.Types || got.BuildID != id {
			t.Errorf("imported %+v", got)
		}
		imp, err := s.load(id)
		if err != nil {
			t.Fatal(err)
		}
		if at, ok := imp.symbols.lookup("init_task"); !ok || at.Addr != 18446744071606417728 {
			t.Errorf("init_task is %+v", at)
		}
		ids := imp.types.find("task_struct")
		if offset, _, err := imp.types.member(ids["task_struct"], "tgid"); err != nil || offset != 12 {
			t.Errorf("tgid lies at %d, %v", offset, err)
		}
	}

	s := &Store{Dir: filepath.Join(t.TempDir(), "new")}
	if _, err := s.ImportISF(t.Context(), plainFile, id); err != nil {
		t.Fatal(err)
	}
	good, err := os.ReadFile(s.path(id))
	if err != nil {
		t.Fatal(err)
	}
	for name, corrupt := range map[string]func([]byte) []byte{
		"empty":     func([]byte) []byte { return nil },
		"truncated": func(b []byte) []byte { return b[:len(b)-9] },
		"flipped":   func(b []byte) []byte { b[len(b)-20] ^= 4; return b },
		"no header": func(b []byte) []byte { return b[:len(storeMagic)+3] },
		"another's": func(b []byte) []byte { return bytes.Replace(b, []byte(id), []byte(strings.Repeat("f", 40)), 1) },
		"huge":      func(b []byte) []byte { return bytes.Replace(b, []byte(`"names":`), []byte(`"names":9999999999`), 1) },
	} {
		if err := os.WriteFile(s.path(id), corrupt(bytes.Clone(good)), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := s.load(id)
		if !errors.Is(err, errCorrupt) || !strings.Contains(err.Error(), s.path(id)) {
			t.Errorf("%s: %v; want errCorrupt with the file's name", name, err)
		}
		if _, err := os.Stat(s.path(id) + brokenSuffix); err != nil {
			t.Errorf("%s: not set aside: %v", name, err)
		}
		if _, err := s.load(id); !errors.Is(err, ErrNotImported) {
			t.Errorf("%s, the second time: %v", name, err)
		}
	}
	newer := bytes.Replace(good, []byte(" 1\n"), []byte(" 2\n"), 1)
	if err := os.WriteFile(s.path(id), newer, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.load(id); !errors.Is(err, errOtherVersion) {
		t.Errorf("of another version: %v", err)
	}
	for _, bad := range []string{"", "../" + id[3:], strings.ToUpper(strings.Repeat("a", 40))} {
		if _, err := s.ImportISF(t.Context(), plainFile, bad); err == nil {
			t.Errorf("with build id %q: no error", bad)
		}
	}
	left, err := filepath.Glob(filepath.Join(s.Dir, ".*-*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// testdata/small.elf has DWARF, and no BTF.
func TestImportVmlinux(t *testing.T) {
	const id, file = "0123456789012345678901234567890123456789", "testdata/small.elf"
	s := &Store{Dir: t.TempDir()}
	got, err := s.ImportVmlinux(t.Context(), file, "")
	if err != nil || got.BuildID != id || !got.Types || got.Symbols < 5 {
		t.Fatalf("imported %+v, %v", got, err)
	}
	imp, err := s.load(id)
	if err != nil {
		t.Fatal(err)
	}
	l := &Layout{symbols: imp.symbols}
	if err := l.takeOffsets(imp.types); err != nil {
		t.Fatal(err)
	}
	if l.TaskPID != 8 || l.TaskTGID != 12 || l.TaskStack != 16 || l.TaskComm != 64 || l.PtRegsOrigAx != 120 || l.ThreadSize != 16384 {
		t.Errorf("layout %+v", plain(l))
	}
	if _, err := s.ImportVmlinux(t.Context(), file, strings.Repeat("1", 40)); err == nil || !strings.Contains(err.Error(), id) {
		t.Errorf("with another build id: %v", err)
	}
	if _, err := s.ImportVmlinux(t.Context(), "/bin/sh", ""); err == nil {
		t.Error("a program that is no kernel: no error")
	}
}

const smallISF = `{
 "metadata": {"format": "6.2.0"},
 "base_types": {"char": {"size": 1, "signed": true, "kind": "char", "endian": "little"}, "int": {"size": 4, "signed": true, "kind": "int", "endian": "little"},
  "long": {"size": 8, "signed": true, "kind": "int", "endian": "little"}},
 "enums": {},
 "user_types": {
  "list_head": {"kind": "struct", "size": 16, "fields": {
   "next": {"offset": 0, "type": {"kind": "pointer", "subtype": {"kind": "struct", "name": "list_head"}}},
   "prev": {"offset": 8, "type": {"kind": "pointer", "subtype": {"kind": "struct", "name": "list_head"}}}}},
  "unnamed_1": {"kind": "union", "size": 8, "fields": {
   "pid": {"offset": 0, "type": {"kind": "base", "name": "int"}},
   "tgid": {"offset": 4, "type": {"kind": "base", "name": "int"}}}},
  "signal_struct": {"kind": "struct", "size": 32, "fields": {
   "thread_head": {"offset": 16, "type": {"kind": "struct", "name": "list_head"}}}},
  "pt_regs": {"kind": "struct", "size": 168, "fields": {
   "orig_ax": {"offset": 120, "type": {"kind": "base", "name": "long"}},
   "ax": {"offset": 80, "type": {"kind": "base", "name": "long"}}}},
  "thread_union": {"kind": "union", "size": 16384, "fields": {}},
  "task_struct": {"kind": "struct", "size": 128, "fields": {
   "flags": {"offset": 0, "type": {"kind": "bitfield", "bit_position": 3, "bit_length": 2, "type": {"kind": "base", "name": "int"}}},
   "unnamed_field_8": {"offset": 8, "anonymous": true, "type": {"kind": "union", "name": "unnamed_1"}},
   "stack": {"offset": 16, "type": {"kind": "pointer", "subtype": {"kind": "base", "name": "void"}}},
   "tasks": {"offset": 24, "type": {"kind": "struct", "name": "list_head"}},
   "thread_node": {"offset": 40, "type": {"kind": "struct", "name": "list_head"}},
   "signal": {"offset": 56, "type": {"kind": "pointer", "subtype": {"kind": "struct", "name": "signal_struct"}}},
   "comm": {"offset": 64, "type": {"kind": "array", "count": 16, "subtype": {"kind": "base", "name": "char"}}}}}},
 "symbols": {
  "_stext": {"address": 18446744071578845184}, "init_task": {"address": 18446744071606417728},
  "init_top_pgt": {"address": 18446744071600799744}, "entry_SYSCALL_64": {"address": 18446744071591297024},
  "current_task": {"address": 129920}}
}`

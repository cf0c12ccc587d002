// SPDX-License-Identifier: Apache-2.0

package decode

import (
	"go/ast"
	"go/parser"
	"go/token"
	"strconv"
	"testing"

	"frail/bpf"
	"frail/tracer/syscalls"
)

// Each call that is decoded has as many arguments as its table says.
func TestArgumentCounts(t *testing.T) {
	for _, table := range tables {
		decoded := 0
		for nr := range int64(bpf.Syscalls) {
			args := signature(table, nr)
			if args == nil {
				continue
			}
			decoded++
			if want := syscalls.Args(table, nr); len(args) != want {
				t.Errorf("%s of table %s has %d arguments, want %d", syscalls.Name(table, nr), table, len(args), want)
			}
		}
		if decoded < 290 {
			t.Errorf("table %s: only %d calls are decoded", table, decoded)
		}
	}
	for _, calls := range []map[string][]argument{calls64, calls32} {
		for name := range calls {
			_, in64 := syscalls.Number(syscalls.X86_64, name)
			_, in32 := syscalls.Number(syscalls.I386, name)
			if !in64 && !in32 {
				t.Errorf("no table has %s", name)
			}
		}
	}
}

// A name in quotes is that of the constant before it.
func TestNamesOfConstants(t *testing.T) {
	file, err := parser.ParseFile(token.NewFileSet(), "sets.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	ast.Inspect(file, func(n ast.Node) bool {
		lit, ok := n.(*ast.CompositeLit)
		if !ok || len(lit.Elts) != 2 {
			return true
		}
		constant, ok := lit.Elts[0].(*ast.SelectorExpr)
		text, isText := lit.Elts[1].(*ast.BasicLit)
		if !ok || !isText {
			return true
		}
		found++
		if name, _ := strconv.Unquote(text.Value); name != constant.Sel.Name {
			t.Errorf("unix.%s is called %s", constant.Sel.Name, name)
		}
		return true
	})
	if found < 500 {
		t.Errorf("only %d constants found", found)
	}
}

func TestAppendArgs(t *testing.T) {
	for _, tc := range []struct {
		call Call
		want string
	}{
		{Call{Table: syscalls.X86_64, Nr: 257, Args: [6]uint64{1<<64 - 100, 0x7ffd5b1c0f10, 0x80000, 0o644}}, "AT_FDCWD, 0x7ffd5b1c0f10, O_RDONLY|O_CLOEXEC"},
		{Call{Table: syscalls.X86_64, Nr: 257, Args: [6]uint64{3, 0, 0x241, 0o644}}, "3, NULL, O_WRONLY|O_CREAT|O_TRUNC, 0644"},
		{Call{Table: syscalls.X86_64, Nr: 39, Args: [6]uint64{1, 2, 3}}, ""},
		{Call{Table: syscalls.X86_64, Nr: 999, Args: [6]uint64{1, 2, 3, 4, 5, 1<<64 - 1}}, "0x1, 0x2, 0x3, 0x4, 0x5, 0xffffffffffffffff"},
		{Call{Table: syscalls.X86_64, Nr: 237, Args: [6]uint64{0, 16}}, "0x0, 0x10, 0x0, 0x0, 0x0, 0x0"},
		{Call{Table: syscalls.I386, Nr: 6, Args: [6]uint64{0xdead00000003}}, "3"},
		{Call{Table: syscalls.I386, Nr: 180, Args: [6]uint64{3, 0x1000, 16, 5, 1}}, "3, 0x1000, 16, 4294967301"},
		{Call{Table: syscalls.I386, Nr: 999, Args: [6]uint64{0xdead00000003}}, "0x3, 0x0, 0x0, 0x0, 0x0, 0x0"},
		{Call{Table: syscalls.X32, Nr: bpf.X32Bit | 520, Args: [6]uint64{1, 0, 3}}, "0x1, NULL, 0x3"},
		{Call{Table: syscalls.X32, Nr: 534, Args: [6]uint64{3, 0x1000, 2, 5}}, "0x3, 0x1000, 0x2, 0x5, 0x0"},
	} {
		if got := string(tc.call.AppendArgs([]byte("("))); got != "("+tc.want {
			t.Errorf("%+v: %s, want %s", tc.call, got[1:], tc.want)
		}
	}
}

func TestAppendReturn(t *testing.T) {
	for _, tc := range []struct {
		call Call
		ret  int64
		want string
	}{
		{Call{Table: syscalls.X86_64, Nr: 257, Args: [6]uint64{}}, 3, "3"},
		{Call{Table: syscalls.X86_64, Nr: 257, Args: [6]uint64{}}, -2, "-1 ENOENT (No such file or directory)"},
		{Call{Table: syscalls.X86_64, Nr: 257, Args: [6]uint64{}}, -4000, "-1 (errno 4000)"},
		{Call{Table: syscalls.X86_64, Nr: 9, Args: [6]uint64{}}, 0x7f0000001000, "0x7f0000001000"},
		{Call{Table: syscalls.X86_64, Nr: 8, Args: [6]uint64{}}, 1 << 40, "1099511627776"},
		{Call{Table: syscalls.I386, Nr: 90, Args: [6]uint64{}}, -0x1000000, "0xff000000"},
		{Call{Table: syscalls.X86_64, Nr: 72, Args: [6]uint64{3, 3}}, 0x8002, "0x8002 (flags O_RDWR|O_LARGEFILE)"},
		{Call{Table: syscalls.X86_64, Nr: 72, Args: [6]uint64{}}, 0x8002, "32770"},
	} {
		if got := string(tc.call.AppendReturn(nil, tc.ret)); got != tc.want {
			t.Errorf("%+v: %s, want %s", tc.call, got, tc.want)
		}
	}
}

// Whatever a guest passes, decoding does not fail and does not allocate.
func FuzzAppendArgs(f *testing.F) {
	f.Add(0, int64(202), uint64(1), uint64(5), uint64(1<<63), uint64(3), uint64(4), uint64(1<<64-1))
	f.Fuzz(func(t *testing.T, table int, nr int64, a, b, c, d, e, g uint64) {
		call := Call{Table: syscalls.Table(uint(table) % 3), Nr: nr % 1024, Args: [6]uint64{a, b, c, d, e, g}}
		buf := make([]byte, 0, 4096)
		if n := testing.AllocsPerRun(1, func() { call.AppendReturn(call.AppendArgs(buf), int64(a)) }); n != 0 {
			t.Errorf("%+v: %v allocations", call, n)
		}
	})
}

// Whatever a guest has in its memory, decoding does not fail, and what it writes is printable.
func FuzzMemory(f *testing.F) {
	f.Add(0, int64(20), []byte("\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x01a"), true)
	f.Add(0, int64(59), []byte("a\x00\x00b\x00\x01"), false)
	f.Add(0, int64(42), []byte("\x0a\x00\x00\x50\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x00"), false)
	f.Add(1, int64(4), []byte("text"), true)
	f.Fuzz(func(t *testing.T, table int, nr int64, memory []byte, cut bool) {
		call := Call{Table: syscalls.Table(uint(table) % 3), Nr: nr % 1024, Args: [6]uint64{1, 2, 3, 4, 5, 6}}
		for _, r := range reads(call.Table, call.Nr, 64).Read {
			if r.Kind != bpf.ReadNone {
				call.Pieces = append(call.Pieces, Piece{Arg: int(r.Arg), Kind: r.Kind, Bytes: memory, Cut: cut})
			}
		}
		text := call.AppendLeft(call.AppendArgs(nil))
		for _, b := range text {
			if b < ' ' || b > '~' {
				t.Fatalf("%q", text)
			}
		}
	})
}

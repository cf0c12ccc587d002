// SPDX-License-Identifier: Apache-2.0

package decode

import (
	"frail/bpf"
	"frail/tracer/syscalls"
)

const (
	// MaxData is how many bytes of a string or a buffer can be asked for.
	MaxData = len(bpf.Data{}.Bytes)

	// maxPath is how much of a path is read whatever is asked for of strings.
	maxPath = 255
)

// Piece is what an argument points to.
type Piece struct {
	// Arg is which argument it is.
	Arg int
	// Kind is [bpf.ReadString] and so on.
	Kind uint8
	// Bytes are the guest's, so anything.
	Bytes []byte
	// Cut says that there was more; Fault that Bytes end where memory could not be read.
	Cut, Fault bool
}

// memory is a pointer to memory that is read.
type memory struct {
	// read says how much there is; Arg is not set, nor is Max where it is what was asked for.
	read bpf.Read
	// least is how much is read at least, if Max is what was asked for.
	least int
	// wide is set of structures that have another layout where long has 32 bits.
	wide bool
	// show appends what the bytes mean. It returns nil if they mean nothing.
	show func(dst []byte, c *Call, p *Piece) []byte
}

// in is memory that is read when the call is made, out when it has returned.
func in(m memory) *memory { return &m }

func out(m memory) *memory {
	m.read.Exit = 1
	return &m
}

func (m *memory) append(dst []byte, c *Call, i int) []byte {
	if shown := m.appendPiece(dst, c, i); shown != nil {
		return shown
	}
	return ptr.append(dst, c, i)
}

// appendPiece appends what argument i points to; it returns nil if that is not known.
func (m *memory) appendPiece(dst []byte, c *Call, i int) []byte {
	if m.wide && c.narrow() {
		return nil
	}
	for j := range c.Pieces {
		// strace shows the address of what it cannot read all of, too.
		if p := &c.Pieces[j]; p.Arg == i && p.Kind == m.read.Kind && !p.Fault {
			return m.show(dst, c, p)
		}
	}
	return nil
}

// followed returns what argument i of a call is, if its memory is read; nil if it is not.
func followed(arg argument, narrow bool) *memory {
	m, ok := arg.(*memory)
	if !ok || m.wide && narrow {
		return nil
	}
	return m
}

// AppendLeft appends, in brackets, what the call left where its arguments point to, as far as
// that is known: nothing if none of it is.
func (c *Call) AppendLeft(dst []byte) []byte {
	start := len(dst)
	for i, arg := range signature(c.Table, c.Nr) {
		m := followed(arg, c.narrow())
		if m == nil || m.read.Exit == 0 {
			continue
		}
		before := len(dst)
		if before == start {
			dst = append(dst, '(')
		} else {
			dst = append(dst, ", "...)
		}
		shown := m.appendPiece(dst, c, i)
		if shown == nil {
			dst = dst[:before]
			continue
		}
		dst = shown
	}
	if len(dst) > start {
		dst = append(dst, ')')
	}
	return dst
}

// DataSpec returns what is to be read so that [Call.AppendArgs] and [Call.AppendLeft] can show
// it: at most max bytes of each string and buffer, but of a path 255.
func DataSpec(max int) *bpf.DataSpec {
	var spec bpf.DataSpec
	for table, calls := range map[syscalls.Table][]bpf.Reads{
		syscalls.X86_64: spec.Calls64[:], syscalls.I386: spec.Calls32[:],
	} {
		for nr := range calls {
			calls[nr] = reads(table, int64(nr), max)
		}
	}
	// Those that only x32 has. The others are the 64-bit table's own.
	for nr := firstX32; nr < len(spec.Calls64); nr++ {
		spec.Calls64[nr] = reads(syscalls.X32, int64(nr), max)
	}
	return &spec
}

// reads returns what is to be read of a call's memory.
func reads(t syscalls.Table, nr int64, most int) bpf.Reads {
	var out bpf.Reads
	call := Call{Table: t, Nr: nr}
	n := 0
	for i, arg := range signature(t, nr) {
		m := followed(arg, call.narrow())
		if m == nil || n == len(out.Read) {
			continue
		}
		r := m.read
		r.Arg = uint8(i)
		if r.Max == 0 {
			r.Max = uint16(max(most, m.least))
		}
		out.Read[n] = r
		n++
	}
	return out
}

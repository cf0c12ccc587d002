// SPDX-License-Identifier: Apache-2.0

package layout

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"slices"
)

// kernel is a kernel that was resolved before, at the addresses of that boot. It
// is immutable.
//
// It is found by its build id but believed only if the guest has the very bytes
// that it was read from: a guest that lies about its kernel must not lie about
// another guest's.
type kernel struct {
	buildID                  string
	symbols                  *symbols
	tables                   kallsymsTables // zero: symbols are imported
	types                    *btfTypes      // only those that layouts use
	btf                      *btfBlob       // nil: types are imported
	notes, notesSize         uint64
	symbolSource, typeSource Origin
	stamp                    string // of what was imported for it
}

// btfBlob is the kernel's BTF in the guest's memory.
type btfBlob struct {
	addr, size uint64
	digest     [sha256.Size]byte
}

// anchored returns the symbols at the addresses where anchor is one of them.
func (s *symbols) anchored(anchor Symbol) (*symbols, error) {
	at, ok := s.lookup(anchor.Name)
	if !ok {
		return nil, missing{"symbol " + anchor.Name}
	}
	by := anchor.Addr - at.Addr
	if by%imageAlign != 0 {
		return nil, fmt.Errorf("%s is at %#x, which is no place for a kernel linked for %#x", anchor.Name, anchor.Addr, at.Addr)
	}
	return s.moved(by), nil
}

// known returns the known kernel that the candidate is, and its symbols at the
// candidate's addresses, or nil.
func (r *Resolver) known(c *candidate) (*kernel, *symbols) {
	if c.symbols != nil {
		return nil, nil
	}
	r.mu.Lock()
	kernels := slices.Clone(r.kernels)
	r.mu.Unlock()
	for _, k := range kernels {
		s, err := k.symbols.anchored(c.anchor)
		if err != nil {
			continue
		}
		by := s.base - k.symbols.base
		if readBuildID(c.space, k.notes+by, k.notesSize) != k.buildID || !k.isAt(c.space, by) {
			continue
		}
		if k.stamp != "" && k.stamp != r.Store.stamp(k.buildID) {
			continue // it was imported again since
		}
		r.mu.Lock()
		r.use(k)
		r.mu.Unlock()
		return k, s
	}
	return nil, nil
}

// isAt reports whether all that was read from the guest's memory is there again,
// by bytes further up.
func (k *kernel) isAt(m memory, by uint64) bool {
	if t := k.tables; t != (kallsymsTables{}) {
		rest := k.symbols.names
		same := readChunks(m, t.names+by, uint64(len(rest)), func(b []byte) bool {
			same := bytes.Equal(b, rest[:len(b)])
			rest = rest[len(b):]
			return same
		})
		if !same {
			return false
		}
		t.tokenIndex += by
		t.tokenTable += by
		if tokens, err := readTokens(m, t); err != nil || tokens != k.symbols.tokens {
			return false
		}
		if !k.hasAddresses(m, by) {
			return false
		}
	}
	if k.btf == nil {
		return true
	}
	digest := sha256.New()
	read := readChunks(m, k.btf.addr+by, k.btf.size, func(b []byte) bool {
		digest.Write(b)
		return true
	})
	return read && [sha256.Size]byte(digest.Sum(nil)) == k.btf.digest
}

// hasAddresses reports whether the symbols' addresses are there again.
func (k *kernel) hasAddresses(m memory, by uint64) bool {
	i := 0
	if k.symbols.encoding == encodingAbsolute {
		moved := k.symbols.moved(by)
		return readChunks(m, k.tables.addresses+by, 8*uint64(len(k.symbols.addrs)), func(b []byte) bool {
			for ; len(b) > 0; b = b[8:] {
				if binary.LittleEndian.Uint64(b) != moved.addr(i) {
					return false
				}
				i++
			}
			return true
		})
	}
	offsets := k.symbols.offsets
	return readChunks(m, k.tables.offsets+by, 4*uint64(len(offsets)), func(b []byte) bool {
		for ; len(b) > 0; b = b[4:] {
			if int32(binary.LittleEndian.Uint32(b)) != offsets[i] {
				return false
			}
			i++
		}
		return true
	})
}

// readChunks calls f with size bytes from addr on, some at a time, and reports
// whether all could be read and f always returned true.
func readChunks(m memory, addr, size uint64, f func([]byte) bool) bool {
	const chunk = 256 << 10 // fits the cache
	buf := make([]byte, min(size, chunk))
	for size > 0 {
		b := buf[:min(size, chunk)]
		if m.read(b, addr) != nil || !f(b) {
			return false
		}
		addr += uint64(len(b))
		size -= uint64(len(b))
	}
	return true
}

// remember keeps the kernel of a layout, unless it has no build id to find it by.
func (r *Resolver) remember(l *Layout, rd *reading) {
	k := &kernel{
		buildID: l.BuildID, symbols: rd.symbols, tables: rd.tables, btf: rd.btf,
		symbolSource: l.SymbolSource, typeSource: l.TypeSource, stamp: rd.stamp,
	}
	k.notes, k.notesSize = l.noteSpan()
	if l.BuildID == "" || k.notesSize == 0 || l.Source == SourceScan {
		return
	}
	types, err := rd.types.used()
	if err != nil {
		return
	}
	k.types = types
	r.mu.Lock()
	defer r.mu.Unlock()
	r.use(k)
}

// use makes k the kernel that was used last, and forgets those that were not for
// long. r.mu is held.
func (r *Resolver) use(k *kernel) {
	r.kernels = slices.DeleteFunc(r.kernels, func(other *kernel) bool { return other == k })
	r.kernels = slices.Insert(r.kernels, 0, k)
	size := 0
	for i, other := range r.kernels {
		if size += other.size(); size > maxKnown || i >= maxKernels {
			r.kernels = slices.Delete(r.kernels, i, len(r.kernels))
			return
		}
	}
}

// size returns about how many bytes the kernel takes.
func (k *kernel) size() int {
	s := k.symbols
	return cap(s.names) + 4*len(s.starts) + 8*len(s.index) + 4*len(s.offsets) + 8*len(s.addrs) +
		len(k.types.types) + len(k.types.strings)
}

// SPDX-License-Identifier: Apache-2.0

package qmp

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"sort"
	"sync"

	goqemu "github.com/digitalocean/go-qemu/qmp"
)

var (
	// ErrNotRAM is returned by a read that leaves the guest's RAM.
	ErrNotRAM = errors.New("not guest RAM")

	// ErrClosed is returned by a Memory after Close.
	ErrClosed = errors.New("guest memory is closed")
)

// Range is a piece of guest physical address space, in bytes.
type Range struct {
	Start, Size uint64
}

// End returns the first address after the range.
func (r Range) End() uint64 { return r.Start + r.Size }

// Path is a way to read guest memory.
type Path string

const (
	// PathProcessVM copies out of QEMU's address space: about 4 us a page,
	// 7 GB/s. It needs QEMU's pid and the right to trace it.
	PathProcessVM Path = "process_vm_readv"

	// PathPeek asks libvirt for at most 4 MiB at a time: about 4 ms a call,
	// 100 MB/s.
	PathPeek Path = "virDomainMemoryPeek"

	// PathSave has QEMU write to a file: some ms a call, 240 MB/s.
	PathSave Path = "pmemsave"
)

// Peeker reads a domain's memory, of which addr is a physical address, through
// libvirt. A [LibvirtMemory] is one.
type Peeker interface {
	Peek(addr uint64, size int) ([]byte, error)
}

// MemoryOptions say how guest memory can be reached.
type MemoryOptions struct {
	// Monitor is asked where the RAM is. Required.
	Monitor goqemu.Monitor

	// PID is QEMU's process id. Zero forgoes PathProcessVM.
	PID int

	// Domain is the guest as libvirt knows it. Nil forgoes PathPeek.
	Domain Peeker

	// SaveDir is a directory that both QEMU and the caller can enter, for
	// PathSave. Empty forgoes PathSave.
	SaveDir string
}

// Memory is a guest's physical memory, read only. Offsets are guest physical
// addresses.
//
// The guest keeps running: two reads, or two halves of one, may see different
// moments. A guest whose RAM was hot-plugged or whose QEMU was replaced needs a
// new Memory.
//
// A Memory is safe for concurrent use.
type Memory struct {
	ranges []Range
	path   Path
	slow   error

	mu     sync.RWMutex // held for reading by reads, for writing by Close
	reader reader       // nil once closed
}

var _ io.ReaderAt = (*Memory)(nil)

// reader is one path to guest memory.
type reader interface {
	// readAt fills p from the guest physical address addr. All of it lies in
	// one range.
	readAt(p []byte, addr uint64) error
	close() error
}

// OpenMemory finds the guest's RAM and the fastest path to it that works, which
// it proves with a read. Close the Memory after use.
func OpenMemory(ctx context.Context, opts MemoryOptions) (*Memory, error) {
	if opts.Monitor == nil {
		return nil, errors.New("open guest memory: no monitor given")
	}
	regions, err := ramRegions(ctx, opts.Monitor)
	if err != nil {
		return nil, fmt.Errorf("open guest memory: %w", err)
	}
	m := &Memory{ranges: mergeRanges(regions)}

	paths := []struct {
		path Path
		open func() (reader, error)
	}{
		{PathProcessVM, func() (reader, error) { return openProcessVM(ctx, opts.Monitor, opts.PID, regions) }},
		{PathPeek, func() (reader, error) { return openPeek(opts.Domain) }},
		{PathSave, func() (reader, error) { return openSave(opts.Monitor, opts.SaveDir) }},
	}
	var errs []error
	for _, p := range paths {
		r, err := p.open()
		if err == nil {
			if err = probe(r, m.ranges); err == nil {
				m.reader, m.path, m.slow = r, p.path, errors.Join(errs...)
				return m, nil
			}
			err = errors.Join(err, r.close())
		}
		if ctx.Err() != nil {
			return nil, fmt.Errorf("open guest memory: %w", ctx.Err())
		}
		errs = append(errs, fmt.Errorf("%s: %w", p.path, err))
	}
	return nil, fmt.Errorf("open guest memory: no path works: %w", errors.Join(errs...))
}

// probe reads the first byte of the RAM.
func probe(r reader, ranges []Range) error {
	var b [1]byte
	return r.readAt(b[:], ranges[0].Start)
}

// Path returns the way in which the memory is read.
func (m *Memory) Path() Path { return m.path }

// SlowReason returns why the paths faster than Path() are not used, or nil when
// the fastest is.
func (m *Memory) SlowReason() error { return m.slow }

// Ranges returns the guest's RAM in ascending order: disjoint ranges with holes
// between them. The caller owns the slice.
func (m *Memory) Ranges() []Range {
	return append([]Range(nil), m.ranges...)
}

// ReadAt reads len(p) bytes at the guest physical address off. A read that
// meets the end of a RAM range returns the bytes up to there and ErrNotRAM.
func (m *Memory) ReadAt(p []byte, off int64) (int, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if m.reader == nil {
		return 0, ErrClosed
	}
	if off < 0 {
		return 0, fmt.Errorf("read guest memory at %d: negative address", off)
	}
	if len(p) == 0 {
		return 0, nil
	}
	addr := uint64(off)
	i := sort.Search(len(m.ranges), func(i int) bool { return m.ranges[i].End() > addr })
	if i == len(m.ranges) || m.ranges[i].Start > addr {
		return 0, fmt.Errorf("read guest memory at %#x: %w", addr, ErrNotRAM)
	}
	n := len(p)
	if room := m.ranges[i].End() - addr; uint64(n) > room {
		n = int(room)
	}
	if err := m.reader.readAt(p[:n], addr); err != nil {
		return 0, fmt.Errorf("read guest memory at %#x: %w", addr, err)
	}
	if n < len(p) {
		return n, fmt.Errorf("read guest memory at %#x: %w", addr+uint64(n), ErrNotRAM)
	}
	return n, nil
}

// Resident sets pages[i] to whether the host holds the 4 KiB page of the guest at
// addr + 4096*i, which lies in RAM as a whole. A page that it does not hold was
// never written by the guest; reading it may make the host allocate it. Where
// that cannot be told, as on every path but PathProcessVM, all are said to be
// held. Pages of shared memory count as not held while they are swapped out.
func (m *Memory) Resident(addr uint64, pages []bool) error {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if m.reader == nil {
		return ErrClosed
	}
	if r, ok := m.reader.(interface{ resident(uint64, []bool) error }); ok {
		if err := r.resident(addr, pages); err != nil {
			return fmt.Errorf("look for guest pages at %#x: %w", addr, err)
		}
		return nil
	}
	for i := range pages {
		pages[i] = true
	}
	return nil
}

// Close frees what the memory holds, once running reads have ended. Calling it
// again does nothing.
func (m *Memory) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.reader == nil {
		return nil
	}
	r := m.reader
	m.reader = nil
	return r.close()
}

// mergeRanges joins regions, which are sorted and disjoint, where they touch.
func mergeRanges(regions []Range) []Range {
	var out []Range
	for _, r := range regions {
		if n := len(out); n > 0 && out[n-1].End() == r.Start {
			out[n-1].Size += r.Size
			continue
		}
		out = append(out, r)
	}
	return out
}

// maxAddress bounds guest physical addresses: x86 has at most 52 bits.
const maxAddress = 1<<52 - 1

// Every address fits the int64 of io.ReaderAt.
const _ = uint64(math.MaxInt64) - maxAddress

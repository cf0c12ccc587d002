// SPDX-License-Identifier: Apache-2.0

package qmp

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"sort"
	"strings"

	goqemu "github.com/digitalocean/go-qemu/qmp"
	"golang.org/x/sys/unix"
)

const (
	// guestPage is the unit in which QEMU maps RAM.
	guestPage = 4096

	// maxMaps bounds /proc/PID/maps. The kernel's default limit is 65,530
	// mappings of some 100 bytes each.
	maxMaps = 64 << 20
)

// hostRegion is guest RAM and its place in QEMU's address space.
type hostRegion struct {
	Range
	host uint64
}

// processVM copies guest memory out of QEMU's address space.
type processVM struct {
	pid     int
	pidfd   int
	pagemap *os.File
	regions []hostRegion // sorted, disjoint
}

// openProcessVM asks QEMU for the host addresses of the regions and checks that
// the process pid has RAM there.
func openProcessVM(ctx context.Context, mon goqemu.Monitor, pid int, regions []Range) (reader, error) {
	if pid <= 0 {
		return nil, errors.New("QEMU's pid is not known")
	}
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, fmt.Errorf("open pidfd of process %d: %w", pid, err)
	}
	r := &processVM{pid: pid, pidfd: pidfd}
	if r.pagemap, err = os.Open(fmt.Sprintf("/proc/%d/pagemap", pid)); err != nil {
		return nil, errors.Join(fmt.Errorf("open page map: %w", err), unix.Close(pidfd))
	}
	if err := r.locate(ctx, mon, regions); err != nil {
		return nil, errors.Join(err, r.close())
	}
	return r, nil
}

func (r *processVM) locate(ctx context.Context, mon goqemu.Monitor, regions []Range) error {
	maps, err := readMaps(r.pid)
	if err != nil {
		return err
	}
	for _, region := range regions {
		first, err := translate(ctx, mon, region.Start)
		if err != nil {
			return fmt.Errorf("locate RAM at %#x: %w", region.Start, err)
		}
		// A region lies within one RAM block, which QEMU maps in one piece:
		// both ends must agree.
		tail := (region.End() - 1) &^ (guestPage - 1)
		tail = max(tail, region.Start)
		last, err := translate(ctx, mon, tail)
		if err != nil {
			return fmt.Errorf("locate RAM at %#x: %w", tail, err)
		}
		if last-first != tail-region.Start {
			return fmt.Errorf("locate RAM at %#x: not contiguous in QEMU", region.Start)
		}
		// Also the proof that pid is the process that answered: it has
		// memory of that size at that address.
		if !covered(maps, Range{Start: first, Size: region.Size}) {
			return fmt.Errorf("locate RAM at %#x: process %d has no memory at %#x", region.Start, r.pid, first)
		}
		r.regions = append(r.regions, hostRegion{Range: region, host: first})
	}
	return nil
}

func (r *processVM) readAt(p []byte, addr uint64) error {
	for len(p) > 0 {
		region, err := r.region(addr)
		if err != nil {
			return err
		}
		want := len(p)
		if room := region.End() - addr; uint64(want) > room {
			want = int(room)
		}
		local := []unix.Iovec{{Base: &p[0]}}
		local[0].SetLen(want)
		remote := []unix.RemoteIovec{{Base: uintptr(region.host + (addr - region.Start)), Len: want}}
		n, err := unix.ProcessVMReadv(r.pid, local, remote, 0)
		if err != nil {
			return fmt.Errorf("read memory of process %d: %w", r.pid, err)
		}
		if n <= 0 || n > want {
			return fmt.Errorf("read memory of process %d: %w", r.pid, io.ErrUnexpectedEOF)
		}
		p = p[n:]
		addr += uint64(n)
	}
	return r.alive()
}

func (r *processVM) region(addr uint64) (*hostRegion, error) {
	i := sort.Search(len(r.regions), func(i int) bool { return r.regions[i].End() > addr })
	if i == len(r.regions) || r.regions[i].Start > addr {
		return nil, ErrNotRAM
	}
	return &r.regions[i], nil
}

func (r *processVM) resident(addr uint64, pages []bool) error {
	// An entry of pagemap has 64 bits, of which these say that the page is in
	// memory and that it is swapped out.
	const (
		entrySize = 8
		held      = 1<<63 | 1<<62
	)
	raw := make([]byte, entrySize*len(pages))
	for len(pages) > 0 {
		region, err := r.region(addr)
		if err != nil {
			return err
		}
		n := len(pages)
		if room := (region.End() - addr + guestPage - 1) / guestPage; uint64(n) > room {
			n = int(room)
		}
		host := region.host + (addr - region.Start)
		if _, err := r.pagemap.ReadAt(raw[:entrySize*n], int64(host/guestPage*entrySize)); err != nil {
			return fmt.Errorf("read page map of process %d: %w", r.pid, err)
		}
		for i := range pages[:n] {
			pages[i] = binary.NativeEndian.Uint64(raw[entrySize*i:])&held != 0
		}
		pages = pages[n:]
		addr += uint64(n) * guestPage
	}
	return r.alive()
}

// alive reports an error when the process has ended, after which its pid may
// name another: what was read before is then worth nothing.
func (r *processVM) alive() error {
	fds := []unix.PollFd{{Fd: int32(r.pidfd), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(fds, 0)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return fmt.Errorf("poll pidfd: %w", err)
		case n > 0:
			return fmt.Errorf("process %d has ended", r.pid)
		default:
			return nil
		}
	}
}

func (r *processVM) close() error { return errors.Join(unix.Close(r.pidfd), r.pagemap.Close()) }

// readMaps returns the readable mappings of a process, joined where they touch.
func readMaps(pid int) ([]Range, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		return nil, fmt.Errorf("read mappings: %w", err)
	}
	defer f.Close()
	return parseMaps(f)
}

func parseMaps(r io.Reader) ([]Range, error) {
	var maps []Range
	scanner := bufio.NewScanner(io.LimitReader(r, maxMaps))
	for scanner.Scan() {
		bounds, rest, _ := strings.Cut(scanner.Text(), " ")
		var first, end uint64
		if n, err := fmt.Sscanf(bounds, "%x-%x", &first, &end); n != 2 || err != nil || end <= first {
			return nil, fmt.Errorf("read mappings: parse %q", scanner.Text())
		}
		if !strings.HasPrefix(rest, "r") {
			continue
		}
		maps = append(maps, Range{Start: first, Size: end - first})
	}
	if err := scanner.Err(); err != nil {
		return nil, fmt.Errorf("read mappings: %w", err)
	}
	return mergeRanges(maps), nil
}

// covered reports whether one of the sorted ranges holds all of want.
func covered(ranges []Range, want Range) bool {
	if want.End() < want.Start {
		return false
	}
	i := sort.Search(len(ranges), func(i int) bool { return ranges[i].End() >= want.End() })
	return i < len(ranges) && ranges[i].Start <= want.Start
}

// SPDX-License-Identifier: Apache-2.0

package qmp_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"libvirt.org/go/libvirt"

	"frail/qmp"
	"frail/qmp/layout"
	"frail/qmp/qmptest"
)

const (
	mib = 1 << 20
	gib = 1 << 30
)

// pattern is a file of random bytes and where QEMU loads it into the guest.
type pattern struct {
	addr int64
	data []byte
}

func (p *pattern) device(tb testing.TB) string {
	file := filepath.Join(tb.TempDir(), fmt.Sprintf("%x", p.addr))
	if err := os.WriteFile(file, p.data, 0o644); err != nil {
		tb.Fatal(err)
	}
	return fmt.Sprintf("loader,file=%s,addr=%#x,force-raw=on", file, p.addr)
}

func randomBytes(n int) []byte {
	b := make([]byte, n)
	rng := rand.NewChaCha8([32]byte{1})
	_, _ = rng.Read(b)
	return b
}

func openMemory(tb testing.TB, opts qmp.MemoryOptions) *qmp.Memory {
	tb.Helper()
	mem, err := qmp.OpenMemory(tb.Context(), opts)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := mem.Close(); err != nil {
			tb.Error(err)
		}
	})
	return mem
}

func dial(tb testing.TB, socket string) *qmp.SocketMonitor {
	tb.Helper()
	mon, err := qmp.Dial(tb.Context(), socket)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := mon.Disconnect(); err != nil {
			tb.Error(err)
		}
	})
	return mon
}

// A guest of 5 GiB has a hole below 4 GiB: the pc machine's RAM ends at 3 GiB
// and goes on at 4 GiB.
func TestMemoryOfPlainQEMU(t *testing.T) {
	patterns := []*pattern{
		{1 * mib, randomBytes(3*mib + 17)},
		{3*gib - 100, randomBytes(100)}, // up to the hole
		{4 * gib, randomBytes(2 * mib)}, // after it
		{6*gib - 4096, randomBytes(4096)},
	}
	args := []string{"-machine", "pc", "-m", "5G"}
	for _, p := range patterns {
		args = append(args, "-device", p.device(t))
	}
	q := qmptest.StartProcess(t, args...)
	mon := dial(t, q.Socket)

	for _, tt := range []struct {
		opts qmp.MemoryOptions
		want qmp.Path
		slow bool
	}{
		{qmp.MemoryOptions{Monitor: mon, PID: q.PID}, qmp.PathProcessVM, false},
		{qmp.MemoryOptions{Monitor: mon, SaveDir: q.Dir}, qmp.PathSave, true},
		// Not QEMU: the proof must fail, not the reads.
		{qmp.MemoryOptions{Monitor: mon, PID: os.Getpid(), SaveDir: q.Dir}, qmp.PathSave, true},
	} {
		t.Run(string(tt.want), func(t *testing.T) {
			mem := openMemory(t, tt.opts)
			if mem.Path() != tt.want || (mem.SlowReason() != nil) != tt.slow {
				t.Fatalf("path %s, slow because of %v; want %s", mem.Path(), mem.SlowReason(), tt.want)
			}
			ranges := mem.Ranges()
			for _, want := range []qmp.Range{{Start: 1 * mib, Size: 3*gib - mib}, {Start: 4 * gib, Size: 2 * gib}} {
				if !slices.ContainsFunc(ranges, func(r qmp.Range) bool { return r.Start <= want.Start && r.End() == want.End() }) {
					t.Errorf("ranges %x have no RAM from %#x to %#x", ranges, want.Start, want.End())
				}
			}
			for _, p := range patterns {
				got := make([]byte, len(p.data))
				if n, err := mem.ReadAt(got, p.addr); n != len(got) || err != nil {
					t.Errorf("read at %#x: %d bytes, %v", p.addr, n, err)
				} else if !bytes.Equal(got, p.data) {
					t.Errorf("read at %#x: other bytes than were loaded", p.addr)
				}
			}

			// Into the hole: what is before it, and an error.
			got := make([]byte, 200)
			n, err := mem.ReadAt(got, 3*gib-100)
			if n != 100 || !errors.Is(err, qmp.ErrNotRAM) || !bytes.Equal(got[:n], patterns[1].data) {
				t.Errorf("read into the hole: %d bytes, %v", n, err)
			}
			for _, addr := range []int64{3 * gib, 4*gib - 1, 6 * gib, 1<<52 - 1, 1<<63 - 1} {
				if n, err := mem.ReadAt(got, addr); n != 0 || !errors.Is(err, qmp.ErrNotRAM) {
					t.Errorf("read at %#x: %d bytes, %v; want ErrNotRAM", addr, n, err)
				}
			}
			if n, err := mem.ReadAt(got, -1); n != 0 || err == nil {
				t.Errorf("read at -1: %d bytes, %v; want an error", n, err)
			}
			if n, err := mem.ReadAt(nil, 3*gib); n != 0 || err != nil {
				t.Errorf("read of nothing: %d bytes, %v", n, err)
			}
		})
	}
}

// held counts the pages of the guest that the host holds.
func held(t *testing.T, mem *qmp.Memory) int {
	t.Helper()
	n := 0
	for _, r := range mem.Ranges() {
		pages := make([]bool, r.Size/4096)
		if err := mem.Resident(r.Start, pages); err != nil {
			t.Fatal(err)
		}
		for _, p := range pages {
			if p {
				n++
			}
		}
	}
	return n
}

func TestResident(t *testing.T) {
	p := &pattern{32 * mib, randomBytes(mib)}
	q := qmptest.StartProcess(t, "-m", "2G", "-device", p.device(t),
		"-object", "memory-backend-memfd,id=ram,size=2G,share=on", "-machine", "q35,memory-backend=ram")
	mon := dial(t, q.Socket)
	mem := openMemory(t, qmp.MemoryOptions{Monitor: mon, PID: q.PID})

	pages := make([]bool, 512)
	if err := mem.Resident(uint64(p.addr), pages); err != nil {
		t.Fatal(err)
	}
	for i, held := range pages {
		if want := i < 256; held != want {
			t.Fatalf("page %d of a loaded MiB and an untouched one: held %v", i, held)
		}
	}
	// A search for a kernel where there is none must not fill the host's memory.
	before := held(t, mem)
	if _, err := layout.Resolve(t.Context(), mem, mem.Ranges(), layout.Hint{}); !errors.Is(err, layout.ErrNotReady) {
		t.Errorf("a guest without a kernel: %v", err)
	}
	if after := held(t, mem); after != before {
		t.Errorf("%d pages held before a search, %d after it", before, after)
	}
	// Reading is what fills it.
	if _, err := mem.ReadAt(make([]byte, mib), 64*mib); err != nil {
		t.Fatal(err)
	}
	if after := held(t, mem); after != before+256 {
		t.Errorf("%d pages held before reading 256 of shared memory, %d after it", before, after)
	}
	if err := mem.Resident(3*gib, pages); !errors.Is(err, qmp.ErrNotRAM) {
		t.Errorf("pages in the hole: %v", err)
	}
}

func TestMemoryClose(t *testing.T) {
	q := qmptest.StartProcess(t, "-m", "64M")
	mon := dial(t, q.Socket)
	for _, opts := range []qmp.MemoryOptions{{Monitor: mon, PID: q.PID}, {Monitor: mon, SaveDir: q.Dir}} {
		mem, err := qmp.OpenMemory(t.Context(), opts)
		if err != nil {
			t.Fatal(err)
		}
		var readers sync.WaitGroup
		for range 4 {
			readers.Go(func() {
				b := make([]byte, 4096)
				for {
					if _, err := mem.ReadAt(b, mib); err != nil {
						if !errors.Is(err, qmp.ErrClosed) {
							t.Errorf("read while closing: %v", err)
						}
						return
					}
				}
			})
		}
		if err := mem.Close(); err != nil {
			t.Error(err)
		}
		readers.Wait()
		if err := mem.Close(); err != nil {
			t.Errorf("close again: %v", err)
		}
	}
	left, err := os.ReadDir(q.Dir)
	if err != nil || len(left) != 0 {
		t.Errorf("files left behind: %v, %v", left, err)
	}
}

func TestMemoryOfEndedQEMU(t *testing.T) {
	q := qmptest.StartProcess(t, "-m", "64M")
	mon := dial(t, q.Socket)
	mem := openMemory(t, qmp.MemoryOptions{Monitor: mon, PID: q.PID})
	proc, err := os.FindProcess(q.PID)
	if err != nil {
		t.Fatal(err)
	}
	if err := proc.Kill(); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(limit); ; {
		_, memErr := mem.ReadAt(make([]byte, 1), mib)
		_, monErr := mon.Run([]byte(`{"execute":"query-status"}`))
		if memErr != nil && errors.Is(monErr, qmp.ErrDisconnected) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("after QEMU's end, reads: %v; commands: %v", memErr, monErr)
		}
	}
}

func TestNoWayToMemory(t *testing.T) {
	q := qmptest.StartProcess(t, "-m", "64M")
	mon := dial(t, q.Socket)
	_, err := qmp.OpenMemory(t.Context(), qmp.MemoryOptions{Monitor: mon})
	if err == nil {
		t.Fatal("no error")
	}
	for _, path := range []qmp.Path{qmp.PathProcessVM, qmp.PathPeek, qmp.PathSave} {
		if !bytes.Contains([]byte(err.Error()), []byte(path)) {
			t.Errorf("error %q does not say why %s does not work", err, path)
		}
	}
}

func TestMemoryOfLibvirtDomain(t *testing.T) {
	g := qmptest.Start(t, qmptest.Config{Paused: true})
	mon := qmp.NewLibvirt(g.Dom)
	fast := openMemory(t, qmp.MemoryOptions{Monitor: mon, PID: g.PID, Domain: qmp.LibvirtMemory{Domain: g.Dom}})
	slow := openMemory(t, qmp.MemoryOptions{Monitor: mon, Domain: qmp.LibvirtMemory{Domain: g.Dom}})
	if fast.Path() != qmp.PathProcessVM || slow.Path() != qmp.PathPeek {
		t.Fatalf("paths %s and %s", fast.Path(), slow.Path())
	}
	if !slices.Equal(fast.Ranges(), slow.Ranges()) {
		t.Fatalf("ranges %x and %x", fast.Ranges(), slow.Ranges())
	}

	// A booted guest has something in its memory; stopped, it does not change.
	g.Resume(t)
	if err := g.Dom.Suspend(); err != nil {
		t.Fatal(err)
	}
	const size = 9*mib + 1 // three calls of libvirt's
	var nonzero bool
	for _, addr := range []int64{mib, 64 * mib, 500 * mib} {
		a, b := make([]byte, size), make([]byte, size)
		if _, err := fast.ReadAt(a, addr); err != nil {
			t.Fatal(err)
		}
		if _, err := slow.ReadAt(b, addr); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(a, b) {
			t.Errorf("%d bytes at %#x differ between the paths", size, addr)
		}
		nonzero = nonzero || len(bytes.Trim(a, "\x00")) > 0
	}
	if !nonzero {
		t.Error("the guest's memory is empty")
	}

	if err := g.Dom.Destroy(); err != nil {
		t.Fatal(err)
	}
	for name, mem := range map[string]*qmp.Memory{"fast": fast, "slow": slow} {
		if _, err := mem.ReadAt(make([]byte, 1), mib); err == nil {
			t.Errorf("%s read of a destroyed domain succeeds", name)
		}
	}
	if err := mon.Connect(); !errors.Is(err, qmp.ErrDisconnected) {
		// A transient domain is gone altogether.
		var lverr libvirt.Error
		if !errors.As(err, &lverr) || lverr.Code != libvirt.ERR_NO_DOMAIN {
			t.Errorf("connect to a destroyed domain: %v", err)
		}
	}
}

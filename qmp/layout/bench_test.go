// SPDX-License-Identifier: Apache-2.0

package layout

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"runtime/debug"
	"slices"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"frail/lab/cache"
	"frail/qmp"
	"frail/qmp/qmptest"
)

// BenchmarkResolve measures how long it takes from a booted guest to an accepted
// layout, its memory's opening and every read included: the median of 20, for each
// way to find a kernel, and the part of it that opens the memory. CPU time is this
// process's own, and the same on a busy machine. Peak memory is what this process
// grows by meanwhile, kept memory what is left of it, both resident.
func BenchmarkResolve(b *testing.B) {
	dir, err := cache.Dir()
	if err != nil {
		b.Fatal(err)
	}
	for _, host := range []string{"bookworm", "trixie", "sid"} {
		b.Run(host, func(b *testing.B) {
			b.Setenv("FRAIL_TEST_KERNEL", filepath.Join(dir, "guest-"+host, "vmlinuz"))
			g := qmptest.Start(b, qmptest.Config{MemoryMiB: 2048})
			lstar := symbolAddr(b, g, "entry_SYSCALL_64")
			// Still, so that the CPU's page tables stay those of a process.
			if err := g.Dom.Suspend(); err != nil {
				b.Fatal(err)
			}
			hint := Hint{LSTAR: lstar, CR3: readRegisters(b, g)[0].cr3}
			mem := openMemory(b, g, g.PID)
			var n *note
			for n, err = range scanNotes(b.Context(), mem, mem.Ranges(), new(tableHits)) {
				break
			}
			if err != nil || n == nil {
				b.Fatalf("no note: %v", err)
			}
			blank := map[uint64][]byte{n.addr: make([]byte, 4)}
			var known Resolver
			if _, err := known.Resolve(b.Context(), mem, mem.Ranges(), hint); err != nil {
				b.Fatal(err)
			}
			for _, way := range []struct {
				name     string
				resolver func() *Resolver
				hint     Hint
				patches  map[uint64][]byte
			}{
				{"cpu", func() *Resolver { return new(Resolver) }, hint, nil},
				{"note", func() *Resolver { return new(Resolver) }, Hint{}, nil},
				{"scan", func() *Resolver { return new(Resolver) }, Hint{}, blank},
				{"known", func() *Resolver { return &known }, hint, nil},
			} {
				b.Run(way.name, func(b *testing.B) {
					for b.Loop() {
						measure(b, g, func(mem *qmp.Memory) error {
							var guest io.ReaderAt = mem
							if way.patches != nil {
								guest = patchedMemory{mem, way.patches}
							}
							l, err := way.resolver().Resolve(b.Context(), guest, mem.Ranges(), way.hint)
							if err == nil && l.Rebased != (way.name == "known") {
								err = fmt.Errorf("known before: %v", l.Rebased)
							}
							return err
						})
					}
				})
			}
		})
	}
}

// patchedMemory is patched memory that still tells which pages the host holds.
type patchedMemory struct {
	*qmp.Memory
	patches map[uint64][]byte
}

func (p patchedMemory) ReadAt(b []byte, off int64) (int, error) {
	return patched{p.Memory, p.patches}.ReadAt(b, off)
}

func measure(b *testing.B, g *qmptest.Guest, resolve func(*qmp.Memory) error) {
	const runs = 20
	debug.FreeOSMemory()
	before := resident(b, "VmRSS")
	// Has the kernel measure the peak anew.
	if err := os.WriteFile("/proc/self/clear_refs", []byte("5"), 0); err != nil {
		b.Fatal(err)
	}
	var took, opened []time.Duration
	cpu := cpuTime(b)
	for range runs {
		started := time.Now()
		mem, err := qmp.OpenMemory(b.Context(), qmp.MemoryOptions{Monitor: qmp.NewLibvirt(g.Dom), PID: g.PID})
		if err != nil {
			b.Fatal(err)
		}
		opened = append(opened, time.Since(started))
		if err := resolve(mem); err != nil {
			b.Fatal(err)
		}
		took = append(took, time.Since(started))
		if err := mem.Close(); err != nil {
			b.Fatal(err)
		}
	}
	cpu = cpuTime(b) - cpu
	peak := resident(b, "VmHWM")
	debug.FreeOSMemory()
	slices.Sort(took)
	slices.Sort(opened)
	const mib = 1 << 10 // kilobytes
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(float64(took[runs/2])/1e6, "median-ms")
	b.ReportMetric(float64(took[runs-1])/1e6, "max-ms")
	b.ReportMetric(float64(opened[runs/2])/1e6, "median-open-ms")
	b.ReportMetric(float64(cpu)/runs/1e6, "cpu-ms")
	b.ReportMetric(float64(peak-before)/mib, "peak-MiB")
	b.ReportMetric(float64(resident(b, "VmRSS")-before)/mib, "kept-MiB")
}

func cpuTime(b *testing.B) time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// resident returns a figure of /proc/self/status, in KiB.
func resident(b *testing.B, field string) int {
	text, err := os.ReadFile("/proc/self/status")
	if err != nil {
		b.Fatal(err)
	}
	m := regexp.MustCompile(field + `:\s+(\d+) kB`).FindSubmatch(text)
	if m == nil {
		b.Fatalf("no %s", field)
	}
	n, err := strconv.Atoi(string(m[1]))
	if err != nil {
		b.Fatal(err)
	}
	return n
}

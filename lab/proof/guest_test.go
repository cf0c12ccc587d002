// SPDX-License-Identifier: Apache-2.0

//go:build lab

package proof

import (
	"bytes"
	"context"
	"debug/elf"
	"encoding/binary"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"frail/bpf"
	"frail/lab/direct"
	"frail/lab/kmsg"
)

var (
	kernel = flag.String("kernel", "/frail/guest/vmlinuz", "the guest's kernel")
	initrd = flag.String("initrd", "/frail/guest/initramfs.cpio.gz", "the guest's initramfs")
	limit  = flag.Duration("limit", 10*time.Minute, "how long one guest may take")
)

// exitModes are the ways to trace a guest.
var exitModes = []struct {
	name  string
	exits uint32
}{{"both", bpf.ExitsBoth}, {"entry", bpf.ExitsEntry}}

// guest completes a guest's configuration.
func guest(cfg direct.Config) direct.Config {
	cfg.Kernel, cfg.Initrd = *kernel, *initrd
	return cfg
}

// fixedGuest is guest with a kernel that is always at the same address. (An uncompressed
// kernel would be, too, and boot sooner, but one of 7.2 reads nonsense for its ACPI tables.)
func fixedGuest(cfg direct.Config) direct.Config {
	cfg.Cmdline = strings.TrimSpace(cfg.Cmdline + " nokaslr")
	return guest(cfg)
}

// hostLog is the host's kernel's log. A test that expects a warning takes it from here.
var hostLog *kmsg.Log

// TestMain fails if the host's kernel had anything else to warn of.
func TestMain(m *testing.M) {
	flag.Parse()
	if process := os.Getenv(armerVariable); process != "" {
		fmt.Fprintln(os.Stderr, "error:", armAndWait(process))
		os.Exit(1)
	}
	var err error
	if hostLog, err = kmsg.Open(); err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
	status := m.Run()
	for _, line := range hostLog.Warnings() {
		fmt.Fprintln(os.Stderr, "the host's kernel warns:", line)
		status = 1
	}
	os.Exit(status)
}

// testContext is done when the test is, or when one guest has taken too long.
func testContext(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeoutCause(t.Context(), *limit, fmt.Errorf("limit of %v", *limit))
	t.Cleanup(cancel)
	return ctx
}

// start starts a guest, which is paused and gone at the test's end.
func start(t *testing.T, ctx context.Context, cfg direct.Config) *direct.Guest {
	t.Helper()
	g, err := direct.Start(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := g.Close(); err != nil {
			t.Error(err)
		}
	})
	return g
}

// run runs a guest untraced.
func run(t *testing.T, cfg direct.Config) (*direct.Result, error) {
	t.Helper()
	ctx := testContext(t)
	g := start(t, ctx, guest(cfg))
	if err := g.Resume(ctx); err != nil {
		t.Fatal(err)
	}
	return g.Wait(ctx)
}

// eventually waits until check returns no error; the last one is the test's.
func eventually(t *testing.T, what string, check func() error) {
	t.Helper()
	within(t, *limit, what, check)
}

// within is eventually with a limit of its own.
func within(t *testing.T, limit time.Duration, what string, check func() error) {
	t.Helper()
	const poll = 20 * time.Millisecond
	// Not of the test's context, which is done when it cleans up.
	over := time.After(limit)
	for err := check(); err != nil; err = check() {
		select {
		case <-over:
			t.Fatalf("%s: not within %v: %v", what, limit, err)
		case <-time.After(poll):
		}
	}
}

// TestFiles carries files into a guest and out of it.
func TestFiles(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "in"), []byte("carried"), 0o755); err != nil {
		t.Fatal(err)
	}
	const big = 1 << 20
	res, err := run(t, direct.Config{
		VCPUs: 2,
		Files: map[string]string{"dir": dir, "file": filepath.Join(dir, "in")},
		Script: "cat dir/in file; test -x dir/in && nproc; mkdir /out/d\n" +
			fmt.Sprintf("head -c %d /dev/zero >/out/d/big; exit 7", big),
	})
	if err != nil {
		t.Fatal(err)
	}
	if want := "carriedcarried2\n"; res.Output != want || res.Status != 7 {
		t.Errorf("output %q, status %d, want %q and 7", res.Output, res.Status, want)
	}
	if len(res.Files) != 1 || len(res.Files["d/big"]) != big {
		t.Errorf("it left %d files, of which d/big has %d bytes", len(res.Files), len(res.Files["d/big"]))
	}
}

// TestCrash runs a guest that ends before its script does: it must not look
// like one that came to its end.
func TestCrash(t *testing.T) {
	_, err := run(t, direct.Config{Script: "echo c >/proc/sysrq-trigger"})
	if err == nil || !strings.Contains(err.Error(), "sysrq") {
		t.Errorf("a guest that crashed: %v, want an error with its console", err)
	}
}

// TestStuck runs a guest that KVM cannot go on with: its first instruction jumps to where
// there is nothing. It must end like one that crashed.
func TestStuck(t *testing.T) {
	kernel := filepath.Join(t.TempDir(), "kernel")
	if err := os.WriteFile(kernel, pvhKernel([]byte{0xb8, 0, 0, 0, 0x90, 0xff, 0xe0}), 0o644); err != nil { // mov $0x90000000, %eax; jmp *%eax
		t.Fatal(err)
	}
	g, err := direct.Start(testContext(t), direct.Config{Kernel: kernel, Initrd: *initrd})
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	if err := g.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := g.Wait(t.Context()); err == nil || !strings.Contains(err.Error(), "KVM internal error") {
		t.Errorf("a guest that KVM cannot go on with: %v, want QEMU's message", err)
	}
}

// pvhKernel returns a kernel of this code alone, which QEMU enters in 32-bit protected mode.
func pvhKernel(code []byte) []byte {
	const (
		loadAt    = 0x100000
		entryNote = 18 // XEN_ELFNOTE_PHYS32_ENTRY
	)
	var (
		header   elf.Header32
		segments [2]elf.Prog32
	)
	note := binary.LittleEndian.AppendUint32(nil, 4) // of the name, then of the address, then the type
	note = binary.LittleEndian.AppendUint32(note, 4)
	note = binary.LittleEndian.AppendUint32(note, entryNote)
	note = append(note, "Xen\x00"...)
	note = binary.LittleEndian.AppendUint32(note, loadAt)
	at := uint32(binary.Size(header) + binary.Size(segments))
	header = elf.Header32{
		Type: uint16(elf.ET_EXEC), Machine: uint16(elf.EM_386), Version: uint32(elf.EV_CURRENT), Entry: loadAt,
		Phoff: uint32(binary.Size(header)), Ehsize: uint16(binary.Size(header)),
		Phentsize: uint16(binary.Size(segments[0])), Phnum: uint16(len(segments)),
	}
	copy(header.Ident[:], elf.ELFMAG+string([]byte{byte(elf.ELFCLASS32), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)}))
	segments = [2]elf.Prog32{
		{Type: uint32(elf.PT_LOAD), Off: at + uint32(len(note)), Vaddr: loadAt, Paddr: loadAt,
			Filesz: uint32(len(code)), Memsz: uint32(len(code)), Flags: uint32(elf.PF_R | elf.PF_X)},
		{Type: uint32(elf.PT_NOTE), Off: at, Filesz: uint32(len(note)), Memsz: uint32(len(note)), Flags: uint32(elf.PF_R), Align: 4},
	}
	var out bytes.Buffer
	for _, part := range []any{header, segments, note, code} {
		// A buffer takes everything.
		_ = binary.Write(&out, binary.LittleEndian, part)
	}
	return out.Bytes()
}

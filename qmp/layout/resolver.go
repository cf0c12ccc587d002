// SPDX-License-Identifier: Apache-2.0

package layout

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"frail/qmp"
)

const (
	// resolveTimeout bounds Resolve where ctx does not: the slowest path to
	// memory reads 100 MB/s.
	resolveTimeout = 2 * time.Minute

	// maxCandidates bounds how many notes of one guest are examined. A guest
	// leaves one stale note behind with each warm reset; a note costs a hostile
	// guest one page.
	maxCandidates = 16

	// maxKernels bounds the kernels that a Resolver knows, and maxKnown the bytes
	// that they take: some 10 MB each.
	maxKernels = 8
	maxKnown   = 64 << 20
)

// Resolver resolves layouts and remembers the kernels it met: the next boot of
// one of them, in this or another guest, needs only new addresses. The zero value
// is ready. A Resolver is safe for concurrent use.
type Resolver struct {
	// Store has what operators gave for kernels that do not describe
	// themselves. Nil: nothing.
	Store *Store

	mu      sync.Mutex
	kernels []*kernel // the last used one first
}

// Resolve is [Resolver.Resolve] of a Resolver that knows nothing.
func Resolve(ctx context.Context, mem io.ReaderAt, ranges []qmp.Range, hint Hint) (*Layout, error) {
	return new(Resolver).Resolve(ctx, mem, ranges, hint)
}

// candidate is a kernel that may be the one that runs.
type candidate struct {
	source Source
	space  *space // maps its image

	// anchor is a symbol of which the address is known.
	anchor Symbol

	note    *note    // nil: none
	symbols *symbols // nil: not read yet

	physBase uint64
	started  time.Time
}

func (c *candidate) String() string {
	if c.note != nil {
		return fmt.Sprintf("kernel %q described at %#x", c.note.release, c.note.addr)
	}
	return "kernel found by " + string(c.source)
}

// Resolve finds the layout of the kernel that runs in the guest. mem is the
// guest's physical memory and ranges its RAM, ascending.
//
// With a hint it looks where the CPU's page tables map the kernel's image.
// Otherwise, or if that fails, it searches memory for VMCOREINFO notes, and if
// there is none that leads to a kernel, for symbol tables.
//
// It fails with ErrNotReady when no kernel is there yet and with ErrRejected
// when none that is there is acceptable; the error then says why.
func (r *Resolver) Resolve(ctx context.Context, mem io.ReaderAt, ranges []qmp.Range, hint Hint) (*Layout, error) {
	ctx, cancel := context.WithTimeout(ctx, resolveTimeout)
	defer cancel()

	var (
		rejected   []error
		unanchored *Layout
	)
	// try returns an acceptable layout or nil.
	try := func(c *candidate) *Layout {
		l, err := r.accept(ctx, mem, c, hint)
		switch {
		case err != nil:
			rejected = append(rejected, fmt.Errorf("%s: %w", c, err))
		case hint.CR3 != 0 && !l.Anchored:
			// Perhaps the process whose CR3 it was has ended. Prefer another.
			if unanchored == nil {
				unanchored = l
			}
		default:
			return l
		}
		return nil
	}
	expired := func() error {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("resolve layout: %w", err)
		}
		return nil
	}

	for _, c := range cpuCandidates(mem, hint) {
		if l := try(c); l != nil {
			return l, nil
		} else if err := expired(); err != nil {
			return nil, err
		}
	}

	var tables tableHits
	notes, started := 0, time.Now()
	for n, err := range scanNotes(ctx, mem, ranges, &tables) {
		if err != nil {
			return nil, fmt.Errorf("search VMCOREINFO: %w", err)
		}
		if notes++; notes > maxCandidates {
			rejected = append(rejected, fmt.Errorf("gave up after %d VMCOREINFO notes", maxCandidates))
			break
		}
		c, err := noteCandidate(mem, n, started)
		if err != nil {
			rejected = append(rejected, fmt.Errorf("kernel %q described at %#x: %w", n.release, n.addr, err))
			continue
		}
		if l := try(c); l != nil {
			return l, nil
		} else if err := expired(); err != nil {
			return nil, err
		}
		started = time.Now()
	}
	if unanchored != nil {
		return unanchored, nil
	}

	described := len(rejected) > 0
	for _, hit := range tables.addrs {
		c, err := scanCandidate(ctx, mem, hit, started)
		if err == nil {
			if l := try(c); l != nil {
				return l, nil
			}
		} else if isMissing(err) {
			rejected = append(rejected, fmt.Errorf("symbol tables at %#x: %w", hit, err))
		}
		if err := expired(); err != nil {
			return nil, err
		}
	}
	switch {
	case unanchored != nil:
		return unanchored, nil
	case !described && !slices.ContainsFunc(rejected, isMissing):
		// A kernel that has not come far enough looks like this too.
		return nil, errors.Join(append([]error{ErrNotReady}, rejected...)...)
	default:
		return nil, fmt.Errorf("%w: %w", ErrRejected, errors.Join(rejected...))
	}
}

// cpuCandidates returns the kernel that the page tables of the hint map.
//
// With page table isolation, CR3 may name the user's half, which maps little of
// the kernel; its other half lies in the page before. Whether that page is one is
// told by what is mapped: a kernel cannot run without its variables. Only the
// kernel writes to what CR3 names, so the other half is believed only if the two
// agree on where the kernel's entry is.
func cpuCandidates(mem io.ReaderAt, hint Hint) []*candidate {
	if hint.CR3 == 0 || hint.LSTAR < imageStart || hint.LSTAR >= imageEnd {
		return nil
	}
	const userHalf = 1 << 12
	started := time.Now()
	var out []*candidate
	for _, levels := range []int{4, 5} {
		sp := newSpace(mem, hint.CR3&pageMask, levels)
		entry, err := sp.walk(hint.LSTAR)
		if err != nil || !entry.present {
			continue
		}
		if !sp.hasVariables() {
			if hint.CR3&userHalf == 0 {
				continue
			}
			sp = newSpace(mem, hint.CR3&pageMask&^userHalf, levels)
			if other, err := sp.walk(hint.LSTAR); err != nil || !other.present || other.pa != entry.pa || !sp.hasVariables() {
				continue
			}
		}
		out = append(out, &candidate{
			source: SourceCPU, space: sp, anchor: Symbol{Name: "entry_SYSCALL_64", Addr: hint.LSTAR},
			physBase: entry.pa - hint.LSTAR + imageStart, started: started,
		})
	}
	return out
}

// hasVariables reports whether the space maps anything of the kernel's image that
// can be written to.
func (s *space) hasVariables() bool {
	runs, err := s.imageRuns()
	return err == nil && slices.ContainsFunc(runs, func(r run) bool { return r.writable })
}

// noteCandidate returns the kernel that a note describes.
func noteCandidate(mem io.ReaderAt, n *note, started time.Time) (*candidate, error) {
	root, err := imagePhysical(n.initTopPgt, n.physBase)
	if err != nil {
		return nil, fmt.Errorf("locate init_top_pgt: %w", err)
	}
	sp := newSpace(mem, root, n.levels)
	if err := sp.checkImage(n.stext, n.physBase); err != nil {
		return nil, fmt.Errorf("page table at %#x: %w", root, err)
	}
	return &candidate{
		source: SourceNote, space: sp, anchor: Symbol{Name: "_stext", Addr: n.stext}, note: n, physBase: n.physBase, started: started,
	}, nil
}

// scanCandidate returns the kernel whose symbol tables have their digits at the
// physical address hit.
func scanCandidate(ctx context.Context, mem io.ReaderAt, hit uint64, started time.Time) (*candidate, error) {
	m := physical{mem}
	f, err := examineTables(ctx, m, hit)
	if err != nil {
		return nil, err
	}
	c := &candidate{source: SourceScan, started: started}
	var why error
	_, _, err = f.symbols(m, func(s *symbols) bool {
		sp, s, physBase, err := place(mem, s, hit)
		if err != nil {
			why = err
			return false
		}
		c.space, c.symbols, c.physBase = sp, s, physBase
		return true
	})
	if err != nil {
		return nil, errors.Join(why, err)
	}
	return c, nil
}

// accept resolves a candidate, with what was imported where the kernel lacks
// something.
func (r *Resolver) accept(ctx context.Context, mem io.ReaderAt, c *candidate, hint Hint) (*Layout, error) {
	found := time.Since(c.started)
	step := time.Now()
	if k, s := r.known(c); k != nil {
		l := &Layout{Rebased: true, SymbolSource: k.symbolSource, TypeSource: k.typeSource, Timing: Timing{Find: found}}
		if err := l.fill(ctx, mem, c, hint, &reading{symbols: s, types: k.types}, step); err != nil {
			return nil, err
		}
		return l, nil
	}

	l := &Layout{Timing: Timing{Find: found}}
	rd, err := l.read(ctx, mem, c, hint, nil)
	if isMissing(err) && ctx.Err() == nil {
		l, rd, err = r.importFor(ctx, mem, c, hint, l, err)
		if err == nil {
			l.Timing.Find = found
		}
	}
	if err != nil {
		return nil, err
	}
	r.remember(l, rd)
	return l, nil
}

// importFor resolves a candidate that lacks something, says why, with what the
// operator imported for it. l is what was found of it so far.
func (r *Resolver) importFor(ctx context.Context, mem io.ReaderAt, c *candidate, hint Hint, l *Layout, why error) (*Layout, *reading, error) {
	var ids []string
	switch {
	case l.BuildID != "":
		ids = []string{l.BuildID}
	default:
		ids = imageBuildIDs(ctx, c.space)
		if c.note != nil && c.note.buildID != "" && !slices.Contains(ids, c.note.buildID) {
			ids = append(ids, c.note.buildID)
		}
	}
	var errs []error
	for _, id := range ids {
		imp, err := r.Store.load(id)
		if errors.Is(err, ErrNotImported) {
			continue
		}
		// What the guest says itself goes before.
		if err == nil && l.symbols != nil && imp.types != nil {
			typed := new(Layout)
			if rd, err := typed.read(ctx, mem, c, hint, &imported{types: imp.types, stamp: imp.stamp}); err == nil {
				return typed, rd, nil
			}
		}
		if err == nil {
			full := new(Layout)
			var rd *reading
			if rd, err = full.read(ctx, mem, c, hint, imp); err == nil {
				return full, rd, nil
			}
		}
		errs = append(errs, fmt.Errorf("with what was imported for build id %s: %w", id, err))
	}
	if len(errs) > 0 {
		return nil, nil, errors.Join(append([]error{why}, errs...)...)
	}
	id := "BUILDID"
	if len(ids) == 1 {
		id = ids[0]
	}
	cure := fmt.Sprintf("import it: frail layout import --vmlinux FILE, or --build-id %s with --isf FILE or, if only types are missing, --btf FILE", id)
	if len(ids) != 1 {
		cure += fmt.Sprintf("; its build id is one of [%s]", strings.Join(ids, " "))
	}
	return nil, nil, fmt.Errorf("%w; %s", why, cure)
}

// reading is what was read of a kernel, or known before.
type reading struct {
	symbols *symbols
	tables  kallsymsTables // zero: symbols are imported
	types   *btfTypes      // nil: not read yet
	btf     *btfBlob       // nil: types are imported
	stamp   string         // of what was imported; empty: nothing
}

// read reads a candidate's symbols and types and fills the layout. What imp has it
// does not read.
func (l *Layout) read(ctx context.Context, mem io.ReaderAt, c *candidate, hint Hint, imp *imported) (*reading, error) {
	step := time.Now()
	rd := new(reading)
	if imp != nil {
		rd.stamp = imp.stamp
	}
	var err error
	switch accept := putsAt(c.anchor.Name, c.anchor.Addr); {
	case imp != nil && imp.symbols != nil:
		l.SymbolSource = OriginImport
		rd.symbols, err = imp.symbols.anchored(c.anchor)
	case c.symbols != nil:
		l.SymbolSource = OriginImage
		rd.symbols = c.symbols
	case c.note != nil && c.note.kallsyms != kallsymsTables{}:
		l.SymbolSource = OriginNote
		rd.tables = c.note.kallsyms
		if err = rd.tables.check(); err == nil {
			rd.symbols, err = readSymbols(ctx, c.space, rd.tables, accept)
		}
	default:
		l.SymbolSource = OriginImage
		rd.symbols, rd.tables, err = searchImage(ctx, c.space, accept)
		if errors.Is(err, errNoTables) {
			return nil, missing{fmt.Sprintf("readable symbol tables (kallsyms): %v", err)}
		}
	}
	if err != nil {
		return nil, fmt.Errorf("read kallsyms: %w", err)
	}
	if imp != nil && imp.types != nil {
		l.TypeSource = OriginImport
		rd.types = imp.types
	} else {
		l.TypeSource = OriginBTF
	}
	return rd, l.fill(ctx, mem, c, hint, rd, step)
}

// fill fills the layout from a reading, whose types it reads if they were not, and
// holds it against the facts. It began at step.
func (l *Layout) fill(ctx context.Context, mem io.ReaderAt, c *candidate, hint Hint, rd *reading, step time.Time) error {
	lap := func(d *time.Duration) {
		*d = time.Since(step)
		step = time.Now()
	}
	l.symbols = rd.symbols
	l.Source = c.source
	l.PhysBase = c.physBase
	l.Levels = c.space.levels
	if err := l.identify(c); err != nil {
		return err
	}
	sp, err := l.openSpace(mem)
	if err != nil {
		return err
	}
	lap(&l.Timing.Symbols)

	if rd.types == nil {
		if rd.types, rd.btf, err = l.readTypes(ctx, sp); err != nil {
			return fmt.Errorf("read types: %w", err)
		}
	}
	if err := l.takeOffsets(rd.types); err != nil {
		return fmt.Errorf("take offsets from %s: %w", l.TypeSource, err)
	}
	lap(&l.Timing.Types)

	if err := l.readVariables(sp); err != nil {
		return err
	}
	if err := l.check(sp, hint); err != nil {
		return err
	}
	if hint.LSTAR != 0 && hint.CR3 != 0 {
		// Under page table isolation CR3 names the user's half, which maps the
		// entry code as the kernel's half does.
		user := newSpace(mem, hint.CR3&pageMask, l.Levels)
		l.Anchored = user.checkImage(hint.LSTAR, l.PhysBase) == nil
	}
	lap(&l.Timing.Checks)
	return nil
}

// identify tells which kernel it is.
func (l *Layout) identify(c *candidate) error {
	if c.note != nil {
		l.Release, l.BuildID, l.KASLR = c.note.release, c.note.buildID, c.note.kernelOffset
	} else {
		release, err := readRelease(c.space, l.symbols)
		if err != nil {
			return err
		}
		text, ok := l.symbols.lookup("_text")
		if !ok {
			return missing{"symbol _text"}
		}
		l.Release, l.KASLR = release, text.Addr-linkedAt
	}
	// What the note says of it is garbage on some stable kernels.
	start, size := l.noteSpan()
	if id := readBuildID(c.space, start, size); id != "" {
		l.BuildID = id
	}
	return nil
}

// noteSpan returns where the kernel's ELF notes lie.
func (l *Layout) noteSpan() (start, size uint64) {
	from, ok := l.symbols.lookup("__start_notes")
	to, ok2 := l.symbols.lookup("__stop_notes")
	if !ok || !ok2 || to.Addr <= from.Addr {
		return 0, 0
	}
	return from.Addr, to.Addr - from.Addr
}

// openSpace opens the kernel's own page tables, and checks that they map its image
// where it was found.
func (l *Layout) openSpace(mem io.ReaderAt) (*space, error) {
	pageTable, ok := l.symbols.lookup("init_top_pgt")
	if !ok {
		return nil, missing{"symbol init_top_pgt"}
	}
	entry, ok := l.symbols.lookup("entry_SYSCALL_64")
	if !ok {
		return nil, missing{"symbol entry_SYSCALL_64"}
	}
	root, err := imagePhysical(pageTable.Addr, l.PhysBase)
	if err != nil {
		return nil, fmt.Errorf("locate init_top_pgt: %w", err)
	}
	l.PageTable = root
	sp := newSpace(mem, root, l.Levels)
	if err := sp.checkImage(entry.Addr, l.PhysBase); err != nil {
		return nil, fmt.Errorf("page table at %#x: %w", root, err)
	}
	return sp, nil
}

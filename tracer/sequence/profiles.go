// SPDX-License-Identifier: Apache-2.0

package sequence

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/cilium/ebpf"

	"frail/bpf"
	"frail/tracer"
	"frail/tracer/ph"
)

// ErrNoProfile is in the chain of errors about an executable that has no profile.
var ErrNoProfile = errors.New("no profile")

// ErrLimit is in the chain of errors about a limit of [Options].
var ErrLimit = errors.New("limit reached")

// Symbols of ph.h.
const (
	other     = 254
	none      = 255
	maxSymbol = 253
)

// Info describes a profile.
type Info struct {
	// Index of the profile: its id in threads and records.
	Index uint32
	// Executable is whose it is.
	Executable ph.Executable
	// Profile has no rows.
	Profile ph.Profile
	// Calls is how many different calls its program made.
	Calls int
	// Threads is how many threads ran it.
	Threads uint64
}

// profile converts what the kernel keeps, without rows.
func profileOf(p *bpf.PhProfile) ph.Profile {
	out := ph.Profile{
		Name: ph.FromBPF(&p.Exe).Name(), Normal: p.Normal != 0, Frozen: p.Frozen != 0,
		Train: p.Train, LastMod: p.Train - p.LastMod, Sequences: p.Sequences, Anomalies: p.Anomalies,
	}
	if out.Frozen {
		out.NormalTime = p.NormalTime
	}
	return out
}

// List returns all profiles, ordered by VM and name.
func (a *Analyzer) List() ([]Info, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	var out []Info
	err := a.eachExecutable(func(_ bpf.PhExecutable, index uint32) error {
		p, err := a.at(index)
		if err != nil {
			return err
		}
		out = append(out, Info{
			Index: index, Executable: ph.FromBPF(&p.Exe), Profile: profileOf(p),
			Calls: int(p.Symbols), Threads: p.Threads,
		})
		return nil
	})
	slices.SortFunc(out, func(x, y Info) int {
		return cmp.Or(cmp.Compare(x.Executable.VM, y.Executable.VM), cmp.Compare(x.Executable.Name(), y.Executable.Name()))
	})
	return out, err
}

// eachExecutable is called with mu held.
func (a *Analyzer) eachExecutable(f func(bpf.PhExecutable, uint32) error) error {
	if a.closed {
		return fmt.Errorf("read profiles: %w", os.ErrClosed)
	}
	keys := make([]bpf.PhExecutable, batchSize)
	values := make([]uint32, batchSize)
	var failed error
	err := eachBatch(a.objs.Executables, keys, values, func(i int) {
		if failed == nil {
			failed = f(keys[i], values[i])
		}
	})
	return errors.Join(err, failed)
}

func (a *Analyzer) at(index uint32) (*bpf.PhProfile, error) {
	p := new(bpf.PhProfile)
	if err := a.objs.Profiles.Lookup(index, p); err != nil {
		return nil, fmt.Errorf("read profile %d: %w", index, err)
	}
	return p, nil
}

// find is called with mu held.
func (a *Analyzer) find(exe ph.Executable) (uint32, error) {
	if a.closed {
		return 0, fmt.Errorf("find profile of %q: %w", exe.Name(), os.ErrClosed)
	}
	var index uint32
	err := a.objs.Executables.Lookup(exe.BPF(), &index)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return 0, fmt.Errorf("executable %q of VM %d: %w", exe.Name(), exe.VM, ErrNoProfile)
	}
	if err != nil {
		return 0, fmt.Errorf("find profile of %q: %w", exe.Name(), err)
	}
	return index, nil
}

// Profile returns a copy of what is known of exe. While exe runs, it may be a few calls
// of another moment in one part than in another.
func (a *Analyzer) Profile(exe ph.Executable) (*ph.Profile, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	index, err := a.find(exe)
	if err != nil {
		return nil, err
	}
	p, err := a.at(index)
	if err != nil {
		return nil, err
	}
	out := profileOf(p)
	number := func(s ph.Symbol) ph.Number {
		switch s {
		case other:
			return ph.OtherNumber
		case none:
			return ph.NoNumber
		}
		return ph.Number(p.Number[s])
	}
	for s, row := range p.Row {
		if row == 0 {
			continue
		}
		var r bpf.PhRow
		if err := a.objs.Rows.Lookup(row-1, &r); err != nil {
			return nil, fmt.Errorf("read profile of %q: %w", exe.Name(), err)
		}
		catchUp(&r, p)
		out.Rows = append(out.Rows, ph.NewRow(number(ph.Symbol(s)), &r.Train, &r.Test, number))
	}
	ph.SortRows(out.Rows)
	return &out, nil
}

// catchUp does what catch_up of ph.bpf.c does at a row's next use.
func catchUp(r *bpf.PhRow, p *bpf.PhProfile) {
	if r.TestEpoch != p.TestEpoch {
		if r.TrainEpoch == p.TestFrom {
			r.Test = r.Train
		} else {
			r.Test = [256]uint8{}
		}
	}
	if r.TrainEpoch != p.TrainEpoch {
		r.Train = [256]uint8{}
	}
}

// Load gives exe a profile in place of what is known of it. Threads that run it are analysed
// again when the module describes them anew. It returns an error wrapping [ErrLimit] when there is no room for it.
func (a *Analyzer) Load(exe ph.Executable, from *ph.Profile) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return fmt.Errorf("load profile of %q: %w", exe.Name(), os.ErrClosed)
	}
	calls := from.Calls()
	if len(calls) > maxSymbol {
		return fmt.Errorf("load profile of %q: %d different system calls: at most %d: %w", exe.Name(), len(calls), maxSymbol, ErrLimit)
	}
	if err := a.remove(exe); err != nil && !errors.Is(err, ErrNoProfile) {
		return err
	}
	index, err := a.take(bpf.PhTake, a.objs.Profiles, "profiles")
	if err != nil {
		return fmt.Errorf("load profile of %q: %w", exe.Name(), err)
	}

	// The programs count up from 1: neither waits for the other.
	a.serial--
	p := &bpf.PhProfile{
		Serial: a.serial, Symbols: uint32(len(calls)), Train: from.Train, LastMod: from.Train - from.LastMod,
		Sequences: from.Sequences, NormalTime: from.NormalTime, Anomalies: from.Anomalies,
		ForkWindow: ^uint64(0), Exe: exe.BPF(),
	}
	if from.Normal {
		p.Normal = 1
	}
	if from.Frozen {
		p.Frozen = 1
	}
	symbols := map[ph.Number]uint8{ph.OtherNumber: other, ph.NoNumber: none}
	for i, n := range calls {
		s := uint8(i + 1)
		symbols[n] = s
		p.Number[s] = uint16(n)
		p.Symbol[n/4] |= uint32(s) << (n % 4 * 8)
	}
	for _, fr := range from.Rows {
		var r bpf.PhRow
		for _, pair := range fr.Pairs {
			r.Train[symbols[pair.Prev]], r.Test[symbols[pair.Prev]] = pair.Train, pair.Test
		}
		row, err := a.take(bpf.PhTakeRow, a.objs.Rows, "rows")
		if err == nil {
			p.Row[symbols[fr.Call]] = row + 1
			err = a.objs.Rows.Put(row, &r)
		}
		if err != nil {
			return errors.Join(fmt.Errorf("load profile of %q: %w", exe.Name(), err), a.giveBack(index, p))
		}
	}
	if err := a.objs.Profiles.Put(index, p); err != nil {
		return fmt.Errorf("load profile of %q: %w", exe.Name(), err)
	}
	if err := a.objs.Executables.Put(p.Exe, index); err != nil {
		return fmt.Errorf("load profile of %q: %w", exe.Name(), err)
	}
	return nil
}

// take returns the index of an unused element of a map. It races with the programs for it by
// asking one of them.
func (a *Analyzer) take(which uint64, of *ebpf.Map, what string) (uint32, error) {
	index, err := a.objs.Control.Run(&ebpf.RunOptions{Context: [2]uint64{0, which}})
	if err != nil {
		return 0, fmt.Errorf("take of %s: %w", what, err)
	}
	if index >= of.MaxEntries() {
		return 0, fmt.Errorf("%d %s: %w", of.MaxEntries(), what, ErrLimit)
	}
	return index, nil
}

// Delete forgets the profile of exe. Threads that run it begin a new one when the module
// describes them anew.
func (a *Analyzer) Delete(exe ph.Executable) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.remove(exe)
}

// remove is called with mu held.
func (a *Analyzer) remove(exe ph.Executable) error {
	index, err := a.find(exe)
	if err != nil {
		return err
	}
	if err := a.objs.Executables.Delete(exe.BPF()); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("delete profile of %q: %w", exe.Name(), err)
	}
	if _, err := a.objs.Control.Run(&ebpf.RunOptions{Context: [2]uint64{uint64(index), bpf.PhRetire}}); err != nil {
		return fmt.Errorf("delete profile of %q: %w", exe.Name(), err)
	}
	// A program that found the profile before may still run on another CPU.
	tracer.Synchronize()
	if _, err := a.deleteThreads(func(_ bpf.PhThreadKey, t *bpf.PhThread) bool { return t.Profile == index }); err != nil {
		return err
	}
	p, err := a.at(index)
	if err == nil {
		err = a.giveBack(index, p)
	}
	if err != nil {
		return fmt.Errorf("delete profile of %q: %w", exe.Name(), err)
	}
	return nil
}

// giveBack frees the place of a profile that nobody has any more, and its rows. The queues
// have room for all.
func (a *Analyzer) giveBack(index uint32, p *bpf.PhProfile) error {
	for _, row := range p.Row {
		if row == 0 {
			continue
		}
		if err := a.objs.Rows.Put(row-1, new(bpf.PhRow)); err != nil {
			return fmt.Errorf("free row: %w", err)
		}
		if err := a.objs.FreeRows.Put(nil, row-1); err != nil {
			return fmt.Errorf("free row: %w", err)
		}
	}
	if err := a.objs.Profiles.Put(index, new(bpf.PhProfile)); err != nil {
		return fmt.Errorf("free profile: %w", err)
	}
	if err := a.objs.Free.Put(nil, index); err != nil {
		return fmt.Errorf("free profile: %w", err)
	}
	return nil
}

// Control changes the state of the profile of exe.
func (a *Analyzer) Control(exe ph.Executable, c ph.Control) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	index, err := a.find(exe)
	if err != nil {
		return err
	}
	ret, err := a.objs.Control.Run(&ebpf.RunOptions{Context: [2]uint64{uint64(index), uint64(c)}})
	if err != nil {
		return fmt.Errorf("change profile of %q: %w", exe.Name(), err)
	}
	if ret != 0 {
		return fmt.Errorf("change profile of %q: it was deleted meanwhile: %w", exe.Name(), ErrNoProfile)
	}
	return nil
}
